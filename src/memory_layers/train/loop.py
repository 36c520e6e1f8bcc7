"""train(): one run from a RunConfig to a model folder, top to bottom.

A run can be stopped at any time and started again with the same arguments: the batch of a step is
a function of the seed and the step, and everything else is in the newest checkpoint.
"""

import os
import time
from contextlib import ExitStack
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from memory_layers.common.errors import UserError
from memory_layers.common.locks import alone_in
from memory_layers.common.progress import ProgressLine
from memory_layers.data.config import DataConfig
from memory_layers.data.prepare import PreparedData, prepare_data
from memory_layers.data.tokens import read_pieces
from memory_layers.evaluate.perplexity import summarize_loss, text_loss
from memory_layers.evaluate.positions import check_texts
from memory_layers.evaluate.recall import pick_items, recall_share, summarize_recall
from memory_layers.evaluate.usage import SlotUsage, summarize_usage, used_share
from memory_layers.layers.experts import balance_loss
from memory_layers.models import memory_layers_of
from memory_layers.optim import MemoryAdamW
from memory_layers.parallel.apply import reshard
from memory_layers.parallel.world import World, join_world, place_of
from memory_layers.train.allocator import keep_freed_memory
from memory_layers.train.build import make_model, make_optimizer
from memory_layers.train.checkpoint import Checkpoints
from memory_layers.train.claim import check_folder, claim_folder, list_changes
from memory_layers.train.config import RunConfig, check_shares
from memory_layers.train.counters import check_counters
from memory_layers.train.export import export_checkpoint
from memory_layers.train.finite import count_in_state
from memory_layers.train.folders import list_checkpoints
from memory_layers.train.interrupt import StopSignal
from memory_layers.train.metrics import MetricsWriter
from memory_layers.train.step import Stepper


@dataclass(frozen=True)
class TrainedModel:
    """A finished run.

    Attributes:
        model: The trained model.
        data: What it was trained on.
        tokens: Tokens seen that were predicted.
        seconds: Time spent in training steps, over all parts of an interrupted run.
        history: Lines of metrics.jsonl.
    """

    model: PreTrainedModel
    data: PreparedData
    tokens: int
    seconds: float
    history: list[dict[str, Any]]


def train(
    config: RunConfig, out: Path, *, show: bool = True, data: PreparedData | None = None
) -> TrainedModel:
    """Train a model, or go on with a run that was stopped or is to be longer.

    Args:
        config: The run. More `train.steps` than those of the run in `out` continue it from its
            newest checkpoint, with the learning rates of the longer run from there on.
        out: Its folder: config.json, metrics.jsonl, tensorboard/, checkpoints/, model/.
        show: Show the progress of the run.
        data: What it is trained on, where it was prepared elsewhere, the same on all ranks. None:
            it is prepared here, as `config.data` says.

    Raises:
        UserError: `out` holds another run or one on other data, another process works there, the
            sizes do not fit the number of processes, or the data is malformed. `out` is as it was
            before.
        FloatingPointError: The loss or the weights became NaN or infinite. The last checkpoint is
            intact.
        OSError: The disk is full. The last checkpoint is intact.
        KeyboardInterrupt: Ctrl-C or SIGTERM. Its message says that a checkpoint of the last step
            is saved. After a second signal there is neither message nor checkpoint.
        LostRankError: Another rank died or hung. The last checkpoint is intact.
    """
    keep_freed_memory()
    try:
        _, layout = place_of(config.parallel, config.train.device)
    except ValueError as error:
        raise UserError(str(error)) from error
    check_shares(config.train, layout)
    # Before the data, which may take minutes.
    planned = check_folder(out, config, longer=True)
    with (
        join_world(config.parallel, config.train.device) as world,
        ProgressLine(show=show and world.is_rank_0) as progress,
        ExitStack() as held,
    ):
        world.on_rank_0(lambda: held.enter_context(alone_in(out)))
        data = _prepare(config.data, world, progress) if data is None else data
        model = make_model(config, data, world)
        optimizer = make_optimizer(config, model)
        # Nothing that a mistake in the configuration can stop comes after this.
        told: list[str] = []
        world.on_rank_0(lambda: told.extend(claim_folder(out, config, data, longer=True)))
        checkpoints = Checkpoints(out, config.train.keep_checkpoints)
        done, counters = checkpoints.load_newest(model, optimizer) or (0, {})
        if done:
            check_counters(list_checkpoints(out)[-1], counters, SlotUsage(model).slots)
        lines = counters.pop("lines", 0)
        with (
            StopSignal(show=world.is_rank_0) as stop,
            MetricsWriter(out, done, writes=world.is_rank_0) as metrics,
        ):
            if metrics.lines < lines and world.is_rank_0:
                told.append(
                    f"{metrics.path}: {lines - metrics.lines} of {lines} lines up to step {done} "
                    "are lost, as after a loss of power. The run goes on, its curves have a gap"
                )
            for line in told:
                progress.say(line)
            if done:
                progress.say(f"resuming after step {done} from {list_checkpoints(out)[-1]}")
            if done and planned < config.train.steps:
                progress.say(
                    f"train.steps was {planned}, is {config.train.steps}: learning rates are those "
                    "of the longer run from here on"
                )
            run = _Run(
                config, data, model, optimizer, checkpoints, metrics, progress, world, **counters
            )
            try:
                with run.usage.watch():
                    done = run.steps(done, stop)
            except FloatingPointError as error:
                checkpoints.wait()
                found = list_checkpoints(out)
                kept = f"{found[-1]} is intact" if found else "No checkpoint was saved before"
                raise FloatingPointError(
                    f"{error}. {kept}. hint: lower optim.lr or optim.value_lr, or set "
                    "optim.value_clip_norm"
                ) from None
            checkpoints.wait()
            if done < config.train.steps:
                raise KeyboardInterrupt(f"stopped after step {done}, saved in {out}")
            world.on_rank_0(lambda: export_checkpoint(out, out / "model"))
            return TrainedModel(model, data, run.tokens, round(run.seconds, 3), metrics.read())


def _prepare(config: DataConfig, world: World, progress: ProgressLine) -> PreparedData:
    """Prepare the data, or look for damage in it, once a machine. The other ranks only open it.

    Raises:
        UserError: The data is malformed, or ranks would read different data.
    """
    found: list[PreparedData] = []
    world.on_rank_0(lambda: found.append(prepare_data(config, progress.update)))
    if not found and os.environ.get("LOCAL_RANK") == "0":
        found.append(prepare_data(config))
    # The others wait for it here.
    world.sum(0)
    data = found[0] if found else prepare_data(config, check=False)
    first, *others = world.all_gather((data.content, data.sources))
    for content, sources in others:
        if content != first[0]:
            changes = list_changes(first[0], content, first[1], sources)
            raise UserError(
                f"the ranks have different data: {'; '.join(changes)}. hint: the same files and "
                "versions on all machines"
            )
    return data


@dataclass
class _Run:
    """The state of a run between two steps: of it, what `_checkpoint` saves has a default."""

    config: RunConfig
    data: PreparedData
    model: PreTrainedModel
    optimizer: MemoryAdamW
    checkpoints: Checkpoints
    metrics: MetricsWriter
    progress: ProgressLine
    world: World
    tokens: int = 0
    seconds: float = 0.0
    # Since the last line of metrics.
    losses: list[float] = field(default_factory=list)
    reads: InitVar[torch.Tensor | None] = None
    # Seconds since the last line of metrics, and those of them spent waiting for other ranks.
    spent: float = 0.0
    waited: float = 0.0

    def __post_init__(self, reads: torch.Tensor | None) -> None:
        self.stepper = Stepper(self.config, self.data, self.model, self.optimizer, self.world)
        settings = self.config.train
        self.heldout_text = read_pieces(self.data.folder / "heldout", settings.seq_len)
        # Not when they are asked for the first time, after hours.
        check_texts(self.model, self.data.tokenizer, [probe.text for probe in self.data.probes])
        # Once: to draw from a million facts takes seconds.
        self.asked = {
            count: pick_items(self.data.probes, count)
            for count in {self.config.train.eval_items, self.config.train.final_items}
        }
        self.usage = SlotUsage(self.model)
        # Reads are counted by each rank and added up when they are wanted.
        if reads is not None and self.world.is_rank_0:
            self.usage.take_up(reads)

    def steps(self, done: int, stop: StopSignal) -> int:
        """Run the steps that are left, or those until a stop. Return the steps done in all."""
        settings = self.config.train
        self.model.train()
        # A finished run may have lost its last numbers with the power: they follow from the model.
        there = self.world.sum(self.metrics.has_evaluation(done))[0]
        if done == settings.steps and not there:
            self._evaluate(done)
        for step in range(done, settings.steps):
            started = time.monotonic()
            tokens_before = self.tokens
            stopping = self._step(step, stop)
            took = time.monotonic() - started
            self.seconds += took
            self.spent += took
            finished = step + 1
            last = finished == settings.steps
            if finished % settings.log_every == 0 or last:
                self._log(finished, (self.tokens - tokens_before) / took)
            evaluates = last or (settings.eval_every and finished % settings.eval_every == 0)
            due = settings.checkpoint_every and finished % settings.checkpoint_every == 0
            saves = last or due or stopping
            if evaluates or saves:
                self._check_finite(finished)
            if evaluates:
                self._evaluate(finished)
            if saves:
                self._checkpoint(finished)
            if stopping:
                return finished
        return settings.steps

    def _step(self, step: int, stop: StopSignal) -> bool:
        """Take a step. Return whether any rank was asked to stop."""
        taken = self.stepper.take(step, stop)
        self.waited += taken.waited
        self.tokens += taken.targets
        self.losses.append(taken.loss)
        return taken.stopping

    def _check_finite(self, step: int) -> None:
        """Refuse to keep what a step has overflowed: the loss shows it in the next step alone."""
        bad = self.world.sum(count_in_state(self.model, self.optimizer))[0]
        if bad:
            raise FloatingPointError(
                f"{bad:.0f} numbers of weights and optimizer became NaN or infinite by step {step}"
            )

    def _log(self, step: int, tokens_per_second: float) -> None:
        settings, stream = self.config.train, self.stepper.stream
        loss = sum(self.losses) / len(self.losses)
        self.losses.clear()
        values = {
            "loss": loss,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(tokens_per_second),
            "epoch": round(stream.epoch_of(step * settings.accumulate, settings.batch_size), 4),
            "lr": self.optimizer.param_groups[0]["lr"],
        }
        status = f"loss {loss:.3f}  {tokens_per_second / 1000:.1f}k tokens/s"
        if memory_layers_of(self.model):
            values["slots_used"] = round(used_share(self._reads()), 4)
            status += f"  slots used {values['slots_used']:.1%}"
        balance = balance_loss(self.model)
        if balance is not None:
            values["balance_loss"] = float(balance)
        status += self._waited_for()
        self.progress.update(step, self.config.train.steps, self.config.name, status)
        self.metrics.write(step, values)

    def _waited_for(self) -> str:
        """Return which rank the others waited for, if that cost a quarter of the time."""
        waits = self.world.all_gather(self.waited)
        lost = (max(waits) - min(waits)) / self.spent
        self.spent = self.waited = 0.0
        return f"  {lost:.0%} waited for rank {waits.index(min(waits))}" if lost > 0.25 else ""

    @property
    def _share(self) -> tuple[int, int]:
        return self.world.reader, self.world.layout.readers

    def _reads(self) -> torch.Tensor:
        """[N] reads of every slot so far, by all ranks."""
        return self.world.all_reduce(self.usage.counts)

    def _evaluate(self, step: int) -> None:
        values: dict[str, Any] = {"tokens": self.tokens, "seconds": round(self.seconds, 3)}
        if self.heldout_text:
            loss, tokens = text_loss(self.model, self.heldout_text, self._share)
            lead = self.world.leads
            loss, tokens = self.world.sum(loss * lead, tokens * lead)
            values["text"] = summarize_loss(loss, int(tokens))
            self.progress.say(
                f"step {step}: perplexity of held-out text {values['text']['perplexity']:.2f}"
            )
        if self.data.probes:
            values |= self._recall(step)
        reshard(self.model)
        if len(values) > 2:
            self.metrics.write(step, values)

    def _recall(self, step: int) -> dict[str, Any]:
        last = step == self.config.train.steps
        settings, all_probes = self.config.train, self.data.probes
        picked = self.asked[settings.final_items if last else settings.eval_items]
        probes = [all_probes[index] for index in picked]
        self.usage.reset()
        own = recall_share(self.model, self.data.tokenizer, probes, self._share)
        asked = {
            index: result for part in self.world.all_gather(own) for index, result in part.items()
        }
        results = [asked[index] for index in range(len(probes))]
        values = summarize_recall(probes, results)
        if last:
            values["correct"] = [int(result.correct) for result in results]
            if len(picked) < len(all_probes):
                values["asked"] = picked
            if memory_layers_of(self.model):
                values["slot_usage"] = summarize_usage(self._reads())
        self.usage.reset()
        recall = values["recall"].get("question_heldout")
        if recall is not None:
            self.progress.say(f"step {step}: recall of held-out questions {recall:.3f}")
        return values

    def _checkpoint(self, step: int) -> None:
        counters = {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "losses": list(self.losses),
            "reads": self._reads(),
            "lines": self.metrics.lines,
        }
        self.metrics.sync()
        self.checkpoints.save(step, self.model, self.optimizer, counters, self.data.tokenizer)
