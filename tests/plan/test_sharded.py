"""Bytes and communication of sharded steps, against real ones on two and four gloo ranks."""

import pytest
import sharded_step
from jobs import job, memory
from ranks import run_ranks

from memory_layers.parallel.config import Layout
from memory_layers.plan.devices import DEVICES
from memory_layers.plan.job import Job
from memory_layers.plan.predict import predict

TWO = [
    job(Layout(1, 2, 1, 2), memory=memory(), precision="bf16", gradient_checkpointing=True),
    job(Layout(2, 1, 1, 1), memory=memory(), optim={"value_state": "row"}),
    job(Layout(1, 1, 2, 2), memory=memory(), optim={"value_dtype": "bfloat16"}),
]
FOUR = [
    job(Layout(1, 4, 1, 4), memory=memory()),
    job(
        Layout(2, 2, 1, 2), memory=memory(), optim={"value_dtype": "bfloat16"},
        weights_dtype="bfloat16", precision="bf16", batch_size=8,
    ),
    job(
        Layout(1, 4, 1, 2), memory=memory(), precision="bf16", gradient_checkpointing=True,
        accumulate=2,
    ),
    job(Layout(1, 2, 2, 4), memory=memory(), precision="bf16"),
    job(Layout(1, 4, 1, 1), memory=memory(sub_keys=16), model={"preset": "small"}),
    job(Layout(2, 2, 1, 4), memory=memory(), optim={"value_state": "row"}),
]  # fmt: skip


@pytest.mark.parametrize("jobs", [TWO, FOUR], ids=["two", "four"])
def test_ranks_send_and_hold_what_is_predicted(jobs: list[Job]) -> None:
    measured = run_ranks(jobs[0].layout.world, sharded_step.run_steps, jobs, seconds=180)[0]
    for planned, real in zip(jobs, measured, strict=True):
        prediction = predict(planned, DEVICES["h100"])
        sent: dict[str, float] = {}
        counts: dict[str, int] = {}
        for each in prediction.communication:
            # How many rows are touched depends on the data: an upper bound is predicted.
            exact = each.kind != "memory all-reduce"
            sent[each.operation] = sent.get(each.operation, 0) + each.sent * exact
            counts[each.operation] = counts.get(each.operation, 0) + each.count
        if planned.run.optim.value_state == "row" and planned.layout.memory > 1:
            (rows,) = [c for c in prediction.communication if c.kind == "memory all-reduce"]
            over = real["sent"]["all-reduce"] - sent["all-reduce"]
            assert 0 < over <= rows.sent
            sent["all-reduce"] += over
        where = f"{planned.layout}: {prediction.communication}"
        assert real["sent"] == pytest.approx(sent, rel=1e-9), where
        assert real["counts"] == counts, where
        # What DTensor holds of the embeddings is not in the formulas.
        total = prediction.footprint.total
        assert total == pytest.approx(real["peak"], rel=0.05), f"{where}: {real}"
