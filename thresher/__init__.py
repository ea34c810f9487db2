"""What people run: load a model, read a long prompt, generate."""
