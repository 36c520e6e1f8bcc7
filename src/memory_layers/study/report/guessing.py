"""What can be guessed of each relation: told before training, and shown beside what was recalled.

Next: ../guess.py, which measures it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memory_layers.common.progress import ProgressLine
from memory_layers.data.facts import Probe
from memory_layers.study.guess import GUESSERS, guessers
from memory_layers.study.intervals import finite, spread
from memory_layers.study.metrics import Run
from memory_layers.study.report.page import Cell, Part, Row, Table
from memory_layers.study.report.tables import DASH, number
from memory_layers.study.report.terminal import terminal_table
from memory_layers.study.summary import by_variant, finished

# A relation is warned of where a guesser reaches more than this share of its held-out questions,
# or of what the best model recalls there, unless it is next to nothing.
HIGH_SHARE, HIGH_OF_RECALL, NOTHING = 0.05, 0.5, 0.005

_LABELS = dict(zip(GUESSERS, ("Chance", "Majority", "Nearest name", "Longest prefix"), strict=True))
_NAMED = 3
_HOW = (
    "What is answered of the held-out questions by who knows the answers of all other facts of the "
    "relation, but has not read the one that is asked for. Chance: any of the distinct answers. "
    "Majority: the most frequent one. Nearest name: that of the subject whose name is most alike, "
    "by trigrams of characters. Longest prefix: the most frequent one among the subjects with as "
    "many first characters in common as any. Dense, unstated: the recall of facts that no document "
    "states, by the dense model that recalls most of them. Best model: the variant that recalls "
    "most of the relation. Recall that a guesser reaches is no sign that facts were learned."
)
_NONE_UNSTATED = (
    "Every fact is stated, so that what a model itself guesses was not measured. hint: a 0 among "
    "data.exposures leaves the facts of some subjects unstated"
)

# A recall, and the variant that has it.
_Best = tuple[float, str] | None


def tell_guessers(probes: Sequence[Probe]) -> dict[str, dict[str, int | float]]:
    """Measure what guessers reach and print it, so that nobody trains to measure guessing.

    Args:
        probes: Recall items of a study.

    Returns:
        What `guessers` returns.
    """
    from rich.console import Console

    with ProgressLine() as line:
        found = guessers(probes, line.update)
    results = {"guessers": found}
    head = ("Relation", "Facts", *_LABELS.values())
    rows = [Row(row.title, row.cells[: len(head) - 1]) for row in _rows(results)]
    notes = [*guess_notes(results), *_sampled(results)]
    table = terminal_table("Guessed of held-out questions", head, rows, notes)
    Console(stderr=True).print(table)
    return found


def guess_parts(results: Mapping[str, Any]) -> list[Part]:
    """Return the section of a report on what can be guessed, empty where it was not measured."""
    if not results.get("guessers"):
        return []
    head = ("Relation", "Facts", *_LABELS.values(), "Dense, unstated", "Best model")
    table = Table(head, _rows(results), "What can be guessed")
    done = [run for run in results["runs"] if finished(run)]
    hints = [_NONE_UNSTATED] if done and all(_unstated(run) is None for run in done) else []
    return [_HOW, table, *_sampled(results), *hints]


def unstated_recall(results: Mapping[str, Any], run: Run, relation: str) -> float | None:
    """Return what a run answers of the facts of a relation that no document states, None of none.

    Args:
        results: The content of results.json.
        run: One of its runs.
        relation: Whose facts are asked for, as questions.
    """
    statements = ((results.get("exposure") or {}).get(relation) or {}).get("statements")
    recalled = ((run.get("facts") or {}).get(relation) or {}).get("unseen")
    if statements is None or recalled is None:
        return None
    pairs = zip(statements.split(), recalled, strict=True)
    unstated = [right == "1" for count, right in pairs if count == "0"]
    return sum(unstated) / len(unstated) if unstated else None


def guess_notes(results: Mapping[str, Any]) -> list[str]:
    """Return a warning where much of what is asked, or of what is recalled, can be guessed."""
    high = [name for name in _guessers(results) if _is_high(results, name)]
    high.sort(key=lambda name: -_most(results, name)[0])
    if not high:
        return []
    named = []
    for name in high[:_NAMED]:
        share, guesser = _most(results, name)
        named.append(f"{_percent(share)} of {name} ({_LABELS[guesser].lower()})")
    if left := len(high) - len(named):
        named.append(f"some of {left} other relation{'s' * (left > 1)}")
    weights = {name: entry["heldout"] for name, entry in _guessers(results).items()}
    overall = sum(_most(results, name)[0] * weight for name, weight in weights.items())
    overall /= sum(weights.values())
    listed = " and ".join([", ".join(named[:-1]), named[-1]] if named[1:] else named)
    return [
        f"Without having read the fact, guessers answer {listed}, and {_percent(overall)} of all "
        "held-out questions: only recall above that shows that facts were learned."
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _guessers(results: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    return results.get("guessers") or {}


def _sampled(results: Mapping[str, Any]) -> list[str]:
    some = [
        f"{entry['asked']:,} of {entry['heldout']:,} of {name}"
        for name, entry in _guessers(results).items()
        if entry["asked"] < entry["heldout"]
    ]
    return [f"Guessed at were not all held-out questions: {', '.join(some)}."] if some else []


def _most(results: Mapping[str, Any], relation: str) -> tuple[float, str]:
    entry = _guessers(results)[relation]
    return max((entry[guesser], guesser) for guesser in GUESSERS)


def _is_high(results: Mapping[str, Any], relation: str) -> bool:
    share, _ = _most(results, relation)
    best = _best(results, lambda run: _recall(run, relation))
    of_recall = best is not None and share > HIGH_OF_RECALL * best[0]
    return share > HIGH_SHARE or (share > NOTHING and of_recall)


def _rows(results: Mapping[str, Any]) -> list[Row]:
    found, rows = _guessers(results), []
    for name, entry in found.items():
        cells = [Cell(number(entry["facts"], ",.0f"))]
        cells += [Cell(number(entry[guesser], ".3f")) for guesser in GUESSERS]
        for best in (
            _best(results, lambda run, name=name: unstated_recall(results, run, name), dense=True),
            _best(results, lambda run, name=name: _recall(run, name)),
        ):
            cells.append(_best_cell(best))
        rows.append(Row(Cell(name, "can be guessed" if _is_high(results, name) else ""), cells))
    if len(found) > 1:
        total = sum(entry["heldout"] for entry in found.values())
        cells = [Cell(number(sum(entry["facts"] for entry in found.values()), ",.0f"))]
        for guesser in GUESSERS:
            share = sum(entry[guesser] * entry["heldout"] for entry in found.values()) / total
            cells.append(Cell(number(share, ".3f")))
        cells.append(_best_cell(_best(results, _unstated, dense=True)))
        cells.append(_best_cell(_best(results, _recall)))
        rows.append(Row(Cell("all relations"), cells))
    return rows


def _best_cell(best: _Best) -> Cell:
    return Cell(DASH) if best is None else Cell(f"{best[0]:.3f}", best[1])


def _best(
    results: Mapping[str, Any], measure: Callable[[Run], float | None], *, dense: bool = False
) -> _Best:
    """Return the highest mean over seeds of any variant, or of any that is dense."""
    means = []
    for name, runs in by_variant(results).items():
        fitting = [r for r in runs if finished(r) and (not dense or _is_dense(results, r))]
        if (found := spread(map(measure, fitting))) is not None:
            means.append((found["mean"], name))
    return max(means, default=None)


def _is_dense(results: Mapping[str, Any], run: Run) -> bool:
    # Of a sweep the memory size says so.
    variant = str(run.get("variant"))
    kind = (results.get("kinds") or {}).get(variant, variant)
    return bool(run["slots"] == 0 if "slots" in run else kind == "dense")


def _recall(run: Run, relation: str | None = None) -> float | None:
    recall = run.get("recall") or {}
    if relation is not None:
        recall = (recall.get("by_relation") or {}).get(relation) or {}
    return finite(recall.get("question_heldout"))


def _unstated(run: Run) -> float | None:
    """Return the recall of all facts that no document states."""
    entries = run.get("recall_by_exposures") or ()
    return next((entry["recall"] for entry in entries if entry.get("exposures") == 0), None)
