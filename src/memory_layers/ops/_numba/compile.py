"""How the Numba kernels are compiled: once, kept on disk, with as many threads as torch uses."""

import hashlib
import os
import warnings
from collections.abc import Callable
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from threading import RLock
from types import ModuleType
from typing import Any

import numba
import torch
from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.errors import NumbaError

from memory_layers.common.locks import locked

# Reassociation lets a sum over a row use vector registers. NaN and infinity keep their meaning.
# Division by zero gives infinity: the check that Python makes would keep loops from being
# vectorised.
OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}

# Loops are parallel where they say so. Numba's search for other loops makes compiling slow.
_PARALLEL = {
    **dict.fromkeys(
        ("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil", "fusion"),
        False,
    ),
    "prange": True,
}

_ONE_AT_A_TIME = RLock()

# Compiles a function that kernels alone call.
helper = njit(**OPTIONS, no_cpython_wrapper=True, no_cfunc_wrapper=True)


@cache
def inner_loops() -> ModuleType:
    """Return intrinsics.py where this Numba compiles it, plain.py elsewhere.

    MEMORY_LAYERS_PLAIN_NUMBA=1 in the environment asks for plain.py.
    """
    if os.environ.get("MEMORY_LAYERS_PLAIN_NUMBA") != "1":
        try:
            intrinsics = import_module("memory_layers.ops._numba.intrinsics")
            intrinsics.compile_all()
        except (ImportError, AttributeError, TypeError, ValueError, RuntimeError, NumbaError) as e:
            reason = str(e).strip().splitlines()[0]
            warnings.warn(
                f"numba {numba.__version__} does not compile the vector code of the CPU kernels "
                f"({reason}): plain loops take its place, which are slower",
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            return intrinsics
    return import_module("memory_layers.ops._numba.plain")


class Kernel:
    """A function with a `prange` loop, which threads and forked processes may call.

    It is compiled at its first call, and the code is kept on disk. Where no folder can be written,
    each process compiles the function again. The body of the loop is best a helper: Numba compiles
    what stands in the loop itself more slowly.
    """

    def __init__(self, function: Callable) -> None:
        self._function = function
        self._loops = inner_loops().__name__.rpartition(".")[2]
        self.parallel = njit(**OPTIONS, parallel=_PARALLEL, no_cfunc_wrapper=True)(function)
        keep_on_disk(self.parallel, self._loops)

    def __call__(self, *arguments: Any) -> None:
        """Run the loop in parallel, or one after the other where the threads are another's."""
        if _owner_of_threads() != os.getpid():
            self._serial(*arguments)
        elif numba.threading_layer() == "workqueue":
            # It ends the process when a second thread comes in.
            with _ONE_AT_A_TIME:
                self.parallel(*arguments)
        else:
            self.parallel(*arguments)

    @cached_property
    def _serial(self) -> Any:
        serial = njit(**OPTIONS, no_cfunc_wrapper=True)(self._function)
        keep_on_disk(serial, f"{self._loops}-serial")
        return serial


@cache
def _owner_of_threads() -> int:
    """Return the process that first called a kernel, also in those that are forked from it.

    Threads do not come along into a forked process: kernels would wait for them, or be ended by
    OpenMP. Nor do those of torch, so that it has to do without them too.
    """
    # Starts them, after which it is known of which kind they are.
    follow_torch_threads()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
    return os.getpid()


def keep_on_disk(dispatcher: Any, loops: str) -> None:
    """Keep compiled code on disk while no source changes, apart for each kind of inner loops."""
    try:
        dispatcher._cache = _KernelCache(dispatcher.py_func, loops)  # as njit(cache=True) does
    except RuntimeError:
        # Numba found neither the package's __pycache__ nor a folder of the user's writable.
        return


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

    def __init__(self, py_func: Callable, loops: str) -> None:
        super().__init__(py_func)
        name = f"{self._impl.filename_base}-{loops}"
        stamp = (self._impl.locator.get_source_stamp(), _sources_stamp())
        self._cache_file = IndexDataCacheFile(self._cache_path, name, stamp)

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            with locked(Path(self._cache_path) / "memory_layers.lock"):
                super().save_overload(sig, data)
        except OSError:
            self.disable()


@cache
def _sources_stamp() -> str:
    ops = Path(__file__).parents[1]
    sources = [*ops.glob("_numba/*.py"), *ops.glob("*/cpu*.py"), *ops.glob("*/entries.py")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()
