"""The bandwidth of this device: what a streaming copy reaches, timed beside the variants."""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from benchmarks.errors import WrongResultError
from benchmarks.variant import Variant

# A smaller copy would stay in a cache (32 MiB of L3 on the machine this was written on).
SMALLEST_BYTES = 256 * 2**20
# A larger copy is no faster, and a GPU has no room for one beside the largest tables.
LARGEST_BYTES = 4 * 2**30
PREFIX = "streaming copy"


def copy_variants(num_bytes: int, device: torch.device) -> tuple[Variant, ...]:
    """Make the copies whose fastest is the bandwidth of the run.

    On the CPU there are two: torch's copy reads every line that it is about to overwrite, libc's
    writes large blocks past the caches.

    Args:
        num_bytes: Bytes read and written together, as of the variant under test.
        device: Where to copy.
    """
    half = min(max(num_bytes, SMALLEST_BYTES), LARGEST_BYTES) // 2
    # Both are written here, so that no page is mapped while the copy is timed.
    ramp = torch.arange(2**16, device=device).to(torch.uint8)
    source = ramp.repeat(-(-half // len(ramp)))[:half]
    target = torch.empty_like(source).fill_(0)
    copies = [("torch", lambda: target.copy_(source))]
    if device.type == "cpu":
        copies.append(("memmove", _threaded_memmove(source, target)))
    return tuple(
        Variant(
            name=f"{PREFIX} ({name})",
            run=run,
            check=_check(f"{PREFIX} ({name})", run, source, target),
            checked="every byte",
            bytes=2 * half,
        )
        for name, run in copies
    )


def _threaded_memmove(source: Tensor, target: Tensor) -> Callable[[], None]:
    """Libc's memmove on as many threads as torch uses. ctypes lets go of the interpreter lock."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads)
    step = -(-len(source) // threads)
    lows = range(0, len(source), step)

    def copy_part(low: int) -> None:
        count = min(step, len(source) - low)
        ctypes.memmove(target.data_ptr() + low, source.data_ptr() + low, count)

    def copy() -> None:
        list(pool.map(copy_part, lows))

    return copy


def _check(
    name: str, run: Callable[[], object], source: Tensor, target: Tensor
) -> Callable[[], None]:
    def check() -> None:
        target.fill_(0)
        run()
        if not torch.equal(source, target):
            raise WrongResultError(f"{name} did not copy")

    return check
