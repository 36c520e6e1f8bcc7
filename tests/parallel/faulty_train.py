"""What `python -m memory_layers train` does, with a fault: a script for torchrun.

FAULTS names one for each attempt of torchrun, such as "full,kill". All but `mistakes` and `stop`
happen on rank 1.
"""

import errno
import os
import signal
import sys
import time

from memory_layers.cli import main
from memory_layers.train import checkpoint
from memory_layers.train.loop import _Run

RANK = int(os.environ["RANK"])


def full_disk(writer, _plan, _planner):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(writer.path))


def killed_in_save(writer, plan, planner):
    if "00000004" in str(writer.path):
        os.kill(os.getpid(), signal.SIGKILL)
    return write_data(writer, plan, planner)


def hang(run, step, stop):
    if step == 2:
        sys.stdout.write(f"hanging {time.time()}\n")
        sys.stdout.flush()
        time.sleep(100)
    return take_step(run, step, stop)


def stop_torchrun(run, step, stop):
    if step == 2 and RANK == 1:
        os.kill(os.getppid(), signal.SIGINT)
    time.sleep(0.5 * (step >= 2))
    return take_step(run, step, stop)


write_data = checkpoint._Writer.write_data
take_step = _Run._step
fault = dict(enumerate(os.environ["FAULTS"].split(","))).get(
    int(os.environ["TORCHELASTIC_RESTART_COUNT"])
)
if fault == "mistakes":
    for flags in (["--parallel.shard", "3"], ["--train.batch-size", "5"]):
        code = main(["train", *sys.argv[1:], *flags])
        sys.stdout.write(f"rank {RANK} would end with {code}\n")
        sys.stdout.flush()
elif fault == "stop":
    _Run._step = stop_torchrun
elif RANK == 1 and fault == "hang":
    _Run._step = hang
elif RANK == 1 and fault in ("full", "kill"):
    checkpoint._Writer.write_data = full_disk if fault == "full" else killed_in_save
sys.exit(main(["train", *sys.argv[1:]]))
