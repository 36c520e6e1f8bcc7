"""What a memory takes is told, and what has no room is refused with what would fit."""

import warnings
from types import SimpleNamespace

import psutil
import pytest
import torch
from tiny_models import tiny_llama, tiny_memory

from memory_layers import MemoryAdamW
from memory_layers.models import add_memory, backbone_of, memory_layers_of
from memory_layers.models.room import check_room, largest_sub_keys, table_bytes


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The memory that the machine says is free: `available` bytes."""
    said = SimpleNamespace(available=2**40)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: said)
    return said


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize(
    "memory", [{}, {"share_values": False}, {"readout": "experts"}, {"value_dim": 8}], ids=str
)
def test_bytes_are_those_that_it_has(memory: dict[str, object], dtype: torch.dtype | None) -> None:
    model, config = tiny_llama(), tiny_memory(**memory)
    said = table_bytes(model, config, dtype)
    said_training = table_bytes(model, config, dtype, training=True)
    add_memory(model, config, value_dtype=dtype)
    tables = [w for name, w in model.named_parameters() if "_table.weight" in name]
    assert sum(table.nbytes for table in tables) == said
    optimizer = MemoryAdamW(model, lr=1e-3)
    model(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    state = sum(
        value.nbytes
        for table in tables
        for name, value in optimizer.state[table].items()
        if name.startswith("exp_avg")
    )
    assert said + state == said_training


def test_no_room_says_what_fits_and_that_does_fit(free: SimpleNamespace) -> None:
    model, config = tiny_llama(), tiny_memory(sub_keys=1000, placement="beside")
    free.available = 10_000_000
    with pytest.raises(ValueError, match=r"no room .* 64 MB, and 10 MB .* hint: sub_keys=320 fits"):
        add_memory(model, config)
    assert not memory_layers_of(model)
    fits = tiny_memory(sub_keys=320, placement="beside")
    check_room(model, fits)
    with pytest.raises(ValueError, match=r"the state of the optimizer.*sub_keys=192 fits"):
        check_room(model, fits, training=True)
    check_room(model, tiny_memory(sub_keys=192), training=True)
    check_room(model, tiny_memory(sub_keys=384), torch.bfloat16)
    free.available = 100
    with pytest.raises(ValueError, match="more memory"):
        add_memory(model, config)


def test_what_fits_is_never_more_than_was_asked_for_nor_less_than_is_read() -> None:
    model, config = tiny_llama(), tiny_memory(sub_keys=50)
    assert largest_sub_keys(model, config, 1e12) == 50
    a_row = table_bytes(model, config) / config.num_slots
    assert largest_sub_keys(model, config, 16 * a_row) == 4
    assert largest_sub_keys(model, config, 4 * a_row) is None


def test_a_memory_larger_than_its_model_is_told_of() -> None:
    config = tiny_memory(sub_keys=128, placement="beside")
    with pytest.warns(UserWarning, match=r"adds 262k parameters .* hint: sub_keys=(\d+)") as caught:
        add_memory(tiny_llama(), config)
    smaller = int(str(caught[0].message).split("sub_keys=")[1].split()[0])
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add_memory(tiny_llama(), tiny_memory(sub_keys=smaller, placement="beside"))
        add_memory(backbone_of(tiny_llama()), tiny_memory(sub_keys=8, placement="beside"))
        # A model that is trained from the start has as much memory as its makers want.
        add_memory(tiny_llama(), tiny_memory(sub_keys=128))
