"""How far some work is, in a log file. On a terminal rich draws the bar."""

from types import SimpleNamespace

import pytest

from memory_layers.common import progress
from memory_layers.common.progress import ProgressLine, counted, progress_of


def test_long_work_says_how_much_there_is_and_how_long_it_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with ProgressLine() as line:
        for done in range(6):
            line.update(done * 1000, 9000, "facts")
        line.update(0, 7, "documents")
        line.update(1, 7, "documents")
    # Four seconds a look: the second one is late for the first line, the fifth for the next.
    assert capsys.readouterr().err.splitlines() == [
        "facts 1,000/9,000  32 s left",
        "facts 4,000/9,000  20 s left",
        "documents 1/7  24 s left",
    ]


def test_nobody_knows_how_long_work_takes_that_has_not_moved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE", -1.0)
    ProgressLine().update(0, 9, "run", "starting")
    assert capsys.readouterr().err == "run 0/9  starting\n"


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine() as line:
        assert list(counted(range(2500), 2500, "facts", line.update)) == list(range(2500))
    with progress_of("answers", 3) as advance:
        advance(3)
    assert capsys.readouterr().err == ""


def test_what_is_done_is_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE", -1.0)
    monkeypatch.setattr(progress, "NEXT_LINES", -1.0)
    with progress_of("answers", 5) as advance:
        advance(3)
        advance(2)
    assert list(counted("abc", 3, "letters", ProgressLine().update)) == ["a", "b", "c"]
    said = [line.split("  ")[0] for line in capsys.readouterr().err.splitlines()]
    assert said == [
        "answers 0/5", "answers 3/5", "answers 5/5",
        "letters 0/3", "letters 1/3", "letters 2/3", "letters 3/3",
    ]  # fmt: skip


def test_status_is_said_once_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine()
    # The last run of several is still measured.
    for done in (1, 2, 3, 3, 3):
        line.update(done, 3, "run", f"loss {done}")
    assert capsys.readouterr().err == "run 3/3  0 s left  loss 3\n"


def test_nothing_is_said_when_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine(show=False) as line:
        line.update(0, 3, "facts")
        line.say("text")
    assert capsys.readouterr() == ("", "")


def test_names_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine() as line:
        line.say("\x1b[2Jdocument [1]\r\n")
    progress.tell(["a\x07b"], print)
    assert capsys.readouterr().err.splitlines() == [r"\u001b[2Jdocument [1]", "", r"a\u0007b"]
