"""Reads of a width-sharded table and of its replicas on gloo ranks, beside those of a whole one."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from memory_layers.config import MemoryConfig
from memory_layers.layers import MemoryLayer, ValueTable
from memory_layers.ops.write import RowGradient, group_by_row, row_sums
from memory_layers.optim import MemoryAdamW
from memory_layers.parallel.apply import shard_memory
from memory_layers.parallel.config import Layout
from memory_layers.parallel.mesh import make_meshes

SLOTS, TOKENS, READS = 20, 6, 3
# Rows from here on are read by one reader each, in `step_read`.
OWN_ROWS = 16


class Holder(nn.Module):
    """A module with nothing but a table.

    Args:
        value_dim: V.
        slots: N.
    """

    def __init__(self, value_dim: int, slots: int = SLOTS) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.table = ValueTable(slots, value_dim, init_std=1.0)


def table_mesh(replicas: int, memory: int) -> DeviceMesh:
    """Arrange all ranks as `shard_memory` wants them."""
    return make_meshes(Layout(1, replicas * memory, 1, memory), "cpu").table


def batch(value_dim: int, reader: int, tokens: int = TOKENS, slots: int = SLOTS) -> list[Tensor]:
    """Slots [T, J], weights [T, J] and the gradient of the read [T, V] of a reader's tokens."""
    generator = torch.Generator().manual_seed(100 + reader)
    return [
        torch.randint(0, slots, (tokens, READS), generator=generator),
        torch.randn(tokens, READS, generator=generator),
        torch.randn(tokens, value_dim, generator=generator),
    ]


def read(table: ValueTable, value_dim: int, reader: int) -> tuple[Tensor, Tensor]:
    """Read and go back once: the rows and the gradient of the weights."""
    slots, weights, d_out = batch(value_dim, reader)
    weights.requires_grad_()
    out = table(slots, weights)
    out.backward(d_out)
    return out.detach(), weights.grad


def dot(table: ValueTable, value_dim: int, reader: int) -> tuple[Tensor, Tensor]:
    """Take dot products and go back once: the products and the gradient of the tokens."""
    slots, d_out, x = batch(value_dim, reader)
    x.requires_grad_()
    out = table.dot(slots, x)
    out.backward(d_out)
    return out.detach(), x.grad


def dense(gradient: RowGradient, slots: int = SLOTS) -> Tensor:
    """[N, width] gradient."""
    rows, sums = row_sums(gradient)
    return torch.zeros(slots, sums.shape[1]).index_add_(0, rows, sums)


def sharded_reads(value_dims: list[int]) -> list[dict[str, Any]]:
    """What this rank has after one read of a table of each width, in one memory group."""
    rank, size = dist.get_rank(), dist.get_world_size()
    mesh = table_mesh(1, size)
    results = []
    for value_dim in value_dims:
        table = shard_memory(Holder(value_dim), mesh).table
        out, d_weights = read(table, value_dim, rank)
        gradient = table.row_gradient()
        # Rank 1 has no text left, and rank 0 more than the others.
        few = [5, 0, 2, 3][rank]
        slots, weights, x = batch(value_dim, rank, few)
        with torch.no_grad():
            uneven = table(slots, weights)
            uneven_dots = table.dot(slots, x)
        table.weight.grad = None
        dots, d_x = dot(table, value_dim, rank)
        of_dots = table.row_gradient()
        results.append(
            {
                "shape": tuple(table.weight.shape),
                "columns": (table.first_column, table.value_dim),
                "out": out,
                "d_weights": d_weights,
                "vectors": [tuple(part.shape) for part in gradient.vectors],
                "reads": [tuple(part.shape) for part in gradient.weights],
                "gradient": dense(gradient),
                "uneven": uneven,
                "uneven_dots": uneven_dots,
                "dots": dots,
                "d_x": d_x,
                "dot_vectors": [tuple(part.shape) for part in of_dots.vectors],
                "dot_gradient": dense(of_dots),
                "kind": type(table.weight.grad).__name__,
                "refused": refusal(mesh),
                "batch_norm_refused": batch_norm_refusal(),
            }
        )
    return results


def refusal(mesh: DeviceMesh) -> str:
    """Return what is said about a table with sparse gradients."""
    holder = Holder(4)
    holder.table.sparse = True
    try:
        shard_memory(holder, mesh)
    except ValueError as error:
        return str(error)
    return "nothing"


def weights_in_bfloat16() -> dict[str, Tensor]:
    """Read with weights that travel in bfloat16."""
    mesh = table_mesh(1, dist.get_world_size())
    table = shard_memory(Holder(8), mesh, torch.bfloat16).table
    out, d_weights = read(table, 8, dist.get_rank())
    return {"out": out, "d_weights": d_weights}


def replicated_steps(slots: int, replicas: int, memory: int) -> dict[str, Any]:
    """Two steps of a table with replicas.

    Args:
        slots: N. Few: sums are exchanged. Many: factors.
        replicas: Number of memory groups.
        memory: Ranks of each.
    """
    value_dim, rank = 5, dist.get_rank()
    holder = shard_memory(Holder(value_dim, slots), table_mesh(replicas, memory))
    table = holder.table
    optimizer = MemoryAdamW(holder, lr=0.1, eps=1e-3, value_weight_decay=0.1)
    norms, reads = [], []
    for step in range(2):
        look(table, value_dim, rank)
        step_read(table, value_dim, rank, step)
        look(table, value_dim, rank)
        reads.append(len(table.row_gradient().entries))
        norms.append(float(optimizer.clip_grad_norm_(None, 0.5)[1]))
        optimizer.step()
        optimizer.zero_grad()
    step_read(table, value_dim, rank, 2)
    table.row_gradient()
    try:
        step_read(table, value_dim, rank, 3)
        late = "nothing"
    except RuntimeError as error:
        late = str(error)
    first = table.first_column
    return {
        "weight": table.weight.detach(),
        "columns": slice(first, first + table.weight.shape[1]),
        "norms": norms,
        "reads": reads,
        "late": late,
    }


def look(table: ValueTable, value_dim: int, reader: int) -> None:
    """Take gradients of a read that are not to be learned."""
    slots, weights, d_out = batch(value_dim, reader)
    out = table(slots, weights.requires_grad_())
    torch.autograd.grad(out, [weights, table.weight], d_out, retain_graph=True)
    out.backward(d_out, inputs=[weights])


def step_read(table: ValueTable, value_dim: int, reader: int, step: int) -> None:
    """Read in a step, and go back. The first slot belongs to this reader alone.

    Its weight is 0 but in step 0: the row has no gradient then, and yet its moments go on.
    """
    some, weights, d_out = batch(value_dim, 10 * step + reader, 2 * TOKENS, OWN_ROWS)
    some[0, 0] = OWN_ROWS + reader
    if step:
        weights[0, 0] = 0.0
    table(some, weights.requires_grad_()).backward(d_out)


def gradient_of(shapes: list[tuple[int, int]], width: int, dtype: torch.dtype) -> RowGradient:
    """Pending reads of given [T, J], on one row."""
    gradient = None
    for tokens, reads in shapes:
        slots = torch.zeros(tokens, reads, dtype=torch.int64)
        weights = torch.ones(tokens, reads, dtype=dtype)
        part = group_by_row(slots, weights, torch.ones(tokens, width, dtype=dtype))
        gradient = part if gradient is None else gradient.joined(part)
    return gradient


def mesh_of_one_axis() -> tuple[str, Tensor, Tensor]:
    """Shard over a mesh that has no replicas: the table in words, a read and the whole rows."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    table = shard_memory(Holder(4), mesh).table
    out, _ = read(table, 4, dist.get_rank())
    return repr(table), out, table.global_view(table.weight.detach()).full_tensor()


def batch_norm_refusal() -> str:
    """Return what is said about a layer that normalises over a batch."""
    config = MemoryConfig(layers=(0,), sub_keys=4, top_k=2, query_norm="batch")
    try:
        shard_memory(MemoryLayer(config, 8), table_mesh(1, dist.get_world_size()))
    except ValueError as error:
        return str(error)
    return "nothing"


def unequal_tokens() -> None:
    """Bring one token more than the rank before."""
    holder = shard_memory(Holder(4), table_mesh(1, dist.get_world_size()))
    slots, weights, _ = batch(4, 0, tokens=TOKENS + dist.get_rank())
    holder.table(slots, weights.requires_grad_())
