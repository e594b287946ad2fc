"""Curves elsewhere: Weights & Biases, TensorBoard."""
