"""The inner loops of the kernels in plain Numba: says what each does, and runs anywhere.

intrinsics.py has the same functions as vector code, which is faster. See compile.py for the choice.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from memory_layers.ops._numba.compile import helper
from memory_layers.ops._numba.rows import as_array, as_float32

# Lists that are sorted together, and fp32 numbers of one vector.
LANES = 8
# Scores looked at together.
MASK_BITS = 64


def parts(tensors: Sequence[Tensor]) -> tuple[np.ndarray, list[int]]:
    """Return tensors of one type as what `part` reads them from, and the place of each in it.

    The tensors must live until the kernel has run.
    """
    joined = torch.cat([tensor.flatten() for tensor in tensors])
    return as_array(joined), list(accumulate((x.numel() for x in tensors[:-1]), initial=0))


@helper
def part(array, place, start, length):
    """Return `length` numbers of the tensor at a place, from its number `start` on."""
    return array[place + start : place + start + length]


@helper
def add_rows(table, slots, weights, total, first, end):
    """Add the sum of weights[e] * table[slots[e]], first <= e < end, to total."""
    for e in range(first, end):
        row, weight = table[slots[e]], weights[e]
        for v in range(total.shape[0]):
            total[v] += weight * as_float32(row[v])


@helper
def dot_rows(table, slots, vector, dots, first, end):
    """Set dots[e] = table[slots[e]] . vector, first <= e < end."""
    for e in range(first, end):
        row, dot = table[slots[e]], np.float32(0)
        for v in range(vector.shape[0]):
            dot += as_float32(row[v]) * vector[v]
        dots[e] = dot


@helper
def adamw_row(row, gradient, moments, _upcoming, numbers):
    """Step a row and its two moments, and perhaps ask for the arrays of the next row in between.

    Args:
        row: [V] fp32, changed in place.
        gradient: [V] fp32.
        moments: Pair of [V] fp32, first and second, changed in place.
        _upcoming: Triple of [V]: the next row and its moments.
        numbers: Step size, what is kept of the first moment, 1 - beta1, what is kept of the second,
            1 - beta2, its correction, eps, all fp32: see RowState.numbers.
    """
    first, second = moments
    step_size, keep1, rest1, keep2, rest2, correction, eps = numbers
    for v in range(row.shape[0]):
        first[v] = keep1 * first[v] + rest1 * gradient[v]
        second[v] = keep2 * second[v] + rest2 * gradient[v] * gradient[v]
        row[v] -= step_size * first[v] / (np.sqrt(second[v] * correction) + eps)


@helper
def exchange(lists, upper, lower):
    """Put the larger number of each column into row `upper`, the smaller into row `lower`.

    Args:
        lists: [room, LANES] fp32 or fp64, without NaN.
        upper: Row number.
        lower: Row number.
    """
    for lane in range(LANES):
        above, below = lists[upper, lane], lists[lower, lane]
        if below > above:
            lists[upper, lane], lists[lower, lane] = below, above


@helper
def group_maxima(scores, maxima):
    """Set maxima[g] to the largest of scores[g], scores[g + groups], ... that is not NaN.

    Args:
        scores: [M] fp32, at least as many as there are groups. Those after the last whole round of
            the groups are left out.
        maxima: [groups] fp32, a multiple of LANES.
    """
    groups = maxima.shape[0]
    maxima[:] = -np.inf
    for low in range(0, scores.shape[0] - groups + 1, groups):
        for g in range(groups):
            if scores[low + g] > maxima[g]:
                maxima[g] = scores[low + g]


@helper
def not_below(scores, first, bound):
    """Return a bit for each of MASK_BITS scores from `first` on: it reaches the bound or is NaN."""
    mask = np.uint64(0)
    for bit in range(MASK_BITS):
        if not scores[first + bit] < bound:
            mask |= np.uint64(1) << np.uint64(bit)
    return mask


@helper
def lowest_bit(mask):
    """Return the place of the lowest bit that is set."""
    place = 0
    while mask & np.uint64(1) == 0:
        mask >>= np.uint64(1)
        place += 1
    return place
