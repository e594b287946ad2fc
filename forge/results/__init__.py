"""Runs read back: statistics, sweeps, tables, the index, reports, plots, model cards."""
