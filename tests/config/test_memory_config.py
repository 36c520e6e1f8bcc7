"""MemoryConfig refuses what cannot work and names it. check_shape does so for tensors."""

import copy
import dataclasses
import json
import pickle

import pytest
import torch
from tiny_models import tiny_llama

from memory_layers.common.errors import UserError
from memory_layers.common.reader import from_dict
from memory_layers.config import MemoryConfig
from memory_layers.layers import MemoryLayer
from memory_layers.models import add_memory
from memory_layers.shapes import check_shape
from memory_layers.train.config import RunConfig


def test_defaults_are_memory_plus_of_the_paper() -> None:
    config = MemoryConfig(layers=(4, 12, 20))
    sizes = config.resolved(2048)
    assert (config.sub_keys, config.num_slots) == (1024, 1024**2)
    assert (config.heads, config.top_k, config.reads) == (4, 32, 128)
    assert (sizes.value_dim, sizes.key_dim) == (2048, 1024)
    assert (config.gate, config.share_values, config.placement) == ("silu", True, "replace")
    assert sizes.value_init_std == pytest.approx(0.02 * 2048**-0.5)


def test_resolved_keeps_what_was_chosen() -> None:
    config = MemoryConfig(layers=(1,), key_dim=6, value_dim=7, value_init_std=0.0)
    resolved = config.resolved(100)
    assert (resolved.key_dim, resolved.value_dim, resolved.value_init_std) == (6, 7, 0.0)


def test_default_widths_follow_the_value_width() -> None:
    config = MemoryConfig(layers=(1,), value_dim=40).resolved(100)
    assert (config.value_dim, config.key_dim) == (40, 20)
    assert config.value_init_std == pytest.approx(0.02 * 40**-0.5)


@pytest.mark.parametrize("width", [1, 2, 3, 7, 18, 33])
def test_odd_default_key_width_is_refused_with_one_that_works(width: int) -> None:
    with pytest.raises(ValueError, match="hint: set key_dim, such as") as error:
        MemoryConfig(layers=(0,)).resolved(width)
    hinted = int(str(error.value).rsplit(" ", 1)[1])
    assert MemoryConfig(layers=(0,), key_dim=hinted).resolved(width).key_dim == hinted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": None}, "layers must be a list of block indices, got None"),
        ({"layers": 4}, "layers must be a list of block indices, got 4"),
        ({"layers": 3.5}, "layers must be a list of block indices, got 3.5"),
        ({"layers": "4"}, "layers must be a list of block indices, got '4'"),
        ({"layers": (1, 1)}, "layers must not name a block twice"),
        ({"layers": (-1,)}, "counted from 0, got -1"),
        ({"layers": (True,)}, "counted from 0, got True"),
        ({"layers": (1.0,)}, "counted from 0, got 1.0"),
        ({"sub_keys": 0}, "sub_keys must be a whole number >= 1, got 0"),
        ({"sub_keys": 2.5}, "sub_keys must be a whole number >= 1, got 2.5"),
        ({"sub_keys": 46_341}, "sub_keys must be a whole number >= 1 and <= 46340, got 46341"),
        ({"value_dim": 10**12}, "value_dim must be a whole number >= 1 and <= 1048576, got 10"),
        ({"heads": -1}, "heads must be a whole number >= 1, got -1"),
        ({"heads": True}, "heads must be a whole number >= 1, got True"),
        ({"top_k": 0}, "top_k must be a whole number >= 1"),
        ({"top_k": 9, "sub_keys": 8}, "top_k must be at most sub_keys = 8, got 9"),
        ({"key_dim": 0}, "key_dim must be a whole number >= 1"),
        ({"key_dim": 7}, "key_dim must be even, .* hint: use 8"),
        ({"value_dim": "16"}, "value_dim must be a whole number >= 1, got '16'"),
        ({"share_values": 1}, "share_values must be true or false, got 1"),
        ({"qk_norm": "yes"}, "qk_norm must be true or false, got 'yes'"),
        ({"gate": "relu"}, "gate must be one of .*, got 'relu'"),
        ({"placement": "before"}, "placement must be one of"),
        ({"grad_mode": "dense"}, "grad_mode was removed .*. hint: .* Any optimizer trains"),
        ({"value_init_std": -1.0}, "value_init_std must be a finite number >= 0, got -1.0"),
        ({"value_init_std": float("nan")}, "value_init_std must be a finite number"),
        ({"value_init_std": float("inf")}, "value_init_std must be a finite number"),
        ({"query_norm": "rms"}, "query_norm must be one of .*, got 'rms'"),
        ({"weighing": "gelu"}, "weighing must be one of .*, got 'gelu'"),
        ({"readout": "peer"}, "readout must be one of .*, got 'peer'"),
        ({"random_slots": -1}, "random_slots must be a whole number >= 0, got -1"),
        ({"random_slots": True}, "random_slots must be a whole number >= 0, got True"),
        ({"random_slots": 1.5}, "random_slots must be a whole number >= 0, got 1.5"),
        ({"sink_slot": 1}, "sink_slot must be true or false, got 1"),
        ({"sink_slot": True, "readout": "experts"}, "sink_slot needs readout .*, got 'experts'"),
    ],
)
def test_bad_values_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MemoryConfig(**{"layers": (0,), **changes})


@pytest.mark.parametrize("layers", [{}, {"layers": ()}])
def test_blocks_are_for_models_alone(layers: dict) -> None:
    config = MemoryConfig(**layers, sub_keys=8, top_k=4)
    assert MemoryLayer(config, 16)(torch.randn(3, 16)).shape == (3, 16)
    with pytest.raises(UserError, match="layers must name at least one block"):
        config.chosen_layers(4)
    with pytest.raises(UserError, match="layers must name at least one block"):
        add_memory(tiny_llama(), config)
    for block in ({**layers, "heads": 2}, {"layers": []}):
        says = r"run\.yaml: memory(\.layers must name at least one|: needs `layers:`)"
        with pytest.raises(UserError, match=says):
            from_dict(RunConfig, {"name": "x", "memory": block}, "run.yaml")


def test_where_a_mistake_stands_is_named_once() -> None:
    with pytest.raises(UserError, match=r"^run\.yaml: memory: heads must be a whole number"):
        from_dict(RunConfig, {"name": "x", "memory": {"layers": [0], "heads": 0}}, "run.yaml")


def test_layer_norm_of_a_single_feature_is_refused() -> None:
    config = MemoryConfig(layers=(0,), key_dim=2, query_norm="layer")
    with pytest.raises(ValueError, match='query_norm "layer" needs key_dim >= 4, got 2'):
        config.resolved(16)


def test_changes_are_checked_too() -> None:
    with pytest.raises(ValueError, match="top_k"):
        dataclasses.replace(MemoryConfig(layers=(0,)), top_k=2000)
    with pytest.raises(dataclasses.FrozenInstanceError):
        MemoryConfig(layers=(0,)).heads = 2


def test_round_trip_through_json() -> None:
    config = MemoryConfig(
        layers=[3, 1], sub_keys=9, top_k=5, heads=2, key_dim=6, value_dim=7, share_values=False,
        gate="sigmoid", qk_norm=False, placement="beside", value_init_std=0.5,
        query_norm="layer", weighing="relu", readout="linear_experts", random_slots=2,
    )  # fmt: skip
    assert config.layers == (3, 1)
    plain = json.loads(json.dumps(config.to_dict()))
    assert MemoryConfig.from_dict(plain) == config
    assert len({config, MemoryConfig.from_dict(plain)}) == 1


def test_a_removed_field_in_a_configuration_is_refused_with_what_to_do() -> None:
    with pytest.raises(UserError, match=r"run\.yaml: unknown field 'grad_mode'\. hint: leave it"):
        from_dict(MemoryConfig, {"layers": [1], "grad_mode": "dense"}, "run.yaml")


def test_what_an_earlier_version_saved_loads() -> None:
    config = MemoryConfig(layers=(1,), heads=2)
    assert MemoryConfig.from_dict({**config.to_dict(), "grad_mode": "factored"}) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layers": [1], "topk": 3}, "no field 'topk'. hint: did you mean 'top_k'?"),
        ({"layers": [1], "xyzzy": 3}, "no field 'xyzzy'. hint: one of layers, "),
        ({"heads": 3}, "needs `layers`"),
        ({"layers": [1], "heads": 0}, "heads must be"),
    ],
)
def test_unknown_and_missing_fields_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        MemoryConfig.from_dict(values)


@pytest.mark.parametrize(
    ("field", "value", "now"),
    [
        ("train_keys", False, r"freeze_keys\(model\)"),
        ("value_dtype", "bfloat16", r"add_memory\(model, config, value_dtype=torch\.bfloat16\)"),
    ],
)
def test_fields_of_before_are_read_from_files_and_say_what_replaced_them(
    field: str, value: object, now: str
) -> None:
    config = MemoryConfig(layers=(0,))
    with pytest.warns(UserWarning, match=f"{field}={value!r} .* no effect.* hint: {now}"):
        assert MemoryConfig.from_dict({**config.to_dict(), field: value}) == config
    with pytest.raises(ValueError, match=f"{field} was removed from MemoryConfig. hint: {now}"):
        MemoryConfig(layers=(0,), **{field: value})
    with pytest.raises(ValueError, match=f"memory: unknown field '{field}'. hint: {now}"):
        from_dict(RunConfig, {"name": "x", "memory": {"layers": [0], field: value}}, "run.yaml")


def test_copies_are_equal() -> None:
    config = MemoryConfig(layers=(0, 2), heads=2)
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_check_shape_reads_sizes_off() -> None:
    sizes = check_shape("x", torch.zeros(3, 2, 5), "T 2 C", T=3)
    assert sizes == {"T": 3, "C": 5}


@pytest.mark.parametrize(
    ("shape", "letters", "known"),
    [
        ((3, 4), "T", {}),
        ((3,), "T V", {}),
        ((3, 4), "T 5", {}),
        ((3, 4), "T V", {"V": 5}),
        ((3, 4), "T T", {}),
        ((), "T", {}),
    ],
)
def test_check_shape_refuses(shape: tuple, letters: str, known: dict) -> None:
    with pytest.raises(ValueError, match=r"x must have shape \[.*\], got \[.*\]"):
        check_shape("x", torch.zeros(shape), letters, **known)
