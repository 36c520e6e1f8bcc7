"""How much memory a call takes beyond what was there before it."""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_HIGH_WATER_MARK = "5"


def peak_extra_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """Run something and return by how many bytes memory grew at most. None: not measurable here.

    Args:
        run: What to run.
        device: On CUDA the allocator is asked, on the CPU the kernel, which counts what numpy and
            Numba take as well.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not (sys.platform == "linux" and _CLEAR_REFS.exists()):
        return None
    _release_freed_memory()
    try:
        _CLEAR_REFS.write_text(_RESET_HIGH_WATER_MARK)
    except PermissionError:
        return None
    before = status_bytes("VmRSS")
    run()
    return max(0, status_bytes("VmHWM") - before)


def status_bytes(field: str) -> int:
    """Return a field of /proc/self/status in bytes.

    Args:
        field: Such as "VmRSS".
    """
    for line in _STATUS.read_text("ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def _release_freed_memory() -> None:
    """Give freed memory back to the kernel, so that taking it again is seen as growth."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
