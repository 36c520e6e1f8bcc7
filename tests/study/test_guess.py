"""What guessers reach, on facts whose figures can be counted by hand, and how a study tells it."""

import io
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from made_up import make_up
from rich.console import Console

from memory_layers.data.facts import Probe
from memory_layers.study import guess
from memory_layers.study.guess import guessers
from memory_layers.study.report import render_table, tell_guessers, write_report
from memory_layers.study.report.guessing import guess_notes


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take most of the time of a report."""
    monkeypatch.setattr("memory_layers.study.report.comparison.draw_plots", lambda *_: {})


def probe(subject: str, answer: str, *aliases: str, held: bool = True, of: str = "r") -> Probe:
    kind = "question_heldout" if held else "question_shown"
    start = len(subject) + 1
    return Probe(
        kind, of, subject, f"{subject} {answer}", start, start + len(answer), 1, tuple(aliases)
    )


@pytest.mark.parametrize(
    ("facts", "majority", "neighbour", "prefix"),
    [
        # Of the rest, red leads when blue is asked, and is level with it when red is.
        (["Aa blue", "Bb blue", "Cc red", "Dd red", "Ee red"], 0.0, 0.0, 0.0),
        (["Aa blue", "Bb red", "Cc red", "Dd red", "Ee red"], 0.8, 0.8, 0.8),
        # North-Lima has six trigrams of South-Lima, and four of the longer Northern-Lee.
        (["North-Lima Peru", "South-Lima Peru", "Northern-Lee UK"], 2 / 3, 2 / 3, 1 / 3),
        # The first three digits or the last three alike, and one code alone with its first.
        (["10171 Ava", "10182 Ava", "20171 Bix", "20182 Bix", "30000 Cyd"], 0.0, 0.0, 0.8),
        # Nobody knows the answer to the only fact.
        (["Aa blue"], 0.0, 0.0, 0.0),
        # Upper and lower case of a name are the same.
        (["north x", "NORTH x", "NORTHy z", "Qq z", "Qqq z"], 0.0, 0.8, 0.8),
    ],
)
def test_guesses_counted_by_hand(
    facts: list[str], majority: float, neighbour: float, prefix: float
) -> None:
    probes = [probe(*fact.split(" ")) for fact in facts]
    assert guessers(probes) == {
        "r": {
            "facts": len(facts),
            "heldout": len(facts),
            "asked": len(facts),
            "chance": 1 / len({fact.split(" ")[1] for fact in facts}),
            "majority": pytest.approx(majority),
            "neighbour": pytest.approx(neighbour),
            "prefix": pytest.approx(prefix),
        }
    }


def test_other_answers_count_and_shown_facts_are_known() -> None:
    statement = Probe("statement", "r", "s", "s x", 2, 3)
    probes = [
        statement,
        probe("Aa", "blue", "red"),
        *(probe(name, "red", held=False) for name in ("Bb", "Cc")),
        probe("Dd", "x", of="only shown", held=False),
    ]
    (found,) = guessers(probes).values()
    assert found == {"facts": 3, "heldout": 1, "asked": 1, "chance": 0.5, "majority": 1.0,
                     "neighbour": 1.0, "prefix": 1.0}  # fmt: skip


def test_each_guesser_against_a_plain_one() -> None:
    """Many names alike, frequent answers and ties, and two relations of the same subjects."""
    draw = random.Random(0)
    names = sorted({"".join(draw.choices("abA", k=draw.randint(1, 9))) for _ in range(150)})
    names = list({name.casefold(): name for name in names}.values())
    probes = [
        probe(name, draw.choice(colours), *draw.sample(colours, n % 2), held=n % 3 > 0, of=relation)
        for relation, colours in (("few", "xyz"), ("many", "pqrstuvw"))
        for n, name in enumerate(names)
    ]
    found = guessers(probes)
    assert list(found) == ["few", "many"]
    for relation, shares in found.items():
        facts = [fact for fact in probes if fact.relation == relation]
        asked = [fact for fact in facts if fact.kind == "question_heldout"]
        right = Counter(
            who for fact in asked for who, said in _plain(fact, facts) if said in fact.answers
        )
        for who, count in right.items():
            assert shares[who] == pytest.approx(count / len(asked)), (relation, who)
        assert len(right) == 3
        assert min(right.values()) < len(asked)


def _plain(fact: Probe, facts: list[Probe]) -> list[tuple[str, str]]:
    def grams(probe: Probe) -> set[str]:
        text = f"<{probe.subject.casefold()}>"
        return {text[n : n + 3] for n in range(len(text) - 2)}

    def near(other: Probe) -> float:
        return 2 * len(grams(fact) & grams(other)) / (len(grams(fact)) + len(grams(other)))

    def alike(other: Probe) -> int:
        one, two = fact.subject.casefold(), other.subject.casefold()
        return max(n for n in range(len(one) + 1) if two.startswith(one[:n]))

    others = [other for other in facts if other != fact]
    guesses = []
    for who, likeness in (("majority", lambda _: 0), ("neighbour", near), ("prefix", alike)):
        most = max(map(likeness, others))
        said = Counter(other.answers[0] for other in others if likeness(other) == most)
        guesses.append((who, min(said, key=lambda answer: (-said[answer], answer))))
    return guesses


def test_of_many_questions_a_sample_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = [probe(f"Place {n:03}", "x" if n < 50 else "y") for n in range(100)]
    assert guessers(probes)["r"]["asked"] == 100
    monkeypatch.setattr(guess, "MOST_PAIRS", 4000)
    monkeypatch.setattr(guess, "FEWEST_ASKED", 10)
    found = guessers(probes)["r"]
    assert (found["asked"], found["heldout"], found["facts"]) == (40, 100, 100)
    # All others are known: that of the same ten is, also where it is not asked itself.
    assert found["prefix"] == 1.0
    assert guessers(probes) == {"r": found}
    monkeypatch.setattr(guess, "MOST_PAIRS", 0)
    assert guessers(probes)["r"]["asked"] == 10


def guessed(prefix: float, **others: object) -> dict[str, Any]:
    return {"facts": 900, "heldout": 300, "asked": 300, "chance": 0.001, "majority": 0.01,
            "neighbour": 0.02, "prefix": prefix, **others}  # fmt: skip


def test_report_warns_of_what_can_be_guessed(tmp_path: Path) -> None:
    results = make_up(("dense", "dense_2x", "memory_plus"))
    results["guessers"] = {
        "airport_iata": guessed(0.453),
        "capital_of": guessed(0.049, heldout=900, asked=90),
    }
    # The best model of both knows more than twice as much of the second one.
    said = (
        "Without having read the fact, guessers answer 45.3 % of airport_iata (longest prefix), "
        "and 15.0 % of all held-out questions"
    )
    page = write_report(results, tmp_path).read_text(encoding="utf-8")
    text = " ".join(re.sub("<[^>]+>", " ", page).split())
    assert said in text
    assert "airport_iata can be guessed 900 0.001 0.010 0.020 0.453" in text
    assert "capital_of 900 0.001 0.010 0.020 0.049" in text
    assert "Guessed at were not all held-out questions: 90 of 900 of capital_of." in text
    assert "hint: a 0 among data.exposures" in text
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(render_table(results))
    assert said in " ".join(console.export_text().split())
    # No word of it in the report of results that have none.
    del results["guessers"]
    assert "What can be guessed" not in write_report(results, tmp_path).read_text("utf-8")
    assert guess_notes(results) == []


@pytest.mark.parametrize(
    ("share", "recall", "warns"),
    [
        (0.06, 0.9, True),
        (0.05, 0.9, False),
        (0.03, 0.05, True),
        (0.03, 0.06, False),
        (0.006, 0.0, True),
        (0.004, 0.0, False),
    ],
)
def test_warns_by_share_and_by_what_models_recall(share: float, recall: float, warns: bool) -> None:
    results = make_up(("dense",), seeds=1)
    results["runs"][0]["recall"]["by_relation"]["a"] = {"question_heldout": recall}
    results["guessers"] = {"a": guessed(share, majority=0.0, neighbour=0.0)}
    assert bool(guess_notes(results)) == warns


def test_dense_recall_of_unstated_facts_is_shown(tmp_path: Path) -> None:
    """By the best dense model, over seeds: 2 of 4 and 1 of 4 facts, and of no model with memory."""
    results = make_up(("dense", "dense_2x", "memory_plus"), seeds=2)
    results["kinds"]["dense_2x"] = "dense"
    results["guessers"] = {"airport_iata": guessed(0.4), "capital_of": guessed(0.4)}
    results["exposure"] = {
        "airport_iata": {"subjects": "0 1 2 3 4 5", "statements": "0 8 0 1 0 0", "answers": 6}
    }
    unseen = {"dense": ("010000", "000000"), "dense_2x": ("110001", "011100"),
              "memory_plus": ("111111", "111111")}  # fmt: skip
    for run in results["runs"]:
        answers = unseen[run["variant"]][run["seed"]]
        run["facts"] = {"airport_iata": {"unseen": answers, "p_unseen": "0 0 0 0 0 0"}}
        share = 0.9 if run["variant"] == "memory_plus" else 0.125
        run["recall_by_exposures"] = [{"exposures": 0, "facts": 4, "recall": share}]
    page = write_report(results, tmp_path).read_text(encoding="utf-8")
    rows = {
        cells[0]: cells
        for row in re.findall("<tr>.*?</tr>", page, re.DOTALL)
        if len(cells := [c.split("<")[0] for c in re.split("<t[hd][^>]*>", row)[1:]]) == 8
    }
    assert rows["airport_iata"][6] == "0.375"
    assert rows["capital_of"][6] == "\u2013"
    assert rows["all relations"][6] == "0.125"
    assert "among data.exposures" not in page
    # Nor where no model is dense.
    results["runs"] = [run for run in results["runs"] if run["variant"] == "memory_plus"]
    assert "among data.exposures" not in write_report(results, tmp_path).read_text("utf-8")


def test_table_is_told_before_training(capsys: pytest.CaptureFixture[str]) -> None:
    probes = [probe(f"1{n}", "A") for n in range(4)] + [probe(f"2{n}", "B") for n in range(4)]
    found = tell_guessers(probes)
    assert found == guessers(probes)
    told = capsys.readouterr().err
    assert "Guessed of held-out questions" in told
    assert "Longest prefix" in told
    assert re.search(r"^ *r +8 +0\.500 +0\.000 +\S+ +1\.000", told, re.MULTILINE)
    assert "100.0 % of r (longest prefix)" in " ".join(told.split())
