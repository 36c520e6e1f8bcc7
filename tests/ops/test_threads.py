"""Starting Numba's thread pool must not change how many threads torch uses."""

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
