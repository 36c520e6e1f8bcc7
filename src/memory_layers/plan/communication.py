"""The bytes that a rank sends in a training step, for each kind of collective.

They include what it passes on in a ring: an all-gather of S bytes a rank sends (G - 1) S, a
reduce-scatter or all-to-all of S bytes in all (G - 1) / G S, an all-reduce of S twice that.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from memory_layers.plan.job import FP32, INT32, Job
from memory_layers.plan.parameters import Parameter, Unit
from memory_layers.plan.rehearsal import exchange_bytes

GATHER, REDUCE_SCATTER, ALL_TO_ALL, ALL_REDUCE = (
    "all-gather", "reduce-scatter", "all-to-all", "all-reduce",
)  # fmt: skip


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind in a step.

    Attributes:
        kind: What communicates, and how.
        operation: One of torch's collectives.
        group: Ranks that take part.
        stride: Distance between two of them in the numbering of all ranks.
        payload: Bytes that a rank puts in, in all of them together.
        count: Number of collectives.
        overlaps: Whether computation hides it.
    """

    kind: str
    operation: str
    group: int
    stride: int
    payload: float
    count: int
    overlaps: bool

    @property
    def sent(self) -> float:
        """Bytes that a rank sends, in all of them together."""
        others = self.group - 1
        share = others / self.group
        factor = {
            GATHER: others, REDUCE_SCATTER: share, ALL_TO_ALL: share, ALL_REDUCE: 2 * share,
        }  # fmt: skip
        return factor[self.operation] * self.payload

    @property
    def span(self) -> int:
        """Consecutive ranks that the group reaches over."""
        return self.group * self.stride


def communication_of(
    job: Job, parameters: list[Parameter], root: Unit, blocks: list[Unit]
) -> list[Collective]:
    """List what a rank takes part in during one step. Scalars are left out."""
    if not job.sharded:
        return []
    found = [*_memory(job), *_dense(job, root, blocks), *_tensor(job, parameters)]
    return [each for each in found if each.group > 1 and each.payload]


def _memory(job: Job) -> Iterator[Collective]:
    memory, layout = job.memory, job.layout
    if memory is None:
        return
    group, tokens = layout.memory, job.own_tokens
    reads = len(memory.layers) * job.run.train.accumulate
    forwards = reads * (2 if job.checkpointing else 1)
    # Every exchange is made for two halves of the tokens, so that one travels while the other is
    # read. What that hides is not counted on.
    parts = min(2, tokens)
    slots = tokens * memory.reads * (INT32 + job.sent_weight_bytes)
    yield Collective(
        "memory all-gather", GATHER, group, 1, forwards * slots, 2 * parts * forwards, False
    )
    forth = forwards * tokens * group * job.columns
    back = reads * tokens * job.sizes.value_dim
    yield Collective(
        "memory all-to-all", ALL_TO_ALL, group, 1, (forth + back) * job.read_bytes,
        parts * (forwards + reads), False,
    )  # fmt: skip
    dots = reads * job.group_tokens * memory.reads * FP32
    yield Collective("memory reduce-scatter", REDUCE_SCATTER, group, 1, dots, parts * reads, False)
    if job.needs_row_sums:
        rows = job.tables * job.stepped_rows
        yield Collective("memory all-reduce", ALL_REDUCE, group, 1, rows * FP32, job.tables, False)
    factors, sums = exchange_bytes(job)
    if factors <= sums:
        own = job.tables * job.reads_of_table * job.factor_bytes(INT32)
        yield Collective(
            "table replicas", GATHER, job.replicas, group, own, 3 * parts * reads, False
        )
    else:
        dense = job.tables * memory.num_slots * (FP32 * job.columns + 1)
        yield Collective(
            "table replicas", ALL_REDUCE, job.replicas, group, dense, 2 * job.tables, False
        )


def _dense(job: Job, root: Unit, blocks: list[Unit]) -> Iterator[Collective]:
    layout, parts = job.layout, job.run.train.accumulate
    shard, stride = layout.shard, layout.tensor
    # Blocks are gathered for the forward and again for the backward pass, the root stays.
    gathered = FP32 * (root.shard + 2 * sum(block.shard for block in blocks))
    units = 1 + len(blocks)
    yield Collective(
        "dense all-gather", GATHER, shard, stride, parts * gathered,
        parts * (units + len(blocks)), True,
    )  # fmt: skip
    own = FP32 * (root.shard + sum(block.shard for block in blocks))
    yield Collective(
        "dense reduce-scatter", REDUCE_SCATTER, shard, stride, parts * own * shard, parts * units,
        True,
    )  # fmt: skip
    yield Collective(
        "dense all-reduce", ALL_REDUCE, layout.replicate, shard * stride, parts * own,
        parts * units, True,
    )  # fmt: skip


def _tensor(job: Job, parameters: list[Parameter]) -> Iterator[Collective]:
    group, parts, memory = job.layout.tensor, job.run.train.accumulate, job.memory
    t, width, blocks = job.tokens, job.shape.hidden_size, job.shape.num_hidden_layers
    with_memory = 0 if memory is None else len(memory.layers)
    has_feed_forward = memory is None or memory.placement == "beside"
    feed_forwards = blocks if has_feed_forward else blocks - with_memory
    forwards = 2 if job.checkpointing else 1
    # A recomputation stops before the last product of a block, whose sum is therefore not made.
    repeated_last = 0 if memory is None else (with_memory if has_feed_forward else 0)
    sums = blocks * forwards + feed_forwards + (repeated_last if job.checkpointing else 0)
    # Each of q, k, v, gate and up has a sum of its own for the gradient of its input, in fp32.
    back = 3 * blocks + 2 * feed_forwards
    payload = t * width * (sums * job.act_bytes + back * FP32)
    count = sums + back
    gathers, gathered = 0, 0
    if not job.shape.tie_word_embeddings:
        # Embeddings forward, and the gradient of the head's input.
        payload, count = payload + 2 * t * width * FP32, count + 2
        gathers, gathered = 1, t * job.vocab // group * job.act_bytes
    shared = sum(p.shard_numel(group, job.layout.shard) for p in parameters if p.in_memory)
    payload = parts * payload + FP32 * shared
    shares = sum(1 for p in parameters if p.in_memory)
    yield Collective(
        "tensor all-reduce", ALL_REDUCE, group, 1, payload, parts * count + shares, False
    )
    if memory is not None:
        one = job.own_tokens * width
        out = job.act_bytes if memory.gate == "silu" else FP32
        gathered += with_memory * one * (out + FP32)
        gathers += 2 * with_memory
    yield Collective(
        "tensor all-gather", GATHER, group, 1, parts * gathered, parts * gathers, False
    )
