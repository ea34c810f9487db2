"""The kernel contract, fast: `accel.cpu` in Numba."""
