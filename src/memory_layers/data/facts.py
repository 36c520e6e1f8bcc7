"""Facts (relation, subject, answer): read from a folder, turned into text and questions.

A folder of facts holds `facts.jsonl`, one `{"relation", "subject", "answer"}` a line, and
`templates.yaml`, which says for each relation how a fact is stated and how it is asked:

    capital:
      statements:
        - "The capital of {subject} is {answer}."
      question: "Q: What is the capital of {subject}? A: {answer}"

`build_corpus` states every fact in every wording, but shows the question form for a part of the
subjects only. Recall on the questions of the other subjects then measures whether a fact that was
only ever read as a statement can be retrieved by a question.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

if TYPE_CHECKING:
    from yaml import Node

FACTS_FILE = "facts.jsonl"
TEMPLATES_FILE = "templates.yaml"

ProbeKind = Literal["statement", "question_shown", "question_heldout"]


class DataError(ValueError):
    """A data file is wrong. The message names the file, the line and what to do about it."""

    @classmethod
    def at(
        cls, path: Path, line: int, problem: str, *, expected: str, got: str, hint: str
    ) -> DataError:
        """Builds the error in the one form that all data files use."""
        message = f"{path}:{line}: {problem}, expected {expected}, got {got}. hint: {hint}"
        return cls(message)


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact: the `relation` of `subject` is `answer`."""

    relation: str
    subject: str
    answer: str


@dataclass(frozen=True, slots=True)
class RelationTemplates:
    """The wordings of one relation, with the placeholders `{subject}` and `{answer}`.

    Attributes:
        statements: sentences that state the fact.
        question: question and answer in one text, the answer last.
    """

    statements: tuple[str, ...]
    question: str

    def __post_init__(self) -> None:
        if not self.statements:
            raise ValueError("a relation needs at least one statement template, got none")
        for template in self.statements:
            _raise_if_faulty(template, answer_last=False)
        _raise_if_faulty(self.question, answer_last=True)


@dataclass(frozen=True)
class FactSet:
    """Facts and the wordings of their relations. A subject has one answer within a relation."""

    facts: tuple[Fact, ...]
    templates: dict[str, RelationTemplates]

    def __post_init__(self) -> None:
        unknown = {fact.relation for fact in self.facts} - self.templates.keys()
        if unknown:
            raise ValueError(
                f"no templates for the relations {sorted(unknown)}, known: {sorted(self.templates)}"
            )
        seen: set[tuple[str, str]] = set()
        for fact in self.facts:
            key = (fact.relation, fact.subject)
            if key in seen:
                raise ValueError(f"two facts for subject {fact.subject!r} of {fact.relation!r}")
            seen.add(key)


@dataclass(frozen=True, slots=True)
class Probe:
    """One item of a recall test: `text[answer_start:answer_end]` is the answer to be produced.

    Attributes:
        kind: `statement`, a sentence that is in the documents. `question_shown`, a question that
            is in the documents. `question_heldout`, a question that is in no document.
    """

    kind: ProbeKind
    relation: str
    subject: str
    text: str
    answer_start: int
    answer_end: int


@dataclass(frozen=True)
class FactCorpus:
    """Training documents, and the probes that test what was learned from them."""

    documents: tuple[str, ...]
    probes: tuple[Probe, ...]


@contextmanager
def collection_paused() -> Generator[None]:
    """Switches the garbage collector off while many objects without cycles are made.

    Looking through a million facts again and again takes longer than making them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@collection_paused()
def load_facts(folder: Path) -> FactSet:
    """Reads `facts.jsonl` and `templates.yaml` of a folder.

    White space around relation, subject and answer is removed.

    Args:
        folder: the folder with the two files.

    Returns:
        The facts in the order of the file, with the templates of all relations.

    Raises:
        DataError: if anything in the files is wrong. It names the file and the line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError.at(
            folder,
            1,
            "there is no such folder",
            expected=f"a folder with {FACTS_FILE} and {TEMPLATES_FILE}",
            got="a file" if folder.exists() else "nothing",
            hint="check the path",
        )
    templates = _load_templates(folder / TEMPLATES_FILE)
    path = folder / FACTS_FILE
    facts: list[Fact] = []
    first: dict[tuple[str, str], tuple[int, str]] = {}
    for number, line in read_lines(path):
        fact = _parse_fact(path, number, line, templates)
        key = (fact.relation, fact.subject)
        if key in first:
            earlier, answer = first[key]
            raise DataError.at(
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


@collection_paused()
def build_corpus(facts: FactSet, *, shown_fraction: float = 0.5, seed: int = 0) -> FactCorpus:
    """Turns facts into training documents and recall probes.

    Every fact is stated in every statement template. The subjects are split by a stable hash, the
    same way in all relations: the question form is a document for the shown subjects only.

    Args:
        facts: the facts to state.
        shown_fraction: the part of the distinct subjects whose questions are documents, exact up
            to rounding.
        seed: changes the split and the choice of the statement that is probed.

    Returns:
        Documents and probes in the order of the facts. Each fact has one question probe, and one
        statement probe if a statement template of its relation has the answer after the subject.

    Raises:
        ValueError: if `shown_fraction` is not between 0 and 1, or leaves one side of the split
            without a subject.
    """
    if not 0 < shown_fraction < 1:
        raise ValueError(f"shown_fraction must be between 0 and 1, got {shown_fraction}")
    shown = _shown_subjects(facts, shown_fraction, seed)
    wordings = {name: _Wording.of(templates) for name, templates in facts.templates.items()}
    documents: list[str] = []
    probes: list[Probe] = []
    for fact in facts.facts:
        wording = wordings[fact.relation]
        documents.extend([_fill(halves, fact)[0] for halves in wording.statements])
        if choices := wording.probed:
            index = int.from_bytes(
                stable_hash(seed, "statement", fact.relation, fact.subject, fact.answer)
            )
            probes.append(_probe("statement", choices[index % len(choices)], fact))
        is_shown = fact.subject in shown
        kind: ProbeKind = "question_shown" if is_shown else "question_heldout"
        question = _probe(kind, wording.question, fact)
        probes.append(question)
        if is_shown:
            documents.append(question.text)
    return FactCorpus(tuple(documents), tuple(probes))


def stable_hash(seed: int, *parts: str) -> bytes:
    """Eight bytes that depend on the arguments only, not on the process or the platform."""
    # The lengths keep ("a", "bc") and ("ab", "c") apart.
    text = "".join(f"{len(part)}:{part}" for part in (str(seed), *parts))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields number and text of the lines of a UTF-8 file that are not blank.

    Raises:
        DataError: if the file does not exist or is not UTF-8.
    """
    if not path.is_file():
        raise DataError.at(
            path,
            1,
            "there is no such file",
            expected="a file",
            got="a folder" if path.exists() else "nothing",
            hint="check the path",
        )
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                # Editors on Windows put a byte order mark before the first line.
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError.at(
                    path,
                    number,
                    f"the text is not valid UTF-8 ({error.reason} at byte {error.start + 1})",
                    expected="UTF-8",
                    got=repr(raw[error.start : error.end]),
                    hint="save the file as UTF-8",
                ) from error
            if line := line.strip():
                yield number, line


def parse_object(path: Path, number: int, line: str) -> dict[str, object]:
    """Parses one line of JSON that must be an object without repeated fields."""

    def no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
        parsed = dict(pairs)
        if len(parsed) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError.at(
                path,
                number,
                f"field {twice!r} stands more than once in an object",
                expected="each field once",
                got=shorten(line),
                hint="remove one of them",
            )
        return parsed

    try:
        parsed = json.loads(line, object_pairs_hook=no_repeats)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        # Numbers of thousands of digits and very deep nesting raise other errors than bad syntax.
        is_syntax = isinstance(error, json.JSONDecodeError)
        detail = f"{error.msg} at column {error.colno}" if is_syntax else str(error)
        raise DataError.at(
            path,
            number,
            f"the line is not valid JSON ({detail})",
            expected="one JSON object on one line",
            got=shorten(line),
            hint="check quotes, commas and braces, and put each object on a line of its own",
        ) from error
    if not isinstance(parsed, dict):
        raise DataError.at(
            path,
            number,
            "the line is not an object",
            expected="one JSON object a line",
            got=f"{_json_type(parsed)} {shorten(line)}",
            hint='write the line as {"field": "value", ...}',
        )
    return parsed


def text_field(path: Path, number: int, row: dict[str, object], name: str) -> str:
    """The field of a parsed line, which must be a string that is not blank."""
    if name not in row:
        got = f"the fields {', '.join(map(repr, row))}" if row else "an empty object"
        problem, hint = f"field {name!r} is missing", f"add {name!r} to the line"
        raise DataError.at(path, number, problem, expected=f"{name!r}", got=got, hint=hint)
    value = row[name]
    if not isinstance(value, str):
        raise DataError.at(
            path,
            number,
            f"field {name!r} is not a string",
            expected="a string",
            got=f"{_json_type(value)} {shorten(str(value))}",
            hint=f'put the value of {name!r} in quotes, such as "..."',
        )
    if not value.strip():
        raise DataError.at(
            path,
            number,
            f"field {name!r} is empty",
            expected="text",
            got=shorten(value),
            hint="fill it in, or remove the line",
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError.at(
            path,
            number,
            f"field {name!r} has half of a surrogate pair",
            expected="complete characters",
            got=ascii(value[error.start]),
            hint="write the character itself, or both halves of its \\u escape",
        ) from error
    return value


def empty_file(path: Path, expected: str) -> DataError:
    """The error for a file without content."""
    hint = "add some, or leave the file out"
    return DataError.at(path, 1, "the file is empty", expected=expected, got="nothing", hint=hint)


def shorten(text: str, width: int = 60) -> str:
    """The text in quotes, cut to a width that fits an error message."""
    return repr(text if len(text) <= width else text[: width - 3] + "...")


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", str: "a string"}
    return "null" if value is None else names.get(type(value), "a number")


def _parse_fact(
    path: Path, number: int, line: str, templates: dict[str, RelationTemplates]
) -> Fact:
    row = parse_object(path, number, line)
    known = [field.name for field in fields(Fact)]
    relation, subject, answer = (text_field(path, number, row, name).strip() for name in known)
    if unknown := [name for name in row if name not in known]:
        raise DataError.at(
            path,
            number,
            f"unknown field {unknown[0]!r}",
            expected=", ".join(map(repr, known)),
            got=", ".join(map(repr, row)),
            hint=f"remove {unknown[0]!r} from the line",
        )
    if relation not in templates:
        raise DataError.at(
            path,
            number,
            f"relation {shorten(relation)} has no templates",
            expected=f"one of the relations of {TEMPLATES_FILE}: {', '.join(sorted(templates))}",
            got=shorten(relation),
            hint=f"correct the name, or add the relation to {TEMPLATES_FILE}",
        )
    return Fact(relation, subject, answer)


def _load_templates(path: Path) -> dict[str, RelationTemplates]:
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
            raise DataError.at(
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
            raise DataError.at(
                path,
                _line(key),
                f"relation {relation!r} has no `{name}:`",
                expected=shape,
                got=", ".join(entries) or "nothing",
                hint=f"add `{name}:` below the relation",
            )
    for name, (name_node, _) in entries.items():
        if name not in ("statements", "question"):
            raise DataError.at(
                path,
                _line(name_node),
                f"relation {relation!r} has the unknown entry {name!r}",
                expected=shape,
                got=repr(name),
                hint="correct its name, or remove it",
            )
    name_node, listed = entries["statements"]
    if not isinstance(listed, SequenceNode) or not listed.value:
        raise DataError.at(
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
    if fault := _template_fault(text, answer_last=answer_last):
        problem, expected, hint = fault
        raise DataError.at(
            path,
            line,
            f"{what} of relation {relation!r} {problem}",
            expected=expected,
            got=shorten(text, 100),
            hint=hint,
        )
    return text


def _template_fault(text: str, *, answer_last: bool) -> tuple[str, str, str] | None:
    """What is wrong with a template: problem, what is expected and what to do; None if nothing."""
    both = "{subject} at least once and {answer} once"
    pieces = re.split(r"(\{[^{}]*\})", text)
    for piece in pieces[1::2]:
        if piece not in ("{subject}", "{answer}"):
            problem = f"has the unknown placeholder {shorten(piece)}"
            return problem, "only {subject} and {answer}", "correct or remove it"
    if any("{" in piece or "}" in piece for piece in pieces[::2]):
        return "has a stray brace", "only {subject} and {answer} in braces", "remove the brace"
    for placeholder in ("{subject}", "{answer}"):
        if placeholder not in pieces:
            return f"lacks {placeholder}", both, f"put {placeholder} where it belongs"
    if pieces.count("{answer}") > 1:
        return "has {answer} more than once", both, "keep one {answer}"
    if answer_last and not text.rstrip().endswith("{answer}"):
        problem = "does not end with {answer}"
        return problem, "nothing after {answer}", "remove what stands after {answer}"
    return None


def _raise_if_faulty(template: str, *, answer_last: bool) -> None:
    if fault := _template_fault(template, answer_last=answer_last):
        raise ValueError(f"template {template!r} {fault[0]}, expected {fault[1]}")


def _entries(
    path: Path, node: Node, shape: str, *, owner: str = "", line: int = 1
) -> Iterator[tuple[str, tuple[Node, Node]]]:
    """Name, and the nodes of name and value, of the entries of a YAML mapping."""
    from yaml import MappingNode

    if not isinstance(node, MappingNode):
        raise DataError.at(
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
            raise DataError.at(
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
    raise DataError.at(
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
    raise DataError.at(
        path,
        line,
        f"the file is not valid YAML ({problem})",
        expected="YAML",
        got="text that cannot be parsed",
        hint="check the indentation, and put templates in double quotes",
    ) from None


# A template cut at {answer}. The answer is put between, not replaced in, so that braces in subjects
# mean nothing and the place of the answer is known.
_Halves = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Wording:
    """The templates of a relation, cut; `probed` have the answer after the subject."""

    statements: tuple[_Halves, ...]
    probed: tuple[_Halves, ...]
    question: _Halves

    @classmethod
    def of(cls, templates: RelationTemplates) -> _Wording:
        statements = tuple(map(_cut, templates.statements))
        probed = tuple(halves for halves in statements if "{subject}" in halves[0])
        return cls(statements, probed, _cut(templates.question))


def _cut(template: str) -> _Halves:
    before, _, after = template.partition("{answer}")
    return before, after


def _fill(halves: _Halves, fact: Fact) -> tuple[str, int]:
    """The text of a template for a fact, and where in it the answer begins."""
    before = halves[0].replace("{subject}", fact.subject)
    return before + fact.answer + halves[1].replace("{subject}", fact.subject), len(before)


def _probe(kind: ProbeKind, halves: _Halves, fact: Fact) -> Probe:
    text, start = _fill(halves, fact)
    return Probe(kind, fact.relation, fact.subject, text, start, start + len(fact.answer))


def _shown_subjects(facts: FactSet, fraction: float, seed: int) -> set[str]:
    subjects = {fact.subject for fact in facts.facts}
    # The word keeps the split independent of other choices that hash the same subject and seed.
    ordered = sorted(subjects, key=lambda subject: (stable_hash(seed, "shown", subject), subject))
    count = round(fraction * len(ordered))
    if not 0 < count < len(ordered):
        side = "no shown subject" if count == 0 else "no held-out subject"
        raise ValueError(
            f"shown_fraction={fraction} of {len(ordered)} distinct subjects leaves {side}: "
            "give more facts or another fraction"
        )
    return set(ordered[:count])
