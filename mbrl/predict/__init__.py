"""Judging a model's predictions on data: which model, which clips, and what a person gets to see of it."""
