"""WRITE: grouping, and the row steps against fp64 formulas and the dense optimizers of torch."""

from collections.abc import Callable

import pytest
import torch
from helpers import (
    BF16,
    BF16_TABLE,
    FP32,
    FP64,
    IMPL_PRECISIONS,
    IMPLS,
    Precision,
    assert_within_budget,
    precision_id,
)
from torch import Tensor

from memory_layers.ops.write import (
    RowGradient,
    group_by_row,
    row_adagrad_,
    row_adamw_,
    row_norm,
    row_sgd_,
    row_sums,
)

every_impl = pytest.mark.parametrize("impl", IMPLS)
every_kernel = pytest.mark.parametrize(("impl", "precision"), IMPL_PRECISIONS, ids=precision_id)

N, V = 80, 20
STEPS = ("adamw", "adamw-row", "adamw-no-momentum", "sgd", "adagrad", "adagrad-row")


def exact_gradient(entries: int = 300, impl: str = "auto", **types: torch.dtype) -> RowGradient:
    """Small whole numbers: their sums are exact in fp32, so implementations agree to the bit."""
    slots = torch.randint(N // 2, (entries,)) * 2  # odd rows stay untouched
    slots[: entries // 4] = 6
    weights = torch.randint(-2, 3, (entries,)).to(types.get("weights", torch.float32)) / 2
    vectors = torch.randint(-4, 5, (40, V)).to(types.get("vectors", torch.float32))
    return group_by_row(slots, weights, torch.randint(40, (entries,)), vectors, impl=impl)


def dense(gradient: RowGradient, rows: int = N) -> Tensor:
    """Multiply a gradient out in fp64, entry by entry."""
    vectors = gradient.vectors.double()
    out = torch.zeros(rows, vectors.shape[1], dtype=torch.float64)
    for r, row in enumerate(gradient.rows.tolist()):
        for e in range(int(gradient.starts[r]), int(gradient.starts[r + 1])):
            out[row] += gradient.weights[e].double() * vectors[gradient.sources[e]]
    return out * gradient.scale


class Case:
    """A table with state in the middle of a run, one kind of step on it, and the fp64 answer."""

    def __init__(self, kind: str, dtype: torch.dtype = torch.float32, *, decay: bool = False):
        self.kind = kind
        self.table = torch.randn(N, V).to(dtype)
        state = torch.promote_types(dtype, torch.float32)
        self.first = torch.randn(N, V).to(state) / 8
        self.second = (torch.rand(N, 1 if kind.endswith("-row") else V) + 0.5).to(state)
        self.gradient = exact_gradient().scaled(0.5)
        self.row_decay = torch.rand(len(self.gradient.rows)) if decay else None

    def run(self, impl: str, **options: object) -> None:
        """Take the step in place."""
        common = {"row_decay": self.row_decay, "impl": impl, **options}
        if self.kind.startswith("adamw"):
            first = None if self.kind == "adamw-no-momentum" else self.first
            row_adamw_(
                self.table, first, self.second, self.gradient,
                step=7, lr=0.01, betas=(0.8, 0.9), eps=1e-6, **common,
            )  # fmt: skip
        elif self.kind == "sgd":
            row_sgd_(self.table, self.gradient, lr=0.25, **common)
        else:
            row_adagrad_(self.table, self.second, self.gradient, lr=0.01, eps=1e-6, **common)

    def exact(self) -> tuple[Tensor, Tensor, Tensor]:
        """Table and state after the step, in fp64, from what they are now."""
        table, m, v = (x.double().clone() for x in (self.table, self.first, self.second))
        rows, g = self.gradient.rows, dense(self.gradient)[self.gradient.rows]
        decay = 1 if self.row_decay is None else self.row_decay.double()[:, None]
        square = g.square().mean(1, keepdim=True) if v.shape[1] == 1 else g.square()
        if self.kind == "sgd":
            update = 0.25 * g
        elif self.kind.startswith("adagrad"):
            v[rows] += square
            update = 0.01 * g / (v[rows].sqrt() + 1e-6)
        else:
            v[rows] = 0.9 * v[rows] + (1 - 0.9) * square
            if self.kind == "adamw-no-momentum":
                mean = g
            else:
                m[rows] = 0.8 * m[rows] + (1 - 0.8) * g
                mean = m[rows] / (1 - 0.8**7)
            update = 0.01 * mean / ((v[rows] / (1 - 0.9**7)).sqrt() + 1e-6)
        table[rows] = decay * table[rows] - update
        return table, m, v


def copy_of(case: Case) -> Case:
    twin = object.__new__(Case)
    twin.__dict__ = {k: v.clone() if isinstance(v, Tensor) else v for k, v in case.__dict__.items()}
    return twin


# --- grouping -------------------------------------------------------------------------------


@every_impl
@pytest.mark.parametrize(
    "slots",
    [
        pytest.param([], id="empty"),
        pytest.param([5], id="one"),
        pytest.param([9] * 50, id="hot"),
        pytest.param([0, 3, 3, 0, 1, 3, 0], id="duplicates"),
        pytest.param([2047, 2048, 2049, 1, 2**22, 2**22 - 1, 2**22 + 1], id="several-digits"),
        pytest.param([2**33 + 5, 5, 2**33 + 5, 2**40], id="beyond-32-bits"),
    ],
)
def test_group_by_row(impl: str, slots: list[int]) -> None:
    entries = torch.tensor(slots, dtype=torch.int64)
    weights = torch.arange(len(slots)).float()
    sources = torch.arange(len(slots)).flip(0)
    gradient = group_by_row(entries, weights, sources, torch.randn(len(slots), 3), impl=impl)
    assert gradient.rows.tolist() == sorted(set(slots))
    assert gradient.starts[0] == 0
    assert gradient.starts[-1] == len(slots)
    for r, row in enumerate(sorted(set(slots))):
        group = slice(int(gradient.starts[r]), int(gradient.starts[r + 1]))
        places = [e for e, slot in enumerate(slots) if slot == row]
        assert gradient.weights[group].tolist() == places, "entries of a row keep their order"
        assert gradient.sources[group].tolist() == [len(slots) - 1 - e for e in places]


def test_grouping_is_the_same_in_both_implementations() -> None:
    slots = torch.randint(5000, (3000,))
    inputs = (slots, torch.rand(3000), torch.randint(40, (3000,)), torch.randn(40, 3))
    one, other = (group_by_row(*inputs, impl=impl) for impl in IMPLS)
    for name in ("rows", "starts", "sources", "weights"):
        assert torch.equal(getattr(one, name), getattr(other, name))


@every_impl
def test_int32_slots_group_alike(impl: str) -> None:
    slots = torch.tensor([7, 1, 7], dtype=torch.int32)
    gradient = group_by_row(slots, torch.ones(3), torch.arange(3), torch.randn(3, 2), impl=impl)
    assert gradient.rows.dtype == torch.int64
    assert gradient.rows.tolist() == [1, 7]


@every_kernel
@pytest.mark.parametrize("entries", [0, 1, 300])
@pytest.mark.parametrize("width", [1, 33])
def test_row_sums_and_norm(impl: str, precision: Precision, entries: int, width: int) -> None:
    slots = torch.randint(N, (entries,))
    slots[: entries // 3] = 3
    weights = torch.randn(entries).to(precision.token)
    vectors = torch.randn(40, width).to(precision.table)
    gradient = group_by_row(slots, weights, torch.randint(40, (entries,)), vectors, impl=impl)
    sums = row_sums(gradient, impl=impl)
    assert sums.dtype == precision.sums
    exact = dense(gradient)
    sizes = dense(
        RowGradient(
            gradient.rows, gradient.starts, gradient.sources, weights_abs(gradient),
            gradient.vectors.abs(),
        )
    )  # fmt: skip
    assert_within_budget(sums, exact[gradient.rows], sizes[gradient.rows])
    assert row_norm(gradient, impl=impl) == pytest.approx(float(exact.norm()), rel=1e-6)
    half = gradient.scaled(-0.5)
    assert torch.equal(row_sums(half, impl=impl), sums * -0.5)
    assert row_norm(gradient.scaled(0.5), impl=impl) == pytest.approx(
        0.5 * float(exact.norm()), rel=1e-6
    )
    assert torch.equal(row_sums(gradient, impl=impl), sums), "scaled() must not touch its source"


def weights_abs(gradient: RowGradient) -> Tensor:
    return gradient.weights.abs()


# --- steps ----------------------------------------------------------------------------------


@every_impl
@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", STEPS)
def test_step(impl: str, dtype: torch.dtype, kind: str, decay: bool) -> None:
    if impl == "cpu" and dtype == torch.float64:
        impl = "auto"  # fp64 has no kernel: the reference takes it
    case = Case(kind, dtype, decay=decay)
    before = copy_of(case)
    table, first, second = case.exact()
    case.run(impl)
    # The gradient is exact here: what is left is a handful of roundings of each number.
    eps = 4 * torch.finfo(case.second.dtype).eps
    torch.testing.assert_close(case.first.double(), first, rtol=eps, atol=eps)
    torch.testing.assert_close(case.second.double(), second, rtol=eps, atol=eps)
    rounding = 2**-8 if dtype == torch.bfloat16 else 0
    limit = rounding * table.abs() + eps * (1 + table.abs())
    assert ((case.table.double() - table).abs() <= limit).all()
    odd = torch.arange(1, N, 2)
    assert torch.equal(case.table[odd], before.table[odd])
    assert torch.equal(case.first[odd], before.first[odd])
    assert torch.equal(case.second[odd], before.second[odd])
    assert not torch.equal(case.table, before.table)


@every_impl
@pytest.mark.parametrize("kind", STEPS)
def test_master_is_stepped_and_rounded_to_the_table(impl: str, kind: str) -> None:
    exact = Case(kind)
    case = copy_of(exact)
    case.table = exact.table.bfloat16()
    master = exact.table.clone()
    stale = case.table.clone()
    case.run(impl, master=master)
    exact.run(impl)
    assert torch.equal(master, exact.table)
    touched = exact.gradient.rows
    assert torch.equal(case.table[touched], master[touched].bfloat16())
    assert torch.equal(case.table[1::2], stale[1::2])


@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, 2**32 + 7])
def test_stochastic_rounding_is_the_same_in_both_implementations(seed: int, decay: bool) -> None:
    case = Case("sgd", torch.bfloat16)
    if decay:  # a power of two, so that the fp32 values stay exact
        case.row_decay = torch.full((len(case.gradient.rows),), 0.5)
    case.gradient = case.gradient.scaled(2.0**-9)
    twin = copy_of(case)
    case.run("cpu", seed=seed)
    twin.run("reference", seed=seed)
    assert torch.equal(case.table, twin.table)


@every_impl
@pytest.mark.parametrize("kind", STEPS)
def test_stochastic_rounding_takes_a_neighbour(impl: str, kind: str) -> None:
    case = Case(kind, torch.bfloat16)
    table, _, _ = case.exact()
    case.run(impl, seed=3)
    error = (case.table.double() - table).abs()
    assert (error <= 2**-7 * table.abs() + 1e-6).all()
    assert (error > 2**-8 * table.abs() + 1e-6).any(), "all numbers went to the nearest"


def one_row_gradient(width: int, value: float = 1.0, row: int = 0) -> RowGradient:
    return group_by_row(
        torch.tensor([row]), torch.ones(1), torch.tensor([0]), torch.full((1, width), value)
    )


@every_impl
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("fraction", [0.0, 1 / 64, 0.25, 0.5, 63 / 64])
def test_stochastic_rounding_is_unbiased(impl: str, fraction: float, sign: int) -> None:
    """1 + fraction of a bf16 step is rounded up in that fraction of all draws."""
    rows, width, seeds = 4, 64, 50
    gap = 2.0**-7  # between the bf16 numbers 1 and 1 + 2^-7
    slots = torch.arange(rows)
    gradient = group_by_row(
        slots, torch.ones(rows), torch.zeros(rows).long(), torch.full((1, width), -sign * gap)
    )
    ups = []
    for seed in range(seeds):
        table = torch.full((rows, width), float(sign), dtype=torch.bfloat16)
        row_sgd_(table, gradient, lr=fraction, seed=seed, impl=impl)
        up = (table.float() - sign).abs() / gap
        assert ((up == 0) | (up == 1)).all()
        ups.append(up)
    draws = torch.stack(ups)
    deviation = (fraction * (1 - fraction) / draws.numel()) ** 0.5
    assert abs(float(draws.mean()) - fraction) <= 4 * deviation
    if fraction == 0.5:  # no two rows, columns or seeds share their random bits
        for dim in (0, 1, 2):
            means = draws.mean(dim=dim)
            assert 0 < float(means.std()) < 0.5
            assert not torch.equal(draws, draws.roll(1, dims=dim))


@every_impl
def test_small_updates_are_lost_by_nearest_and_kept_by_stochastic_rounding(impl: str) -> None:
    nearest, stochastic = torch.ones(2, 1, 256, dtype=torch.bfloat16)
    gradient = one_row_gradient(256)
    for seed in range(128):
        row_sgd_(nearest, gradient, lr=2.0**-12, impl=impl)
        row_sgd_(stochastic, gradient, lr=2.0**-12, seed=seed, impl=impl)
    assert torch.equal(nearest, torch.ones(1, 256, dtype=torch.bfloat16))
    moved = 1 - float(stochastic.float().mean())
    assert moved == pytest.approx(128 * 2.0**-12, rel=0.05)


@every_impl
@pytest.mark.parametrize("seed", [None, 5])
def test_nan_and_infinity_survive_rounding(impl: str, seed: int | None) -> None:
    table = torch.zeros(1, 3, dtype=torch.bfloat16)
    values = torch.tensor([[float("nan"), float("inf"), -float("inf")]])
    gradient = group_by_row(torch.tensor([0]), torch.ones(1), torch.tensor([0]), -values)
    row_sgd_(table, gradient, lr=1.0, seed=seed, impl=impl)
    assert torch.equal(table.isnan(), values.isnan())
    assert torch.equal(table[0, 1:], values[0, 1:].bfloat16())


@every_impl
@pytest.mark.parametrize("kind", STEPS)
def test_no_touched_row_changes_nothing(impl: str, kind: str) -> None:
    case = Case(kind)
    case.gradient = group_by_row(
        torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0, dtype=torch.int64),
        torch.empty(0, V), impl=impl,
    )  # fmt: skip
    before = copy_of(case)
    case.run(impl)
    for name in ("table", "first", "second"):
        assert torch.equal(getattr(case, name), getattr(before, name))


@every_impl
@pytest.mark.parametrize(
    ("kind", "torch_optimizer"),
    [
        ("adamw", lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)),
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.0)),
        ("adagrad", lambda p: torch.optim.Adagrad(p, lr=0.01)),
    ],
)
def test_equals_torch_when_every_row_is_touched(
    impl: str, kind: str, torch_optimizer: Callable
) -> None:
    rows, width = 70, 9
    table = torch.randn(rows, width)
    weight = torch.nn.Parameter(table.clone())
    optimizer = torch_optimizer([weight])
    first, second = torch.zeros(rows, width), torch.zeros(rows, width)
    for step in range(1, 21):
        slots = torch.cat((torch.arange(rows), torch.randint(rows, (50,))))
        gradient = group_by_row(
            slots, torch.randn(120), torch.randint(30, (120,)), torch.randn(30, width)
        )
        weight.grad = dense(gradient, rows).float()
        optimizer.step()
        if kind == "adamw":
            decay = torch.full((rows,), 1 - 0.01 * 0.1)
            row_adamw_(
                table, first, second, gradient, step=step, lr=0.01, row_decay=decay, impl=impl
            )
        elif kind == "sgd":
            row_sgd_(table, gradient, lr=0.01, impl=impl)
        else:
            row_adagrad_(table, second, gradient, lr=0.01, impl=impl)
        torch.testing.assert_close(table, weight.detach(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_addresses_beyond_31_bits(impl: str) -> None:
    rows, width = 2**25, 65
    table = torch.empty(rows, width, dtype=torch.bfloat16)  # 4.4 GiB, but only 3 rows are touched
    second = torch.empty(rows, 1)
    where = torch.tensor([0, rows - 2, rows - 1])
    few, few_second = torch.randn(3, width).bfloat16(), torch.rand(3, 1)
    table[where], second[where] = few, few_second
    vectors, weights = torch.randn(4, width), torch.randn(5)
    small, sources = torch.tensor([2, 1, 2, 0, 1]), torch.tensor([0, 1, 2, 3, 3])
    for target, state, slots in ((table, second, where[small]), (few, few_second, small)):
        gradient = group_by_row(slots, weights, sources, vectors, impl=impl)
        row_adamw_(target, None, state, gradient, step=1, lr=0.1, impl=impl)
    assert torch.equal(table[where], few)
    assert torch.equal(second[where], few_second)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("kind", STEPS)
def test_result_does_not_depend_on_threads(kind: str) -> None:
    many = Case(kind, torch.bfloat16)
    slots = torch.randint(N, (2000,))
    many.gradient = group_by_row(
        slots, torch.randn(2000), torch.randint(40, (2000,)), torch.randn(40, V)
    )
    one = copy_of(many)
    many.run("cpu", seed=1)
    norm = row_norm(many.gradient, impl="cpu")
    torch.set_num_threads(1)
    one.run("cpu", seed=1)
    assert row_norm(one.gradient, impl="cpu") == norm
    for name in ("table", "first", "second"):
        assert torch.equal(getattr(many, name), getattr(one, name))


@every_impl
@pytest.mark.parametrize("with_master", [False, True])
def test_autograd_notices_that_rows_changed(impl: str, with_master: bool) -> None:
    table = torch.randn(N, V).bfloat16().requires_grad_()
    master = table.detach().float() if with_master else None
    loss = (table * table).sum()
    row_sgd_(table, exact_gradient(), lr=0.1, master=master, impl=impl)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- errors ---------------------------------------------------------------------------------


def adamw(table: Tensor, **changes: object) -> None:
    arguments = {
        "exp_avg": torch.zeros(N, V),
        "exp_avg_sq": torch.zeros(N, V),
        "gradient": exact_gradient(),
        "step": 1,
        **changes,
    }
    row_adamw_(table, **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exp_avg": torch.zeros(N, 1)}, r"exp_avg must have shape \[80, 20\]"),
        ({"exp_avg_sq": torch.zeros(N, 2)}, r"exp_avg_sq must have shape \[80, 20\] or \[80, 1\]"),
        ({"exp_avg_sq": torch.zeros(N)}, "exp_avg_sq must have shape"),
        ({"exp_avg_sq": torch.zeros(N, V).bfloat16()}, "exp_avg_sq must be torch.float32"),
        ({"exp_avg": torch.zeros(N, V).double()}, "exp_avg must be torch.float32"),
        ({"exp_avg": torch.zeros(V, N).T}, "exp_avg must be contiguous"),
        ({"step": 0}, "step must be >= 1, got 0"),
        ({"row_decay": torch.ones(3)}, r"row_decay must have shape \[R="),
        ({"row_decay": torch.ones(40).bfloat16()}, "row_decay must be float32"),
        ({"seed": 1}, "master and seed are for bfloat16 tables, got torch.float32"),
        ({"master": torch.zeros(N, V)}, "master and seed are for bfloat16 tables"),
        ({"gradient": one_row_gradient(V, row=N)}, r"gradient.rows must lie in \[0, 80\)"),
        ({"gradient": one_row_gradient(V, row=-1)}, r"gradient.rows must lie in \[0, 80\)"),
        ({"gradient": one_row_gradient(V + 1)}, r"gradient.vectors must have shape \[S, V=20\]"),
        ({"impl": "fast"}, "impl must be"),
    ],
)
def test_bad_step_arguments_are_named(changes: dict[str, object], message: str) -> None:
    table = torch.zeros(N, V)
    if "row_decay" in changes:
        changes = {**changes, "gradient": full_gradient()}
    with pytest.raises(ValueError, match=message):
        adamw(table, **changes)
    assert not table.any(), "nothing was changed before the error"


def full_gradient() -> RowGradient:
    return group_by_row(torch.arange(40), torch.ones(40), torch.zeros(40).long(), torch.ones(1, V))


@pytest.mark.parametrize(
    ("table", "changes", "message"),
    [
        (torch.zeros(V, N).T, {}, "table must be contiguous"),
        (torch.zeros(N), {}, r"table must have shape \[N, V\]"),
        (torch.zeros(N, V).double(), {"impl": "cpu"}, "must be torch.float64 for a torch.float64"),
        (torch.zeros(N, V).half(), {"impl": "cpu"}, "supports float32, bfloat16"),
        (
            torch.zeros(N, V).bfloat16(),
            {"seed": 1, "master": torch.zeros(N, V)},
            "pass master or seed, not both",
        ),
        (torch.zeros(N, V).bfloat16(), {"master": torch.zeros(N, V).bfloat16()}, "master must be"),
        (torch.zeros(N, V).bfloat16(), {"seed": -1}, "seed must be >= 0"),
    ],
)
def test_bad_tables_are_named(table: Tensor, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adamw(table, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": torch.zeros(3)}, "slots must be int32 or int64"),
        ({"slots": torch.zeros(3, 1).long()}, r"slots must have shape \[E\]"),
        ({"weights": torch.zeros(2)}, r"weights must have shape \[E=3\]"),
        ({"weights": torch.zeros(3).long()}, "weights must be floating point"),
        ({"sources": torch.zeros(2).long()}, r"sources must have shape \[E=3\]"),
        ({"sources": torch.tensor([0, 1, 2])}, r"sources must lie in \[0, 2\), got 0 to 2"),
        ({"vectors": torch.zeros(2)}, r"vectors must have shape \[S, V\]"),
        ({"vectors": torch.zeros(2, 3).double(), "impl": "cpu"}, "supports float32, bfloat16"),
    ],
)
def test_bad_factors_are_named(changes: dict[str, object], message: str) -> None:
    good = {
        "slots": torch.zeros(3).long(),
        "weights": torch.zeros(3),
        "sources": torch.zeros(3).long(),
        "vectors": torch.zeros(2, 3),
    }
    with pytest.raises(ValueError, match=message):
        group_by_row(**{**good, **changes})


def test_precisions_are_all_used() -> None:
    """The table of implementations and precisions is what it says."""
    assert {p for _, p in IMPL_PRECISIONS} == {FP32, BF16, BF16_TABLE, FP64}
    assert ("cpu", FP64) not in IMPL_PRECISIONS
