"""What a checkpoint holds: every tensor once, by name, as a view of the one that is trained."""

import pytest
import torch
from checkpoint_cases import CASES, build, trained
from tiny_models import tiny_llama, tiny_memory
from torch import Tensor

from memory_layers.models import add_memory
from memory_layers.optim import MemoryAdamW
from memory_layers.train.state import (
    make_optimizer_state,
    model_tensors,
    optimizer_tensors,
    table_numbers,
)

TABLE = "model.memory_table.weight"


def rows_of(tensors: dict[str, Tensor], name: str) -> list[Tensor]:
    return [tensor for key, tensor in sorted(tensors.items()) if key.startswith(f"{name}/rows-")]


def test_parameters_are_named_and_not_copied() -> None:
    model, _ = build(CASES["full"])
    tensors = model_tensors(model)
    assert {name.split("/")[0] for name in tensors} == {
        f"model.{name}" for name, _ in model.named_parameters()
    }
    for name, parameter in model.named_parameters():
        if name != TABLE:
            assert tensors[f"model.{name}"].data_ptr() == parameter.data_ptr()
    tensors[f"model.{TABLE}/rows-0000000000"].fill_(7.0)
    assert (model.model.memory_table.weight == 7.0).all()


def test_tied_parameters_once_and_persistent_buffers() -> None:
    model = tiny_llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    model.register_buffer("count", torch.arange(3))
    model.register_buffer("scratch", torch.arange(3), persistent=False)
    names = model_tensors(model).keys()
    assert {"model.model.embed_tokens.weight", "model.count"} <= names
    assert not {"model.lm_head.weight", "model.scratch"} & names


def test_frozen_table_and_frozen_parameters_are_held() -> None:
    model = add_memory(tiny_llama(), tiny_memory())
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    names = model_tensors(model).keys()
    assert f"model.{TABLE}/rows-0000000000" in names
    assert len(names) == len(list(model.parameters()))
    assert optimizer_tensors(model, MemoryAdamW(model)) == {}


@pytest.mark.parametrize(("block_bytes", "rows"), [(2**20, 36), (320, 16), (200, 10), (1, 1)])
def test_tables_are_in_blocks_of_rows(block_bytes: int, rows: int) -> None:
    model, optimizer = trained(CASES["full"])
    weight = model.model.memory_table.weight
    blocks = rows_of(model_tensors(model, block_bytes), f"model.{TABLE}")
    assert [len(block) for block in blocks[:-1]] == [rows] * (len(blocks) - 1)
    assert torch.equal(torch.cat(blocks), weight)
    first = [f"model.{TABLE}/rows-{rows * n:010d}" for n in range(len(blocks))]
    assert [n for n in model_tensors(model, block_bytes) if TABLE in n] == first
    moments = rows_of(optimizer_tensors(model, optimizer, block_bytes), f"optim.{TABLE}.exp_avg_sq")
    assert torch.equal(torch.cat(moments), optimizer.state[weight]["exp_avg_sq"])


def test_state_of_the_table() -> None:
    model, optimizer = trained(CASES["master"])
    kinds = {
        name.split("/")[0].removeprefix(f"optim.{TABLE}.")
        for name in optimizer_tensors(model, optimizer)
        if TABLE in name
    }
    assert kinds == {"exp_avg", "exp_avg_sq", "master", "decayed", "last_step", "last_lr"}
    numbers = table_numbers(model, optimizer)[TABLE]
    assert numbers["step"] == 2
    assert numbers["decay_total"] < 0


@pytest.mark.parametrize("case", CASES)
def test_empty_state_is_what_training_makes(case: str) -> None:
    model, optimizer = trained(CASES[case])
    other, its_optimizer = build(CASES[case])
    saved = optimizer_tensors(model, optimizer)
    make_optimizer_state(other, its_optimizer, saved, table_numbers(model, optimizer))
    made = optimizer_tensors(other, its_optimizer)
    assert made.keys() == saved.keys()
    for name, tensor in saved.items():
        assert (made[name].shape, made[name].dtype) == (tensor.shape, tensor.dtype), name
        assert made[name].data_ptr() != tensor.data_ptr()
    assert table_numbers(other, its_optimizer) == table_numbers(model, optimizer)


def test_state_is_made_only_where_it_was_saved() -> None:
    model, optimizer = trained(CASES["full"])
    make_optimizer_state(model, optimizer, ["optim.lm_head.weight.step"], {})
    assert list(optimizer.state) == [model.lm_head.weight]
    assert list(optimizer.state[model.lm_head.weight]) == ["step"]
