"""Attention on the GPU."""
