"""One thread that owns the model. Rows wait, are taken as groups, and groups take turns."""

import sys
import threading
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from memory_layers.integrations.serving.caches import cache_argument, can_batch
from memory_layers.integrations.serving.errors import RequestError
from memory_layers.integrations.serving.group import Group
from memory_layers.integrations.serving.row import Row

# Padding may at most double what a batch takes.
MOST_PADDED = 2
# Texts that begin while the first of the queue waits for room.
MOST_OVERTAKEN = 64
# What a model raises at some rows. Others still get their answers.
FAULTS = (
    RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, AttributeError,
    AssertionError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What the engine holds at a time.

    Attributes:
        batch: Most rows of a group.
        queue: Most rows that wait.
        cache_tokens: Most tokens in all caches together, padding included.
    """

    batch: int = 32
    queue: int = 512
    cache_tokens: int = 131_072


class Engine:
    """Generates the rows that are submitted, until it is stopped.

    Args:
        model: In eval mode, used by this engine alone.
        limits: What it holds at a time.

    Raises:
        UserError: The model takes no cache that is known.
    """

    def __init__(self, model: PreTrainedModel, limits: Limits) -> None:
        self.model, self.limits = model, limits
        generation = model.generation_config
        ends = getattr(generation, "eos_token_id", None)
        ends = ends if isinstance(ends, list) else [ends]
        self.ends = frozenset(end for end in ends if end is not None)
        self.cached_as = cache_argument(model)
        self.batched = can_batch(model)
        self.changed = threading.Condition()
        self.waiting: deque[Row] = deque()
        self.overtaken = 0
        self.groups: list[Group] = []
        self.open: set[Row] = set()
        self.stopping = False
        # What runs on the device when the process is told to end shall not hold it.
        self.thread = threading.Thread(target=self._run, name="generate", daemon=True)

    def start(self) -> None:
        """Begin to generate."""
        self.thread.start()

    @property
    def alive(self) -> bool:
        """Whether rows are generated. False also after an error that was not foreseen."""
        return self.thread.is_alive() and not self.stopping

    def check_count(self, count: int) -> None:
        """Refuse a request for more rows than may wait.

        Raises:
            RequestError: There are more.
        """
        if count > self.limits.queue:
            raise RequestError(
                f"the request asks for {count} texts, prompts times `n` or `best_of`, this server "
                f"takes at most {self.limits.queue}. hint: ask several times",
                param="n",
            )

    def submit(self, rows: Sequence[Row]) -> None:
        """Let rows wait for their turn. Call it, `leave` and `stop` on one thread.

        Raises:
            RequestError: They can never be generated, or too many wait.
        """
        limits = self.limits
        if (longest := max(row.size for row in rows)) > limits.cache_tokens:
            raise RequestError(
                f"a prompt and `max_tokens` come to {longest} tokens, this server holds at most "
                f"{limits.cache_tokens}. hint: a smaller `max_tokens`, or serve with more "
                "--cache-tokens",
                param="max_tokens",
            )
        with self.changed:
            if not self.alive:
                raise shutting_down()
            self.waiting = deque(row for row in self.waiting if not row.left)
            if len(self.waiting) + len(rows) > limits.queue:
                raise RequestError(
                    f"{len(self.waiting)} texts wait already, this server lets at most "
                    f"{limits.queue} wait. hint: try again later",
                    status=503,
                    code="overloaded",
                    headers={"Retry-After": "1"},
                )
            self.open.update(rows)
            self.waiting.extend(rows)
            self.changed.notify()

    def leave(self, rows: Sequence[Row]) -> None:
        """Give rows up: nobody waits for them any more, or they have ended."""
        for row in rows:
            row.left = True
        self.open.difference_update(rows)

    def stop(self) -> None:
        """Tell all who wait that the server ends, and generate nothing more."""
        with self.changed:
            self.stopping = True
            self.changed.notify()
        for row in tuple(self.open):
            row.fail(shutting_down())

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._has_work():
                    self._admit()
                    for group in self.groups:
                        self._advance(group)
                    self.groups = [group for group in self.groups if group.rows]
                    self._join()
        finally:
            # Also after an error that was not foreseen, which ends the thread.
            with self.changed:
                self.stopping = True
                rows = [*self.waiting, *(row for group in self.groups for row in group.rows)]
            for row in rows:
                row.fail(shutting_down())

    def _has_work(self) -> bool:
        with self.changed:
            while not (self.waiting or self.groups or self.stopping):
                self.changed.wait()
            return not self.stopping

    def _admit(self) -> None:
        """Take rows that wait, as many as fit together, as a new group.

        A first one that has no room is overtaken by those that have, though not for ever.
        """
        free = self.limits.cache_tokens - self._reserved(self.groups)
        most = self.limits.batch if self.batched else 1
        taken: list[Row] = []
        kept: deque[Row] = deque()
        prompts = longest = answer = 0
        with self.changed:
            for row in self.waiting:
                if row.left:
                    continue
                count, size = len(taken) + 1, len(row.prompt)
                columns, room = max(longest, size), max(answer, row.max_tokens)
                if (
                    count > most
                    or (kept and self.overtaken >= MOST_OVERTAKEN)
                    or count * (columns + room) > free
                    or count * columns > MOST_PADDED * (prompts + size)
                ):
                    kept.append(row)
                    continue
                prompts, longest, answer = prompts + size, columns, room
                self.overtaken = self.overtaken + 1 if kept else 0
                taken.append(row)
            self.waiting = kept
        if taken:
            try:
                group = Group(self.model, taken, self.ends, self.cached_as, batched=self.batched)
                self.groups.append(group)
            except FAULTS as error:
                _fail(taken, error)

    def _advance(self, group: Group) -> None:
        try:
            group.advance()
        except FAULTS as error:
            _fail(group.rows, error)
            group.rows = []

    def _join(self) -> None:
        """Make one batch of groups that generate, where that wastes little."""
        joined: list[Group] = []
        for group in self.groups:
            into = next((one for one in joined if self._fits(one, group)), None)
            if into is None:
                joined.append(group)
                continue
            try:
                into.join(group)
            except FAULTS as error:
                # Their cache is half of one batch and half of two.
                _fail([*into.rows, *group.rows], error)
                joined.remove(into)
        self.groups = joined

    def _fits(self, one: Group, other: Group) -> bool:
        if not (self.batched and one.generating and other.generating):
            return False
        rows = len(one.rows) + len(other.rows)
        alone = len(one.rows) * one.columns + len(other.rows) * other.columns
        padded = rows * max(one.columns, other.columns)
        if rows > self.limits.batch or padded > MOST_PADDED * alone:
            return False
        others = self._reserved([g for g in self.groups if g is not one and g is not other])
        return others + rows * max(one.most, other.most) <= self.limits.cache_tokens

    @staticmethod
    def _reserved(groups: Sequence[Group]) -> int:
        return sum(len(group.rows) * group.most for group in groups)


def _fail(rows: Sequence[Row], error: Exception) -> None:
    """Tell the rows at which the model failed.

    Raises:
        Exception: The same, where the device is lost, which fails all that comes.
    """
    text = str(error)
    for row in rows:
        detail = text.partition("\n")[0][:200]
        row.fail(RequestError(f"the model failed: {detail}", status=500))
    if "CUDA error" in text and "out of memory" not in text:
        raise error
    traceback.print_exc(file=sys.stderr)


def shutting_down() -> RequestError:
    """Return what those get who wait while the server ends."""
    return RequestError("the server is shutting down", status=503, code="shutting_down")
