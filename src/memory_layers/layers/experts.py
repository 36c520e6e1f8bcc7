"""ExpertChoice and TokenChoice: mixtures of experts that stand where a feed-forward block stood.

Baselines for the memory layer. In both an expert is a feed-forward block as in Llama, and its
output is multiplied by the probability that the router, a linear map and a softmax, gives it.
Letters as in shapes.py.

Next: models/surgery.py, which puts them into a model.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from memory_layers.config import MoeConfig


class Experts(nn.Module):
    """X blocks (silu(x gate) * (x up)) down without biases, each matrix of all in one parameter.

    Args:
        experts: X.
        model_dim: D.
        hidden_size: F.
        init_std: Standard deviation of the initial weights.
    """

    def __init__(self, experts: int, model_dim: int, hidden_size: int, init_std: float) -> None:
        super().__init__()
        self.init_std = init_std
        self.gate = nn.Parameter(torch.empty(experts, model_dim, hidden_size))
        self.up = nn.Parameter(torch.empty(experts, model_dim, hidden_size))
        self.down = nn.Parameter(torch.empty(experts, hidden_size, model_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights alike, as the linear maps of the base are drawn."""
        for weight in (self.gate, self.up, self.down):
            nn.init.normal_(weight, std=self.init_std)

    def forward(self, x: Tensor, scale: Tensor, sizes: list[int] | None = None) -> Tensor:
        """Let each expert compute its tokens.

        Args:
            x: [P, D] tokens, those of the first expert before those of the second. For equal
                shares also [X, P / X, D].
            scale: [P, 1] or [X, P / X, 1] factors of the outputs.
            sizes: Tokens of each expert, which add up to P. None: equal shares, as a third axis.

        Returns:
            As x, in the type of a matrix product: that of autocast where it is on.
        """

        def product(rows: Tensor, weight: Tensor) -> Tensor:
            if sizes is None:
                return torch.bmm(rows, weight)
            kind = x.device.type
            # Not available, and so not to be asked for, on the meta device.
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                dtype = torch.get_autocast_dtype(kind)
                rows, weight = rows.to(dtype), weight.to(dtype)
            return _GroupedProduct.apply(rows, weight, sizes)

        hidden = F.silu(product(x, self.gate)) * product(x, self.up)
        # Before the last product, as F is mostly smaller than D.
        return product(hidden * scale.to(hidden.dtype), self.down)


class RoutedExperts(nn.Module):
    """What both kinds have: a router, experts, and the way by which tokens choose experts.

    Args:
        config: With the routing of the kind.
        model_dim: D.
        mlp_size: Hidden width of the block that it replaces.
        init_std: Standard deviation of the initial weights.

    Raises:
        ValueError: `config` is of the other routing.
    """

    routing: ClassVar[str]

    def __init__(
        self, config: MoeConfig, model_dim: int, mlp_size: int, init_std: float = 0.02
    ) -> None:
        super().__init__()
        if config.routing != self.routing:
            raise ValueError(
                f"{type(self).__name__} needs routing {self.routing!r}, got {config.routing!r}"
            )
        self.config = config
        self.router = nn.Linear(model_dim, config.experts, bias=False)
        nn.init.normal_(self.router.weight, std=init_std)
        hidden_size = config.hidden_size(mlp_size)
        self.experts = Experts(config.experts, model_dim, hidden_size, init_std)

    def probabilities(self, x: Tensor) -> Tensor:
        """[T, D] → [T, X] in fp32."""
        return self.router(x).float().softmax(dim=-1)

    def send(self, x: Tensor, scale: Tensor, chosen: Tensor) -> Tensor:
        """Send each token to its experts, however many come to one, and add up the outputs.

        Args:
            x: [T, D].
            scale: [T, Q] factors of the outputs.
            chosen: [T, Q] experts.
        """
        order = chosen.flatten().argsort(stable=True)  # [T * Q] pairs, expert by expert
        sizes = chosen.flatten().bincount(minlength=self.router.out_features).tolist()
        tokens = order // chosen.shape[1]
        out = self.experts(x[tokens], scale.flatten()[order, None], sizes)
        return out.new_zeros(x.shape).index_add(0, tokens, out)


class ExpertChoice(RoutedExperts):
    """Each expert takes the tokens of the batch that its router rates highest.

    That is how it is trained (arXiv 2202.09368). An expert sees the whole batch to choose, later
    tokens too, so a model that predicts tokens cannot be run that way. In evaluation each token
    goes to its best expert instead, as in "Memory Layers at Scale" (arXiv 2412.09764).

    Of several ranks each chooses among its own tokens.
    """

    routing = "expert_choice"

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., D]. A token that no expert takes in training gets zeros."""
        shape, x = x.shape, x.reshape(-1, x.shape[-1])  # [T, D]
        probabilities = self.probabilities(x)
        if not self.training:
            return self.send(x, *probabilities.topk(1)).view(shape)
        scale, tokens = probabilities.T.topk(self.capacity(len(x)))  # [X, tokens of an expert]
        out = self.experts(x[tokens], scale[..., None])
        return out.new_zeros(x.shape).index_add(0, tokens.flatten(), out.flatten(0, 1)).view(shape)

    def capacity(self, tokens: int) -> int:
        """Return how many of T tokens an expert takes, at least one."""
        # The small number keeps what is whole but for rounding from being rounded up.
        return min(tokens, max(1, math.ceil(tokens * self.config.share - 1e-6)))


class TokenChoice(RoutedExperts):
    """Each token takes the Q experts that the router rates highest, however many tokens they get.

    The factors are the router's probabilities as they are, which do not add up to one over the Q,
    as in OLMoE (arXiv 2409.02060), or with `normalize_top_k` divided by their sum, as in Mixtral
    (arXiv 2401.04088).

    A load-balancing loss, X * sum_x f_x p_x (f_x: share of the batch that goes to x, p_x: its mean
    probability; arXiv 2101.03961), is added in the backward pass: no training loop needs to, and a
    block may be computed again. It is taken over the tokens of one call. A loop that adds up the
    gradients of several calls sets `scale_balance`.
    """

    routing = "token_choice"
    balance_scale = 1.0
    balance: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., D]. Each token independently."""
        shape, x = x.shape, x.reshape(-1, x.shape[-1])  # [T, D]
        probabilities = self.probabilities(x)
        scale, chosen = probabilities.topk(self.config.top_k)  # [T, Q]
        if self.config.normalize_top_k:
            scale = scale / scale.sum(dim=-1, keepdim=True)
        out = self.send(x, scale, chosen)
        if self.training:
            loss = self.config.balance_weight * self._balance(probabilities, chosen)
            # Without its graph, which would keep the activations of a finished step.
            self.balance = loss.detach()
            out = _JoinLoss.apply(out, loss, self.balance_scale)
        return out.view(shape)

    def _balance(self, probabilities: Tensor, chosen: Tensor) -> Tensor:
        experts = self.router.out_features
        share = chosen.flatten().bincount(minlength=experts) / chosen.numel()  # [X]
        return experts * (share * probabilities.mean(dim=0)).sum()


def routed_experts(
    config: MoeConfig, model_dim: int, mlp_size: int, init_std: float
) -> RoutedExperts:
    """Build the experts that a config asks for, with the arguments of RoutedExperts."""
    kind = ExpertChoice if config.routing == "expert_choice" else TokenChoice
    return kind(config, model_dim, mlp_size, init_std)


def balance_loss(model: nn.Module) -> Tensor | None:
    """Return the balance losses of the last forward pass in training, weighed and added up.

    For logs: the backward pass adds them by itself.

    Args:
        model: With or without experts.

    Returns:
        One number without a gradient. None: no TokenChoice has run in training.
    """
    layers = [module for module in model.modules() if isinstance(module, TokenChoice)]
    losses = [layer.balance for layer in layers if layer.balance is not None]
    return torch.stack(losses).sum() if losses else None


def scale_balance(model: nn.Module, scale: float) -> None:
    """Set the share of one forward pass in the balance loss of a step.

    Args:
        model: With or without experts.
        scale: 1 / (micro-batches of a step * ranks whose gradients are added up).
    """
    for module in model.modules():
        if isinstance(module, TokenChoice):
            module.balance_scale = scale


class _GroupedProduct(torch.autograd.Function):
    """[P, D] and [X, D, F] → [P, F], or back: the rows of each expert times its matrix.

    One product an expert, into its place in the result: without the padding of a batched product,
    which is long where experts get unequal shares.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, sizes: list[int]) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(rows, weight)
        ctx.sizes = sizes
        out = rows.new_empty(len(rows), weight.shape[2])
        parts = zip(rows.split(sizes), weight.unbind(), out.split(sizes), strict=True)
        for part, matrix, place in parts:
            torch.mm(part, matrix, out=place)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        rows, weight = ctx.saved_tensors
        d_rows, d_weight = torch.empty_like(rows), torch.empty_like(weight)
        for part, matrix, d_part, d_place, d_matrix in zip(
            rows.split(ctx.sizes),
            weight.unbind(),
            d_out.split(ctx.sizes),
            d_rows.split(ctx.sizes),
            d_weight.unbind(),
            strict=True,
        ):
            torch.mm(d_part, matrix.T, out=d_place)
            torch.mm(part.T, d_part, out=d_matrix)
        return d_rows, d_weight, None


class _JoinLoss(torch.autograd.Function):
    """Pass a tensor on, and give a loss the gradient that it has as a part of the whole loss."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _loss: Tensor, scale: float) -> Tensor:  # noqa: ANN401
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_x: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        return d_x, d_x.new_full((), ctx.scale, dtype=torch.float32), None
