"""Every kind of memory layer against the same checks. A new variant is a new row of CASES."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from helpers import exact_pair_scores
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from memory_layers.config import MemoryConfig
from memory_layers.layers import MemoryBeside, MemoryLayer
from memory_layers.ops.write import row_sums

DIM = 12
CASES = {
    "default": {},
    "one-head": {"heads": 1},
    "one-slot-a-head": {"top_k": 1},
    "all-sub-keys": {"top_k": 7},
    "one-sub-key": {"sub_keys": 1, "top_k": 1},
    "wide-keys": {"key_dim": 34},
    "narrow-keys": {"key_dim": 4},
    "keys-of-width-one": {"key_dim": 2, "qk_norm": False},
    "values-wider-than-model": {"value_dim": 20},
    "values-of-width-one": {"value_dim": 1, "key_dim": 4},
    "own-table": {"share_values": False},
    "sigmoid-gate": {"gate": "sigmoid"},
    "sigmoid-gate-other-width": {"gate": "sigmoid", "value_dim": 5, "key_dim": 4},
    "no-gate": {"gate": "none"},
    "no-gate-other-width": {"gate": "none", "value_dim": 5, "key_dim": 4},
    "no-qk-norm": {"qk_norm": False},
    "beside": {"placement": "beside"},
    "beside-sigmoid": {"placement": "beside", "gate": "sigmoid"},
    "beside-no-gate": {"placement": "beside", "gate": "none"},
    "values-start-at-zero": {"value_init_std": 0.0},
    "fp32-values": {"value_dtype": "float32"},
    "bf16-values": {"value_dtype": "bfloat16"},
    "sparse": {"grad_mode": "sparse"},
    "dense": {"grad_mode": "dense"},
    "dense-bf16-values": {"grad_mode": "dense", "value_dtype": "bfloat16"},
}
every_case = pytest.mark.parametrize("name", CASES)


def build(name: str, **changes: object) -> MemoryLayer:
    sizes = {"layers": (0,), "sub_keys": 7, "heads": 2, "top_k": 3, "value_init_std": 0.5}
    return MemoryLayer(MemoryConfig(**{**sizes, **CASES[name], **changes}), DIM)


def open_output(layer: MemoryLayer) -> MemoryLayer:
    """Move what starts at zero away from it, so that gradients can pass."""
    for parameter in layer.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.5)
    return layer


def table_gradient(layer: MemoryLayer) -> Tensor:
    """The gradient of the table as a dense tensor, whatever mode keeps it."""
    table = layer.values
    if table.weight.grad is not None:
        grad = table.weight.grad
        return (grad.to_dense() if grad.is_sparse else grad).float()
    gradient = table.pending.row_gradient()
    out = torch.zeros(table.weight.shape)
    if gradient is not None:
        rows, sums = row_sums(gradient)
        out[rows] = sums
    return out


def all_gradients(layer: nn.Module) -> dict[str, Tensor]:
    """Gradients by parameter name, the table's included."""
    grads = {}
    for name, parameter in layer.named_parameters():
        if parameter is layer.values.weight:
            grads[name] = table_gradient(layer)
        elif parameter.grad is not None:
            grads[name] = parameter.grad.clone()
    return grads


def assert_gradients_equal(
    actual: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-5
) -> None:
    assert actual.keys() == expected.keys()
    for name, grad in expected.items():
        scale = float(grad.abs().max())
        torch.testing.assert_close(
            actual[name], grad, rtol=rtol, atol=rtol * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@every_case
def test_every_parameter_gets_a_gradient(name: str) -> None:
    layer = open_output(build(name))
    x = torch.randn(2, 15, DIM, requires_grad=True)
    layer(x).square().sum().backward()
    gradients = all_gradients(layer)
    assert gradients.keys() == dict(layer.named_parameters()).keys()
    # With one slot the softmax is 1 whatever the score: nothing can reach the query and the keys.
    constant = layer.keys.top_k == 1
    for parameter, grad in {**gradients, "x": x.grad}.items():
        assert grad.isfinite().all(), parameter
        through_scores = parameter.startswith(("query.", "keys.")) or parameter == "x"
        if through_scores and constant and parameter != "x":
            assert not grad.any(), parameter
        elif parameter == "x" and constant and name == "no-gate":
            assert not grad.any()
        else:
            assert grad.any(), f"{parameter} has a gradient of zero"


@every_case
def test_output_is_the_formula(name: str) -> None:
    """Equations 1 and 2 of arXiv 2412.09764, written out over all slots in fp64."""
    layer = open_output(build(name))
    x = torch.randn(9, DIM)
    exact = copy.deepcopy(layer).double()
    x64 = x.double()
    query = nn.functional.linear(x64, exact.query.proj.weight, exact.query.proj.bias)
    query = query.view(9, layer.query.heads, 2, layer.query.half_dim)
    sub_keys = exact.keys.sub_keys
    if exact.keys.gain is not None:
        query = query / (query.square().mean(-1, keepdim=True) + 1e-6).sqrt() * exact.keys.gain
        sub_keys = sub_keys / (sub_keys.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    scores, slots = exact_pair_scores(query, sub_keys).topk(layer.keys.top_k, dim=-1)
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    read = torch.einsum("thk,thkv->tv", weights, exact.values.weight[slots])
    gate = exact.gate
    if hasattr(gate, "hidden"):
        hidden = nn.functional.linear(x64, gate.hidden.weight, gate.hidden.bias)
        expected = gate.out(read * hidden * torch.sigmoid(hidden))
    elif hasattr(gate, "scalar"):
        inner = read if gate.out.out is None else gate.out.out(read)
        expected = torch.sigmoid(x64 @ gate.scalar.weight.T + gate.scalar.bias) * inner
    else:
        expected = read if gate.out is None else gate.out(read)
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-5)


@every_case
def test_eval_equals_train(name: str) -> None:
    layer = open_output(build(name))
    x = torch.randn(5, DIM)
    trained = layer.train()(x)
    with torch.no_grad():
        assert torch.equal(layer.eval()(x), trained)
    with torch.inference_mode():
        assert torch.equal(layer(x), trained)


@every_case
def test_tokens_do_not_meet_and_shapes_are_kept(name: str) -> None:
    layer = open_output(build(name))
    x = torch.randn(2, 3, 4, DIM)
    out = layer(x)
    assert out.shape == x.shape
    torch.testing.assert_close(layer(x[1, 2]), out[1, 2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer(x[1, 2, 3]), out[1, 2, 3], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer(x.transpose(0, 2)), out.transpose(0, 2), rtol=1e-5, atol=1e-6)
    assert layer(x[:, :0]).shape == (2, 0, 4, DIM)


@every_case
def test_bf16_is_close_to_fp32(name: str) -> None:
    layer = open_output(build(name)).bfloat16()
    x = torch.randn(40, DIM).bfloat16()
    wide = copy.deepcopy(layer).float()
    out = layer(x)
    assert out.dtype == torch.bfloat16
    error = (out.float() - wide(x.float())).norm(dim=-1)
    # A query that bf16 moves across a border reads another slot: half of the tokens may not.
    assert error.median() <= 0.05 * wide(x.float()).norm(dim=-1).median() + 1e-6
    out.float().square().sum().backward()
    for parameter, grad in all_gradients(layer).items():
        assert grad.isfinite().all(), parameter


@every_case
def test_state_dict_round_trip_changes_nothing(name: str, tmp_path: Path) -> None:
    layer = open_output(build(name))
    x = torch.randn(5, DIM)
    layer(x).sum().backward()
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    torch.manual_seed(1)
    other = build(name)
    other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True), strict=True)
    assert torch.equal(other(x), layer(x))
    assert other.values.weight.dtype == layer.values.weight.dtype


@every_case
def test_copies_are_whole_and_separate(name: str) -> None:
    layer = open_output(build(name))
    x = torch.randn(5, DIM)
    expected = layer(x)
    layer(x).sum().backward()
    before = table_gradient(layer)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), expected)
        twin(x).sum().backward()
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
    assert torch.equal(layer(x), expected)
    torch.testing.assert_close(table_gradient(layer), before)


@every_case
def test_gradient_checkpointing_gives_the_same_gradients(name: str) -> None:
    layer = open_output(build(name))
    x = torch.randn(5, DIM, requires_grad=True)
    layer(x).square().sum().backward()
    plain = {**all_gradients(layer), "x": x.grad.clone()}
    for reentrant in (False, True):
        layer.zero_grad()
        layer.values.pending.clear()
        x.grad = None
        checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
        assert_gradients_equal({**all_gradients(layer), "x": x.grad}, plain)


@every_case
def test_reset_draws_every_parameter_anew(name: str) -> None:
    """What meta-device building and transformers' _init_weights rely on."""
    layer = build(name)
    initial = copy.deepcopy(layer.state_dict())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(float("nan"))
    for module in (layer.query, layer.keys, layer.gate, layer.values):
        module.reset_parameters()
    for key, fresh in layer.state_dict().items():
        assert fresh.isfinite().all(), key
        was = initial[key].float()
        constant = bool((was == was.flatten()[0]).all())
        assert torch.equal(fresh.float(), was) == constant, key
        if fresh.numel() >= 50 and not constant:
            assert float(fresh.float().std()) == pytest.approx(float(was.std()), rel=0.5), key


@pytest.mark.parametrize("gate", ["silu", "sigmoid", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beside_starts_as_an_exact_no_op(gate: str, dtype: torch.dtype) -> None:
    mlp = nn.Linear(DIM, DIM).to(dtype)
    memory = build("beside", gate=gate, value_init_std=10.0).to(dtype)
    block = MemoryBeside(mlp, memory)
    x = torch.randn(6, DIM).to(dtype)
    assert not memory(x).any()
    assert torch.equal(block(x), mlp(x))
    loss = block(x).square().sum()
    loss.backward()
    assert block.memory.gate.get_parameter(
        {"silu": "out.weight", "sigmoid": "out.out.weight", "none": "out.weight"}[gate]
    ).grad.any(), "the output can leave zero"


def test_initial_values_have_the_asked_spread() -> None:
    layer = build("default", sub_keys=40, value_init_std=None)
    assert float(layer.values.weight.detach().std()) == pytest.approx(0.02 * DIM**-0.5, rel=0.05)
    layer = build("default", sub_keys=40, value_init_std=0.3)
    assert float(layer.values.weight.detach().std()) == pytest.approx(0.3, rel=0.05)


def test_qk_norm_ignores_the_length_of_sub_keys() -> None:
    layer = build("default")
    x = torch.randn(5, DIM)
    expected = layer(x)
    with torch.no_grad():
        layer.keys.sub_keys *= 8.0
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_autocast_selects_the_slots_of_fp32() -> None:
    layer = build("default", sub_keys=50, top_k=5)
    x = torch.randn(30, DIM)
    query = layer.query(x)
    scores, slots = layer.keys(query)
    with torch.autocast("cpu", torch.bfloat16):
        cast_scores, cast_slots = layer.keys(query)
    assert cast_scores.dtype == torch.float32
    assert torch.equal(cast_slots, slots)
    assert torch.equal(cast_scores, scores)


@pytest.mark.parametrize("grad_mode", ["factored", "sparse", "dense"])
def test_autocast_trains(grad_mode: str) -> None:
    layer = build("default", grad_mode=grad_mode)
    x = torch.randn(60, DIM)
    layer(x).square().sum().backward()
    plain = all_gradients(layer)
    layer.zero_grad()
    layer.values.pending.clear()
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(x).square().sum()
    loss.backward()
    for name, grad in all_gradients(layer).items():
        assert grad.dtype == torch.float32
        cosine = nn.functional.cosine_similarity(grad.flatten(), plain[name].flatten(), dim=0)
        assert cosine > 0.95, f"{name}: {cosine}"


@pytest.mark.parametrize("grad_mode", ["factored", "sparse", "dense"])
def test_frozen_table(grad_mode: str) -> None:
    layer = build("default", grad_mode=grad_mode)
    x = torch.randn(8, DIM)
    layer(x).square().sum().backward()
    free = all_gradients(layer)
    layer.zero_grad()
    layer.values.pending.clear()
    layer.values.weight.requires_grad_(False)
    layer(x).square().sum().backward()
    assert layer.values.weight.grad is None
    assert len(layer.values.pending) == 0
    for name, parameter in layer.named_parameters():
        if parameter is not layer.values.weight:
            assert torch.equal(parameter.grad, free[name])


def test_nan_in_a_token_is_not_hidden() -> None:
    layer = build("no-gate")
    x = torch.randn(6, DIM)
    clean = layer(x)
    x[2, 5] = float("nan")
    out = layer(x)
    assert out[2].isnan().all()
    others = torch.arange(6) != 2
    torch.testing.assert_close(out[others], clean[others], rtol=1e-5, atol=1e-6)


def test_two_layers_in_one_process_share_nothing() -> None:
    one, other = build("default"), build("default")
    x = torch.randn(5, DIM)
    expected = other(x)
    one(x).sum().backward()
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()
    assert torch.equal(other(x), expected)
    assert len(one.values.pending) == 1
    assert len(other.values.pending) == 0
    assert not {id(p) for p in one.parameters()} & {id(p) for p in other.parameters()}
