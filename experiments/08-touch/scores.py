"""FIND with scores that are rounded to bfloat16, as a kernel that works in it would select by."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from memory_layers.ops.find import product_key_topk, reference


class _Rounded(torch.autograd.Function):
    """product_key_topk of which half scores and their sums are rounded. Counts ties."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, sub_keys: Tensor, k: int, found: "Ties") -> Any:  # noqa: ANN401
        halves = torch.einsum("thpc,hpmc->thpm", query, sub_keys).bfloat16()
        # One more than is asked for: its score tells whether the last place was a tie.
        best, index = halves.topk(min(k + 1, halves.shape[-1]), dim=-1)
        i, j = found.pairs(best.shape[-1])
        # The sum of two bfloat16 is rounded to bfloat16.
        sums = best[:, :, 0, i] + best[:, :, 1, j]
        scores, pair = sums.topk(k + 1, dim=-1)
        found.count(scores[..., k - 1] == scores[..., k])
        scores, pair = scores[..., :k], pair[..., :k]
        first = index[:, :, 0].gather(-1, i[pair])
        slots = first * sub_keys.shape[2] + index[:, :, 1].gather(-1, j[pair])
        ctx.save_for_backward(query, sub_keys, slots)
        ctx.mark_non_differentiable(slots)
        return scores.float(), slots

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_scores: Tensor, _d_slots: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        # As if nothing had been rounded.
        query, sub_keys, slots = ctx.saved_tensors
        return (
            *reference.product_key_topk_backward(d_scores, slots, query, sub_keys), None, None
        )  # fmt: skip


class Ties:
    """product_key_topk in bfloat16, for one process, with the share of ties at the last place."""

    def __init__(self) -> None:
        """Begin to count."""
        self.tied = self.rows = 0
        self._pairs: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, query: Tensor, sub_keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """[T, H, 2, C] and [H, 2, M, C] → scores and slots, both [T, H, K], as the operation."""
        if query.is_meta:  # FLOPs are counted, as of the library's own.
            return product_key_topk(query, sub_keys, k)
        return _Rounded.apply(query, sub_keys, k, self)

    def pairs(self, k: int) -> tuple[Tensor, Tensor]:
        """Return the pairs of ranks (i, j) that can be among the best k."""
        if k not in self._pairs:
            pairs = [(i, j) for i in range(k) for j in range(k // (i + 1))]
            i, j = torch.tensor(pairs).unbind(1)
            self._pairs[k] = i, j
        return self._pairs[k]

    def count(self, ties: Tensor) -> None:
        """Count rows and those of which the last place is a tie."""
        self.tied += int(ties.sum())
        self.rows += ties.numel()

    @property
    def share(self) -> float:
        """Share of selections in which the first one left out scores as the last one taken."""
        return self.tied / self.rows
