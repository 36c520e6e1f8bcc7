"""Step 1: hidden → query, one class for each query_norm of MemoryConfig. Next: keys.py."""

from typing import ClassVar

from torch import Tensor, nn

from memory_layers.config import MemoryConfig


class QueryProjection(nn.Module):
    """Project each token to two half-queries per head.

    Args:
        model_dim: D.
        heads: H.
        half_dim: C.
        bias: Add a bias.
    """

    # Whether training is wrong where each of several processes sees a part of the tokens.
    needs_one_process: ClassVar[bool] = False

    def __init__(self, model_dim: int, heads: int, half_dim: int, *, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.half_dim = half_dim
        self.proj = nn.Linear(model_dim, heads * 2 * half_dim, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight Xavier-uniform, as the reference implementation, and zero a bias.

        A norm of a subclass starts without scale, shift and statistics.
        """
        nn.init.xavier_uniform_(self.proj.weight)
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)
        # Through torch.nn.init alone: transformers patches it to leave what it has loaded.
        for name, tensor in (*self.named_parameters(), *self.named_buffers()):
            if not name.startswith("proj."):
                is_scale = name.endswith((".weight", ".running_var"))
                (nn.init.ones_ if is_scale else nn.init.zeros_)(tensor)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] → [T, H, 2, C]."""
        return self.split(self.proj(x))

    def split(self, query: Tensor) -> Tensor:
        """[T, H * 2 * C] → [T, H, 2, C]."""
        return query.unflatten(-1, (self.heads, 2, self.half_dim))


class BatchNormQuery(QueryProjection):
    """Normalise each of the H * 2 * C features over the tokens, with a learned scale and shift.

    It keeps running statistics for evaluation, as torch's does: a pass in training mode that
    gradient checkpointing repeats moves them twice.
    """

    needs_one_process = True

    def __init__(self, model_dim: int, heads: int, half_dim: int) -> None:
        # The norm would take a bias away again.
        super().__init__(model_dim, heads, half_dim, bias=False)
        self.batch_norm = nn.BatchNorm1d(heads * 2 * half_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] → [T, H, 2, C]."""
        return self.split(self.batch_norm(self.proj(x)))


class LayerNormQuery(QueryProjection):
    """Normalise the C features of each half-query, with a learned scale and shift."""

    def __init__(self, model_dim: int, heads: int, half_dim: int) -> None:
        super().__init__(model_dim, heads, half_dim)
        self.layer_norm = nn.LayerNorm(half_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] → [T, H, 2, C]."""
        return self.layer_norm(super().forward(x))


def build_query(config: MemoryConfig, model_dim: int) -> QueryProjection:
    """Build the first step of a layer of width D."""
    classes = {"none": QueryProjection, "batch": BatchNormQuery, "layer": LayerNormQuery}
    half_dim = config.resolved(model_dim).key_dim // 2
    return classes[config.query_norm](model_dim, config.heads, half_dim)
