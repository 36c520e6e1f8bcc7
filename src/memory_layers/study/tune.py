"""Each variant at its best: learning rates swept before a study, on another seed and other facts.

One field after the other is swept, with those before at their best. Where the best value lies at an
edge, values beyond it are tried. Next: compare.py and scale.py, which train each variant at what
was best, and runs.py, which trains what is tried.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memory_layers.common.errors import UserError
from memory_layers.study import outcome
from memory_layers.study.config import with_seed
from memory_layers.study.rates import Sweep, Values, swept_fields, with_rates
from memory_layers.study.runs import RUNS, SWEEP, Job, claim_runs, prepare_runs, run_all
from memory_layers.study.summary import finished
from memory_layers.train.config import RunConfig
from memory_layers.train.folders import has_saved

# Values of a field beyond those that the file gives.
MOST_BEYOND = 4
# Recall of held-out questions, and less the answer NLL for runs that recall as much.
Score = tuple[float, float]
FAILED: Score = (-1.0, 0.0)


@dataclass(frozen=True)
class Searched:
    """Where the search for the best values of a variant stands.

    Attributes:
        wanted: What is to be tried next. Empty: the best is found.
        best: The best value of each field that was swept to its end.
        edges: Fields whose best value has no worse one beyond it: "lowest" or "highest".
    """

    wanted: Sequence[Values]
    best: Values
    edges: Mapping[str, str]


def sweep_rates(
    runs: Mapping[str, RunConfig],
    sweep: Sweep,
    out: Path,
    workers: int,
    threads: int,
) -> tuple[dict[str, RunConfig], dict[str, Any]]:
    """Find the best rates of each variant.

    A run that failed is tried once more when the study goes on, as others are, but not when its
    variant is being trained already: what was the best of it stays so.

    Args:
        runs: The full configuration of each variant.
        sweep: What is tried.
        out: Folder of the study. What is tried is in OUT/sweep.
        workers: Processes at a time.
        threads: Of each process.

    Returns:
        The configurations at their best, and for results.json the `seed`, the `fields`, and by
        variant the `best` values, the `edges` and `tried`: a list of runs with their values, recall
        and answer NLL, or how they ended.

    Raises:
        UserError: A folder holds another run, or no value of a variant gave a result.
        KeyboardInterrupt: Ctrl-C or SIGTERM. All runs have saved a checkpoint.
    """
    asked = {name: _on_other_facts(run, sweep.seed) for name, run in runs.items()}
    prepared = prepare_runs(asked.values(), "a sweep of learning rates")
    folder = out / SWEEP

    def train_all(jobs: Mapping[str, Job]) -> None:
        claim_runs(jobs, prepared, folder)
        again = {
            title: job
            for title, job in jobs.items()
            if not ((folder / title / outcome.FAILURE).is_file() and _is_trained(job[0], out))
        }
        run_all(again, folder, workers, threads, lambda _name: None)

    best, record = find_rates(asked, sweep, folder, train_all)
    return {name: with_rates(run, best[name]) for name, run in runs.items()}, record


def find_rates(
    runs: Mapping[str, RunConfig],
    sweep: Sweep,
    folder: Path,
    train_all: Callable[[Mapping[str, Job]], object],
) -> tuple[dict[str, Values], dict[str, Any]]:
    """Find the best rates of each variant: what sweep_rates does with runs on other facts.

    Args:
        runs: The configuration of each variant to try rates with.
        sweep: What is tried.
        folder: Where the folders of the runs that are tried are.
        train_all: Trains jobs, by the names of their folders, those that have not ended yet.

    Returns:
        The best values of each variant, and what sweep_rates returns for results.json.

    Raises:
        UserError: No value of a variant gave a result.
    """
    tried: dict[str, dict[Values, dict[str, Any]]] = {name: {} for name in runs}
    # One of the values of a field may be what the runs of the field before had.
    titles: dict[tuple[str, RunConfig], str] = {}
    while True:
        searched = {
            name: search(swept_fields(run, sweep), lambda v, n=name: _score(tried[n].get(v)))
            for name, run in runs.items()
        }
        wanted = [
            (name, values, with_rates(runs[name], values))
            for name, found in searched.items()
            for values in found.wanted
        ]
        if not wanted:
            break
        for name, values, run in wanted:
            titles.setdefault((name, run), f"{name}-{_label(values)}")
        train_all({titles[name, run]: (name, sweep.seed, run) for name, _, run in wanted})
        for name, values, run in wanted:
            title = titles[name, run]
            tried[name][values] = outcome.read_outcome(name, sweep.seed, folder / title)
    for name, found in searched.items():
        _check_found(name, swept_fields(runs[name], sweep), found, tried[name], folder)
    record = {
        "seed": sweep.seed,
        "fields": list(sweep.values),
        "variants": {
            name: {
                "best": dict(searched[name].best),
                "edges": dict(searched[name].edges),
                "tried": [_entry(values, run) for values, run in sorted(tried[name].items())],
            }
            for name in runs
        },
    }
    return {name: searched[name].best for name in runs}, record


def search(
    fields: Mapping[str, Sequence[float]], score: Callable[[Values], Score | None]
) -> Searched:
    """Say what to try next, or what is best.

    Args:
        fields: The values of each field, rising.
        score: Of values that were tried: more is better. None: they were not tried.
    """
    best: Values = ()
    edges: dict[str, str] = {}
    for field, given in fields.items():
        values = list(given)
        for beyond in range(MOST_BEYOND + 1):
            points: dict[float, Values] = {value: (*best, (field, value)) for value in values}
            scores = {value: score(point) for value, point in points.items()}
            if wanted := [points[value] for value, found in scores.items() if found is None]:
                return Searched(wanted, best, edges)
            winner = max(values, key=lambda value: scores[value] or FAILED)
            if winner not in (values[0], values[-1]):
                break
            at_top = winner == values[-1]
            if beyond == MOST_BEYOND:
                edges[field] = "highest" if at_top else "lowest"
            elif at_top:
                values.append(_rounded(values[-1] ** 2 / values[-2]))
            else:
                values.insert(0, _rounded(values[0] ** 2 / values[1]))
        if scores[winner] == FAILED:
            break
        best = points[winner]
    return Searched((), best, edges)


def _on_other_facts(run: RunConfig, seed: int) -> RunConfig:
    # What is learned on the way does not matter.
    train = replace(run.train, eval_every=0)
    return with_seed(replace(run, data=replace(run.data, seed=seed), train=train), seed)


def _check_found(
    name: str,
    fields: Iterable[str],
    found: Searched,
    tried: Mapping[Values, Mapping[str, Any]],
    folder: Path,
) -> None:
    """Refuse to go on with a variant that failed at all values of a field."""
    for field in fields:
        if field not in dict(found.best):
            errors = [run["error"] for values, run in tried.items() if values[-1][0] == field]
            raise UserError(
                f"sweep.{field}: {name} must finish at one of the values, got {len(errors)} runs "
                f"that failed, such as {errors[0]!r}: {folder} has their logs. "
                "hint: lower values, or mend the variant"
            )


def _is_trained(name: str, out: Path) -> bool:
    return any(has_saved(run) for run in (out / RUNS).glob(f"{name}-seed*"))


def _score(run: Mapping[str, Any] | None) -> Score | None:
    if run is None:
        return None
    if not finished(run):
        return FAILED
    return run["recall"]["question_heldout"], -run["answer_nll"]["question_heldout"]


def _label(values: Values) -> str:
    return "-".join(f"{name.removeprefix('optim.')}{value}" for name, value in values)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _entry(values: Values, run: Mapping[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {**dict(values), "status": run["status"]}
    if not finished(run):
        return {**entry, "error": run["error"]}
    score = _score(run) or (0.0, 0.0)
    entry |= {"question_heldout": score[0], "answer_nll": -score[1], "seconds": run["seconds"]}
    return {**entry, "text_nll": run["text"]["nll"]} if run.get("text") else entry
