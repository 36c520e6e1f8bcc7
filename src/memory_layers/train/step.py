"""A step of a run: its batch, forward, backward, the optimizer.

Next: loop.py, which takes one after the other.
"""

import math
import time
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from memory_layers.common.seeds import mixed
from memory_layers.data.prepare import PreparedData
from memory_layers.data.tokens import TokenStream
from memory_layers.evaluate.usage import SlotUsage
from memory_layers.optim import MemoryAdamW
from memory_layers.parallel.tensor import reduce_shared_gradients
from memory_layers.parallel.world import World, join_world
from memory_layers.train.allocator import keep_freed_memory
from memory_layers.train.build import make_model, make_optimizer
from memory_layers.train.config import RunConfig
from memory_layers.train.interrupt import StopSignal
from memory_layers.train.loss import summed_loss


@dataclass(frozen=True)
class Taken:
    """What a step gave.

    Attributes:
        loss: Mean over the tokens of all ranks that are predicted, before the step.
        targets: These tokens.
        waited: Seconds that this rank waited for others to begin.
        stopping: Any rank was asked to stop.
    """

    loss: float
    targets: int
    waited: float
    stopping: bool


@dataclass
class Stepper:
    """Take steps of a run, whose batches are a function of its seed and the step."""

    config: RunConfig
    data: PreparedData
    model: PreTrainedModel
    optimizer: MemoryAdamW
    world: World

    def __post_init__(self) -> None:
        settings, tokenizer = self.config.train, self.data.tokenizer
        pad_id = tokenizer.pad_token_id
        pad_id = tokenizer.eos_token_id if pad_id is None else pad_id
        self.stream = TokenStream(self.data.folder, settings.seq_len, settings.seed, pad_id)

    def take(self, step: int, stop: StopSignal | None = None) -> Taken:
        """Take a step.

        Args:
            step: Counted from 0.
            stop: Whether this rank was asked to stop.

        Raises:
            FloatingPointError: The loss became NaN or infinite. The weights are as they were.
        """
        settings, optim, world = self.config.train, self.config.optim, self.world
        world.beat(step + 1, 0)
        for group in self.optimizer.param_groups:
            schedule = optim.value_schedule if group["memory"] else optim.schedule
            group["lr"] = group["initial_lr"] * optim.rate(schedule, step, settings.steps)
        parts, readers = settings.accumulate, world.layout.readers
        # What a model draws in a step, such as random slots, is a function of seed and step too.
        torch.manual_seed(mixed(settings.seed, step, world.reader))
        batches = [
            self.stream.batch(
                step * parts + part, settings.batch_size // readers,
                rank=world.reader, ranks=readers,
            )
            for part in range(parts)
        ]  # fmt: skip
        own = sum(batch.targets for batch in batches)
        ready = time.monotonic()
        targets = int(world.sum(own * world.leads)[0])
        waited = time.monotonic() - ready
        bf16 = settings.precision == "bf16"
        loss = 0.0
        for batch in batches:
            part = summed_loss(self.model, batch, world.device, bf16=bf16) / targets
            part.backward()
            loss += part.item()
        world.beat(step + 1, 1)
        loss, stopping = world.sum(loss * world.leads, stop is not None and stop.requested)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss} at step {step + 1}")
        if world.meshes is not None and world.layout.tensor > 1:
            reduce_shared_gradients(self.model, world.meshes.dense["tensor"])
        self.optimizer.clip_grad_norm_(optim.clip_norm, optim.value_clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return Taken(loss, targets, waited, stopping > 0)


def time_steps(config: RunConfig, data: PreparedData, count: int) -> list[float]:
    """Take the first steps of a run and return the seconds of each. Nothing is kept.

    Args:
        config: The run.
        data: What it is trained on.
        count: Steps to take.

    Raises:
        FloatingPointError: The loss became NaN or infinite.
    """
    keep_freed_memory()
    with join_world(config.parallel, config.train.device) as world:
        model = make_model(config, data, world)
        stepper = Stepper(config, data, model, make_optimizer(config, model), world)
        model.train()
        seconds = []
        # Reads are counted in training too, which takes its time.
        with SlotUsage(model).watch():
            for step in range(count):
                started = time.monotonic()
                stepper.take(step)
                seconds.append(time.monotonic() - started)
        return seconds
