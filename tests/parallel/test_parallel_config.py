"""ParallelConfig: defaults, and errors that name the sizes that would fit."""

import pytest
from transformers import LlamaConfig

from memory_layers.parallel.config import Layout, ParallelConfig
from memory_layers.parallel.tensor import check_divisible


@pytest.mark.parametrize(
    ("sizes", "world", "expected"),
    [
        ({}, 1, Layout(1, 1, 1, 1)),
        ({}, 8, Layout(1, 8, 1, 8)),
        ({"replicate": 2}, 8, Layout(2, 4, 1, 4)),
        ({"tensor": 2}, 8, Layout(1, 4, 2, 8)),
        ({"replicate": 2, "tensor": 2}, 8, Layout(2, 2, 2, 4)),
        ({"replicate": 2, "memory": 8}, 8, Layout(2, 4, 1, 8)),
        ({"replicate": 2, "shard": 3, "memory": 2}, 6, Layout(2, 3, 1, 2)),
    ],
)
def test_sizes_left_out_follow_from_the_others(sizes, world, expected):
    layout = ParallelConfig(**sizes).resolve(world)
    assert layout == expected
    assert layout.world == world
    assert layout.readers == world // layout.tensor


@pytest.mark.parametrize(
    ("sizes", "world", "message"),
    [
        (
            {"replicate": 2, "shard": 2},
            8,
            r"processes, 8, got 2 \* 2 \* 1 = 4\. hint: shard: 4, or replicate: 4, or tensor: 2, "
            r"or start 4 processes$",
        ),
        ({"tensor": 3}, 8, r"8, got 1 \* 2 \* 3 = 6\. hint: tensor: 4, or start 6 processes$"),
        ({"replicate": 4}, 1, r"1, got 4 \* 1 \* 1 = 4\. hint: replicate: 1, or start 4 process"),
        ({"shard": 3}, 4, r"4, got 1 \* 3 \* 1 = 3\. hint: shard: 4, or start 3 processes$"),
        ({"memory": 3}, 8, r"memory must divide .* 8, got 3\. hint: one of 1, 2, 4, 8$"),
        ({"memory": 16}, 8, r"memory must divide .* 8, got 16\. hint: one of 1, 2, 4, 8$"),
    ],
)
def test_sizes_that_do_not_fit_name_those_that_would(sizes, world, message):
    with pytest.raises(ValueError, match=message):
        ParallelConfig(**sizes).resolve(world)


@pytest.mark.parametrize("name", ["replicate", "shard", "tensor", "memory"])
@pytest.mark.parametrize("value", [0, -2, True])
def test_a_size_below_one_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"parallel\.{name} must be >= 1, got {value}"):
        ParallelConfig(**{name: value})


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_timeout_that_is_no_time_is_refused(seconds):
    with pytest.raises(ValueError, match=r"parallel\.timeout must be seconds above 0"):
        ParallelConfig(timeout=seconds)


def sizes_of_a_model(**changes: object) -> LlamaConfig:
    sizes = {
        "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3,
        "intermediate_size": 24, "vocab_size": 60, "tie_word_embeddings": True,
    }  # fmt: skip
    return LlamaConfig(**{**sizes, **changes})


def test_a_tensor_group_that_divides_all_sizes_is_taken():
    check_divisible(sizes_of_a_model(), 3)
    check_divisible(sizes_of_a_model(tie_word_embeddings=False), 3)


@pytest.mark.parametrize(
    ("changes", "ranks", "message"),
    [
        ({}, 2, r"parallel\.tensor = 2 must divide num_key_value_heads = 3\. hint: .*\[1, 3\]$"),
        ({"intermediate_size": 22}, 3, r"divide intermediate_size = 22\. hint: one of \[1\]$"),
        ({"tie_word_embeddings": False, "vocab_size": 61}, 3, r"divide vocab_size = 61\."),
        ({}, 4, r"divide num_attention_heads = 6, num_key_value_heads = 3\. hint: "),
    ],
)
def test_a_tensor_group_that_does_not_divide_a_size_is_refused(changes, ranks, message):
    with pytest.raises(ValueError, match=message):
        check_divisible(sizes_of_a_model(**changes), ranks)


def test_tied_embeddings_are_not_split():
    check_divisible(sizes_of_a_model(vocab_size=61), 3)
