"""Sorting of LANES short lists at once, for FIND on the CPU.

A list is a column of an array [room, LANES], a candidate one number: its score in the upper half,
its index in the lower, read as fp64, which orders such numbers by score. The upper half is raised
by one step of fp64's exponent: a denormal might be taken for zero. A sorting network exchanges
whole rows of the array, so that LANES lists are sorted without a branch.
"""

from functools import cache

import numpy as np

from memory_layers.ops._numba.compile import helper

# One step of fp64's exponent in the upper half of a number.
_RAISE = np.uint32(0x00100000)


@cache
def network(room: int, wanted: tuple[int, ...]) -> np.ndarray:
    """Return the exchanges that sort `room` rows, as far as the wanted rows need it.

    Batcher's odd-even merge sort (Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M).

    Args:
        room: Rows, a power of two.
        wanted: Rows of the result that matter, the largest numbers first.

    Returns:
        [exchanges, 2] int64, pairs of rows. The larger number goes to the first.
    """
    pairs = []
    p = room // 2
    while p >= 1:
        q, r, d = room // 2, 0, p
        while True:
            pairs += [(i, i + d) for i in range(room - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
    live, kept = set(wanted), []
    for pair in reversed(pairs):
        if live & set(pair):
            live |= set(pair)
            kept.append(pair)
    return np.array(kept[::-1], np.int64).reshape(-1, 2)


@cache
def staircase(k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each rank i < k, how many ranks j can matter, and the last j of k pairs.

    The pair (i, j) has (i + 1) * (j + 1) - 1 pairs that are at least as good, so it can be among
    the best k only if (i + 1) * (j + 1) <= k. And k pairs are at least as good as the pair (i, j)
    where (i + 1) * (j + 1) >= k.
    """
    ranks = np.arange(1, k + 1)
    return k // ranks, -(-k // ranks) - 1


@helper
def pack(score, index):
    """Put a score and an index below 2^32 into one number. NaN is above all, as for torch.topk."""
    bits = np.uint32(0x7FC00000) if score != score else np.float32(score).view(np.uint32)
    upper = np.uint64(np.uint32(bits + _RAISE)) << np.uint64(32)
    return np.uint64(upper | np.uint64(index)).view(np.float64)


@helper
def score_of(packed):
    """Return the score of a packed number."""
    upper = np.uint32(np.float64(packed).view(np.uint64) >> np.uint64(32))
    return np.uint32(upper - _RAISE).view(np.float32)


@helper
def index_of(packed):
    """Return the index of a packed number."""
    return np.int64(np.float64(packed).view(np.uint64) & np.uint64(0xFFFFFFFF))
