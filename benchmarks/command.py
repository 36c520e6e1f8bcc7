"""`memory-layers bench`: its flags, what is run, and where the result goes."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from benchmarks import tables
from benchmarks.compare import compare
from benchmarks.errors import WrongResultError
from benchmarks.measure import DEFAULT_REPEATS, measure
from benchmarks.progress import shown
from benchmarks.recorded import model_sizes
from benchmarks.request import Distribution, Request
from benchmarks.results import (
    check_new,
    default_path,
    make_record,
    read_result,
    suite_record,
    write_result,
)
from benchmarks.sizes import parse_sizes
from benchmarks.suites import SUITES
from benchmarks.targets import ROWS, measure_targets, target_line
from memory_layers.common.errors import UserError
from memory_layers.ops.impl import Impl
from memory_layers.train.allocator import keep_freed_memory

Write = Callable[[str], None]

USAGE = """\
usage: memory-layers bench WHAT [flags]

what:
  find            find the best slots: product_key_topk
  read            read rows: gather_sum and gather_dot
  write           step the touched rows: MemoryAdamW
  step            read, both gradients and the step of a table
  layer           a whole memory layer in training
  train           a small language model in training
  generate        text from a model of 134m, one and 32 at a time
  targets         measure every figure this project wants to reach on a CPU
  compare A B     compare two result files

examples:
  memory-layers bench read --sizes tokens=512 slots=262144
  memory-layers bench step --slots zipf --repeats 20
  memory-layers bench write --slots recorded --model runs/tiny/model
  memory-layers bench find --device cuda --out find.json
  memory-layers bench targets --rows read_fp32 write
  memory-layers bench compare before.json after.json
  memory-layers bench read --help
"""


@dataclass(frozen=True)
class _SuiteArgs:
    """Check every variant against fp64, time all in turn, and write a result file.

    Example: memory-layers bench step --sizes tokens=512 slots=262144 value_dim=256
    """

    sizes: tuple[str, ...] = ()
    """Pairs name=value: tokens, slots, value_dim, heads, top_k, sub_keys, dtype."""
    slots: Distribution = "uniform"
    """Which slots are read: drawn uniformly, after Zipf's law, or recorded from --model."""
    model: Path | None = None
    """Folder of a trained model, for --slots recorded. It also decides the sizes of the table."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to run."""
    impl: Impl = "auto"
    """Implementation of find and read."""
    repeats: int = DEFAULT_REPEATS
    """Times each variant is timed, at least."""
    out: Path | None = None
    """Result file. Default: benchmarks/results/DEVICE/DATE_COMMIT_WHAT.json, with sizes or an
    implementation of your own runs/bench/DATE_COMMIT_WHAT.json."""


@dataclass(frozen=True)
class _TargetArgs:
    """Measure the table of targets row by row, in a few minutes on two cores.

    Example: memory-layers bench targets --rows read_fp32 read_bf16
    """

    rows: tuple[str, ...] = ()
    """Rows to measure. Default: all."""
    out: Path | None = None
    """Result file. Default: benchmarks/results/DEVICE/DATE_COMMIT_targets.json, with --rows
    runs/bench/DATE_COMMIT_targets.json."""


def bench(arguments: list[str], write: Write) -> int:
    """Run a benchmark.

    Args:
        arguments: What follows `memory-layers bench`.
        write: Takes each line of the result.

    Returns:
        The exit code.

    Raises:
        UserError: It cannot be run as asked.
        WrongResultError: What was to be timed is wrong.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        write(USAGE.rstrip())
        return 0 if arguments else 2
    # As training does: what is timed then asks the kernel for no pages, on either side.
    keep_freed_memory()
    what, *flags = arguments
    command = shlex.join(["memory-layers", "bench", *arguments])
    if what == "compare":
        return _compare(flags, write)
    if what == "targets":
        return _targets(flags, command, write)
    if what not in SUITES:
        known = (*SUITES, "targets", "compare")
        close = get_close_matches(what, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(known)}"
        raise UserError(f"there is no benchmark {what!r}. hint: {hint}")
    return _suite(what, flags, command, write)


def _suite(op: str, flags: list[str], command: str, write: Write) -> int:
    args = _parse(op, _SuiteArgs, flags)
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
        check_new(args.out)
    try:
        with shown(op) as report:
            report("making inputs")
            suite = SUITES[op](request)
            results = measure(suite, request.device, repeats=args.repeats, report=report)
    except (UserError, WrongResultError):
        raise
    except (ValueError, RuntimeError) as error:
        # Inputs that an operation does not support, or more memory than there is.
        raise UserError(f"{op} cannot run at these sizes: {error}") from error
    record = suite_record(request, command, results)
    write(tables.text(tables.HEAD, tables.suite_rows(results)))
    path = args.out or default_path(record, complete=not args.sizes and args.impl == "auto")
    write(f"result: {write_result(record, path)}")
    return 0


def _check_recorded_sizes(pairs: tuple[str, ...]) -> None:
    for pair in pairs:
        name = pair.split("=")[0]
        if name in ("slots", "value_dim", "heads", "top_k"):
            raise UserError(
                f"size {name} has no effect with --slots recorded: it is the model's. hint: leave "
                "it out, tokens and dtype can be set"
            )


def _targets(flags: list[str], command: str, write: Write) -> int:
    args = _parse("targets", _TargetArgs, flags)
    for row in args.rows:
        if row not in ROWS:
            close = get_close_matches(row, ROWS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(ROWS)}"
            raise UserError(f"--rows: there is no row {row!r}. hint: {hint}")
    if args.out is not None:
        check_new(args.out)
    rows = args.rows or tuple(ROWS)
    with shown("targets") as report:
        results = measure_targets(rows, report, lambda row: write(target_line(row)))
    record = make_record("targets", torch.device("cpu"), command, results)
    path = args.out or default_path(record, complete=not args.rows)
    write(f"result: {write_result(record, path)}")
    return 0


def _compare(paths: list[str], write: Write) -> int:
    if any(path in ("-h", "--help") for path in paths):
        write("usage: memory-layers bench compare A.json B.json")
        return 0
    if len(paths) != 2 or any(path.startswith("-") for path in paths):
        raise UserError(
            f"compare expects two result files, got {' '.join(paths) or 'none'}. hint: "
            "memory-layers bench compare before.json after.json"
        )
    a, b = (read_result(Path(path)) for path in paths)
    write(compare(a, b))
    return 0


def _parse(what: str, kind: Any, flags: list[str]) -> Any:  # noqa: ANN401
    return tyro.cli(
        kind,
        prog=f"memory-layers bench {what}",
        args=flags,
        config=(tyro.conf.FlagConversionOff,),
    )
