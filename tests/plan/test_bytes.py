"""Bytes of a step on one rank, against the live bytes of a real step."""

import pytest
from jobs import job, memory
from live_bytes import measure

from memory_layers.plan.devices import DEVICES
from memory_layers.plan.predict import predict

# What decides the peak differs: the loss, a block's backward pass, gradients and optimizer.
CASES = {
    "dense": {},
    "dense, large vocabulary": {"batch_size": 1, "vocab": 2048},
    "dense, recomputed": {"batch_size": 8, "vocab": 300, "gradient_checkpointing": True},
    "grouped attention, one document": {"packed": False, "model": {"preset": "small"}},
    "memory": {"memory": memory()},
    "memory, recomputed": {"memory": memory(), "vocab": 300, "gradient_checkpointing": True},
    "memory, two micro-batches": {"memory": memory(), "accumulate": 2, "batch_size": 2},
    "plain memory, bf16 table": {
        "memory": memory(gate="none", qk_norm=False),
        "optim": {"value_dtype": "bfloat16"},
    },
    "scalar gate, one moment a row": {
        "memory": memory(gate="sigmoid", value_dim=64),
        "optim": {"value_state": "row", "value_weight_decay": 0.1},
        "batch_size": 1,
    },
    "beside, a table a layer": {"memory": memory(placement="beside", share_values=False)},
}


# The plain ones in both precisions, the others in turn.
RUNS = [(case, ("fp32", "bf16")[place % 2]) for place, case in enumerate(CASES)]
RUNS += [("dense", "bf16"), ("memory", "bf16")]


@pytest.mark.parametrize(("case", "precision"), RUNS)
def test_peak_is_within_five_percent_of_a_real_step(case: str, precision: str) -> None:
    planned = job(precision=precision, **CASES[case])
    footprint = predict(planned, DEVICES["h100"]).footprint
    watch = measure(planned)
    assert footprint.total == pytest.approx(watch.peak, rel=0.05), (
        f"{footprint} but {watch.peak} at {watch.peak_moment}"
    )
    assert sum(footprint.parts.values()) == footprint.total
