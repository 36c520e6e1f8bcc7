"""What a run would need: bytes a rank, operations, traffic and time, from sizes alone.

All of it is arithmetic on the configuration: nothing here runs a model. Read job.py first, then
parameters.py, work.py, communication.py, saved.py, rehearsal.py and predict.py.
"""
