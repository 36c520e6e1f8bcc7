"""MemoryAdamW against torch.optim.AdamW where both mean the same, and where it is lazy."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from memory_layers import MemoryAdamW, MemoryConfig, MemoryLayer, ValueTable
from memory_layers.layers.factored import FactoredGradient
from memory_layers.ops.write import row_sums

MODES = ("factored", "sparse", "dense")
DIM, N, V = 8, 16, 6


class SmallModel(nn.Module):
    """A norm, a matrix and two memory layers on one table of 16 rows."""

    def __init__(self) -> None:
        super().__init__()
        config = MemoryConfig(layers=(0, 1), sub_keys=4, heads=4, top_k=4, value_init_std=0.5)
        self.norm = nn.LayerNorm(DIM)
        self.proj = nn.Linear(DIM, DIM)
        self.memory_table = ValueTable(N, DIM, init_std=0.5)
        self.first = MemoryLayer(config, DIM, owner=self)
        self.second = MemoryLayer(config, DIM, owner=self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(self.norm(x))
        x = x + self.first(x)
        return x + self.second(x)


def small_model(seed: int = 1) -> SmallModel:
    torch.manual_seed(seed)
    return SmallModel()


def into_mode(table: ValueTable, mode: str) -> None:
    """Exchange the gradient that a backward pass has left for another of the same numbers."""
    grad = table.weight.grad
    assert isinstance(grad, FactoredGradient)
    if mode != "factored":
        table.weight.grad = grad.to_dense() if mode == "dense" else grad.to_sparse()


def batches(steps: int, tokens: int = 100) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        yield torch.randn(tokens, DIM, generator=generator)


def backward(model: nn.Module, x: Tensor) -> None:
    (model(x) - x.roll(1, dims=1)).square().mean().backward()


def read(table: ValueTable, slots: list[list[int]], scale: float = 1.0) -> None:
    """One backward pass that touches the named rows. scale = 0: with a gradient of zero."""
    index = torch.tensor(slots)
    out = table(index, torch.rand(index.shape) * scale)
    (out * torch.randn(out.shape)).sum().backward()


def new_table(dtype: torch.dtype = torch.float32) -> ValueTable:
    return ValueTable(N, V, init_std=0.5, dtype=dtype)


def states_equal(one: MemoryAdamW, other: MemoryAdamW) -> bool:
    """Whether two optimizers hold the same state, to the bit."""

    def flat(optimizer: MemoryAdamW) -> list:
        state = optimizer.state_dict()["state"]
        return [(i, name, state[i][name]) for i in sorted(state) for name in sorted(state[i])]

    pairs = list(zip(flat(one), flat(other), strict=True))
    return all(
        a[:2] == b[:2]
        and (torch.equal(a[2], b[2]) and a[2].dtype == b[2].dtype
             if isinstance(a[2], Tensor) else a[2] == b[2])
        for a, b in pairs
    )  # fmt: skip


# --- equal to torch.optim.AdamW -------------------------------------------------------------


# fp64 without decay, which is kept in fp32, shows that the formulas are the same.
@pytest.mark.parametrize(
    ("dtype", "value_decay", "tolerance"),
    [(torch.float32, 0.3, 2e-4), (torch.float64, 0.0, 1e-10)],
)
@pytest.mark.parametrize("grad_mode", MODES)
def test_equals_adamw_when_every_row_is_touched(
    grad_mode: str, dtype: torch.dtype, value_decay: float, tolerance: float
) -> None:
    model, twin = small_model().to(dtype), small_model().to(dtype)
    optimizer = MemoryAdamW(
        model, lr=3e-3, value_lr=1e-2, weight_decay=0.2, value_weight_decay=value_decay,
        value_state="full",
    )  # fmt: skip
    matrices = [p for n, p in twin.named_parameters() if p.dim() >= 2 and "gain" not in n]
    decayed = [p for p in matrices if p is not twin.memory_table.weight]
    rest = [p for n, p in twin.named_parameters() if p.dim() < 2 or "gain" in n]
    plain = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": 0.2},
            {"params": rest, "weight_decay": 0.0},
            {"params": [twin.memory_table.weight], "weight_decay": value_decay, "lr": 1e-2},
        ],
        lr=3e-3,
        betas=(0.9, 0.95),
    )
    start = copy.deepcopy(model.state_dict())
    for x in batches(10):
        backward(model, x.to(dtype))
        backward(twin, x.to(dtype))
        into_mode(model.memory_table, grad_mode)
        assert len(model.memory_table.row_gradient().rows) == N, "every row must be touched"
        for either in (optimizer, plain):
            either.step()
            either.zero_grad()
    for name, expected in twin.state_dict().items():
        actual = model.state_dict()[name]
        moved = (expected - start[name]).abs().max()
        assert (actual - expected).abs().max() <= tolerance * moved, name


def test_model_without_memory_is_plain_adamw() -> None:
    torch.manual_seed(0)
    model = nn.Linear(DIM, DIM)
    twin = copy.deepcopy(model)
    optimizer = MemoryAdamW(model, lr=1e-2, weight_decay=0.5)
    plain = torch.optim.AdamW(
        [
            {"params": [twin.weight], "weight_decay": 0.5},
            {"params": [twin.bias], "weight_decay": 0.0},
        ],
        lr=1e-2,
        betas=(0.9, 0.95),
        fused=True,
    )
    assert optimizer.memory_group is None
    for x in batches(3):
        for either, its_optimizer in ((model, optimizer), (twin, plain)):
            backward(either, x)
            norm = torch.nn.utils.get_total_norm([p.grad for p in either.parameters()])
            if either is model:
                norms = optimizer.clip_grad_norm_(0.1, value_max_norm=0.1)
                assert norms == (pytest.approx(float(norm)), 0.0)
            else:
                torch.nn.utils.clip_grad_norm_(either.parameters(), 0.1)
            its_optimizer.step()
            its_optimizer.zero_grad()
    assert torch.equal(model.weight, twin.weight)
    assert torch.equal(model.bias, twin.bias)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    assert optimizer.memory_group is None


def test_groups() -> None:
    model = small_model()
    optimizer = MemoryAdamW(model, lr=1e-3, value_lr=1e-2)
    decayed, plain, tables = optimizer.param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {
        "proj.weight",
        *(
            f"{layer}.{name}"
            for layer in ("first", "second")
            for name in ("query.proj.weight", "keys.sub_keys", "gate.hidden.weight",
                         "gate.out.weight")
        ),
    }  # fmt: skip
    assert [names[id(p)] for p in tables["params"]] == ["memory_table.weight"]
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, grouped)) == sorted(names)
    assert (decayed["weight_decay"], plain["weight_decay"], tables["weight_decay"]) == (0.1, 0, 0)
    assert (decayed["lr"], plain["lr"], tables["lr"]) == (1e-3, 1e-3, 1e-2)
    assert [g["memory"] for g in optimizer.param_groups] == [False, False, True]
    assert MemoryAdamW(model, lr=5e-3).memory_group["lr"] == 5e-3


# --- lazy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value_state", ["ahead", "full", "row"])
@pytest.mark.parametrize("grad_mode", MODES)
def test_untouched_rows_and_their_moments_do_not_move(grad_mode: str, value_state: str) -> None:
    table = new_table()
    optimizer = MemoryAdamW(table, value_state=value_state, value_weight_decay=0.5)
    read(table, [list(range(N))])
    into_mode(table, grad_mode)
    optimizer.step()
    optimizer.zero_grad()
    state = optimizer.state[table.weight]
    moments = [name for name in ("exp_avg", "exp_avg_sq") if name in state]
    before = {name: state[name].clone() for name in moments}
    values = table.weight.detach().clone()
    read(table, [[2, 5], [5, 9]])
    into_mode(table, grad_mode)
    optimizer.step()
    touched = torch.zeros(N, dtype=torch.bool)
    touched[[2, 5, 9]] = True
    assert torch.equal((table.weight.detach() != values).any(1), touched)
    for name in moments:
        assert torch.equal((state[name] != before[name]).any(1), touched)


@pytest.mark.parametrize("grad_mode", MODES)
def test_row_with_one_number_in_its_gradient_is_touched(grad_mode: str) -> None:
    table = new_table()
    optimizer = MemoryAdamW(table, lr=0.1, value_weight_decay=0.5, value_state="full")
    before = table.weight.detach().clone()
    table(torch.tensor([[2, 5]]), torch.ones(1, 2))[:, 3].sum().backward()
    into_mode(table, grad_mode)
    optimizer.step()
    expected = before.clone()
    expected[[2, 5]] *= 1 - 0.1 * 0.5
    expected[[2, 5], 3] -= 0.1
    torch.testing.assert_close(table.weight.detach(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.0, 0.9), (0.9, 0.999)])
# Decay is that of the steps after the last touch, too: rows have gone ahead of it a little.
@pytest.mark.parametrize(("decay", "tolerance"), [(0.0, 1e-5), (0.05, 0.02)])
def test_a_row_is_where_adamw_would_leave_it(
    dtype: torch.dtype, betas: tuple[float, float], decay: float, tolerance: float
) -> None:
    """Ahead: at once, from the first step on, with the learning rate of its touch."""
    table = new_table(dtype)
    start = table.weight.detach().clone()
    twin = start.clone().requires_grad_()
    optimizer = MemoryAdamW(table, lr=0.1, betas=betas, eps=0.0, value_weight_decay=decay)
    plain = torch.optim.AdamW([twin], lr=0.1, betas=betas, eps=1e-30, weight_decay=decay)
    # Where the rate changes, all rows are touched whose momentum goes on.
    touched_in = {1: [1, 3], 2: [1], 5: [0, 1, 3], 9: [3, 15], 30: [1]}
    for step in range(1, 400):
        for group in (*optimizer.param_groups, *plain.param_groups):
            group["lr"] = 0.1 if step < 5 else 0.03
        if rows := touched_in.get(step, []):
            read(table, [rows])
        elif step == 399 and decay:
            read(table, [[0, 1, 3, 15]], scale=0.0)  # catches up with the decay
        gradient = table.row_gradient()
        twin.grad = torch.zeros_like(twin)
        if gradient is not None:
            twin.grad[gradient.rows] = row_sums(gradient)[1]
        optimizer.step()
        optimizer.zero_grad()
        plain.step()
        if step == 30:
            at_once = table.weight.detach().clone()
    if not decay:
        assert torch.equal(table.weight, at_once)
    assert table.weight.isfinite().all()
    scale = (twin - start).abs().max()
    assert (table.weight - twin)[[0, 1, 3, 15]].abs().max() <= tolerance * scale
    assert (at_once - start).abs()[[0, 1, 3, 15]].amax(1).min() > 0.02


def test_bias_correction_counts_all_steps() -> None:
    """A row first touched in step 3 is corrected for three steps, as documented."""
    table = new_table()
    optimizer = MemoryAdamW(table, lr=0.1, betas=(0.9, 0.95), value_state="full")
    optimizer.step()
    read(table, [[1]])
    optimizer.step()
    read(table, [[4]])
    gradient = table.row_gradient()
    g = gradient.weights[0][0, 0] * gradient.vectors[0][0]
    before = table.weight.detach()[4].clone()
    optimizer.step()
    mean, square = 0.1 * g / (1 - 0.9**3), 0.05 * g.square() / (1 - 0.95**3)
    expected = before - 0.1 * mean / (square.sqrt() + 1e-8)
    torch.testing.assert_close(table.weight.detach()[4], expected)


def test_decay_catches_up_with_every_missed_step() -> None:
    """Also those before the first touch, each with the learning rate of its own step."""
    table = new_table()
    optimizer = MemoryAdamW(table, value_weight_decay=0.3)
    start = table.weight.detach().double().clone()
    due = torch.ones(N, dtype=torch.float64)  # decay of each row that has not been applied
    done = torch.ones(N, dtype=torch.float64)
    touched_in = {2: [1, 3], 3: [1], 6: [0, 1], 9: [3, 15], 10: [1]}
    for step in range(1, 11):
        lr = 0.01 * step
        optimizer.memory_group["lr"] = lr
        due *= 1 - lr * 0.3
        rows = touched_in.get(step, [])
        if rows:
            read(table, [rows], scale=0.0)  # a gradient of zero: nothing but the decay moves
        optimizer.step()
        optimizer.zero_grad()
        done[rows] *= due[rows]
        due[rows] = 1.0
        expected = start * done[:, None]
        torch.testing.assert_close(table.weight.detach().double(), expected, rtol=1e-6, atol=0)
        never = torch.tensor([r for r in range(N) if done[r] == 1])
        assert torch.equal(table.weight.detach()[never].double(), start[never])


def test_decay_survives_save_and_load() -> None:
    tables = [new_table() for _ in range(2)]
    tables[1].load_state_dict(tables[0].state_dict())
    whole = MemoryAdamW(tables[0], lr=0.1, value_weight_decay=0.3)
    parts = MemoryAdamW(tables[1], lr=0.1, value_weight_decay=0.3)
    for step in range(6):
        if step == 3:
            state = copy.deepcopy(parts.state_dict())
            parts = MemoryAdamW(tables[1], lr=0.7)
            parts.load_state_dict(state)
        for table, optimizer in zip(tables, (whole, parts), strict=True):
            if step in (1, 5):
                read(table, [[3]], scale=0.0)
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(tables[0].weight, tables[1].weight)


@pytest.mark.parametrize("value_weight_decay", [0.0, 0.3])
def test_modes_train_the_same_model(value_weight_decay: float) -> None:
    weights = {}
    for mode in MODES:
        model = small_model()
        optimizer = MemoryAdamW(model, lr=3e-3, value_weight_decay=value_weight_decay)
        for x in batches(6, tokens=4):
            backward(model, x[:2])
            backward(model, x[2:])
            into_mode(model.memory_table, mode)
            optimizer.clip_grad_norm_(0.05, value_max_norm=0.02)
            optimizer.step()
            optimizer.zero_grad()
        weights[mode] = model.state_dict()
    start = small_model().state_dict()
    for mode in MODES[1:]:
        for name, expected in weights["factored"].items():
            moved = (expected - start[name]).abs().max()
            assert moved > 0, name
            assert (weights[mode][name] - expected).abs().max() <= 1e-3 * moved, (mode, name)


# --- gradients come and go ------------------------------------------------------------------


def test_zero_grad_forgets_pending_reads() -> None:
    model = small_model()
    optimizer = MemoryAdamW(model)
    backward(model, next(batches(1)))
    assert len(model.memory_table.weight.grad.reads) == 2
    optimizer.zero_grad()
    assert model.memory_table.weight.grad is None
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_step_consumes_pending_reads_once() -> None:
    """As under a trainer that calls model.zero_grad() and not the optimizer's."""
    model = small_model()
    optimizer = MemoryAdamW(model, lr=0.1)
    for x in batches(2):
        model.zero_grad()
        backward(model, x)
        before = model.memory_table.weight.detach().clone()
        optimizer.step()
        assert model.memory_table.weight.grad is None
        assert not torch.equal(model.memory_table.weight, before)
    after = model.memory_table.weight.detach().clone()
    model.zero_grad()
    optimizer.step()
    assert torch.equal(model.memory_table.weight, after)


def test_micro_batches_add_up() -> None:
    models = [small_model() for _ in range(2)]
    optimizers = [MemoryAdamW(model, lr=1e-2) for model in models]
    for x in batches(3, tokens=24):
        (models[0](x) - 1).square().sum().backward()
        for part in x.split(7):
            (models[1](part) - 1).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    start = small_model().state_dict()
    for name, expected in models[0].state_dict().items():
        moved = (expected - start[name]).abs().max()
        assert (models[1].state_dict()[name] - expected).abs().max() <= 1e-3 * moved, name


@pytest.mark.parametrize("grad_mode", MODES)
def test_clip_matches_torch_for_each_group(grad_mode: str) -> None:
    x = next(batches(1))
    twin = small_model()
    backward(twin, x)
    table_grad = twin.memory_table.weight.grad.clone()
    dense = [p for p in twin.parameters() if p is not twin.memory_table.weight]
    dense_norm = torch.nn.utils.clip_grad_norm_(dense, 0.02)
    value_norm = torch.nn.utils.clip_grad_norm_([twin.memory_table.weight], 0.005)
    assert dense_norm > 0.02
    assert value_norm > 0.005

    model = small_model()
    optimizer = MemoryAdamW(model)
    backward(model, x)
    into_mode(model.memory_table, grad_mode)
    norms = optimizer.clip_grad_norm_(0.02, value_max_norm=0.005)
    assert norms == pytest.approx((float(dense_norm), float(value_norm)), rel=1e-5)
    for (name, parameter), expected in zip(
        model.named_parameters(), twin.parameters(), strict=True
    ):
        if parameter is not model.memory_table.weight:
            torch.testing.assert_close(parameter.grad, expected.grad, msg=name)
    torch.testing.assert_close(
        table_gradient(model.memory_table), twin.memory_table.weight.grad, rtol=1e-4, atol=1e-8
    )
    # A second time: the norms are those after the first clipping, and nothing changes.
    norms = optimizer.clip_grad_norm_(1.0, value_max_norm=1.0)
    assert norms == pytest.approx((0.02, 0.005), rel=1e-3)
    clipped = table_gradient(model.memory_table)
    factor = float(clipped.norm() / table_grad.norm())
    torch.testing.assert_close(clipped, table_grad * factor, rtol=1e-4, atol=1e-8)


def table_gradient(table: ValueTable) -> Tensor:
    return table.weight.grad.to_dense()


def test_clip_leaves_small_gradients_alone_and_counts_all_tables() -> None:
    tables = nn.ModuleList([new_table(), new_table()])
    optimizer = MemoryAdamW(tables)
    for table in tables:
        read(table, [[1, 2], [2, 3]])
    before = [table_gradient(table) for table in tables]
    together = float(torch.cat(before).norm())
    dense_norm, value_norm = optimizer.clip_grad_norm_(1e3, value_max_norm=1e3)
    assert dense_norm == 0.0
    assert value_norm == pytest.approx(together, rel=1e-5)
    for table, expected in zip(tables, before, strict=True):
        assert torch.equal(table_gradient(table), expected)
    optimizer.clip_grad_norm_(None, value_max_norm=together / 4)
    for table, expected in zip(tables, before, strict=True):
        torch.testing.assert_close(table_gradient(table), expected / 4, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("grad_mode", MODES)
def test_none_leaves_a_group_alone(grad_mode: str) -> None:
    model, twin = small_model(), small_model()
    optimizer, _ = MemoryAdamW(model), MemoryAdamW(twin)
    for each in (model, twin):
        backward(each, next(batches(1)))
        into_mode(each.memory_table, grad_mode)
    assert optimizer.clip_grad_norm_(None) == (None, None)
    dense_norm, value_norm = optimizer.clip_grad_norm_(1e-3)
    assert dense_norm > 1e-3
    assert value_norm is None
    assert torch.equal(table_gradient(model.memory_table), table_gradient(twin.memory_table))
    dense_norm, value_norm = optimizer.clip_grad_norm_(None, value_max_norm=1e-3)
    assert dense_norm is None
    assert value_norm > 1e-3
    assert not torch.equal(table_gradient(model.memory_table), table_gradient(twin.memory_table))
    assert optimizer.clip_grad_norm_(1.0)[0] == pytest.approx(1e-3, rel=1e-2)


def test_clipped_gradient_is_what_is_stepped() -> None:
    table, twin = new_table(), new_table()
    twin.load_state_dict(table.state_dict())
    # Adam is blind to the scale of a constant gradient: two steps of different size show it.
    for each, clip in ((table, True), (twin, False)):
        torch.manual_seed(5)
        optimizer = MemoryAdamW(each, lr=0.1)
        for size in (1.0, 10.0):
            index = torch.tensor([[1, 2]])
            (each(index, torch.ones(1, 2)) * size).sum().backward()
            if clip:
                optimizer.clip_grad_norm_(1.0, value_max_norm=1.0)
            elif size > 1:
                each.weight.grad.mul_(0.1)
            optimizer.step()
    norm = (2 * V) ** 0.5
    scaled = table.weight.detach()[1], twin.weight.detach()[1]
    assert norm > 1
    # Clipped: both steps have norm 1. Twin: both have norm sqrt(12), so equal up to eps.
    torch.testing.assert_close(*scaled, rtol=1e-4, atol=1e-5)


# --- state ----------------------------------------------------------------------------------

STORAGE = [
    ("float32", {}),
    ("float32", {"value_state": "full"}),
    ("float32", {"value_state": "row"}),
    ("float32", {"value_weight_decay": 0.1}),
    ("bfloat16", {}),
    ("bfloat16", {"value_state": "row", "seed": 5}),
    ("bfloat16", {"bf16_rows": "master", "value_weight_decay": 0.1}),
    ("bfloat16", {"value_state": "full", "bf16_rows": "master"}),
]


@pytest.mark.parametrize(("dtype", "options"), STORAGE)
def test_resume_is_exact(dtype: str, options: dict) -> None:
    def start() -> tuple[SmallModel, MemoryAdamW]:
        model = small_model()
        model.memory_table.to(getattr(torch, dtype))
        return model, MemoryAdamW(model, lr=1e-2, **options)

    def train(model: SmallModel, optimizer: MemoryAdamW, data: list[Tensor]) -> None:
        for x in data:
            backward(model, x)
            optimizer.step()
            optimizer.zero_grad()

    data = list(batches(6, tokens=3))
    whole = start()
    train(*whole, data)

    first = start()
    train(*first, data[:3])
    file = io.BytesIO()
    torch.save({"model": first[0].state_dict(), "optimizer": first[1].state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    torch.manual_seed(99)
    model = SmallModel()
    model.memory_table.to(getattr(torch, dtype))
    resumed = (model, MemoryAdamW(model))
    model.load_state_dict(saved["model"])
    resumed[1].load_state_dict(saved["optimizer"])
    assert states_equal(resumed[1], first[1])
    train(*resumed, data[3:])

    for name, expected in whole[0].state_dict().items():
        assert torch.equal(model.state_dict()[name], expected), name
    assert states_equal(resumed[1], whole[1])
    assert not states_equal(first[1], whole[1])


@pytest.mark.parametrize(("dtype", "options"), STORAGE)
def test_state_has_the_promised_size(dtype: str, options: dict) -> None:
    table = new_table(getattr(torch, dtype))
    optimizer = MemoryAdamW(table, **options)
    read(table, [[1, 2]])
    optimizer.step()
    state = optimizer.state[table.weight]
    shapes = {name: tuple(x.shape) for name, x in state.items() if isinstance(x, Tensor)}
    width = 1 if options.get("value_state") == "row" else V
    expected = {"exp_avg_sq": (N, width)}
    if width == V:
        expected["exp_avg"] = (N, V)
    if "value_state" not in options:
        expected |= {"last_step": (N,), "last_lr": (N,)}
    if "value_weight_decay" in options:
        expected |= {"decayed": (N,)}
    if options.get("bf16_rows") == "master":
        expected["master"] = (N, V)
    assert shapes == expected
    types = {"decayed": torch.float64, "last_step": torch.int32}
    assert all(state[name].dtype == types.get(name, torch.float32) for name in shapes)


def test_loading_takes_a_copy() -> None:
    table = new_table()
    optimizer = MemoryAdamW(table)
    read(table, [[1, 2]])
    optimizer.step()
    saved = optimizer.state_dict()
    twin = new_table()
    other = MemoryAdamW(twin)
    other.load_state_dict(saved)
    read(twin, [[1, 2]])
    before = copy.deepcopy(saved["state"])
    other.step()
    assert torch.equal(saved["state"][0]["exp_avg"], before[0]["exp_avg"])
    assert saved["state"][0]["step"] == 1
    assert other.state[twin.weight]["step"] == 2


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))]
)
def test_copy_of_model_and_optimizer_trains_alike(duplicate: Callable) -> None:
    model = small_model()
    optimizer = MemoryAdamW(model, lr=1e-2, value_weight_decay=0.1)
    data = list(batches(4, tokens=5))
    for x in data[:2]:
        backward(model, x)
        optimizer.step()
        optimizer.zero_grad()
    pairs = [(model, optimizer), duplicate((model, optimizer))]
    assert pairs[1][0].memory_table.weight is not model.memory_table.weight
    for either, its_optimizer in pairs:
        for x in data[2:]:
            backward(either, x)
            its_optimizer.step()
            its_optimizer.zero_grad()
    for name, expected in model.state_dict().items():
        assert torch.equal(pairs[1][0].state_dict()[name], expected), name


def test_stochastic_rounding_differs_between_steps_and_follows_the_seed() -> None:
    def rows_after(seed: int, steps: int = 1) -> Tensor:
        torch.manual_seed(3)
        table = ValueTable(N, 64, init_std=1.0, dtype=torch.bfloat16)
        optimizer = MemoryAdamW(table, lr=1e-3, seed=seed, value_state="full")
        index = torch.arange(N)[None]
        for _ in range(steps):
            table(index, torch.ones(1, N)).sum().backward()
            optimizer.step()
        return table.weight.detach()

    assert torch.equal(rows_after(1), rows_after(1))
    assert not torch.equal(rows_after(1), rows_after(2))
    small_steps = rows_after(0, steps=30).float()
    torch.manual_seed(3)
    start = ValueTable(N, 64, init_std=1.0, dtype=torch.bfloat16).weight.detach().float()
    moved = float((start - small_steps).mean())
    assert moved == pytest.approx(0.03, rel=0.15), "small updates must not be lost"


def test_stochastic_rounding_draws_again_in_every_step() -> None:
    """With the same draws in each step some numbers would move always and others never."""
    table = ValueTable(1, 4096, init_std=0.0, dtype=torch.bfloat16)
    table.weight.data.fill_(1.5)
    # A quarter of the gap between bf16 numbers here.
    optimizer = MemoryAdamW(table, lr=2.0**-9, value_state="full")
    for _ in range(16):
        table(torch.zeros(1, 1).long(), torch.ones(1, 1)).sum().backward()
        optimizer.step()
    moved = (1.5 - table.weight.detach().float()) * 2**7
    # 16 draws with chance 1/4: mean 4 and standard deviation 3 ** 0.5, against 48 ** 0.5.
    assert float(moved.mean()) == pytest.approx(4, rel=0.1)
    assert float(moved.std()) == pytest.approx(3**0.5, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_master_holds_what_16_bits_cannot(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    table = ValueTable(N, V, init_std=1.0, dtype=dtype)
    wide = ValueTable(N, V, init_std=1.0)
    wide.weight.data.copy_(table.weight)
    optimizers = MemoryAdamW(table, lr=1e-3, bf16_rows="master"), MemoryAdamW(wide, lr=1e-3)
    for _ in range(10):
        for each, optimizer in zip((table, wide), optimizers, strict=True):
            each(torch.tensor([[3, 4]]), torch.ones(1, 2)).sum().backward()
            optimizer.step()
    master = optimizers[0].state[table.weight]["master"]
    torch.testing.assert_close(master, wide.weight.detach())
    assert torch.equal(table.weight.detach(), master.to(dtype))


def test_float16_rows_need_a_master() -> None:
    table = new_table(torch.float16)
    with pytest.raises(ValueError, match=r'float16 table .* hint: bf16_rows="master"'):
        MemoryAdamW(table)
    table = new_table()
    optimizer = MemoryAdamW(table)
    table.half()
    with pytest.raises(ValueError, match="float16 table"):
        optimizer.step()


# --- a torch optimizer in every other way ---------------------------------------------------


def test_schedulers_move_all_groups() -> None:
    model = small_model()
    optimizer = MemoryAdamW(model, lr=1e-2, value_lr=1e-1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step, x in enumerate(batches(3)):
        assert optimizer.memory_group["lr"] == pytest.approx(1e-1 / (1 + step))
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 / (1 + step))
        backward(model, x)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


def test_learning_rate_of_zero_moves_nothing() -> None:
    model = small_model()
    optimizer = MemoryAdamW(model, lr=0.0, value_weight_decay=0.5)
    before = copy.deepcopy(model.state_dict())
    backward(model, next(batches(1)))
    optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_closure() -> None:
    with_closure, without = small_model(), small_model()
    x = next(batches(1))
    optimizer = MemoryAdamW(with_closure, lr=1e-2)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (with_closure(x) - x.roll(1, dims=1)).square().mean()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert loss.requires_grad
    plain = MemoryAdamW(without, lr=1e-2)
    backward(without, x)
    assert plain.step() is None
    for name, expected in without.state_dict().items():
        assert torch.equal(with_closure.state_dict()[name], expected), name


def test_step_hooks_run_once() -> None:
    """Also when a plain AdamW was built before, which makes torch wrap the inherited step."""
    torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
    model = small_model()
    optimizer = MemoryAdamW(model)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    backward(model, next(batches(1)))
    optimizer.step()
    assert calls == ["pre", "post"]


def test_step_builds_no_graph() -> None:
    model = small_model()
    optimizer = MemoryAdamW(model)
    backward(model, next(batches(1)))
    optimizer.step()
    assert model.memory_table.weight.is_leaf
    assert model.memory_table.weight.requires_grad
    for state in optimizer.state.values():
        assert not any(x.requires_grad for x in state.values() if isinstance(x, Tensor))


def test_frozen_table_is_left_out() -> None:
    model = small_model()
    model.memory_table.weight.requires_grad_(False)
    before = model.memory_table.weight.detach().clone()
    optimizer = MemoryAdamW(model, lr=0.1, value_weight_decay=0.5)
    assert optimizer.memory_group is None
    for x in batches(2):
        backward(model, x)
        optimizer.clip_grad_norm_(1.0, value_max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(model.memory_table.weight, before)


def test_bf16_model_learns() -> None:
    model = small_model().bfloat16()
    optimizer = MemoryAdamW(model, lr=1e-2)
    x = next(batches(1)).bfloat16()
    losses = []
    for _ in range(30):
        loss = (model(x) - x.roll(1, dims=1)).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value_state": "half"}, 'value_state must be "ahead" or "full" or "row"'),
        ({"bf16_rows": "nearest"}, 'bf16_rows must be "stochastic" or "master"'),
        ({"value_weight_decay": -0.1}, "value_weight_decay must be >= 0"),
        ({"weight_decay": -0.1}, "^weight_decay must be >= 0"),
        ({"value_weight_decay": float("nan")}, "value_weight_decay must be >= 0"),
        ({"lr": -1.0}, "^lr must be >= 0"),
        ({"value_lr": -1.0}, "value_lr must be >= 0"),
        ({"betas": (1.0, 0.9)}, "beta"),
        ({"eps": -1.0}, "^eps must be >= 0"),
    ],
)
def test_bad_arguments_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MemoryAdamW(small_model(), **options)


def test_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        MemoryAdamW(nn.ReLU())
    model = small_model().requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        MemoryAdamW(model)
