"""`memory-layers learn`: what people see, what it hands on, and what it refuses before any work."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from example_models import write_example
from example_result import RESULT
from safetensors.torch import load_file
from tests_support import write_facts, write_untrained
from tiny_models import tiny_memory
from transformers import AutoModelForCausalLM

from memory_layers.cli import main
from memory_layers.common.errors import UserError
from memory_layers.learn.display import Display
from memory_layers.learn.result import LearnResult, Point
from memory_layers.models import Fact, Patch, add_memory, record_teaching
from tests.helpers import fresh_interpreter


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """A base and facts in the working folder, and what the teaching is called with."""
    monkeypatch.chdir(tmp_path)
    write_example(tmp_path)
    write_facts(tmp_path / "facts")
    (tmp_path / "more.jsonl").write_text('{"text": "Ice melts."}\n')
    made: list[dict] = []

    def learn(model: str, data: list, *, progress: object, **options: object) -> LearnResult:
        made.append({"model": model, "data": data, **options})
        return replace(RESULT, model=model, out=str(options["out"]))

    teach(monkeypatch, learn)
    return made


def teach(monkeypatch: pytest.MonkeyPatch, learn: Callable) -> None:
    monkeypatch.setitem(sys.modules, "memory_layers.learn.teach", SimpleNamespace(learn=learn))


def test_at_the_end_there_is_a_report(calls: list[dict], capsys: pytest.CaptureFixture) -> None:
    assert main(["learn", "base", "facts", "--out", "taught"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("9 of 10") < shown.index("taught/report.html")
    assert (calls[0]["model"], calls[0]["data"]) == ("base", ["facts"])


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_at_the_end_there_is_a_report_whatever_stdout_takes(
    encoding: str, calls: list[dict]
) -> None:
    shown = fresh_interpreter(
        "import os, sys\n"
        "from dataclasses import replace\n"
        "from types import SimpleNamespace\n"
        "from memory_layers.cli import main\n"
        "from tests.learn.example_result import RESULT\n"
        "out = os.fsdecode(b'J\\xf6rg')\n"
        "teach = SimpleNamespace(learn=lambda *_, **__: replace(RESULT, out=out))\n"
        "sys.modules['memory_layers.learn.teach'] = teach\n"
        "assert main(['learn', 'base', 'facts', '--out', out]) == 0\n",
        PYTHONIOENCODING=encoding,
        PYTHONPATH=os.pathsep.join(sys.path),
    )
    assert "J\\udcf6rg/report.html" in shown


def test_what_is_given_is_handed_on(calls: list[dict]) -> None:
    Path("old").mkdir()
    Path("old/memory.json").write_text("{}")
    flags = "--weights 1 0.5 --minutes 2 --passes 3 --seed 4 --lr 0.1 --max-length 99 --background "
    flags += "more.jsonl --keep more.jsonl --no-chat --shown-fraction 0.5 --known train --onto old "
    flags += "--wordings 2 --dtype bfloat16 --author Ada --out taught --trust-remote-code True"
    assert main(["learn", "base", "facts", "more.jsonl", *flags.split()]) == 0
    (call,) = calls
    assert call == {
        "model": "base", "data": ["facts", "more.jsonl"], "out": Path("taught"),
        "weights": (1.0, 0.5), "minutes": 2.0, "passes": 3, "seed": 4, "lr": 0.1, "max_length": 99,
        "background": (Path("more.jsonl"),), "keep": (Path("more.jsonl"),), "chat": False,
        "shown_fraction": 0.5, "known": "train", "onto": Path("old"), "dtype": torch.bfloat16,
        "author": "Ada", "wordings": 2, "trust_remote_code": True,
    }  # fmt: skip


def test_a_dry_run_looks_at_the_data_alone(
    calls: list[dict], capsys: pytest.CaptureFixture
) -> None:
    assert main(["learn", "base", "facts", "--dry-run"]) == 0
    assert "Place" in capsys.readouterr().out
    assert calls == []
    assert not Path("taught").exists()


def test_a_dry_run_refuses_a_model_that_has_memory(
    calls: list[dict], capsys: pytest.CaptureFixture
) -> None:
    write_untrained(Path("taught"))
    assert main(["learn", "taught", "facts", "--dry-run"]) == 2
    assert "has memory layers already. hint" in capsys.readouterr().err


def test_progress_has_learning_and_forgetting_side_by_side(
    calls: list[dict], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def learn(*_: object, progress: object, **__: object) -> LearnResult:
        progress.stage("the model writes text")
        progress.work(1, 2, "texts")
        progress.point(Point(1, 10, 30.0, 2.125, 0.5, None, 0.0012, None))
        progress.point(Point(2, 20, 60.0, 0.625, 0.75, 0.25, 0.0034, 0.98))
        return RESULT

    teach(monkeypatch, learn)
    assert main(["learn", "base", "facts", "--out", "out", "--minutes", "2"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert "the model writes text" in lines
    rows = [line.split() for line in lines if "%" in line]
    assert rows == [
        ["1", "2.125", "0.500", "-", "+0.12", "%", "-", "1.5"],
        ["2", "0.625", "0.750", "0.250", "+0.34", "%", "2.0", "%", "1.0"],
    ]


def test_an_interrupted_teaching_keeps_what_was_learned(
    calls: list[dict], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    teach(monkeypatch, lambda *_, **__: replace(RESULT, out="taught", stopped="interrupted"))
    assert main(["learn", "base", "facts", "--out", "taught"]) == 130
    captured = capsys.readouterr()
    assert "9 of 10" in captured.out
    assert "kept" in captured.err


def test_what_the_teaching_refuses_is_said_in_a_line(
    calls: list[dict], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def learn(*_: object, **__: object) -> LearnResult:
        raise UserError("--out taught: was taught from other data")

    teach(monkeypatch, learn)
    assert main(["learn", "base", "facts", "--out", "taught"]) == 2
    assert capsys.readouterr().err == "error: --out taught: was taught from other data\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("base facts", "--out is missing"),
        ("base --out o", "DATA is missing"),
        ("nowhere/x facts --out o", "nowhere/x"),
        ("base nowhere --out o", "nowhere: there is no"),
        ("base facts --out more.jsonl", "is a file"),
        ("base facts --out o --minutes 0", "--minutes"),
        ("base facts --out o --minutes inf", "--minutes"),
        ("base facts --out o --lr -1", "--lr"),
        ("base facts --out o --passes 0", "--passes"),
        ("base facts --out o --seed -1", "--seed must be"),
        (f"base facts --out o --seed {2**64}", "--seed must be"),
        ("base facts --dry-run --shown-fraction 2", "shown_fraction"),
        ("base facts --dry-run --weights 1 2", "weights"),
        ("base facts --out o --chat --no-chat", "--no-chat"),
        ("base facts --out o --keep nowhere", "nowhere: there is no"),
        ("base facts --out o --background more.jsonl nowhere", "nowhere: there is no"),
        ("base facts --out o --onto facts", "--onto facts"),
        ("base facts --forget x --onto old --out o", "--forget takes no DATA"),
        ("base --forget x --out o", "--forget needs --onto"),
        ("base --forget x --onto old --out o --seed 1", "--seed has no effect"),
        ("base --forget x --onto old --out facts", "is not a patch"),
    ],
)
def test_mistakes(
    arguments: str, said: str, calls: list[dict], capsys: pytest.CaptureFixture
) -> None:
    Path("old").mkdir()
    Path("old/memory.json").write_text("{}")
    assert main(["learn", *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert said in captured.err
    assert captured.out == ""
    assert calls == []


def taught(*facts: Fact) -> Patch:
    base = AutoModelForCausalLM.from_pretrained("base")
    model = add_memory(base, tiny_memory(placement="beside", value_init_std=0))
    with torch.no_grad():
        model.model.memory_table.weight[[1, 2, 7]] = torch.randn(3, 16)
    return record_teaching(model, facts=facts)


def test_forgetting_on_purpose(calls: list[dict], capsys: pytest.CaptureFixture) -> None:
    como = Fact("Lake Como is in", "Italy", torch.tensor([1, 2]))
    inari = Fact("Lake Inari is in", "Finland", torch.tensor([2, 7]))
    taught(como, inari).save("lakes")
    assert main(["learn", "base", "--onto", "lakes", "--forget", "inari", "--out", "fewer"]) == 0
    shown = capsys.readouterr().out
    assert "Lake Inari is in Finland" in shown
    # Slot 2 is kept for the other one, and may still answer.
    assert "kept: 1 row" in shown
    assert "may still be answered with these: Lake Inari is in. hint" in shown
    assert "teach it again: Lake Como is in\n" in shown
    rows, left = (
        torch.cat([v for k, v in load_file(f"{name}/memory.safetensors").items() if "slots" in k])
        for name in ("lakes", "fewer")
    )
    assert (rows.tolist(), left.tolist()) == ([1, 2, 7], [1, 2])
    assert calls == []
    assert main(["learn", "base", "--onto", "lakes", "--forget", "Oslo", "--out", "o"]) == 2
    assert not Path("o").exists()


def test_forgetting_replaces_no_other_patch_and_takes_its_own_report_away(
    calls: list[dict], capsys: pytest.CaptureFixture
) -> None:
    como = Fact("Lake Como is in", "Italy", torch.tensor([1]))
    patch = taught(como)
    report = "result.json", "report.html"
    for folder in ("lakes", "other"):
        patch.save(folder)
        for name in report:
            (Path(folder) / name).write_text("Como: learned")
    before = {path: path.read_bytes() for path in Path("other").iterdir()}
    forget = ["learn", "base", "--onto", "lakes", "--forget", "Como", "--out"]
    assert main([*forget, "other"]) == 2
    assert "--out other has another patch" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("other").iterdir()} == before
    # Of a teaching that was killed before it wrote anything whole.
    Path("left").mkdir()
    Path("left/.unfinished.safetensors.here.1.part").write_text("half")
    assert main([*forget, "left"]) == 0
    assert "removed" not in capsys.readouterr().out
    assert main([*forget, "lakes"]) == 0
    shown = capsys.readouterr().out
    assert all(f"lakes/{name}" in shown for name in report)
    assert {path.name for path in Path("lakes").iterdir()} == {"memory.json", "memory.safetensors"}
    # Here another patch may be replaced, and its report goes too.
    assert main(["patch", "merge", "lakes", "--out", "other"]) == 0
    assert "other/report.html" in capsys.readouterr().out
    assert not Path("other/report.html").exists()


def test_facts_that_share_their_rows_are_forgotten_together(
    calls: list[dict], capsys: pytest.CaptureFixture
) -> None:
    facts = [Fact("Inari: land", "Finland", torch.tensor([1, 2])),
             Fact("Inari: depth", "92 m", torch.tensor([1, 2])),
             Fact("Como: land", "Italy", torch.tensor([7]))]  # fmt: skip
    taught(*facts).save("lakes")
    forget = ["learn", "base", "--onto", "lakes", "--out", "fewer", "--forget"]
    # Also beside one that can be forgotten.
    for texts in (["92"], ["92", "Como"]):
        assert main([*forget, *texts]) == 2
        assert "'Inari: depth' cannot be taken out alone" in capsys.readouterr().err
    assert not Path("fewer").exists()
    assert main([*forget, "92", "Finland"]) == 0
    assert "2 rows" in capsys.readouterr().out


def test_on_a_terminal_one_bar_follows_the_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Display(1) as display:
        for number in range(1, 4):
            display.work(1, 2, f"pass {number}")
            display.point(Point(number, 10, 30.0, 2.0, 0.5, None, 0.0, None))
    # What is drawn last stays on the screen.
    last = capsys.readouterr().err.split("minutes left")[-1].split("\x1b[2K")[-1]
    assert "pass 3" in last
    assert "pass 2" not in last
