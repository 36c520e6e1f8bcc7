"""A whole memory layer, forward, backward and step, against eager PyTorch and a feed-forward."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.check import check_norm, sample_of
from benchmarks.eager import EagerMemoryLayer, SwiGLU, adamw
from benchmarks.inputs import SEED, make_table, make_vectors
from benchmarks.request import Request
from benchmarks.stepping import BETAS, EPS, LR, create_moments, value_table
from benchmarks.variant import Suite, Variant
from memory_layers.config import MemoryConfig
from memory_layers.layers import MemoryLayer
from memory_layers.ops.find import reference as find_reference
from memory_layers.optim import MemoryAdamW

OURS, EAGER, FEED_FORWARD = "MemoryLayer", "the same in eager PyTorch", "SwiGLU feed-forward"
# Layers add up over thousands of numbers, and a tie in FIND may fall either way.
TOLERANCE = 2e-3


def layer_suite(request: Request) -> Suite:
    """Time the layer with its optimizer. D = V."""
    sizes = request.sizes
    torch.manual_seed(SEED)
    layer = _build(request)
    eager = EagerMemoryLayer(layer)
    feed_forward = SwiGLU(sizes.value_dim).to(request.device)
    x = make_vectors(sizes.tokens, sizes.value_dim, request.device) * sizes.value_dim**0.5
    d_out = make_vectors(sizes.tokens, sizes.value_dim, request.device).flip(0)
    ours_adamw = MemoryAdamW(layer, lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0)
    eager_adamw = adamw(eager, LR)
    runs: list[tuple[str, nn.Module, torch.optim.Optimizer]] = [
        (OURS, layer, ours_adamw),
        (EAGER, eager, eager_adamw),
        (FEED_FORWARD, feed_forward, adamw(feed_forward, LR)),
    ]
    _share_moments(layer, ours_adamw, eager_adamw)
    exact = _Exact(layer, feed_forward, x, d_out)
    row_bytes = sizes.tokens * sizes.reads * layer.values.weight[0].nbytes
    variants = [
        Variant(
            name=name,
            run=_training_step(module, optimizer, x, d_out),
            check=exact.check(name, module),
            checked=f"output and every dense gradient for {len(exact.sample)} tokens",
            # Rows twice, and what is written of the table in `_written_bytes`.
            bytes=_dense_bytes(module, layer, sizes.tokens)
            + (0 if name == FEED_FORWARD else 2 * row_bytes + exact.written_bytes),
            against=(EAGER,) if name == OURS else (),
            ours=name == OURS,
            tokens=sizes.tokens,
        )
        for name, module, optimizer in runs
    ]
    facts = {"distinct_rows": exact.distinct, "hidden_of_feed_forward": feed_forward.hidden}
    return Suite(tuple(variants), facts)


def _build(request: Request) -> MemoryLayer:
    sizes = request.sizes
    config = MemoryConfig(
        layers=(0,), sub_keys=sizes.sub_keys, heads=sizes.heads, top_k=sizes.top_k
    )
    with torch.device("meta"):
        layer = MemoryLayer(config, sizes.value_dim)
    rows = make_table(config.slots, sizes.value_dim, torch.float32, request.device)
    layer.memory_table = value_table(rows)
    parts: tuple[Any, ...] = (layer.query, layer.keys, layer.gate)
    for part in parts:
        part.to_empty(device=request.device)
        part.reset_parameters()
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


def _share_moments(
    layer: MemoryLayer, ours: torch.optim.Optimizer, eager: torch.optim.Optimizer
) -> None:
    """Let both optimizers step the same moments of the table: one pair in memory."""
    create_moments(layer.values, ours)
    weight = layer.values.weight
    moments = {name: ours.state[weight][name] for name in ("exp_avg", "exp_avg_sq")}
    eager.state[weight] = {"step": torch.ones((), device=weight.device), **moments}


def _dense_bytes(module: nn.Module, layer: MemoryLayer, tokens: int) -> int:
    """Dense parameters read twice and stepped, x and its gradient, output and its gradient."""
    table = layer.values.weight
    parameters = [p for p in module.parameters() if p is not table]
    numbers = sum(p.numel() for p in parameters)
    return numbers * 4 * (2 + 6) + 4 * tokens * table.shape[1] * 4


class _Exact:
    """The same computation in fp64 for a sample of tokens, and what it says about a module."""

    def __init__(self, layer: MemoryLayer, feed_forward: SwiGLU, x: Tensor, d_out: Tensor) -> None:
        self.sample = sample_of(len(x), x.device)
        self.x, self.d_out = x[self.sample], d_out[self.sample]
        self.layer = layer
        self.feed_forward = feed_forward
        with torch.no_grad():
            slots = layer.keys(layer.query(x))[1]
        self.distinct = int(slots.unique().numel())
        # Rows, and two moments of each, read and written.
        self.written_bytes = 2 * 3 * self.distinct * layer.values.weight[0].nbytes

    def check(self, name: str, module: nn.Module) -> Callable[[], None]:
        def check() -> None:
            exact = self._exact(module)
            module.zero_grad()
            x = self.x.clone().requires_grad_()
            out = module(x)
            check_norm(f"{name}, output,", out.detach(), exact.pop("out"), TOLERANCE)
            out.backward(self.d_out)
            gradients = {n: p.grad for n, p in _owner(module).named_parameters()}
            for label, gradient in exact.items():
                actual = x.grad if label == "x" else gradients[label]
                if actual is None:
                    raise AssertionError(f"{name} left no gradient of {label}")
                check_norm(f"{name}, gradient of {label},", actual, gradient, TOLERANCE)
            module.zero_grad()
            self.layer.values.pending.clear()

        return check

    def _exact(self, module: nn.Module) -> dict[str, Tensor]:
        """Output and gradients in fp64, by name."""
        x = self.x.double().requires_grad_()
        if isinstance(module, SwiGLU):
            wide: nn.Module = copy.deepcopy(module).double()
            out = wide(x)
            parameters = dict(wide.named_parameters())
        else:
            out, parameters = self._memory(x)
        out.backward(self.d_out.double())
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        assert x.grad is not None
        return {"out": out.detach(), "x": x.grad, **gradients}

    def _memory(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        parts = {name: copy.deepcopy(getattr(self.layer, name)).double() for name in _PARTS}
        keys = parts["keys"]
        query = parts["query"](x)
        query = nn.functional.rms_norm(query, query.shape[-1:], eps=1e-6) * keys.gain
        sub_keys = nn.functional.rms_norm(keys.sub_keys, query.shape[-1:], eps=1e-6)
        with torch.no_grad():
            _, slots = find_reference.product_key_topk(query, sub_keys, keys.top_k)
        # The scores of these slots again, for a gradient by autograd alone.
        halves = torch.einsum("thpc,hpmc->thpm", query, sub_keys)
        first = halves[:, :, 0].gather(-1, slots // sub_keys.shape[2])
        second = halves[:, :, 1].gather(-1, slots % sub_keys.shape[2])
        weights = (first + second).softmax(dim=-1).flatten(1)
        rows = self.layer.values.weight.detach()[slots.flatten(1)].double()
        out = parts["gate"]((weights[:, None] @ rows)[:, 0], x)
        named = {
            f"{part}.{name}": p
            for part, module in parts.items()
            for name, p in module.named_parameters()
        }
        return out, named


_PARTS = ("query", "keys", "gate")


def _owner(module: nn.Module) -> nn.Module:
    return module.layer if isinstance(module, EagerMemoryLayer) else module
