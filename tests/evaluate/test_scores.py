"""Scores of answers in words, and of programs."""

import time
from pathlib import Path

import pytest

from memory_layers.evaluate.programs import passes
from memory_layers.evaluate.scores import (
    exact_match,
    f1,
    hotpotqa,
    humaneval,
    mbpp,
    normalize,
    triviaqa,
)


def test_normalize() -> None:
    assert normalize("  The U.S.\tPresident, an old man! ") == "us president old man"
    assert normalize("Theatre") == "theatre"


@pytest.mark.parametrize(
    ("text", "answers", "exact", "score"),
    [
        ("the Eiffel Tower.", ["Eiffel tower"], 1, 1),
        ("Eiffel", ["Eiffel Tower"], 0, 2 / 3),
        ("Eiffel Tower in Paris", ["London", "Eiffel Tower"], 0, 2 / 3),
        # A word counts as often as both have it.
        ("New York New York", ["York"], 0, 2 / 5),
        ("no", ["yes"], 0, 0),
        ("", ["yes"], 0, 0),
        ("", ["the"], 1, 1),
        ("yes", [], 0, 0),
    ],
)
def test_scores(text: str, answers: list[str], exact: float, score: float) -> None:
    assert exact_match(text, answers) == exact
    assert f1(text, answers) == pytest.approx(score)


def test_programs() -> None:
    assert passes("import math\nassert math.pi > 3")
    # It has left before its tests.
    assert not passes("import sys\nsys.exit(0)\nassert False")
    assert not passes("assert 1 == 2")
    assert not passes("def f(:")
    assert not passes("import memory_layers.nosuch")


def test_endless_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_layers.evaluate.programs.SECONDS", 0.5)
    assert not passes("while True: pass")


def test_a_program_leaves_no_process(tmp_path: Path) -> None:
    late = tmp_path / "late"
    child = f"import time; time.sleep(1); open({str(late)!r}, 'w')"
    assert passes(f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}])")
    time.sleep(1.5)
    assert not late.exists()


def test_triviaqa_and_hotpotqa() -> None:
    doc = {"answer": {"value": "Saint Louis", "aliases": ["St. Louis", "Saint Louis, Missouri"]}}
    assert triviaqa(doc, [" St. Louis"]) == {"exact_match": 1.0, "f1": 1.0}
    assert triviaqa(doc, ["Louis"]) == {"exact_match": 0.0, "f1": pytest.approx(2 / 3)}
    assert hotpotqa({"answer": "yes"}, ["Yes."]) == {"exact_match": 1.0, "f1": 1.0}


def test_humaneval_and_mbpp() -> None:
    doc = {
        "prompt": "def double(x):\n",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
        "entry_point": "double",
    }
    assert humaneval(doc, ["    return 2 * x\n"]) == {"pass_at_1": 1.0}
    assert humaneval(doc, ["    return x\n"]) == {"pass_at_1": 0.0}
    doc = {"test_setup_code": "import math", "test_list": ["assert f(4) == 2", "assert f(0) == 0"]}
    assert mbpp(doc, ["def f(x): return math.isqrt(x)"]) == {"pass_at_1": 1.0}
    assert mbpp(doc, ["def f(x): return x // 2 or 1"]) == {"pass_at_1": 0.0}
