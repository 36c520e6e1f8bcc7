"""The one command line of the benchmarks: `python -m benchmarks ...`, from a checkout."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks import results
from benchmarks.checks import WrongResultError
from benchmarks.harness import DEFAULT_REPEATS, measure, shown
from benchmarks.inputs import model_sizes
from benchmarks.request import USED, Distribution, Request, parse_sizes
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

and:
  targets         measure every figure this project wants to reach on a CPU
  gpu             all suites on a GPU, at the sizes of the paper
  compare A B     compare two result files
  sm90            what each Triton kernel needs on an H100, compiled here
  huge-pages      reads of random rows with and without huge pages
  embedding-bag   READ of an fp32 table against torch's embedding_bag
  footprint       memory of a training step, time of the first compilation

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
# Modules with a command line of their own.
MODULES = ("gpu", "sm90", "huge-pages", "embedding-bag", "footprint")


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
        return _run(given[0], given[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except WrongResultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(what: str, flags: list[str]) -> int:
    known = (*USED, "targets", "compare", *MODULES)
    if what not in known:
        raise UserError(f"there is no benchmark {what!r}. hint: {did_you_mean(what, known)}")
    if what in MODULES:
        return import_module(f"benchmarks.{what.replace('-', '_')}").main(flags)
    if what == "compare":
        return _compare(flags)
    from memory_layers.train.allocator import keep_freed_memory

    # As training does: what is timed then asks the kernel for no pages, on either side.
    keep_freed_memory()
    command = shlex.join(["python", "-m", "benchmarks", what, *flags])
    return _targets(flags, command) if what == "targets" else _suite(what, flags, command)


def _suite(op: str, flags: list[str], command: str) -> int:
    from benchmarks.cases import SUITES

    args = _suite_parser(op).parse_args(flags)
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
        _check_recorded_sizes(args.sizes)
        request = replace(request, sizes=model_sizes(request.model, request.sizes))
    if args.out is not None:
        results.check_new(args.out)
    try:
        with shown(op) as report:
            report("making inputs")
            suite = SUITES[op](request)
            found = measure(suite, request.device, repeats=args.repeats, report=report)
    except (UserError, WrongResultError):
        raise
    except (ValueError, RuntimeError) as error:
        # Inputs that an operation does not support, or more memory than there is.
        raise UserError(f"{op} cannot run at these sizes: {error}") from error
    print(results.aligned(results.HEAD, results.suite_rows(found)))
    record = results.suite_record(request, command, found)
    return _written(record, args.out, complete=not args.sizes and args.impl == "auto")


def _targets(flags: list[str], command: str) -> int:
    from benchmarks.targets import ROWS, measure_targets, target_line

    parser = _parser(
        "targets",
        "Measure the table of targets row by row, in a few minutes on two cores.",
        "targets --rows read_fp32 read_bf16",
    )
    parser.add_argument("--rows", nargs="+", default=(), help="rows to measure. Default: all")
    _add_out(parser, "with --rows")
    args = parser.parse_args(flags)
    for row in args.rows:
        if row not in ROWS:
            raise UserError(f"--rows: there is no row {row!r}. hint: {did_you_mean(row, ROWS)}")
    if args.out is not None:
        results.check_new(args.out)
    with shown("targets") as report:
        found = measure_targets(
            args.rows or tuple(ROWS), report, lambda row: print(target_line(row), flush=True)
        )
    record = results.make_record("targets", torch.device("cpu"), command, found)
    return _written(record, args.out, complete=not args.rows)


def _written(record: dict[str, Any], out: Path | None, *, complete: bool) -> int:
    path = out or results.default_path(record, complete=complete)
    print(f"result: {results.write_result(record, path)}")
    return 0


def _compare(flags: list[str]) -> int:
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


def _check_recorded_sizes(pairs: Sequence[str]) -> None:
    for pair in pairs:
        name = pair.split("=")[0]
        if name in ("slots", "value_dim", "heads", "top_k"):
            raise UserError(
                f"size {name} has no effect with --slots recorded: it is the model's. hint: leave "
                "it out, tokens and dtype can be set"
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


if __name__ == "__main__":
    sys.exit(main())
