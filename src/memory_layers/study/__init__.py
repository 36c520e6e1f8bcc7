"""Fair comparisons of memory, dense and expert models, and their report."""
