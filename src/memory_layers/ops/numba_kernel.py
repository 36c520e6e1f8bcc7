"""How the Numba kernels are compiled: once, kept on disk, with as many threads as torch uses."""

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numba
import torch
from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile

# Reassociation lets a sum over a row use vector registers. NaN and infinity keep their meaning.
# Division by zero gives infinity: the check that Python makes would keep loops from being
# vectorised.
OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}

# Loops are parallel where they say so. Numba's search for other loops makes compiling slow.
_PARALLEL = {
    "comprehension": False,
    "reduction": False,
    "inplace_binop": False,
    "setitem": False,
    "numpy": False,
    "stencil": False,
    "fusion": False,
    "prange": True,
}

# Compiles a function that kernels alone call.
helper = njit(**OPTIONS, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def kernel(function: Callable) -> Callable:
    """Compile a function with a `prange` loop at its first call and keep the code on disk.

    Where no folder can be written, the function is compiled anew in each process. The body of the
    loop is best a helper: Numba compiles what stands in the loop itself more slowly.
    """
    dispatcher = njit(**OPTIONS, parallel=_PARALLEL, no_cfunc_wrapper=True)(function)
    try:
        dispatcher._cache = _KernelCache(function)  # noqa: SLF001  (njit(cache=True) does this)
    except RuntimeError:
        # Numba found neither the package's __pycache__ nor a folder of the user's writable.
        return dispatcher
    return dispatcher


def follow_torch_threads() -> None:
    """Use as many threads as torch does, up to the pool that Numba started."""
    threads = torch.get_num_threads()
    numba.set_num_threads(max(1, min(threads, numba.config.NUMBA_NUM_THREADS)))
    if torch.get_num_threads() != threads:
        # The first call starts Numba's pool, which sets the threads of OpenMP, torch's included.
        torch.set_num_threads(threads)


class _KernelCache(FunctionCache):
    """Numba's cache of one function, with three of its gaps closed.

    Two processes that compile different types at once would give their code the same file name: a
    lock makes them save in turn. A disk that is full or read-only costs the saving, not the call.
    And every file that is compiled into some kernel counts as source of each.
    """

    def __init__(self, py_func: Callable) -> None:
        super().__init__(py_func)
        stamp = (self._impl.locator.get_source_stamp(), _helper_stamp())
        self._cache_file = IndexDataCacheFile(self._cache_path, self._impl.filename_base, stamp)

    def save_overload(self, sig: Any, data: Any) -> None:  # noqa: ANN401
        try:
            with _lock(Path(self._cache_path) / "memory_layers.lock"):
                super().save_overload(sig, data)
        except OSError:
            self.disable()


@cache
def _helper_stamp() -> str:
    folder = Path(__file__).parent
    sources = [*folder.glob("numba_*.py"), *folder.glob("*/cpu*.py"), *folder.glob("*/entries.py")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    if sys.platform == "win32":
        # A file that is open cannot be exchanged there, which Numba takes as "saved by another".
        yield
        return
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
