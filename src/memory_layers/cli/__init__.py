"""The command `memory-layers`: each subcommand is a class, its fields are what it takes.

Next: runs.py and folders.py, the subcommands. `--help` loads neither torch nor transformers.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Union

import tyro

from memory_layers.cli.folders import Bench, Export, Fetch, Generate, Init, Report
from memory_layers.cli.parse import parse, parse_with_config
from memory_layers.cli.patches import PatchCommand
from memory_layers.cli.runs import Compare, OfConfig, Plan, Scale, Show, Train
from memory_layers.cli.streams import BROKEN_PIPE, NobodyReads, standard_streams
from memory_layers.common.errors import LostRankError, UserError, in_words, is_out_of_memory
from memory_layers.common.text import did_you_mean, printable, show
from memory_layers.common.version import __version__
from memory_layers.evaluate.command import Eval
from memory_layers.integrations.serve import Serve
from memory_layers.learn.command import Learn

# A command takes the fields of its class. Called, it returns its exit code or what is to be shown.
COMMANDS: Mapping[str, type[Any]] = MappingProxyType(
    {
        "learn": Learn,
        "train": Train,
        "compare": Compare,
        "scale": Scale,
        "plan": Plan,
        "report": Report,
        "export": Export,
        "eval": Eval,
        "generate": Generate,
        "serve": Serve,
        "patch": PatchCommand,
        "fetch": Fetch,
        "show": Show,
        "init": Init,
        "bench": Bench,
    }
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: Arguments without the program name. None: those of the process.
    """
    try:
        with standard_streams():
            return _run(list(sys.argv[1:] if argv is None else argv))
    except NobodyReads:
        return BROKEN_PIPE
    except KeyboardInterrupt as stopped:
        _tell(f"{str(stopped) or 'interrupted'}\nto go on, run the same command again")
        return 130
    except LostRankError as error:
        _fail(str(error), own=True)
        # Threads that wait for the lost rank would hold this process.
        os._exit(2)
    except (OSError, MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            reason = str(error).strip().splitlines()[:1] or ["no more was said"]
            hint = (
                "hint: a smaller model, batch or memory. memory-layers plan says what a run needs"
            )
            return _fail(f"memory ran out: {reason[0]}. {hint}", own=True)
        if not isinstance(error, OSError):
            raise
        return _fail(in_words(error), own=True)
    except (UserError, FloatingPointError, ImportError) as error:
        return _fail(str(error))


def _run(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        print(__version__)
        return 0
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _print_help()
        return 0 if arguments else 2
    name, *rest = arguments
    if "\0" in "".join(arguments):
        raise UserError("an argument has U+0000, expected text, got no character. hint: remove it")
    if name not in COMMANDS:
        raise UserError(f"unknown command `{name}`. hint: {did_you_mean(name, COMMANDS)}")
    try:
        Path.cwd()
    except FileNotFoundError as error:
        # Also what ends inside of libraries if it goes on.
        raise UserError(
            "the folder that this was called in is not there any more. hint: cd into another one"
        ) from error
    kind = COMMANDS[name]
    if kind is Bench:
        command = Bench(tuple(rest))
    elif issubclass(kind, OfConfig):
        command = parse_with_config(name, kind, rest)
    else:
        command = parse(name, kind, rest)
    result = command()
    if isinstance(result, int):
        return result
    show(str(result))
    return 0


def _print_help() -> None:
    """Print all commands, each with the first line of its help and its first example."""
    kinds: Any = ()
    for name, kind in COMMANDS.items():
        lines = (kind.__doc__ or "").splitlines()
        example = next(line.strip() for line in lines if "Example: " in line)
        shown = tyro.conf.subcommand(name, description=f"{lines[0]}\n\n{example}")
        kinds += (Annotated[kind, shown],)  # ty: ignore[invalid-type-form]
    with suppress(SystemExit):
        tyro.cli(
            Union[kinds],  # noqa: UP007
            prog="memory-layers",
            description="Trainable key-value memory for language models. Begin with: "
            "memory-layers init my_run, then memory-layers train my_run.yaml",
            args=["--help"],
        )


def _fail(message: str, *, own: bool = False) -> int:
    _tell(f"error: {message}", own=own)
    return 2


def _tell(message: str, *, own: bool = False) -> None:
    """Print to stderr. Of many ranks, the first speaks for all but for what is a rank's own."""
    rank, size = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE"))
    if own and size > 1:
        message = f"rank {rank}: {message}"
    if own or rank == 0:
        # What was typed may be a file's content by mistake.
        shown = re.sub(r"\S{500,}", lambda word: f"{word[0][:200]}...", message)
        print(printable(shown), file=sys.stderr, flush=True)
