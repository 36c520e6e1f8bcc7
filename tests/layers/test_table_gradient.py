"""A table leaves one gradient in three kinds, and keeps its factors in bounded memory."""

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import assert_within_budget, one_hot_sum
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_reduce
from torch.utils.checkpoint import checkpoint

from memory_layers import MemoryAdamW
from memory_layers.config import MemoryConfig
from memory_layers.layers import MemoryLayer, ValueTable
from memory_layers.layers.factored import FactoredGradient
from memory_layers.layers.pending import PendingReads
from memory_layers.layers.values import table_of
from memory_layers.ops.write import row_norm, row_sums

KINDS = ("factored", "sparse", "dense")
N, V, DIM = 36, 8, 8


def new_table(kind: str, dtype: torch.dtype | None = None) -> ValueTable:
    """Return a table that leaves gradients of a kind."""
    table = ValueTable(N, V, init_std=0.5, sparse=kind == "sparse", dtype=dtype)
    if kind == "factored":
        table.claim(table)
    return table


class TwoReaders(nn.Module):
    """Two memory layers that share one table, as in a model."""

    def __init__(self, kind: str, dtype: str = "model") -> None:
        super().__init__()
        config = MemoryConfig(layers=(0, 1), sub_keys=6, heads=2, top_k=3, value_init_std=0.5)
        self.memory_table = new_table(kind, torch.bfloat16 if dtype == "bfloat16" else None)
        self.first = MemoryLayer(config, DIM, owner=self)
        self.second = MemoryLayer(config, DIM, owner=self)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x + self.first(x))


def dense_gradient(table: ValueTable) -> Tensor:
    return table.weight.grad.to_dense().float()


def train(model: TwoReaders, batches: list[Tensor]) -> dict[str, Tensor]:
    for x in batches:
        model(x).square().sum().backward()
    grads = {n: p.grad for n, p in model.named_parameters() if not n.startswith("memory_table")}
    return {**grads, "memory_table.weight": dense_gradient(model.memory_table)}


@pytest.mark.parametrize("dtype", ["model", "bfloat16"])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_kinds_agree_for_a_shared_table_and_micro_batches(micro_batches: int, dtype: str) -> None:
    batches = [torch.randn(2, 5, DIM) for _ in range(micro_batches)]
    results = {}
    for kind in KINDS:
        torch.manual_seed(1)
        results[kind] = train(TwoReaders(kind, dtype), batches)
    # "sparse" and "dense" round each backward pass to the type of the table, as torch does.
    tolerance = 2**-7 if dtype == "bfloat16" else 1e-5
    for kind in KINDS[1:]:
        for name, grad in results["factored"].items():
            exact = tolerance if name == "memory_table.weight" else 1e-5
            torch.testing.assert_close(
                results[kind][name], grad, rtol=exact, atol=exact * float(grad.abs().max())
            )


def test_table_is_one_parameter_with_one_name() -> None:
    model = TwoReaders("factored")
    tables = [name for name, p in model.named_parameters() if p is model.memory_table.weight]
    assert tables == ["memory_table.weight"]
    assert not [name for name in model.state_dict() if "table" in name and name not in tables]
    assert model.first.values is model.second.values is model.memory_table


def test_a_layer_copied_without_its_owner_reads_the_same_table() -> None:
    model = TwoReaders("dense")
    twin = copy.deepcopy(model.first)
    assert twin.values is model.first.values
    assert twin.query.proj.weight is not model.first.query.proj.weight
    whole = copy.deepcopy(model)
    assert whole.first.values is whole.memory_table
    assert whole.memory_table is not model.memory_table


def test_layers_follow_when_the_owner_exchanges_its_table() -> None:
    """What LoRA and tied loading do."""
    model = TwoReaders("factored")
    model.memory_table = ValueTable(N, V, init_std=1.0)
    assert model.first.values is model.second.values is model.memory_table
    model(torch.randn(4, DIM)).sum().backward()
    assert model.memory_table.weight.grad.any()
    assert table_of(model.memory_table.weight) is model.memory_table


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_left_in_grad(kind: str) -> None:
    model = TwoReaders(kind)
    train(model, [torch.randn(5, DIM)])
    table = model.memory_table
    assert isinstance(table.weight.grad, FactoredGradient) == (kind == "factored")
    assert table.weight.grad.is_sparse == (kind == "sparse")
    assert table.weight.grad.shape == (N, V)
    assert table.weight.grad.dtype == table.weight.dtype


def test_sparse_gradient_names_each_row_once_and_works_with_sparse_adam() -> None:
    table = new_table("sparse")
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


@pytest.mark.parametrize("kind", KINDS)
def test_no_tokens(kind: str) -> None:
    table = new_table(kind)
    out = table(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3))
    assert out.shape == (0, V)
    out.sum().backward()
    assert not dense_gradient(table).any()


@pytest.mark.parametrize("kind", KINDS)
def test_dot_products_and_their_gradients(kind: str) -> None:
    """A table that is read both ways, as one list of pending reads."""
    table = new_table(kind)
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
    if kind == "factored":
        assert len(table.weight.grad.reads) == 4
    torch.testing.assert_close(dense_gradient(table).double(), total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_can_be_differentiated_twice(kind: str) -> None:
    """As a gradient penalty does, with the table among what is differentiated or without."""
    results = {}
    for name in (kind, "dense"):
        torch.manual_seed(2)
        table, slots = new_table(name), torch.tensor([[3, 3, 9], [9, 1, 3]])
        x, weights = torch.randn(2, V, requires_grad=True), torch.rand(2, 3, requires_grad=True)
        loss = (table(slots, weights * table.dot(slots, x)) ** 3).sum()
        wanted = [x, weights, table.weight]
        grads = torch.autograd.grad(loss, wanted, create_graph=True)
        (some,) = torch.autograd.grad(loss, x, create_graph=True)
        penalty = some.square().sum() + sum(grad.square().sum() for grad in grads)
        penalty.backward()
        results[name] = [x.grad, weights.grad, dense_gradient(table)]
    for ours, dense in zip(results[kind], results["dense"], strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-4, atol=1e-5 * float(dense.abs().max()))


def test_dense_gradient_can_be_differentiated_again() -> None:
    table = new_table("dense").double()
    slots = torch.tensor([[3, 3, 9], [9, 1, 3]])
    weights = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        table.weight.copy_(torch.randn(N, V, dtype=torch.float64))
    rows = table.weight.detach().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda r, w: _read(table, r, slots, w), (rows, weights))


def _read(table: ValueTable, rows: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
    return torch.func.functional_call(table, {"weight": rows}, (slots, weights))


def test_initial_values_that_nobody_chose_are_as_small_as_in_a_model() -> None:
    table = ValueTable(1024, 64)
    assert float(table.weight.detach().std()) == pytest.approx(0.02 * 64**-0.5, rel=0.05)


# --- the factored gradient as a tensor ----------------------------------------------------------


def backward(table: ValueTable, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    table(torch.randint(N, (5, 3)), torch.rand(5, 3)).square().sum().backward()
    return table.weight.grad


def twins() -> tuple[ValueTable, ValueTable]:
    factored, dense = new_table("factored"), new_table("dense")
    dense.load_state_dict(factored.state_dict())
    return factored, dense


# What is done with a loss that is not to be learned from, in the middle of a step.
LOOKS = {
    "grad": lambda model, loss, x: torch.autograd.grad(loss, x),
    "grad of the table too": lambda model, loss, x: torch.autograd.grad(
        loss, [x, *model.parameters()], allow_unused=True
    ),
    "twice": lambda model, loss, x: [
        torch.autograd.grad(loss, x, retain_graph=True) for _ in range(2)
    ],
    "backward to the input": lambda model, loss, x: loss.backward(inputs=[x]),
    "saliency": lambda model, loss, x: (loss.backward(), model.zero_grad()),
    "a batch that is not finite": lambda model, loss, x: (
        (loss * float("nan")).backward(),
        [setattr(p, "grad", None) for p in model.parameters() if not p.grad.isfinite().all()],
    ),
    "kept aside": lambda model, loss, x: kept_aside(model, loss),
    "zeros": lambda model, loss, x: (loss.backward(), model.zero_grad(set_to_none=False)),
}


def kept_aside(model: nn.Module, loss: Tensor) -> None:
    """Put the gradients of a loss in the place of what is there, and back again."""
    held = {p: p.grad for p in model.parameters()}
    model.zero_grad()
    loss.backward()
    for parameter, grad in held.items():
        parameter.grad = grad


class Neurons(TwoReaders):
    """A layer of experts, which reads two tables."""

    def __init__(self, kind: str) -> None:
        nn.Module.__init__(self)
        config = MemoryConfig(
            layers=(0,), sub_keys=6, heads=2, top_k=3, value_init_std=0.5, readout="experts"
        )
        self.memory_table, self.expert_table = new_table(kind), new_table(kind)
        self.layer = MemoryLayer(config, DIM, owner=self)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("kind", [TwoReaders, Neurons])
@pytest.mark.parametrize("look", LOOKS)
def test_what_is_looked_at_is_not_learned(look: str, kind: type, checkpointed: bool) -> None:
    """The model after three steps is to the bit that of a run that has not looked."""
    trained = []
    for looks in (False, True):
        torch.manual_seed(3)
        model = kind("dense")
        optimizer = MemoryAdamW(model, lr=0.01, value_lr=0.1)

        def loss_of(x: Tensor, model: nn.Module = model) -> Tensor:
            out = checkpoint(model, x, use_reentrant=False) if checkpointed else model(x)
            return out.square().sum()

        batches = torch.randn(3, 3, 5, DIM)
        for mine, more, other in batches:
            if looks:
                x = other.clone().requires_grad_()
                LOOKS[look](model, loss_of(x), x)
            loss_of(mine).backward()
            if looks and look not in ("saliency", "zeros", "a batch that is not finite"):
                x = other.clone().requires_grad_()
                LOOKS[look](model, loss_of(x), x)
            loss_of(more).backward()
            optimizer.step()
            optimizer.zero_grad()
        trained.append(model.state_dict())
    for name, value in trained[0].items():
        assert torch.equal(value, trained[1][name]), name


def test_a_gradient_that_is_looked_at_is_not_kept() -> None:
    table = new_table("factored")
    slots, weights = torch.tensor([[1, 2]]), torch.rand(1, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(table(slots, weights).sum(), table.weight)
    assert grad.to_dense()[1].sum() == pytest.approx(V * float(weights.detach()[0, 0]), rel=1e-5)
    torch.autograd.grad(table(slots, weights).sum(), weights)
    table(slots, weights).sum().backward(inputs=[weights])
    assert table.weight.grad is None


@pytest.mark.parametrize("forget", [
    lambda table: table.zero_grad(),
    lambda table: nn.ModuleList([table]).zero_grad(),
    lambda table: table.zero_grad(set_to_none=False),
    lambda table: torch.optim.SGD(table.parameters(), lr=0.1).zero_grad(),
    lambda table: torch.optim.SGD(table.parameters(), lr=0.1).zero_grad(set_to_none=False),
    lambda table: torch.optim.SGD(table.parameters(), foreach=True).zero_grad(set_to_none=False),
    lambda table: setattr(table.weight, "grad", None),
])  # fmt: skip
def test_every_way_to_forget_a_gradient(forget: Callable[[ValueTable], None]) -> None:
    table, twin = twins()
    backward(table, seed=1)
    forget(table)
    assert table.weight.grad is None or not table.weight.grad.any()
    torch.testing.assert_close(backward(table).to_dense(), backward(twin))


def test_what_torch_computes_of_it_is_what_it_computes_of_a_dense_gradient() -> None:
    factored, dense = (backward(table) for table in twins())
    assert "FactoredGradient" in repr(factored)
    for name, compute in {
        "norm": lambda g: g.norm(),
        "norm 1": lambda g: torch.linalg.vector_norm(g, 1),
        "norm of rows": lambda g: torch.linalg.vector_norm(g, dim=1),
        "sum": lambda g: g.sum(),
        "product": lambda g: 2 * g,
        "sum of two": lambda g: g + g,
        "with a number": lambda g: g.add(1.0),
        "difference": lambda g: torch.ones_like(g) - g,
        "into another": lambda g: torch.ones(N, V).add_(g, alpha=0.5),
        "bfloat16": lambda g: g.to(torch.bfloat16),
        "finite": lambda g: g.isfinite(),
        "row": lambda g: g[3].clone(),
        "rows": lambda g: torch.cat([g.T[2], g.view(-1)[:3], g.unbind()[4]]),
        "copy": lambda g: g.clone().to_dense(),
    }.items():
        torch.testing.assert_close(as_dense(compute(factored)), compute(dense), msg=name)


@pytest.mark.parametrize("look", [
    lambda grad: grad[1].numpy().tolist(),
    lambda grad: grad[1].cpu().numpy(force=True).tolist(),
    lambda grad: grad[:2].tolist(),
    lambda grad: np.asarray(grad[1]).tolist(),
    lambda grad: torch.from_dlpack(grad[1]).tolist(),
    lambda grad: f"{grad[1, 0]:.3f} {grad[1]}",
    lambda grad: copy.deepcopy(grad[1]).zero_().tolist(),
    lambda grad: pickle.loads(pickle.dumps(grad[1])).mul_(2).tolist(),
    lambda grad: saved_part(grad.T[2]).tolist(),
])  # fmt: skip
def test_parts_of_it_are_looked_at_as_those_of_a_dense_gradient(look: Callable) -> None:
    factored, dense = (backward(table) for table in twins())
    assert look(factored) == look(dense)


def saved_part(part: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.save(part, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def as_dense(value: Tensor) -> Tensor:
    return value.to_dense() if isinstance(value, FactoredGradient) else value


def test_changes_of_it_are_seen_by_all_who_hold_it() -> None:
    table, twin = twins()
    held, exact = backward(table), backward(twin)
    held.detach().mul_(0.5)
    exact.detach().mul_(0.5)
    torch.testing.assert_close(table.weight.grad.to_dense(), exact)
    copied = held.clone()
    backward(table, seed=2)
    backward(twin, seed=2)
    torch.testing.assert_close(held.to_dense(), twin.weight.grad)
    assert not torch.equal(copied.to_dense(), held.to_dense())
    held.div_(4)
    held.add_(torch.eye(N, V))
    exact.div_(4).add_(torch.eye(N, V))
    torch.testing.assert_close(held.to_dense(), exact)
    held.zero_()
    assert not held.any()


def test_what_would_change_a_copy_in_its_place_is_refused() -> None:
    grad = backward(new_table("factored"))
    with pytest.raises(RuntimeError, match=r"clamp_ cannot change .* hint: weight.grad = "):
        grad.clamp_(max=0.1)
    with pytest.raises(RuntimeError, match="DistributedDataParallel would send"):
        torch.mul(grad, 2.0, out=torch.empty(N, V))


@pytest.mark.parametrize("change", [
    lambda grad: grad.__setitem__(3, 0),
    lambda grad: grad.__setitem__(slice(3), 0),
    lambda grad: grad.__setitem__(grad > 0, 0),
    lambda grad: grad.data[3].zero_(),
    lambda grad: grad.view(-1).mul_(2),
    lambda grad: grad.T[2].copy_(torch.ones(N)),
    lambda grad: torch._foreach_zero_(list(grad.unbind())),
])  # fmt: skip
def test_a_change_of_a_part_of_it_is_not_lost_in_silence(change: Callable) -> None:
    """A row that is not to be learned, say."""
    grad = backward(new_table("factored"))
    with pytest.raises(RuntimeError, match=r"cannot change .* hint: weight.grad = "):
        change(grad)
    dense = grad.to_dense()
    change(dense)
    assert torch.equal(grad[3].clone().zero_(), torch.zeros(V))


def test_a_copy_into_it_may_come_from_itself() -> None:
    table, twin = twins()
    grad, exact = backward(table), backward(twin)
    grad.copy_(grad.detach())
    torch.testing.assert_close(grad.to_dense(), exact)
    with pytest.raises(RuntimeError, match="copy_ cannot change"):
        grad.copy_(torch.ones(V))
    torch.testing.assert_close(grad.to_dense(), exact)
    grad.copy_(torch.eye(N, V))
    assert torch.equal(grad.to_dense(), torch.eye(N, V))


def test_collectives_are_refused_that_would_exchange_a_copy(tmp_path: Path) -> None:
    grad = backward(new_table("factored"))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for collective in (
            dist.all_reduce,
            lambda g: dist.broadcast(g, 0),
            lambda g: dist.all_gather([torch.empty(N, V)], g),
            lambda g: all_reduce(g, "sum", dist.group.WORLD),
        ):
            with pytest.raises(RuntimeError, match=r"hint: leave the tables out.*sync_tables"):
                collective(grad)
    finally:
        dist.destroy_process_group()


def test_a_table_is_as_before_when_what_claimed_it_has_gone() -> None:
    table = ValueTable(N, V, init_std=0.5)
    owners = [nn.Identity(), nn.Identity()]
    for owner in owners:
        table.claim(owner)
    del owner
    for left in (1, 0):
        owners.pop()
        table.weight.grad = None
        assert isinstance(backward(table), FactoredGradient) == bool(left)


@pytest.mark.parametrize("duplicate", [
    copy.deepcopy, lambda table: pickle.loads(pickle.dumps(table)), lambda table: saved(table)
])  # fmt: skip
def test_copies_of_a_table_are_claimed_by_nobody(duplicate: Callable) -> None:
    table = new_table("factored")
    twin = duplicate(table)
    assert torch.equal(twin.weight, table.weight)
    assert isinstance(backward(table), FactoredGradient)
    assert type(backward(twin)) is Tensor
    assert table_of(twin.weight) is twin
    assert table_of(table.weight) is table


def saved(table: ValueTable) -> ValueTable:
    file = io.BytesIO()
    torch.save(table, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_the_weight_of_a_table_is_found_however_it_came_there() -> None:
    table = ValueTable(N, V, init_std=0.5)
    first = table.weight
    table.weight = nn.Parameter(torch.zeros(N, V))
    assert table_of(table.weight) is table
    assert table_of(first) is None
    table.load_state_dict(ValueTable(N, V, init_std=0.5).state_dict(), assign=True)
    assert table_of(table.weight) is table
    with torch.device("meta"):
        empty = ValueTable(N, V, init_std=0.5)
    empty.to_empty(device="cpu")
    assert table_of(empty.weight) is empty
    assert table_of(empty.to(torch.bfloat16).weight) is empty
    assert table_of(nn.Parameter(torch.zeros(2))) is None


def test_a_shallow_copy_leaves_the_weight_with_its_table() -> None:
    table = ValueTable(N, V, init_std=0.5)
    twin = copy.copy(table)
    assert twin.weight is table.weight
    assert table_of(table.weight) is table
    tied = ValueTable(N, V, init_std=0.5)
    tied.weight = table.weight
    optimizer = MemoryAdamW(nn.ModuleList([table, tied]).parameters())
    assert isinstance(backward(table, seed=3), FactoredGradient)
    backward(tied, seed=4)
    both = tied.weight.grad.to_dense()
    del optimizer
    tied.weight.grad = None
    backward(table, seed=3)
    torch.testing.assert_close(both, backward(tied, seed=4))


def test_a_weight_in_a_file_needs_no_code_of_ours() -> None:
    file = io.BytesIO()
    torch.save({"weight": ValueTable(N, V, init_std=0.5).weight}, file)
    file.seek(0)
    assert table_of(torch.load(file, weights_only=True)["weight"]) is None


def test_optimizer_keeps_no_model_alive_and_model_no_optimizer() -> None:
    model = nn.Sequential(ValueTable(N, V, init_std=0.5))
    gone = weakref.ref(model)
    optimizer = MemoryAdamW(model)
    ended = weakref.ref(optimizer)
    weight = model[0].weight
    gc.disable()
    try:
        del model
        assert gone() is None
        del optimizer
        assert ended() is None
        gone = weakref.ref(weight)
        del weight
        assert gone() is None
    finally:
        gc.enable()


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
    pending = PendingReads(fold_bytes=budget)
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
    pending = PendingReads(fold_bytes=budget)
    largest = 0
    for _ in range(200):
        pending.append(*random_read())
        largest = max(largest, pending.nbytes)
    assert largest <= max(budget, 2 * folded_bytes) + read_bytes
    assert pending.nbytes < 200 * read_bytes / 4


def test_folding_is_rare_when_the_touched_rows_exceed_the_budget() -> None:
    """Each fold costs a pass over all rows: it must not happen at every read."""
    pending = PendingReads(fold_bytes=1)
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
    gradient = FactoredGradient(pending, torch.randn(N, V))
    assert not gradient.to_sparse().to_dense().any()
    assert not gradient.to_dense().any()
    assert gradient.norm() == 0


def test_pending_reads_hold_no_graph() -> None:
    table = new_table("factored")
    weights = torch.rand(2, 3, requires_grad=True)
    table(torch.tensor([[3, 3, 9], [9, 1, 3]]), weights).square().sum().backward()
    gradient = table.row_gradient()
    assert not gradient.weights[0].requires_grad
    assert not gradient.vectors[0].requires_grad
