"""Rewards, GRPO, and policies whose answers are labels or texts."""
