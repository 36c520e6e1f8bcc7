"""From the words of a command to its arguments, those of a configuration file included."""

import shlex
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args, get_type_hints

import tyro

from memory_layers.cli.runs import Compare, Scale, Show
from memory_layers.common.errors import UserError
from memory_layers.common.paths import IS_PATH, expand
from memory_layers.common.reader import read_yaml
from memory_layers.config import MemoryConfig, MoeConfig
from memory_layers.configs import find_config
from memory_layers.data.config import BUILTIN
from memory_layers.train.config import RunConfig, load_run


def parse(name: str, kind: Any, arguments: Sequence[str], default: Any = None) -> Any:  # noqa: ANN401
    """Parse the arguments of a command.

    Args:
        name: The command.
        kind: What it takes.
        arguments: What follows the command.
        default: What it takes if no flag is given. None: the defaults of `kind`.

    Raises:
        UserError: Values do not fit together.
        SystemExit: A flag is unknown or a value of the wrong type, or help was asked for.
    """
    _check_flags(arguments)
    extra = {} if default is None else {"default": default}
    try:
        return _expanded(tyro.cli(kind, prog=f"memory-layers {name}", args=arguments, **extra))
    except ValueError as error:
        # tyro prints what is wrong with one part of a run, not with how its parts fit together.
        raise UserError(str(error)) from error


def _check_flags(arguments: Sequence[str]) -> None:
    """Refuse a flag that stands twice, of which the last alone would count, or has no value.

    An empty path would be the folder that the command is called in.
    """
    before, seen = "", set()
    for word in takewhile(lambda word: word != "--", arguments):
        flag, equals, value = word.partition("=")
        if not value and (equals or not word) and (flag or before).startswith("--"):
            raise UserError(
                f"{flag or before} is empty, expected a value. hint: leave it out, or look at the "
                "variable that it comes from"
            )
        before = word
        if not word.startswith("--"):
            continue
        flag = flag.replace("_", "-")
        if flag in seen:
            raise UserError(
                f"{flag} is there more than once, expected each flag once. hint: leave one out, "
                "or put all values behind one"
            )
        seen.add(flag)


def _expanded(command: Any) -> Any:  # noqa: ANN401
    """Return a command whose paths say in full what `~` and `$HOME` in them stand for."""
    marks = get_type_hints(type(command), include_extras=True)
    changes: dict[str, Any] = {}
    for field in fields(command):
        value = getattr(command, field.name)
        is_text = IS_PATH in _marks(marks[field.name])
        if is_dataclass(value):
            found: Any = _expanded(value)
        elif isinstance(value, tuple):
            found = tuple(_expanded_path(part, is_text=is_text) for part in value)
        else:
            found = _expanded_path(value, is_text=is_text)
        if found != value:
            changes[field.name] = found
    return replace(command, **changes) if changes else command


def _expanded_path(value: Any, *, is_text: bool) -> Any:  # noqa: ANN401
    if isinstance(value, Path):
        return Path(expand(str(value)))
    return expand(value) if is_text and isinstance(value, str) else value


def _marks(hint: Any) -> list[Any]:  # noqa: ANN401
    """Return what marks a type, or one of its alternatives."""
    return [mark for part in (hint, *get_args(hint)) for mark in getattr(part, "__metadata__", ())]


def parse_with_config(name: str, kind: Any, arguments: Sequence[str]) -> Any:  # noqa: ANN401
    """Parse a command whose flags are the fields of a configuration file, which is read first.

    Args:
        name: The command.
        kind: What it takes, an OfConfig.
        arguments: What follows the command, the configuration first.

    Raises:
        UserError: The file cannot be used, or values do not fit together.
        SystemExit: As `parse`.
    """
    if not arguments or arguments[0].startswith("-"):
        if {"-h", "--help"} & set(arguments):
            # The flags are the fields of any run: show them with the defaults of a plain one.
            run = RunConfig(name="NAME", memory=MemoryConfig(layers=(1,)))
            default = _filled(kind, run, {"seeds": (0,), "slots": (0, 65_536)})
            return parse(name, kind, ["--help"], default)
        example = {"compare": "demo", "scale": "scale"}.get(name, "tiny")
        raise UserError(
            f"`{name}` needs a configuration file first. hint: memory-layers {name} {example}"
        )
    run, grid = _read(name, kind, find_config(arguments[0]))
    run = _with_sections(run, arguments)
    default = replace(
        _filled(kind, run, grid), command=shlex.join(["memory-layers", name, *arguments])
    )
    args = parse(name, kind, arguments, default)
    if args.run.data.facts != BUILTIN:
        for field in ("relations", "max_subjects"):
            if getattr(args.run.data, field) != getattr(run.data, field):
                flag = f"--data.{field.replace('_', '-')}"
                raise UserError(
                    f"{flag} selects built-in facts, but data.facts is {args.run.data.facts!r}. "
                    f"hint: leave {flag} out, users' facts are used whole"
                )
    return args


def _filled(kind: Any, run: RunConfig, grid: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return what a command takes, with what of a grid it has no default for."""
    wanted = {field.name for field in fields(kind) if field.default is MISSING}
    given = {name: value for name, value in grid.items() if name in wanted}
    return kind(config=tyro.MISSING, run=run, **given)


def _read(name: str, kind: Any, path: Path) -> tuple[RunConfig, dict[str, Any]]:  # noqa: ANN401
    """Return the run, or the base of the runs, of a file, and the grid that it lists."""
    values = read_yaml(path)
    if kind is Compare or (kind is Show and "variants" in values):
        from memory_layers.study.config import load_compare

        study = load_compare(path)
        return study.base, {"seeds": study.seeds}
    if kind is Scale or (kind is Show and "bases" in values):
        from memory_layers.study.scale import load_scale

        sweep = load_scale(path)
        return sweep.base, {"seeds": sweep.seeds, "slots": sweep.slots}
    for field, command in (("variants", "compare"), ("bases", "scale")):
        if field in values:
            raise UserError(
                f"{path} lists {field}, `{name}` is for one run. hint: memory-layers {command} "
                f"{path}, or a file without `{field}:`"
            )
    return load_run(path), {}


def _with_sections(run: RunConfig, flags: Sequence[str]) -> RunConfig:
    """Return a run with a `memory` or `moe` for flags to fill, where its file has none."""
    given = {flag.split("=")[0].removeprefix("--").replace("-", "_") for flag in flags}
    # Any values: the flags must say each field that has no default.
    empty = {
        "memory": MemoryConfig(layers=(0,)),
        "moe": MoeConfig(routing="token_choice", experts=8),
    }
    for section, values in empty.items():
        is_asked = any(name.startswith(f"{section}.") for name in given)
        if not is_asked or getattr(run, section) is not None:
            continue
        for name in values.required:
            if f"{section}.{name}" not in given:
                raise UserError(
                    f"the file has no `{section}:`, so --{section}.{name} is needed too. "
                    "hint: memory-layers train --help lists what it takes"
                )
        try:
            run = replace(run, **{section: values})
        except ValueError as error:
            raise UserError(str(error)) from error
    return run
