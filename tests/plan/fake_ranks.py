"""One rank of up to 1024, on tensors without data under torch's fake process group."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from live_bytes import recompute_blocks
from sharded_step import Counted
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.testing._internal.distributed.fake_pg import FakeStore

from memory_layers.models import build_model
from memory_layers.parallel.apply import parallelize, shard_memory
from memory_layers.parallel.mesh import make_meshes
from memory_layers.parallel.table import ShardedValueTable
from memory_layers.plan.job import Job
from memory_layers.plan.predict import default_layout
from memory_layers.train.config import load_run

CONFIGS = Path(__file__).parents[2] / "src" / "memory_layers" / "configs"


class Recorded(Counted):
    """The exchanges of table reads in their order, beside the bytes of everything."""

    def __init__(self) -> None:
        super().__init__([])
        self.order: list[str] = []

    def _count(self, operation: str, leaves: list) -> None:
        super()._count(operation, leaves)
        payload = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)][-1]
        # Slots, weights and their gradients are [T, J]. FSDP2 sends flat buffers, no all-to-all.
        if operation == "all-to-all" or payload.dim() == 2:
            self.order.append(operation)


def job_of(name: str, ranks: int) -> Job:
    """The run of a committed configuration, with one row a rank to keep the trace short."""
    run = load_run(CONFIGS / f"{name}.yaml")
    run = replace(run, train=replace(run.train, batch_size=ranks))
    return Job(run, default_layout(ranks))


def as_rank(rank: int, ranks: int) -> None:
    """Become a rank of a process group that exchanges nothing."""
    dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)


def shard_shapes(name: str, ranks: int, chosen: list[int]) -> list[tuple[int, int, int]]:
    """Rows, columns and first column of the table on some ranks."""
    found = []
    job = job_of(name, ranks)
    for rank in chosen:
        as_rank(rank, ranks)
        with torch.device("meta"):
            model = build_model(
                job.run.model.to_preset(), job.memory, vocab_size=job.vocab,
                value_dtype=getattr(torch, job.run.optim.value_dtype),
            )  # fmt: skip
        shard_memory(model, make_meshes(job.layout, "cpu").table)
        (table,) = [part for part in model.modules() if isinstance(part, ShardedValueTable)]
        found.append((*table.weight.shape, table.first_column))
    return found


def trace(name: str, ranks: int, rank: int) -> dict[str, Any]:
    """Run forward, backward and the exchange of replicas of one rank, and tell what was sent."""
    job = job_of(name, ranks)
    as_rank(rank, ranks)
    with torch.device("meta"):
        model = build_model(
            job.run.model.to_preset(), job.memory, vocab_size=job.vocab,
            value_dtype=getattr(torch, job.run.optim.value_dtype),
        )  # fmt: skip
    meshes = make_meshes(job.layout, "cpu")
    with FakeTensorMode(allow_non_fake_inputs=True):
        parallelize(model, meshes, job.run.parallel, seed=None)
        recompute_blocks(model)
        model.train()
        (table,) = [part for part in model.modules() if isinstance(part, ShardedValueTable)]
        # Whether a list is folded depends on the data.
        table.fold_bytes = 2**62
        length = job.run.train.seq_len
        ids = torch.zeros(job.rows, length, dtype=torch.int64)
        with Recorded() as watch:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(input_ids=ids, use_cache=False).logits
            forward = list(watch.order)
            F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
    return {
        "forward": forward,
        "backward": watch.order[len(forward) :],
        "sent": dict(watch.sent),
        "counts": dict(watch.counts),
        "pending": table.weight.grad.reads.nbytes,
        "table": tuple(table.weight.shape),
    }
