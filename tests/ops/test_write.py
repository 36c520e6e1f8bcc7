"""WRITE: grouping, and the row steps against fp64 formulas and the dense optimizers of torch."""

import math
from collections.abc import Callable
from dataclasses import replace

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
    RowState,
    group_by_row,
    row_norm,
    row_step_,
    row_sums,
)

every_impl = pytest.mark.parametrize("impl", IMPLS)
every_kernel = pytest.mark.parametrize(("impl", "precision"), IMPL_PRECISIONS, ids=precision_id)

N, V = 80, 20
STEPS = ("adamw", "adamw-row", "adamw-no-momentum", "adamw-ahead", "sgd")


def exact_gradient(tokens: int = 60, reads: int = 5, **types: torch.dtype) -> RowGradient:
    """Small whole numbers: their sums are exact in fp32, so implementations agree to the bit."""
    slots = torch.randint(N // 2, (tokens, reads)) * 2  # odd rows stay untouched
    slots[: tokens // 4] = 6
    weights = torch.randint(-2, 3, (tokens, reads)).to(types.get("weights", torch.float32)) / 2
    vectors = torch.randint(-4, 5, (tokens, V)).to(types.get("vectors", torch.float32))
    return group_by_row(slots, weights, vectors)


def several_reads(width: int = V, **types: torch.dtype) -> RowGradient:
    """Three reads with different numbers of tokens and of rows a token, the last one empty."""
    parts = []
    for tokens, reads in ((30, 4), (50, 1), (0, 3)):
        slots = torch.randint(N // 2, (tokens, reads)) * 2
        slots[: tokens // 3] = 6
        weights = torch.randn(tokens, reads).to(types.get("weights", torch.float32))
        vectors = torch.randn(tokens, width).to(types.get("vectors", torch.float32))
        parts.append(group_by_row(slots, weights, vectors))
    return parts[0].joined(parts[1]).joined(parts[2])


def dense(gradient: RowGradient, rows: int = N, *, absolute: bool = False) -> Tensor:
    """Multiply a gradient out in fp64, entry by entry."""
    out = torch.zeros(rows, gradient.vectors[0].shape[1], dtype=torch.float64)
    for entries, weights, vectors in zip(
        gradient.entries, gradient.weights, gradient.vectors, strict=True
    ):
        for entry in entries.tolist():
            row, place = entry >> 32, entry & 0xFFFFFFFF
            t, j = divmod(place, weights.shape[1])
            term = weights[t, j].double() * vectors[t].double()
            out[row] += term.abs() if absolute else term
    return out * gradient.scale.double()


class Case:
    """A table with state in the middle of a run, one kind of step on it, and the fp64 answer."""

    def __init__(self, kind: str, dtype: torch.dtype = torch.float32, *, decay: bool = False):
        self.kind = kind
        self.table = torch.randn(N, V).to(dtype)
        state = torch.promote_types(dtype, torch.float32)
        self.first = torch.randn(N, V).to(state) / 8
        self.second = (torch.rand(N, 1 if kind.endswith("-row") else V) + 0.5).to(state)
        self.gradient = exact_gradient().scaled(0.5)
        # Rows have had different shares of the decay that is due by now.
        self.decayed = -torch.rand(N, dtype=torch.float64) if decay else None
        self.decay_total = -1.5 if decay else 0.0
        self.last_step = self.last_lr = None
        if kind == "adamw-ahead":
            self.last_step = torch.randint(7, (N,), dtype=torch.int32)
            self.last_lr = torch.rand(N) / 16
            for never in (self.first, self.second, self.last_lr):
                never[self.last_step == 0] = 0

    def run(self, impl: str, **options: object) -> None:
        """Take the step in place."""
        state = RowState(
            decayed=self.decayed, decay_total=self.decay_total, master=options.pop("master", None)
        )
        if self.kind == "sgd":
            row_step_(self.table, state, self.gradient, "sgd", lr=0.25, impl=impl, **options)
            return
        first = None if self.kind == "adamw-no-momentum" else self.first
        state = replace(
            state, exp_avg=first, exp_avg_sq=self.second, step=7,
            last_step=self.last_step, last_lr=self.last_lr,
        )  # fmt: skip
        row_step_(
            self.table, state, self.gradient,
            lr=0.01, betas=(0.8, 0.9), eps=1e-6, impl=impl, **options,
        )  # fmt: skip

    def exact(self) -> tuple[Tensor, Tensor, Tensor]:
        """Table and state after the step, in fp64, from what they are now."""
        table, m, v = (x.double().clone() for x in (self.table, self.first, self.second))
        rows, g = self.gradient.rows, dense(self.gradient)[self.gradient.rows]
        decay = 1
        if self.decayed is not None:
            decay = (self.decay_total - self.decayed[rows]).exp()[:, None]
        square = g.square().mean(1, keepdim=True) if v.shape[1] == 1 else g.square()
        if self.kind == "sgd":
            update = 0.25 * g
        else:
            steps, size = 1, 0.01 / (1 - 0.8**7)
            not_moved = 0.0
            if self.kind == "adamw-ahead":
                before = self.last_step[rows].double()[:, None]
                steps, ratio, k = 7 - before, 0.8 / math.sqrt(0.9), torch.arange(900.0).double()
                tail = ratio**k * (1 - 0.9 ** (7 + k)).sqrt() / (1 - 0.8 ** (7 + k))
                size = 0.01 * float(tail.sum()) / math.sqrt(1 - 0.9**7)
                root = (v[rows] / (1 - 0.9**before)).sqrt() + 1e-6
                share = ratio**steps * float(tail.sum()) / (1 - 0.9**before).sqrt()
                back = self.last_lr[rows].double()[:, None] * share * m[rows] / root
                not_moved = decay * torch.where(before > 0, back, 0)
            v[rows] = 0.9**steps * v[rows] + (1 - 0.9) * square
            if self.kind == "adamw-no-momentum":
                move = 0.01 * g
            else:
                m[rows] = 0.8**steps * m[rows] + (1 - 0.8) * g
                move = size * m[rows]
            update = move / ((v[rows] / (1 - 0.9**7)).sqrt() + 1e-6) - not_moved
        table[rows] = decay * table[rows] - update
        return table, m, v


def copy_of(case: Case) -> Case:
    twin = object.__new__(Case)
    twin.__dict__ = {k: v.clone() if isinstance(v, Tensor) else v for k, v in case.__dict__.items()}
    return twin


# --- grouping -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    "slots",
    [
        pytest.param([], id="empty"),
        pytest.param([5], id="one"),
        pytest.param([9] * 50, id="hot"),
        pytest.param([0, 3, 3, 0, 1, 3, 0, 2], id="duplicates"),
        pytest.param([2047, 2048, 2049, 1, 2**22, 2**22 - 1, 2**31 - 1, 0], id="wide"),
    ],
)
def test_group_by_row(slots: list[int], dtype: torch.dtype) -> None:
    flat = torch.tensor(slots, dtype=dtype)
    read = flat.view(-1, 2) if len(slots) % 2 == 0 else flat.view(-1, 1)
    before = read.clone()
    gradient = group_by_row(read, torch.rand(read.shape), torch.randn(len(read), 3))
    (entries,) = gradient.entries
    assert gradient.rows.tolist() == sorted(set(slots))
    ordered = sorted((slot, place) for place, slot in enumerate(slots))
    assert [(e >> 32, e & 0xFFFFFFFF) for e in entries.tolist()] == ordered
    assert torch.equal(read, before), "the caller's slots must stay as they are"


@every_kernel
@pytest.mark.parametrize("make", ["empty", "one", "many", "several"])
@pytest.mark.parametrize("width", [1, 33])
def test_row_sums_and_norm(impl: str, precision: Precision, make: str, width: int) -> None:
    types = {"weights": precision.token, "vectors": precision.table}
    if make == "several":
        gradient = several_reads(width, **types)
    else:
        tokens = {"empty": 0, "one": 1, "many": 60}[make]
        slots = torch.randint(N, (tokens, 5))
        slots[: tokens // 3] = 3
        weights = torch.randn(tokens, 5).to(precision.token)
        gradient = group_by_row(slots, weights, torch.randn(tokens, width).to(precision.table))
    rows, sums = row_sums(gradient, impl=impl)
    assert sums.dtype == precision.sums
    assert torch.equal(rows, gradient.rows)
    exact = dense(gradient)
    assert_within_budget(sums, exact[rows], dense(gradient, absolute=True)[rows])
    assert float(row_norm(gradient, impl=impl)) == pytest.approx(float(exact.norm()), rel=1e-6)
    half = gradient.scaled(-0.5)
    assert torch.equal(row_sums(half, impl=impl)[1], sums * -0.5)
    assert float(row_norm(half, impl=impl)) == pytest.approx(0.5 * float(exact.norm()), rel=1e-6)
    assert torch.equal(row_sums(gradient, impl=impl)[1], sums), "scaled() must not touch its source"


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
        case.decayed, case.decay_total = torch.zeros(N, dtype=torch.float64), -math.log(2)
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


def sgd(table: Tensor, gradient: RowGradient, **options: object) -> None:
    row_step_(table, RowState(), gradient, "sgd", **options)


def one_row_gradient(width: int, value: float = 1.0, row: int = 0) -> RowGradient:
    slots = torch.tensor([[abs(row)]])
    gradient = group_by_row(slots, torch.ones(1, 1), torch.full((1, width), value))
    return replace(gradient, entries=(torch.tensor([row << 32]),))


@every_impl
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("fraction", [0.0, 1 / 64, 0.25, 0.5, 63 / 64])
def test_stochastic_rounding_is_unbiased(impl: str, fraction: float, sign: int) -> None:
    """1 + fraction of a bf16 step is rounded up in that fraction of all draws."""
    rows, width, seeds = 4, 64, 50
    gap = 2.0**-7  # between the bf16 numbers 1 and 1 + 2^-7
    slots = torch.arange(rows)[None]
    gradient = group_by_row(slots, torch.ones(1, rows), torch.full((1, width), -sign * gap))
    ups = []
    for seed in range(seeds):
        table = torch.full((rows, width), float(sign), dtype=torch.bfloat16)
        sgd(table, gradient, lr=fraction, seed=seed, impl=impl)
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
        sgd(nearest, gradient, lr=2.0**-12, impl=impl)
        sgd(stochastic, gradient, lr=2.0**-12, seed=seed, impl=impl)
    assert torch.equal(nearest, torch.ones(1, 256, dtype=torch.bfloat16))
    moved = 1 - float(stochastic.float().mean())
    assert moved == pytest.approx(128 * 2.0**-12, rel=0.05)


@every_impl
@pytest.mark.parametrize("seed", [None, 5])
def test_nan_and_infinity_survive_rounding(impl: str, seed: int | None) -> None:
    table = torch.zeros(1, 3, dtype=torch.bfloat16)
    values = torch.tensor([[float("nan"), float("inf"), -float("inf")]])
    gradient = group_by_row(torch.tensor([[0]]), torch.ones(1, 1), -values)
    sgd(table, gradient, lr=1.0, seed=seed, impl=impl)
    assert torch.equal(table.isnan(), values.isnan())
    assert torch.equal(table[0, 1:], values[0, 1:].bfloat16())


@every_impl
@pytest.mark.parametrize("kind", STEPS)
def test_no_touched_row_changes_nothing(impl: str, kind: str) -> None:
    case = Case(kind)
    case.gradient = exact_gradient(tokens=0)
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
    decayed = torch.zeros(rows, dtype=torch.float64)
    for step in range(1, 21):
        slots = torch.cat((torch.arange(rows), torch.randint(rows, (50,)))).view(30, 4)
        gradient = group_by_row(slots, torch.randn(30, 4), torch.randn(30, width))
        weight.grad = dense(gradient, rows).float()
        optimizer.step()
        if kind == "adamw":
            state = RowState(first, second, step, decayed, step * math.log(1 - 0.01 * 0.1))
            row_step_(table, state, gradient, lr=0.01, impl=impl)
        else:
            sgd(table, gradient, lr=0.01, impl=impl)
        torch.testing.assert_close(table, weight.detach(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_addresses_beyond_31_bits(impl: str) -> None:
    rows, width = 2**25, 65
    table = torch.empty(rows, width, dtype=torch.bfloat16)  # 4.4 GiB, but only 3 rows are touched
    second = torch.empty(rows, 1)
    where = torch.tensor([0, rows - 2, rows - 1])
    few, few_second = torch.randn(3, width).bfloat16(), torch.rand(3, 1)
    table[where], second[where] = few, few_second
    vectors, weights = torch.randn(3, width), torch.randn(3, 2)
    small = torch.tensor([[2, 1], [2, 0], [1, 1]])
    for target, state, slots in ((table, second, where[small]), (few, few_second, small)):
        gradient = group_by_row(slots, weights, vectors)
        row_step_(target, RowState(exp_avg_sq=state), gradient, lr=0.1, impl=impl)
    assert torch.equal(table[where], few)
    assert torch.equal(second[where], few_second)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("kind", STEPS)
def test_result_does_not_depend_on_threads(kind: str) -> None:
    many = Case(kind, torch.bfloat16)
    slots = torch.randint(N, (500, 4))
    many.gradient = group_by_row(slots, torch.randn(500, 4), torch.randn(500, V))
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
    row_step_(table, RowState(master=master), exact_gradient(), "sgd", lr=0.1, impl=impl)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- errors ---------------------------------------------------------------------------------


AHEAD = {"last_step": torch.zeros(N, dtype=torch.int32), "last_lr": torch.zeros(N)}


def adamw(table: Tensor, **changes: object) -> None:
    state = {"exp_avg": torch.zeros(N, V), "exp_avg_sq": torch.zeros(N, V)}
    kept = {name: changes.pop(name) for name in RowState.__dataclass_fields__ if name in changes}
    arguments = {"gradient": exact_gradient(), "lr": 0.1, **changes}
    row_step_(table, RowState(**{**state, **kept}), **arguments)


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
        ({"decayed": torch.ones(3).double()}, r"decayed must have shape \[N=80\], got \[3\]"),
        ({"decayed": torch.ones(N)}, "decayed must be float64 and contiguous, got torch.float32"),
        ({"seed": 1}, "seed is for bfloat16 tables, got torch.float32"),
        ({"master": torch.zeros(N, V)}, "master is for bfloat16 and float16 tables"),
        ({"gradient": one_row_gradient(V, row=N)}, r"gradient.rows must lie in \[0, 80\)"),
        ({"gradient": one_row_gradient(V, row=-1)}, r"gradient.rows must lie in \[0, 80\)"),
        ({"gradient": one_row_gradient(V + 1)}, r"gradient.vectors must have shape \[T, V=20\]"),
        ({"impl": "fast"}, "impl must be"),
        ({"rule": "adam"}, 'rule must be "adamw" or "sgd", got \'adam\''),
        ({"rule": "sgd"}, "has no moments"),
        ({"exp_avg_sq": None}, "needs exp_avg_sq"),
        ({"last_lr": torch.zeros(N)}, "last_step and last_lr are given together"),
        ({"last_step": torch.zeros(N), "last_lr": torch.zeros(N)}, "last_step must be torch.int32"),
        ({**AHEAD, "last_lr": torch.zeros(3)}, r"last_lr must have shape \[N=80\], got \[3\]"),
        ({**AHEAD, "exp_avg": None}, "last_step needs exp_avg and exp_avg_sq"),
        ({**AHEAD, "exp_avg_sq": torch.zeros(N, 1)}, r"last_step needs exp_avg_sq \[N, V\]"),
        ({**AHEAD, "betas": (0.9, 0.81)}, "betas must be such that beta1\\^2 < beta2"),
    ],
)
def test_bad_step_arguments_are_named(changes: dict[str, object], message: str) -> None:
    table = torch.zeros(N, V)
    with pytest.raises(ValueError, match=message):
        adamw(table, **changes)
    assert not table.any(), "nothing was changed before the error"


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
        ({"slots": torch.zeros(2, 3)}, "slots must be int32 or int64"),
        ({"slots": torch.zeros(3).long()}, r"slots must have shape \[T, J\]"),
        ({"slots": torch.tensor([[0, 1, -1]] * 2)}, "slots must lie in"),
        ({"slots": torch.tensor([[0, 1, 2**31]] * 2)}, "slots must lie in"),
        ({"weights": torch.zeros(3, 2)}, r"weights must have shape \[T=2, J=3\]"),
        ({"weights": torch.zeros(2, 3).long()}, "weights must be floating point"),
        ({"vectors": torch.zeros(2)}, r"vectors must have shape \[T=2, V\]"),
        ({"vectors": torch.zeros(3, 3)}, r"vectors must have shape \[T=2, V\]"),
    ],
)
def test_bad_factors_are_named(changes: dict[str, object], message: str) -> None:
    good = {
        "slots": torch.zeros(2, 3).long(),
        "weights": torch.zeros(2, 3),
        "vectors": torch.zeros(2, 3),
    }
    with pytest.raises(ValueError, match=message):
        group_by_row(**{**good, **changes})


def crafted(gradient: RowGradient, place: int, entry: int) -> RowGradient:
    """A gradient one of whose entries was changed behind its back."""
    entries = gradient.entries[0].clone()
    entries[place] = entry
    return replace(gradient, entries=(entries,))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (N << 32, r"gradient.rows must lie in \[0, 80\), got .* to 80"),
        (-1 << 32, "gradient.rows must lie in"),
        (3 << 32 | 300, r"places of gradient.entries must lie in \[0, 300\), got .* to 300"),
    ],
)
def test_entries_that_point_outside_are_named(entry: int, message: str) -> None:
    """Kernels follow them to addresses, wherever they stand in the list."""
    with pytest.raises(ValueError, match=message):
        adamw(torch.zeros(N, V), gradient=crafted(exact_gradient(), 150, entry))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": (torch.zeros(1, 1),)}, r"entries must have shape \[1\]"),
        ({"vectors": (torch.zeros(2, V),)}, r"vectors must have shape \[T=60, V\]"),
        ({"entries": (torch.zeros(300),)}, "entries must be int64 and contiguous"),
        ({"entries": ()}, "one or more reads"),
        ({"scale": torch.ones((), device="meta")}, "all tensors must be on one device"),
    ],
)
def test_factors_that_do_not_fit_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(exact_gradient(), **changes)


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_state_on_another_device_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"one device, got .*{name} on meta"):
        adamw(torch.zeros(N, V), **{name: torch.zeros(N, V, device="meta")})


def test_precisions_are_all_used() -> None:
    """The table of implementations and precisions is what it says."""
    assert {p for _, p in IMPL_PRECISIONS} == {FP32, BF16, BF16_TABLE, FP64}
    assert ("cpu", FP64) not in IMPL_PRECISIONS
