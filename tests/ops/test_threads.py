"""Kernels beside other threads, and in processes that were forked after they ran."""

import os

import pytest
from helpers import fresh_interpreter

PROGRAM = """
import torch
from memory_layers import gather_sum
before = torch.get_num_threads()
for _ in range(2):
    gather_sum(torch.ones(4, 2), torch.zeros(3, 2).long(), torch.ones(3, 2), impl="cpu")
    print(before, torch.get_num_threads())
"""


def test_kernels_leave_the_threads_of_torch_alone() -> None:
    """Numba's OpenMP pool sets the threads of the whole process: 1 became all cores of the host."""
    printed = fresh_interpreter(PROGRAM, OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="2")
    assert printed.split() == ["1", "1", "1", "1"]


TOGETHER = """
import multiprocessing, os, threading
import torch
from memory_layers import gather_sum

def read(_=None):
    table, weights = torch.ones(400, 64), torch.ones(3000, 8)
    read = gather_sum(table, torch.zeros(3000, 8).long(), weights, impl="cpu")
    return int(read.sum().item() + torch.ones(10**6).sum().item())

def many():
    for _ in range(100):
        read()
    print("thread", flush=True)

print(read(), flush=True)
threads = [threading.Thread(target=many) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(*pool.map_async(read, range(3)).get(60))
print(read(), torch.get_num_threads())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process is forked here")
@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_threads_and_forked_processes_read_as_ever(layer: str) -> None:
    """Workqueue aborts when two threads come in, OpenMP ends or holds up a forked process."""
    printed = fresh_interpreter(
        TOGETHER, OMP_NUM_THREADS="2", NUMBA_NUM_THREADS="2", NUMBA_THREADING_LAYER=layer
    )
    right = str(3000 * 64 * 8 + 10**6)
    assert printed.split() == [right, *["thread"] * 3, *[right] * 4, "2"]
