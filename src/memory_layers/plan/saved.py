"""The bytes that the operations of a block save for the backward pass, by their code.

That of Llama in transformers, with sdpa attention, and of the memory layer of this package. The
residual stream is fp32 also under bf16 autocast, which copies the input of every product.
tests/plan compares these sums with the live bytes of real steps.
"""

from dataclasses import dataclass

from memory_layers.plan.job import BF16, FP32, INT32, INT64, Job


@dataclass(frozen=True)
class Saved:
    """Bytes that one half of a block keeps until its backward pass, and needs during it.

    Attributes:
        kept: From forward to backward, without bf16 copies of weights.
        transient: Added at the worst moment of the backward pass, without gradients of weights.
    """

    kept: int
    transient: int


def _norm(job: Job) -> int:
    """Return what an RMSNorm keeps: its input, the normalised input and one number a token."""
    return job.tokens * FP32 * (2 * job.shape.hidden_size + 1)


def _inputs(job: Job, tokens: int, products: int) -> int:
    """Return what products of one hidden state keep: a bf16 copy each, or the fp32 state once."""
    width = job.shape.hidden_size
    return tokens * width * (products * BF16 if job.mixed else FP32)


def attention(job: Job) -> Saved:
    """Return what norm and attention of a block save."""
    shape, a, t = job.shape, job.act_bytes, job.tokens
    tensor, width = job.layout.tensor, job.shape.hidden_size
    # With a mask, keys and values are repeated for all heads.
    keys = width if job.packed else job.key_value_dim
    kept = _norm(job) + _inputs(job, t, 3)
    kept += a * t * (2 * width + 2 * keys) // tensor  # query, result, keys, values
    kept += FP32 * t * shape.num_attention_heads // tensor  # logarithms of the softmax's sums
    if job.packed:
        kept += a * t * job.run.train.seq_len  # the mask as numbers, in each block
    # Gradients of the block's output and of the result, then of query, keys and values.
    transient = FP32 * t * width + a * t * (width + 2 * keys) // tensor
    transient += FP32 * t * (width + keys) // tensor  # rotated in fp32
    return Saved(kept, transient)


def feed_forward(job: Job) -> Saved:
    """Return what norm and feed-forward part of a block save."""
    t, a = job.tokens, job.act_bytes
    hidden = a * t * job.shape.intermediate_size // job.layout.tensor
    kept = _norm(job) + _inputs(job, t, 2) + 4 * hidden
    # A gradient of the output, and three of hidden states when one of the four kept is free.
    return Saved(kept, FP32 * t * job.shape.hidden_size + 2 * hidden)


def memory(job: Job) -> Saved:
    """Return what norm and memory layer of a block save."""
    config, sizes, t, a = job.memory, job.sizes, job.own_tokens, job.act_bytes
    assert config is not None
    queries = t * config.heads * sizes.key_dim
    kept = _norm(job) + _inputs(job, t, 1) + a * queries
    kept += t * config.reads * (INT64 + FP32)  # slots and softmax
    if config.qk_norm:
        halves = 2 * config.heads
        kept += 2 * FP32 * queries + FP32 * t * halves
        kept += FP32 * halves * config.sub_keys * (sizes.key_dim // 2 + 1)
    if job.sharded:
        kept += job.group_tokens * config.reads * (INT32 + job.sent_weight_bytes)
    kept += _gate(job)
    value = t * sizes.value_dim
    # Gradients of the block's output, of the gate's factors and of the read, and the read itself
    # as columns and as rows.
    transient = FP32 * job.tokens * job.shape.hidden_size + (a + 2 * FP32) * value
    if job.sharded:
        transient += 2 * job.read_bytes * value + FP32 * job.group_tokens * config.reads
    else:
        transient += FP32 * t * config.reads
    return Saved(kept, transient)


def _gate(job: Job) -> int:
    config, t, a = job.memory, job.own_tokens, job.act_bytes
    assert config is not None
    value, width = t * job.sizes.value_dim, t * job.shape.hidden_size
    copied = a * width if job.mixed else 0
    if config.gate == "silu":
        return copied + 3 * a * value + FP32 * value  # before and after silu, product, read
    kept = 0
    if config.gate == "sigmoid":
        result = a * width if job.has_map else FP32 * width
        kept += copied + a * t + result
    if job.has_map:
        kept += a * value
    return kept


def block(job: Job, index: int) -> tuple[Saved, Saved]:
    """Return what the two halves of a block save: attention, and what follows it.

    Args:
        job: The run and its layout.
        index: Of the block.
    """
    config = job.memory
    if config is None or index not in config.layers:
        return attention(job), feed_forward(job)
    second = memory(job)
    if config.placement == "beside":
        beside = feed_forward(job)
        norm = _norm(job) + (0 if job.mixed else _inputs(job, job.tokens, 1))
        kept = second.kept + beside.kept - norm
        second = Saved(kept, max(second.transient, beside.transient))
    return attention(job), second


def around(job: Job) -> int:
    """Return what all blocks share: the batch, the rotary embedding and the mask."""
    t = job.tokens
    mask = t * job.run.train.seq_len if job.packed else 0
    return 3 * INT64 * t + 2 * FP32 * t * job.head_dim + mask


def final(job: Job) -> int:
    """Return what the final norm and the head save."""
    return _norm(job) + _inputs(job, job.tokens, 1)


def logits(job: Job) -> tuple[int, int]:
    """Return bytes of the logits as the head returns them, and of one fp32 copy of them."""
    numbers = job.rows * (job.run.train.seq_len - 1) * job.vocab
    return job.act_bytes * job.tokens * job.vocab, FP32 * numbers
