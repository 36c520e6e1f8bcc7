"""The one command line of the benchmarks: `python -m benchmarks ...`, from a checkout.

Needs torch, Triton and numpy alone, but for whole models: a GPU machine may have nothing else.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import torch

from benchmarks import results
from benchmarks.cases import SUITES
from benchmarks.checks import WrongResultError
from benchmarks.harness import DEFAULT_REPEATS, DEFAULT_SECONDS, measure, shown
from benchmarks.inputs import USED, Distribution, Request, Sizes, model_sizes, parse_sizes
from memory_layers.common.errors import UserError
from memory_layers.common.text import did_you_mean
from memory_layers.ops.dispatch import Impl

PROGRAM = "python -m benchmarks"
USAGE = f"""\
usage: {PROGRAM} WHAT [flags]

Each suite checks its variants against fp64, times them in turn with a streaming copy, and writes
a result file.

suites:
  find            find the best slots: product_key_topk
  read            read rows: gather_sum and gather_dot
  write           step the touched rows: MemoryAdamW
  step            read, both gradients and the step of a table
  layer           a whole memory layer in training
  train           a small language model in training
  generate        text from a model of 134m, one and 32 at a time
  huge-pages      reads of random rows with and without huge pages
  embedding-bag   READ against torch's embedding_bag at 96 sizes

and:
  targets         measure every figure this project wants to reach on a CPU
  gpu             all suites on a GPU, at the sizes of the paper
  compare A B     compare two result files
  sm90            what each Triton kernel needs on an H100, compiled here

examples:
  {PROGRAM} read --sizes tokens=512 slots=262144
  {PROGRAM} step --slots zipf --repeats 20
  {PROGRAM} write --slots recorded --model runs/tiny/model
  {PROGRAM} find --device cuda --out find.json
  {PROGRAM} targets --rows read_fp32 write
  {PROGRAM} gpu --rehearse
  {PROGRAM} compare before.json after.json
  {PROGRAM} read --help
"""
# arXiv 2412.09764's sizes of a layer.
_LAYER = Sizes(tokens=32_768, value_dim=1024, dtype="bfloat16")
# What is most wanted comes first: a run that is cut off has it.
GPU_RUNS: tuple[tuple[str, Sizes], ...] = (
    ("read", _LAYER),
    ("step", _LAYER),
    ("find", replace(_LAYER, dtype="both")),
    ("find", replace(_LAYER, dtype="both", sub_keys=8192)),
    # fp32 moments of 2**24 rows of V = 1024 would take 128 GiB.
    ("step", replace(_LAYER, slots=2**24, value_dim=128)),
    ("write", _LAYER),
    ("layer", Sizes(tokens=8192, value_dim=1024)),
    ("train", Sizes(tokens=8192)),
)
# For Triton's interpreter.
TINY = Sizes(tokens=8, slots=64, value_dim=16, heads=2, top_k=4, sub_keys=16, dtype="bfloat16")
# What only whole models need.
NOT_NEEDED = ("safetensors", "transformers")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a benchmark and return the exit code.

    Args:
        arguments: Without the program name. None: those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if given else 2
    try:
        return _run(given[0], given[1:], shlex.join(["python", "-m", "benchmarks", *given]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except WrongResultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(what: str, flags: list[str], command: str) -> int:
    known = (*SUITES, *OTHERS)
    if what not in known:
        raise UserError(f"there is no benchmark {what!r}. hint: {did_you_mean(what, known)}")
    if what in (*SUITES, "targets"):
        from memory_layers.train.allocator import keep_freed_memory

        # As training does: what is timed then asks the kernel for no pages, on either side.
        keep_freed_memory()
    return OTHERS[what](flags, command) if what in OTHERS else _suite(what, flags, command)


def _suite(op: str, flags: list[str], command: str) -> int:
    args = _parsed(_suite_parser(op), flags)
    if args.repeats < 1:
        raise UserError(f"--repeats must be >= 1, got {args.repeats}")
    request = Request(
        op=op,
        sizes=parse_sizes(op, args.sizes),
        slots=args.slots,
        model=args.model,
        device=torch.device(args.device),
        impl=args.impl,
    )
    if request.model is not None:
        sizes = model_sizes(request.model, request.sizes, given=args.sizes)
        request = replace(request, sizes=sizes)
    try:
        record = _measured(request, command, repeats=args.repeats)
    except (UserError, WrongResultError):
        raise
    except (ValueError, RuntimeError) as error:
        # Inputs that an operation does not support, or more memory than there is.
        raise UserError(f"{op} cannot run at these sizes: {error}") from error
    return _written(record, args.out, complete=not args.sizes and args.impl == "auto")


def _measured(request: Request, command: str, **times: Any) -> dict[str, Any]:  # noqa: ANN401
    """Measure a suite, print its table, and return the record of it."""
    with shown(request.op) as report:
        report("making inputs")
        suite = SUITES[request.op](request)
        found = measure(suite, request.device, report=report, **times)
    print(results.aligned(results.HEAD, results.suite_rows(found)), flush=True)
    details = {
        "sizes": request.sizes.used_by(request.op),
        "slots": request.slots,
        "impl": request.impl,
    }
    return results.make_record(request.op, request.device, command, found, **details)


def _written(record: dict[str, Any], out: Path | None, *, complete: bool) -> int:
    path = out or results.default_path(record, complete=complete)
    print(f"result: {results.write_result(record, path)}", flush=True)
    return 0


def _targets(flags: list[str], command: str) -> int:
    from benchmarks.targets import ROWS, measure_targets, target_line

    parser = _parser(
        "targets",
        "Measure the table of targets row by row, in a few minutes on two cores.",
        "targets --rows read_fp32 read_bf16",
    )
    parser.add_argument("--rows", nargs="+", default=(), help="rows to measure. Default: all")
    _add_out(parser, "with --rows")
    args = _parsed(parser, flags)
    for row in args.rows:
        if row not in ROWS:
            raise UserError(f"--rows: there is no row {row!r}. hint: {did_you_mean(row, ROWS)}")
    with shown("targets") as report:
        found = measure_targets(
            args.rows or tuple(ROWS), report, lambda row: print(target_line(row), flush=True)
        )
    record = results.make_record("targets", torch.device("cpu"), command, found)
    return _written(record, args.out, complete=not args.rows)


def _gpu(flags: list[str], command: str) -> int:
    parser = _parser("gpu", "Run all suites on a GPU, at the sizes of the paper.", "gpu --rehearse")
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
    args = parser.parse_args(flags)
    out = args.out or (Path(os.environ["OUT"]) if os.environ.get("OUT") else None)
    repeats, seconds = args.repeats, DEFAULT_SECONDS
    if args.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
        repeats, seconds = 1, 0.0
        requests = [
            Request(op=op, sizes=TINY, impl="triton" if op in ("read", "find") else "auto",
                    as_on_gpu=True)
            for op in dict(GPU_RUNS)
        ]  # fmt: skip
    else:
        cuda = torch.device("cuda")
        requests = [Request(op=op, sizes=sizes, device=cuda) for op, sizes in GPU_RUNS]
    return run_all(requests, command, out, until=args.seconds, repeats=repeats, seconds=seconds)


def run_all(
    requests: Sequence[Request],
    command: str,
    out: Path | None,
    *,
    until: float,
    repeats: int,
    seconds: float,
) -> int:
    """Run suites one after the other. One that fails is named, the others still run.

    Args:
        requests: What to run.
        command: The one that repeats it.
        out: Folder of the result files. None: that of this checkout.
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
        print(f"\n{title}", flush=True)
        if time.monotonic() - started > until:
            failures.append(f"{title}: not started, the time was up")
            continue
        try:
            record = _measured(request, command, repeats=repeats, seconds=seconds)
        except (RuntimeError, ValueError, ImportError) as error:
            # A wrong result is a RuntimeError, and so is to be out of memory.
            if isinstance(error, ModuleNotFoundError) and error.name in NOT_NEEDED:
                print(f"left out: it needs {error.name}, which is not installed")
                continue
            failures.append(f"{title}: {error}")
            print(f"failed: {error}")
            continue
        finally:
            if request.device.type == "cuda":
                torch.cuda.empty_cache()
        path = results.default_path(record, complete=not request.as_on_gpu)
        # Two runs of a suite may end in one second.
        _written(record, (out or path.parent) / f"{path.stem}_{number}.json", complete=True)
    for failure in failures:
        print(f"failed: {failure}")
    return 1 if failures else 0


def _compare(flags: list[str], _command: str) -> int:
    parser = _parser("compare", 'Compare two results: "same" inside the spread.', "compare A B")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    files = parser.parse_args(flags).files
    if len(files) != 2:
        raise UserError(
            f"compare expects two result files, got {' '.join(map(str, files)) or 'none'}. hint: "
            f"{PROGRAM} compare before.json after.json"
        )
    print(results.compare(*map(results.read_result, files)))
    return 0


def _sm90(flags: list[str], command: str) -> int:
    parser = _parser(
        "sm90",
        "Compile every Triton kernel for an H100, and fail where one spills or does not fit.",
        "sm90 --only gather --each 2",
    )
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--each", type=int, help="first and last cases of each kernel, so many")
    parser.add_argument("--spill", type=int, default=0, help="bytes that a thread may spill")
    _add_out(parser, "with --only or --each")
    args = _parsed(parser, flags)
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise UserError("TRITON_INTERPRET=1 replaces the compiler. hint: unset it")
    from benchmarks.sm90 import compile_all

    found, bad = compile_all(args.only, args.each, args.spill)
    record = results.make_record("sm90", torch.device("cpu"), command, found)
    _written(record, args.out, complete=not args.only and args.each is None)
    for what in bad:
        print(f"does not fit: {what}", file=sys.stderr)
    return 1 if bad else 0


OTHERS: Mapping[str, Callable[[list[str], str], int]] = MappingProxyType(
    {
        "targets": _targets,
        "gpu": _gpu,
        "compare": _compare,
        "sm90": _sm90,
    }
)


def _suite_parser(op: str) -> argparse.ArgumentParser:
    parser = _parser(
        op,
        "Check every variant against fp64, time all in turn, and write a result file.",
        f"{op} --sizes heads=4 top_k=16 --repeats 20",
    )
    parser.add_argument(
        "--sizes", nargs="+", default=(), metavar="NAME=VALUE", help=f"any of {', '.join(USED[op])}"
    )
    parser.add_argument(
        "--slots", choices=get_args(Distribution), default="uniform",
        help="drawn uniformly, after Zipf's law, or recorded from --model",
    )  # fmt: skip
    parser.add_argument(
        "--model", type=Path,
        help="folder of a trained model, for --slots recorded. It decides the sizes of the table",
    )  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run")
    parser.add_argument(
        "--impl", choices=get_args(Impl), default="auto", help="implementation of find and read"
    )
    parser.add_argument(
        "--repeats", type=int, default=DEFAULT_REPEATS,
        help="times each variant is timed, at least. Default: %(default)s",
    )  # fmt: skip
    _add_out(parser, "with sizes or an implementation of your own")
    return parser


def _parser(what: str, description: str, example: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"{PROGRAM} {what}",
        description=description,
        epilog=f"Example: {PROGRAM} {example}",
        allow_abbrev=False,
    )


def _add_out(parser: argparse.ArgumentParser, partial: str) -> None:
    parser.add_argument(
        "--out", type=Path,
        help="result file. Default: benchmarks/results/DEVICE/DATE_COMMIT_WHAT.json, "
        f"{partial} runs/bench/DATE_COMMIT_WHAT.json",
    )  # fmt: skip


def _parsed(parser: argparse.ArgumentParser, flags: list[str]) -> argparse.Namespace:
    """Read the flags, and refuse to replace a result before anything is measured."""
    args = parser.parse_args(flags)
    if args.out is not None:
        results.check_new(args.out)
    return args


if __name__ == "__main__":
    sys.exit(main())
