"""Speed: timed beside the best plain torch in the same run, after a check of what is timed.

`python -m benchmarks` lists what there is. Open harness.py first, then a file of cases/.
"""
