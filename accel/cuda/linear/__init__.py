"""Linear maps on the GPU."""
