"""Slot usage: counts of a real model, and the numbers made of them."""

import itertools
import math
from collections import Counter

import pytest
import torch
from tiny_models import tiny_llama, tiny_memory
from torch import Tensor

from memory_layers import add_memory
from memory_layers.evaluate.usage import SlotUsage, summarize_usage, used_share
from memory_layers.models import memory_layers_of


def counted(counts: list[float]) -> SlotUsage:
    """Usage of a model of 36 slots that has these counts."""
    usage = SlotUsage(add_memory(tiny_llama(), tiny_memory()))
    usage.take_up(torch.tensor(counts))
    return usage


@pytest.mark.parametrize("share", [True, False])
def test_counts_are_all_reads(share: bool) -> None:
    model = add_memory(tiny_llama(), tiny_memory(share_values=share))
    layers = memory_layers_of(model)
    seen: list[tuple[int, Tensor]] = []
    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(
            lambda layer, inputs, number=number: seen.append((number, inputs[0].detach()))
        )
    usage = SlotUsage(model)
    with usage.watch():
        for seed in range(2):
            torch.manual_seed(seed)
            model(input_ids=torch.randint(40, (2, 7)))
    model(input_ids=torch.randint(40, (2, 7)))  # not watched
    expected: Counter = Counter()
    for number, x in seen[:4]:
        _, slots = layers[number].keys(layers[number].query(x.flatten(0, 1)))
        table = 0 if share else number
        expected.update(table * 36 + int(slot) for slot in slots.flatten())
    counts = usage.counts
    assert counts.tolist() == [expected[n] for n in range(36 if share else 72)]
    # Passes, layers, tokens, heads, slots a head.
    assert counts.sum() == 2 * 2 * 14 * 2 * 3
    assert used_share(usage.counts) == pytest.approx(len(expected) / len(counts))
    summary = summarize_usage(usage.counts)
    assert summary["slots"] == len(counts)
    assert summary["used_share"] == used_share(usage.counts)
    usage.reset()
    assert usage.counts.sum() == 0


def test_taken_up_counts_go_on() -> None:
    model = add_memory(tiny_llama(), tiny_memory(share_values=False))
    one, other = SlotUsage(model), SlotUsage(model)
    ids = torch.randint(40, (2, 7))
    with one.watch():
        model(input_ids=ids)
        other.take_up(one.counts)
        with other.watch():
            model(input_ids=ids)
    assert torch.equal(one.counts, other.counts)


def test_a_slot_is_counted_beyond_what_fp32_can_count() -> None:
    model = add_memory(tiny_llama(), tiny_memory())
    usage = SlotUsage(model)
    usage.take_up(torch.full((36,), 2.0**24))
    with usage.watch():
        model(input_ids=torch.randint(40, (2, 7)))
    # Layers, tokens, heads, slots a head.
    assert usage.counts.sum() == 36 * 2**24 + 2 * 14 * 2 * 3


def test_dense_model_has_no_slots() -> None:
    usage = SlotUsage(tiny_llama())
    with usage.watch():
        tiny_llama()(input_ids=torch.zeros(1, 3, dtype=torch.int64))
    assert usage.counts.shape == (0,)
    usage.take_up(torch.zeros(0))


@pytest.mark.parametrize(
    ("counts", "used", "distance"),
    [
        ([5.0] * 36, 1.0, 0.0),
        ([0.0] * 35 + [7.0], 1 / 36, math.log(36)),
        ([2.0, 0.0] * 18, 0.5, math.log(2)),
        ([0.0] * 36, 0.0, 0.0),
    ],
)
def test_distance_from_uniform(counts: list[float], used: float, distance: float) -> None:
    summary = summarize_usage(counted(counts).counts)
    assert summary["used_share"] == pytest.approx(used)
    assert summary["kl_to_uniform"] == pytest.approx(distance, abs=1e-12)


@pytest.mark.parametrize("top", [0, 1, 2, 3, 4, 7, 8, 9, 1000])
def test_histogram(top: int) -> None:
    torch.manual_seed(top)
    counts = torch.randint(top + 1, (36,))
    counts[3] = top
    summary = summarize_usage(counted(counts.float().tolist()).counts)
    edges, histogram = summary["histogram_edges"], summary["histogram"]
    assert edges[:2] == [0, 1]
    assert len(histogram) == len(edges) - 1
    assert histogram == [
        sum(low <= count < high for count in counts.tolist())
        for low, high in itertools.pairwise(edges)
    ]
    assert sum(histogram) == 36
