"""Step 1: hidden → query. Next: keys.py."""

from torch import Tensor, nn

from memory_layers.config.memory import QueryNorm


class QueryProjection(nn.Module):
    """Project each token to two half-queries per head, and normalise them if asked to.

    Batch norm keeps running statistics for evaluation, as torch's does: a pass in training mode
    that gradient checkpointing repeats moves them twice.

    Args:
        model_dim: D.
        heads: H.
        half_dim: C.
        norm: "batch" normalises each of the H * 2 * C features over the tokens, "layer" the C
            features of each half-query. Both have a learned scale and shift.
    """

    def __init__(
        self, model_dim: int, heads: int, half_dim: int, *, norm: QueryNorm = "none"
    ) -> None:
        super().__init__()
        self.heads = heads
        self.half_dim = half_dim
        width = heads * 2 * half_dim
        # Batch norm would take a bias away again.
        self.proj = nn.Linear(model_dim, width, bias=norm != "batch")
        self.batch_norm = nn.BatchNorm1d(width) if norm == "batch" else None
        self.layer_norm = nn.LayerNorm(half_dim) if norm == "layer" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight Xavier-uniform, as the reference implementation, and zero a bias.

        A norm starts without scale, shift and statistics.
        """
        nn.init.xavier_uniform_(self.proj.weight)
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)
        # Through torch.nn.init alone: transformers patches it to leave what it has loaded.
        for norm in (self.batch_norm, self.layer_norm):
            if norm is not None:
                nn.init.ones_(norm.weight)
                nn.init.zeros_(norm.bias)
        if self.batch_norm is not None:
            buffers = dict(self.batch_norm.named_buffers())
            nn.init.zeros_(buffers["running_mean"])
            nn.init.ones_(buffers["running_var"])
            nn.init.zeros_(buffers["num_batches_tracked"])

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] → [T, H, 2, C]."""
        query = self.proj(x)
        if self.batch_norm is not None:
            query = self.batch_norm(query)
        query = query.unflatten(-1, (self.heads, 2, self.half_dim))
        return query if self.layer_norm is None else self.layer_norm(query)
