"""A prediction as nested values for JSON, and as tables for a terminal."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from memory_layers.plan.job import Job
from memory_layers.plan.predict import Prediction, StepTime
from memory_layers.plan.rehearsal import PARTS

_WHAT = {
    "weights": "own share of dense weights in fp32, columns of value tables",
    "optimizer": "moments, in fp32",
    "gradients": "own share, dense part",
    "gathered": "whole weights and gradients while FSDP2 communicates them",
    "pending": "factors of the tables' gradient",
    "exchange": "sums of rows while ranks add up a table's gradient",
    "activations": "with bf16 copies of weights, and the loss's copies of the logits",
}


def as_values(prediction: Prediction, smallest: int | None) -> dict[str, Any]:
    """Return a prediction as plain nested values: numbers are bytes, operations and seconds.

    Args:
        prediction: What is to be shown.
        smallest: Smallest number of devices that fits, None for more than were tried.
    """
    job, time = prediction.job, prediction.time
    counts = asdict(prediction.counts)
    return {
        "name": job.run.name,
        "ranks": job.layout.world,
        "layout": asdict(job.layout),
        "device": asdict(prediction.device),
        "assumed_efficiency": asdict(prediction.efficiency),
        "params": counts,
        "tokens": {
            "step": job.step_tokens,
            "rank_micro_batch": job.tokens,
            "accumulate": job.run.train.accumulate,
        },
        "bytes_per_rank": {
            **prediction.footprint.parts,
            "total": prediction.footprint.total,
            "moment": prediction.footprint.moment,
            "usable": prediction.usable,
            "fits": prediction.fits,
            "largest": dict(prediction.footprint.largest),
        },
        "flops_per_token": {
            **asdict(prediction.flops),
            "executed": prediction.flops.executed,
        },
        "memory": memory_traffic(job),
        "traffic_per_rank_and_step": {
            **asdict(prediction.traffic),
            "total": prediction.traffic.total,
        },
        "communication_per_rank_and_step": {
            each.kind: {
                "operation": each.operation,
                "group": each.group,
                "count": each.count,
                "payload": each.payload,
                "sent": each.sent,
                "overlaps": each.overlaps,
            }
            for each in prediction.communication
        },
        "predicted_step_seconds": {
            "compute": time.compute,
            "memory_bandwidth": time.bandwidth,
            "communication": time.communication,
            "communication_by_kind": dict(time.exposed),
            "hidden_communication": time.hidden,
            "total": time.total,
            "bound": time.bound,
        },
        "predicted_tokens_per_second": prediction.tokens_per_second,
        "smallest_devices": smallest,
    }


def memory_traffic(job: Job) -> dict[str, float]:
    """Return the bytes of rows that a token reads in all memory layers, whatever the layout.

    Args:
        job: The run.
    """
    memory = job.memory
    if memory is None:
        return {"forward_bytes_per_token": 0, "training_bytes_per_token": 0}
    one = len(memory.layers) * memory.reads * job.sizes.value_dim * job.table_bytes
    passes = 3 if job.checkpointing else 2
    return {"forward_bytes_per_token": one, "training_bytes_per_token": passes * one}


def render(prediction: Prediction, smallest: int | None) -> Group:
    """Return the tables of a prediction for a rich console.

    Args:
        prediction: What is to be shown.
        smallest: As for `as_values`.
    """
    return Group(
        Text(_title(prediction)),
        _parameters(prediction),
        _bytes(prediction),
        _work(prediction),
        _communication(prediction),
        _time(prediction.time),
        Text(verdict(prediction, smallest)),
    )


def _title(prediction: Prediction) -> str:
    job = prediction.job
    layout = ", ".join(f"{name} {size}" for name, size in asdict(job.layout).items())
    return (
        f"{job.run.name} on {job.layout.world} x {prediction.device.name} ({layout}), "
        f"{job.rows} x {job.run.train.seq_len} tokens a rank and micro-batch"
    )


def _parameters(prediction: Prediction) -> Table:
    table = Table("parameters", "")
    counts = prediction.counts
    for name, number in (
        ("total", counts.total),
        ("dense", counts.dense),
        ("  in memory layers: queries, sub-keys, gates", counts.memory_dense),
        ("  sub-keys alone", counts.sub_keys),
        ("value tables", counts.values),
        ("used by a token", counts.used_per_token),
    ):
        table.add_row(name, f"{number:,}")
    return table


def _bytes(prediction: Prediction) -> Table:
    footprint = prediction.footprint
    moment = f"at the worst moment ({footprint.moment})"
    table = Table("bytes a rank", moment, "at most", "what")
    for part in PARTS:
        if footprint.largest[part]:
            table.add_row(
                part, size(footprint.parts[part]), size(footprint.largest[part]), _WHAT[part]
            )
    usable = f"of {size(prediction.usable)} usable"
    table.add_row("total", size(footprint.total), "", usable)
    return table


def _work(prediction: Prediction) -> Table:
    flops, traffic = prediction.flops, memory_traffic(prediction.job)
    table = Table("a token", "forward", "in training")
    table.add_row("operations", number(flops.forward), number(flops.training))
    table.add_row(
        f"  and attention over {prediction.job.run.train.seq_len} tokens",
        number(flops.attention_forward), number(flops.attention_training),
    )  # fmt: skip
    if flops.recomputed:
        table.add_row("  and recomputed", "", number(flops.recomputed))
    table.add_row(
        "rows of value tables read",
        size(traffic["forward_bytes_per_token"]), size(traffic["training_bytes_per_token"]),
    )  # fmt: skip
    return table


def _communication(prediction: Prediction) -> Table:
    table = Table("communication of a rank and step", "ranks", "times", "payload", "sent", "")
    for each in prediction.communication:
        hidden = "overlaps with computation" if each.overlaps else "not hidden"
        table.add_row(
            each.kind, str(each.group), str(each.count), size(each.payload), size(each.sent), hidden
        )
    if not prediction.communication:
        table.add_row("none", "1", "", "", "", "")
    return table


def _time(time: StepTime) -> Table:
    table = Table("predicted seconds of a step", "", "share")
    rows: Mapping[str, float] = {
        "compute": time.compute,
        "memory bandwidth": time.bandwidth,
        **{f"communication: {kind}": seconds for kind, seconds in time.exposed.items()},
    }
    for name, seconds in rows.items():
        table.add_row(name, f"{seconds:.4g}", f"{seconds / time.total:.0%}")
    table.add_row("total", f"{time.total:.4g}", "")
    table.add_row("hidden behind compute", f"{time.hidden:.4g}", "")
    return table


def verdict(prediction: Prediction, smallest: int | None) -> str:
    """Say in words what comes out, and what it rests on.

    Args:
        prediction: What is to be shown.
        smallest: As for `as_values`.
    """
    device, used = prediction.device, prediction.efficiency
    fits = "fits" if prediction.fits else "does not fit"
    least = "more than were tried" if smallest is None else str(smallest)
    kind = "measured rates" if device.is_measured else "published peaks"
    return (
        f"It {fits}. Smallest number of devices that fits, with as many tokens a rank: {least}.\n"
        f"Predicted, not measured: {prediction.tokens_per_second:,.0f} tokens/s, bound by "
        f"{prediction.time.bound}. Assumed: {used.compute:.0%} of the {kind} of products, "
        f"{used.bandwidth:.0%} of memory bandwidth, {used.network:.0%} of links; "
        f"{used.memory:.0%} of the memory can be used; slots drawn uniformly.\n"
        f"Rates: {device.source}."
    )


def size(count: float) -> str:
    """Write a number of bytes for people, in powers of 1000 as data sheets do."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"


def number(count: float) -> str:
    """Write a number of operations for people."""
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= scale:
            return f"{count / scale:.4g} {unit}"
    return f"{count:.0f}"
