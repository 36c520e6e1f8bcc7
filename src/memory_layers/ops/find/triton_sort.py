"""Selection in registers for FIND in Triton: scores as integers, and a bitonic top-k of them.

A score and a label, such as the sub-key it belongs to, travel as one int64, an entry. To be sorted
it is mapped to another int64 that compares as the score does. NaN counts as the largest score, as
in torch.topk.

tl.topk does the same work, but its signature differs between the Triton versions that we support,
and under the interpreter it takes a hundred times as long: its exchange is a reduction by xor,
which is interpreted number by number. Here the exchange is a sum, which wraps without loss.
"""

import triton
import triton.language as tl

EMPTY = tl.constexpr(-(2**63))  # sorts behind every score
NAN_BITS = tl.constexpr(0x7FC00000)


@triton.jit
def rank_of(scores):
    """Map fp32 to int32 in the same order."""
    bits = tl.where(scores == scores, scores.to(tl.int32, bitcast=True), NAN_BITS)
    # Negative floats sort backwards as integers: flip all but their sign.
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def score_of(rank):
    """Undo rank_of."""
    return (rank ^ ((rank >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def entry_of(scores, labels):
    """Join scores and labels in [0, 2**31): two registers side by side, so it costs nothing."""
    return (scores.to(tl.int32, bitcast=True).to(tl.int64) << 32) | labels.to(tl.int64)


@triton.jit
def entry_score(entries):
    return (entries >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def entry_label(entries):
    return entries.to(tl.int32)


@triton.jit
def sortable(entries):
    """Map entries to int64 in the order of their scores, of equal scores the lower label first."""
    rank = rank_of(entry_score(entries)).to(tl.int64)
    return (rank << 32) | (0x7FFFFFFF - entry_label(entries)).to(tl.int64)


@triton.jit
def entry_from(sorted_entries):
    """Undo sortable."""
    return entry_of(
        score_of((sorted_entries >> 32).to(tl.int32)), 0x7FFFFFFF - sorted_entries.to(tl.int32)
    )


@triton.jit
def _exchange(x, DISTANCE: tl.constexpr, RUN: tl.constexpr):
    """Compare x[r, n] with x[r, n + DISTANCE], and order runs of RUN falling, rising, falling."""
    ROWS: tl.constexpr = x.shape[0]
    BLOCKS: tl.constexpr = x.shape[1] // (2 * DISTANCE)
    y = x.reshape(ROWS, BLOCKS, 2, DISTANCE)
    other = tl.sum(y, 2, keep_dims=True) - y
    rising = (tl.arange(0, BLOCKS) // (RUN // (2 * DISTANCE))) % 2
    takes_smaller = (rising[:, None] ^ tl.arange(0, 2)[None, :])[None, :, :, None] == 1
    y = tl.where((other > y) ^ takes_smaller, other, y)
    return y.reshape(ROWS, BLOCKS * 2 * DISTANCE)


@triton.jit
def largest(x, LOG_K: tl.constexpr, HALVINGS: tl.constexpr):
    """Return the largest 2**LOG_K integers of each row, falling.

    Args:
        x: [R, 2**(LOG_K + HALVINGS)] int32 or int64.
        LOG_K: At least 1.
        HALVINGS: How often two sorted runs become one.
    """
    K: tl.constexpr = 2**LOG_K
    for log_run in tl.static_range(1, LOG_K + 1):
        for step in tl.static_range(1, log_run + 1):
            x = _exchange(x, 2 ** (log_run - step), 2**log_run)
    # Of a falling and a rising run, the larger numbers, place by place, are the largest of both.
    for halving in tl.static_range(1, HALVINGS + 1):
        x = tl.max(x.reshape(x.shape[0], 2 ** (HALVINGS - halving), 2, K), 2)
        x = x.reshape(x.shape[0], 2 ** (HALVINGS - halving) * K)
        for step in tl.static_range(1, LOG_K + 1):
            x = _exchange(x, 2 ** (LOG_K - step), K)
    return x
