"""What the Numba kernels of all operations share."""
