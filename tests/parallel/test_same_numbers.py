"""A run divided in any way gives the losses, gradient norms and weights of one process."""

from functools import cache

import pytest
import torch
from ranks import run_ranks
from same_cases import CLIP, LR, VALUE_CLIP, Budget, Case, Result, run_alone, run_rank

# fp32 sums of a few hundred terms in another order: one to ten of fp32's 1.2e-7. The norm of the
# tables is a difference of larger terms. Adam divides by the root of the second moment, so a weight
# whose gradient is mostly rounding may be off by more, in learning rates. Measured: 1.4e-7, 8e-6,
# 1.7e-4 and 5e-6.
EXACT = Budget(loss=1e-6, norm=5e-5, most=2e-3, rms=5e-5)
# A row that is moved ahead goes 13 learning rates at once, and a bf16 table has other sums.
AHEAD = Budget(loss=1e-6, norm=5e-5, most=3e-2, rms=2e-4)
# bfloat16 has 8 bits: outputs are off by 4e-3 at most, and where two sub-keys score alike a token
# reads another slot, which changes the gradient of whole rows. A gradient that is not divided, or
# divided twice, is off by more than the norm may be. Measured: 6e-3, 0.2, 5 and 0.6.
ROUNDED = Budget(loss=2e-2, norm=0.4, most=6.0, rms=1.0)

ROW = {"value_state": "row"}
DECAY = {"value_weight_decay": 0.1}
MASTER = {"memory": {"value_dtype": torch.bfloat16}, "optim": {"bf16_rows": "master"}}

CASES = {
    2: [
        Case("shard", {"shard": 2}, EXACT, checkpointing=True),
        Case("replicas", {"replicate": 2, "memory": 1}, EXACT, tied=False, optim=ROW | DECAY),
        Case("tensor", {"tensor": 2}, EXACT),
        Case("tensor, untied", {"tensor": 2}, EXACT, tied=False, memory={"share_values": False}),
        Case(
            "tensor, beside", {"tensor": 2}, EXACT, memory={"placement": "beside"},
            checkpointing=True,
        ),
        Case(
            "tensor, experts", {"tensor": 2}, EXACT,
            memory={"readout": "experts", "share_values": False},
        ),
        Case("shard, bf16 weights", {"shard": 2, "weights_dtype": "bfloat16"}, ROUNDED),
        Case("shard, autocast", {"shard": 2}, ROUNDED, autocast=True),
        Case("tensor, autocast", {"tensor": 2}, ROUNDED, autocast=True),
        Case("shard, bf16 table", {"shard": 2}, AHEAD, **MASTER),
    ],
    3: [
        Case("shard, V = 7", {"shard": 3}, EXACT, memory={"value_dim": 7}, optim=ROW),
    ],
    4: [
        Case("shard", {"shard": 4}, EXACT, optim=DECAY),
        Case("shard, V = 5", {"shard": 4}, EXACT, memory={"value_dim": 5}, optim=ROW | DECAY),
        Case(
            "hybrid", {"replicate": 2, "shard": 2, "memory": 2}, EXACT,
            memory={"share_values": False},
        ),
        Case("hybrid, one table", {"replicate": 2, "shard": 2, "memory": 4}, EXACT, tied=False),
        Case("shard and tensor", {"shard": 2, "tensor": 2}, EXACT, tied=False, optim=ROW),
        Case("replicas and tensor", {"replicate": 2, "tensor": 2, "memory": 1}, EXACT),
        Case("shard, whole tables", {"shard": 4, "memory": 1}, EXACT),
    ],
}  # fmt: skip
EVERY = [(world, case.name) for world, cases in CASES.items() for case in cases]


@cache
def ranks_of(world: int) -> list[list[Result]]:
    """Train all cases of a world size in one spawn."""
    return run_ranks(world, run_rank, CASES[world])


def difference(result: Result, expected: Result) -> Budget:
    """Measure what a Budget allows."""
    names = list(expected.weights)
    assert list(result.weights) == names
    moved = [(result.weights[name] - expected.weights[name]).flatten() for name in names]
    shares = torch.cat(moved).abs() / LR
    norms = torch.tensor(result.norms) - torch.tensor(expected.norms)
    norms = norms / torch.tensor(expected.norms).clamp(min=1e-6)
    losses = torch.tensor(result.losses, dtype=torch.float64) / torch.tensor(expected.losses) - 1
    return Budget(
        float(losses.abs().max()),
        float(norms.abs().max()),
        float(shares.max()),
        float(shares.square().mean().sqrt()),
    )


@pytest.mark.parametrize(("world", "name"), EVERY)
def test_a_divided_run_is_the_run_of_one_process(world, name):
    index = next(i for i, case in enumerate(CASES[world]) if case.name == name)
    case = CASES[world][index]
    expected = run_alone(case)
    # Memory beside a block begins without effect: its first gradients are small.
    small = case.memory.get("placement") == "beside"
    assert all(dense > CLIP and (value > VALUE_CLIP or small) for dense, value in expected.norms)
    for rank, results in enumerate(ranks_of(world)):
        found, budget = difference(results[index], expected), case.budget
        for field in ("loss", "norm", "most", "rms"):
            assert getattr(found, field) <= getattr(budget, field), (rank, field, found)
