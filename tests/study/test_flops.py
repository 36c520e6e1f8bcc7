"""FLOPs as torch counts them on the real model, against formulas."""

from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_llama, tiny_memory

from memory_layers import MemoryConfig, add_memory
from memory_layers.common.reader import from_dict
from memory_layers.config import MoeConfig
from memory_layers.layers.walk import freeze_keys
from memory_layers.models import PRESETS, build_model
from memory_layers.models.surgery import add_experts
from memory_layers.study.flops import count_flops, forward_flops, shape_of
from memory_layers.study.measure import count_parameters
from memory_layers.train.config import RunConfig

D, LAYERS, MLP, VOCAB = 64, 2, 172, 300
PRESET = replace(PRESETS["tiny"], layers=LAYERS, vocab_size=VOCAB)


@pytest.mark.parametrize("length", [8, 32])
def test_dense_model(length: int) -> None:
    """Two for each weight of a matrix product, and the whole attention matrix."""
    forward, training = count_flops(build_model(PRESET), length)
    matrices = LAYERS * (4 * D * D + 3 * D * MLP) + VOCAB * D
    attention = LAYERS * 2 * 2 * length * D
    assert forward == 2 * matrices + attention
    # Each product has two in the backward pass.
    assert training == 3 * forward


def test_experts_that_choose_tokens_are_counted_as_trained() -> None:
    """Six experts of sixteen tokens take three each: in a larger batch rounding up costs less."""
    model = build_model(PRESET, moe=MoeConfig(routing="expert_choice", experts=6))
    dense = count_flops(build_model(PRESET), 16)[0]
    router, mlp = LAYERS * 2 * D * 6, LAYERS * 2 * 3 * D * MLP
    assert count_flops(model, 16)[0] == dense + router + mlp * (18 / 16 - 1)
    assert count_flops(model, 16, rows=3)[0] == dense + router
    assert count_flops(model, 16, rows=3)[1] == 3 * (dense + router)


def test_experts_that_tokens_choose() -> None:
    config = MoeConfig(routing="token_choice", experts=8, top_k=3, expert_size=10)
    model = build_model(PRESET, moe=config)
    forward, training = count_flops(model, 16)
    dense = count_flops(build_model(PRESET), 16)[0]
    experts = 3 * 2 * 3 * D * 10
    assert forward == dense + LAYERS * (2 * D * 8 + experts - 2 * 3 * D * MLP)
    assert training == 3 * forward


@pytest.mark.parametrize("readout", ["experts", "linear_experts"])
def test_both_tables_of_experts_in_a_memory_are_read(readout: str) -> None:
    def flops(readout: str) -> float:
        config = MemoryConfig(layers=(1,), sub_keys=32, heads=2, top_k=8, readout=readout)
        return count_flops(build_model(PRESET, config), 16)[0]

    assert flops(readout) - flops("values") == 2 * 2 * 8 * D


def test_slots_drawn_in_training_cost_in_training_alone() -> None:
    def flops(random_slots: int) -> tuple[float, float]:
        config = MemoryConfig(layers=(1,), sub_keys=32, heads=2, top_k=8, random_slots=random_slots)
        return count_flops(build_model(PRESET, config), 16)

    assert flops(4)[0] == flops(0)[0]
    assert flops(4)[1] > flops(0)[1]


@pytest.mark.parametrize("gate", ["none", "silu"])
def test_find_and_read_are_counted_and_the_table_size_is_not(gate: str) -> None:
    def flops(sub_keys: int) -> float:
        config = MemoryConfig(
            layers=(1,), sub_keys=sub_keys, heads=2, top_k=8, key_dim=16, gate=gate
        )
        return count_flops(build_model(PRESET, config), 16)[0]

    find = 2 * 2 * 2 * 8
    assert flops(64) - flops(32) == 32 * find
    dense = count_flops(build_model(PRESET), 16)[0]
    query, read = 2 * D * 2 * 16, 2 * 2 * 8 * D
    gates = 2 * 2 * D * D if gate == "silu" else 0
    assert flops(32) - dense == query + 32 * find + read + gates - 2 * 3 * D * MLP


def test_backward_of_memory_is_counted() -> None:
    """Backward: gradients of queries and keys, and the read of rows for the weights."""
    config = MemoryConfig(layers=(1,), sub_keys=32, heads=2, top_k=8, key_dim=16, gate="none")
    model = build_model(PRESET, config)
    forward, training = count_flops(model, 16)
    find_backward = 2 * 2 * 2 * (2 * 8) * 8
    query, read = 2 * D * 2 * 16, 2 * 2 * 8 * D
    dense_forward, dense_training = count_flops(build_model(PRESET), 16)
    mlp = 2 * 3 * D * MLP
    expected = (dense_training - dense_forward) - 2 * mlp + 2 * query + find_backward + read
    assert training - forward == expected


def test_counting_leaves_no_gradients() -> None:
    model = add_memory(tiny_llama(), tiny_memory())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert count_flops(model, 8) == count_flops(model, 8)
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_model_on_the_meta_device_is_counted_like_any_other() -> None:
    run = from_dict(
        RunConfig,
        {
            "name": "x",
            "model": {"layers": LAYERS},
            "memory": {"layers": [1], "sub_keys": 8, "top_k": 4},
        },
        "",
    )
    shape = shape_of(run, VOCAB)
    assert all(parameter.is_meta for parameter in shape.parameters())
    model = build_model(PRESET, run.memory)
    assert count_flops(shape, 8) == count_flops(model, 8)
    assert forward_flops(shape, 8) == count_flops(model, 8)[0]


@pytest.mark.parametrize("share", [True, False])
def test_parameters(share: bool) -> None:
    """Width 16, 36 slots, two heads of three slots in two layers."""
    model = add_memory(tiny_llama(), tiny_memory(share_values=share))
    counts = count_parameters(model)
    tables = 1 if share else 2
    dense = sum(p.numel() for n, p in model.named_parameters() if "memory_table" not in n)
    assert counts == {
        "params_total": dense + tables * 36 * 16,
        "params_active": dense + 2 * 2 * 3 * 16,
        "params_memory": tables * 36 * 16,
    }
    plain = tiny_llama()
    total = sum(p.numel() for p in plain.parameters())
    assert count_parameters(plain) == {
        "params_total": total, "params_active": total, "params_memory": 0
    }  # fmt: skip


def test_parameters_of_experts_in_a_memory() -> None:
    """Two tables, and rows of both are read: of width 16 for the input and 8 for the output."""
    config = tiny_memory(readout="experts", value_dim=8, key_dim=4)
    model = add_memory(tiny_llama(), config)
    counts = count_parameters(model)
    tables, read = 36 * (16 + 8), 2 * 2 * 3 * (16 + 8)
    assert counts["params_memory"] == tables
    assert counts["params_total"] - counts["params_active"] == tables - read


def test_a_small_table_is_not_used_more_than_whole() -> None:
    """Two layers share a table of one slot, and the two heads of each read it."""
    counts = count_parameters(add_memory(tiny_llama(), tiny_memory(sub_keys=1, top_k=1)))
    assert counts["params_memory"] == 16
    assert counts["params_active"] == counts["params_total"]


def test_parameters_that_are_not_trained_count() -> None:
    fixed = add_memory(tiny_llama(), tiny_memory())
    freeze_keys(fixed)
    assert count_parameters(fixed) == count_parameters(add_memory(tiny_llama(), tiny_memory()))


@pytest.mark.parametrize(
    ("config", "used"),
    [
        (MoeConfig(routing="token_choice", experts=8, top_k=2, expert_size=6), 2),
        (MoeConfig(routing="expert_choice", experts=8, expert_size=6), 1),
        (MoeConfig(routing="expert_choice", experts=8, expert_size=6, capacity_factor=2.0), 2),
    ],
)
def test_parameters_of_a_mixture_of_experts(config: MoeConfig, used: int) -> None:
    model = add_experts(tiny_llama(), config)
    counts = count_parameters(model)
    assert counts["params_total"] == sum(p.numel() for p in model.parameters())
    assert counts["params_total"] - counts["params_active"] == 3 * (8 - used) * 3 * 16 * 6
    assert counts["params_memory"] == 0
