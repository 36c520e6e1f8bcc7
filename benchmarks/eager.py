"""What a memory layer is timed against: itself in eager PyTorch, and a dense feed-forward."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.find import three_topk
from benchmarks.stepping import bag
from memory_layers.layers import MemoryLayer


class EagerMemoryLayer(nn.Module):
    """The computation of a MemoryLayer in plain PyTorch, on the very parameters of that layer.

    Args:
        layer: Whose parameters to use.
    """

    def __init__(self, layer: MemoryLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] → [T, D]."""
        keys = self.layer.keys
        query = self.layer.query(x)  # [T, H, 2, C]
        width = query.shape[-1:]
        query = F.rms_norm(query, width, eps=1e-6)
        query = query if keys.gain is None else query * keys.gain
        sub_keys = F.rms_norm(keys.sub_keys, width, eps=1e-6)
        half_scores = query.permute(1, 2, 0, 3) @ sub_keys.transpose(-1, -2)  # [H, 2, T, M]
        scores, slots = three_topk(half_scores, keys.top_k)  # [H, T, K]
        weights = scores.softmax(dim=-1).transpose(0, 1).flatten(1)  # [T, J]
        slots = slots.transpose(0, 1).flatten(1)
        read = bag(self.layer.values.weight, slots, weights)  # [T, V]
        return self.layer.gate(read, x)


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
    """Torch's fastest AdamW over all parameters."""
    return torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.0, fused=True)
