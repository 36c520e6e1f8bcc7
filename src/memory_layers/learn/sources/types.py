"""Examples to train on, and the items that test what was learned from them."""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from memory_layers.common.seeds import stable_number
from memory_layers.data.tokens import IGNORE

if TYPE_CHECKING:
    from memory_layers.learn.sources.look import Look

Kind = Literal["facts", "prompts", "messages", "text"]
Form = Literal["statement", "question", "chat", "prompt", "text"]


@dataclass(frozen=True, eq=False)
class Example:
    """Token ids of one text, and which of them are learned.

    Attributes:
        ids: [L] int32, the special tokens included that a text begins and ends with.
        spans: First token that is learned and the end, for each stretch, in order.
        group: Number of what it teaches, an index of `LearnData.groups`. All wordings of a fact
            are in one group.
        form: What kind of text it is.
    """

    ids: np.ndarray
    spans: tuple[tuple[int, int], ...]
    group: int
    form: Form

    def labels(self) -> np.ndarray:
        """Return ids where a token is learned and IGNORE elsewhere: [L] int64."""
        labels = np.full(len(self.ids), IGNORE, np.int64)
        for start, end in self.spans:
            labels[start:end] = self.ids[start:end]
        # Nothing stands before the first token that could predict it.
        labels[:1] = IGNORE
        return labels


@dataclass(frozen=True, eq=False)
class RecallItem:
    """A prompt whose answer is asked for.

    Attributes:
        ids: [L] int32, prompt, answer and the token that ends it.
        start: First token of the answer.
        end: Behind the token that ends the answer: an answer that goes on is another answer.
        answer: Its text, without white space around it.
        group: As in `Example`.
        form: What kind of prompt it is.
        seen: The same prompt is trained on. Otherwise no example has it.
        last: The text ends with the answer, so that what a model writes can be compared as well.
        others: The same with other right answers, which count where the prompt is asked.
    """

    ids: np.ndarray
    start: int
    end: int
    answer: str
    group: int
    form: Form
    seen: bool
    last: bool
    others: tuple["RecallItem", ...] = ()

    @property
    def prompt_ids(self) -> np.ndarray:
        """What stands before the answer: [L] int32."""
        return self.ids[: self.start]


@dataclass(frozen=True, slots=True)
class Group:
    """One thing that is taught, in all its wordings.

    Attributes:
        where: File and line, or the place in what was given.
        name: Relation and subject, or the beginning of prompt or text.
        answer: What is to be answered, on one line. Empty for running text.
        source: Number of the source.
        weight: How often its examples are shown in a pass, on average.
        subject: What a fact is about. Empty for all else.
    """

    where: str
    name: str
    answer: str
    source: int
    weight: float
    subject: str = ""


@dataclass(frozen=True)
class LearnData:
    """What is trained on and what is asked.

    Attributes:
        examples: In the order of the sources, those of a group beside one another.
        items: Likewise.
        groups: What is taught.
        look: Counts and samples, for people.
        asked: For each group the digests of its prompts that are trained on, or of its text, before
            a chat template is put around them. Facts have none: relation and subject say which they
            are.
    """

    examples: tuple[Example, ...]
    items: tuple[RecallItem, ...]
    groups: tuple[Group, ...]
    look: "Look"
    asked: tuple[tuple[str, ...], ...]

    def without(self, groups: Collection[int]) -> "LearnData":
        """Leave out what some groups teach. The others keep their numbers."""
        out = frozenset(groups)
        return replace(
            self,
            examples=tuple(example for example in self.examples if example.group not in out),
            items=tuple(item for item in self.items if item.group not in out),
        )

    def in_pass(self, number: int, seed: int = 0) -> list[int]:
        """Return which examples are shown in a pass, in their order.

        A source of weight 2 is shown twice in every pass, one of weight 0.5 in every other one.

        Args:
            number: Of the pass, counted from 0.
            seed: Decides which groups begin with the pass that leaves them out.
        """
        times = {}
        for n, group in enumerate(self.groups):
            # Steps of a line that begins between 0 and 1: exact over all passes.
            begin = stable_number(seed, "begin", str(n)) / 2**64
            before, after = begin + group.weight * number, begin + group.weight * (number + 1)
            times[n] = math.floor(after) - math.floor(before)
        return [n for n, ex in enumerate(self.examples) for _ in range(times[ex.group])]
