"""A run's directory: what is recorded, checkpoints, secrets, a recorded config with overrides on top."""
