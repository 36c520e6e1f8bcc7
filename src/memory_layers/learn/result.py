"""What a teaching brought and what it cost: for reports, files and other programs."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, Self

from memory_layers.common.reader import from_dict

Stopped = Literal["learned", "minutes", "passes", "interrupted"]


@dataclass(frozen=True, slots=True)
class TextLoss:
    """What a teaching did to a text that it did not show.

    Attributes:
        name: Of the text.
        tokens: That were predicted.
        before: Loss of the base, in nats a token.
        after: Loss of the taught model.
        kl: Divergence of the taught model from the base, KL(base || taught), in nats a token.
        changed: Share of tokens before which another token became the most likely one.
        spoke: Share of tokens at which the memory spoke. What stands before the first of them in
            a text comes out as from the base, to the bit.
    """

    name: str
    tokens: int
    before: float
    after: float
    kl: float
    changed: float
    spoke: float

    @property
    def increase(self) -> float:
        """By how much the loss grew, as a share of what it was."""
        return self.after / self.before - 1 if self.before else 0.0


@dataclass(frozen=True, slots=True)
class Recall:
    """Share of prompts of a form that are answered exactly, under greedy decoding.

    Attributes:
        form: What kind of prompt it is: statement, question, chat, prompt.
        seen: The same prompts were trained on.
        items: How many there are.
        before: Share that was answered before: by the base, or with an earlier patch.
        after: Share that the taught model answers.
    """

    form: str
    seen: bool
    items: int
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Point:
    """How far learning and forgetting are after some training.

    Attributes:
        passes: Through the data.
        updates: Steps of the optimiser.
        seconds: Since the beginning, those of earlier parts of a resumed run included.
        loss: Of the answers, in nats a token.
        recall_seen: Share of prompts answered that are trained on.
        recall_unseen: Likewise of those that are not. None: there are none.
        text_loss: By how much the loss on watched texts grew, as a share of what it was.
        kept: Share of the answers given before that are still given. None: none asked.
    """

    passes: int
    updates: int
    seconds: float
    loss: float
    recall_seen: float
    recall_unseen: float | None
    text_loss: float
    kept: float | None


@dataclass(frozen=True, slots=True)
class Kept:
    """Prompts that were answered before, and how many of them still are.

    Attributes:
        name: Of the prompts.
        items: Answered before.
        kept: Of these, those that the taught model answers.
        lost: The others.
    """

    name: str
    items: int
    kept: int
    lost: tuple[str, ...]


class Progress(Protocol):
    """Is told how far a teaching is."""

    def stage(self, text: str) -> None:
        """Note what begins, in a few words."""

    def work(self, done: int, total: int, name: str) -> None:
        """Note how far a part of the work is, as a `Report` of common/progress.py."""

    def point(self, point: Point) -> None:
        """Note how far learning and forgetting are."""


class Silent:
    """A Progress that says nothing."""

    def stage(self, text: str) -> None:
        """Say nothing."""

    def work(self, done: int, total: int, name: str) -> None:
        """Say nothing."""

    def point(self, point: Point) -> None:
        """Say nothing."""


@dataclass(frozen=True, kw_only=True)
class LearnResult:
    """What a teaching brought and what it cost.

    Attributes:
        model: The base, as it was named.
        out: Folder of the patch. Empty: nothing was written.
        recall: By form, and by whether it was trained on.
        texts: What it did to texts that it did not show.
        kept: What it did to what was answered before.
        curve: Learning and forgetting on the way.
        groups: Things that were to be learned.
        learned: How many of them are answered in every wording that was trained on.
        not_learned: Names of the others.
        known_before: Names of what the model knew already.
        corrected: Names of what an earlier patch had taught with other answers.
        gone: Names of what it had taught in the same rows and the data does not teach. It went too.
        readers: Names of what else reads these rows. It may be answered otherwise.
        rows: Rows of the memory that were written.
        parameters: Numbers in them.
        bytes: Size of the patch on the disk.
        seconds: It took in all.
        training_seconds: Of these, for training, those of earlier parts of a resumed run included.
        passes: Through the data.
        updates: Steps of the optimiser.
        tokens: Trained on in a pass, prompts included.
        peak_bytes: Most memory of the process.
        stopped: Why it ended: everything was learned, time or passes were over, or the user
            interrupted it.
        settings: That it was called with, or that were chosen.
        look: At the data, as `Look.to_dict` has it.
        provenance: Versions, device and commit.
    """

    model: str
    out: str
    recall: tuple[Recall, ...]
    texts: tuple[TextLoss, ...]
    kept: tuple[Kept, ...]
    curve: tuple[Point, ...]
    groups: int
    learned: int
    not_learned: tuple[str, ...]
    known_before: tuple[str, ...]
    corrected: tuple[str, ...]
    gone: tuple[str, ...]
    readers: tuple[str, ...] = ()
    rows: int
    parameters: int
    bytes: int
    seconds: float
    training_seconds: float
    passes: int
    updates: int
    tokens: int
    peak_bytes: int
    stopped: Stopped
    settings: dict[str, Any]
    look: dict[str, Any]
    provenance: dict[str, Any]

    def __str__(self) -> str:
        from memory_layers.learn.report import text_report

        return text_report(self)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON takes it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return what `to_dict` had, also from a file.

        Raises:
            UserError: A value is missing, unknown, or of a wrong type.
        """
        return from_dict(cls, values, "result")


def recall_of(recall: Iterable[Recall], *, seen: bool) -> Recall | None:
    """Return the recall of all forms together. None: there is no such prompt.

    Args:
        recall: Of each form.
        seen: Of prompts that were trained on, or of the others.
    """
    found = [one for one in recall if one.seen == seen and one.items]
    items = sum(one.items for one in found)
    if not items:
        return None
    before, after = (
        sum(one.items * getattr(one, name) for one in found) / items for name in ("before", "after")
    )
    return Recall("all", seen, items, before, after)
