"""Commands that begin with a configuration, what each takes and what it does. Next: parse.py.

Modules are imported where they are used, so that no command loads what another one needs.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import (
    AvoidSubcommands,
    FlagConversionOff,
    FlagCreatePairsOff,
    Positional,
    Suppress,
    arg,
)

from memory_layers.common.checks import check_whole
from memory_layers.common.errors import UserError
from memory_layers.common.packages import needs, quiet_transformers
from memory_layers.common.reader import read_yaml
from memory_layers.common.text import json_shown, show, stdout_has_unicode
from memory_layers.configs import find_config
from memory_layers.train.config import RunConfig

Run = Annotated[RunConfig, arg(name=""), AvoidSubcommands, FlagConversionOff]


@dataclass(frozen=True, kw_only=True)
class OfConfig:
    """What the commands take that begin with a configuration: each field of its run is a flag."""

    config: Positional[Annotated[str, arg(metavar="CONFIG")]]
    """A YAML file, or the name of one that comes with the package, such as tiny or demo."""
    run: Run
    command: Suppress[str] = ""
    """As it was typed, for the report."""

    def folder(self, out: Path | None) -> Path:
        """Return where --out says that runs are written, or else runs/NAME."""
        if out is None:
            return Path("runs") / self.run.name
        try:
            # Not every library takes names of other encodings.
            str(out).encode("utf-8")
            found = next(place for place in (out, *out.absolute().parents) if place.exists())
        except (OSError, UnicodeEncodeError) as error:
            problem = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise UserError(f"--out {out}: {problem}. hint: another name") from error
        if not found.is_dir():
            problem = "File exists" if found == out else "Not a directory"
            raise UserError(f"--out {out}: {problem}: {found}. hint: name a folder")
        return out


@dataclass(frozen=True, kw_only=True)
class Train(OfConfig):
    """Train one model. Each field of the run is a flag.

    Example: memory-layers train tiny --optim.lr 1e-3 --memory.layers 1 2

    Example: torchrun --nproc-per-node 2 -m memory_layers train tiny
    """

    out: Path | None = None
    """Folder of the run. Default: runs/NAME. A run that was stopped there goes on, and so does a
    finished one that is given more --train.steps."""

    def __call__(self) -> int:
        needs("tensorboard")
        from memory_layers.train.loop import train

        out = self.folder(self.out)
        quiet_transformers()
        trained = train(self.run, out)
        if not trained.history:
            # One of several ranks: the first one has written and says so.
            return 0
        print(f"model: {out / 'model'}\nmetrics: {out / 'metrics.jsonl'}")
        final = trained.history[-1]
        if "recall" in final:
            shown = {"recall": final["recall"], "answer_nll": final["answer_nll"]}
            show(json_shown(shown))
        return 0


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

    def __call__(self) -> int:
        needs("tensorboard", "matplotlib", "jinja2", "scipy")
        from memory_layers.study.compare import compare
        from memory_layers.study.config import check_seeds, load_compare
        from memory_layers.study.report import render_table

        check_seeds(self.seeds, "--seeds")
        _check_counts(workers=self.workers)
        config = load_compare(find_config(self.config))
        config = replace(config.with_base(self.run), seeds=tuple(self.seeds))
        out = self.folder(self.out)
        quiet_transformers()
        if measures := config.measures():
            sys.stderr.write(f"matching {', '.join(measures)}: a minute or so\n")
        results = compare(config, out, workers=self.workers, command=self.command)
        return _print_results(results, render_table(results), out)


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

    def __call__(self) -> int:
        needs("tensorboard", "matplotlib", "jinja2", "scipy")
        from memory_layers.study.report import render_scale_table
        from memory_layers.study.scale import load_scale, scale

        _check_counts(workers=self.workers, threads=self.threads)
        config = load_scale(find_config(self.config)).changed(self.run, self.slots, self.seeds)
        out = self.folder(self.out)
        quiet_transformers()
        results = scale(
            config, out, workers=self.workers, threads=self.threads, command=self.command
        )
        return _print_results(results, render_scale_table(results), out)


def _print_results(results: Mapping[str, Any], table: Any, out: Path) -> int:  # noqa: ANN401
    from rich.console import Console

    Console().print(table)
    print(f"results: {out / 'results.json'}\nreport: {out / 'report.html'}")
    return 1 if any(run["status"] != "ok" for run in results["runs"]) else 0


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

    def __call__(self) -> str:
        from memory_layers.plan.devices import check_device

        check_device(self.device)
        # After that: it loads torch, which takes seconds.
        from memory_layers.plan.report import plan_text

        return plan_text(self.run, self.ranks, self.device, as_json=self.json)


@dataclass(frozen=True, kw_only=True)
class Show(OfConfig):
    """Print the full configuration and the parameter counts.

    Example: memory-layers show demo --model.layers 6
    """

    slots: tuple[int, ...] = ()
    """Memory sizes of a sweep. Default: those of the file."""

    def __call__(self) -> int:
        import yaml

        path = find_config(self.config)
        values = read_yaml(path)
        if self.slots and "bases" not in values:
            raise UserError("--slots has no effect: the file lists no `bases:`. hint: leave it out")
        if "variants" in values:
            from memory_layers.study.config import load_compare

            runs = load_compare(path).with_base(self.run).variants()
        elif "bases" in values:
            from memory_layers.study.scale import load_scale

            sweep = load_scale(path)
            cells = sweep.changed(self.run, self.slots or sweep.slots, sweep.seeds).cells()
            runs = {name: run for name, (_, _, run) in cells.items()}
        else:
            runs = {self.run.name: self.run}
        shown = {name: asdict(_resolved(run)) for name, run in runs.items()}
        # Tuples become lists.
        shown = json.loads(json.dumps(shown))
        print(yaml.safe_dump(shown, sort_keys=False, allow_unicode=stdout_has_unicode()))
        _print_parameters(runs)
        return 0


def _check_counts(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None:
            check_whole(f"--{name}", value, 1, 4096)


def _resolved(run: RunConfig) -> RunConfig:
    """Return a run in which the sizes that depend on the model are filled in."""
    if run.memory is None:
        return run
    sizes = run.memory.resolved(run.model.to_preset().hidden_size)
    return replace(run, memory=replace(run.memory, **asdict(sizes)))


def _print_parameters(runs: dict[str, RunConfig]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from memory_layers.data.tokenizer import load_tokenizer, vocabulary_size
    from memory_layers.study.flops import shape_of
    from memory_layers.study.measure import count_parameters

    table = Table("variant", "parameters", "of these in value tables", "used by a token")
    for name, run in runs.items():
        vocab_size = run.data.vocab_size
        if run.data.tokenizer is not None:
            vocab_size = vocabulary_size(load_tokenizer(Path(run.data.tokenizer)))
        counts = count_parameters(shape_of(run, vocab_size))
        columns = ("params_total", "params_memory", "params_active")
        # Text, so that square brackets in a name are not taken for rich's markup.
        table.add_row(Text(name), *(f"{counts[column]:,}" for column in columns))
    Console().print(table)
