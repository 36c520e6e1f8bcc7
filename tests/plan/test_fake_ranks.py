"""The paper's largest memories, built and stepped as single ranks of 8 to 1024."""

import fake_ranks
import pytest
from ranks import run_ranks

from memory_layers.parallel.table import shard_widths
from memory_layers.plan.devices import DEVICES
from memory_layers.plan.predict import predict

NAMES = ("1.3b_memory_64m", "8b_memory_16m")
GATHERS, EXCHANGES, SUMS = ["all-gather"] * 4, ["all-to-all"] * 2, ["reduce-scatter"] * 2


@pytest.mark.parametrize(
    ("name", "ranks", "chosen"),
    [
        ("1.3b_memory_64m", 8, list(range(8))),
        ("1.3b_memory_64m", 64, [0, 63]),
        ("8b_memory_16m", 24, [0, 22, 23]),
        ("8b_memory_16m", 1024, [0, 63, 64, 1023]),
    ],
)
def test_every_rank_holds_its_columns(name: str, ranks: int, chosen: list[int]) -> None:
    found = run_ranks(1, fake_ranks.shard_shapes, name, ranks, chosen)[0]
    job = fake_ranks.job_of(name, ranks)
    widths = shard_widths(job.sizes.value_dim, job.layout.memory)
    assert sum(widths) == job.sizes.value_dim
    for rank, (rows, width, first) in zip(chosen, found, strict=True):
        place = rank % job.layout.memory
        assert (rows, width, first) == (job.memory.num_slots, widths[place], sum(widths[:place]))


@pytest.mark.parametrize(
    ("name", "ranks", "rank"),
    [("8b_memory_16m", 64, 5), ("1.3b_memory_64m", 1024, 1000)],
)
def test_a_step_makes_the_planned_exchanges_in_order(name: str, ranks: int, rank: int) -> None:
    traced = run_ranks(1, fake_ranks.trace, name, ranks, rank)[0]
    job = fake_ranks.job_of(name, ranks)
    layers = len(job.memory.layers)
    read = GATHERS + EXCHANGES
    assert traced["forward"] == read * layers
    # Blocks are computed again, and the gradients go the ways back.
    assert traced["backward"] == (read + EXCHANGES + SUMS) * layers
    prediction = predict(job, DEVICES["h100"])
    sent, counts = {}, {}
    for each in prediction.communication:
        # These come with the step, which depends on data.
        if each.kind not in ("table replicas", "memory all-reduce"):
            sent[each.operation] = sent.get(each.operation, 0) + each.sent
            counts[each.operation] = counts.get(each.operation, 0) + each.count
    assert traced["sent"] == pytest.approx(sent, rel=1e-9)
    assert traced["counts"] == counts
    assert traced["table"] == (job.memory.num_slots, job.columns)
    # The replicas' factors come to it before the step.
    assert traced["pending"] * job.replicas == prediction.footprint.largest["pending"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ranks", [8, 64, 1024])
def test_the_plan_fits_80_gb(name: str, ranks: int) -> None:
    assert predict(fake_ranks.job_of(name, ranks), DEVICES["h100"]).footprint.total < 80e9
