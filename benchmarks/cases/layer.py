"""A whole memory layer, forward, backward and step, against eager PyTorch and a feed-forward."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines import EagerMemoryLayer, SwiGLU, adamw, bag
from benchmarks.cases.stepped import BETAS, EPS, LR, create_moments, value_table
from benchmarks.checks import check_norm, sample_of
from benchmarks.harness import Suite, Variant
from benchmarks.inputs import SEED, make_table, make_vectors
from benchmarks.request import Request
from memory_layers.config import MemoryConfig
from memory_layers.layers import MemoryLayer
from memory_layers.optim import MemoryAdamW

OURS, EAGER, FEED_FORWARD = "MemoryLayer", "the same in eager PyTorch", "SwiGLU feed-forward"
# Layers add up over thousands of numbers, and a tie in FIND may fall either way.
TOLERANCE = 2e-3
PARTS = ("query", "keys", "gate")


def layer_suite(request: Request) -> Suite:
    """Time the layer with its optimizer. D = V."""
    sizes = request.sizes
    torch.manual_seed(SEED)
    layer = _build(request)
    weight = layer.values.weight
    eager = _eager(layer, lambda slots, weights: bag(weight, slots, weights), copy_to=None)
    feed_forward = SwiGLU(sizes.value_dim).to(request.device)
    x = make_vectors(sizes.tokens, sizes.value_dim, request.device) * sizes.value_dim**0.5
    d_out = make_vectors(sizes.tokens, sizes.value_dim, request.device).flip(0)
    ours_adamw = MemoryAdamW(layer, lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0)
    eager_adamw = adamw(layer, LR)
    runs: list[tuple[str, nn.Module, torch.optim.Optimizer]] = [
        (OURS, layer, ours_adamw),
        (EAGER, eager, eager_adamw),
        (FEED_FORWARD, feed_forward, adamw(feed_forward, LR)),
    ]
    _share_moments(layer, ours_adamw, eager_adamw)
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
            ours=name == OURS,
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


def _eager(
    layer: MemoryLayer, read: Callable[[Tensor, Tensor], Tensor], copy_to: torch.dtype | None
) -> EagerMemoryLayer:
    """Make the eager twin of a layer, on its own parameters or on copies of another type."""
    parts = [getattr(layer, part) for part in PARTS]
    if copy_to is not None:
        parts = [copy.deepcopy(part).to(copy_to) for part in parts]
    return EagerMemoryLayer(*parts, read)


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


def _share_moments(
    layer: MemoryLayer, ours: torch.optim.Optimizer, eager: torch.optim.Optimizer
) -> None:
    """Let both optimizers step the same moments of the table: one pair in memory."""
    create_moments(layer.values, ours)
    weight = layer.values.weight
    moments = {name: ours.state[weight][name] for name in ("exp_avg", "exp_avg_sq")}
    eager.state[weight] = {"step": torch.ones((), device=weight.device), **moments}


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
        rows = layer.values.weight.detach()[slots].double()
        return (weights[:, None] @ rows)[:, 0]

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
            exact = _eager(layer, read, copy_to=torch.float64)
        expected = results(exact, x.double(), d_out.double())
        found = results(module, x, d_out)
        for label, value in expected.items():
            check_norm(f"{name}, {label},", found[label], value, TOLERANCE)
        module.zero_grad()

    return check
