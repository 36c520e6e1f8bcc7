"""RunConfig: everything a training run depends on, as nested dataclasses read from YAML."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from memory_layers.common.errors import UserError
from memory_layers.common.files import write_json
from memory_layers.common.reader import from_dict, read_yaml
from memory_layers.common.text_files import read_json
from memory_layers.config import MemoryConfig, MoeConfig
from memory_layers.config.presets import PRESETS, Preset
from memory_layers.data.config import DataConfig
from memory_layers.parallel.config import Layout, ParallelConfig

Schedule = Literal["constant", "cosine", "linear"]
_PRETRAINED = (
    "a run starts from random weights, a pretrained model learns by memory-layers learn MODEL DATA"
)
# Settings of how a run is computed, not of what: they may change when it is resumed.
_FREE = ("parallel",)


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
        for name in ("hidden_size", "layers", "heads", "mlp_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"model.{name} must be >= 1, got {value}")
        if self.init_std is not None and not 0 < self.init_std < float("inf"):
            raise ValueError(f"model.init_std must be a finite number above 0, got {self.init_std}")
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


# Each row is touched in few steps, so it has to move further in each.
VALUE_LR_RATIO = 5


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """MemoryAdamW, its schedules and clipping.

    Attributes:
        lr: Peak learning rate of the dense parameters.
        value_lr: Peak learning rate of the value table. None: 5 times `lr`, the best of the ratios
            tried in experiments/02-recipe (about 2 to 15).
        beta1: Decay rate of the first moment.
        beta2: Decay rate of the second moment.
        eps: Added to the root.
        weight_decay: On dense matrices.
        value_weight_decay: On the value table.
        value_state: "full" moments of the table, or one number a "row".
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
    value_state: Literal["full", "row"] = "full"
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
        return VALUE_LR_RATIO * self.lr if self.value_lr is None else self.value_lr

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
        for name in ("weight_decay", "value_weight_decay", "warmup_steps", "end_ratio"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"optim.{name} must be >= 0, got {getattr(self, name)}")


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
        names = ("steps", "batch_size", "accumulate", "log_every", "eval_items", "keep_checkpoints")
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be >= 1, got {getattr(self, name)}")
        if self.final_items is not None and self.final_items < 1:
            raise ValueError(
                f"train.final_items must be >= 1, got {self.final_items}. hint: null asks all"
            )
        for name in ("eval_every", "checkpoint_every", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name} must be >= 0, got {getattr(self, name)}")
        if self.seq_len < 8:
            raise ValueError(f"train.seq_len must be >= 8, got {self.seq_len}")


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
        """Refuse combinations that no part can see alone."""
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


def check_folder(out: Path, config: RunConfig, *, longer: bool = False) -> int:
    """Refuse a folder that holds another run, and change nothing.

    Args:
        out: Folder of the run, which need not be there yet.
        config: The run.
        longer: Accept a run that differs in nothing but fewer train.steps.

    Returns:
        The steps that the run in the folder was to take, those of `config` if there is none.

    Raises:
        UserError: Another configuration has run there. The differing fields are named.
    """
    path = out / "config.json"
    if not path.is_file():
        return config.train.steps
    old, new = _upgraded(read_json(path)), _values(config)
    planned = old["train"]["steps"]
    if longer and planned < config.train.steps:
        new["train"]["steps"] = planned
    if differing := _differences(old, new):
        raise UserError(
            f"{out} holds a run with another configuration: {'; '.join(differing)}. "
            "hint: choose another --out, or delete the folder"
        )
    return planned


def claim_folder(out: Path, config: RunConfig, *, longer: bool = False) -> None:
    """Make the folder of a run, or check that the run in it is this one.

    In a process group, rank 0 alone calls this.

    Args:
        out: Folder of the run.
        config: The run.
        longer: As for `check_folder`. The folder then holds the longer run.

    Raises:
        UserError: Another configuration has run there. The differing fields are named.
    """
    planned = check_folder(out, config, longer=longer)
    path = out / "config.json"
    if not path.is_file() or planned < config.train.steps:
        write_json(path, _values(config))


def _upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a run as this version has them, from what an earlier one has saved."""
    memory = dict(values.get("memory") or {})
    before = {name: memory.pop(name) for name in MemoryConfig.removed if name in memory}
    dtype = before.get("value_dtype", "model")
    optim = {
        "value_dtype": "float32" if dtype == "model" else dtype,
        "train_keys": before.get("train_keys", True),
        **values["optim"],
    }
    return {**values, "memory": memory or None, "optim": optim}


def _values(config: RunConfig) -> dict[str, Any]:
    values = json.loads(json.dumps(asdict(config)))
    # What is left out of a config may mean something else in another version of this package.
    values["optim"]["value_lr"] = config.optim.peak_value_lr
    return values


def _differences(old: Any, new: Any, where: str = "") -> list[str]:  # noqa: ANN401
    if old == new or where in _FREE:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*new, *(name for name in old if name not in new)]
        return [
            line
            for name in names
            for line in _differences(old.get(name), new.get(name), f"{where}.{name}".lstrip("."))
        ]
    return [f"{where} was {old!r}, is {new!r}"]
