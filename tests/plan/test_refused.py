"""What the formulas do not cover is refused by name, and not planned as something else."""

import pytest
from jobs import job, memory
from live_bytes import measure

from memory_layers.common.errors import UserError
from memory_layers.plan.devices import DEVICES
from memory_layers.plan.predict import predict

REFUSED = {
    "query_norm": "layer",
    "readout": "experts",
    "random_slots": 2,
    "sink_slot": True,
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_memory_layer_of_another_kind_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"memory\.{name} .*, got .*hint: "):
        job(memory=memory(**{name: REFUSED[name]}))


def test_fixed_keys_are_refused() -> None:
    with pytest.raises(UserError, match=r"optim\.train_keys true, got false\. hint: "):
        job(memory=memory(), optim={"train_keys": False})


def test_weights_of_another_kind_take_the_same_bytes() -> None:
    planned = job(memory=memory(weighing="relu"), batch_size=1)
    expected = predict(planned, DEVICES["h100"]).footprint.total
    assert measure(planned).peak == pytest.approx(expected, rel=0.05)
