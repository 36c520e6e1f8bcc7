"""What the commands of `memory-layers` are called and take. Next: cli.py, which runs them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from memory_layers.train.config import RunConfig

USAGE = """\
usage: memory-layers COMMAND ...

commands:
  train CONFIG.yaml        train one model
  compare CONFIG.yaml      train variants on the same tokens and write a report
  scale CONFIG.yaml        train base models at many memory sizes and fit what memory is worth
  plan CONFIG.yaml         whether a run fits, on how many devices, and how fast: see plan --help
  report RESULTS.json      write the report of results anew
  export RUN DIR           write the model of a checkpoint as a Hugging Face folder
  eval MODEL_DIR           ask a model facts, or run tasks of lm-evaluation-harness
  generate MODEL_DIR TEXT  continue a text
  serve MODEL_DIR          answer the OpenAI protocol
  show CONFIG.yaml         print the full configuration and the parameter counts
  bench WHAT               measure speed and memory, see bench --help

examples:
  memory-layers compare demo
  memory-layers compare demo --data.facts my_facts --out runs/mine
  memory-layers scale scale --workers 2
  memory-layers report experiments/01-headline/results.json --out headline_report
  memory-layers train tiny --train.steps 200 --memory.sub-keys 256
  torchrun --nproc-per-node 2 -m memory_layers train tiny
  memory-layers plan 8b_memory_16m --ranks 64 --device h100
  memory-layers export runs/tiny/checkpoints/step-00000300 my_model
  memory-layers eval runs/tiny/model --facts builtin
  memory-layers eval runs/tiny/model --tasks nq_open piqa --data-dir datasets
  memory-layers generate runs/tiny/model "The IATA code of Ilulissat Airport is"
  memory-layers serve runs/tiny/model --port 8000
  memory-layers COMMAND --help
"""


@dataclass(frozen=True)
class TrainArgs:
    """Fields of the run can be set as flags.

    Example: memory-layers train tiny --optim.lr 1e-3 --memory.layers 1 2
    """

    run: Annotated[RunConfig, tyro.conf.arg(name="")]
    out: Path | None = None
    """Folder of the run. Default: runs/NAME."""


@dataclass(frozen=True)
class CompareArgs:
    """Fields of the base run can be set as flags.

    Example: memory-layers compare demo --data.facts my_facts --train.steps 500
    """

    run: Annotated[RunConfig, tyro.conf.arg(name="")]
    seeds: tuple[int, ...]
    """Each variant is trained once with each seed."""
    out: Path | None = None
    """Folder of the comparison. Default: runs/NAME."""
    workers: int | None = None
    """Runs at a time. Default: one a core."""


@dataclass(frozen=True)
class ScaleArgs:
    """Fields of the base run can be set as flags.

    Example: memory-layers scale scale --slots 0 4096 65536 --seeds 0 1 2
    """

    run: Annotated[RunConfig, tyro.conf.arg(name="")]
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


@dataclass(frozen=True)
class ReportArgs:
    """Write report.html and plots/ from the results of a comparison or a sweep.

    Example: memory-layers report experiments/01-headline/results.json --out headline_report
    """

    results: tyro.conf.Positional[Path]
    """results.json, as `compare` or `scale` wrote it."""
    out: Path | None = None
    """Folder to write to. Default: the folder of RESULTS."""


@dataclass(frozen=True)
class EvalArgs:
    """Ask a model facts, or run tasks of lm-evaluation-harness.

    With --facts alone: the share of answers given exactly under greedy decoding, their likelihood,
    and F1 and choices on some of them. With --tasks: what the harness measures.

    Example: memory-layers eval runs/tiny/model --facts my_facts

    Example: memory-layers eval runs/tiny/model --tasks facts --facts my_facts

    Example: memory-layers eval runs/tiny/model --tasks paper --run-code True --out results.json

    Example: memory-layers eval runs/tiny/model --tasks nq_open piqa --data-dir datasets
    """

    model: tyro.conf.Positional[Path]
    """Folder of a model with its tokenizer."""
    facts: str | None = None
    """Folder with facts.jsonl and templates.yaml, or "builtin"."""
    tasks: tuple[str, ...] = ()
    """Tasks of the harness. `paper`: those of Memory Layers at Scale. `facts`: those of --facts."""
    data_dir: Path | None = None
    """Where the datasets of tasks are, as DIR/ORGANISATION/NAME. Default: fetched from the hub."""
    limit: int | None = None
    """Use the first so many documents of each task only."""
    num_fewshot: int | None = None
    """Examples shown before a question of a task. Default: as the task has it."""
    batch_size: int = 8
    """Texts of a task at a time."""
    run_code: bool = False
    """Allow tasks that run programs which the model writes, such as those of `paper`."""
    answered: int = 200
    """Without --tasks: questions of each kind for F1 and choices. 0: recall alone, much faster."""
    device: str = "cpu"
    """cpu, cuda:0 and so on."""
    out: Path | None = None
    """File for the results, as JSON."""
    trust_remote_code: bool = False
    """Run code that lies in the model folder: for models whose memory has a `target_module`."""
    shown_fraction: float = 0.5
    """As in training: decides which questions count as shown."""
    seed: int = 0
    """As data.seed in training: decides which questions count as shown."""
    relations: tuple[str, ...] = ()
    """Relations of the built-in facts. Default: all."""
    max_subjects: int | None = None
    """As data.max_subjects in training, for the built-in facts."""
    templates: str | None = None
    """As data.templates in training, for the built-in facts."""
    exposures: tuple[int, ...] = ()
    """As data.exposures in training: decides which statements are asked for."""


@dataclass(frozen=True)
class ExportArgs:
    """Write the model of a checkpoint as a Hugging Face folder, a part of a table at a time.

    Example: memory-layers export runs/tiny my_model
    """

    checkpoint: tyro.conf.Positional[Path]
    """A checkpoint, runs/NAME/checkpoints/step-NNNNNNNN, or a run, for its newest one."""
    out: tyro.conf.Positional[Path]
    """The folder to write. An older model folder there is replaced."""


@dataclass(frozen=True)
class GenerateArgs:
    """Continue a text.

    Example: memory-layers generate runs/tiny/model "The capital of France is" --max-tokens 8
    """

    model: tyro.conf.Positional[Path]
    """Folder of a trained model."""
    prompt: tyro.conf.Positional[str]
    """Text to continue."""
    max_tokens: int = 32
    """Most tokens to add."""
    temperature: float = 0.0
    """0 takes the most likely token. Above 0: sample."""
    seed: int = 0
    """Seed of the sampling."""
    trust_remote_code: bool = False
    """Run code that lies in the model folder: for models whose memory has a `target_module`."""


@dataclass(frozen=True)
class ServeArgs:
    """Answer the OpenAI protocol, /v1/completions and /v1/chat/completions, until Ctrl-C.

    Example: memory-layers serve runs/tiny/model --port 8000
    """

    model: tyro.conf.Positional[Path]
    """Folder of a model with its tokenizer. Chat needs one with a chat template."""
    host: str = "localhost"
    """To listen at."""
    port: int = 8000
    """To listen at."""
    device: str = "auto"
    """auto, cpu, cuda:0 and so on."""
    continuous_batching: bool = False
    """Let requests join a batch that is being generated."""
    trust_remote_code: bool = False
    """Run code that lies in the model folder: for models whose memory has a `target_module`."""
