"""Bits stored and recall by exposures and surprise, on results that can be counted by hand."""

import math
from itertools import pairwise

import pytest

from memory_layers.data.facts import Probe
from memory_layers.study.breakdown import bits_stored, recall_by_entropy, recall_by_exposures


def probe(kind: str, relation: str, answer: str, exposures: int = 1) -> Probe:
    return Probe(kind, relation, "s", f"s {answer}", 2, 2 + len(answer), exposures)


def test_bits_of_recalled_questions() -> None:
    probes = [
        probe("question_heldout", "a", "1"),
        probe("question_shown", "a", "2"),
        probe("statement", "a", "2"),
        probe("question_shown", "b", "x"),
        *(probe("question_shown", "c", str(n)) for n in range(8)),
    ]
    correct = [True, False, True, True, *[True] * 8]
    assert math.isclose(bits_stored(probes, correct), 1 + 0 + 8 * 3)
    assert bits_stored(probes, correct, list(range(12))) == bits_stored(probes, correct)


def test_bits_of_a_sample_are_scaled_to_all_facts() -> None:
    """Half of eight shown facts were recalled, and of two held-out ones the only one asked."""
    probes = [
        *(probe("question_shown", "a", str(n)) for n in range(8)),
        *(probe("question_heldout", "a", str(n)) for n in range(8)),
        probe("question_heldout", "b", "x"),
        probe("question_shown", "b", "y"),
    ]
    asked = [1, 3, 9, 16]
    bits = bits_stored(probes, [1, 0, 1, 0], asked)
    assert bits == 3 * (8 * 1 / 2 + 8 * 1 / 1) + 1 * 0


def test_recall_by_exposures() -> None:
    probes = [
        probe("question_heldout", "a", "1", 4),
        probe("question_heldout", "a", "2", 1),
        probe("question_shown", "a", "3", 1),
        probe("statement", "a", "4", 2),
        probe("question_heldout", "b", "1", 1),
    ]
    assert recall_by_exposures(probes, [1, 1, 0, 0, 0]) == [
        {"exposures": 1, "facts": 2, "recall": 0.5},
        {"exposures": 4, "facts": 1, "recall": 1.0},
    ]
    assert recall_by_exposures(probes, [0, 1], [0, 2]) == [
        {"exposures": 4, "facts": 1, "recall": 0.0}
    ]
    assert recall_by_exposures(probes[2:4], [1, 1]) == []


def test_recall_by_entropy() -> None:
    """Of eight facts of a relation four share an answer, two another and two have their own."""
    answers = ["x", "x", "x", "x", "y", "y", "z", "w"]
    probes = [
        *(probe("question_heldout", "a", answer) for answer in answers),
        # Its only answer is no news. Statements are not counted.
        probe("question_heldout", "b", "q"),
        probe("statement", "b", "r"),
    ]
    correct = [1, 1, 1, 0, 1, 0, 0, 0, 1, 0]
    assert recall_by_entropy(probes, correct) == [
        {"low": 0.0, "high": 0.0, "facts": 1, "recall": 1.0},
        {"low": 1.0, "high": 1.0, "facts": 4, "recall": 0.75},
        {"low": 2.0, "high": 2.0, "facts": 2, "recall": 0.5},
        {"low": 3.0, "high": 3.0, "facts": 2, "recall": 0.0},
    ]


def test_frequencies_are_those_of_all_facts_and_not_of_the_ones_asked() -> None:
    probes = [probe("question_shown", "a", "x"), probe("question_heldout", "a", "y")]
    assert recall_by_entropy(probes, [1], [1]) == [
        {"low": 1.0, "high": 1.0, "facts": 1, "recall": 1.0}
    ]


@pytest.mark.parametrize("facts", [3, 5, 100])
def test_bins_have_about_equal_facts(facts: int) -> None:
    """Each answer is twice as rare as the one before, but for the share of each relation."""
    probes = [
        probe("question_heldout", str(relation), str(min(n, relation)))
        for relation in range(facts)
        for n in range(relation + 1)
    ][: 4 * facts]
    bins = recall_by_entropy(probes, [1] * len(probes))
    assert len(bins) <= 5
    assert sum(part["facts"] for part in bins) == len(probes)
    for before, after in pairwise(bins):
        assert before["low"] <= before["high"] < after["low"]
