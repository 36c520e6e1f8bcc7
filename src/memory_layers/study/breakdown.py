"""What a model has stored: bits over all facts, and recall by exposures and by surprise.

Arguments are alike: `probes` are all recall items, `asked` the indices of those that were asked
(None: all), and `correct` says of each of these whether it was answered.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from memory_layers.data.facts import Probe

ENTROPY_BINS = 5

# Kind of item, and relation.
_Group = tuple[str, str]


def bits_stored(
    probes: Sequence[Probe], correct: Sequence[bool | int], asked: Sequence[int] | None = None
) -> float:
    """Add up log2 of the number of distinct answers over all facts recalled by question.

    Of a sample each relation counts with the share that was recalled, shown and held-out questions
    apart, times all of its facts. Where none was asked, none counts.
    """
    answers = defaultdict(set)
    facts: Counter[_Group] = Counter()
    for probe in probes:
        answers[probe.relation].add(answer_of(probe))
        facts[probe.kind, probe.relation] += 1
    picked: Counter[_Group] = Counter()
    recalled: Counter[_Group] = Counter()
    for probe, right in _answered(probes, correct, asked):
        if probe.kind != "statement":
            picked[probe.kind, probe.relation] += 1
            recalled[probe.kind, probe.relation] += bool(right)
    return sum(
        math.log2(len(answers[relation])) * number * facts[kind, relation] / picked[kind, relation]
        for (kind, relation), number in recalled.items()
    )


def recall_by_exposures(
    probes: Sequence[Probe], correct: Sequence[bool | int], asked: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Recall of held-out questions by how many documents of an epoch state the fact.

    Returns:
        `exposures`, `facts` that were asked and `recall`, from the fewest exposures up.
    """
    found = defaultdict(list)
    for probe, right in _answered(probes, correct, asked):
        if probe.kind == "question_heldout":
            found[probe.exposures].append(bool(right))
    return [
        {"exposures": exposures, **_recall(rights)} for exposures, rights in sorted(found.items())
    ]


def recall_by_entropy(
    probes: Sequence[Probe], correct: Sequence[bool | int], asked: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Recall of held-out questions by -log2 of how frequent the answer is in its relation.

    Returns:
        At most five bins of about equal facts, from the most frequent answers on: `low` and `high`
        bits, both included, `facts` that were asked and `recall`. Facts of equal bits share a bin.
    """
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for probe in probes:
        if probe.kind != "statement":
            answers[probe.relation][answer_of(probe)] += 1
    # Frequencies as fractions are equal where they are: logarithms might differ by rounding.
    found = defaultdict(list)
    for probe, right in _answered(probes, correct, asked):
        if probe.kind == "question_heldout":
            counts = answers[probe.relation]
            found[counts[answer_of(probe)] / counts.total()].append(bool(right))
    total, seen = sum(map(len, found.values())), 0
    bins: list[list[float]] = []
    for share in sorted(found, reverse=True):
        # By its middle: many facts of equal bits do not join a bin of a few.
        if seen + len(found[share]) / 2 >= len(bins) * total / ENTROPY_BINS:
            bins.append([])
        bins[-1].append(share)
        seen += len(found[share])
    return [
        {
            "low": _bits(shares[0]),
            "high": _bits(shares[-1]),
            **_recall([right for share in shares for right in found[share]]),
        }
        for shares in bins
    ]


def answer_of(probe: Probe) -> str:
    """Return the answer that an item asks for."""
    return probe.text[probe.answer_start : probe.answer_end]


def _recall(rights: Sequence[bool]) -> dict[str, Any]:
    return {"facts": len(rights), "recall": sum(rights) / len(rights)}


def _bits(share: float) -> float:
    # Not -0.0 for the only answer of a relation.
    return -math.log2(share) + 0.0


def _answered(
    probes: Sequence[Probe], correct: Sequence[bool | int], asked: Sequence[int] | None
) -> list[tuple[Probe, bool | int]]:
    picked = probes if asked is None else [probes[index] for index in asked]
    return list(zip(picked, correct, strict=True))
