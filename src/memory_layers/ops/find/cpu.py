"""FIND on the CPU: one matrix product for the scores, then selection and merge in Numba."""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from memory_layers.ops.numba_rows import FASTMATH, as_array, follow_torch_threads

# Tokens whose scores are held at once: bounds the [tokens, H, 2, M] scores to a few MiB.
SCORE_NUMBERS = 2**21


@njit(cache=True)
def _insert(score, m, best, index, filled):  # noqa: ANN001, ANN202
    """Place a score in a list of falling order, after equal ones, dropping the last if full."""
    place = min(filled, best.shape[0] - 1)
    while place > 0 and not best[place - 1] >= score:
        best[place] = best[place - 1]
        index[place] = index[place - 1]
        place -= 1
    best[place] = score
    index[place] = m


@njit(cache=True)
def _lower_bound(scores, maxima, best, index):  # noqa: ANN001, ANN202
    """Return a number that at least k scores reach: the k-th largest of group maxima."""
    groups = maxima.shape[0]
    k = best.shape[0]
    if scores.shape[0] < 2 * groups:
        return np.float32(-np.inf)
    maxima[:] = scores[:groups]
    for low in range(groups, scores.shape[0] - groups + 1, groups):
        for g in range(groups):
            maxima[g] = max(maxima[g], scores[low + g])
    for g in range(groups):
        if g < k or maxima[g] > best[k - 1]:
            _insert(maxima[g], g, best, index, min(g, k))
    return best[k - 1]


@njit(cache=True)
def _select(scores, maxima, best, index):  # noqa: ANN001, ANN202
    """Fill best and index with the largest scores in falling order, the lower index first."""
    k = best.shape[0]
    bound = _lower_bound(scores, maxima, best, index)
    filled = 0
    for m in range(scores.shape[0]):
        score = scores[m]
        # Written so that a NaN passes: k scores are always found, whatever they are.
        if score < bound:
            continue
        if filled < k or score > best[k - 1]:
            _insert(score, m, best, index, filled)
            filled = min(filled + 1, k)


@njit(parallel=True, cache=True)
def _select_pairs_kernel(half_scores, scores, slots):  # noqa: ANN001, ANN202
    heads, _, tokens, num_sub_keys = half_scores.shape
    k = scores.shape[2]
    for t in prange(tokens):
        best = np.empty((2, k), np.float32)
        index = np.empty((2, k), np.int64)
        maxima = np.empty(2 * k, np.float32)
        sums = np.empty(k, np.float32)
        pair = np.empty(k, np.int64)
        for h in range(heads):
            _select(half_scores[h, 0, t], maxima, best[0], index[0])
            _select(half_scores[h, 1, t], maxima, best[1], index[1])
            # The pair of ranks (i, j) has (i + 1) * (j + 1) - 1 pairs that are at least as good,
            # so it can be among the best k only if (i + 1) * (j + 1) <= k.
            filled = 0
            for i in range(k):
                for j in range(k // (i + 1)):
                    total = best[0, i] + best[1, j]
                    if filled == k and not total > sums[k - 1]:
                        break
                    slot = index[0, i] * num_sub_keys + index[1, j]
                    _insert(total, slot, sums, pair, filled)
                    filled = min(filled + 1, k)
            for n in range(k):
                scores[t, h, n] = sums[n]
                slots[t, h, n] = pair[n]


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
