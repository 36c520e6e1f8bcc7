"""The layout of a value table in the code of arXiv 2412.09764, beside ours.

There a rank holds the full slice [N, V / G] while training, with a dense bf16 gradient of it and
two moments in the type of the table, bf16. Slots travel as int64 and weights as bf16. Replicas
reduce the dense gradient in bf16 (FSDP2 over the replicas, whose shards at rest are not counted to
its favour: the slice is kept gathered).
"""

from dataclasses import dataclass

from memory_layers.plan.communication import Collective
from memory_layers.plan.devices import Device
from memory_layers.plan.job import BF16, INT64, Job
from memory_layers.plan.predict import Efficiency, Prediction, seconds_of


@dataclass(frozen=True)
class ReferenceTable:
    """What the value tables take on a rank in the reference layout.

    Attributes:
        weights: Bytes of the slice, bf16.
        gradient: Bytes of its dense gradient, bf16.
        moments: Bytes of Adam's two moments of it, bf16.
        communication: What a rank sends for the tables in a step.
        dense_pass: Bytes that a dense optimizer step moves: all of the above read, and written but
            for the gradient, which is zeroed.
    """

    weights: int
    gradient: int
    moments: int
    communication: list[Collective]
    dense_pass: int

    @property
    def total(self) -> int:
        """Bytes a rank holds for the tables."""
        return self.weights + self.gradient + self.moments

    def seconds(self, device: Device, efficiency: Efficiency) -> float:
        """Predict the seconds of communication for the tables and of the dense pass."""
        moved = self.dense_pass / device.bandwidth / efficiency.bandwidth
        sent = sum(seconds_of(each, device) for each in self.communication)
        return moved + sent / efficiency.network


def reference_table(job: Job) -> ReferenceTable:
    """Work out the reference layout for the tables of a job."""
    memory, group = job.memory, job.layout.memory
    assert memory is not None
    slice_bytes = job.tables * memory.num_slots * job.columns * BF16
    reads = len(memory.layers) * job.run.train.accumulate
    forwards = reads * (2 if job.checkpointing else 1)
    slots = forwards * job.own_tokens * memory.reads * (INT64 + BF16)
    rows = (forwards + reads) * job.own_tokens * job.sizes.value_dim * BF16
    dots = reads * job.group_tokens * memory.reads * BF16
    found = [
        Collective("memory all-gather", "all-gather", group, 1, slots, 2 * forwards, False),
        Collective("memory all-to-all", "all-to-all", group, 1, rows, forwards + reads, False),
        Collective("memory reduce-scatter", "reduce-scatter", group, 1, dots, reads, False),
        Collective(
            "table replicas", "all-reduce", job.replicas, group, slice_bytes, job.tables, False
        ),
    ]
    return ReferenceTable(
        weights=slice_bytes,
        gradient=slice_bytes,
        moments=2 * slice_bytes,
        communication=[each for each in found if each.group > 1],
        dense_pass=8 * slice_bytes,
    )


def reference_step_seconds(prediction: Prediction) -> float:
    """Predict a step of the reference layout: ours, with its tables in place of our tables."""
    ours = sum(
        seconds
        for kind, seconds in prediction.time.exposed.items()
        if kind.startswith(("memory ", "table "))
    )
    device, efficiency = prediction.device, prediction.efficiency
    row_step = prediction.traffic.row_step / device.bandwidth / efficiency.bandwidth
    theirs = reference_table(prediction.job).seconds(device, efficiency)
    return prediction.time.total - ours - row_step + theirs
