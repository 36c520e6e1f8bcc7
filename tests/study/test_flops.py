"""FLOPs as torch counts them on the real model, against formulas."""

from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_llama, tiny_memory

from memory_layers import MemoryConfig, add_memory
from memory_layers.models import PRESETS, build_model, memory_layers_of
from memory_layers.study.flops import count_flops
from memory_layers.study.measure import count_parameters

D, LAYERS, MLP, VOCAB = 64, 4, 172, 300
PRESET = replace(PRESETS["tiny"], vocab_size=VOCAB)


@pytest.mark.parametrize("length", [8, 32])
def test_dense_model(length: int) -> None:
    """Two for each weight of a matrix product, and at most the full attention matrix."""
    forward, training = count_flops(build_model(PRESET), length)
    matrices = LAYERS * (4 * D * D + 3 * D * MLP) + VOCAB * D
    attention = LAYERS * 2 * 2 * length * D
    # The rotary embedding multiplies positions and frequencies.
    rotary = 2 * D // 4
    assert 2 * matrices <= forward <= 2 * matrices + attention + rotary
    # Each product has two in the backward pass.
    assert 2.9 * 2 * matrices <= training <= 3 * (2 * matrices + attention) * 1.2


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
    assert all(len(layer.values.pending) == 0 for layer in memory_layers_of(model))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


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
