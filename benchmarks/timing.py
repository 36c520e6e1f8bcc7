"""Timing: variants in turn, round after round, so that what disturbs the machine disturbs all."""

import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.variant import Variant

# Caches, branch predictors and allocators are warm after the second call; compilers after the
# check that ran before.
WARM_UP_ROUNDS = 2
# Written before every run on a GPU, so that no input waits in its L2 cache (50 MB on an H100).
FLUSH_BYTES = 256 * 2**20

Report = Callable[[str], None]


def time_variants(
    variants: Sequence[Variant],
    device: torch.device,
    *,
    repeats: int,
    seconds: float,
    report: Report,
) -> dict[str, list[float]]:
    """Time every variant once a round, and begin each round with another one.

    Args:
        variants: What to time.
        device: Where they run. CUDA is timed with events, after its L2 cache was overwritten.
        repeats: Rounds, at least.
        seconds: Time spent in all rounds, at least.
        report: Takes a line of progress.

    Returns:
        The times of each variant, in milliseconds, in the order of the rounds.
    """
    time_once = _cuda_timer(device) if device.type == "cuda" else _time_on_cpu
    for _ in range(WARM_UP_ROUNDS):
        for variant in variants:
            time_once(variant)
    samples: dict[str, list[float]] = {variant.name: [] for variant in variants}
    started = time.monotonic()
    rounds = 0
    while rounds < repeats or time.monotonic() - started < seconds:
        first = rounds % len(variants)
        for variant in (*variants[first:], *variants[:first]):
            if len(samples[variant.name]) == variant.most_rounds:
                continue
            report(f"timing {variant.name}, round {rounds + 1} of at least {repeats}")
            samples[variant.name].append(time_once(variant))
        rounds += 1
    return samples


def _time_on_cpu(variant: Variant) -> float:
    if variant.prepare is not None:
        variant.prepare()
    start = time.perf_counter()
    variant.run()
    return (time.perf_counter() - start) * 1e3


def _cuda_timer(device: torch.device) -> Callable[[Variant], float]:
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def time_once(variant: Variant) -> float:
        if variant.prepare is not None:
            variant.prepare()
        flush.zero_()
        start.record()
        variant.run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return time_once


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the value below which a share of the samples lies, interpolated.

    Args:
        samples: At least one number.
        share: 0 to 1. 0.5 is the median.
    """
    return float(torch.tensor(samples, dtype=torch.float64).quantile(share))
