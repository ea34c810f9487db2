"""Scores and selections on the GPU."""
