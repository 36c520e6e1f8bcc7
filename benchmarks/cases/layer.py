"""A whole memory layer, forward, backward and step, against eager PyTorch and a feed-forward."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.cases.find import three_topk
from benchmarks.cases.read import bag
from benchmarks.cases.step import BETAS, EPS, LR, create_moments, value_table
from benchmarks.checks import check_norm, exact_product, sample_of
from benchmarks.harness import Suite, Variant
from benchmarks.inputs import SEED, Request, make_table, make_vectors
from memory_layers.config import MemoryConfig
from memory_layers.layers import MemoryLayer
from memory_layers.optim import MemoryAdamW

OURS, EAGER, FEED_FORWARD = "MemoryLayer", "the same in eager PyTorch", "SwiGLU feed-forward"
# Layers add up over thousands of numbers, and a tie in FIND may fall either way.
TOLERANCE = 2e-3
PARTS = ("query", "keys", "gate")
Read = Callable[[Tensor, Tensor], Tensor]


class EagerMemoryLayer(nn.Module):
    """A MemoryLayer in plain PyTorch, on the very parameters of its parts.

    Args:
        parts: Query, keys (normalised with a gain) and gate of the layer.
        read: Slots and weights, [T, J] → [T, V].
    """

    def __init__(self, parts: Any, read: Read) -> None:  # noqa: ANN401
        super().__init__()
        self.query, self.keys, self.gate = parts
        self.read = read

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


def layer_suite(request: Request) -> Suite:
    """Time the layer with its optimizer. D = V."""
    sizes = request.sizes
    torch.manual_seed(SEED)
    layer = _build(request)
    weight = layer.values.weight
    parts = [getattr(layer, part) for part in PARTS]
    eager = EagerMemoryLayer(parts, lambda slots, weights: bag(weight, slots, weights))
    feed_forward = SwiGLU(sizes.value_dim).to(request.device)
    x = make_vectors(sizes.tokens, sizes.value_dim, request.device) * sizes.value_dim**0.5
    d_out = make_vectors(sizes.tokens, sizes.value_dim, request.device).flip(0)
    ours_adamw = MemoryAdamW(
        layer, lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0, value_state="full"
    )
    # Torch's fastest.
    eager_adamw, dense_adamw = (
        torch.optim.AdamW(module.parameters(), lr=LR, weight_decay=0.0, fused=True)
        for module in (layer, feed_forward)
    )
    runs: list[tuple[str, nn.Module, torch.optim.Optimizer]] = [
        (OURS, layer, ours_adamw),
        (EAGER, eager, eager_adamw),
        (FEED_FORWARD, feed_forward, dense_adamw),
    ]
    # Both step the same moments of the table: one pair in memory.
    create_moments(layer.values, ours_adamw)
    moments = {name: ours_adamw.state[weight][name] for name in ("exp_avg", "exp_avg_sq")}
    eager_adamw.state[weight] = {"step": torch.ones((), device=weight.device), **moments}
    with torch.no_grad():
        distinct = int(layer.keys(layer.query(x))[1].unique().numel())
    # Rows are read twice, and each touched one is read and written with its two moments.
    row_bytes = (2 * sizes.tokens * sizes.reads + 2 * 3 * distinct) * weight[0].nbytes
    sample = sample_of(len(x), x.device)
    variants = [
        Variant(
            name=name,
            run=_training_step(module, optimizer, x, d_out),
            check=_check(name, module, layer, x[sample], d_out[sample]),
            checked=f"output and every dense gradient for {len(sample)} tokens",
            bytes=_dense_bytes(module, weight, sizes.tokens)
            + (0 if name == FEED_FORWARD else row_bytes),
            against=(EAGER,) if name == OURS else (),
            tokens=sizes.tokens,
        )
        for name, module, optimizer in runs
    ]
    facts = {"distinct_rows": distinct, "hidden_of_feed_forward": feed_forward.hidden}
    return Suite(tuple(variants), facts)


def _build(request: Request) -> MemoryLayer:
    sizes = request.sizes
    config = MemoryConfig(
        layers=(0,), sub_keys=sizes.sub_keys, heads=sizes.heads, top_k=sizes.top_k
    )
    with torch.device("meta"):
        layer = MemoryLayer(config, sizes.value_dim)
    rows = make_table(config.num_slots, sizes.value_dim, torch.float32, request.device)
    layer.memory_table = value_table(rows)
    for part in PARTS:
        module: Any = getattr(layer, part)
        module.to_empty(device=request.device)
        module.reset_parameters()
    return layer


def _training_step(
    module: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, d_out: Tensor
) -> Callable[[], None]:
    # The input has a gradient too: a layer inside a model passes one on.
    x = x.clone().requires_grad_()

    def run() -> None:
        x.grad = None
        module(x).backward(d_out)
        optimizer.step()
        optimizer.zero_grad()

    return run


def _dense_bytes(module: nn.Module, table: Tensor, tokens: int) -> int:
    """Dense parameters read twice and stepped, x and its gradient, output and its gradient."""
    numbers = sum(p.numel() for p in module.parameters() if p is not table)
    return numbers * 4 * (2 + 6) + 4 * tokens * table.shape[1] * 4


def _check(
    name: str, module: nn.Module, layer: MemoryLayer, x: Tensor, d_out: Tensor
) -> Callable[[], None]:
    """Return a check of output and gradients against the same computation in fp64."""

    def read(slots: Tensor, weights: Tensor) -> Tensor:
        # An fp64 copy of the whole table would not fit.
        return exact_product(weights[:, None], layer.values.weight.detach()[slots])[0][:, 0]

    def results(module: nn.Module, x: Tensor, d_out: Tensor) -> dict[str, Tensor]:
        x = x.clone().requires_grad_()
        module.zero_grad()
        out = module(x)
        out.backward(d_out)
        dense = [("x", x), *module.named_parameters()]
        gradients = {n: p.grad for n, p in dense if p is not layer.values.weight}
        found = {"output": out.detach()}
        for label, gradient in gradients.items():
            if gradient is None:
                raise AssertionError(f"{name} left no gradient of {label}")
            found[f"gradient of {label}"] = gradient
        return found

    def check() -> None:
        if isinstance(module, SwiGLU):
            exact: nn.Module = copy.deepcopy(module).double()
        else:
            parts = [copy.deepcopy(getattr(layer, part)).double() for part in PARTS]
            exact = EagerMemoryLayer(parts, read)
        expected = results(exact, x.double(), d_out.double())
        found = results(module, x, d_out)
        for label, value in expected.items():
            check_norm(f"{name}, {label},", found[label], value, TOLERANCE)
        module.zero_grad()

    return check
