"""Recall and probability of held-out facts by exposures: how often a run has read a fact.

The subjects of facts have different numbers of statements, k, as many subjects each. Facts of k = 0
are in no document: what is answered of them is guessed, and what facts of other k have above them,
the lift, was learned. Facts are asked for in a wording that was read ("seen") and in a question,
which never was ("unseen").

Intervals are percentiles of a bootstrap over subjects and seeds at once: each draw takes the
subjects of each k with replacement, a subject with the facts of all of its relations, and the
seeds. All variants share the draws, so that a difference or a ratio of two variants has the noise
of what differs between them alone. Of n seeds a draw takes n - 1, as the mean of n drawn ones
varies (n - 1) / n times too little. Of one seed, intervals are over subjects. Next:
half_recall.py, which sums a curve up in one number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from memory_layers.study.fits import interval
from memory_layers.study.intervals import finite
from memory_layers.study.metrics import Run
from memory_layers.study.summary import by_variant, finished, verdict

Wording = Literal["unseen", "seen"]
WORDINGS: tuple[Wording, ...] = ("unseen", "seen")
DRAWS = 2000
_SEED = 20261129
# A probability of 1, as runs write it.
_UNIT = 10_000


@dataclass(frozen=True, eq=False)
class Curves:
    """What runs answered in one wording by exposures: as measured, and in DRAWS draws of subjects.

    Attributes:
        wording: In which facts were asked for.
        levels: [K] int64, numbers of statements, ascending.
        facts: [K] int64, held-out facts.
        seeds: Of the runs of each variant, ascending.
        recall: By variant, [seeds, 1 + DRAWS, K] float64. Row 0 is what was measured.
        probability: The same, of the right answer among those of the relation.
    """

    wording: Wording
    levels: np.ndarray
    facts: np.ndarray
    seeds: Mapping[str, Sequence[int]]
    recall: Mapping[str, np.ndarray]
    probability: Mapping[str, np.ndarray]

    def recall_of(self, variant: str, seeds: Sequence[int] | None = None) -> np.ndarray:
        """Return the recall of a variant over its seeds or some of them: [1 + DRAWS, K]."""
        return self._over_seeds(self.recall, variant, seeds)

    def lift_of(self, variant: str, seeds: Sequence[int] | None = None) -> np.ndarray | None:
        """Return probability less that at k = 0, for the other k: [1 + DRAWS, K - 1].

        None where no subject has k = 0.
        """
        values = self._over_seeds(self.probability, variant, seeds)
        return values[:, 1:] - values[:, :1] if self.levels[0] == 0 else None

    def probability_of(self, variant: str) -> np.ndarray:
        """Return the probability of a variant over its seeds: [1 + DRAWS, K]."""
        return self._over_seeds(self.probability, variant, None)

    def common_seeds(self, variant: str, other: str) -> list[int]:
        """Return the seeds of which both variants have a run."""
        return [seed for seed in self.seeds[variant] if seed in self.seeds[other]]

    def _over_seeds(
        self, values: Mapping[str, np.ndarray], variant: str, seeds: Sequence[int] | None
    ) -> np.ndarray:
        own = self.seeds[variant]
        taken = values[variant][[own.index(seed) for seed in (own if seeds is None else seeds)]]
        return np.einsum("ds,sdk->dk", _drawn_seeds(len(taken)), taken)


def read_curves(
    results: Mapping[str, Any], wording: Wording, relations: Sequence[str] | None = None
) -> Curves | None:
    """Read what the finished runs of a comparison answered by exposures, and draw from it.

    Args:
        results: The content of results.json.
        wording: In which facts were asked for.
        relations: Whose facts count. None: all. Relations whose subjects all have one k say
            nothing of exposures, and are left out.

    Returns:
        None where the results do not hold it, as those of before, or no relation is left.
    """
    groups = {
        name: sorted(done, key=lambda run: run["seed"])
        for name, runs in by_variant(results).items()
        if (done := [run for run in runs if finished(run) and run.get("facts")])
    }
    runs = [run for done in groups.values() for run in done]
    told = results.get("exposure") or {}
    named = [
        name
        for name in exposed_relations(results)
        if (relations is None or name in relations)
        and all((run["facts"].get(name) or {}).get(wording) for run in runs)
    ]
    if not runs or not named:
        return None
    subjects, levels = (
        np.concatenate([_numbers(told[name][field]) for name in named])
        for field in ("subjects", "statements")
    )
    # Facts of one subject are drawn together. Subjects of one k stand side by side.
    units, unit = np.unique(np.stack([levels, subjects], 1), axis=0, return_inverse=True)
    sizes = np.bincount(unit.reshape(-1))
    order = np.argsort(unit.reshape(-1), kind="stable")
    answers = np.stack([_answers(run, named, wording) for run in runs], 1)[..., order]
    sums = np.add.reduceat(answers, np.cumsum(sizes) - sizes, axis=-1)
    known, starts = np.unique(units[:, 0], return_index=True)
    drawn = np.empty((*sums.shape[:2], 1 + DRAWS, len(known)))
    for k, members in enumerate(np.split(np.arange(len(units)), starts[1:])):
        counts = _drawn_subjects(len(members), k)
        drawn[..., k] = (sums[..., members] @ counts.T) / (counts @ sizes[members])
    ends = np.cumsum([len(done) for done in groups.values()])[:-1]
    recall, probability = (
        dict(zip(groups, np.split(values, ends), strict=True)) for values in drawn
    )
    seeds = {name: [run["seed"] for run in done] for name, done in groups.items()}
    facts = np.add.reduceat(sizes, starts)
    return Curves(wording, known, facts, seeds, recall, probability)


def exposed_relations(results: Mapping[str, Any]) -> list[str]:
    """Return the relations whose held-out subjects have different numbers of statements."""
    told = results.get("exposure") or {}
    return [name for name, entry in told.items() if len(set(entry["statements"].split())) > 1]


def curve_rows(curves: Curves) -> list[dict[str, Any]]:
    """Return what each variant answered at each number of statements.

    Returns:
        `variant`, `wording`, `exposures`, `facts`, `seeds`, and the mean over facts and seeds with
        the ends of its interval of `recall`, `probability` and, of k > 0 where there are subjects
        of k = 0, `lift`: `recall`, `recall_low`, `recall_high` and so on.
    """
    rows = []
    for variant, seeds in curves.seeds.items():
        values = {
            "recall": curves.recall_of(variant),
            "probability": curves.probability_of(variant),
        }
        if (lift := curves.lift_of(variant)) is not None:
            values["lift"] = np.concatenate([np.full((len(lift), 1), np.nan), lift], 1)
        for k, level in enumerate(curves.levels.tolist()):
            row = {
                "variant": variant,
                "wording": curves.wording,
                "exposures": level,
                "facts": int(curves.facts[k]),
                "seeds": len(seeds),
            }
            for name, drawn in values.items():
                row |= _estimate(name, drawn[:, k])
            rows.append(row)
    return rows


def lift_rows(curves: Curves) -> list[dict[str, Any]]:
    """Return the pooled lift of each variant: the mean of its lifts over all k > 0.

    Returns:
        `variant`, `wording`, `seeds`, and `lift`, `lift_low`, `lift_high`. Nothing where no
        subject has k = 0.
    """
    return [
        {"variant": name, "wording": curves.wording, "seeds": len(seeds),
         **_estimate("lift", lift.mean(1))}
        for name, seeds in curves.seeds.items()
        if (lift := curves.lift_of(name)) is not None
    ]  # fmt: skip


def lift_differences(curves: Curves, subjects: Sequence[str]) -> list[dict[str, Any]]:
    """Return the pooled lift of some variants less that of each other one, over common seeds.

    Returns:
        `variant`, `reference`, `wording`, `seeds`, `difference`, `low`, `high`, and `verdict` as
        `summary.comparisons` has it.
    """
    rows = []
    for subject, other, seeds in pairs_of(curves, subjects):
        own, theirs = curves.lift_of(subject, seeds), curves.lift_of(other, seeds)
        if own is None or theirs is None:
            continue
        drawn = (own - theirs).mean(1)
        low, high = map(float, interval(drawn[1:]))
        rows.append({
            "variant": subject, "reference": other, "wording": curves.wording,
            "seeds": len(seeds), "difference": float(drawn[0]), "low": low, "high": high,
            "verdict": verdict(low, high) if len(seeds) > 1 else "one seed",
        })  # fmt: skip
    return rows


def pairs_of(curves: Curves, subjects: Sequence[str]) -> list[tuple[str, str, list[int]]]:
    """Return each of some variants with each other one, and the seeds that both have."""
    return [
        (subject, other, seeds)
        for subject in subjects
        if subject in curves.seeds
        for other in curves.seeds
        if other != subject and (seeds := curves.common_seeds(subject, other))
    ]


def _estimate(name: str, drawn: np.ndarray) -> dict[str, float | None]:
    low, high = interval(drawn[1:])
    ends = {"": drawn[0], "_low": low, "_high": high}
    return {f"{name}{end}": finite(float(value)) for end, value in ends.items()}


def _answers(run: Run, relations: Sequence[str], wording: Wording) -> np.ndarray:
    """Return recall, 0 or 1, and probability of each fact of some relations: [2, facts] float64."""
    told = [run["facts"][name] for name in relations]
    recall = "".join(entry[wording] for entry in told).encode()
    probability = np.concatenate([_numbers(entry[f"p_{wording}"]) for entry in told])
    return np.stack([np.frombuffer(recall, np.uint8) - ord("0"), probability / _UNIT])


def _numbers(text: str) -> np.ndarray:
    return np.array(text.split(), dtype=np.int64)


def _drawn_subjects(count: int, level: int) -> np.ndarray:
    """Return how often each subject of a k is in each draw: [1 + DRAWS, count], row 0 all ones."""
    return np.concatenate([np.ones((1, count)), _times(count, count, [_SEED, 0, level])])


def _drawn_seeds(count: int) -> np.ndarray:
    """Return the weight of each seed in each draw: [1 + DRAWS, count], rows of sum 1."""
    size = max(1, count - 1)
    return np.concatenate([np.ones((1, count)) / count, _times(count, size, [_SEED, 1]) / size])


def _times(count: int, size: int, seed: Sequence[int]) -> np.ndarray:
    """Draw `size` of `count` with replacement: how often each is in each draw, [DRAWS, count]."""
    drawn = np.random.default_rng(seed).integers(count, size=(DRAWS, size))
    cells = drawn + count * np.arange(DRAWS)[:, None]
    return np.bincount(cells.ravel(), minlength=DRAWS * count).reshape(DRAWS, count)
