"""How a suite is measured: checked, timed in turn with a streaming copy, and its memory seen."""

import ctypes
import shutil
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.checks import WrongResultError

DEFAULT_REPEATS = 10
DEFAULT_SECONDS = 2.0
# Caches, branch predictors and allocators are warm after the second call; compilers after the
# check that ran before.
WARM_UP_ROUNDS = 2
# Written before every run on a GPU, so that no input waits in its L2 cache (50 MB on an H100).
FLUSH_BYTES = 256 * 2**20
COPY = "streaming copy"
# A smaller copy would stay in a cache (32 MiB of L3 on the machine this was written on).
SMALLEST_COPY = 256 * 2**20
# A larger copy is no faster, and a GPU has no room for one beside the largest tables.
LARGEST_COPY = 4 * 2**30
CLEAR_LINE = "\r\x1b[2K"

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to do the work.

    Attributes:
        name: In tables and result files.
        run: What is timed.
        check: Runs it once and raises WrongResultError unless the result is right.
        checked: What `check` compares, for the result file.
        bytes: Bytes that must move, whatever the implementation: each row that is needed once a
            read, each row that is written read and written with its state.
        prepare: Called before every run, not timed.
        against: Of ours, the baselines that its speed-up is stated over: the fastest of these.
        tokens: Tokens of a run, for tokens a second.
        most_rounds: Not timed more often: for a baseline that is slow by an order of magnitude.
    """

    name: str
    run: Callable[[], object]
    check: Callable[[], None]
    checked: str
    bytes: int
    prepare: Callable[[], object] | None = None
    against: tuple[str, ...] = ()
    tokens: int | None = None
    most_rounds: int | None = None


# Name, run and check of a variant.
Timed = tuple[str, Callable[[], object], Callable[[], None]]


def pair(ours: Timed, baseline: Timed, **shared: Any) -> list[Variant]:  # noqa: ANN401
    """Make variants of ours and of the baseline that its speed-up is stated over.

    Args:
        ours: Name, run and check.
        baseline: The same of the baseline.
        **shared: What both have in common.
    """
    (name, run, check), (against, run_baseline, check_baseline) = ours, baseline
    return [
        Variant(name=name, run=run, check=check, against=(against,), **shared),
        Variant(name=against, run=run_baseline, check=check_baseline, **shared),
    ]


@dataclass(frozen=True)
class Suite:
    """Variants timed together.

    Attributes:
        variants: At least one.
        facts: What of the inputs explains the numbers, such as the distinct rows.
    """

    variants: tuple[Variant, ...]
    facts: dict[str, object] = field(default_factory=dict)


def measure(
    suite: Suite,
    device: torch.device,
    *,
    repeats: int = DEFAULT_REPEATS,
    seconds: float = DEFAULT_SECONDS,
    report: Report,
) -> dict[str, Any]:
    """Check every variant, then time all of them and the copy in turn.

    Args:
        suite: What to measure.
        device: Where its variants run.
        repeats: Times each is timed, at least.
        seconds: Time spent on all together, at least.
        report: Takes lines of progress.

    Returns:
        What a result file holds of it: variants with their numbers and samples, bandwidth.

    Raises:
        WrongResultError: A variant is wrong. Nothing was timed.
    """
    copies = copy_variants(suite.variants[0].bytes, device)
    everything = (*suite.variants, *copies)
    for variant in everything:
        report(f"checking {variant.name}")
        variant.check()
    samples = time_variants(everything, device, repeats=repeats, seconds=seconds, report=report)
    medians = {name: percentile(times, 0.5) for name, times in samples.items()}
    bandwidth = max(copy.bytes / medians[copy.name] / 1e6 for copy in copies)
    results = []
    for variant in everything:
        extra = None
        if variant not in copies:
            report(f"memory of {variant.name}")
            if variant.prepare is not None:
                variant.prepare()
            extra = peak_extra_bytes(variant.run, device)
        results.append(_summary(variant, samples[variant.name], bandwidth, medians, extra))
    return {"bandwidth_gbs": bandwidth, "facts": suite.facts, "variants": results}


def find_variant(result: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the numbers of a variant in what `measure` returned.

    Raises:
        KeyError: There is none of this name.
    """
    return {variant["name"]: variant for variant in result["variants"]}[name]


def _summary(
    variant: Variant,
    samples: Sequence[float],
    bandwidth: float,
    medians: Mapping[str, float],
    extra: int | None,
) -> dict[str, Any]:
    median = medians[variant.name]
    rate = variant.bytes / median / 1e6
    fastest = min((medians[name] for name in variant.against), default=None)
    return {
        "name": variant.name,
        "ours": bool(variant.against),
        "against": list(variant.against),
        "speedup": None if fastest is None else fastest / median,
        "median_ms": median,
        "p20_ms": percentile(samples, 0.2),
        "p80_ms": percentile(samples, 0.8),
        "bytes": variant.bytes,
        "gbs": rate,
        "share_of_copy": rate / bandwidth,
        "tokens_per_second": variant.tokens / median * 1e3 if variant.tokens else None,
        "peak_extra_bytes": extra,
        "checked": variant.checked,
        "samples_ms": list(samples),
    }


def time_variants(
    variants: Sequence[Variant],
    device: torch.device,
    *,
    repeats: int,
    seconds: float,
    report: Report,
) -> dict[str, list[float]]:
    """Time every variant once a round, and begin each round with another one.

    What disturbs the machine then disturbs all of them.

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


def copy_variants(num_bytes: int, device: torch.device) -> tuple[Variant, ...]:
    """Make the copies whose fastest is the bandwidth of the run.

    On the CPU there are two: torch's copy reads every line that it is about to overwrite, libc's
    writes large blocks past the caches.

    Args:
        num_bytes: Bytes read and written together, as of the variant under test.
        device: Where to copy.
    """
    half = min(max(num_bytes, SMALLEST_COPY), LARGEST_COPY) // 2
    # Both are written here, so that no page is mapped while the copy is timed.
    ramp = torch.arange(2**16, device=device).to(torch.uint8)
    source = ramp.repeat(-(-half // len(ramp)))[:half]
    target = torch.empty_like(source).fill_(0)
    copies: list[tuple[str, Callable[[], object]]] = [("torch", lambda: target.copy_(source))]
    if device.type == "cpu":
        copies.append(("memmove", _threaded_memmove(source, target)))

    def check(name: str, run: Callable[[], object]) -> None:
        target.fill_(0)
        run()
        if not torch.equal(source, target):
            raise WrongResultError(f"{name} did not copy")

    return tuple(
        Variant(
            name=f"{COPY} ({name})",
            run=run,
            check=lambda name=name, run=run: check(f"{COPY} ({name})", run),
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
    high_water_mark = Path("/proc/self/clear_refs")
    if not (sys.platform == "linux" and high_water_mark.exists()):
        return None
    # Freed memory goes back to the kernel, so that taking it again is seen as growth.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        high_water_mark.write_text("5")  # resets it
    except PermissionError:
        return None
    before = _status_bytes("VmRSS")
    run()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


@contextmanager
def shown(op: str) -> Generator[Report]:
    """Show progress on stderr: one line that changes on a terminal, one line a step in a log.

    Args:
        op: Named before each line.

    Yields:
        A function that shows a line.
    """
    on_terminal = sys.stderr.isatty()
    width = shutil.get_terminal_size().columns - 1
    last = ""

    def report(line: str) -> None:
        nonlocal last
        step = line.split()[0]
        if on_terminal:
            print(f"{CLEAR_LINE}{f'{op}: {line}'[:width]}", end="", file=sys.stderr, flush=True)
        elif step != "timing" or last != "timing":
            # Of many rounds a log shows the first.
            print(f"{op}: {line.split(', round')[0]}", file=sys.stderr, flush=True)
        last = step

    try:
        yield report
    finally:
        if on_terminal:
            print(CLEAR_LINE, end="", file=sys.stderr, flush=True)
