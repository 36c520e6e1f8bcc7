"""What the Triton kernels of all operations share."""
