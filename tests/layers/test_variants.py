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
from memory_layers.layers import MemoryBeside, MemoryLayer, ValueTable
from memory_layers.layers.walk import freeze_keys

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
    "beside-values-at-zero": {"placement": "beside", "value_init_std": 0},
    "beside-no-gate-values-at-zero": {"placement": "beside", "gate": "none", "value_init_std": 0},
    "fp32-values": {"value_dtype": torch.float32},
    "bf16-values": {"value_dtype": torch.bfloat16},
    "batch-norm": {"query_norm": "batch"},
    "batch-norm-no-qk-norm": {"query_norm": "batch", "qk_norm": False},
    "layer-norm": {"query_norm": "layer"},
    "layer-norm-no-qk-norm": {"query_norm": "layer", "qk_norm": False},
    "relu": {"weighing": "relu"},
    "sigmoid": {"weighing": "sigmoid"},
    "sigmoid-one-slot": {"weighing": "sigmoid", "top_k": 1, "gate": "none"},
    "experts": {"readout": "experts", "gate": "none"},
    "experts-silu-other-width": {"readout": "experts", "value_dim": 20},
    "experts-beside-relu": {"readout": "experts", "placement": "beside", "weighing": "relu"},
    "experts-sigmoid": {"readout": "experts", "gate": "sigmoid"},
    "experts-bf16-values": {"readout": "experts", "value_dtype": torch.bfloat16},
    "linear-experts": {"readout": "linear_experts", "gate": "none"},
    "random-slots": {"random_slots": 2},
    "random-slots-no-qk-norm": {"random_slots": 5, "qk_norm": False, "weighing": "sigmoid"},
    "random-experts": {"random_slots": 2, "readout": "experts"},
    "sink": {"sink_slot": True},
    "sink-no-qk-norm": {"sink_slot": True, "qk_norm": False, "gate": "none"},
    "sink-random-slots": {"sink_slot": True, "random_slots": 2, "value_dim": 5, "key_dim": 4},
    "fixed-keys": {},
    "fixed-keys-all": {"readout": "experts", "query_norm": "batch", "random_slots": 1},
}  # fmt: skip
every_case = pytest.mark.parametrize("name", CASES)
RESET = "reset_parameters"


def build(name: str, **changes: object) -> MemoryLayer:
    sizes = {"layers": (0,), "sub_keys": 7, "heads": 2, "top_k": 3, "value_init_std": 0.5}
    fields = {**sizes, **CASES[name], **changes}
    dtype = fields.pop("value_dtype", None)
    layer = MemoryLayer(MemoryConfig(**fields), DIM, value_dtype=dtype)
    if "fixed-keys" in name:
        freeze_keys(layer)
    return layer


def run(layer: MemoryLayer, x: Tensor) -> Tensor:
    """Call a layer, with the same draws each time."""
    torch.manual_seed(3)
    return layer(x)


def is_stable(name: str) -> bool:
    """Whether training computes what evaluation does."""
    return "random_slots" not in CASES[name] and CASES[name].get("query_norm") != "batch"


def open_output(layer: MemoryLayer) -> MemoryLayer:
    """Move what starts at zero away from it, so that gradients can pass."""
    for parameter in layer.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.5)
    return layer


def tables_of(layer: MemoryLayer) -> list[ValueTable]:
    return [module for module in layer.modules() if isinstance(module, ValueTable)]


def leaving(kind: str, layer: MemoryLayer) -> MemoryLayer:
    """Let the tables of a layer leave gradients of a kind."""
    for table in tables_of(layer):
        table.sparse = kind == "sparse"
        if kind == "factored":
            table.claim(layer)
    return layer


def forget(layer: MemoryLayer) -> None:
    layer.zero_grad()


def table_gradient(table: ValueTable) -> Tensor:
    """The gradient of a table as a dense tensor."""
    grad = table.weight.grad
    return torch.zeros(table.weight.shape) if grad is None else grad.to_dense().float()


def all_gradients(layer: nn.Module) -> dict[str, Tensor]:
    """Gradients by parameter name, the table's included."""
    grads = {}
    tables = {id(table.weight): table for table in tables_of(layer)}
    for name, parameter in layer.named_parameters():
        if id(parameter) in tables:
            grads[name] = table_gradient(tables[id(parameter)])
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
    trained = {name for name, p in layer.named_parameters() if p.requires_grad}
    assert gradients.keys() == trained
    # With one slot the softmax is 1 whatever the score: nothing can reach the query and the keys.
    constant = layer.keys.top_k == 1 and layer.weighing == "softmax"
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
    if layer.query.proj.bias is not None:
        nn.init.normal_(layer.query.proj.bias)
    x = torch.randn(9, DIM)
    exact = copy.deepcopy(layer).double()
    x64 = x.double()
    query = nn.functional.linear(x64, exact.query.proj.weight, exact.query.proj.bias)
    if CASES[name].get("query_norm") == "batch":
        open_norm(exact.query.batch_norm, layer.query.batch_norm)
        centred = query - query.mean(0)
        query = centred / (centred.square().mean(0) + 1e-5).sqrt()
        query = query * exact.query.batch_norm.weight + exact.query.batch_norm.bias
    query = query.view(9, layer.query.heads, 2, layer.query.half_dim)
    if CASES[name].get("query_norm") == "layer":
        open_norm(exact.query.layer_norm, layer.query.layer_norm)
        centred = query - query.mean(-1, keepdim=True)
        query = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        query = query * exact.query.layer_norm.weight + exact.query.layer_norm.bias
    sub_keys, sink_key = exact.keys.sub_keys, getattr(exact.keys, "sink_key", None)
    if exact.keys.gain is not None:
        query = rms(query) * exact.keys.gain
        sub_keys = rms(sub_keys)
        sink_key = None if sink_key is None else rms(sink_key)
    every_score = exact_pair_scores(query, sub_keys)
    scores, slots = every_score.topk(layer.keys.top_k, dim=-1)
    if random_slots := CASES[name].get("random_slots"):
        torch.manual_seed(3)
        drawn = torch.randint(layer.values.weight.shape[0], (*slots.shape[:2], random_slots))
        scores = torch.cat([scores, every_score.gather(-1, drawn)], -1)
        slots = torch.cat([slots, drawn], -1)
    if sink_key is not None:
        scores = torch.cat([scores, (query * sink_key).sum((2, 3))[..., None]], -1)
    if layer.weighing == "softmax":
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    elif layer.weighing == "relu":
        weights = scores.clamp(min=0)
    else:
        weights = 1 / (1 + (-scores).exp())
    on_slots = weights[..., : slots.shape[-1]]
    if "experts" in CASES[name].get("readout", ""):
        hidden = torch.einsum("thkd,td->thk", exact.experts.weight[slots], x64)
        if CASES[name]["readout"] == "experts":
            hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        on_slots = on_slots * hidden
    read = torch.einsum("thk,thkv->tv", on_slots, exact.values.weight[slots])
    if sink_key is not None:
        read = read + weights[..., -1].sum(1)[:, None] * exact.sink.weight
    gate = exact.gate
    if hasattr(gate, "hidden"):
        hidden = nn.functional.linear(x64, gate.hidden.weight, gate.hidden.bias)
        expected = gate.out(read * hidden * torch.sigmoid(hidden))
    elif hasattr(gate, "scalar"):
        inner = read if gate.out.out is None else gate.out.out(read)
        expected = torch.sigmoid(x64 @ gate.scalar.weight.T + gate.scalar.bias) * inner
    else:
        expected = read if gate.out is None else gate.out(read)
    torch.testing.assert_close(run(layer, x).double(), expected, rtol=1e-4, atol=1e-5)


def open_norm(exact: nn.Module, norm: nn.Module) -> None:
    """Move scale and shift of a norm away from one and zero, and of its exact copy alike."""
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    exact.load_state_dict(norm.state_dict())


def rms(tensor: Tensor) -> Tensor:
    return tensor / (tensor.square().mean(-1, keepdim=True) + 1e-6).sqrt()


@every_case
def test_eval_equals_train(name: str) -> None:
    layer = open_output(build(name))
    x = torch.randn(5, DIM)
    trained = layer.train()(x)
    if not is_stable(name):
        assert not torch.equal(layer.eval()(x), trained)
        trained = layer(x)
    with torch.no_grad():
        assert torch.equal(layer.eval()(x), trained)
    with torch.inference_mode():
        assert torch.equal(layer(x), trained)


@every_case
def test_tokens_do_not_meet_and_shapes_are_kept(name: str) -> None:
    layer = open_output(build(name)).eval()
    x = torch.randn(2, 3, 4, DIM)
    out = layer(x)
    assert out.shape == x.shape
    torch.testing.assert_close(layer(x[1, 2]), out[1, 2], rtol=1e-5, atol=1e-6)
    # One token is scored and read by other kernels, whose sums are in another order.
    torch.testing.assert_close(layer(x[1, 2, 3]), out[1, 2, 3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(x.transpose(0, 2)), out.transpose(0, 2), rtol=1e-5, atol=1e-6)
    assert layer(x[:, :0]).shape == (2, 0, 4, DIM)


@every_case
def test_bf16_is_close_to_fp32(name: str) -> None:
    layer = open_output(build(name)).bfloat16()
    x = torch.randn(40, DIM).bfloat16()
    wide = copy.deepcopy(layer).float()
    out = run(layer, x)
    assert out.dtype == torch.bfloat16
    exact = run(wide, x.float())
    error = (out.float() - exact).norm(dim=-1)
    # A query that bf16 moves across a border reads another slot: half of the tokens may not.
    assert error.median() <= 0.05 * exact.norm(dim=-1).median() + 1e-6
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
    assert torch.equal(run(other, x), run(layer, x))
    # What batch norm keeps for evaluation is among it.
    assert torch.equal(other.eval()(x), layer.eval()(x))
    assert [t.weight.dtype for t in tables_of(other)] == [t.weight.dtype for t in tables_of(layer)]


@every_case
def test_copies_are_whole_and_separate(name: str) -> None:
    layer = open_output(build(name))
    x = torch.randn(5, DIM)
    expected = run(layer, x)
    layer(x).sum().backward()
    before = [table_gradient(table) for table in tables_of(layer)]
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(run(twin, x), expected)
        twin(x).sum().backward()
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
    assert torch.equal(run(layer, x), expected)
    torch.testing.assert_close([table_gradient(table) for table in tables_of(layer)], before)


@every_case
def test_gradient_checkpointing_gives_the_same_gradients(name: str) -> None:
    layer = open_output(build(name))
    x = torch.randn(5, DIM, requires_grad=True)
    run(layer, x).square().sum().backward()
    plain = {**all_gradients(layer), "x": x.grad.clone()}
    for reentrant in (False, True):
        forget(layer)
        x.grad = None
        torch.manual_seed(3)
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
        for buffer in layer.buffers():
            buffer.fill_(7)
    for module in layer.modules():
        if type(module).__module__.startswith("memory_layers.") and hasattr(module, RESET):
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


@pytest.mark.parametrize("gate", ["silu", "sigmoid", "none"])
@pytest.mark.parametrize("readout", ["values", "experts"])
@pytest.mark.parametrize("value_dim", [DIM, 2 * DIM])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beside_with_values_at_zero_changes_what_reads_a_written_row(
    gate: str, readout: str, value_dim: int, dtype: torch.dtype
) -> None:
    mlp = nn.Linear(DIM, DIM).to(dtype)
    memory = build("beside", gate=gate, readout=readout, value_dim=value_dim, value_init_std=0)
    block = MemoryBeside(mlp, memory.to(dtype))
    x = torch.randn(60, DIM).to(dtype)
    before = mlp(x)
    assert torch.equal(block(x), before)
    block(x[:1]).square().sum().backward()
    written = memory.values.weight.grad.any(1)
    assert written.any(), "the values can leave zero"
    with torch.no_grad():
        memory.values.weight[written] = 1.0
    reads = written[memory.keys(memory.query(x))[1].flatten(1)].any(1)
    assert reads.any()
    assert not reads.all()
    changed = (block(x) != before).any(1)
    assert torch.equal(changed, reads)


def test_beside_with_values_at_zero_needs_no_map_of_its_own() -> None:
    layer = build("beside", gate="none", value_init_std=0)
    assert not list(layer.gate.parameters())


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


@pytest.mark.parametrize(
    "name",
    [
        "default", "experts", "experts-sigmoid", "batch-norm", "layer-norm",
        "random-slots", "random-slots-no-qk-norm", "sink", "sink-no-qk-norm",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["factored", "sparse", "dense"])
def test_autocast_trains(name: str, kind: str) -> None:
    layer = leaving(kind, build(name))
    x = torch.randn(60, DIM)
    run(layer, x).square().sum().backward()
    plain = all_gradients(layer)
    forget(layer)
    with torch.autocast("cpu", torch.bfloat16):
        loss = run(layer, x).square().sum()
    loss.backward()
    for name, grad in all_gradients(layer).items():
        assert grad.dtype == torch.float32
        cosine = nn.functional.cosine_similarity(grad.flatten(), plain[name].flatten(), dim=0)
        assert cosine > 0.95, f"{name}: {cosine}"


@pytest.mark.parametrize("readout", ["values", "experts"])
@pytest.mark.parametrize("kind", ["factored", "sparse", "dense"])
def test_frozen_table(kind: str, readout: str) -> None:
    layer = leaving(kind, build("default", readout=readout))
    x = torch.randn(8, DIM)
    layer(x).square().sum().backward()
    free = all_gradients(layer)
    forget(layer)
    frozen = tables_of(layer)
    for table in frozen:
        table.weight.requires_grad_(False)
    layer(x).square().sum().backward()
    for table in frozen:
        assert table.weight.grad is None
    for name, parameter in layer.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter.grad, free[name])


def test_initial_experts_have_products_of_the_size_of_the_input() -> None:
    layer = build("experts", sub_keys=40)
    x = torch.randn(200, DIM)
    products = x @ layer.experts.weight.detach().T
    assert float(products.std()) == pytest.approx(1.0, rel=0.05)


def test_random_slots_are_uniform_and_differ_by_head_and_token() -> None:
    layer = build("default", random_slots=3)
    _, slots = layer.keys(layer.query(torch.randn(3000, DIM)))
    drawn = slots[..., 3:]
    assert drawn.shape == (3000, 2, 3)
    counts = drawn.flatten().bincount(minlength=49)
    assert counts.min() > 260, "18000 draws from 49 slots are 367 each"
    assert counts.max() < 480
    assert (drawn[:, 0] == drawn[:, 1]).float().mean() < 0.1
    assert (drawn[1:] == drawn[:-1]).float().mean() < 0.1


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
    assert one.values.weight.grad is not None
    assert other.values.weight.grad is None
    assert not {id(p) for p in one.parameters()} & {id(p) for p in other.parameters()}
