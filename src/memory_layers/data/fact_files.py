"""A folder of facts: the format of users' own facts.

`facts.jsonl` holds one `{"relation", "subject", "answer"}` a line, and `templates.yaml` says for
each relation how a fact is stated and how it is asked:

    capital:
      statements:
        - "The capital of {subject} is {answer}."
      question: "Q: What is the capital of {subject}? A: {answer}"
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from memory_layers.common.errors import UserError
from memory_layers.data.facts import (
    Fact,
    FactSet,
    RelationTemplates,
    collection_paused,
    template_fault,
)
from memory_layers.data.lines import empty_file, parse_object, read_lines, shorten, text_field

if TYPE_CHECKING:
    from yaml import Node

FACTS_FILE = "facts.jsonl"

TEMPLATES_FILE = "templates.yaml"


@collection_paused()
def load_facts(folder: Path) -> FactSet:
    """Reads `facts.jsonl` and `templates.yaml` of a folder.

    White space around relation, subject and answer is removed.

    Args:
        folder: the folder with the two files.

    Returns:
        The facts in the order of the file, with the templates of all relations.

    Raises:
        UserError: if anything in the files is wrong. It names the file and the line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError.at(
            folder,
            1,
            "there is no such folder",
            expected=f"a folder with {FACTS_FILE} and {TEMPLATES_FILE}",
            got="a file" if folder.exists() else "nothing",
            hint="check the path",
        )
    templates = load_templates(folder / TEMPLATES_FILE)
    path = folder / FACTS_FILE
    facts: list[Fact] = []
    first: dict[tuple[str, str], tuple[int, str]] = {}
    for number, line in read_lines(path):
        fact = _parse_fact(path, number, line, templates)
        key = (fact.relation, fact.subject)
        if key in first:
            earlier, answer = first[key]
            raise UserError.at(
                path,
                number,
                f"subject {shorten(fact.subject)} of relation {fact.relation!r} is already there, "
                f"in line {earlier} with answer {shorten(answer)}",
                expected="one answer for each subject of a relation",
                got="the same fact again" if answer == fact.answer else shorten(fact.answer),
                hint="remove one of the two lines, or make the subject more exact",
            )
        first[key] = (number, fact.answer)
        facts.append(fact)
    if not facts:
        raise empty_file(path, "one fact a line")
    return FactSet(tuple(facts), templates)


def save_facts(facts: FactSet, folder: Path) -> None:
    """Writes a fact set in the format that `load_facts` reads.

    Both files are written whole beside their final place and then renamed, so a save that is cut
    off leaves no half-written file.

    Args:
        facts: what to write.
        folder: where to. It is created if need be, and the two files are replaced if they exist.

    Raises:
        ValueError: if there are no facts, or a value is empty or has white space around it, so
            that it would not be read back as it is.
    """
    import yaml

    if not facts.facts:
        raise ValueError("cannot save an empty fact set: load_facts would refuse the file")
    lines = []
    for fact in facts.facts:
        row = {"relation": fact.relation, "subject": fact.subject, "answer": fact.answer}
        for name, value in row.items():
            if not value or value != value.strip():
                raise ValueError(f"{name} is empty or has white space around it in {fact}")
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    wordings = {
        relation: {"statements": list(templates.statements), "question": templates.question}
        for relation, templates in facts.templates.items()
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        TEMPLATES_FILE: yaml.safe_dump(wordings, allow_unicode=True, sort_keys=False, width=1000),
        FACTS_FILE: "".join(lines),
    }
    partial = {name: folder / f".{name}.{os.getpid()}.partial" for name in contents}
    try:
        for name, content in contents.items():
            with partial[name].open("wb") as file:
                file.write(content.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
        for name, temporary in partial.items():
            temporary.replace(folder / name)
    finally:
        for temporary in partial.values():
            temporary.unlink(missing_ok=True)


def _parse_fact(
    path: Path, number: int, line: str, templates: dict[str, RelationTemplates]
) -> Fact:
    row = parse_object(path, number, line)
    known = [field.name for field in fields(Fact)]
    relation, subject, answer = (text_field(path, number, row, name).strip() for name in known)
    if unknown := [name for name in row if name not in known]:
        raise UserError.at(
            path,
            number,
            f"unknown field {unknown[0]!r}",
            expected=", ".join(map(repr, known)),
            got=", ".join(map(repr, row)),
            hint=f"remove {unknown[0]!r} from the line",
        )
    if relation not in templates:
        raise UserError.at(
            path,
            number,
            f"relation {shorten(relation)} has no templates",
            expected=f"one of the relations of {TEMPLATES_FILE}: {', '.join(sorted(templates))}",
            got=shorten(relation),
            hint=f"correct the name, or add the relation to {TEMPLATES_FILE}",
        )
    return Fact(relation, subject, answer)


def load_templates(path: Path) -> dict[str, RelationTemplates]:
    """Reads the wordings of relations from a file such as `templates.yaml`.

    Raises:
        UserError: if anything in the file is wrong. It names the file and the line.
    """
    import yaml
    from yaml.reader import ReaderError

    if not list(read_lines(path)):
        raise empty_file(path, "the templates of each relation")
    text = path.read_bytes().decode("utf-8-sig")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        _refuse_yaml(path, mark.line + 1 if mark else 1, error.problem or str(error))
    except ReaderError as error:
        # It has no mark, only the offset of a character that YAML does not allow.
        line = text.count("\n", 0, error.position) + 1
        _refuse_yaml(path, line, f"character U+{ord(text[error.position]):04X} is not allowed")
    if root is None:
        raise empty_file(path, "the templates of each relation")
    templates = {}
    for relation, (key, value) in _entries(path, root, "relation names, each with its templates"):
        if not relation.strip() or relation != relation.strip():
            raise UserError.at(
                path,
                _line(key),
                "the name of a relation is empty or has white space around it",
                expected="a name",
                got=shorten(relation),
                hint="correct the name",
            )
        templates[relation] = _parse_templates(path, relation, key, value)
    if not templates:
        raise empty_file(path, "the templates of each relation")
    return templates


def _parse_templates(path: Path, relation: str, key: Node, value: Node) -> RelationTemplates:
    from yaml import SequenceNode

    shape = "`statements:` (a list of strings) and `question:` (one string)"
    entries = dict(_entries(path, value, shape, owner=relation, line=_line(key)))
    for name in ("statements", "question"):
        if name not in entries:
            raise UserError.at(
                path,
                _line(key),
                f"relation {relation!r} has no `{name}:`",
                expected=shape,
                got=", ".join(entries) or "nothing",
                hint=f"add `{name}:` below the relation",
            )
    for name, (name_node, _) in entries.items():
        if name not in ("statements", "question"):
            raise UserError.at(
                path,
                _line(name_node),
                f"relation {relation!r} has the unknown entry {name!r}",
                expected=shape,
                got=repr(name),
                hint="correct its name, or remove it",
            )
    name_node, listed = entries["statements"]
    if not isinstance(listed, SequenceNode) or not listed.value:
        raise UserError.at(
            path,
            _line(name_node),
            f"`statements:` of relation {relation!r} is not a list with at least one template",
            expected="a list of strings",
            got="an empty list" if isinstance(listed, SequenceNode) else _yaml_type(listed),
            hint='write each template on a line of its own, as - "..."',
        )
    statements = tuple(
        _template(path, relation, node, "a statement", _line(node), answer_last=False)
        for node in listed.value
    )
    name_node, asked = entries["question"]
    question = _template(path, relation, asked, "the question", _line(name_node), answer_last=True)
    return RelationTemplates(statements, question)


def _template(
    path: Path, relation: str, node: Node, what: str, line: int, *, answer_last: bool
) -> str:
    text = _string(path, node, f"{what} of relation {relation!r}", line)
    if fault := template_fault(text, answer_last=answer_last):
        problem, expected, hint = fault
        raise UserError.at(
            path,
            line,
            f"{what} of relation {relation!r} {problem}",
            expected=expected,
            got=shorten(text, 100),
            hint=hint,
        )
    return text


def _entries(
    path: Path, node: Node, shape: str, *, owner: str = "", line: int = 1
) -> Iterator[tuple[str, tuple[Node, Node]]]:
    """Name, and the nodes of name and value, of the entries of a YAML mapping."""
    from yaml import MappingNode

    if not isinstance(node, MappingNode):
        raise UserError.at(
            path,
            line,
            f"relation {owner!r} has no templates" if owner else "the file is not a mapping",
            expected=shape,
            got=_yaml_type(node),
            hint="write one `name:` a line, with its values indented below it",
        )
    first_lines: dict[str, int] = {}
    for key, value in node.value:
        name = _string(path, key, "a name", _line(key))
        if name in first_lines:
            raise UserError.at(
                path,
                _line(key),
                f"{name!r} is already there, in line {first_lines[name]}",
                expected="each name once",
                got=f"{name!r} again",
                hint="merge the two, or rename one of them",
            )
        first_lines[name] = _line(key)
        yield name, (key, value)


def _string(path: Path, node: Node, what: str, line: int) -> str:
    from yaml import ScalarNode

    if isinstance(node, ScalarNode) and node.tag == "tag:yaml.org,2002:str":
        return node.value
    raise UserError.at(
        path,
        line,
        f"{what} is not a string",
        expected="a string",
        got=_yaml_type(node),
        hint='put it in quotes, such as "..."',
    )


def _yaml_type(node: Node) -> str:
    kind = node.tag.rsplit(":", 1)[-1]
    names = {"seq": "a list", "map": "a mapping", "str": "a string", "null": "nothing"}
    value = f" ({node.value})" if isinstance(node.value, str) and node.value else ""
    return names.get(kind, kind) + value


def _line(node: Node) -> int:
    return node.start_mark.line + 1


def _refuse_yaml(path: Path, line: int, problem: str) -> NoReturn:
    raise UserError.at(
        path,
        line,
        f"the file is not valid YAML ({problem})",
        expected="YAML",
        got="text that cannot be parsed",
        hint="check the indentation, and put templates in double quotes",
    ) from None
