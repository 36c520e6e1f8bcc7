"""Large tables in large pages: a random row then costs fewer look-ups of its address."""

import ctypes
import sys

from torch import Tensor

PAGE = 4096
HUGE_PAGE = 2 * 2**20
_MADV_HUGEPAGE = 14


def advise_huge_pages(tensor: Tensor) -> bool:
    """Ask Linux to back a CPU tensor with huge pages, and say whether it listened.

    To be called before the tensor is first written: pages that exist already are changed late or
    not at all. Has no effect on small tensors, on other devices, and elsewhere than on Linux.

    Args:
        tensor: A contiguous tensor.
    """
    if tensor.device.type != "cpu" or not sys.platform.startswith("linux"):
        return False
    start = -(-tensor.data_ptr() // PAGE) * PAGE
    length = tensor.data_ptr() + tensor.nbytes - start
    if length < 2 * HUGE_PAGE:
        return False
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return madvise(start, length, _MADV_HUGEPAGE) == 0
