"""Forge: one experiment, three modes, any task. Start reading at `forge.experiment.run`."""

__version__ = "0.1.0"
