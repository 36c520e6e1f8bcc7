"""YAML as plain values, strictly: what can be read in two ways is refused with its line.

Next: reader.py, which makes dataclasses of the values.
"""

import math
import re
from pathlib import Path
from typing import Any

import yaml
from yaml import MappingNode, MarkedYAMLError, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from memory_layers.common.errors import UserError
from memory_layers.common.text_files import LONGEST_NUMBER, long_number, read_text, twice

# Of lists and mappings in one another.
_DEEPEST = 50
# Values that aliases may repeat. A few lines of them can stand for billions.
_MOST_REPEATED = 10_000
_TAG = "tag:yaml.org,2002:"
# A part of YAML 1.1: `no`, `on`, dates, 1:30 and 010 are text, as in YAML 1.2, so that none of them
# becomes another value than the one that was written.
_SCALARS = {
    _TAG + "merge": re.compile(r"<<\Z"),
    _TAG + "null": re.compile(r"(?:~|null|Null|NULL|)\Z"),
    _TAG + "bool": re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"),
    _TAG + "int": re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]*[0-9a-fA-F])\Z"),
    _TAG + "float": re.compile(
        r"(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
}


def read_yaml_values(path: Path) -> Any:  # noqa: ANN401
    """Read a YAML file as dicts, lists, text, numbers, bools and None.

    Raises:
        UserError: As read_yaml_node, or a value has a tag that is not read or a number too long.
    """
    node = read_yaml_node(path)
    return None if node is None else _value(node)


def read_yaml_node(path: Path) -> Node | None:
    """Read a YAML file as a tree whose nodes know their places. None: it is empty.

    Raises:
        UserError: The file cannot be read, is not YAML, has a name twice in a mapping, names that
            are not text, is nested too deep, or aliases that repeat too much.
    """
    text = read_text(path)
    try:
        loader = _Loader(text)
        loader.name = str(path)
        return _composed(loader)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, problem = mark.line + 1 if mark else 1, error.problem or str(error)
    except ReaderError as error:
        # It has no mark, only the offset of a character that YAML does not allow.
        line = text.count("\n", 0, error.position) + 1
        problem = f"character U+{ord(text[error.position]):04X} is not allowed"
    raise UserError(
        f"{path}:{line}: the file is not valid YAML ({problem}), expected YAML, got text that "
        "cannot be parsed. hint: check the indentation, and put text with special characters in "
        "quotes"
    )


def _composed(loader: "_Loader") -> Node | None:
    try:
        return loader.get_single_node()
    except UserError:
        raise
    except (ValueError, OverflowError) as error:
        # An escape that is no character, or a directive whose number is too long.
        raise MarkedYAMLError(problem=str(error), problem_mark=loader.get_mark()) from error


class _Loader(yaml.SafeLoader):
    """Composes nodes, and refuses those whose value would not be clear or would be endless."""

    yaml_implicit_resolvers = {None: list(_SCALARS.items())}  # noqa: RUF012

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._repeats = 0
        # Of the nodes that are complete, values in each, those of aliases included.
        self._sizes: dict[Node, int] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node:  # noqa: ANN401
        event = self.peek_event()
        if self._depth == _DEEPEST:
            raise _fault(event, f"it is nested deeper than {_DEEPEST} levels")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        assert node is not None
        if isinstance(event, yaml.AliasEvent):
            if node not in self._sizes:
                raise _fault(event, f"alias *{event.anchor} stands inside of what it names")
            self._repeats += self._sizes[node]
            if self._repeats > _MOST_REPEATED:
                raise _fault(event, f"aliases repeat more than {_MOST_REPEATED:,} values")
            return node
        parts: list[Node] = []
        if isinstance(node, ScalarNode):
            _check_letters(node)
        else:
            parts = node.value
        if isinstance(node, MappingNode):
            _check_names(node)
            parts = [value for _, value in node.value]
        self._sizes[node] = 1 + sum(self._sizes[part] for part in parts)
        return node


def _check_names(node: MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if key.tag not in (_TAG + "str", _TAG + "merge"):
            got = f"({key.value})" if isinstance(key, ScalarNode) else ""
            raise UserError(
                f"{_place(key)}: a name is not a string, expected a string, got "
                f"{key.tag.replace(_TAG, '')} {got}. hint: put it in quotes"
            )
        if key.value in lines:
            raise UserError(twice(_place(key), key.value, lines[key.value]))
        lines[key.value] = key.start_mark.line + 1


def _check_letters(node: ScalarNode) -> None:
    found = re.search("[\\0\ud800-\udfff]", node.value)
    if found:
        raise UserError(
            f"{_place(node)}: a text has U+{ord(found[0]):04X}, expected letters, got an escape "
            "for none. hint: remove it"
        )


def _place(node: Node) -> str:
    return f"{node.start_mark.name}:{node.start_mark.line + 1}"


def _fault(event: yaml.Event, problem: str) -> MarkedYAMLError:
    return MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def _value(node: Node) -> Any:  # noqa: ANN401
    if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
        return [_value(part) for part in node.value]
    if isinstance(node, MappingNode) and node.tag == _TAG + "map":
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == _TAG + "merge":
                merged = _merged(value)
            else:
                own[key.value] = _value(value)
        return {**merged, **own}
    if isinstance(node, ScalarNode):
        if node.tag == _TAG + "str":
            return node.value
        if node.tag in _SCALARS and _SCALARS[node.tag].match(node.value):
            return _plain(node)
    raise UserError(
        f"{_place(node)}: a value has the tag {node.tag.replace(_TAG, '!!')}, expected a plain "
        "value, got a tag that is not read here. hint: leave it out"
    )


def _merged(node: Node) -> dict[str, Any]:
    """Return the fields of `<<: *alias` or `<<: [*first, *second]`, of which the first goes."""
    merged: dict[str, Any] = {}
    for part in node.value if isinstance(node, SequenceNode) else [node]:
        if not isinstance(part, MappingNode):
            raise UserError(
                f"{_place(part)}: `<<` does not name a mapping, expected an alias of one, got "
                "something else. hint: `<<: *alias`"
            )
        merged = {**_value(part), **merged}
    return merged


def _plain(node: ScalarNode) -> Any:  # noqa: ANN401
    """Return the value of a scalar that is no text and matches the pattern of its tag."""
    kind, text = node.tag.removeprefix(_TAG), node.value.replace("_", "")
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "merge":
        return text
    if len(text) > LONGEST_NUMBER:
        raise UserError(f"{_place(node)}: {long_number(text)}")
    if kind == "int":
        return int(text, 0)
    text = text.lower().replace(".inf", "inf").replace(".nan", "nan")
    number = float(text)
    if math.isinf(number) and "inf" not in text:
        raise UserError(f"{_place(node)}: {long_number(text)}")
    return number
