"""`memory-layers plan`: its flags, and how its answer is printed."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from memory_layers.common.errors import UserError
from memory_layers.configs import find_config
from memory_layers.parallel.config import Layout
from memory_layers.plan.devices import DEVICES, Device, measure_cpu
from memory_layers.plan.job import Job
from memory_layers.plan.predict import predict, smallest
from memory_layers.plan.report import as_values, render
from memory_layers.train.config import RunConfig, load_run, read_yaml

Say = Callable[[str], None]

USAGE = """\
usage: memory-layers plan CONFIG.yaml [--ranks N] [--device NAME] [--json] [flags]

Whether a run fits, at which sharding, and how fast it would be, from its sizes alone: parameters,
bytes a rank, operations, communication and predicted time of a step.

flags:
  --ranks N        processes, one a device. Default: 1
  --device NAME    h100, h200, b200, a100, mi300x: the maker's data sheet.
                   cpu: this CPU, measured for a second. Default: h100
  --json           print nested values instead of tables
  --SECTION.FIELD  any field of the run, as for `memory-layers train`

examples:
  memory-layers plan 1.3b_memory_64m --ranks 8
  memory-layers plan 8b_memory_16m --ranks 64 --device h200
  memory-layers plan 8b_memory_16m --ranks 64 --parallel.tensor 8 --json
  memory-layers plan tiny --device cpu --train.batch-size 64
  memory-layers plan tiny --help
"""
CPU = "cpu"


@dataclass(frozen=True)
class _PlanArgs:
    """Fields of the run can be set as flags.

    Example: memory-layers plan 8b_memory_16m --ranks 64 --parallel.tensor 8
    """

    run: Annotated[RunConfig, tyro.conf.arg(name="")]
    ranks: int = 1
    """Processes, one a device."""
    device: str = "h100"
    """What they run on: h100, h200, b200, a100, mi300x, or cpu for this one, measured."""


def plan_command(arguments: list[str], say: Say, *, width: int | None = None) -> int:
    """Plan a run.

    Args:
        arguments: What follows `memory-layers plan`.
        say: Takes the text to print.
        width: Characters of a line of the tables. None: those of the terminal.

    Returns:
        The exit code: 0 also for a run that does not fit.

    Raises:
        UserError: It cannot be planned as asked.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        say(USAGE.rstrip())
        return 0 if arguments else 2
    if arguments[0].startswith("-"):
        raise UserError(
            f"`plan` expects a configuration file first, got {arguments[0]}. hint: memory-layers "
            "plan tiny --ranks 8"
        )
    as_json = "--json" in arguments
    path, *flags = [argument for argument in arguments if argument != "--json"]
    args = _parse(find_config(path), flags)
    if args.ranks < 1:
        raise UserError(f"--ranks must be at least 1, got {args.ranks}. hint: --ranks 8")
    device = find_device(args.device)
    try:
        layout = args.run.parallel.resolve(args.ranks)
        run = _shared(args.run, layout)
        job = Job(run, layout)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"--ranks {args.ranks}: {error}") from error
    prediction = predict(job, device)
    fewest = smallest(job, device)
    if as_json:
        say(json.dumps(as_values(prediction, fewest), indent=2))
        return 0
    text = io.StringIO()
    console = Console(file=text, width=width)
    console.print(render(prediction, fewest))
    if run is not args.run:
        console.print(
            f"Planned with train.batch_size {run.train.batch_size}, the next that "
            f"{layout.readers} ranks can share, in place of {args.run.train.batch_size}."
        )
    say(text.getvalue().rstrip())
    return 0


def find_device(name: str) -> Device:
    """Return a device by its name, this CPU measured.

    Args:
        name: As given to --device.

    Raises:
        UserError: There is no such device.
    """
    if name == CPU:
        return measure_cpu()
    if name in DEVICES:
        return DEVICES[name]
    known = (*DEVICES, CPU)
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(known)}"
    raise UserError(f"--device: there is no device {name!r}. hint: {hint}")


def _shared(run: RunConfig, layout: Layout) -> RunConfig:
    """Return a run whose batch the ranks can share: a plan asks what if, `train` would refuse."""
    rows, readers = run.train.batch_size, layout.readers
    if rows % readers == 0:
        return run
    return replace(run, train=replace(run.train, batch_size=-(-rows // readers) * readers))


def _parse(path: Path, flags: list[str]) -> _PlanArgs:
    if "variants" in read_yaml(path):
        raise UserError(
            f"{path} lists variants, a plan is for one run. hint: a file without `variants:`, as "
            "tiny"
        )
    try:
        return tyro.cli(
            _PlanArgs,
            prog=f"memory-layers plan {path}",
            args=flags,
            default=_PlanArgs(load_run(path)),
            config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
        )
    except UserError:
        raise
    except ValueError as error:
        # tyro prints what is wrong with one part of a run, not with how its parts fit together.
        raise UserError(str(error)) from error
