"""Facts (relation, subject, answer), turned into text and questions.

`build_corpus` states every fact in every wording, but shows the question form for some of the
subjects only. Recall on the questions of the other subjects measures whether a fact that was only
read as a statement can be retrieved by a question. Next: templates.py, how facts are worded, and
fact_files.py and builtin.py, where they come from.
"""

import gc
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from memory_layers.common.errors import UserError
from memory_layers.common.progress import Report, counted
from memory_layers.common.seeds import stable_hash, stable_number
from memory_layers.data.templates import (
    Halves,
    cut_template,
    fill_template,
    has_subject_first,
    template_fault,
)

ProbeKind = Literal["statement", "question_shown", "question_heldout", "question", "heldout"]


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact: the `relation` of `subject` is `answer`.

    Attributes:
        relation: Name of the relation, which has templates.
        subject: What the fact is about.
        answer: What is trained on.
        aliases: Other right answers: other names for the same, or others that hold as well. They
            are not trained on, and count where the fact is asked for.
    """

    relation: str
    subject: str
    answer: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RelationTemplates:
    """The wordings of one relation, with the placeholders `{subject}` and `{answer}`.

    Braces that are text are doubled: `{{` and `}}`. White space at the end of a wording, as a block
    of YAML has it, is removed.

    Attributes:
        statements: Sentences that state the fact.
        question: Question and answer in one text, the answer last.
        heldout: More wordings, of statements or questions, that are in no document: whether a
            fact is known in them says how far it is known apart from the words it was read in.
    """

    statements: tuple[str, ...]
    question: str
    heldout: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.statements:
            raise ValueError("a relation needs at least one statement template, got none")
        for name in ("statements", "heldout"):
            stripped = tuple(template.rstrip() for template in getattr(self, name))
            object.__setattr__(self, name, stripped)
        object.__setattr__(self, "question", self.question.rstrip())
        for template in self.statements:
            _raise_if_faulty(template, answer_last=False)
        for template in self.heldout:
            _raise_if_faulty(template, answer_last=False, subject_first=True)
        _raise_if_faulty(self.question, answer_last=True)


@dataclass(frozen=True)
class FactSet:
    """Facts and the wordings of their relations. A subject has one fact within a relation.

    Attributes:
        facts: The facts.
        templates: By the name of the relation.
        notes: What was made of the rows of a file, for people: see merge.py.
    """

    facts: tuple[Fact, ...]
    templates: dict[str, RelationTemplates]
    notes: tuple[str, ...] = field(default=(), compare=False)

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
                raise ValueError(
                    f"two facts for subject {fact.subject!r} of {fact.relation!r}. hint: one fact "
                    "with aliases=(...), the other right answers"
                )
            seen.add(key)


@dataclass(frozen=True, slots=True)
class Probe:
    """One item of a recall test: `text[answer_start:answer_end]` is the answer to be produced.

    Attributes:
        kind: `statement`, a sentence that is in the documents unless `exposures` is 0.
            `question_shown`, a question that is in the documents if the fact is.
            `question_heldout`, a question that is in no document. Where there are no documents:
            `statement`, `question`, and `heldout`, a wording of `heldout:`.
        relation: Of the fact.
        subject: Of the fact.
        text: The statement or the question with its answer.
        answer_start: Where the answer begins, in characters.
        answer_end: Where it ends.
        exposures: How many documents state the fact, those that ask for it not counted.
        aliases: Other right answers, in the place of the one in the text.
    """

    kind: ProbeKind
    relation: str
    subject: str
    text: str
    answer_start: int
    answer_end: int
    exposures: int = 0
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # JSON has lists, and items are compared and hashed.
        object.__setattr__(self, "aliases", tuple(self.aliases))

    @property
    def answers(self) -> tuple[str, ...]:
        """All right answers, first the one in the text, which is the one that is trained on."""
        return (self.text[self.answer_start : self.answer_end], *self.aliases)

    def with_answer(self, answer: str) -> "Probe":
        """Return the item with another answer in its text."""
        text = self.text[: self.answer_start] + answer + self.text[self.answer_end :]
        return replace(self, text=text, answer_end=self.answer_start + len(answer))


@dataclass(frozen=True)
class FactCorpus:
    """Training documents, and the probes that test what was learned from them.

    Attributes:
        documents: The texts.
        answers: Where in each document the answer is, in characters: start and end.
        probes: The items of the recall test.
        notes: Those of the facts.
    """

    documents: tuple[str, ...]
    answers: tuple[tuple[int, int], ...]
    probes: tuple[Probe, ...]
    notes: tuple[str, ...] = ()


@contextmanager
def collection_paused() -> Generator[None]:
    """Switch the garbage collector off while many objects without cycles are made.

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
def build_corpus(
    facts: FactSet,
    *,
    shown_fraction: float = 0.5,
    exposures: Sequence[int] = (),
    seed: int = 0,
    progress: Report | None = None,
) -> FactCorpus:
    """Turn facts into training documents and recall probes.

    Every fact is stated in every statement template once, or as often as `exposures` says: in
    templates one after the other from one that a hash picks, all of them before one repeats. The
    statement that is probed is in the documents, if any is. The subjects are split by a stable
    hash, the same way in all relations: the question form is a document for the shown subjects
    only, as often as each statement template, rounded up.

    Args:
        facts: The facts to state.
        shown_fraction: The part of the distinct subjects whose questions are documents, exact up
            to rounding.
        exposures: Numbers of statements. Each subject takes one of them: they are dealt in an
            order that a hash decides, in turn among the shown and among the held-out subjects of
            the same relations, as many each. A fact with 0 is in no document: what is answered
            there is guessed.
        seed: Changes the split, the choice of templates, of the statement that is probed and of
            numbers of statements.
        progress: Called with the number of facts that are stated, and how many there are.

    Returns:
        Documents and probes in the order of the facts. Each fact has one question probe, and one
        statement probe if it is stated, or could be, in a template that has the answer after the
        subject.

    Raises:
        ValueError: `shown_fraction` is not between 0 and 1.
        UserError: It leaves one side of the split without a subject.
    """
    if not 0 < shown_fraction < 1:
        raise ValueError(f"shown_fraction must be between 0 and 1, got {shown_fraction}")
    subjects = {fact.subject for fact in facts.facts}
    shown = shown_subjects(subjects, shown_fraction, seed)
    if not 0 < len(shown) < len(subjects):
        side = "no held-out subject" if shown else "no shown subject"
        raise UserError(
            f"shown_fraction={shown_fraction} of {len(subjects)} distinct subjects leaves {side}: "
            "give more facts or another fraction"
        )
    dealt = _deal(facts.facts, shown, exposures, seed) if exposures else {}
    statements_of = {
        name: [cut_template(statement) for statement in templates.statements]
        for name, templates in facts.templates.items()
    }
    question_of = {
        name: cut_template(templates.question) for name, templates in facts.templates.items()
    }
    documents: list[str] = []
    answers: list[tuple[int, int]] = []
    probes: list[Probe] = []
    for fact in counted(facts.facts, len(facts.facts), "stating facts", progress):
        statements = stated = statements_of[fact.relation]
        number = stable_number(seed, "statement", fact.relation, fact.subject, fact.answer)
        if exposures:
            count = dealt[fact.subject]
            stated = [statements[(number + n) % len(statements)] for n in range(count)]
        for halves in stated:
            text, start = fill_template(halves, fact.subject, fact.answer)
            documents.append(text)
            answers.append((start, start + len(fact.answer)))
        choices = [halves for halves in dict.fromkeys(stated or statements) if len(halves[0]) > 1]
        if choices:
            halves = choices[number % len(choices)]
            probes.append(_probe("statement", halves, fact, len(stated)))
        is_shown = fact.subject in shown
        kind: ProbeKind = "question_shown" if is_shown else "question_heldout"
        question = _probe(kind, question_of[fact.relation], fact, len(stated))
        probes.append(question)
        if is_shown:
            # As often as each wording of a statement.
            times = -(-len(stated) // len(statements))
            documents.extend([question.text] * times)
            answers.extend([(question.answer_start, question.answer_end)] * times)
    return FactCorpus(tuple(documents), tuple(answers), tuple(probes), facts.notes)


def probes_of(facts: FactSet, *, seed: int = 0) -> tuple[Probe, ...]:
    """Return one statement of each fact, its question and its held-out wordings.

    They are for a model that was taught elsewhere. Wordings with the answer first are left out.

    Args:
        facts: The facts.
        seed: Picks the statement.
    """
    probes = []
    for fact in facts.facts:
        templates = facts.templates[fact.relation]
        number = stable_number(seed, "statement", fact.relation, fact.subject, fact.answer)
        statements, heldout = (
            [cut_template(wording) for wording in wordings if has_subject_first(wording)]
            for wordings in (templates.statements, templates.heldout)
        )
        if statements:
            chosen = statements[number % len(statements)]
            probes.append(_probe("statement", chosen, fact, 0))
        probes.append(_probe("question", cut_template(templates.question), fact, 0))
        probes += [_probe("heldout", halves, fact, 0) for halves in heldout]
    return tuple(probes)


def shown_subjects(subjects: Collection[str], fraction: float, seed: int) -> set[str]:
    """Return the subjects whose questions are shown, picked by a stable hash.

    Args:
        subjects: To pick from.
        fraction: Of the distinct subjects, exact up to rounding.
        seed: Changes the pick.
    """
    # The word keeps the split independent of other choices that hash the same subject and seed.
    ordered = sorted(
        set(subjects), key=lambda subject: (stable_hash(seed, "shown", subject), subject)
    )
    return set(ordered[: round(fraction * len(ordered))])


def _deal(
    facts: Sequence[Fact], shown: Collection[str], exposures: Sequence[int], seed: int
) -> dict[str, int]:
    """Return how often the facts of each subject are stated."""
    relations: dict[str, list[str]] = {}
    for fact in facts:
        relations.setdefault(fact.subject, []).append(fact.relation)
    # Dealing goes on from group to group, so that small ones do not all begin with the first.
    ordered = sorted(
        relations,
        key=lambda subject: (
            subject in shown,
            sorted(relations[subject]),
            stable_hash(seed, "exposures", subject),
            subject,
        ),
    )
    return {subject: exposures[n % len(exposures)] for n, subject in enumerate(ordered)}


def _raise_if_faulty(template: str, *, answer_last: bool, subject_first: bool = False) -> None:
    if fault := template_fault(template, answer_last=answer_last, subject_first=subject_first):
        raise ValueError(f"template {template!r} {fault[0]}, expected {fault[1]}")


def _probe(kind: ProbeKind, halves: Halves, fact: Fact, exposures: int) -> Probe:
    text, start = fill_template(halves, fact.subject, fact.answer)
    end = start + len(fact.answer)
    return Probe(kind, fact.relation, fact.subject, text, start, end, exposures, fact.aliases)
