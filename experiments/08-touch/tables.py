"""The tables of README.md, from results.json: python experiments/08-touch/tables.py."""

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memory_layers.common.text import markdown_table
from memory_layers.study.intervals import half_width

HERE = Path(__file__).parent
KINDS = ("question_heldout", "statement")
Runs = Sequence[Mapping[str, Any]]


def score(run: Mapping[str, Any]) -> float:
    """Return what rates are compared by: recall of statements and of held-out questions, the mean.

    A run that diverged has 0.
    """
    return statistics.fmean(run.get("recall", {}).get(kind, 0.0) for kind in KINDS)


def write_tables(results: Mapping[str, Any], path: Path) -> None:
    """Write the tables between their markers in a document."""
    text = path.read_text("utf-8")
    for table in (rules, exposures, rates, gaps, about, cost):
        begin, end = (f"<!-- touch-{table.__name__}:{edge} -->" for edge in ("begin", "end"))
        part = f"{begin}\n{table(results)}\n{end}"
        text = re.sub(f"{begin}.*?{end}", lambda _, part=part: part, text, flags=re.DOTALL)
    path.write_text(text, "utf-8")


def finals(results: Mapping[str, Any], arm: str) -> Runs:
    """Return the runs of an arm at its best rate, those of the sweep's seed left out."""
    own = [run for run in results["runs"] if run["arm"] == arm]
    sweep = [run for run in own if run["seed"] == 0]
    if not sweep:
        return []
    best = max(sweep, key=score)["doublings"]
    return sorted(
        (run for run in own if run["doublings"] == best and run["seed"] != 0),
        key=lambda run: run["seed"],
    )


def rules(results: Mapping[str, Any]) -> str:
    """Return one row an arm: its best rate, and what came of it with other seeds."""
    rows = []
    for arm in results["arms"]:
        runs = finals(results, arm)
        ties = [run["ties"] for run in runs if "ties" in run]
        like = f"{arm.rpartition('/')[0]}/row".lstrip("/")
        base = {run["seed"]: run for run in finals(results, like)}
        rows.append((
            f"`{arm}`" + (f", {statistics.fmean(ties):.0%} ties" if ties else ""),
            f"{runs[0]['value_lr']:g}" if runs else "–",
            str(len(runs)),
            *(_mean([run["recall"][kind] for run in runs if "recall" in run]) for kind in KINDS),
            _mean([run["answer_nll"][KINDS[0]] for run in runs if "answer_nll" in run]),
            _mean([
                score(run) - score(base[run["seed"]]) for run in runs if run["seed"] in base
            ], "+.3f") if arm != like else "–",
            _mean([run["text"]["nll"] for run in runs if run.get("text")]),
        ))  # fmt: skip
    head = ("Arm", "best value rate", "seeds", "held-out questions ↑", "statements ↑",
            "answer NLL ↓", "both recalls, less `row`", "text loss ↓")  # fmt: skip
    return markdown_table(head, rows)


def about(results: Mapping[str, Any]) -> str:
    """Say what the tables are of."""
    whole = "all" if results["complete"] else "not all yet"
    return (
        f"{len(results['runs'])} runs, {whole}; mean ± half of the 95 % interval over seeds that "
        f"the rate was not chosen by; on {results['device']}, commit `{results['commit']}`."
    )


def cost(_results: Mapping[str, Any]) -> str:
    """Say what a step costs by each way to step rows, from cost.json."""
    found = json.loads((HERE / "cost.json").read_text("utf-8"))
    times = ", ".join(f"`{state}` {ratio:.2f} ×" for state, ratio in found["of_full"].items())
    return (
        f"The time of a step of {found['rows']:,} rows of {found['width']} numbers by "
        f"{found['tokens'] * found['reads']:,} reads, forward and backward left out: {times} "
        f"(medians of {found['steps']} steps, one thread, {found['device']})."
    )


def gaps(results: Mapping[str, Any]) -> str:
    """Return the share of touches by the steps since the one before, of one run a setting."""
    rows, edges = [], [2**n for n in range(8)]
    for arm in ("rare/row", "row"):
        runs = [run["gaps"] for run in results["runs"] if run["arm"] == arm and "gaps" in run]
        if runs:
            counts = [*runs[0][: len(edges) - 1], sum(runs[0][len(edges) - 1 :])]
            rows.append((f"`{arm}`", *(f"{count / sum(counts):.1%}" for count in counts)))
    names = [f"{low} to {2 * low - 1}" for low in edges[1:-1]]
    return markdown_table(
        ("Steps since the touch before", "1", *names, f"{edges[-1]} or more"), rows
    )


def exposures(results: Mapping[str, Any]) -> str:
    """Return recall of held-out questions by statements of a fact."""
    rows, counts = [], []
    for arm in results["arms"]:
        runs = [run["recall_by_exposures"] for run in finals(results, arm) if "recall" in run]
        if runs:
            counts = [entry["exposures"] for entry in runs[0]]
            means = [
                statistics.fmean(entry["recall"] for entry in same)
                for same in zip(*runs, strict=True)
            ]
            rows.append((f"`{arm}`", *(f"{mean:.3f}" for mean in means)))
    return markdown_table(("Statements of a fact", *map(str, counts)), rows)


def rates(results: Mapping[str, Any]) -> str:
    """Return the score at each rate of the sweeps, the best one bold."""
    sweep = [run for run in results["runs"] if run["seed"] == 0]
    found = sorted({run["value_lr"] for run in sweep})
    rows = []
    for arm in results["arms"]:
        own = {run["value_lr"]: score(run) for run in sweep if run["arm"] == arm}
        top = max(own.values(), default=0.0)
        cells = [
            "" if value not in own
            else f"**{own[value]:.3f}**" if own[value] == top else f"{own[value]:.3f}"
            for value in found
        ]  # fmt: skip
        rows.append((f"`{arm}`", *cells))
    return markdown_table(("Value rate", *(f"{value:g}" for value in found)), rows)


def _mean(values: Sequence[float], form: str = ".3f") -> str:
    if not values:
        return "–"
    half = half_width(values)
    return f"{statistics.fmean(values):{form}}" + ("" if half is None else f" ± {half:.3f}")


if __name__ == "__main__":
    write_tables(json.loads((HERE / "results.json").read_text("utf-8")), HERE / "README.md")
