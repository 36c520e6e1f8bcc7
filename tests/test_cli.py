"""The command line: a whole run through it, and a helpful answer to each first mistake."""

import json
import shlex
from pathlib import Path

import pytest
import yaml
from tests_support import SHAPE, write_facts

from memory_layers.cli import main
from memory_layers.common.version import __version__

ROOT = Path(__file__).parent.parent
COMMANDS = (
    "train", "compare", "scale", "plan", "report", "export", "eval", "generate", "serve", "show",
    "fetch", "patch", "init", "bench",
)  # fmt: skip
CONFIGS = sorted(
    [*ROOT.glob("src/memory_layers/configs/*.yaml"), *ROOT.glob("experiments/*/compare.yaml")]
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    values = {
        "name": "x",
        "model": SHAPE,
        "memory": {"layers": [1], "sub_keys": 8, "top_k": 4, "heads": 2},
        "data": {
            "facts": str(write_facts(tmp_path / "facts")),
            "vocab_size": 300,
            "cache_dir": str(tmp_path / "cache"),
        },
        "optim": {"warmup_steps": 2},
        "train": {"steps": 4, "batch_size": 2, "seq_len": 32},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def error_of(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """Run a command that must fail with exit code 2 and return its one line on stderr."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    return captured.err


def test_train_eval_generate(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    assert main(["train", str(config), "--out", str(out), "--train.eval-items", "5"]) == 0
    trained = capsys.readouterr().out
    assert str(out / "model") in trained
    in_training = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["recall"]
    assert main(["eval", str(out / "model"), "--facts", str(tmp_path / "facts")]) == 0
    assert json.loads(capsys.readouterr().out)["recall"] == in_training
    assert main(["generate", str(out / "model"), "Place 3 has", "--max-tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("Place 3 has")
    assert main(["train", str(config), "--out", str(out), "--train.eval-items", "5"]) == 0


def test_train_on_text_alone(config: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("to be or not to be, that is the question. " * 200)
    values = yaml.safe_load(config.read_text())
    values["data"] |= {"facts": None, "text": [str(tmp_path / "a.txt")]}
    config.write_text(yaml.safe_dump(values))
    out = tmp_path / "out"
    assert main(["train", str(config), "--out", str(out)]) == 0
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["text"]["tokens"] > 10
    assert last["text"]["perplexity"] > 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_show_every_config(path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "parameters" in shown
    plain = yaml.safe_load(shown.split("┏")[0])
    assert all(run["train"]["steps"] > 0 for run in plain.values())


def test_help_and_unknown_commands(capsys: pytest.CaptureFixture) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in COMMANDS:
        assert f"Example: memory-layers {command} " in " ".join(shown.split())
    assert main([]) == 2
    assert capsys.readouterr().out == shown
    message = error_of(capsys, "trian")
    assert "unknown command `trian`" in message
    assert "did you mean 'train'" in message
    assert main(["help"]) == main(["--version"]) == 0
    assert capsys.readouterr().out == f"{shown}{__version__}\n"
    with pytest.raises(SystemExit) as end:
        main(["train", "--help"])
    assert end.value.code == 0
    assert "--optim.lr" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["show", "plan", "init"])
def test_examples_of_help_run(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main([command, "--help"])
    _, *examples = capsys.readouterr().out.split("Example: memory-layers ")
    assert examples
    for example in examples:
        assert main(shlex.split(example.splitlines()[0])) == 0


def test_wrong_files(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert "needs a configuration file" in error_of(capsys, "train")
    assert "cannot be read" in error_of(capsys, "train", str(tmp_path / "no.yaml"))
    assert "cannot be read" in error_of(capsys, "train", str(tmp_path))
    assert "no config.json" in error_of(capsys, "generate", str(tmp_path), "a")
    assert "memory-layers compare" in error_of(capsys, "train", "demo")
    assert "needs `variants:`" in error_of(capsys, "compare", str(config))
    config.write_text("name: [1\n")
    assert "is not valid YAML" in error_of(capsys, "show", str(config))
    config.write_text("name: x\nmodel: {hidden_sizes: 3}\n")
    assert "did you mean 'hidden_size'" in error_of(capsys, "show", str(config))


def test_malformed_facts(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    facts = tmp_path / "facts" / "facts.jsonl"
    facts.write_text(facts.read_text() + '\n{"relation": "code", "subject": "A"}\n')
    assert "facts.jsonl:31" in error_of(capsys, "train", str(config), "--out", str(tmp_path / "o"))
    cache = tmp_path / "cache"
    assert not cache.exists() or not list(cache.iterdir())


def test_mistyped_flag(config: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", str(config), "--optim.lrr", "1"])
    assert end.value.code == 2
    assert "--optim.lr" in capsys.readouterr().err


def test_selection_of_builtin_facts_is_refused_for_others(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    demo = "demo"
    facts = ("--data.facts", str(tmp_path / "facts"), "--out", str(tmp_path / "out"))
    message = error_of(capsys, "compare", demo, *facts, "--data.max-subjects", "9")
    assert "--data.max-subjects selects built-in facts" in message


def test_report_is_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"name": "mine", "runs": []}))
    assert main(["report", str(results), "--out", str(tmp_path / "page")]) == 0
    assert "report.html" in capsys.readouterr().out
    assert "mine" in (tmp_path / "page" / "report.html").read_text()
    for content, says in (("{", "is not valid JSON"), ("{}", "must hold `runs`")):
        results.write_text(content)
        assert main(["report", str(results)]) == 2
        assert says in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


def test_packaged_configurations_have_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "demo", "scale", "compare_all", "1.3b_memory_64m"):
        assert main(["show", name]) == 0
    # A folder that happens to have the name stands in nobody's way, a file has it.
    (tmp_path / "tiny").mkdir()
    capsys.readouterr()
    assert main(["show", "tiny"]) == 0
    assert "name: tiny" in capsys.readouterr().out
    message = error_of(capsys, "train", "tinny")
    assert "did you mean 'tiny'" in message
    assert "demo" in message
