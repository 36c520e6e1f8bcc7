"""Keep freed memory in the process: a training step asks for the same sizes again and again."""

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
# The largest threshold that glibc takes on 64-bit machines.
_LARGEST_THRESHOLD = 32 * 2**20


def keep_freed_memory() -> bool:
    """Tell glibc not to return freed tensors to the kernel, and return whether it took that.

    By default each tensor above 128 KiB is mapped and unmapped, so that a step spends time on
    page faults (measured in docs/decisions/0001-keep-freed-memory.md). There is nothing to set
    without glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {
        _M_MMAP_THRESHOLD: _LARGEST_THRESHOLD,
        _M_TRIM_THRESHOLD: 2**31 - 1,
        _M_TOP_PAD: 64 * 2**20,
    }
    return all(mallopt(name, value) == 1 for name, value in settings.items())
