"""The bytes a rank holds through a training step, which is walked through with sizes alone.

Each part is held and freed in the order in which the code does it. The peak is what must fit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from memory_layers.layers.pending import FOLD_BYTES
from memory_layers.parallel.replicas import bytes_either_way
from memory_layers.plan import saved
from memory_layers.plan.job import BF16, FP32, INT32, INT64, Job
from memory_layers.plan.parameters import Unit

PARTS = (
    "weights", "optimizer", "gradients", "gathered", "pending", "exchange", "activations",
)  # fmt: skip


@dataclass(frozen=True)
class Footprint:
    """Bytes a rank holds at the worst moment of a step.

    Attributes:
        total: The sum of all parts.
        moment: The phase of the step.
        parts: Bytes by the names of PARTS. `gathered` are whole parameters and gradients while
            FSDP2 communicates them, `exchange` what adding up a table's gradient takes.
        largest: The most that each part takes at any moment.
    """

    total: int
    moment: str
    parts: Mapping[str, int]
    largest: Mapping[str, int]


@dataclass
class _Ledger:
    """The bytes held now, by part, and at the peak."""

    held: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    largest: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    peak: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    moment: str = ""

    def change(self, moment: str, **changes: float) -> None:
        for part, change in changes.items():
            self.held[part] += round(change)
            self.largest[part] = max(self.largest[part], self.held[part])
        if sum(self.held.values()) > sum(self.peak.values()):
            self.peak, self.moment = dict(self.held), moment

    def touch(self, moment: str, **extra: float) -> None:
        """Hold something for a moment."""
        self.change(moment, **extra)
        self.change(moment, **{part: -change for part, change in extra.items()})


def rehearse(job: Job, root: Unit, blocks: list[Unit]) -> Footprint:
    """Walk through a step after the first, when all optimizer state exists."""
    ledger = _Ledger()
    units = [root, *blocks]
    owned = sum(unit.shard for unit in units)
    ledger.change("at rest", weights=FP32 * owned, optimizer=2 * FP32 * owned)
    if job.memory is not None:
        rows = job.tables * job.memory.num_slots
        ledger.change(
            "at rest",
            weights=rows * job.columns * job.table_bytes,
            optimizer=rows * job.row_state_bytes,
        )
    step = _Step(job, root, blocks, ledger)
    for part in range(job.run.train.accumulate):
        step.forward()
        step.backward(is_first=part == 0)
    step.finish()
    total = sum(ledger.peak.values())
    return Footprint(total, ledger.moment, ledger.peak, ledger.largest)


class _Step:
    """One training step on a ledger."""

    def __init__(self, job: Job, root: Unit, blocks: list[Unit], ledger: _Ledger) -> None:
        self.job, self.root, self.blocks, self.ledger = job, root, blocks, ledger
        self.halves = [saved.block(job, index) for index in range(len(blocks))]
        self.pending = _Pending(job)
        self.stream = FP32 * job.tokens * job.shape.hidden_size

    def gathered(self, unit: Unit) -> int:
        """Bytes of a gathered unit. A single process gathers nothing."""
        return FP32 * unit.numel if self.job.sharded else 0

    def buffer(self, unit: Unit) -> int:
        """Bytes of the buffer that a unit is gathered in, or reduced from, padded."""
        if not self.job.sharded or self.job.layout.shard == 1:
            return 0
        return FP32 * unit.shard * self.job.layout.shard

    def copies(self, unit: Unit) -> int:
        """Bytes of the bf16 copies of a unit's matrices."""
        return BF16 * unit.matrices if self.job.mixed else 0

    def forward(self) -> None:
        """Hold what the backward pass needs, and for a moment what the loss takes."""
        job, ledger = self.job, self.ledger
        moment = "forward"
        ledger.touch(moment, gathered=self.buffer(self.root) + self.gathered(self.root))
        ledger.change(moment, gathered=self.gathered(self.root))
        ledger.change(moment, activations=saved.around(job) + saved.final(job))
        # bf16 copies that autocast's cache keeps until the forward pass ends.
        cached = 0
        for unit, halves in zip(self.blocks, self.halves, strict=True):
            whole = sum(half.kept for half in halves)
            keep = self.stream if job.checkpointing else whole
            copies = self.copies(unit)
            around = self.gathered(unit) + self.buffer(unit)
            # The halves of a block that is not kept are freed as it proceeds.
            passing = max(half.kept for half in halves) if job.checkpointing else whole
            ledger.touch(moment, activations=max(keep, passing) + copies, gathered=around)
            ledger.change(moment, activations=keep + copies)
            cached += copies if job.checkpointing else 0
        ledger.change(moment, activations=self.copies(self.root))
        narrow, wide = saved.logits(job)
        ledger.touch("forward: logits", activations=narrow)
        ledger.change("forward: logits", activations=-cached)
        copied = wide // FP32 * job.act_bytes
        ledger.touch("loss", activations=narrow + copied + (wide if job.mixed else 0))
        ledger.touch("loss", activations=2 * wide)

    def backward(self, *, is_first: bool) -> None:
        """Free what the forward pass kept, and add the gradients."""
        job, ledger = self.job, self.ledger
        _, wide = saved.logits(job)
        ledger.touch("loss, backward", activations=3 * wide)
        head = self._head()
        new = {"gathered" if job.sharded else "gradients": FP32 * head}
        if not job.sharded and not is_first:
            ledger.touch("head, backward", gradients=FP32 * head)
            new = {"gradients": 0}
        done = self.copies(self.root) + saved.final(job)
        ledger.change("head, backward", activations=-done, **new)
        before = 0
        for index in reversed(range(len(self.blocks))):
            before = self._block(index, before, is_first=is_first)
        moment = "embeddings, backward"
        ledger.change(moment, activations=-ledger.held["activations"], gathered=-before)
        rest = self.root.numel - head
        if job.shape.tie_word_embeddings:
            # The gradients of both ends are added up before they become that of the parameter.
            ledger.touch(moment, gradients=2 * FP32 * head)
        self._gradient(moment, self.root, rest, is_first=is_first)
        if job.sharded:
            # Resharded before its gradients are copied into the buffer to be reduced.
            ledger.change(moment, gathered=FP32 * rest - self.gathered(self.root))
            ledger.touch(moment, gathered=self.buffer(self.root))
            ledger.change(moment, gathered=-FP32 * (rest + head))

    def _head(self) -> int:
        """Return the size of the head's gradient, the first of a backward pass."""
        job = self.job
        split = 1 if job.shape.tie_word_embeddings else job.layout.tensor
        return job.vocab * job.shape.hidden_size // split

    def _block(self, index: int, before: int, *, is_first: bool) -> int:
        """Go back through a block. Return the bytes of the buffer that is still being reduced."""
        job, ledger, unit = self.job, self.ledger, self.blocks[index]
        first, second = self.halves[index]
        moment = f"block {index}, backward"
        following = self.buffer(self.blocks[index - 1]) if index else 0
        around = self.gathered(unit) + following
        copies = self.copies(unit)
        ledger.change(moment, gathered=around)
        if job.checkpointing:
            ledger.change(moment, activations=first.kept + second.kept + copies - self.stream)
        late = self._second_share(index)
        grads = "gathered" if job.sharded else "gradients"
        ledger.touch(moment, activations=second.transient)
        self.pending.read(index, ledger, moment)
        ledger.touch(moment, **{grads: FP32 * late, "activations": second.transient / 2})
        ledger.change(moment, activations=-second.kept)
        ledger.touch(moment, **{grads: FP32 * late, "activations": first.transient})
        ledger.change(moment, activations=-first.kept - copies)
        if not job.sharded:
            self._gradient(moment, unit, unit.numel, is_first=is_first)
            return 0
        new, reducing = FP32 * unit.numel, self.buffer(unit)
        ledger.change(moment, gathered=new - self.gathered(unit) - before)
        ledger.change(moment, gathered=reducing)
        ledger.change(moment, gathered=-new - following)
        self._gradient(moment, unit, unit.numel, is_first=is_first)
        return reducing

    def _second_share(self, index: int) -> int:
        """Return the size of the gradients of a block's second half, which come first."""
        width = self.job.shape.hidden_size
        attention = 2 * width * (width + self.job.key_value_dim)
        return self.blocks[index].numel - attention // self.job.layout.tensor - width

    def _gradient(self, moment: str, unit: Unit, numel: int, *, is_first: bool) -> None:
        """Add a gradient, of which FSDP2 leaves this rank its share."""
        size = FP32 * (unit.shard if self.job.sharded else numel)
        add = self.ledger.change if is_first else self.ledger.touch
        add(moment, gradients=size)

    def finish(self) -> None:
        """Add up what replicas have pending, and step."""
        self.pending.exchange(self.ledger)
        self.pending.step(self.ledger)


class _Pending:
    """The gradients of the tables, as layers/pending.py keeps them."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.bytes = [0.0] * job.tables
        self.folded = [0.0] * job.tables
        self.reads = [0] * job.tables

    def read(self, index: int, ledger: _Ledger, moment: str) -> None:
        """Append the read of a block, and fold a list beyond its budget."""
        job, memory = self.job, self.job.memory
        if memory is None or index not in memory.layers:
            return
        table = 0 if memory.share_values else memory.layers.index(index)
        # Weights that were not gathered are those that the softmax saved, kept on.
        self._grow(table, job.factor_bytes(INT64), ledger, moment)
        self.reads[table] += 1
        limit = max(FOLD_BYTES, 2 * self.folded[table])
        if job.replicas > 1 or self.reads[table] == 1 or self.bytes[table] <= limit:
            return
        folded = _folded_bytes(job, job.touched_rows(self.reads[table]))
        if folded < self.bytes[table]:
            ledger.touch(moment, pending=folded)
            self._grow(table, folded - self.bytes[table], ledger, moment)
        self.folded[table] = self.bytes[table]

    def _grow(self, table: int, change: float, ledger: _Ledger, moment: str) -> None:
        self.bytes[table] += change
        ledger.change(moment, pending=change)

    def exchange(self, ledger: _Ledger) -> None:
        """Add up over replicas: the factors of all, or dense sums."""
        job, memory = self.job, self.job.memory
        if memory is None or job.replicas == 1:
            return
        moment = "adding up replicas"
        factors, sums = exchange_bytes(job)
        for table, own in enumerate(self.bytes):
            if factors <= sums:
                ledger.touch(moment, exchange=job.replicas * own)
                self._grow(table, (job.replicas - 1) * own, ledger, moment)
                continue
            row = job.columns * FP32
            dense, rows = memory.num_slots * row, job.touched_rows(job.reads_of_table)
            ledger.touch(moment, exchange=dense + rows * row + memory.num_slots)
            folded = _folded_bytes(job, job.stepped_rows)
            ledger.touch(moment, exchange=dense, pending=folded)
            self._grow(table, folded - own, ledger, moment)

    def step(self, ledger: _Ledger) -> None:
        """Step the tables. One moment a row over several ranks takes the rows' sums."""
        job = self.job
        ledger.touch("optimizer step")
        if job.needs_row_sums:
            row = FP32 * job.columns + 4 * FP32 + 2 * INT64
            ledger.touch("optimizer step", exchange=job.stepped_rows * row)


def _folded_bytes(job: Job, rows: float) -> float:
    """Return the bytes of a gradient as rows and their sums: an entry and a weight each."""
    return rows * (FP32 * job.columns + INT64 + FP32)


def exchange_bytes(job: Job) -> tuple[float, float]:
    """Return the bytes that a replica sends for one table: as factors, and as dense sums."""
    assert job.memory is not None
    own = job.reads_of_table * job.factor_bytes(INT32)
    return bytes_either_way(own, job.memory.num_slots, job.columns, job.replicas)
