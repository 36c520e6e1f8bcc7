"""All suites on a GPU, at the sizes of arXiv 2412.09764: python -m benchmarks.gpu.

Needs no tyro, so that it runs wherever torch, Triton and rich are.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks import tables
from benchmarks.errors import WrongResultError
from benchmarks.measure import measure
from benchmarks.progress import shown
from benchmarks.request import Request
from benchmarks.results import default_path, suite_record, write_result
from benchmarks.sizes import Sizes
from benchmarks.suites import SUITES

TOKENS = 32_768
# fp32 moments of 2**24 rows of V = 1024 would take 128 GiB.
WIDTH_OF_LARGEST = 128
# What is most wanted comes first: a run that is cut off has it.
RUNS: tuple[tuple[str, Sizes], ...] = (
    ("read", Sizes(tokens=TOKENS, value_dim=1024, dtype="bfloat16")),
    ("step", Sizes(tokens=TOKENS, value_dim=1024, dtype="bfloat16")),
    ("find", Sizes(tokens=TOKENS, value_dim=1024, dtype="both")),
    ("find", Sizes(tokens=TOKENS, value_dim=1024, sub_keys=8192, dtype="both")),
    (
        "step",
        Sizes(tokens=TOKENS, slots=2**24, value_dim=WIDTH_OF_LARGEST, dtype="bfloat16"),
    ),
    ("write", Sizes(tokens=TOKENS, value_dim=1024, dtype="bfloat16")),
    ("layer", Sizes(tokens=8192, value_dim=1024)),
    ("train", Sizes(tokens=8192)),
)


def run_all(
    runs: Sequence[tuple[str, Sizes]],
    device: torch.device,
    out: Path | None,
    write: Callable[[str], None],
    *,
    seconds: float,
    repeats: int,
) -> int:
    """Run suites one after the other. One that fails is named, the others still run.

    Args:
        runs: Names and sizes.
        device: Where to run.
        out: Folder of the result files. None: that of this checkout.
        write: Takes lines.
        seconds: No suite is started after this time.
        repeats: Times each variant is timed.

    Returns:
        The exit code: 1 when a suite failed or found no time.
    """
    started = time.monotonic()
    failures = []
    for number, (op, sizes) in enumerate(runs):
        request = Request(op=op, sizes=sizes, device=device)
        title = f"{op}: {', '.join(f'{k}={v}' for k, v in sizes.used_by(op).items())}"
        write(f"\n{title}")
        if time.monotonic() - started > seconds:
            failures.append(f"{title}: not started, the time was up")
            continue
        try:
            with shown(op) as report:
                results = measure(SUITES[op](request), device, repeats=repeats, report=report)
        except (WrongResultError, RuntimeError, ValueError, ImportError) as error:
            # Out of memory is a RuntimeError.
            failures.append(f"{title}: {error}")
            write(f"failed: {error}")
            continue
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()
        record = suite_record(request, "python -m benchmarks.gpu", results)
        write(tables.text(tables.HEAD, tables.suite_rows(results)))
        path = default_path(record)
        # Two runs of a suite may end in one second.
        name = f"{path.stem}_{number}.json"
        path = path.with_name(name) if out is None else out / name
        write(f"result: {write_result(record, path)}")
    for failure in failures:
        write(f"failed: {failure}")
    return 1 if failures else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the flags and run everything.

    Args:
        arguments: Without the program name. None: those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--out", type=Path, help="folder of the result files. Default: $OUT, else benchmarks/"
    )
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="no suite is started after this time"
    )
    parser.add_argument("--repeats", type=int, default=10, help="times each variant is timed")
    args = parser.parse_args(arguments)
    out = args.out or (Path(os.environ["OUT"]) if os.environ.get("OUT") else None)

    def write(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    device = torch.device("cuda")
    return run_all(RUNS, device, out, write, seconds=args.seconds, repeats=args.repeats)
