"""Any optimizer trains a table, as it would train an embedding that is read and weighted."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tiny_models import tiny_llama, tiny_memory
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Adafactor

from memory_layers import MemoryAdamW, MemoryConfig, ValueTable
from memory_layers.common.errors import UserError
from memory_layers.layers import MemoryLayer
from memory_layers.models import add_memory

N, V, T, J, DIM = 12, 8, 10, 3, 8
BETAS = (0.9, 0.95)


class Reader(nn.Module):
    """A matrix that makes weights for slots that are given, and a table [N, V] read by them."""

    def __init__(self, *, sparse: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weigh = nn.Linear(DIM, J)
        self.table = ValueTable(N, V, init_std=0.5, sparse=sparse)

    def forward(self, x: Tensor, slots: Tensor) -> Tensor:
        return self.table(slots, self.weigh(x))


class Reference(Reader):
    """The same in plain torch."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(self.table.weight.detach().clone(), freeze=False)

    def forward(self, x: Tensor, slots: Tensor) -> Tensor:
        return torch.einsum("tj,tjv->tv", self.weigh(x), self.table(slots))


def batch(step: int, *, all_rows: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    slots = torch.randint(N, (T, J), generator=generator)
    if all_rows:
        slots.view(-1)[:N] = torch.arange(N)
    return torch.randn(T, DIM, generator=generator), slots


Optimizers = list[torch.optim.Optimizer]


def train(
    model: nn.Module, make: Callable[[nn.Module], Optimizers], *, all_rows: bool = True
) -> dict[str, Tensor]:
    """Take three steps and return the parameters."""
    optimizers = make(model)
    for step in range(3):
        model(*batch(step, all_rows=all_rows)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
        for optimizer in optimizers:
            optimizer.zero_grad()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def muon_beside(table: Callable[..., torch.optim.Optimizer]) -> Callable[[nn.Module], Optimizers]:
    """Muon for matrices, AdamW for vectors, another optimizer for the table."""
    return lambda model: [
        torch.optim.Muon([model.weigh.weight], lr=0.02),
        torch.optim.AdamW([model.weigh.bias], lr=0.01),
        table([model.table.weight], lr=0.03, betas=BETAS, weight_decay=0.0),
    ]


def every(kind: Callable[..., torch.optim.Optimizer], **options: object) -> Callable:
    return lambda model: [kind(model.parameters(), **options)]


ADAMW = {"lr": 0.02, "betas": BETAS, "weight_decay": 0.0}
# Equal to AdamW where all rows are touched.
full = partial(MemoryAdamW, value_state="full")
TORCHS = {
    "AdamW": every(torch.optim.AdamW, lr=0.02),
    "AdamW fused": every(torch.optim.AdamW, lr=0.02, fused=True),
    "AdamW foreach": every(torch.optim.AdamW, lr=0.02, foreach=True),
    "SGD": every(torch.optim.SGD, lr=0.5, momentum=0.9, weight_decay=0.1),
    "Adagrad": every(torch.optim.Adagrad, lr=0.05),
    "Adafactor": every(Adafactor, lr=0.02, scale_parameter=False, relative_step=False),
}
CASES = {
    **{name: (make, make) for name, make in TORCHS.items()},
    "Muon and MemoryAdamW": (muon_beside(full), muon_beside(torch.optim.AdamW)),
    "MemoryAdamW": (every(full, **ADAMW), every(torch.optim.AdamW, **ADAMW)),
    "MemoryAdamW of a model": (
        lambda model: [full(model, lr=0.02, weight_decay=0.0)],
        every(torch.optim.AdamW, **ADAMW),
    ),
}


def assert_moves_alike(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    start = Reference().state_dict()
    for name, value in expected.items():
        moved = float((value - start[name]).abs().max())
        assert moved > 1e-3, name
        assert (actual[name] - value).abs().max() <= 1e-3 * moved, name


@pytest.mark.parametrize("name", CASES)
def test_three_steps_are_those_of_the_reference(name: str) -> None:
    ours, torchs = CASES[name]
    assert_moves_alike(train(Reader(), ours), train(Reference(), torchs))


@pytest.mark.parametrize("name", TORCHS)
def test_also_while_another_optimizer_has_claimed_the_table(name: str) -> None:
    """Its gradient is then kept as factors, which other optimizers get as an ordinary tensor."""
    model = Reader()
    first = MemoryAdamW(model)
    assert_moves_alike(train(model, TORCHS[name]), train(Reference(), TORCHS[name]))
    del first


def test_sparse_adam_moves_the_touched_rows_as_on_a_sparse_embedding() -> None:
    def make(model: nn.Module) -> Optimizers:
        return [
            torch.optim.AdamW(model.weigh.parameters(), lr=0.02),
            torch.optim.SparseAdam([model.table.weight], lr=0.02),
        ]

    reference = Reference()
    reference.table.sparse = True
    actual = train(Reader(sparse=True), make, all_rows=False)
    assert_moves_alike(actual, train(reference, make, all_rows=False))


def test_sparse_adam_trains_the_tables_of_a_model_and_adamw_the_rest() -> None:
    model = add_memory(tiny_llama(), tiny_memory(), sparse=True)
    table = model.model.memory_table.weight
    rest = [parameter for parameter in model.parameters() if parameter is not table]
    optimizers = torch.optim.SparseAdam([table], lr=0.02), torch.optim.AdamW(rest, lr=0.02)
    before, losses, ids = table.detach().clone(), [], torch.arange(12).view(2, 6)
    for _ in range(5):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert (table != before).any(1).sum() > 5
    assert add_memory(tiny_llama(), tiny_memory()).model.memory_table.sparse is False


def test_ours_moves_the_touched_rows_alone() -> None:
    table = ValueTable(N, V, init_std=0.5)
    reference = table.weight.detach().clone().requires_grad_()
    optimizer = full(table.parameters(), lr=0.02)
    plain = torch.optim.AdamW([reference], lr=0.02, betas=BETAS, weight_decay=0.0)
    before = table.weight.detach().clone()
    slots, weights = torch.tensor([[1, 5], [5, 7]]), torch.rand(2, 2)
    for _ in range(3):
        table(slots, weights).square().sum().backward()
        F.embedding_bag(
            slots, reference, per_sample_weights=weights, mode="sum"
        ).square().sum().backward()
        for either in (optimizer, plain):
            either.step()
            either.zero_grad()
    torch.testing.assert_close(table.weight, reference, rtol=1e-4, atol=1e-5)
    assert (table.weight != before).any(1).nonzero()[:, 0].tolist() == [1, 5, 7]


def test_the_first_thing_that_a_user_of_torch_types() -> None:
    layer = MemoryLayer(MemoryConfig(layers=(0,), sub_keys=8, heads=2, top_k=3, key_dim=8), DIM)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.05)
    x = torch.randn(20, DIM)
    before = layer.values.weight.detach().clone()
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (layer(x) - x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert (layer.values.weight != before).any(1).float().mean() > 0.5


# --- MemoryAdamW takes what torch's optimizers take -------------------------------------------


def options_of(optimizer: MemoryAdamW, *names: str) -> list[tuple]:
    return [tuple(group[name] for name in names) for group in optimizer.param_groups]


def test_tables_are_found_among_parameters_named_or_in_groups() -> None:
    model = Reader()
    table, (weight, bias) = model.table.weight, model.weigh.parameters()
    options = {"lr": 0.1, "value_lr": 0.2, "weight_decay": 0.3, "value_weight_decay": 0.4}
    for params in (
        model.parameters(),
        list(model.named_parameters()),
        [{"params": model.parameters()}],
        [{"params": [table, weight]}, {"params": bias}],
        [{"params": iter([bias, weight])}, {"params": table}],
    ):
        optimizer = MemoryAdamW(params, **options)
        for group in optimizer.param_groups:
            memory = any(p is table for p in group["params"])
            assert len(group["params"]) == 1 or not memory
            assert group["memory"] == memory
            assert (group["lr"], group["weight_decay"]) == ((0.2, 0.4) if memory else (0.1, 0.3))
    named = MemoryAdamW(model.named_parameters(), **options)
    assert [g["param_names"] for g in named.param_groups] == [
        ["weigh.weight", "weigh.bias"], ["table.weight"],
    ]  # fmt: skip
    again = MemoryAdamW([{k: g[k] for k in ("params", "param_names")} for g in named.param_groups])
    assert [g["param_names"] for g in again.param_groups] == [
        ["weigh.weight", "weigh.bias"], ["table.weight"],
    ]  # fmt: skip


def test_what_the_options_of_a_group_mean_for_its_tables() -> None:
    model = Reader()
    table, dense = model.table.weight, list(model.weigh.parameters())
    groups = lambda *given, **rest: options_of(  # noqa: E731
        MemoryAdamW(list(given), **rest), "lr", "weight_decay", "eps"
    )
    both = {"params": [*dense, table], "lr": 0.1, "weight_decay": 0.3, "eps": 1e-5}
    assert groups(both) == [(0.1, 0.3, 1e-5), (0.1, 0.0, 1e-5)]
    assert groups(both, value_lr=0.2) == [(0.1, 0.3, 1e-5), (0.2, 0.0, 1e-5)]
    own = {"value_lr": 0.5, "value_weight_decay": 0.6}
    assert groups({**both, **own}, value_lr=0.2) == [(0.1, 0.3, 1e-5), (0.5, 0.6, 1e-5)]
    alone = {"params": [table], "lr": 0.1, "weight_decay": 0.3, "eps": 1e-5}
    assert groups(alone, value_lr=0.2) == [(0.1, 0.0, 1e-5)]
    assert groups({**alone, **own}) == [(0.5, 0.6, 1e-5)]
    assert groups(alone, value_weight_decay=0.4) == [(0.1, 0.4, 1e-5)]
    assert groups({"params": [table]}, value_lr=0.2, eps=1e-6) == [(0.2, 0.0, 1e-6)]
    assert groups({"params": [table]}, lr=0.7) == [(0.7, 0.0, 1e-8)]
    first = MemoryAdamW([{**both, **own}])
    assert groups(*first.param_groups) == options_of(first, "lr", "weight_decay", "eps")
    row = MemoryAdamW([{"params": [table], "value_state": "row", "seed": 3}]).param_groups[0]
    assert (row["value_state"], row["seed"], row["bf16_rows"]) == ("row", 3, "stochastic")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "^lr must be >= 0"),
        ({"betas": (0.9, 1.0)}, "betas must be"),
        ({"betas": (0.9, 0.8)}, "beta1 squared must be below beta2"),
        ({"value_state": "half"}, 'value_state must be "ahead" or "full" or "row"'),
        ({"amsgrad": True}, "MemoryAdamW has no amsgrad"),
        ({"maximize": True}, "MemoryAdamW has no maximize"),
    ],
)
def test_options_of_a_group_are_checked(options: dict, message: str) -> None:
    model = Reader()
    with pytest.raises(ValueError, match=message):
        MemoryAdamW([{"params": model.parameters(), **options}])
    with pytest.raises(ValueError, match="empty parameter list"):
        MemoryAdamW([])
    with pytest.raises(TypeError, match="must be in order"):
        MemoryAdamW([{"params": set(Reader().parameters())}])


def test_a_table_that_is_added_later_is_stepped_by_rows() -> None:
    model = Reader()
    optimizer = full(model.weigh.parameters(), lr=0.02, weight_decay=0.0)
    optimizer.add_param_group({"params": model.table.parameters()})
    assert_moves_alike(
        train(model, lambda _: [optimizer]), train(Reference(), CASES["MemoryAdamW"][1])
    )
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": model.table.parameters()})
    groups, other = len(optimizer.param_groups), nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [other, model.table.weight]})
    assert len(optimizer.param_groups) == groups
    optimizer.add_param_group({"params": [other]})


def test_a_table_that_was_frozen_at_first_is_stepped_by_rows_once_it_is_not() -> None:
    model = Reader()
    model.table.requires_grad_(False)
    optimizer = MemoryAdamW(model.parameters(), lr=0.02, weight_decay=0.5)
    before = model.table.weight.detach().clone()
    train(model, lambda _: [optimizer], all_rows=False)
    assert torch.equal(model.table.weight, before)
    assert not optimizer.state[model.table.weight], "no memory for what is not trained"
    model.table.requires_grad_()
    model.table(torch.tensor([[1, 5]]), torch.ones(1, 2)).square().sum().backward()
    optimizer.step()
    assert (model.table.weight != before).any(1).nonzero()[:, 0].tolist() == [1, 5]


def test_the_newest_of_two_optimizers_may_step_and_the_other_finds_nothing() -> None:
    model = Reader()
    older, newer = MemoryAdamW(model, lr=0.1), MemoryAdamW(model, lr=0.1)
    model(*batch(0, all_rows=True)).square().mean().backward()
    newer.step()
    after = model.table.weight.detach().clone()
    older.step()
    assert torch.equal(model.table.weight, after)
    del newer
    model(*batch(1, all_rows=True)).square().mean().backward()
    older.step()
    assert not torch.equal(model.table.weight, after)


def test_zero_grad_of_an_optimizer_for_other_parameters_leaves_the_tables_gradient() -> None:
    model = Reader()
    ours = MemoryAdamW(model.table.parameters(), lr=0.02)
    other = torch.optim.AdamW(model.weigh.parameters(), lr=0.02)
    model(*batch(0, all_rows=True)).square().mean().backward()
    other.step()
    other.zero_grad()
    before = model.table.weight.detach().clone()
    ours.step()
    assert (model.table.weight != before).all(1).all()


@pytest.mark.parametrize("foreach", [None, True])
def test_clip_grad_norm_of_torch_clips_all_gradients_together(foreach: bool | None) -> None:
    model, reference = Reader(), Reference()
    optimizer = MemoryAdamW(model)
    for either in (model, reference):
        either(*batch(0, all_rows=True)).square().sum().backward()
    norms = [
        torch.nn.utils.clip_grad_norm_(either.parameters(), 0.5, foreach=foreach)
        for either in (model, reference)
    ]
    assert norms[0] > 0.5
    torch.testing.assert_close(*norms)
    for ours, torchs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.to_dense(), torchs.grad)
    del optimizer


def test_accelerate_prepares_clips_accumulates_and_schedules() -> None:
    # Its state is that of the process: another test may have trained in bf16.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = Reader()
    optimizer = full(model.parameters(), lr=0.02, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    reference = Reference()
    plain = torch.optim.AdamW(reference.parameters(), **ADAMW)
    halved = torch.optim.lr_scheduler.StepLR(plain, 1, gamma=0.5)
    for step in range(6):
        with accelerator.accumulate(model):
            accelerator.backward(model(*batch(step, all_rows=True)).square().mean())
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        (reference(*batch(step, all_rows=True)).square().mean() / 2).backward()
        if step % 2:
            torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.1)
            plain.step()
            halved.step()
            plain.zero_grad()
    actual = {name: p.detach() for name, p in accelerator.unwrap_model(model).named_parameters()}
    assert_moves_alike(actual, {name: p.detach() for name, p in reference.named_parameters()})


def test_state_of_groups_goes_to_an_optimizer_of_the_same_groups() -> None:
    model = Reader()
    groups = lambda of: [  # noqa: E731
        {"params": [of.table.weight, of.weigh.weight]},
        {"params": [of.weigh.bias]},
    ]
    optimizer = MemoryAdamW(groups(model), lr=0.02, value_weight_decay=0.1)
    twin = copy.deepcopy(model)
    train(model, lambda _: [optimizer], all_rows=False)
    twin.load_state_dict(model.state_dict())
    other = MemoryAdamW(groups(twin), lr=0.5)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for either, its_optimizer in ((model, optimizer), (twin, other)):
        train(either, lambda _, its=its_optimizer: [its], all_rows=False)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_loss_scaling_is_refused_for_any_optimizer_of_a_claimed_table() -> None:
    model = Reader()
    optimizer = MemoryAdamW(model.parameters())
    for stepping in (optimizer, torch.optim.SGD(model.parameters(), lr=0.1)):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        scaler.scale(model(*batch(0, all_rows=True)).square().mean()).backward()
        with pytest.raises(RuntimeError, match="loss scaling does not reach"):
            scaler.unscale_(stepping)


def test_sparse_gradients_of_other_parameters_are_refused() -> None:
    embedding = nn.Embedding(4, 3, sparse=True)
    optimizer = MemoryAdamW(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="SparseAdam for the other parameters"):
        optimizer.step()


def test_a_table_exchanged_behind_the_optimizer_is_refused() -> None:
    """As accelerate does when it shards a model after its optimizer was made."""
    model = Reader()
    optimizer = MemoryAdamW(model)
    optimizer.memory_group["params"][:] = [nn.Parameter(torch.zeros(N, V))]
    with pytest.raises(RuntimeError, match="a table was exchanged for another parameter"):
        optimizer.step()


def test_assigned_weights_are_refused_before_any_step() -> None:
    model = Reader()
    optimizer = MemoryAdamW(model.table, lr=0.1)
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    model(*batch(0, all_rows=True)).square().mean().backward()
    with pytest.raises(RuntimeError, match=r"exchanged for another parameter.*assign=True"):
        optimizer.step()


def test_a_decay_that_would_turn_rows_around_is_refused_before_any_step() -> None:
    model = Reader()
    with pytest.raises(UserError, match=r"value_weight_decay must be below 1, got 0\.5 \* 2\.0"):
        MemoryAdamW(model, lr=0.5, value_weight_decay=2.0)
    optimizer = MemoryAdamW(model, lr=0.25, value_weight_decay=2.0)
    # As a schedule does.
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    before = copy.deepcopy(model.state_dict())
    model(*batch(0, all_rows=True)).square().mean().backward()
    with pytest.raises(UserError, match=r"value_weight_decay must be below 1, got 0\.5 \* 2\.0"):
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_weight_decay_of_a_trainer_is_not_for_tables() -> None:
    """It puts all that is no norm or bias in one group: where all else is frozen, tables alone."""
    table = ValueTable(N, V, init_std=0.5)
    groups = [{"params": [table.weight], "weight_decay": 0.5}, {"params": [], "weight_decay": 0.0}]
    optimizer = MemoryAdamW(groups, lr=0.1)
    before = table.weight.detach().clone()
    (table(torch.arange(N)[None], torch.ones(1, N)) * 0).sum().backward()
    optimizer.step()
    assert torch.equal(table.weight, before)
