"""Step 1: hidden → query. Next: keys.py."""

from torch import Tensor, nn


class QueryProjection(nn.Module):
    """Project each token to two half-queries per head.

    Args:
        model_dim: D.
        heads: H.
        half_dim: C.
    """

    def __init__(self, model_dim: int, heads: int, half_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.half_dim = half_dim
        self.proj = nn.Linear(model_dim, heads * 2 * half_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight Xavier-uniform, as the reference implementation, and zero the bias."""
        nn.init.xavier_uniform_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] → [T, H, 2, C]."""
        return self.proj(x).unflatten(-1, (self.heads, 2, self.half_dim))
