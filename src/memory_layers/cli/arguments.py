"""What the commands of `memory-layers` take. Next: cli.py, which runs them.

Those of `eval` and `serve` stand beside what they call: evaluate/command.py, integrations/serve.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import (
    AvoidSubcommands,
    FlagConversionOff,
    FlagCreatePairsOff,
    Positional,
    Suppress,
    arg,
)

from memory_layers.train.config import RunConfig

# A flag that is given as --name True or --name False.
Switch = FlagConversionOff[bool]
Run = Annotated[RunConfig, arg(name=""), AvoidSubcommands, FlagConversionOff]


@dataclass(frozen=True, kw_only=True)
class OfConfig:
    """What the commands take that begin with a configuration: each field of its run is a flag."""

    config: Positional[str]
    """A YAML file, or the name of one that comes with the package, such as tiny or demo."""
    run: Run
    command: Suppress[str] = ""
    """As it was typed, for the report."""


@dataclass(frozen=True, kw_only=True)
class Train(OfConfig):
    """Train one model. Each field of the run is a flag.

    Example: memory-layers train tiny --optim.lr 1e-3 --memory.layers 1 2

    Example: torchrun --nproc-per-node 2 -m memory_layers train tiny
    """

    out: Path | None = None
    """Folder of the run. Default: runs/NAME. A run that was stopped there goes on, and so does a
    finished one that is given more --train.steps."""


@dataclass(frozen=True, kw_only=True)
class Compare(OfConfig):
    """Train variants on the same tokens and write a report. Each field of the base is a flag.

    Example: memory-layers compare demo --data.facts my_facts --train.steps 500
    """

    seeds: tuple[int, ...]
    """Each variant is trained once with each seed."""
    out: Path | None = None
    """Folder of the comparison. Default: runs/NAME."""
    workers: int | None = None
    """Runs at a time. Default: one a core."""


@dataclass(frozen=True, kw_only=True)
class Scale(OfConfig):
    """Train base models at many memory sizes and fit what memory is worth.

    Each field of the base run is a flag.

    Example: memory-layers scale scale --slots 0 4096 65536 --seeds 0 1 2
    """

    slots: tuple[int, ...]
    """Memory sizes, square numbers. 0 is the dense model."""
    seeds: tuple[int, ...]
    """Each base model at each memory size is trained once with each."""
    out: Path | None = None
    """Folder of the sweep. Default: runs/NAME."""
    workers: int | None = None
    """Runs at a time. Default: one a core, or one for each --threads cores."""
    threads: int = 1
    """Threads of a run. Another number can change the last digits of its results."""


@dataclass(frozen=True, kw_only=True)
class Plan(OfConfig):
    """Say whether a run fits, on how many devices, and how fast it would be.

    From its sizes alone: parameters, bytes a rank, operations, communication and the predicted
    time of a step.

    Example: memory-layers plan 1.3b_memory_64m --ranks 8 --device h200

    Example: memory-layers plan 8b_memory_16m --ranks 64 --parallel.tensor 8 --json
    """

    ranks: int = 1
    """Processes, one a device."""
    device: str = "h100"
    """What they run on: h100, h200, b200, a100, mi300x by the maker's data sheet, or cpu for this
    one, measured for a second."""
    json: FlagCreatePairsOff[bool] = False
    """Print nested values instead of tables."""


@dataclass(frozen=True, kw_only=True)
class Show(OfConfig):
    """Print the full configuration and the parameter counts.

    Example: memory-layers show demo --model.hidden-size 96
    """

    slots: tuple[int, ...] = ()
    """Memory sizes of a sweep. Default: those of the file."""


@dataclass(frozen=True)
class Report:
    """Write report.html and plots/ from the results of a comparison or a sweep.

    Example: memory-layers report runs/demo/results.json --out my_report
    """

    results: Positional[Path]
    """results.json, as `compare` or `scale` wrote it."""
    out: Path | None = None
    """Folder to write to. Default: the folder of RESULTS."""


@dataclass(frozen=True)
class Export:
    """Write the model of a checkpoint as a Hugging Face folder, a part of a table at a time.

    Example: memory-layers export runs/tiny/checkpoints/step-00000300 my_model
    """

    checkpoint: Positional[Path]
    """A checkpoint, runs/NAME/checkpoints/step-NNNNNNNN, or a run, for its newest one."""
    out: Positional[Path]
    """The folder to write. An older model folder there is replaced."""


@dataclass(frozen=True)
class Generate:
    """Continue a text.

    Example: memory-layers generate runs/tiny/model "The IATA code of Ilulissat Airport is"
    """

    model: Positional[Path]
    """Folder of a trained model."""
    prompt: Positional[str]
    """Text to continue."""
    max_tokens: int = 32
    """Most tokens to add."""
    temperature: float = 0.0
    """0 takes the most likely token. Above 0: sample."""
    seed: int = 0
    """Seed of the sampling."""
    trust_remote_code: Switch = False
    """Run code that lies in the model folder: for models whose memory has a `target_module`."""


@dataclass(frozen=True)
class Init:
    """Write a configuration with a comment on each common field, to start from.

    Example: memory-layers init my_run
    """

    name: Positional[str]
    """Of the run. NAME.yaml is written."""


@dataclass(frozen=True)
class Bench:
    """Measure speed and memory, in a checkout of the project: python -m benchmarks.

    Example: memory-layers bench read --sizes tokens=512 slots=262144
    """

    arguments: Positional[tuple[str, ...]] = ()
    """What to measure: see bench --help."""
