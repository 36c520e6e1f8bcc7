"""How far some work is, in a log file. On a terminal rich draws the bar."""

import pytest

from memory_layers.common import progress
from memory_layers.common.progress import ProgressLine, counted


def test_each_work_is_named_once_with_how_much_there_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ProgressLine() as line:
        for name in ("stating facts", "encoding facts"):
            assert list(counted(range(2500), 2500, name, line.update)) == list(range(2500))
    assert capsys.readouterr().err == "stating facts: 2,500\nencoding facts: 2,500\n"


def test_long_work_says_now_and_then_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    line = ProgressLine()
    for done in range(6):
        line.update(done, 10, "facts")
    # Every third look, four seconds apart, is later than ten seconds after the last line.
    assert capsys.readouterr().err.splitlines() == ["facts: 10", "facts 3/10 28 s left  "]


def test_status_is_said_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine()
    for done in (1, 2, 3):
        line.update(done, 3, "run", f"loss {done}")
    assert capsys.readouterr().err == "run 3/3 0 s left  loss 3\n"


def test_nothing_is_said_when_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine(show=False) as line:
        line.update(0, 3, "facts")
        line.say("text")
    assert capsys.readouterr() == ("", "")
