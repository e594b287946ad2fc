"""The schema of a run, its checks, and its composition."""
