"""RunConfig: everything a training run depends on, as nested dataclasses read from YAML."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal

from memory_layers.common.checks import (
    MOST_STEPS,
    MOST_WIDE,
    MOST_WORDS,
    check_folder_name,
    check_seed,
    check_whole,
)
from memory_layers.common.errors import UserError
from memory_layers.common.reader import from_dict, read_yaml
from memory_layers.config import MemoryConfig, MoeConfig
from memory_layers.config.presets import PRESETS, Preset
from memory_layers.data.config import DataConfig
from memory_layers.parallel.config import Layout, ParallelConfig

Schedule = Literal["constant", "cosine", "linear"]
_PRETRAINED = (
    "a run starts from random weights, a pretrained model learns by memory-layers learn MODEL DATA"
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The base model: a preset, and what differs from it.

    Attributes:
        preset: Name of a preset.
        hidden_size: D, instead of the preset's.
        layers: Blocks, instead of the preset's.
        heads: Attention heads, instead of the preset's.
        mlp_size: Hidden width of the feed-forward blocks, instead of the preset's.
        init_std: Standard deviation of the initial weights, instead of the preset's.
    """

    # Not fields, and why: a hint for those who look for them.
    removed: ClassVar[Mapping[str, str]] = MappingProxyType({"pretrained": _PRETRAINED})

    preset: str = "tiny"
    hidden_size: int | None = None
    layers: int | None = None
    heads: int | None = None
    mlp_size: int | None = None
    init_std: float | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown preset, sizes below 1 and widths that heads cannot share."""
        if self.preset not in PRESETS:
            raise ValueError(
                f"model.preset must be one of {list(PRESETS)}, got {self.preset!r}. "
                f"hint: {_PRETRAINED}"
            )
        sizes = {
            "hidden_size": MOST_WIDE,
            "layers": 1000,
            "heads": MOST_WIDE,
            "mlp_size": MOST_WORDS,
        }
        for name, most in sizes.items():
            if getattr(self, name) is not None:
                check_whole(f"model.{name}", getattr(self, name), 1, most)
        # transformers takes no larger one.
        if self.init_std is not None and not 0 < self.init_std <= 1:
            raise ValueError(
                f"model.init_std must be a finite number above 0, at most 1, got {self.init_std}"
            )
        shape = self.to_preset()
        if shape.hidden_size % (2 * shape.heads):
            raise ValueError(
                f"model.hidden_size must be divisible by 2 * heads = {2 * shape.heads}, "
                f"got {shape.hidden_size}"
            )

    def to_preset(self) -> Preset:
        """Return the preset with these changes."""
        changes = {k: v for k, v in asdict(self).items() if k != "preset" and v is not None}
        return replace(PRESETS[self.preset], **changes)


# The range of float32.
_SMALLEST, _LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127
# A touch is worth less where a row is not moved ahead.
VALUE_LR_RATIOS = {"ahead": 2, "full": 5, "row": 5}


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """MemoryAdamW, its schedules and clipping.

    Attributes:
        lr: Peak learning rate of the dense parameters.
        value_lr: Peak learning rate of the value table. None: twice `lr`, between the best of the
            two settings of experiments/08-touch, and 5 times `lr` where `value_state` is not
            "ahead", the best of experiments/02-recipe.
        beta1: Decay rate of the first moment.
        beta2: Decay rate of the second moment.
        eps: Added to the root.
        weight_decay: On dense matrices.
        value_weight_decay: On the value table.
        value_state: How rows of the table are stepped, and what is kept of each: "ahead", "full" or
            "row", as in MemoryAdamW.
        bf16_rows: "stochastic" rounding of a bfloat16 table, or an fp32 "master" copy.
        schedule: Of `lr`, after warm-up.
        value_schedule: Of `value_lr`, after warm-up.
        warmup_steps: Steps over which both rates rise from 0.
        end_ratio: Rate at the last step, as a share of the peak. No effect on "constant".
        clip_norm: Largest gradient norm of the dense parameters. None: no clipping.
        value_clip_norm: Largest gradient norm of the value table. None: no clipping.
        value_dtype: Storage type of the value table.
        train_keys: False leaves query projections and sub-keys at their initial values: a control,
            in which no slot is learned to be found.
    """

    lr: float = 3e-3
    value_lr: float | None = None
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    value_weight_decay: float = 0.0
    value_state: Literal["ahead", "full", "row"] = "ahead"
    bf16_rows: Literal["stochastic", "master"] = "stochastic"
    schedule: Schedule = "cosine"
    value_schedule: Schedule = "constant"
    warmup_steps: int = 100
    end_ratio: float = 0.05
    clip_norm: float | None = 1.0
    value_clip_norm: float | None = None
    value_dtype: Literal["float32", "bfloat16"] = "float32"
    train_keys: bool = True

    @property
    def peak_value_lr(self) -> float:
        """The peak learning rate of the value table, also where none is given."""
        if self.value_lr is not None:
            return self.value_lr
        return VALUE_LR_RATIOS[self.value_state] * self.lr

    def rate(self, schedule: Schedule, step: int, steps: int) -> float:
        """Return the learning rate of a step, as a share of its peak.

        Args:
            schedule: Shape of the fall after the warm-up.
            step: Counted from 0.
            steps: Of the whole run.
        """
        warmup = self.warmup_steps
        if step < warmup:
            return (step + 1) / warmup
        if schedule == "constant":
            return 1.0
        done = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
        fall = done if schedule == "linear" else (1 - math.cos(math.pi * done)) / 2
        return 1.0 + (self.end_ratio - 1.0) * fall

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        for name in ("lr", "value_lr", "eps", "clip_norm", "value_clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"optim.{name} must be a finite number above 0, got {value}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optim.{name} must lie in [0, 1), got {getattr(self, name)}")
        for name in ("weight_decay", "value_weight_decay", "end_ratio"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"optim.{name} must be >= 0, got {getattr(self, name)}")
        check_whole("optim.warmup_steps", self.warmup_steps, 0, MOST_STEPS)
        for name in ("lr", "value_lr", "eps", "clip_norm", "value_clip_norm", "weight_decay",
                     "value_weight_decay", "end_ratio"):  # fmt: skip
            value = getattr(self, name)
            if value and not _SMALLEST <= value <= _LARGEST:
                raise ValueError(
                    f"optim.{name} must lie between {_SMALLEST:.2g} and {_LARGEST:.2g}, which "
                    f"numbers of 32 bits reach, got {value}"
                )
        rises = 1.0 if self.value_schedule == "constant" else max(1.0, self.end_ratio)
        decay = rises * self.peak_value_lr * self.value_weight_decay
        if decay >= 1:
            raise ValueError(
                f"optim.value_lr * optim.value_weight_decay must be below 1 in every step, got "
                f"{rises * self.peak_value_lr:g} * {self.value_weight_decay:g} = {decay:g}. "
                "hint: lower optim.value_weight_decay"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length, batches, evaluation and checkpoints of a run.

    Attributes:
        steps: Optimizer steps.
        batch_size: Rows of a micro-batch, of all ranks together.
        accumulate: Micro-batches of a step.
        seq_len: L, tokens in a row.
        precision: "fp32", or "bf16" for autocast of the dense part.
        gradient_checkpointing: Compute each block again in the backward pass, to hold less.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        seed: Decides initial weights and the order of the data.
        log_every: Steps between lines of metrics.
        eval_every: Steps between evaluations. 0: only at the end.
        eval_items: Recall items of each kind asked during the run.
        final_items: Recall items of each kind asked by the last evaluation. None: all.
        checkpoint_every: Steps between checkpoints. 0: only when the run ends or is interrupted.
        keep_checkpoints: Checkpoints to keep, the newest ones.
    """

    steps: int = 1000
    batch_size: int = 16
    accumulate: int = 1
    seq_len: int = 128
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    log_every: int = 10
    eval_every: int = 200
    eval_items: int = 500
    final_items: int | None = None
    checkpoint_every: int = 500
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        least = {
            "steps": 1, "batch_size": 1, "accumulate": 1, "seq_len": 8, "log_every": 1,
            "eval_every": 0, "eval_items": 1, "checkpoint_every": 0, "keep_checkpoints": 1,
        }  # fmt: skip
        most = {"batch_size": MOST_WORDS, "accumulate": 2**16, "seq_len": MOST_WORDS}
        for name, low in least.items():
            check_whole(f"train.{name}", getattr(self, name), low, most.get(name, MOST_STEPS))
        if self.final_items is not None and self.final_items < 1:
            raise ValueError(
                f"train.final_items must be >= 1, got {self.final_items}. hint: null asks all"
            )
        check_seed("train.seed", self.seed)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run.

    Attributes:
        name: Names the output folder, runs/NAME.
        model: The base model.
        memory: Memory layers. None: none.
        moe: Mixtures of experts, not together with memory. With neither the model is dense.
        data: Training text and questions.
        optim: Optimizer.
        train: Length, batches, evaluation, checkpoints.
        parallel: How the processes divide the work, when torchrun starts several.
    """

    name: str
    model: ModelConfig = field(default_factory=ModelConfig)
    memory: MemoryConfig | None = None
    moe: MoeConfig | None = None
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        """Refuse a name that is none, and combinations that no part can see alone."""
        check_folder_name("name", self.name)
        shape = self.model.to_preset()
        if self.train.seq_len > shape.max_length:
            raise ValueError(
                f"train.seq_len must be at most {shape.max_length}, the longest sequence of preset "
                f"{self.model.preset!r}, got {self.train.seq_len}"
            )
        if self.memory is not None and self.moe is not None:
            raise ValueError("memory and moe cannot be set together. hint: remove one of them")
        if self.memory is not None and not self.memory.layers:
            raise ValueError(
                "memory.layers must name at least one block. "
                f"hint: layers: [{shape.layers // 2}] in the block of memory"
            )
        for name, section in (("memory", self.memory), ("moe", self.moe)):
            layers = [] if section is None else list(section.layers or ())
            if any(layer >= shape.layers for layer in layers):
                raise ValueError(
                    f"{name}.layers must be below model.layers = {shape.layers}, got {layers}"
                )
        if self.moe is not None and self.parallel.tensor > 1:
            raise ValueError(
                f"parallel.tensor must be 1 with moe, whose experts a tensor group cannot share, "
                f"got {self.parallel.tensor}. hint: use parallel.shard"
            )
        if self.memory is not None:
            self.memory.resolved(shape.hidden_size)
            optim = self.optim
            if optim.value_state == "ahead" and not optim.beta1**2 < optim.beta2:
                raise ValueError(
                    f"optim.beta2 must be above the square of optim.beta1, {optim.beta1**2:g}, "
                    f"got {optim.beta2}: a row that is left alone would move without end. "
                    "hint: a higher optim.beta2, or optim.value_state: full"
                )


def check_shares(train: TrainConfig, layout: Layout) -> None:
    """Refuse a batch that the ranks cannot share evenly.

    Raises:
        UserError: A size is no multiple of the ranks that share it.
    """
    if train.batch_size % layout.readers:
        raise UserError(
            f"train.batch_size must be a multiple of replicate * shard = {layout.readers}, the "
            f"ranks that share a batch, got {train.batch_size}. "
            f"hint: {-(-train.batch_size // layout.readers) * layout.readers}"
        )
    tokens = train.batch_size // layout.readers * train.seq_len
    if tokens % layout.tensor:
        raise UserError(
            f"train.batch_size / {layout.readers} * train.seq_len must be a multiple of "
            f"parallel.tensor = {layout.tensor}, got {tokens}. hint: an even train.seq_len"
        )


def load_run(path: Path) -> RunConfig:
    """Read a run configuration.

    Raises:
        UserError: As read_yaml and from_dict.
    """
    return from_dict(RunConfig, read_yaml(path), str(path))
