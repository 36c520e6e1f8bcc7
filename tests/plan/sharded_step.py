"""A real sharded step on gloo ranks: what each collective sends, and the live bytes of rank 0."""

from collections import Counter
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from live_bytes import LiveBytes, batch_of, held_by, recompute_blocks, take_step
from torch import Tensor
from torch.utils._pytree import tree_leaves

from memory_layers.models import build_model
from memory_layers.optim import MemoryAdamW
from memory_layers.parallel.apply import parallelize
from memory_layers.parallel.mesh import make_meshes
from memory_layers.parallel.tensor import reduce_shared_gradients
from memory_layers.plan.job import Job

# FSDP2 and tables call the operations of c10d, which name the output first, DTensors the
# functional ones.
_OPERATIONS = {
    "c10d::_allgather_base_": "all-gather",
    "c10d::_reduce_scatter_base_": "reduce-scatter",
    "c10d::alltoall_base_": "all-to-all",
    "c10d::allreduce_": "all-reduce",
    "_c10d_functional::all_gather_into_tensor": "all-gather",
    "_c10d_functional::reduce_scatter_tensor": "reduce-scatter",
    "_c10d_functional::all_reduce": "all-reduce",
}


class Counted(LiveBytes):
    """Bytes that this rank sends, by operation, beside the live bytes. Scalars are left out.

    Args:
        known: Tensors that are there already.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__(known)
        self.sent: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name in _OPERATIONS:
            self._count(_OPERATIONS[name], tree_leaves(args))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _count(self, operation: str, leaves: list) -> None:
        payload = [leaf for leaf in leaves if isinstance(leaf, Tensor)][-1]
        boxed = [leaf for leaf in leaves if isinstance(leaf, torch.ScriptObject)]
        if boxed and "ProcessGroup" in str(boxed[0]._type()):
            group = dist.ProcessGroup.unbox(boxed[0])
        else:
            group = dist.distributed_c10d._resolve_process_group(leaves[-1])
        if payload.numel() == 1 or group.size() == 1:
            return
        others, share = group.size() - 1, (group.size() - 1) / group.size()
        factor = {"all-gather": others, "all-reduce": 2 * share}.get(operation, share)
        self.sent[operation] += factor * payload.nbytes
        self.counts[operation] += 1


def run_steps(jobs: list[Job]) -> list[dict[str, Any]]:
    """Run two steps of each job on this rank and describe the second.

    Args:
        jobs: Of as many ranks as there are.
    """
    return [_run(job) for job in jobs]


def _run(job: Job) -> dict[str, Any]:
    meshes = make_meshes(job.layout, "cpu")
    with torch.device("meta"):
        model = build_model(
            job.run.model.to_preset(), job.memory, vocab_size=job.vocab,
            value_dtype=getattr(torch, job.run.optim.value_dtype),
        )  # fmt: skip
    parallelize(model, meshes, job.run.parallel, seed=0)
    model.train()
    if job.checkpointing:
        recompute_blocks(model)
    optimizer = MemoryAdamW(model, value_state=job.run.optim.value_state)
    torch.manual_seed(dist.get_rank() // job.layout.tensor)
    batch = batch_of(job)

    def finish() -> None:
        if job.layout.tensor > 1:
            reduce_shared_gradients(model, meshes.dense["tensor"])

    take_step(job, model, optimizer, batch, LiveBytes([]), finish)
    watch = Counted(held_by(model, optimizer, batch))
    # It takes longer than the step itself, and only what rank 0 finds is looked at.
    with watch if dist.get_rank() == 0 else nullcontext():
        take_step(job, model, optimizer, batch, watch, finish)
    return {
        "sent": dict(watch.sent),
        "counts": dict(watch.counts),
        "peak": watch.peak,
        "moment": watch.peak_moment,
    }
