"""What ours is timed against in plain PyTorch: FIND, READ, a memory layer, and a feed-forward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Read = Callable[[Tensor, Tensor], Tensor]


def three_topk(half_scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the best k of each half, then the best k of all k * k pairs.

    Args:
        half_scores: [H, 2, T, M].
        k: K.

    Returns:
        Scores and slots, [H, T, K].
    """
    best, index = half_scores.topk(k, dim=-1)  # [H, 2, T, K]
    pairs = best[:, 0, :, :, None] + best[:, 1, :, None, :]  # [H, T, K, K]
    scores, pair = pairs.flatten(2).topk(k, dim=-1)  # [H, T, K]
    i = index[:, 0].gather(-1, pair // k)
    j = index[:, 1].gather(-1, pair % k)
    return scores, i * half_scores.shape[3] + j


def bag(weight: Tensor, slots: Tensor, weights: Tensor, *, sparse: bool = False) -> Tensor:
    """Read as torch does, with a dense or a sparse gradient of the table."""
    return F.embedding_bag(slots, weight, mode="sum", per_sample_weights=weights, sparse=sparse)


class EagerMemoryLayer(nn.Module):
    """A MemoryLayer in plain PyTorch, on the very parameters of its parts.

    Args:
        query: First step of the layer.
        keys: Second step, normalised with a gain.
        gate: Last step.
        read: Third step: slots and weights, [T, J] → [T, V].
    """

    def __init__(
        self,
        query: nn.Module,
        keys: Any,  # noqa: ANN401
        gate: nn.Module,
        read: Read,
    ) -> None:
        super().__init__()
        self.query, self.gate, self.read = query, gate, read
        self.keys: Any = keys

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] → [T, D]."""
        query = self.query(x)  # [T, H, 2, C]
        width = query.shape[-1:]
        query = F.rms_norm(query, width, eps=1e-6) * self.keys.gain
        sub_keys = F.rms_norm(self.keys.sub_keys, width, eps=1e-6)
        half_scores = query.permute(1, 2, 0, 3) @ sub_keys.transpose(-1, -2)  # [H, 2, T, M]
        scores, slots = three_topk(half_scores, self.keys.top_k)  # [H, T, K]
        weights = scores.softmax(dim=-1).transpose(0, 1).flatten(1)  # [T, J]
        return self.gate(self.read(slots.transpose(0, 1).flatten(1), weights), x)


class SwiGLU(nn.Module):
    """The feed-forward block of Llama: w2 (silu(w1 x) * w3 x).

    Args:
        model_dim: D.
    """

    def __init__(self, model_dim: int) -> None:
        super().__init__()
        # Llama's rule: 8/3 D, rounded up to a multiple of 256.
        self.hidden = 256 * -(-8 * model_dim // (3 * 256))
        self.gate = nn.Linear(model_dim, self.hidden, bias=False)
        self.up = nn.Linear(model_dim, self.hidden, bias=False)
        self.down = nn.Linear(self.hidden, model_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] → [T, D]."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


def adamw(module: nn.Module, lr: float) -> torch.optim.AdamW:
    """Return torch's fastest AdamW over all parameters."""
    return torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.0, fused=True)
