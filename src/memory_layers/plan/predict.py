"""Predicted time of a step, and the smallest number of devices that a run fits on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from memory_layers.parallel.config import Layout
from memory_layers.plan import saved
from memory_layers.plan.communication import ALL_TO_ALL, Collective, communication_of
from memory_layers.plan.devices import Device
from memory_layers.plan.job import Job
from memory_layers.plan.parameters import Counts, count, parameters_of, units_of
from memory_layers.plan.rehearsal import Footprint, rehearse
from memory_layers.plan.work import Flops, Traffic, flops_of, traffic_of

LARGEST_MEMORY_GROUP = 64
MOST_DEVICES = 4096


@dataclass(frozen=True)
class Efficiency:
    """Shares of the published peaks that are counted on: assumptions, not measurements.

    Attributes:
        compute: Of matrix units, over a whole step.
        bandwidth: Of memory. arXiv 2412.09764 reports 3 of 3.35 TB/s for reading rows.
        network: Of links.
        memory: Of the bytes of a device, the rest being the driver's, the communication library's
            and the allocator's.
    """

    compute: float = 0.5
    bandwidth: float = 0.8
    network: float = 0.7
    memory: float = 0.9


@dataclass(frozen=True)
class StepTime:
    """Predicted seconds of a step and its terms.

    Attributes:
        compute: Matrix products.
        bandwidth: Reads and steps of rows, optimizer, elementwise operations.
        exposed: Communication that nothing hides, by kind, with the part of overlapping
            communication that takes longer than the computation.
        hidden: Communication of the dense part that overlaps with computation.
    """

    compute: float
    bandwidth: float
    exposed: Mapping[str, float]
    hidden: float

    @property
    def communication(self) -> float:
        """Seconds of communication that nothing hides."""
        return sum(self.exposed.values())

    @property
    def total(self) -> float:
        """Products, the operations between them, and exposed communication, one after another."""
        return self.compute + self.bandwidth + self.communication

    @property
    def bound(self) -> str:
        """The largest term."""
        terms = {
            "compute": self.compute,
            "memory bandwidth": self.bandwidth,
            "communication": self.communication,
        }
        return max(terms, key=lambda name: terms[name])


@dataclass(frozen=True)
class Prediction:
    """What is predicted of a run from its sizes.

    Attributes:
        job: The run and its layout.
        device: What it would run on.
        efficiency: Assumed shares of the peaks.
        counts: Parameters.
        footprint: Bytes a rank.
        flops: Operations of a token.
        traffic: Bytes a rank moves to and from its memory in a step.
        communication: What a rank sends in a step.
        time: Predicted seconds of a step.
    """

    job: Job
    device: Device
    efficiency: Efficiency
    counts: Counts
    footprint: Footprint
    flops: Flops
    traffic: Traffic
    communication: list[Collective]
    time: StepTime

    @property
    def fits(self) -> bool:
        """Whether a rank's bytes are at most the usable memory of a device."""
        return self.footprint.total <= self.usable

    @property
    def usable(self) -> float:
        """Bytes of a device that a run may use."""
        return self.device.memory * self.efficiency.memory

    @property
    def tokens_per_second(self) -> float:
        """Of all ranks together."""
        return self.job.step_tokens / self.time.total


def predict(job: Job, device: Device, efficiency: Efficiency | None = None) -> Prediction:
    """Work out bytes, operations, traffic and time of a run."""
    efficiency = efficiency or Efficiency()
    parameters = parameters_of(job)
    root, blocks = units_of(job, parameters)
    flops = flops_of(job, parameters)
    kept = (
        saved.around(job)
        + saved.final(job)
        + sum(half.kept for index in range(len(blocks)) for half in saved.block(job, index))
    )
    traffic = traffic_of(job, [root, *blocks], kept)
    communication = communication_of(job, parameters, root, blocks)
    return Prediction(
        job=job,
        device=device,
        efficiency=efficiency,
        counts=count(job, parameters),
        footprint=rehearse(job, root, blocks),
        flops=flops,
        traffic=traffic,
        communication=communication,
        time=_step_time(job, device, efficiency, flops, traffic, communication),
    )


def _step_time(
    job: Job,
    device: Device,
    efficiency: Efficiency,
    flops: Flops,
    traffic: Traffic,
    communication: list[Collective],
) -> StepTime:
    peak = device.bf16_flops if job.mixed else device.fp32_flops
    compute = job.step_tokens / job.layout.world * flops.executed / peak / efficiency.compute
    bandwidth = traffic.total / device.bandwidth / efficiency.bandwidth
    exposed: dict[str, float] = {}
    overlapping = 0.0
    for each in communication:
        seconds = seconds_of(each, device) / efficiency.network
        if each.overlaps:
            overlapping += seconds
        else:
            exposed[each.kind] = exposed.get(each.kind, 0.0) + seconds
    hidden = min(overlapping, compute)
    if overlapping > hidden:
        exposed["dense, beyond computation"] = overlapping - hidden
    return StepTime(compute, bandwidth, exposed, hidden)


def seconds_of(each: Collective, device: Device) -> float:
    """Return the seconds that collectives take at peak rates: of the slower kind of link."""
    if each.span <= device.per_node:
        return each.sent / device.link
    if each.operation != ALL_TO_ALL or each.stride >= device.per_node:
        return each.sent / device.network
    near = device.per_node // each.stride - 1
    outside = each.sent * (each.group - 1 - near) / (each.group - 1)
    return max(outside / device.network, (each.sent - outside) / device.link)


def default_layout(ranks: int) -> Layout:
    """Return the layout that is tried first: all ranks share everything, replicas beyond 64.

    Args:
        ranks: Number of processes.
    """
    shared = min(ranks, LARGEST_MEMORY_GROUP)
    while ranks % shared:
        shared -= 1
    return Layout(ranks // shared, shared, 1, shared)


def with_ranks(job: Job, layout: Layout) -> Job:
    """Return a job for another layout, with as many rows a rank as before."""
    train = replace(job.run.train, batch_size=job.rows * layout.readers)
    return replace(job, run=replace(job.run, train=train), layout=layout)


def smallest(job: Job, device: Device, efficiency: Efficiency | None = None) -> int | None:
    """Return the smallest number of devices that holds a run, None if 4096 are too few.

    Powers of two and the job's own number are tried, in `default_layout`, with the rows a rank has
    now: fewer ranks take more micro-batches for the same step.
    """
    powers = [2**n for n in range(MOST_DEVICES.bit_length())]
    for ranks in sorted({*powers, job.layout.world}):
        layout = job.layout if ranks == job.layout.world else default_layout(ranks)
        if predict(with_ranks(job, layout), device, efficiency).fits:
            return ranks
    return None
