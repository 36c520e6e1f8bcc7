"""One training run: config.py (what), loop.py (how), checkpoint.py and metrics.py (what stays)."""
