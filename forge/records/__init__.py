"""A run's directory: what is recorded, its checkpoints, its config with overrides on top."""
