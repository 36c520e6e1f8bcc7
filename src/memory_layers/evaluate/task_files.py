"""Task files of the harness that a user names.

Next: task_checks.py, what they may hold, and plain_values.py, what they are run in.
"""

import re
from collections.abc import Container, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_layers.common.errors import UserError
from memory_layers.common.yaml_files import read_yaml_values
from memory_layers.evaluate.plain_values import plain_values
from memory_layers.evaluate.task_checks import check, find_data, is_in, names_in, refuse_in

if TYPE_CHECKING:
    from lm_eval.tasks._index import Entry


def is_task_file(name: str) -> bool:
    """Tell whether a name is that of a task file, or of a folder, and not that of a task."""
    return name.endswith((".yaml", ".yml")) or (name != "" and Path(name).expanduser().is_dir())


def read_tasks(
    place: str, others: Container[str], *, trusted: bool = False
) -> tuple[dict[str, "Entry"], list[str]]:
    """Read a task file of the harness, or all those of a folder.

    Args:
        place: The file or folder. Data files are looked for beside their task file first.
        others: Names that the harness knows.
        trusted: Let them run code, and read what is outside of their folder.

    Returns:
        The tasks and groups by name, and the names of those that are in no group there.

    Raises:
        UserError: There is none, one is malformed, or it needs to be trusted.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        root, files = path, sorted({*path.rglob("*.yaml"), *path.rglob("*.yml")})
    else:
        root, files = path.parent, [path]
    entries: dict[str, Entry] = {}
    read: list[tuple[Path, dict[str, Any]]] = []
    for file in files:
        values = _trusted(file) if trusted else _values(file, root, ())
        kind = "group" if "group" in values else "task"
        if kind not in values and file != path:
            # What others include.
            continue
        name = values.get(kind)
        if not isinstance(name, str) or not name:
            raise UserError(
                f"{file}: must hold `task:` or `group:` with a name, got {name!r}. hint: see the "
                "new task guide of lm-evaluation-harness"
            )
        if name in entries:
            raise UserError(f"{file}: {name!r} is named in another file too. hint: rename it")
        find_data(values, file.parent)
        read.append((file, values))
        entries[name] = _entry(name, kind, values)
    if not entries:
        raise UserError(f"{place}: there is no task file, expected .yaml with `task:`")

    def is_other(name: str, inside: frozenset[str] = frozenset()) -> bool:
        if name not in entries:
            return name in others
        if name in inside:
            raise UserError(f"{place}: group {name!r} is in itself. hint: take it out")
        return any(is_other(one, inside | {name}) for one in names_in(entries[name].cfg or {}))

    for name in entries:
        is_other(name)
    for file, values in () if trusted else read:
        check(values, file, root, is_other)
    inner = {name for entry in entries.values() for name in names_in(entry.cfg or {})}
    return entries, [name for name in entries if name not in inner]


@contextmanager
def task_files(
    tasks: Sequence[str], index: "dict[str, Entry]", *, trusted: bool = False
) -> Generator[list[str]]:
    """Let the harness know the tasks of files inside a `with` block.

    Args:
        tasks: Names of tasks, and files and folders as read_tasks takes them.
        index: What the harness knows.
        trusted: As for read_tasks.

    Yields:
        Names of tasks alone.

    Raises:
        UserError: As read_tasks, or a task of a file cannot be run.
    """
    from jinja2 import TemplateError

    before, names, files = dict(index), [], []
    for name in tasks:
        if name in index or not is_task_file(name):
            names.append(name)
            continue
        entries, tops = read_tasks(name, index, trusted=trusted)
        if taken := sorted(entries.keys() & index.keys()):
            raise UserError(f"{name}: {taken[0]!r} is a task already. hint: rename yours")
        index.update(entries)
        names += tops
        files.append(name)
    try:
        with plain_values() if files and not trusted else nullcontext():
            yield names
    except UserError:
        raise
    except (
        ArithmeticError, AttributeError, LookupError, NotImplementedError, RecursionError,
        SyntaxError, TemplateError, TypeError, ValueError, re.error,
    ) as error:  # fmt: skip
        if not files:
            raise
        raise UserError(
            f"{', '.join(files)}: the harness cannot run it: {type(error).__name__}: {error}. "
            "hint: see the new task guide of lm-evaluation-harness"
        ) from error
    finally:
        index.clear()
        index.update(before)


def _entry(name: str, kind: str, values: dict[str, Any]) -> "Entry":
    from lm_eval.tasks._index import Entry, Kind

    kinds = {"group": Kind.GROUP, "task": Kind.PY_TASK if "class" in values else Kind.TASK}
    return Entry(name=name, kind=kinds[kind], yaml_path=None, cfg=values)


def _trusted(file: Path) -> dict[str, Any]:
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        return load_yaml(file)
    except (AttributeError, ImportError, OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file}: cannot be read: {' '.join(str(error).split())}") from error


def _values(file: Path, root: Path, including: Sequence[Path]) -> dict[str, Any]:
    """Return the values of a file and of those that it includes, none of them code."""
    refuse = refuse_in(file)
    if not is_in(file, root):
        refuse(f"lies outside of {root}")
    if file.exists() and not file.is_file():
        raise UserError(f"{file} is no file. hint: remove it")
    if file.resolve() in including:
        raise UserError(f"{file}: includes itself. hint: take the include out")
    for tag in _tags(file):
        refuse(f"runs code: `{tag}`")
    own = read_yaml_values(file)
    if not isinstance(own, dict):
        raise UserError(f"{file}: must hold `task:` or `group:`, and what these are")
    merged: dict[str, Any] = {}
    included = own.pop("include", [])
    for name in included if isinstance(included, list) else [included]:
        if not isinstance(name, str):
            raise UserError(f"{file}: `include:` must name a file, got {name!r}")
        merged |= _values(file.parent / name, root, (*including, file.resolve()))
    return merged | own


def _tags(file: Path) -> Iterator[str]:
    """Yield the tags of a YAML file that stand for more than plain values, before it is built."""
    import yaml

    try:
        text = file.read_text("utf-8")
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            tag = getattr(event, "tag", None)
            if isinstance(tag, str) and (tag.startswith("!") or "python" in tag):
                yield f"{tag} {getattr(event, 'value', '')}".strip()
    except (OSError, ValueError, yaml.YAMLError):
        # read_yaml_values says what is wrong.
        return
