"""The tables of docs/scale.md: weak scaling of a run, beside the reference layout."""

from collections.abc import Sequence

from memory_layers.common.text import short_bytes as size
from memory_layers.plan.devices import Device
from memory_layers.plan.job import Job
from memory_layers.plan.predict import Prediction, default_layout, predict, with_ranks
from memory_layers.plan.rehearsal import exchange_bytes
from memory_layers.train.config import RunConfig
from tools.reference_layout import (
    ReferenceTable,
    reference_step_seconds,
    reference_table,
)

RANKS = (8, 16, 32, 64, 128, 256, 512, 1024)


def scale_predictions(
    run: RunConfig, device: Device, ranks: Sequence[int] = RANKS
) -> list[Prediction]:
    """Predict a run on more and more ranks, with as many tokens a rank as on the first number.

    Args:
        run: Its batch is that of the first number of ranks. `run.parallel` decides no sizes here:
            all ranks up to 64 share everything, beyond them there are replicas.
        device: What it runs on.
        ranks: Numbers of ranks.
    """
    first = Job(run, default_layout(ranks[0]))
    return [predict(with_ranks(first, default_layout(number)), device) for number in ranks]


def scale_section(run: RunConfig, device: Device, ranks: Sequence[int] = RANKS) -> str:
    """Render the table of a run as Markdown, with the arithmetic of its first and last row.

    Args:
        run: As for `scale_predictions`.
        device: What it runs on.
        ranks: Numbers of ranks.
    """
    found = scale_predictions(run, device, ranks)
    lines = [
        f"**`{run.name}` on {device.name}, {found[0].job.tokens * run.train.accumulate:,} tokens a "
        "rank and step. All of this is predicted, nothing measured.**",
        "",
        "| ranks | memory group × replicas | bytes a rank | fits | tables and their step, a rank "
        "| reference | sent for tables, a rank and step | reference | tokens/s | reference | bound "
        "by |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(_row(prediction) for prediction in found),
        "",
        *_arithmetic(found[0]),
    ]
    if found[-1].job.replicas > 1:
        lines += ["", *_replicas(found[-1])]
    return "\n".join(lines)


def _row(prediction: Prediction) -> str:
    job = prediction.job
    reference = reference_table(job)
    total = reference_bytes(prediction, reference)
    theirs = job.step_tokens / reference_step_seconds(prediction)
    fits = "yes" if prediction.fits else "no"
    speed = f"{theirs:,.0f}" if total <= prediction.usable else "does not fit"
    return (
        f"| {job.layout.world} | {job.layout.memory} × {job.replicas} "
        f"| {size(prediction.footprint.total)} | {fits} "
        f"| {size(table_bytes(prediction))} | {size(reference.total)} "
        f"| {size(table_sent(prediction))} "
        f"| {size(sum(each.sent for each in reference.communication))} "
        f"| {prediction.tokens_per_second:,.0f} | {speed} | {prediction.time.bound} |"
    )


def table_bytes(prediction: Prediction) -> float:
    """Return the most bytes that tables, their state and the adding up of gradients take."""
    job, largest = prediction.job, prediction.footprint.largest
    return resting_bytes(job) + largest["pending"] + largest["exchange"]


def resting_bytes(job: Job) -> float:
    """Return the bytes of tables and their optimizer state on a rank."""
    assert job.memory is not None
    rows = job.tables * job.memory.num_slots
    return rows * (job.columns * job.table_bytes + job.row_state_bytes)


def reference_bytes(prediction: Prediction, reference: ReferenceTable) -> float:
    """Return the bytes of a rank with the tables of the reference layout in place of ours.

    Its dense part at the peak is taken to be what ours holds at most, activations included: the
    dense gradient of a table lives through the backward pass.

    Args:
        prediction: Ours.
        reference: Of the same job.
    """
    largest = prediction.footprint.largest
    dense = sum(largest.values()) - largest["pending"] - largest["exchange"]
    return dense - resting_bytes(prediction.job) + reference.total


def table_sent(prediction: Prediction) -> float:
    """Return the bytes that a rank sends for tables in a step."""
    kinds = ("memory ", "table ")
    return sum(each.sent for each in prediction.communication if each.kind.startswith(kinds))


def _arithmetic(prediction: Prediction) -> list[str]:
    job = prediction.job
    memory, group = job.memory, job.layout.memory
    assert memory is not None
    tokens, reads, value = job.own_tokens, memory.reads, job.sizes.value_dim
    layers = len(memory.layers) * job.run.train.accumulate
    passes = layers * (2 if job.checkpointing else 1)
    slots = tokens * reads * (4 + job.sent_weight_bytes)
    peak = job.step_tokens / job.layout.world * prediction.flops.executed
    rate = prediction.device.bf16_flops * prediction.efficiency.compute
    again = ", once more where blocks are recomputed" if job.checkpointing else ""
    return [
        f"The arithmetic for {job.layout.world} ranks, G = {group}, T = {tokens:,}, J = {reads}, "
        f"V = {value:,}, N = {memory.num_slots:,}:",
        "",
        f"- table: N · V/G = {memory.num_slots:,} · {job.columns:,} numbers of "
        f"{job.table_bytes} bytes "
        f"= {size(memory.num_slots * job.columns * job.table_bytes)}; the reference holds that, a "
        "gradient of the same size and two moments, all bf16: four times as much",
        f"- all-gather: T · J · (4 + {job.sent_weight_bytes}) = {size(slots)} a read of a layer, "
        f"sent G − 1 = {group - 1} times, {passes} times a step{again}: "
        f"{size(passes * slots * (group - 1))}; the reference sends 8 + 2 bytes an entry",
        f"- all-to-all: T · V · {job.read_bytes} = {size(tokens * value * job.read_bytes)}, of "
        f"which (G − 1)/G is sent, {passes} times forward and {layers} times backward",
        f"- reduce-scatter of weight gradients: G · T · J · 4 = "
        f"{size(job.group_tokens * reads * 4)}, of which (G − 1)/G is sent, {layers} times",
        f"- products: {peak:.3g} operations a rank and step, at "
        f"{prediction.efficiency.compute:.0%} of {prediction.device.bf16_flops / 1e12:,.0f} "
        f"T/s = {rate / 1e12:,.0f} T/s: {prediction.time.compute:.3g} s",
        f"- memory traffic: {size(prediction.traffic.total)} a rank and step, at "
        f"{prediction.efficiency.bandwidth:.0%} of {prediction.device.bandwidth / 1e12:.3g} TB/s: "
        f"{prediction.time.bandwidth:.3g} s",
        f"- communication that nothing hides, at {prediction.efficiency.network:.0%} of the links: "
        f"{prediction.time.communication:.3g} s",
    ]


def _replicas(prediction: Prediction) -> list[str]:
    job = prediction.job
    memory = job.memory
    assert memory is not None
    factors, sums = exchange_bytes(job)
    chosen = "factors" if factors <= sums else "dense sums"
    return [
        f"Between {job.replicas} replicas, on {job.layout.world} ranks: each to all others its "
        f"factors, {size(factors)} sent, or the dense sums N · (4 · V/G + 1) in a ring, "
        f"{size(sums)} sent. Here: {chosen}. The reference reduces the dense gradient in bf16: "
        f"{size(2 * (job.replicas - 1) / job.replicas * memory.num_slots * job.columns * 2)} sent.",
    ]
