"""The feed-forward network on the GPU, dense and of chosen neurons."""
