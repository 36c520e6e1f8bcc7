"""A folder of facts: the format of users' own facts.

`facts.jsonl` holds one `{"relation", "subject", "answer"}` a line, with other right answers as
`"aliases": [...]` where there are any. More lines about a subject are more right answers: merge.py.
`templates.yaml` says for each relation how a fact is stated and how it is asked:

    capital:
      statements:
        - "The capital of {subject} is {answer}."
      question: "Q: What is the capital of {subject}? A: {answer}"

More wordings may follow as `heldout:`, a list like `statements:`. They are never trained on.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from memory_layers.common.errors import UserError
from memory_layers.common.files import replacing
from memory_layers.common.text import did_you_mean
from memory_layers.common.untrusted import check_inside
from memory_layers.data.facts import (
    Fact,
    FactSet,
    RelationTemplates,
    collection_paused,
)
from memory_layers.data.lines import (
    check_complete,
    empty_file,
    parse_object,
    read_lines,
    shorten,
    text_field,
    text_list,
)
from memory_layers.data.merge import MergedFacts, seen_alike
from memory_layers.data.templates import template_fault

if TYPE_CHECKING:
    from yaml import Node

FACTS_FILE = "facts.jsonl"
TEMPLATES_FILE = "templates.yaml"

ALIASES = "aliases"
_FIELDS = ("relation", "subject", "answer")
_REQUIRED = ("statements", "question")
_ENTRIES = (*_REQUIRED, "heldout")
_SHAPE = "`statements:` (a list of strings) and `question:` (one string)"


@collection_paused()
def load_facts(folder: Path) -> FactSet:
    """Read `facts.jsonl` and `templates.yaml` of a folder.

    White space around relation, subject and answer is removed.

    Args:
        folder: The folder with the two files.

    Returns:
        The facts in the order of the file, with the templates of all relations, and notes on rows
        that repeat others.

    Raises:
        UserError: Anything in the files is wrong. The error names the file and the line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing"
        raise UserError(
            f"{folder}:1: there is no such folder, expected a folder with {FACTS_FILE} and "
            f"{TEMPLATES_FILE}, got {got}. hint: check the path"
        )
    check_inside(folder)
    templates = load_templates(folder / TEMPLATES_FILE)
    merged = MergedFacts(str(folder / FACTS_FILE))
    for where, line in read_lines(folder / FACTS_FILE):
        merged.add(where, fact_of(where, parse_object(where, line), templates))
    if not merged.facts:
        raise empty_file(folder / FACTS_FILE, "one fact a line")
    notes = merged.notes
    if again := merged.repeated:
        notes = (merged.note("rows that stand there again, left out", again), *notes)
    return FactSet(tuple(fact for _, fact in merged.facts.values()), templates, notes)


def save_facts(facts: FactSet, folder: Path) -> None:
    """Write a fact set in the format that `load_facts` reads.

    A save that is cut off leaves no half-written file.

    Args:
        facts: What to write.
        folder: Where to. It is made, and the two files are replaced if they exist.

    Raises:
        ValueError: There are no facts, or a value is empty or has white space around it, so that
            it would not be read back as it is.
    """
    import yaml

    if not facts.facts:
        raise ValueError("cannot save an empty fact set: load_facts would refuse the file")
    lines = []
    for fact in facts.facts:
        row = {name: value for name, value in asdict(fact).items() if value != ()}
        for name in _FIELDS:
            for value in (row[name], *(fact.aliases if name == "answer" else ())):
                if not value or value != value.strip():
                    raise ValueError(f"{name} is empty or has white space around it in {fact}")
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    wordings: dict[str, dict[str, str | list[str]]] = {}
    for relation, templates in facts.templates.items():
        wordings[relation] = {
            "statements": list(templates.statements),
            "question": templates.question,
        }
        if templates.heldout:
            wordings[relation]["heldout"] = list(templates.heldout)
    text = yaml.safe_dump(wordings, allow_unicode=True, sort_keys=False, width=1000)
    folder = Path(folder)
    with replacing(folder / TEMPLATES_FILE, folder / FACTS_FILE) as (templates_part, facts_part):
        templates_part.write_bytes(text.encode("utf-8"))
        facts_part.write_bytes("".join(lines).encode("utf-8"))


def load_templates(path: Path) -> dict[str, RelationTemplates]:
    """Read the wordings of relations from a file such as `templates.yaml`.

    Raises:
        UserError: Anything in the file is wrong. The error names the file and the line.
    """
    from memory_layers.common.yaml_files import read_yaml_node

    is_blank = next(read_lines(path), None) is None
    root = None if is_blank else read_yaml_node(path)
    shape = "relation names, each with its templates"
    entries = (
        {} if root is None else _entries(root, f"{path}:1", "the file is not a mapping", shape)
    )
    if not entries:
        raise empty_file(path, "the templates of each relation")
    for relation, (where, _) in entries.items():
        if not relation or relation != relation.strip():
            raise UserError(
                f"{where}: the name of a relation is empty or has white space around it, expected "
                f"a name, got {shorten(relation)}. hint: correct the name"
            )
    return {relation: _parse_templates(relation, *entry) for relation, entry in entries.items()}


def fact_of(where: str, row: dict[str, object], templates: dict[str, RelationTemplates]) -> Fact:
    """Return the fact of a parsed line.

    Args:
        where: Place of the line, for errors.
        row: The fields.
        templates: Of all relations.

    Raises:
        UserError: A field is missing, unknown or no text, or the relation has no templates.
    """
    relation, subject, answer = (text_field(where, row, name).strip() for name in _FIELDS)
    aliases = tuple(alias.strip() for alias in text_list(where, row, ALIASES))
    if unknown := [name for name in row if name not in (*_FIELDS, ALIASES)]:
        raise UserError(
            f"{where}: unknown field {unknown[0]!r}, expected {', '.join(map(repr, _FIELDS))}, "
            f"or {ALIASES!r} for other right answers, got {', '.join(map(repr, row))}. "
            f"hint: {did_you_mean(unknown[0], (*_FIELDS, ALIASES))}, or remove it from the line"
        )
    if relation not in templates:
        # Names that look alike are one, as subjects are.
        alike = (name for name in templates if seen_alike(name) == seen_alike(relation))
        relation = next(alike, relation)
    if relation not in templates:
        name = shorten(relation)
        raise UserError(
            f"{where}: relation {name} has no templates, expected one of the relations of "
            f"{TEMPLATES_FILE}: {', '.join(sorted(templates))}, got {name}. "
            f"hint: correct the name, or add the relation to {TEMPLATES_FILE}"
        )
    return Fact(relation, subject, answer, aliases)


def _parse_templates(relation: str, where: str, node: "Node") -> RelationTemplates:
    from yaml import SequenceNode

    of = f"of relation {relation!r}"
    entries = _entries(node, where, f"relation {relation!r} has no templates", _SHAPE)
    for name, (at, _) in entries.items():
        if name not in _ENTRIES:
            raise UserError(
                f"{at}: relation {relation!r} has the unknown entry {name!r}, expected {_SHAPE}, "
                f"or `heldout:` (a list of strings), got {name!r}. "
                f"hint: {did_you_mean(name, _ENTRIES)}, or remove it"
            )
    for name in _REQUIRED:
        if name not in entries:
            raise UserError(
                f"{where}: relation {relation!r} has no `{name}:`, expected {_SHAPE}, got "
                f"{', '.join(entries) or 'nothing'}. hint: add `{name}:` below the relation"
            )
    wordings: dict[str, tuple[str, ...]] = {"heldout": ()}
    for name, what in (("statements", "a statement"), ("heldout", "a held-out wording")):
        if name not in entries:
            continue
        at, listed = entries[name]
        if not isinstance(listed, SequenceNode) or not listed.value:
            got = "an empty list" if isinstance(listed, SequenceNode) else _yaml_type(listed)
            raise UserError(
                f"{at}: `{name}:` {of} is not a list with at least one template, expected a list "
                f'of strings, got {got}. hint: write each template on a line of its own, as - "..."'
            )
        wordings[name] = tuple(
            _template(
                _place(node),
                f"{what} {of}",
                node,
                answer_last=False,
                subject_first=name == "heldout",
            )
            for node in listed.value
        )
    at, asked = entries["question"]
    question = _template(at, f"the question {of}", asked, answer_last=True)
    if trained := {question, *wordings["statements"]}.intersection(wordings["heldout"]):
        raise UserError(
            f"{entries['heldout'][0]}: a held-out wording {of} is also trained on, expected "
            f"wordings of their own below `heldout:`, got {shorten(min(trained), 100)}. "
            "hint: remove it from one of the two"
        )
    return RelationTemplates(wordings["statements"], question, wordings["heldout"])


def _template(
    where: str, what: str, node: "Node", *, answer_last: bool, subject_first: bool = False
) -> str:
    # A block of YAML ends with a line break.
    text = _string(where, what, node).rstrip()
    check_complete(f"{where}: {what}", text)
    if fault := template_fault(text, answer_last=answer_last, subject_first=subject_first):
        problem, expected, hint = fault
        raise UserError(
            f"{where}: {what} {problem}, expected {expected}, got {shorten(text, 100)}. "
            f"hint: {hint}"
        )
    return text


def _entries(node: "Node", where: str, problem: str, shape: str) -> dict[str, tuple[str, "Node"]]:
    """Return the place and the value of each entry of a mapping, by its name."""
    from yaml import MappingNode

    if not isinstance(node, MappingNode):
        raise UserError(
            f"{where}: {problem}, expected {shape}, got {_yaml_type(node)}. "
            "hint: write one `name:` a line, with its values indented below it"
        )
    entries: dict[str, tuple[str, Node]] = {}
    for key, value in node.value:
        at = _place(key)
        if key.tag == "tag:yaml.org,2002:merge":
            raise UserError(
                f"{at}: `<<` takes entries from elsewhere, expected each entry in its place, got a "
                "merge key. hint: write out what it stands for"
            )
        name = _string(at, "a name", key)
        entries[name] = at, value
    return entries


def _string(where: str, what: str, node: "Node") -> str:
    if node.tag == "tag:yaml.org,2002:str" and isinstance(node.value, str):
        return node.value
    raise UserError(
        f"{where}: {what} is not a string, expected a string, got {_yaml_type(node)}. "
        'hint: put it in quotes, such as "..."'
    )


def _yaml_type(node: "Node") -> str:
    kind = node.tag.rsplit(":", 1)[-1]
    names = {"seq": "a list", "map": "a mapping", "str": "a string", "null": "nothing"}
    value = f" ({node.value})" if isinstance(node.value, str) and node.value else ""
    return names.get(kind, kind) + value


def _place(node: "Node") -> str:
    return f"{node.start_mark.name}:{node.start_mark.line + 1}"


def _number(place: str) -> str:
    return place.rsplit(":", 1)[1]
