"""Time, smallest number of devices, devices and the tables for documents."""

from dataclasses import replace
from pathlib import Path

import pytest
from jobs import ALONE, job, memory

from memory_layers.common.errors import UserError
from memory_layers.parallel.config import Layout
from memory_layers.plan.communication import Collective
from memory_layers.plan.devices import DEVICES, measure_cpu
from memory_layers.plan.job import Job
from memory_layers.plan.predict import (
    Efficiency,
    default_layout,
    predict,
    seconds_of,
    smallest,
    with_ranks,
)
from memory_layers.train.config import load_run
from tools.reference_layout import reference_table
from tools.scale import scale_predictions, scale_section

CONFIGS = Path(__file__).parents[2] / "src" / "memory_layers" / "configs"
H100 = DEVICES["h100"]


@pytest.mark.parametrize(
    ("operation", "factor"),
    [("all-gather", 7), ("reduce-scatter", 7 / 8), ("all-to-all", 7 / 8), ("all-reduce", 7 / 4)],
)
def test_bytes_and_seconds_of_a_collective(operation: str, factor: float) -> None:
    near = Collective("x", operation, 8, 1, 9e9, 1, overlaps=False)
    assert near.sent == pytest.approx(factor * 9e9)
    assert seconds_of(near, H100) == near.sent / H100.link
    far = replace(near, stride=8)
    assert seconds_of(far, H100) == far.sent / H100.network


def test_exchange_within_a_node_does_not_use_the_network() -> None:
    wide = Collective("x", "all-to-all", 16, 1, 16e9, 1, overlaps=False)
    assert seconds_of(wide, H100) == pytest.approx(8e9 / H100.network)


def test_terms_of_a_step_by_hand() -> None:
    planned = job(Layout(1, 8, 1, 8), memory=memory(), batch_size=8, precision="bf16")
    found = predict(planned, H100, Efficiency(compute=0.5, bandwidth=0.25, network=0.1))
    time = found.time
    assert time.compute == pytest.approx(128 * found.flops.executed / 989e12 / 0.5)
    assert time.bandwidth == pytest.approx(found.traffic.total / 3.35e12 / 0.25)
    memory_sent = sum(c.sent for c in found.communication if c.kind.startswith("memory"))
    dense_sent = sum(c.sent for c in found.communication if c.kind.startswith("dense"))
    exposed = {k: v for k, v in time.exposed.items() if k.startswith("memory")}
    assert sum(exposed.values()) == pytest.approx(memory_sent / 450e9 / 0.1)
    overlapping = dense_sent / 450e9 / 0.1
    assert time.hidden == pytest.approx(min(overlapping, time.compute))
    beyond = time.exposed.get("dense, beyond computation", 0)
    assert time.hidden + beyond == pytest.approx(overlapping)
    assert time.total == pytest.approx(time.compute + time.bandwidth + time.communication)
    assert found.tokens_per_second == pytest.approx(8 * 128 / time.total)


def test_one_rank_sends_nothing() -> None:
    found = predict(job(memory=memory()), H100)
    assert found.communication == []
    assert found.time.communication == 0


def test_fp32_takes_the_rate_of_fp32() -> None:
    slow, fast = (predict(job(precision=p), H100).time.compute for p in ("fp32", "bf16"))
    assert slow / fast == pytest.approx(989 / 67)


def test_a_step_takes_no_less_of_anything_when_batches_grow() -> None:
    small, large = (predict(job(memory=memory(), batch_size=b), H100) for b in (2, 4))
    assert small.footprint.total < large.footprint.total
    assert small.time.total < large.time.total
    assert small.traffic.rows * 2 == large.traffic.rows


def test_smallest_number_of_devices() -> None:
    planned = job(memory=memory())
    assert smallest(planned, H100) == 1
    one, two = (
        predict(with_ranks(planned, default_layout(ranks)), H100).footprint.total
        for ranks in (1, 2)
    )
    assert two < one
    between = replace(H100, memory=(one + two) / 2)
    assert smallest(planned, between, Efficiency(memory=1.0)) == 2
    assert smallest(planned, replace(H100, memory=1e3)) is None


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (1, Layout(1, 1, 1, 1)),
        (8, Layout(1, 8, 1, 8)),
        (64, Layout(1, 64, 1, 64)),
        (96, Layout(2, 48, 1, 48)),
        (1024, Layout(16, 64, 1, 64)),
    ],
)
def test_default_layout(ranks: int, layout: Layout) -> None:
    assert default_layout(ranks) == layout


def test_replicas_exchange_what_is_smaller() -> None:
    layout = Layout(2, 2, 1, 2)
    few = predict(job(layout, memory=memory(sub_keys=16)), H100)
    many = predict(job(layout, memory=memory(sub_keys=256)), H100)
    kinds = [
        next(c.operation for c in found.communication if c.kind == "table replicas")
        for found in (few, many)
    ]
    assert kinds == ["all-reduce", "all-gather"]


def test_the_ranks_must_be_able_to_share() -> None:
    planned = job(batch_size=4)
    with pytest.raises(ValueError, match=r"train.batch_size must be a multiple of .* 3"):
        replace(planned, layout=Layout(1, 3, 1, 3))
    with pytest.raises(UserError, match=r"parallel.tensor = 8 must divide num_attention_heads = 4"):
        replace(planned, layout=Layout(1, 1, 8, 8))


@pytest.mark.parametrize("name", ["1.3b_memory_64m", "8b_memory_16m"])
def test_configurations_of_the_paper_fit_eight_devices(name: str) -> None:
    run = load_run(CONFIGS / f"{name}.yaml")
    planned = Job(run, default_layout(8))
    found = predict(planned, H100)
    assert found.fits
    full = replace(run, optim=replace(run.optim, value_state="full"))
    assert not predict(replace(planned, run=full), H100).fits
    printed = {"1.3b_memory_64m": "138.748", "8b_memory_16m": "76.523"}
    assert f"{found.counts.total / 1e9:.3f}" == printed[name]
    table = found.counts.values
    assert reference_table(planned).total == 4 * table * 2 / 8


def test_section_of_a_document_spells_out_its_arithmetic() -> None:
    run = load_run(CONFIGS / "1.3b_memory_64m.yaml")
    text = scale_section(run, H100, (8, 128))
    assert "All of this is predicted, nothing measured" in text
    assert "| 8 | 8 × 1 |" in text
    assert "| 128 | 64 × 2 |" in text
    assert "67,108,864 · 256 numbers of 2 bytes = 34.4 GB" in text
    assert "does not fit" in text
    assert "Between 2 replicas, on 128 ranks" in text
    eight, many = scale_predictions(run, H100, (8, 128))
    assert eight.job.tokens == many.job.tokens
    assert many.job.step_tokens == 16 * eight.job.step_tokens


@pytest.mark.parametrize("name", DEVICES)
def test_devices(name: str) -> None:
    device = DEVICES[name]
    assert "data sheet" in device.source
    assert device.network < device.link < device.bandwidth
    assert device.fp32_flops < device.bf16_flops
    assert device.memory >= 80e9


def test_this_cpu_is_measured() -> None:
    device = measure_cpu(0.1)
    assert device.is_measured
    assert 1e8 < device.bandwidth < 1e13
    assert 1e8 < device.fp32_flops < 1e14
    assert device.bf16_flops > 0
    assert device.memory > 2**28
    assert predict(job(ALONE), device).time.total > 0
