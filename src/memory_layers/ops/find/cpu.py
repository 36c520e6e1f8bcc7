"""FIND on the CPU: one matrix product for the scores, then selection and merge in Numba."""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from memory_layers.ops.numba_rows import FASTMATH, as_array, follow_torch_threads

# Tokens that one thread takes at a time: enough to pay for its scratch space.
BLOCK_TOKENS = 16
# Tokens whose scores are held at once: bounds the [tokens, H, 2, M] scores to a few MiB.
SCORE_NUMBERS = 2**21


@njit(cache=True)
def _rank_sort(values, labels, count, out_values, out_labels):  # noqa: ANN001, ANN202
    """Sort in falling order, equal values in the order they came: each value counts its betters.

    Quadratic and without branches: faster than insertion for the few dozen values that come here.
    """
    present = values[:count]
    for a in range(count):
        value = present[a]
        rank = np.int32(0)
        for b in range(present.shape[0]):
            rank = np.int32(rank + np.int32(1 if present[b] > value else 0))
        earlier = present[:a]
        for b in range(earlier.shape[0]):
            rank = np.int32(rank + np.int32(1 if earlier[b] == value else 0))
        out_values[rank] = value
        out_labels[rank] = labels[a]


@njit(cache=True)
def _lower_bound(scores, maxima, ranked, labels):  # noqa: ANN001, ANN202
    """Return a number that at least k scores reach: the k-th largest of 2 k group maxima."""
    groups = maxima.shape[0]
    if scores.shape[0] < 2 * groups:
        return np.float32(-np.inf)
    for g in range(groups):
        maxima[g] = scores[g]
    for low in range(groups, scores.shape[0] - groups + 1, groups):
        for g in range(groups):
            maxima[g] = max(maxima[g], scores[low + g])
    _rank_sort(maxima, labels, groups, ranked, labels)
    return ranked[groups // 2 - 1]


@njit(cache=True)
def _select(scores, k, scratch, scratch_labels, best, index):  # noqa: ANN001, ANN202
    """Fill best and index with the k largest scores in falling order, the lower index first."""
    bound = _lower_bound(scores, scratch[0, : 2 * k], scratch[1], scratch_labels[1])
    values, labels = scratch[0], scratch_labels[0]
    count = 0
    for m in range(scores.shape[0]):
        values[count] = scores[m]
        labels[count] = m
        count += np.int64(scores[m] > bound)
    m = 0
    while count < k and m < scores.shape[0]:
        if scores[m] == bound:
            values[count] = bound
            labels[count] = m
            count += 1
        m += 1
    if count < k:
        # Only NaN compares as neither above nor equal: it must reach the scores, not vanish here.
        for m in range(k):
            best[m] = np.float32(np.nan)
            index[m] = m
        return
    _rank_sort(values, labels, count, best, index)


@njit(parallel=True, cache=True)
def _select_pairs_kernel(half_scores, scores, slots):  # noqa: ANN001, ANN202
    heads, _, tokens, num_sub_keys = half_scores.shape
    k = scores.shape[2]
    pairs = 0
    for i in range(k):
        pairs += k // (i + 1)
    room = max(num_sub_keys + 1, 2 * k, pairs)
    for block in prange((tokens + BLOCK_TOKENS - 1) // BLOCK_TOKENS):
        scratch = np.empty((2, room), np.float32)
        labels = np.zeros((2, room), np.int64)
        best = np.empty((3, room), np.float32)
        index = np.zeros((3, room), np.int64)
        for t in range(block * BLOCK_TOKENS, min((block + 1) * BLOCK_TOKENS, tokens)):
            for h in range(heads):
                _select(half_scores[h, 0, t], k, scratch, labels, best[0], index[0])
                _select(half_scores[h, 1, t], k, scratch, labels, best[1], index[1])
                # The pair of ranks (i, j) has (i + 1) * (j + 1) - 1 pairs that are at least as
                # good, so it can be among the best k only if (i + 1) * (j + 1) <= k.
                count = 0
                has_nan = False
                for i in range(k):
                    for j in range(k // (i + 1)):
                        pair = best[0, i] + best[1, j]
                        has_nan |= pair != pair
                        scratch[0, count] = pair
                        labels[0, count] = index[0, i] * num_sub_keys + index[1, j]
                        count += 1
                if has_nan:
                    best[2, :k] = np.float32(np.nan)
                    index[2, :k] = labels[0, :k]
                else:
                    _rank_sort(scratch[0], labels[0], count, best[2], index[2])
                for n in range(k):
                    scores[t, h, n] = best[2, n]
                    slots[t, h, n] = index[2, n]


@njit(parallel=True, cache=True, fastmath=FASTMATH)
def _backward_query_kernel(d_scores, slots, sub_keys, d_query):  # noqa: ANN001, ANN202
    num_sub_keys = sub_keys.shape[2]
    for t in prange(d_query.shape[0]):
        for h in range(d_query.shape[1]):
            for p in range(2):
                total = d_query[t, h, p]
                total[:] = np.float32(0)
                for n in range(slots.shape[2]):
                    slot = slots[t, h, n]
                    m = slot // num_sub_keys if p == 0 else slot % num_sub_keys
                    key = sub_keys[h, p, m]
                    d_score = d_scores[t, h, n]
                    for c in range(total.shape[0]):
                        total[c] += d_score * key[c]


@njit(parallel=True, cache=True, fastmath=FASTMATH)
def _backward_keys_kernel(d_scores, slots, query, d_sub_keys):  # noqa: ANN001, ANN202
    heads, _, num_sub_keys, _ = d_sub_keys.shape
    # A thread owns one half of one head, so no two threads write one sub-key.
    for block in prange(heads * 2):
        h = block // 2
        p = block % 2
        for t in range(slots.shape[0]):
            half = query[t, h, p]
            for n in range(slots.shape[2]):
                slot = slots[t, h, n]
                m = slot // num_sub_keys if p == 0 else slot % num_sub_keys
                total = d_sub_keys[h, p, m]
                d_score = d_scores[t, h, n]
                for c in range(half.shape[0]):
                    total[c] += d_score * half[c]


def product_key_topk(query: Tensor, sub_keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Best k of each half, then the best k of the pairs that can still be among the best k."""
    follow_torch_threads()
    tokens, heads, _, _ = query.shape
    scores = torch.empty(tokens, heads, k)
    slots = torch.empty(tokens, heads, k, dtype=torch.int64)
    keys = sub_keys.float().transpose(-1, -2)  # [H, 2, C, M]
    step = max(1, SCORE_NUMBERS // (heads * 2 * sub_keys.shape[2]))
    for low in range(0, tokens, step):
        part = slice(low, low + step)
        half_scores = query[part].float().permute(1, 2, 0, 3) @ keys  # [H, 2, T, M]
        _select_pairs_kernel(as_array(half_scores), as_array(scores[part]), as_array(slots[part]))
    return scores, slots


def product_key_topk_backward(
    d_scores: Tensor, slots: Tensor, query: Tensor, sub_keys: Tensor
) -> tuple[Tensor, Tensor]:
    """Each selected score passes its gradient to one sub-key of each half, and to the query."""
    follow_torch_threads()
    d_query = torch.empty(query.shape)
    d_sub_keys = torch.zeros(sub_keys.shape)
    d_scores_array = as_array(d_scores.float().contiguous())
    slots_array = as_array(slots.contiguous())
    _backward_query_kernel(
        d_scores_array, slots_array, as_array(sub_keys.float().contiguous()), as_array(d_query)
    )
    _backward_keys_kernel(
        d_scores_array, slots_array, as_array(query.float().contiguous()), as_array(d_sub_keys)
    )
    return d_query.to(query.dtype), d_sub_keys.to(sub_keys.dtype)
