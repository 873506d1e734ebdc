"""Weights on disk: reading, writing, comparing and counting tensors."""
