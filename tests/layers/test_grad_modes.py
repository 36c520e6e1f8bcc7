"""The three gradient modes are one gradient, and the pending list keeps it in bounded memory."""

import pytest
import torch
from helpers import assert_within_budget, one_hot_sum
from torch import Tensor, nn

from memory_layers.config import MemoryConfig
from memory_layers.layers import MemoryLayer, ValueTable
from memory_layers.layers.pending import PendingReads
from memory_layers.ops.write import row_norm, row_sums
from memory_layers.optim.gradients import take_row_gradient

MODES = ("factored", "sparse", "dense")
N, V, DIM = 36, 8, 8


class TwoReaders(nn.Module):
    """Two memory layers that share one table, as in a model."""

    def __init__(self, grad_mode: str, dtype: str = "model") -> None:
        super().__init__()
        config = MemoryConfig(
            layers=(0, 1), sub_keys=6, heads=2, top_k=3, value_init_std=0.5,
            grad_mode=grad_mode, value_dtype=dtype,
        )  # fmt: skip
        self.memory_table = ValueTable(
            N, V, init_std=0.5, grad_mode=grad_mode,
            dtype=torch.bfloat16 if dtype == "bfloat16" else None,
        )  # fmt: skip
        self.first = MemoryLayer(config, DIM, owner=self)
        self.second = MemoryLayer(config, DIM, owner=self)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x + self.first(x))


def dense_gradient(table: ValueTable) -> Tensor:
    gradient = take_row_gradient(table)
    out = torch.zeros(table.weight.shape)
    if gradient is not None:
        rows, sums = row_sums(gradient)
        out[rows] = sums
    return out


def train(model: TwoReaders, batches: list[Tensor]) -> dict[str, Tensor]:
    for x in batches:
        model(x).square().sum().backward()
    grads = {n: p.grad for n, p in model.named_parameters() if not n.startswith("memory_table")}
    return {**grads, "memory_table.weight": dense_gradient(model.memory_table)}


@pytest.mark.parametrize("dtype", ["model", "bfloat16"])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_modes_agree_for_a_shared_table_and_micro_batches(micro_batches: int, dtype: str) -> None:
    batches = [torch.randn(2, 5, DIM) for _ in range(micro_batches)]
    results = {}
    for mode in MODES:
        torch.manual_seed(1)
        results[mode] = train(TwoReaders(mode, dtype), batches)
    # "sparse" and "dense" round each backward pass to the type of the table, as torch does.
    tolerance = 2**-7 if dtype == "bfloat16" else 1e-5
    for mode in MODES[1:]:
        for name, grad in results["factored"].items():
            exact = tolerance if name == "memory_table.weight" else 1e-5
            torch.testing.assert_close(
                results[mode][name], grad, rtol=exact, atol=exact * float(grad.abs().max())
            )


def test_table_is_one_parameter_with_one_name() -> None:
    model = TwoReaders("factored")
    tables = [name for name, p in model.named_parameters() if p is model.memory_table.weight]
    assert tables == ["memory_table.weight"]
    assert not [name for name in model.state_dict() if "table" in name and name not in tables]
    assert model.first.values is model.second.values is model.memory_table


def test_layers_follow_when_the_owner_exchanges_its_table() -> None:
    """What LoRA and tied loading do."""
    model = TwoReaders("factored")
    model.memory_table = ValueTable(N, V, init_std=1.0)
    assert model.first.values is model.second.values is model.memory_table
    model(torch.randn(4, DIM)).sum().backward()
    assert len(model.memory_table.pending) == 2


@pytest.mark.parametrize("mode", MODES)
def test_where_each_mode_leaves_its_gradient(mode: str) -> None:
    model = TwoReaders(mode)
    train(model, [torch.randn(5, DIM)])
    table = model.memory_table
    if mode == "factored":
        assert table.weight.grad is None
        assert len(table.pending) == 2
    else:
        assert len(table.pending) == 0
        assert table.weight.grad.is_sparse == (mode == "sparse")
        assert table.weight.grad.shape == (N, V)
        assert table.weight.grad.dtype == table.weight.dtype


def test_sparse_gradient_names_each_row_once_and_works_with_sparse_adam() -> None:
    table = ValueTable(N, V, init_std=0.5, grad_mode="sparse")
    slots = torch.tensor([[3, 3, 9], [9, 1, 3]])
    table(slots, torch.rand(2, 3)).square().sum().backward()
    # autograd drops the flag "coalesced" on the way to .grad, but every row is there once.
    grad = table.weight.grad
    assert grad._indices().tolist() == [[1, 3, 9]]
    torch.sparse_coo_tensor(
        grad._indices(), grad._values(), grad.shape, is_coalesced=True, check_invariants=True
    )
    before = table.weight.detach().clone()
    torch.optim.SparseAdam([table.weight], lr=0.1).step()
    moved = (table.weight.detach() != before).any(1).nonzero()[:, 0]
    assert moved.tolist() == [1, 3, 9]


@pytest.mark.parametrize("mode", MODES)
def test_no_tokens(mode: str) -> None:
    table = ValueTable(N, V, init_std=0.5, grad_mode=mode)
    out = table(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3))
    assert out.shape == (0, V)
    out.sum().backward()
    assert not dense_gradient(table).any()


@pytest.mark.parametrize("mode", MODES)
def test_dot_products_and_their_gradients(mode: str) -> None:
    """A table that is read both ways, as one list of pending reads."""
    table = ValueTable(N, V, init_std=0.5, grad_mode=mode)
    exact = table.weight.detach().double()
    total = torch.zeros(N, V, dtype=torch.float64)
    for _ in range(2):
        slots, d_dots, x = random_read()
        x.requires_grad_()
        dots = table.dot(slots, x)
        assert dots.dtype == torch.float32
        expected = torch.einsum("tjv,tv->tj", exact[slots], x.detach().double())
        torch.testing.assert_close(dots.double(), expected, rtol=1e-5, atol=1e-5)
        dots.backward(d_dots)
        d_x = torch.einsum("tjv,tj->tv", exact[slots], d_dots.double())
        torch.testing.assert_close(x.grad.double(), d_x, rtol=1e-5, atol=1e-5)
        total += one_hot_sum(slots, d_dots, N).T @ x.detach().double()
        slots, weights, d_out = random_read()
        table(slots, weights).backward(d_out)
        total += one_hot_sum(slots, weights, N).T @ d_out.double()
    assert len(table.pending) == (4 if mode == "factored" else 0)
    torch.testing.assert_close(dense_gradient(table).double(), total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["factored", "sparse"])
def test_second_gradient_is_refused_where_it_would_be_wrong(mode: str) -> None:
    table = ValueTable(N, V, init_std=0.5, grad_mode=mode)
    weights = torch.rand(2, 3, requires_grad=True)
    out = table(torch.tensor([[3, 3, 9], [9, 1, 3]]), weights)
    (grad,) = torch.autograd.grad(out.square().sum(), weights, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_changed_mode_is_noticed() -> None:
    table = ValueTable(N, V, init_std=0.5)
    slots, weights = torch.tensor([[1, 2]]), torch.rand(1, 2)
    table(slots, weights).sum().backward()
    table.grad_mode = "dense"
    table(slots, weights).sum().backward()
    with pytest.raises(ValueError, match="grad_mode changed between two backward"):
        take_row_gradient(table)


# --- the pending list -----------------------------------------------------------------------


def random_read(rows: int = N, tokens: int = 6, reads: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randint(rows, (tokens, reads)), torch.randn(tokens, reads), torch.randn(tokens, V)


def exact_sum(reads: list[tuple[Tensor, Tensor, Tensor]], *, absolute: bool = False) -> Tensor:
    total = torch.zeros(N, V, dtype=torch.float64)
    for slots, weights, d_out in reads:
        w, d = (weights.abs(), d_out.abs()) if absolute else (weights, d_out)
        total += one_hot_sum(slots, w, N).T @ d.double()
    return total


def sums_of(pending: PendingReads) -> Tensor:
    gradient = pending.row_gradient()
    out = torch.zeros(N, V)
    rows, sums = row_sums(gradient)
    out[rows] = sums
    return out


@pytest.mark.parametrize("budget", [0, 1, 700, 2**30])
def test_folding_changes_no_gradient(budget: int) -> None:
    pending = PendingReads(budget_bytes=budget)
    reads = [random_read() for _ in range(20)]
    for read in reads:
        pending.append(*read)
    assert (len(pending) < 20) == (budget < 2**30)
    assert_within_budget(sums_of(pending), exact_sum(reads), exact_sum(reads, absolute=True))


def test_memory_of_many_micro_batches_is_bounded() -> None:
    one_read = random_read()
    read_bytes = sum(t.nbytes for t in one_read)
    folded_bytes = N * (V * 4 + 8 + 4)  # every row: its sum, its number and a weight of one
    budget = 3 * read_bytes
    pending = PendingReads(budget_bytes=budget)
    largest = 0
    for _ in range(200):
        pending.append(*random_read())
        largest = max(largest, pending.nbytes)
    assert largest <= max(budget, 2 * folded_bytes) + read_bytes
    assert pending.nbytes < 200 * read_bytes / 4


def test_folding_is_rare_when_the_touched_rows_exceed_the_budget() -> None:
    """Each fold costs a pass over all rows: it must not happen at every read."""
    pending = PendingReads(budget_bytes=1)
    folds = 0
    for _ in range(60):
        before = len(pending)
        pending.append(*random_read(tokens=1, reads=2))
        folds += len(pending) <= before
    assert folds < 30


def test_append_after_grouping_counts() -> None:
    pending = PendingReads()
    reads = [random_read(), random_read()]
    pending.append(*reads[0])
    assert_within_budget(
        sums_of(pending), exact_sum(reads[:1]), exact_sum(reads[:1], absolute=True)
    )
    pending.append(*reads[1])
    assert_within_budget(sums_of(pending), exact_sum(reads), exact_sum(reads, absolute=True))


def test_scale_concerns_the_reads_so_far() -> None:
    pending = PendingReads()
    reads = [random_read() for _ in range(4)]
    pending.append(*reads[0])
    pending.append(*reads[1])
    pending.scale(0.5)
    pending.scale(0.5)
    quarter = 0.25 * exact_sum(reads[:2])
    torch.testing.assert_close(sums_of(pending).double(), quarter, rtol=1e-5, atol=1e-5)
    norm = row_norm(pending.row_gradient())
    assert norm == pytest.approx(float(quarter.norm()), rel=1e-5)
    pending.append(*reads[2])
    mixed = quarter + exact_sum(reads[2:3])
    torch.testing.assert_close(sums_of(pending).double(), mixed, rtol=1e-5, atol=1e-5)
    pending.scale(2.0)
    pending.fold()
    assert len(pending) == 1
    torch.testing.assert_close(sums_of(pending).double(), 2 * mixed, rtol=1e-5, atol=1e-5)
    pending.append(*reads[3])
    last = 2 * mixed + exact_sum(reads[3:])
    torch.testing.assert_close(sums_of(pending).double(), last, rtol=1e-5, atol=1e-5)


def test_empty_list() -> None:
    pending = PendingReads()
    assert (len(pending), pending.nbytes, pending.row_gradient()) == (0, 0, None)
    pending.fold()
    pending.scale(2.0)
    assert len(pending) == 0
    pending.append(*random_read())
    pending.clear()
    assert (len(pending), pending.nbytes, pending.row_gradient()) == (0, 0, None)
    table = torch.randn(N, V)
    assert not pending.to_sparse(table).to_dense().any()


def test_pending_reads_hold_no_graph() -> None:
    table = ValueTable(N, V, init_std=0.5)
    weights = torch.rand(2, 3, requires_grad=True)
    table(torch.tensor([[3, 3, 9], [9, 1, 3]]), weights).square().sum().backward()
    gradient = table.pending.row_gradient()
    assert not gradient.weights[0].requires_grad
    assert not gradient.vectors[0].requires_grad
