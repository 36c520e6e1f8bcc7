"""Plots as PNG, with their numbers as CSV. Next: comparison.py and sweep.py."""
