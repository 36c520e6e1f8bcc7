"""FIND on the CPU: one matrix product for the scores, then selection and merge in Numba.

Both halves of LANES tokens' scores are selected at once, and merged at once: see cpu_sort.py.
"""

import numpy as np
import torch
from numba import prange
from torch import Tensor

from memory_layers.ops._numba.compile import Kernel, follow_torch_threads, helper, inner_loops
from memory_layers.ops._numba.plain import LANES, MASK_BITS
from memory_layers.ops._numba.rows import as_array
from memory_layers.ops.find.cpu_sort import index_of, network, pack, score_of, staircase

loops = inner_loops()

# Parts of the sub-keys of a half that threads share where there is one token.
PARTS = 2
# Scores held at once, [H, 2, tokens, M] numbers: 8 MiB stay in the last cache, and a product with
# fewer tokens is slower.
SCORE_NUMBERS = 2**21


@helper
def _sort(lists, exchanges):
    for e in range(exchanges.shape[0]):
        loops.exchange(lists, exchanges[e, 0], exchanges[e, 1])


@helper
def _keep_best(lists, lane, k, exchanges):
    """Sort a list that is full, so that it holds its k best, and return the worst of these."""
    _sort(lists, exchanges)
    for n in range(k, lists.shape[0]):
        lists[n, lane] = -np.inf
    return score_of(lists[k - 1, lane])


@helper
def _candidates(scores, bound, lists, lane, k, exchanges):
    """Fill a list with all scores that may be among the k best: they reach the bound, or are NaN.

    A list that is full is cut to its k best, whose worst is the new bound.
    """
    room = lists.shape[0]
    count = 0
    whole = scores.shape[0] - scores.shape[0] % MASK_BITS
    for low in range(0, whole, MASK_BITS):
        mask = loops.not_below(scores, low, bound)
        while mask != 0:
            m = low + loops.lowest_bit(mask)
            mask &= mask - np.uint64(1)
            if count == room:
                bound = _keep_best(lists, lane, k, exchanges)
                count = k
            lists[count, lane] = pack(scores[m], m)
            count += 1
    for m in range(whole, scores.shape[0]):
        if not scores[m] < bound:
            if count == room:
                bound = _keep_best(lists, lane, k, exchanges)
                count = k
            lists[count, lane] = pack(scores[m], m)
            count += 1


@helper
def _pairs(first, second, lane, stairs, lists, exchanges):
    """Fill a list with the sums of ranks (i, j) that may be among the k best."""
    widths, corners = stairs
    room, k = lists.shape[0], widths.shape[0]
    bound = np.float32(-np.inf)
    for i in range(k):
        corner = score_of(first[i, lane]) + score_of(second[corners[i], lane])
        bound = corner if corner > bound else bound
    count = 0
    for i in range(k):
        score = score_of(first[i, lane])
        for j in range(widths[i]):
            pair = score + score_of(second[j, lane])
            if pair < bound:
                break
            if count == room:
                bound = _keep_best(lists, lane, k, exchanges)
                count = k
            lists[count, lane] = pack(pair, i * k + j)
            count += 1


@helper
def _select_block(half_scores, h, start, bounding, sorting, stairs, scores, slots):
    """Select for LANES tokens of one head."""
    num_sub_keys, k = half_scores.shape[3], scores.shape[2]
    groups, room = bounding[1], sorting[1]
    lanes = min(LANES, half_scores.shape[2] - start)
    line = np.empty(groups, np.float32)
    maxima = np.zeros((groups, LANES), np.float32)
    lists = np.full((3, room, LANES), -np.inf)
    for half in range(2):
        bounded = num_sub_keys >= 2 * groups
        if bounded:
            for lane in range(lanes):
                loops.group_maxima(half_scores[h, half, start + lane], line)
                for g in range(groups):
                    maxima[g, lane] = line[g]
            _sort(maxima, bounding[0])
        for lane in range(lanes):
            half_row = half_scores[h, half, start + lane]
            bound = maxima[k - 1, lane] if bounded else np.float32(-np.inf)
            _candidates(half_row, bound, lists[half], lane, k, sorting[0])
        _sort(lists[half], sorting[0])
    for lane in range(lanes):
        _pairs(lists[0], lists[1], lane, stairs, lists[2], sorting[0])
    _sort(lists[2], sorting[0])
    for lane in range(lanes):
        for n in range(k):
            packed = lists[2, n, lane]
            rank = index_of(packed)
            i, j = index_of(lists[0, rank // k, lane]), index_of(lists[1, rank % k, lane])
            scores[start + lane, h, n] = score_of(packed)
            slots[start + lane, h, n] = i * num_sub_keys + j


@helper
def _score_half(sub_keys, places, query, n, half_scores):
    """Score a part of the sub-keys of one half of one head for one token."""
    count = half_scores.shape[1]
    half, part = n // PARTS, n % PARTS
    low, high = count * part // PARTS, count * (part + 1) // PARTS
    loops.dot_rows(sub_keys[half], places, query[half], half_scores[half], low, high)


@Kernel
def _score_one_kernel(sub_keys, places, query, half_scores):
    for n in prange(half_scores.shape[0] * PARTS):
        _score_half(sub_keys, places, query, n, half_scores)


@Kernel
def _select_pairs_kernel(half_scores, bounding, sorting, stairs, scores, slots):
    blocks = (half_scores.shape[2] + LANES - 1) // LANES
    for block in prange(blocks * half_scores.shape[0]):
        h, start = block // blocks, block % blocks * LANES
        _select_block(half_scores, h, start, bounding, sorting, stairs, scores, slots)


@helper
def _query_gradient(d_scores, slots, sub_keys, d_query):
    """Add the gradient of one token, [H, 2, C]: of each half a weighted sum of K sub-keys."""
    num_sub_keys, k = sub_keys.shape[2], slots.shape[1]
    halves = np.empty((2, k), np.int64)
    for h in range(d_query.shape[0]):
        for n in range(k):
            halves[0, n], halves[1, n] = slots[h, n] // num_sub_keys, slots[h, n] % num_sub_keys
        for p in range(2):
            loops.add_rows(sub_keys[h, p], halves[p], d_scores[h], d_query[h, p], 0, k)


@Kernel
def _backward_query_kernel(d_scores, slots, sub_keys, d_query):
    for t in prange(d_query.shape[0]):
        _query_gradient(d_scores[t], slots[t], sub_keys, d_query[t])


@helper
def _keys_gradient(h, p, d_scores, slots, query, d_sub_keys):
    """Add the gradient of one half of one head, [M, C]."""
    num_sub_keys = d_sub_keys.shape[0]
    for t in range(slots.shape[0]):
        for n in range(slots.shape[2]):
            slot = slots[t, h, n]
            total = d_sub_keys[slot // num_sub_keys if p == 0 else slot % num_sub_keys]
            factor, half = d_scores[t, h, n], query[t, h, p]
            for c in range(half.shape[0]):
                total[c] += factor * half[c]


@Kernel
def _backward_keys_kernel(d_scores, slots, query, d_sub_keys):
    # A thread owns one half of one head, so no two threads write one sub-key.
    for block in prange(d_sub_keys.shape[0] * 2):
        h, p = block // 2, block % 2
        _keys_gradient(h, p, d_scores, slots, query, d_sub_keys[h, p])


def select_pairs(half_scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Select the best k of the M * M sums of two half-scores.

    Args:
        half_scores: [H, 2, T, M] fp32.
        k: K.

    Returns:
        scores: [T, H, K] fp32, falling.
        slots: [T, H, K] int64.
    """
    follow_torch_threads()
    heads, _, tokens, _ = half_scores.shape
    scores = torch.empty(tokens, heads, k)
    slots = torch.empty(tokens, heads, k, dtype=torch.int64)
    _select(half_scores.contiguous(), scores, slots)
    return scores, slots


def _select(half_scores: Tensor, scores: Tensor, slots: Tensor) -> None:
    k = scores.shape[2]
    # Twice k leaves room for the candidates that a bound which k scores reach lets through.
    twice = 2 * 2 ** (k - 1).bit_length()
    groups, room = max(LANES, twice), max(64, twice)
    _select_pairs_kernel(
        as_array(half_scores),
        (network(groups, (k - 1,)), groups),
        (network(room, tuple(range(k))), room),
        staircase(k),
        as_array(scores),
        as_array(slots),
    )


def _scores_of_one(query: Tensor, sub_keys: Tensor) -> Tensor:
    """Score all sub-keys for one token, [H, 2, 1, M]: a product of matrices takes longer."""
    heads, _, count, half_dim = sub_keys.shape
    half_scores = torch.empty(2 * heads, count)
    _score_one_kernel(
        as_array(sub_keys.contiguous()).reshape(2 * heads, count, half_dim),
        np.arange(count),
        as_array(query.float().contiguous()).reshape(2 * heads, half_dim),
        as_array(half_scores),
    )
    return half_scores.view(heads, 2, 1, count)


def product_key_topk(query: Tensor, sub_keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Best k of each half, then the best k of the pairs that can still be among the best k."""
    follow_torch_threads()
    tokens, heads, _, _ = query.shape
    scores = torch.empty(tokens, heads, k)
    slots = torch.empty(tokens, heads, k, dtype=torch.int64)
    if tokens == 1:
        _select(_scores_of_one(query, sub_keys), scores, slots)
        return scores, slots
    keys = sub_keys.float().transpose(-1, -2)  # [H, 2, C, M]
    step = max(1, SCORE_NUMBERS // (heads * 2 * sub_keys.shape[2]))
    for low in range(0, tokens, step):
        part = slice(low, low + step)
        half_scores = query[part].float().permute(1, 2, 0, 3) @ keys  # [H, 2, T, M]
        _select(half_scores, scores[part], slots[part])
    return scores, slots


def product_key_topk_backward(
    d_scores: Tensor, slots: Tensor, query: Tensor, sub_keys: Tensor
) -> tuple[Tensor, Tensor]:
    """Each selected score passes its gradient to one sub-key of each half, and to the query."""
    follow_torch_threads()
    d_query = torch.zeros(query.shape)
    d_sub_keys = torch.zeros(sub_keys.shape)
    # A copy: numpy would pin the storage of the parameter itself, which FSDP2 must be able to free.
    own_keys = as_array(sub_keys.to(torch.float32, copy=True).contiguous())
    d_scores_array = as_array(d_scores.float().contiguous())
    slots_array = as_array(slots.contiguous())
    _backward_query_kernel(d_scores_array, slots_array, own_keys, as_array(d_query))
    _backward_keys_kernel(
        d_scores_array, slots_array, as_array(query.float().contiguous()), as_array(d_sub_keys)
    )
    return d_query.to(query.dtype), d_sub_keys.to(sub_keys.dtype)
