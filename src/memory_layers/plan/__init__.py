"""What a run would need: bytes a rank, operations, traffic and time, from sizes alone.

All of it is arithmetic on the configuration: nothing here runs a model. Read job.py first, then
parameters.py, work.py, communication.py, saved.py, rehearsal.py and predict.py.
"""

from memory_layers.plan.devices import DEVICES, Device, measure_cpu
from memory_layers.plan.job import Job
from memory_layers.plan.predict import Prediction, predict, smallest

__all__ = [
    "DEVICES",
    "Device",
    "Job",
    "Prediction",
    "measure_cpu",
    "predict",
    "smallest",
]
