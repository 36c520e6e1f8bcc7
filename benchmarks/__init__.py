"""Speed: measured against the best plain torch in the same run, after a test of what is timed."""
