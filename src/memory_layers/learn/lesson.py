"""Lesson: a model gets a memory, and its rows are trained until all is learned. From teach.py."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from memory_layers.common.checks import check_number, check_seed, check_whole
from memory_layers.common.errors import UserError
from memory_layers.common.seeds import stable_number
from memory_layers.data.tokens import IGNORE
from memory_layers.layers import WrittenTable
from memory_layers.layers.walk import memory_layers_of
from memory_layers.learn.ask import said_after
from memory_layers.learn.cues import at_names, find_cues, words_of
from memory_layers.learn.result import Point, Progress, Stopped
from memory_layers.learn.rows import Plan, plan_rows
from memory_layers.learn.skeleton import (
    build_skeleton,
    choose_memory,
    look_up,
    residual_size,
    slots_at,
)
from memory_layers.learn.sources import LearnData, RecallItem
from memory_layers.learn.state import State
from memory_layers.learn.steps import RowSteps
from memory_layers.learn.train import Pass, Text, Trainer, one_pass
from memory_layers.learn.watch import Watch
from memory_layers.models import Patch, apply_patch
from memory_layers.train.interrupt import StopSignal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The sentence about a model that cannot be taught for it.
HAS_MEMORY = "the model has memory layers already. hint: a plain one, and its memory as onto"
# How far an entry of a row moves in a step, as a share of the size of those of hidden states.
STEP = 0.22
# Share of the prompts of a pass that are answered right before their update: all but slips.
LEARNED = 0.99
# Passes after that: prompts that are not shown are learned a little later.
MORE_PASSES = 3
# Between two looks at forgetting, in seconds, and as a multiple of what a look takes.
LOOK_EVERY, LOOKS = 45, 9
# Between two times that the state is written, in seconds.
SAVE_EVERY = 45


@dataclass(frozen=True, kw_only=True)
class LearnSettings:
    """How a model is taught.

    Attributes:
        minutes: Most that it takes, measuring at the end not counted.
        passes: Most passes through the data.
        lr: How far an entry of a row moves in a step. None: 0.22 of the size of the entries of
            hidden states where the memory adds to them.
        known: What becomes of what the model knows already: "skip" it or "train" it all the same.
        seed: Of sub-keys, of the order of the data, and of text that the model writes.
    """

    minutes: float = 15.0
    passes: int = 40
    lr: float | None = None
    known: Literal["skip", "train"] = "skip"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_whole("passes", self.passes, 1)
        check_seed("seed", self.seed)
        for name in ("minutes", "lr"):
            value = getattr(self, name)
            if value is not None:
                check_number(name, value)
                if value <= 0:
                    raise UserError(f"{name} must be above 0, got {value}")
        if self.known not in ("skip", "train"):
            raise UserError(f"known must be 'skip' or 'train', got {self.known!r}")


class Lesson:
    """A model that gets a memory, and what it is taught.

    Args:
        model: Without memory. It gets one, and is frozen.
        tokenizer: Of the model.
        data: What is taught.
        settings: How.
        told: Is told how far it is.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: "PreTrainedTokenizerBase",
        data: LearnData,
        settings: LearnSettings,
        told: Progress,
    ) -> None:
        self.model, self.tokenizer, self.data = model, tokenizer, data
        self.settings, self.told = settings, told
        self.plan: Plan
        self.lr = 0.0
        # Prompts that are answered and read new rows. They are trained on with what is taught.
        self.along: list[Text] = []
        self.resting: frozenset[int] = frozenset()

    @property
    def table(self) -> WrittenTable:
        """The rows."""
        table = memory_layers_of(self.model)[0].values
        assert isinstance(table, WrittenTable)
        return table

    def add_memory(self, own: Tensor, onto: str | Path | Patch | None = None) -> None:
        """Add the memory, with what it was taught before.

        Args:
            own: Text that the base wrote, int64 [n, L].
            onto: What it was taught before.
        """
        self.told.stage("adding the memory")
        if onto is None:
            config = choose_memory(self.model)
            build_skeleton(self.model, config, own, self.settings.seed)
        else:
            patch = onto if isinstance(onto, Patch) else Patch.load(onto)
            config = patch.config
            if config.match != "nearest":
                raise UserError("onto must be a patch that learn wrote, got one of another memory")
            apply_patch(self.model, patch)
        self.model.requires_grad_(False)
        self.lr = self.settings.lr or STEP * residual_size(self.model, config, own)

    def prepare(
        self,
        data: LearnData,
        protected: Sequence[Tensor],
        keep: Sequence[RecallItem] = (),
        known: Sequence[RecallItem] = (),
    ) -> None:
        """Plan what is written, after `add_memory`.

        Args:
            data: What is left to be taught.
            protected: Texts that new rows stay away from, int64 [n, L] each.
            keep: Prompts that they stay away from too, other than at subjects of facts.
            known: What is answered. Where new rows are read in it, it is trained on with what they
                are for.
        """
        self.data = data
        self.told.stage("looking up tokens")
        ordinary = [row for rows in protected for row in rows]
        prompts = [torch.from_numpy(item.prompt_ids).long() for item in keep]
        names = [*dict.fromkeys(data.groups[example.group].subject for example in data.examples)]
        away = [~at_names(prompt, names, self.tokenizer) for prompt in prompts]
        table, words = self.table, torch.cat(ordinary)
        old, slots = table.weight.detach().cpu(), table.slots.cpu()
        queries = look_up(self.model, ordinary)
        of_prompts = look_up(self.model, prompts)
        queries += [query[rows] for query, rows in zip(of_prompts, away, strict=True)]
        # What was taught before is to stay too.
        queries = torch.cat([*queries, old[:, : table.query_dim].float()])
        usual = words_of([str(self.tokenizer.decode(row)) for rows in protected for row in rows])
        cues = find_cues(self.data, self.tokenizer, usual)
        self.plan = plan = plan_rows(
            self.model, self.data, cues, queries, words, slots, self.settings.seed
        )
        if len(plan.slots) == 0:
            raise UserError(
                "nothing that is taught has a prompt that the memory could know it by. "
                "hint: name in the prompts what they are about"
            )
        if plan.vague:
            names = ", ".join(self.data.groups[group].name for group in plan.vague[:5])
            self.told.stage(
                f"{len(plan.vague)} of {len(plan.of_group)} have no token that nothing else comes "
                f"near, so the memory may speak in other text too: {names}"
            )
        zeros = torch.zeros(len(plan.slots), table.value_dim - table.query_dim - 1)
        rows = torch.cat([plan.queries, plan.radii[:, None], zeros], 1).to(old)
        slots = torch.cat([slots, plan.slots])
        order = slots.argsort()
        table.write(slots[order], torch.cat([old, rows])[order])
        table.weight.requires_grad_(True)
        self._find_along(known)

    def _find_along(self, known: Sequence[RecallItem]) -> None:
        """Note what is answered and reads new rows, which would make another answer of it."""
        read = slots_at(self.model, [torch.from_numpy(i.prompt_ids).long() for i in known])
        new = {int(slot): row for row, slot in enumerate(self.plan.slots)}
        # Texts are in one group that share a first row, see _row.
        first = {row: min(rows) for rows in self.plan.of_group.values() for row in rows}
        groups = [
            min((first[new[slot]] for slot in slots.tolist() if slot in new), default=-1)
            for slots in read
        ]
        # What is taught or asked of the same prompt is meant to take its place.
        taught = {tuple(e.ids[:low].tolist()) for e in self.data.examples for low, _ in e.spans}
        taught |= {tuple(item.prompt_ids.tolist()) for item in self.data.items}
        found = [
            (item, group)
            for item, group in zip(known, groups, strict=True)
            if group >= 0 and tuple(item.prompt_ids.tolist()) not in taught
        ]
        # An answer stays as it was if it ends as it did.
        ends = said_after(self.model, self.tokenizer, [item for item, _ in found])
        self.along = [
            replace(_asked(item, end), group=group, along=True)
            for (item, group), end in zip(found, ends, strict=True)
        ]
        if self.along:
            self.told.stage(
                f"{len(self.along)} prompts that are answered have names or words of what is "
                "taught, and are trained on with it, to stay"
            )

    def begin(self) -> None:
        """Make ready what is the same in all passes."""
        self.told.stage("keeping what does not change")
        self.texts = [
            Text(torch.from_numpy(e.ids).long(), torch.from_numpy(e.labels()), self._row(e.group))
            for e in self.data.examples
        ]
        self.asked = [_asked(item) for item in self.data.items if not item.seen]
        self.trainer = Trainer(self.model, [*self.texts, *self.along, *self.asked])
        if silent := sum(not text.speaks for text in self.texts):
            self.told.stage(
                f"in {silent} of {len(self.texts)} texts the memory stays silent: nothing in them "
                "is like what it knows the others by"
            )
        new = torch.searchsorted(self.table.slots, self.plan.slots.to(self.table.slots))
        self.steps = RowSteps(self.table, new, self.plan.values, self.lr)

    def one_pass(self, number: int, ends: Callable[[], bool] = lambda: False) -> Pass:
        """Train on all that is taught once, after `begin`.

        What is answered right in all its texts rests in the next pass: the time goes to the others.

        Args:
            number: Of the pass, counted from 0.
            ends: Asked before each update: the rest of the pass is left out.
        """
        seed = self.settings.seed
        shown = [self.texts[n] for n in self.data.in_pass(number, seed)]
        groups = {text.group for text in shown}
        done = one_pass(
            self.trainer,
            [*shown, *(text for text in self.along if text.group in groups)],
            self.steps,
            stable_number(seed, "pass", str(number)),
            lambda n, total, _: self.told.work(n, total, f"pass {number + 1}"),
            ends,
            self.resting,
        )
        if done.whole:
            self.resting = done.learned
        return done

    def train(self, watch: Watch, state: State, folder: Path | None) -> Stopped:
        """Train until all is learned, or time, passes or the user end it."""
        self.begin()
        if state.tensors:
            self.told.stage(f"going on after pass {state.passes}")
            self.steps.restore(state.tensors)
            self.resting = frozenset(state.resting)
        before, begin, next_look = state.seconds, time.monotonic(), 0.0
        next_save = begin + SAVE_EVERY
        limit = 60 * self.settings.minutes
        with StopSignal() as stop:
            while True:
                if reason := self._ended(state, limit, interrupted=stop.requested):
                    self._save(state, folder)
                    return reason
                done = self.one_pass(
                    state.passes,
                    lambda: stop.requested or before + time.monotonic() - begin > limit,
                )
                state.updates += done.updates
                state.seconds = before + time.monotonic() - begin
                if not done.whole:
                    continue
                state.passes += 1
                if not done.updates:
                    # All of it is shown in other passes: there is no loss.
                    continue
                state.ready += state.ready > 0 or done.right >= LEARNED
                now = time.monotonic()
                if now >= next_look or state.ready > MORE_PASSES:
                    glance = watch.glance()
                    unseen = self.trainer.answers(self.asked)
                    took = time.monotonic() - now
                    next_look = now + took + max(LOOK_EVERY, LOOKS * took)
                    point = Point(
                        state.passes, state.updates, state.seconds, done.loss, done.right,
                        sum(unseen) / len(unseen) if unseen else None,
                        glance.text_loss, glance.kept,
                    )  # fmt: skip
                    state.curve.append(point)
                    self.told.point(point)
                    next_save = 0.0
                if time.monotonic() >= next_save:
                    self._save(state, folder)
                    next_save = time.monotonic() + SAVE_EVERY

    def _save(self, state: State, folder: Path | None) -> None:
        if folder is not None:
            state.tensors, state.resting = self.steps.tensors(), sorted(self.resting)
            state.save(folder)

    def _row(self, group: int) -> int:
        """Return the first row of a group: what shares a row is best learned in one update."""
        return min(self.plan.of_group.get(group, (-1,)))

    def _ended(self, state: State, limit: float, *, interrupted: bool) -> Stopped | None:
        if interrupted:
            return "interrupted"
        if state.ready > MORE_PASSES:
            return "learned"
        if state.seconds > limit:
            return "minutes"
        return "passes" if state.passes >= self.settings.passes else None


def _asked(item: RecallItem, end: int | None = None) -> Text:
    """Return an item as a text of which the answer counts, and what follows it if that is given."""
    ids = torch.from_numpy(item.ids).long()
    labels = torch.full_like(ids, IGNORE)
    labels[item.start : item.end - 1] = ids[item.start : item.end - 1]
    if end is not None:
        labels[item.end - 1] = end
    return Text(ids, labels, item.group)
