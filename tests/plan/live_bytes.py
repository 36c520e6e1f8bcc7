"""Live bytes of a real training step, seen by a dispatch mode: what the formulas are held to."""

import weakref
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from memory_layers.layers.factored import FactoredGradient
from memory_layers.models import build_model
from memory_layers.optim import MemoryAdamW
from memory_layers.plan.job import Job


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that operations take and return, while they live.

    What an operation allocates and frees inside is not seen. FSDP2 frees a storage by resizing it,
    which no operation does, so all sizes are looked up every time.

    Args:
        known: Tensors that are there already.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.storages: dict[int, weakref.ref] = {}
        self.peak = 0
        self.moment = self.peak_moment = ""
        for tensor in known:
            self._watch(tensor)

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.storages:
            self.storages[key] = weakref.ref(storage, lambda _: self.storages.pop(key, None))

    def live(self) -> int:
        """Bytes that are held now."""
        found = [reference() for reference in list(self.storages.values())]
        return sum(storage.nbytes() for storage in found if storage is not None)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            # A gradient kept as its factors has the shape of the table and no memory of its own.
            if isinstance(tensor, Tensor) and not isinstance(tensor, FactoredGradient):
                self._watch(tensor._local_tensor if isinstance(tensor, DTensor) else tensor)
        live = self.live()
        if live > self.peak:
            self.peak, self.peak_moment = live, f"{self.moment}: {func}"
        return result


Batch = tuple[Tensor, Tensor, Tensor]


def batch_of(job: Job) -> Batch:
    """Make tokens, positions and labels as train/loop.py has them, of random tokens.

    Args:
        job: Decides sizes, and whether a row holds two documents.
    """
    rows, length = job.rows, job.run.train.seq_len
    documents = 2 if job.packed else 1
    positions = torch.arange(length // documents).repeat(rows, documents)
    ids, labels = (torch.randint(job.vocab, (rows, length)) for _ in range(2))
    return ids, positions, labels


def recompute_blocks(model: PreTrainedModel) -> None:
    """Let the backward pass compute blocks again, under the name that transformers has for it."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def held_by(model: nn.Module, optimizer: MemoryAdamW, batch: Batch) -> list[Tensor]:
    """List the tensors that are there between two steps, distributed ones by what is here."""
    state = [value for values in optimizer.state.values() for value in values.values()]
    found = [*model.parameters(), *model.buffers(), *state, *batch]
    tensors = [value for value in found if isinstance(value, Tensor)]
    return [value.to_local() if isinstance(value, DTensor) else value for value in tensors]


def take_step(
    job: Job,
    model: PreTrainedModel,
    optimizer: MemoryAdamW,
    batch: Batch,
    watch: LiveBytes,
    finish: Callable[[], None] = lambda: None,
) -> None:
    """Take a training step as train/loop.py does.

    Args:
        job: The run.
        model: In training mode.
        optimizer: Of the model.
        batch: Taken for every micro-batch.
        watch: Is told what happens.
        finish: What is done between the last backward pass and the optimizer.
    """
    ids, positions, labels = batch
    for _ in range(job.run.train.accumulate):
        watch.moment = "forward"
        with torch.autocast("cpu", torch.bfloat16, enabled=job.mixed):
            logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        logits = logits[:, :-1].flatten(0, 1).float()
        loss = F.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / 100
        del logits
        watch.moment = "backward"
        loss.backward()
        del loss
    watch.moment = "step"
    finish()
    optimizer.clip_grad_norm_(1.0)
    optimizer.step()
    optimizer.zero_grad()


def measure(job: Job) -> LiveBytes:
    """Run two steps of a job in this process and watch the second.

    Args:
        job: A run of one rank.
    """
    optim = job.run.optim
    model = build_model(
        job.run.model.to_preset(), job.memory, vocab_size=job.vocab,
        value_dtype=getattr(torch, optim.value_dtype),
    ).train()  # fmt: skip
    if job.checkpointing:
        recompute_blocks(model)
    optimizer = MemoryAdamW(
        model, value_weight_decay=optim.value_weight_decay, value_state=optim.value_state,
        bf16_rows=optim.bf16_rows,
    )  # fmt: skip
    batch = batch_of(job)
    take_step(job, model, optimizer, batch, LiveBytes([]))
    watch = LiveBytes(held_by(model, optimizer, batch))
    with watch:
        take_step(job, model, optimizer, batch, watch)
    return watch
