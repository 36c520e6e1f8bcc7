"""Scores of answers in words, and of programs."""

import pytest

from memory_layers.evaluate.normalize import normalize_squad
from memory_layers.evaluate.scores import (
    hotpotqa,
    humaneval,
    is_over,
    matches,
    mbpp,
    question,
    score_answer,
    triviaqa,
)


def test_squad_normalisation() -> None:
    assert normalize_squad("  The U.S.\tPresident, an old man! ") == "us president old man"
    assert normalize_squad("Theatre") == "theatre"


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("3.14", "314"), ("-2", "+2"), ("-2", "2"), ("1/2", "12"), ("C", "C++"), ("C#", "C++"),
        ("F", "F#"), ("NET", ".NET"), ("A+", "A-"), ("A", "A-"), ("", "A"), (" ", "the"),
        ("the", "A"), ("minor", "A minor"), ("Vitamin", "Vitamin A"), ("102", "10²"),
        ("10⁶", "10⁻⁶"), ("5", "5%"), ("5", "$5"), ("€5", "$5"), ("5 m", "5 km"), ("5", "5 km"),
        ("5 mW", "5 MW"), ("20 °F", "20 °C"), ("15", "1,5"), ("1000", "1.000"), ("3.1", "3.10"),
        ("15", "1e5"), ("1e5", "1e-5"), ("5", "5!"), ("5'", '5"'), ("क", "कि"), ("กน", "กิน"),
        ("ملك", "مَلِك"), ("か", "が"), ("Cote", "Côte"), ("fx", "f(x)"), ("Nodejs", "Node.js"),
        ("!=", "="), ("<5", ">5"), ("192.16811", "192.168.1.1"), ("11/2", "1½"), ("12", "1, 2"),
        ("Paris, France", "Paris"), ("Paris Saint-Germain", "Paris"), (",", "."), ("7", "007"),
        ("5 MB", "5 Mb"), ("8 Pa", "8 pA"), ("3 mm", "3 mM"), ("3 mm", "3 Mm"), ("2 s", "2 S"),
        ("5 MB/s", "5 Mb/s"), ("5M", "5m"), ("x²", "x2"), ("e²", "e2"), ("(a)²", "(a)2"),
        ("f'", "f"), ("f''", "f'"), ("f′", "f"), ("n!", "n"), ("3x²", "3×2"), ("Maße", "Masse"),
        ("5''", "5'"), ("2 h", "2 H"), ("4 t", "4 T"),
    ],
)  # fmt: skip
def test_other_facts_are_told_apart(reply: str, answer: str) -> None:
    assert not matches(reply, answer)
    assert not matches(answer, reply)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("Paris.", "paris"), ("the Eiffel Tower.", "Eiffel tower"), ('"Paris."', "Paris"),
        ("“Paris”", "Paris"), ("(Paris)", "Paris"), ("「東京」", "東京"), ("東京。", "東京"),
        ("東 京", "東京"), ("A.", "A"), ("a", "A"), ("a dog", "dog"), ("C++.", "c++"),
        (".net", ".NET"), ("1,000", "1000"), ("1\u202f000", "1000"), (".5", "0.5"),
        ("½", "1/2"), ("1 1/2", "1½"), ("３．１４", "3.14"), ("٣٫١٤", "3.14"), ("−2", "-2"),
        ("5km", "5 km"), ("5 %", "5 percent"), ("5 €", "€5"), ("20°C", "20 ℃"),
        ("6 x 10^7", "6×10⁷"), ("6E7", "6×10⁷"), ("CO₂", "CO2"), ("Ca2+", "Ca²⁺"),
        ("U.S.", "US"), ("Washington DC", "Washington, D.C."), ("O’Brien", "O'Brien"),
        ("5 gb", "5 GB"), ("5 KM", "5km"), ("5 mL", "5 ml"), ("6 PM", "6 pm"), ("5TH", "5th"),
        ("9 m²", "9 m2"), ("9 m^2", "9m²"), ("9 m/s²", "9 m/s^2"), ("9 m s⁻¹", "9 m s^-1"),
        ("x²", "x^2"), ("x¹²", "x^12"), ("«A»", "A"), ("“A”", "A"), ("“f”.", "f"),
        ("Paris!", "Paris"), ("3 µm", "3 μm"), ("Straße", "STRAẞE"), ("ΟΔΟΣ", "οδος"),
        ("A\u030alesund", "Ålesund"), ("भारत।", "भारत"), ("a\nb", "a  b"),
        ("a tale of two cities", "A Tale of Two Cities"), ("no-break\u00a0space", "no-break space"),
    ],
)  # fmt: skip
def test_what_tells_no_facts_apart_is_left_out(reply: str, answer: str) -> None:
    assert matches(reply, answer)
    assert matches(answer, reply)
    assert score_answer(reply, [answer]) == {"exact_match": 1, "f1": 1}


@pytest.mark.parametrize(
    ("text", "answers", "exact", "score"),
    [
        ("the Eiffel Tower.", ["Eiffel tower"], 1, 1),
        ("Eiffel", ["Eiffel Tower"], 0, 2 / 3),
        ("Eiffel Tower in Paris", ["London", "Eiffel Tower"], 0, 2 / 3),
        # A word counts as often as both have it.
        ("New York New York", ["York"], 0, 2 / 5),
        # Each letter is a word in Han.
        ("東京都", ["東京"], 0, 4 / 5),
        ("no", ["yes"], 0, 0),
        ("", ["yes"], 0, 0),
        ("", ["the"], 0, 0),
        ("yes", [], 0, 0),
    ],
)
def test_scores(text: str, answers: list[str], exact: float, score: float) -> None:
    for squad in (False, True) if text.isascii() else (False,):
        scores = score_answer(text, answers, squad=squad)
        assert scores == {"exact_match": exact, "f1": pytest.approx(score)}


def test_the_papers_tasks_are_scored_as_squad_does() -> None:
    assert triviaqa({"answer": {"value": "3.14", "aliases": []}}, ["314"])["exact_match"] == 1
    assert hotpotqa({"answer": "A"}, [""]) == {"exact_match": 0.0, "f1": 0.0}
    assert question({"answers": ["3.14"]}, ["314"])["exact_match"] == 0


@pytest.mark.parametrize(
    ("answer", "following", "over"),
    [
        ("ASP", ".NET", False), ("ASP", ".", True), ("main", "()", False), ("Paris", " (in", True),
        ("C", "++", False), ("1", "/2", False), ("5", "%", False), ("भारत", "।", True),
        ("東京", "。", True), ("x", ":y", False),
    ],
)  # fmt: skip
def test_where_an_answer_ends(answer: str, following: str, over: bool) -> None:
    assert is_over(answer, following) is over


def test_triviaqa_and_hotpotqa() -> None:
    doc = {"answer": {"value": "Saint Louis", "aliases": ["St. Louis", "Saint Louis, Missouri"]}}
    assert triviaqa(doc, [" St. Louis"]) == {"exact_match": 1.0, "f1": 1.0}
    assert triviaqa(doc, ["Louis"]) == {"exact_match": 0.0, "f1": pytest.approx(2 / 3)}
    assert hotpotqa({"answer": "yes"}, ["Yes."]) == {"exact_match": 1.0, "f1": 1.0}


def test_humaneval_and_mbpp() -> None:
    doc = {
        "prompt": "def twice(x):\n    return 2 * x\n\ndef double(x):\n",
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(2) == twice(2)\n",
        "entry_point": "double",
    }
    assert humaneval(doc, ["    return 2 * x\n"]) == {"pass_at_1": 1.0}
    assert humaneval(doc, ["    return x\n"]) == {"pass_at_1": 0.0}
    # Its own helper is not what it is compared with.
    cheat = "    return twice(x)\ndef twice(x):\n    return 0\n"
    assert humaneval(doc, [cheat]) == {"pass_at_1": 0.0}
    doc = {
        "code": "import math\ndef sum(x): return math.isqrt(x)",
        "test_setup_code": "",
        "test_list": ["assert sum(4) == 2", "assert math.isclose(sum(0), 0)"],
    }
    assert mbpp(doc, ["def sum(x): return int(x ** 0.5)"]) == {"pass_at_1": 1.0}
    assert mbpp(doc, ["def sum(x): return x // 2 or 1"]) == {"pass_at_1": 0.0}
    # They call what they are about, whose name is one of Python's here.
    assert mbpp(doc, ["def total(x): return int(x ** 0.5)"]) == {"pass_at_1": 0.0}
