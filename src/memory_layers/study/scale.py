"""scale(): train every base at every memory size with every seed, and fit what comes out.

Runs are started as those of a comparison are. Each is a process of its own with a fixed number of
threads, so that neither the order nor the number of workers changes a result. Next: fits.py.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from memory_layers.common.errors import UserError
from memory_layers.common.files import write_json
from memory_layers.common.locks import alone_in
from memory_layers.common.reader import from_dict, read_yaml
from memory_layers.study import config as study
from memory_layers.study.facts_asked import shared_exposure
from memory_layers.study.fields import merge_fields
from memory_layers.study.fits import fit_sweep
from memory_layers.study.rates import Sweep, check_sweep, take_sweep
from memory_layers.study.report import tell_guessers, write_scale_report
from memory_layers.study.runs import Job, has_begun, prepare_runs, run_jobs, workers_for
from memory_layers.study.tune import sweep_rates
from memory_layers.train.claim import read_object
from memory_layers.train.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """A sweep over base models and memory sizes.

    Attributes:
        base: What all runs share. Its memory is that of every size but for `sub_keys`.
        bases: For each base model, by name, the fields in which it differs, nested.
        slots: Memory sizes, square numbers. 0: the dense model.
        own_slots: Memory sizes of bases that have others, by name.
        seeds: Each base at each size is trained once with each.
        sweep: Learning rates of which each base at each size is trained with the best. None: those
            of the file.
    """

    base: RunConfig
    bases: Mapping[str, Mapping[str, Any]]
    slots: tuple[int, ...]
    own_slots: Mapping[str, tuple[int, ...]]
    seeds: tuple[int, ...]
    sweep: Sweep | None = None

    def cells(self) -> dict[str, tuple[str, int, RunConfig]]:
        """Return base, slots and configuration, with the first seed, of each cell of the grid.

        Raises:
            UserError: A base names an unknown field, its fields do not fit together, or bases
                read different numbers of tokens.
        """
        cells = {}
        for name, changes in self.bases.items():
            values = merge_fields(asdict(self.base), changes)
            for slots in self.own_slots.get(name, self.slots):
                title = f"{name}-slots{slots}"
                where = f"bases.{name} with slots {slots}"
                if slots and not isinstance(values["memory"], Mapping):
                    raise UserError(f"{where}: needs `memory:`. hint: memory: {{layers: [1]}}")
                memory = {**values["memory"], "sub_keys": math.isqrt(slots)} if slots else None
                changed = {**values, "memory": memory, "name": title}
                cells[title] = (name, slots, from_dict(RunConfig, changed, where))
        study.check_tokens("bases", {name: run for name, _, run in cells.values()})
        return cells

    def runs(self) -> dict[str, RunConfig]:
        """Return the configuration of each cell, with the first seed."""
        return {cell: run for cell, (_, _, run) in self.cells().items()}

    def jobs(self, runs: Mapping[str, RunConfig] | None = None) -> dict[str, Job]:
        """Return each run by the name of its folder: cell, seed and configuration.

        Args:
            runs: Configurations to use, by cell. None: as they stand.
        """
        return {
            f"{cell}-seed{seed}": (cell, seed, study.with_seed(run, seed))
            for cell, run in (self.runs() if runs is None else runs).items()
            for seed in self.seeds
        }

    def check_sweep(self) -> None:
        """Refuse a sweep of rates that would not find the best of each cell.

        Raises:
            UserError: As rates.check_sweep.
        """
        check_sweep(self.sweep, self.runs(), self.bases, self.seeds, "bases")

    def longest_first(self) -> list[str]:
        """Order runs so that a sweep that is stopped has whole seeds, and no worker ends far last.

        Returns:
            Names of the jobs.
        """
        cells, bases = self.cells(), list(self.bases)
        # Of equal sizes the base that the file lists last is taken for the largest.
        longest = sorted(cells, key=lambda cell: (-cells[cell][1], -bases.index(cells[cell][0])))
        return [f"{cell}-seed{seed}" for seed in self.seeds for cell in longest]

    def changed(
        self, base: RunConfig, slots: tuple[int, ...], seeds: tuple[int, ...]
    ) -> "ScaleConfig":
        """Return this sweep with what the flags of the command line say.

        Raises:
            UserError: A field was changed that every run takes from the grid or from its base.
        """
        study.check_changes(
            self.base,
            base,
            ("base", self.bases),
            {
                "train.seed": "--seeds",
                "memory.sub_keys": "--slots",
                **study.flags_swept(self.sweep),
            },
        )
        check_slots(slots, "--slots")
        study.check_seeds(seeds, "--seeds")
        return replace(self, base=base, slots=tuple(slots), seeds=tuple(seeds))


def load_scale(path: Path) -> ScaleConfig:
    """Read a sweep: the fields of a run, and `bases:`, `slots:` and `seeds:`.

    Raises:
        UserError: The file cannot be used. The field at fault is named.
    """
    values = read_yaml(path)
    if "variants" in values:
        raise UserError(f"{path} lists variants. hint: memory-layers compare {path}")
    if "match" in values:
        raise UserError(
            f"{path}: match has no effect: all runs of a sweep read the same tokens, and what they "
            "cost is what it is about. hint: leave it out, or list `variants:` for compare"
        )
    hint = "bases: {small: {}, large: {model: {hidden_size: 128}}}"
    instead = {"train.seed": "seeds:", "memory.sub_keys": "slots:"}
    bases, seeds = study.take_parts(values, path, "bases", hint, instead)
    slots = values.pop("slots", None)
    sweep = take_sweep(values, path)
    for name, changes in bases.items():
        if not isinstance(changes, dict | None):
            raise UserError(f"{path}: bases.{name} must be a mapping, got {changes!r}")
        bases[name] = changes or {}
        if "data" in bases[name]:
            raise UserError(f"{path}: bases.{name}.data: all runs of a sweep learn the same data")
    own_slots = {name: part.pop("slots") for name, part in bases.items() if "slots" in part}
    for name, sizes in own_slots.items():
        check_slots(sizes, f"{path}: bases.{name}.slots")
    for where, part in {"": values, **{f"bases.{n}.": own for n, own in bases.items()}}.items():
        if part.get("moe") is not None:
            raise UserError(f"{path}: {where}moe: the models of a sweep are dense or have memory")
        if not isinstance(part.get("memory"), dict | None):
            raise UserError(f"{path}: {where}memory must be a mapping, got {part['memory']!r}")
    check_slots(slots, f"{path}: slots")
    if set(own_slots) == set(bases):
        raise UserError(
            f"{path}: slots has no effect, every base sets its own. hint: leave one without"
        )
    config = ScaleConfig(
        base=from_dict(RunConfig, values, str(path)),
        bases=bases,
        slots=tuple(slots),
        own_slots={name: tuple(sizes) for name, sizes in own_slots.items()},
        seeds=seeds,
        sweep=sweep,
    )
    config.cells()
    config.check_sweep()
    return config


def check_slots(slots: Any, where: str) -> None:  # noqa: ANN401
    """Refuse memory sizes that are not different square numbers.

    Raises:
        UserError: They are not. The nearest squares are named.
    """
    whole = isinstance(slots, list | tuple) and all(type(n) is int and n >= 0 for n in slots)
    if not whole or not slots or len(set(slots)) < len(slots):
        raise UserError(
            f"{where} must be different whole numbers, squares of `sub_keys` or 0 for the dense "
            f"model, got {slots!r}. hint: [0, 4096, 65536, 1048576]"
        )
    for n in slots:
        root = math.isqrt(n)
        if root**2 != n:
            raise UserError(
                f"{where}: {n} is no square number: a memory has sub_keys * sub_keys slots. "
                f"hint: {root**2} = {root} * {root} or {(root + 1) ** 2} = {root + 1} * {root + 1}"
            )


def scale(
    config: ScaleConfig,
    out: Path,
    *,
    workers: int | None = None,
    threads: int = 1,
    command: str = "",
) -> dict[str, Any]:
    """Run a sweep and write OUT/results.json, OUT/report.html and OUT/plots/.

    results.json is there as soon as the first run has ended, with the fits of what there is and
    `complete` false until all have. A sweep that was stopped goes on where it was, and one can
    grow: runs that are in OUT are read back, whatever sizes, bases and seeds are asked for beside
    them. Where learning rates are swept, that comes first, in OUT/sweep.

    Args:
        config: Bases, memory sizes and seeds.
        out: Folder of the sweep. Each run has a folder in OUT/runs.
        workers: Runs at a time. None: as many as the cores have threads for, or
            one on a GPU.
        threads: Threads of a run. Another number can change the last digits of sums, so one
            folder holds one number.
        command: For the report.

    Returns:
        The content of results.json. A run that failed is in it, with its error, and in no fit.

    Raises:
        UserError: `out` holds another sweep or one on other data, another process works there,
            there are no facts to ask for, the data is malformed, or a model fails at all learning
            rates.
        KeyboardInterrupt: Ctrl-C or SIGTERM. All runs have saved a checkpoint.
    """
    config.check_sweep()
    with alone_in(out):
        cells, jobs = config.cells(), config.jobs()
        prepared = prepare_runs([config.base], "a sweep")
        data = prepared[config.base.data]
        _claim_threads(out, threads)
        guessed = tell_guessers(data.probes)
        workers = workers_for(jobs, workers, threads)
        rates = None
        if config.sweep is not None:
            runs, rates = sweep_rates(config.runs(), config.sweep, out, workers, threads)
            jobs = config.jobs(runs)
        about = {
            "name": config.base.name,
            "command": command,
            "threads": threads,
            **shared_exposure((run for _, _, run in cells.values()), prepared),
            "facts": data.summary,
            "guessers": guessed,
            "bases": list(config.bases),
            "slots": sorted({slots for _, slots, _ in cells.values()}),
            "seeds": list(config.seeds),
            "rates": rates,
        }

        def conclude(runs: list[dict[str, Any]]) -> dict[str, Any]:
            placed = []
            for run in runs:
                base, slots, _ = cells[run["variant"]]
                placed.append({**run, "base": base, "slots": slots})
            return {"runs": placed, **fit_sweep(placed)}

        order = config.longest_first()
        results = run_jobs(
            jobs, prepared, out, about, workers, threads, order=order, conclude=conclude
        )
        write_scale_report(results, out)
        return results


def _claim_threads(out: Path, threads: int) -> None:
    """Hold a folder to the number of threads with which its runs have saved something."""
    path = out / "sweep.json"
    before = (read_object(path) or {}).get("threads")
    if has_begun(out) and type(before) is int and before != threads:
        raise UserError(
            f"{out} holds a sweep of runs with {before} threads each, got {threads}. "
            f"hint: --threads {before}, or choose another --out"
        )
    if before != threads:
        write_json(path, {"threads": threads})
