"""All suites on a GPU, at the sizes of arXiv 2412.09764: `python -m benchmarks gpu`.

Needs torch, Triton and numpy alone, so that it runs on a GPU machine with nothing else.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.cases import SUITES
from benchmarks.harness import DEFAULT_SECONDS, measure, shown
from benchmarks.request import Request, Sizes
from benchmarks.results import HEAD, aligned, default_path, suite_record, suite_rows, write_result

COMMAND = "python -m benchmarks gpu"
TOKENS = 32_768
# fp32 moments of 2**24 rows of V = 1024 would take 128 GiB.
WIDTH_OF_LARGEST = 128
# What only whole models need.
NOT_NEEDED = ("safetensors", "transformers")
_LAYER = Sizes(tokens=TOKENS, value_dim=1024, dtype="bfloat16")
# What is most wanted comes first: a run that is cut off has it.
RUNS: tuple[tuple[str, Sizes], ...] = (
    ("read", _LAYER),
    ("step", _LAYER),
    ("find", Sizes(tokens=TOKENS, value_dim=1024, dtype="both")),
    ("find", Sizes(tokens=TOKENS, value_dim=1024, sub_keys=8192, dtype="both")),
    ("step", Sizes(tokens=TOKENS, slots=2**24, value_dim=WIDTH_OF_LARGEST, dtype="bfloat16")),
    ("write", _LAYER),
    ("layer", Sizes(tokens=8192, value_dim=1024)),
    ("train", Sizes(tokens=8192)),
)
TINY = Sizes(tokens=8, slots=64, value_dim=16, heads=2, top_k=4, sub_keys=16, dtype="bfloat16")


def run_all(
    requests: Sequence[Request],
    out: Path | None,
    write: Callable[[str], None],
    *,
    until: float,
    repeats: int,
    seconds: float = DEFAULT_SECONDS,
) -> int:
    """Run suites one after the other. One that fails is named, the others still run.

    Args:
        requests: What to run.
        out: Folder of the result files. None: that of this checkout.
        write: Takes lines.
        until: No suite is started after so many seconds.
        repeats: Times each variant is timed, at least.
        seconds: Time spent on the variants of a suite, at least.

    Returns:
        The exit code: 1 when a suite failed or found no time.
    """
    started = time.monotonic()
    failures = []
    for number, request in enumerate(requests):
        sizes = ", ".join(f"{k}={v}" for k, v in request.sizes.used_by(request.op).items())
        title = f"{request.op}: {sizes}"
        write(f"\n{title}")
        if time.monotonic() - started > until:
            failures.append(f"{title}: not started, the time was up")
            continue
        try:
            with shown(request.op) as report:
                suite = SUITES[request.op](request)
                results = measure(
                    suite, request.device, repeats=repeats, seconds=seconds, report=report
                )
        except (RuntimeError, ValueError, ImportError) as error:
            # A wrong result is a RuntimeError, and so is to be out of memory.
            if isinstance(error, ModuleNotFoundError) and error.name in NOT_NEEDED:
                write(f"left out: it needs {error.name}, which is not installed")
                continue
            failures.append(f"{title}: {error}")
            write(f"failed: {error}")
            continue
        finally:
            if request.device.type == "cuda":
                torch.cuda.empty_cache()
        record = suite_record(request, COMMAND, results)
        write(aligned(HEAD, suite_rows(results)))
        path = default_path(record, complete=not request.as_on_gpu)
        # Two runs of a suite may end in one second.
        name = f"{path.stem}_{number}.json"
        path = path.with_name(name) if out is None else out / name
        write(f"result: {write_result(record, path)}")
    for failure in failures:
        write(f"failed: {failure}")
    return 1 if failures else 0


def main(arguments: Sequence[str]) -> int:
    """Read the flags and run everything.

    Args:
        arguments: What follows `python -m benchmarks gpu`.
    """
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, help="folder of the result files. Default: $OUT, else benchmarks/"
    )
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="no suite is started after this time"
    )
    parser.add_argument("--repeats", type=int, default=10, help="times each variant is timed")
    parser.add_argument(
        "--rehearse", action="store_true",
        help="run all of it at tiny sizes on a CPU, kernels under Triton's interpreter",
    )  # fmt: skip
    args = parser.parse_args(arguments)
    out = args.out or (Path(os.environ["OUT"]) if os.environ.get("OUT") else None)
    return run_all(
        rehearsal() if args.rehearse else on_gpu(),
        out,
        lambda line: print(line, flush=True),
        until=args.seconds,
        repeats=1 if args.rehearse else args.repeats,
        seconds=0.0 if args.rehearse else DEFAULT_SECONDS,
    )


def on_gpu() -> list[Request]:
    """Return what is run on a GPU.

    Raises:
        UserError: There is none.
    """
    return [Request(op=op, sizes=sizes, device=torch.device("cuda")) for op, sizes in RUNS]


def rehearsal() -> list[Request]:
    """Return the same suites at sizes for Triton's interpreter, which this switches on."""
    os.environ["TRITON_INTERPRET"] = "1"
    return [
        Request(
            op=op,
            sizes=TINY,
            impl="triton" if op in ("read", "find") else "auto",
            as_on_gpu=True,
        )
        for op in dict(RUNS)
    ]
