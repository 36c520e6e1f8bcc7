"""Floating-point operations of a token, and the memory traffic of a step on a rank."""

from collections.abc import Sequence
from dataclasses import dataclass

from memory_layers.plan.job import FP32, Job
from memory_layers.plan.parameters import Parameter, Unit


@dataclass(frozen=True)
class Flops:
    """Operations of a token, a multiply-add counted as two. The optimizer is not counted.

    Attributes:
        forward: Of matrix products, FIND and READ, forward: what torch's FlopCounterMode counts.
        training: The same, forward and backward.
        attention_forward: Of attention over L tokens, as if there were no causal mask.
        attention_training: The same, forward and backward, which computes the scores again.
        reads: Part of `training` that READ and the gradient of FIND take: they are bound by memory
            traffic and do not use matrix units.
        recomputed: What gradient checkpointing runs a second time, attention included.
    """

    forward: float
    training: float
    attention_forward: float
    attention_training: float
    reads: float
    recomputed: float

    @property
    def executed(self) -> float:
        """Operations that matrix units run for a token in training."""
        return self.training + self.attention_training - self.reads + self.recomputed


def flops_of(job: Job, parameters: list[Parameter]) -> Flops:
    """Count the operations of a token, as torch.utils.flop_counter counts them."""
    memory, shape = job.memory, job.shape
    # The one matrix of tied embeddings counts: the head is the linear map among its two users.
    matrices = 2 * sum(p.numel for p in parameters if p.is_matrix and len(p.shape) == 2)
    find = read = backward = 0
    if memory is not None:
        layers, half = len(memory.layers), job.sizes.key_dim // 2
        find = layers * 2 * (2 * memory.heads * half) * memory.sub_keys
        read = layers * 2 * memory.reads * job.sizes.value_dim
        # Of each selected score, to both halves of query and sub-key. And rows for the weights.
        backward = layers * 2 * 2 * 2 * memory.reads * half + read
    scores = 2 * shape.num_attention_heads * job.head_dim * job.run.train.seq_len
    attention = shape.num_hidden_layers * 2 * scores
    forward = matrices + find + read
    head = 2 * job.vocab * shape.hidden_size
    again = forward - read - head + attention - _last_products(job) if job.checkpointing else 0
    return Flops(
        forward=forward,
        training=forward + 2 * matrices + backward,
        attention_forward=attention,
        attention_training=3.5 * attention,
        reads=read + backward,
        recomputed=again,
    )


def _last_products(job: Job) -> int:
    """Operations of the last product of each block: a recomputation stops before it."""
    memory, width = job.memory, job.shape.hidden_size
    with_memory = 0 if memory is None else len(memory.layers)
    plain = job.shape.num_hidden_layers - with_memory
    total = plain * 2 * width * job.shape.intermediate_size
    # The scalar gate multiplies after its map, whose result it saves.
    if memory is not None and job.has_map and memory.gate != "sigmoid":
        total += with_memory * 2 * job.sizes.value_dim * width
    return total


@dataclass(frozen=True)
class Traffic:
    """Bytes that a step moves to and from the memory of a rank.

    Attributes:
        rows: Rows of value tables, for reads forward, backward and recomputed.
        row_step: Touched rows and their state, read and written by the optimizer.
        dense_step: Dense weights, gradients and moments, read and written by the optimizer.
        weights: Dense weights, read for each product, and their bf16 copies.
        activations: Written once, and read by the next operation and in the backward pass, and
            their gradients.
    """

    rows: float
    row_step: float
    dense_step: float
    weights: float
    activations: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.rows + self.row_step + self.dense_step + self.weights + self.activations


def traffic_of(job: Job, units: Sequence[Unit], kept: int) -> Traffic:
    """Estimate the memory traffic of a step on a rank.

    Args:
        job: The run and its layout.
        units: Dense parameters, as FSDP2 groups them.
        kept: Bytes of all activations of a micro-batch that the backward pass needs, as if none
            were recomputed.
    """
    memory, parts = job.memory, job.run.train.accumulate
    passes = 3 if job.checkpointing else 2
    rows = row_step = 0.0
    if memory is not None:
        one = job.group_tokens * memory.reads * job.columns * job.table_bytes
        rows = parts * passes * len(memory.layers) * one
        state = job.columns * job.table_bytes + job.row_state_bytes
        row_step = job.tables * 2 * job.stepped_rows * state
        if job.needs_row_sums:
            # Written, read and squared, read again, and read by the step.
            row_step += job.tables * 5 * job.stepped_rows * job.columns * FP32
    # fp32 weights are read to be copied, and a bf16 copy is written and read, or they are read.
    a_weight = FP32 + 2 * job.act_bytes if job.mixed else FP32
    return Traffic(
        rows=rows,
        row_step=row_step,
        dense_step=sum(unit.shard for unit in units) * 7 * FP32,
        weights=parts * sum(unit.numel for unit in units) * (passes * a_weight + 2 * FP32),
        activations=parts * kept * (7 if job.checkpointing else 5),
    )
