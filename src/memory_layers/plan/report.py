"""What `memory-layers plan` prints: a prediction as tables, or as nested values for JSON."""

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from memory_layers.common.errors import UserError
from memory_layers.common.text import rendered, short_bytes, short_number
from memory_layers.parallel.config import Layout
from memory_layers.plan.devices import DEVICES, measure_cpu
from memory_layers.plan.job import Job
from memory_layers.plan.predict import Prediction, predict, smallest
from memory_layers.plan.rehearsal import PARTS
from memory_layers.train.config import RunConfig

_WHAT = {
    "weights": "own share of dense weights in fp32, columns of value tables",
    "optimizer": "moments, in fp32",
    "gradients": "own share, dense part",
    "gathered": "whole weights and gradients while FSDP2 communicates them",
    "pending": "factors of the tables' gradient",
    "exchange": "sums of rows while ranks add up a table's gradient",
    "activations": "with bf16 copies of weights, and the loss's copies of the logits",
}


def plan_text(run: RunConfig, ranks: int, device: str, *, as_json: bool) -> str:
    """Return what `memory-layers plan` prints, also for a run that does not fit.

    Args:
        run: The run.
        ranks: Processes, one a device.
        device: A name that check_device accepts.
        as_json: Return nested values in place of tables.

    Raises:
        UserError: It cannot be planned as asked.
    """
    if ranks < 1:
        raise UserError(f"--ranks must be at least 1, got {ranks}. hint: --ranks 8")
    found = measure_cpu() if device == "cpu" else DEVICES[device]
    try:
        layout = run.parallel.resolve(ranks)
    except ValueError as error:
        raise UserError(f"--ranks {ranks}: {error}") from error
    shared = _shared(run, layout)
    job = Job(shared, layout)
    try:
        prediction = predict(job, found)
        fewest = smallest(job, found)
    except OverflowError as error:
        raise UserError(
            f"the run is larger than anything that can be computed with ({error}), expected sizes "
            "of some machine. hint: look at --ranks, and the sizes of model and batch"
        ) from error
    if as_json:
        return json.dumps(_as_values(prediction, fewest), indent=2)
    notes = []
    if shared is not run:
        notes.append(
            f"Planned with train.batch_size {shared.train.batch_size}, the next that "
            f"{layout.readers} ranks can share, in place of {run.train.batch_size}."
        )
    return rendered(_render(prediction, fewest), *notes)


def _shared(run: RunConfig, layout: Layout) -> RunConfig:
    """Return the run with the next batch size that the ranks can share. `train` would refuse."""
    rows, readers = run.train.batch_size, layout.readers
    if rows % readers == 0:
        return run
    return replace(run, train=replace(run.train, batch_size=-(-rows // readers) * readers))


def _as_values(prediction: Prediction, fewest: int | None) -> dict[str, Any]:
    """Return a prediction as plain nested values: numbers are bytes, operations and seconds."""
    job, time, footprint = prediction.job, prediction.time, prediction.footprint
    return {
        "name": job.run.name,
        "ranks": job.layout.world,
        "layout": asdict(job.layout),
        "device": asdict(prediction.device),
        "assumed_efficiency": asdict(prediction.efficiency),
        "params": asdict(prediction.counts),
        "tokens": {
            "step": job.step_tokens,
            "rank_micro_batch": job.tokens,
            "accumulate": job.run.train.accumulate,
        },
        "bytes_per_rank": {
            **footprint.parts,
            "total": footprint.total,
            "moment": footprint.moment,
            "usable": prediction.usable,
            "fits": prediction.fits,
            "largest": dict(footprint.largest),
        },
        "flops_per_token": {**asdict(prediction.flops), "executed": prediction.flops.executed},
        "memory": _memory_traffic(job),
        "traffic_per_rank_and_step": {
            **asdict(prediction.traffic),
            "total": prediction.traffic.total,
        },
        "communication_per_rank_and_step": {
            each.kind: {
                name: getattr(each, name)
                for name in ("operation", "group", "count", "payload", "sent", "overlaps")
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
        "smallest_devices": fewest,
    }


def _memory_traffic(job: Job) -> dict[str, float]:
    """Return the bytes of rows that a token reads in all memory layers, whatever the layout."""
    memory = job.memory
    if memory is None:
        return {"forward_bytes_per_token": 0, "training_bytes_per_token": 0}
    one = len(memory.layers) * memory.reads * job.sizes.value_dim * job.table_bytes
    passes = 3 if job.checkpointing else 2
    return {"forward_bytes_per_token": one, "training_bytes_per_token": passes * one}


def _render(prediction: Prediction, fewest: int | None) -> Group:
    return Group(
        Text(_title(prediction)),
        _parameters(prediction),
        _bytes(prediction),
        _work(prediction),
        _communication(prediction),
        _time(prediction),
        Text(_verdict(prediction, fewest)),
    )


def _title(prediction: Prediction) -> str:
    job = prediction.job
    layout = ", ".join(f"{name} {size}" for name, size in asdict(job.layout).items())
    return (
        f"{job.run.name} on {job.layout.world} x {prediction.device.name} ({layout}), "
        f"{job.rows} x {job.run.train.seq_len} tokens a rank and micro-batch"
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    return table


def _parameters(prediction: Prediction) -> Table:
    counts = prediction.counts
    rows = {
        "total": counts.total,
        "dense": counts.dense,
        "  in memory layers: queries, sub-keys, gates": counts.memory_dense,
        "  sub-keys alone": counts.sub_keys,
        "value tables": counts.values,
        "used by a token": counts.used_per_token,
    }
    return _table(("parameters", ""), ((name, f"{number:,}") for name, number in rows.items()))


def _bytes(prediction: Prediction) -> Table:
    found = prediction.footprint
    head = ("bytes a rank", f"at the worst moment ({found.moment})", "at most", "what")
    rows = [
        (part, short_bytes(found.parts[part]), short_bytes(found.largest[part]), _WHAT[part])
        for part in PARTS
        if found.largest[part]
    ]
    usable = f"of {short_bytes(prediction.usable)} usable"
    return _table(head, [*rows, ("total", short_bytes(found.total), "", usable)])


def _work(prediction: Prediction) -> Table:
    flops, traffic = prediction.flops, _memory_traffic(prediction.job)
    attention = f"  and attention over {prediction.job.run.train.seq_len} tokens"
    numbers = {
        "operations": (flops.forward, flops.training),
        attention: (flops.attention_forward, flops.attention_training),
    }
    rows = [(name, *map(short_number, pair)) for name, pair in numbers.items()]
    if flops.recomputed:
        rows.append(("  and recomputed", "", short_number(flops.recomputed)))
    rows.append(("rows of value tables read", *map(short_bytes, traffic.values())))
    return _table(("a token", "forward", "in training"), rows)


def _communication(prediction: Prediction) -> Table:
    rows = [
        (
            each.kind,
            str(each.group),
            str(each.count),
            short_bytes(each.payload),
            short_bytes(each.sent),
            "overlaps with computation" if each.overlaps else "not hidden",
        )
        for each in prediction.communication
    ]
    head = ("communication of a rank and step", "ranks", "times", "payload", "sent", "")
    return _table(head, rows or [("none", "1", "", "", "", "")])


def _time(prediction: Prediction) -> Table:
    time = prediction.time
    terms = {
        "compute": time.compute,
        "memory bandwidth": time.bandwidth,
        **{f"communication: {kind}": seconds for kind, seconds in time.exposed.items()},
    }
    rows = [(name, f"{s:.4g}", f"{s / time.total:.0%}") for name, s in terms.items()]
    rows.append(("total", f"{time.total:.4g}", ""))
    rows.append(("hidden behind compute", f"{time.hidden:.4g}", ""))
    return _table(("predicted seconds of a step", "", "share"), rows)


def _verdict(prediction: Prediction, fewest: int | None) -> str:
    """Return the result in words, with what it assumes."""
    device, used = prediction.device, prediction.efficiency
    fits = "fits" if prediction.fits else "does not fit"
    least = "more than were tried" if fewest is None else str(fewest)
    kind = "measured rates" if device.is_measured else "published peaks"
    return (
        f"It {fits}. Smallest number of devices that fits, with as many tokens a rank: {least}.\n"
        f"Predicted, not measured: {prediction.tokens_per_second:,.0f} tokens/s, bound by "
        f"{prediction.time.bound}. Assumed: {used.compute:.0%} of the {kind} of products, "
        f"{used.bandwidth:.0%} of memory bandwidth, {used.network:.0%} of links; "
        f"{used.memory:.0%} of the memory can be used; slots drawn uniformly.\n"
        f"Rates: {device.source}."
    )
