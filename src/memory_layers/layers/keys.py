"""Step 2: query → scores and slots. Owns the sub-keys, calls ops.find. Next: values.py."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from memory_layers.ops.find import product_key_topk


class ProductKeys(nn.Module):
    """Score the sub-keys of both halves and select the best slots.

    With `qk_norm`, half-queries and sub-keys are RMS-normalised over C and the products scaled by
    a learned gain for each head, half and channel (arXiv 2412.09764 section 2.1, after Chameleon).

    Args:
        heads: H.
        sub_keys: M.
        half_dim: C.
        top_k: K.
        qk_norm: Normalise queries and sub-keys.
    """

    def __init__(
        self, heads: int, sub_keys: int, half_dim: int, top_k: int, *, qk_norm: bool
    ) -> None:
        super().__init__()
        self.top_k = top_k
        self.sub_keys = nn.Parameter(torch.empty(heads, 2, sub_keys, half_dim))
        self.gain = nn.Parameter(torch.empty(heads, 2, half_dim)) if qk_norm else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the sub-keys from U(-b, b), b = 1 / sqrt(2 C), and set the gain to 1 / sqrt(C).

        With this gain the score of a half has unit variance at the start.
        """
        half_dim = self.sub_keys.shape[-1]
        bound = (2 * half_dim) ** -0.5
        nn.init.uniform_(self.sub_keys, -bound, bound)
        if self.gain is not None:
            nn.init.constant_(self.gain, half_dim**-0.5)

    def forward(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """[T, H, 2, C] → scores and slots, both [T, H, K]."""
        sub_keys = self.sub_keys
        if self.gain is not None:
            width = query.shape[-1:]
            query = F.rms_norm(query, width, eps=1e-6) * self.gain
            sub_keys = F.rms_norm(sub_keys, width, eps=1e-6)
        return product_key_topk(query, sub_keys, self.top_k)
