"""`python -m benchmarks`: files, refusals, comparisons. A wrong variant: no numbers, no file."""

import json
from functools import partial
from pathlib import Path

import pytest
import yaml
from tests_support import SHAPE, write_facts

from benchmarks import __main__ as command
from benchmarks import results
from benchmarks.cases import SUITES, read
from memory_layers.cli import main
from tools.speed import suite_markdown

SMALL = ("--sizes", "tokens=20", "slots=500", "value_dim=16", "heads=2", "top_k=4")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "measure", partial(command.measure, seconds=0.0))
    monkeypatch.setattr("benchmarks.harness.SMALLEST_COPY", 2**20)


def error_of(capsys: pytest.CaptureFixture, *arguments: object, code: int = 2) -> str:
    capsys.readouterr()
    assert command.main([*map(str, arguments)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("error: ")
    return last


def run(path: Path, *flags: str) -> dict:
    assert command.main(["read", *SMALL, "--repeats", "2", "--out", str(path), *flags]) == 0
    return json.loads(path.read_text("utf-8"))


def test_result_file_holds_what_the_numbers_depend_on(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "new" / "a.json"
    record = run(path, "--slots", "zipf", "--impl", "reference")
    captured = capsys.readouterr()
    assert "gather_sum bfloat16" in captured.out
    assert f"result: {path}" in captured.out
    assert "checking gather_sum float32" in captured.err
    assert record["schema"] == results.SCHEMA
    assert record["sizes"]["tokens"] == 20
    assert record["slots"] == "zipf"
    assert record["impl"] == "reference"
    assert record["command"].startswith("python -m benchmarks read --sizes tokens=20")
    assert record["results"]["facts"]["distribution"]["exponent"] == 1.0
    assert set(results.REQUIRED) <= set(record)
    assert {"torch", "numba", "python", "memory_layers"} <= set(record["versions"])
    assert all(len(v["samples_ms"]) >= 2 for v in record["results"]["variants"])
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]
    table = suite_markdown(results.read_result(path))
    assert table.count("\n| ") == len(record["results"]["variants"])
    assert record["device"] in table


def test_default_path_names_device_date_commit_and_suite(tmp_path: Path) -> None:
    record = run(tmp_path / "a.json")
    changes = {"device": "AMD EPYC, 2 cores", "commit": "abc", "date": "2026-01-02T03:04:05+00:00"}
    path = results.default_path({**record, **changes})
    assert path.parent == results.ROOT / "benchmarks" / "results" / "amd-epyc-2-cores"
    assert path.name == "20260102T030405_abc_read.json"


def test_newest_result_of_a_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "ROOT", tmp_path)
    assert results.newest("read", "cpu") == []
    folder = tmp_path / "benchmarks" / "results" / "x"
    record = run(folder / "z.json")
    for name, changes in {
        "a.json": {"date": "2099-01-01T00:00:00+00:00"},
        "b.json": {"date": "2099-01-02T00:00:00+00:00", "device_type": "cuda"},
        "c.json": {"date": "2099-01-03T00:00:00+00:00", "op": "find"},
        "d.json": {"date": "2000-01-01T00:00:00+00:00", "slots": "zipf"},
    }.items():
        (folder / name).write_text(json.dumps({**record, **changes}))
    assert [path.name for path, _ in results.newest("read", "cpu")] == ["d.json", "a.json"]
    assert [path.name for path, _ in results.newest("read", "cuda")] == ["b.json"]


def test_a_wrong_result_leaves_no_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = read.gather_sum
    monkeypatch.setattr(read, "gather_sum", lambda *a, **k: right(*a, **k) * 1.01)
    out = tmp_path / "a.json"
    message = error_of(capsys, "read", *SMALL, "--out", out, code=1)
    assert "gather_sum float32 is wrong" in message
    assert not out.exists()


def test_existing_files_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "a.json"
    path.write_text("mine")
    assert "a result is never replaced" in error_of(capsys, "read", *SMALL, "--out", path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("reed",), "did you mean 'read'?"),
        (("read", "--sizes", "tokns=3"), "did you mean 'tokens'?"),
        (("read", "--repeats", "0"), "--repeats must be >= 1, got 0"),
        (("read", "--slots", "recorded"), "needs --model"),
        (("read", "--slots", "recorded", "--model", "x", "--sizes", "slots=4"), "is the model's"),
        (("read", "--slots", "recorded", "--model", "x"), "no config.json"),
        (("targets", "--rows", "read_fp23"), "did you mean 'read_fp32'?"),
        (("compare", "a.json"), "compare expects two result files"),
        (("compare", "a.json", "b.json"), "a.json cannot be read"),
    ],
)
def test_first_mistakes(
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in error_of(capsys, *arguments)


@pytest.mark.parametrize("flags", [("--slots", "zipff"), ("--devise", "cpu"), ("--device", "tpu")])
def test_wrong_flags(flags: tuple[str, ...], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(["read", *flags])
    assert end.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_has_examples(capsys: pytest.CaptureFixture) -> None:
    assert command.main(["--help"]) == 0
    assert "examples:" in capsys.readouterr().out
    assert command.main([]) == 2
    for what, example in (("read", "read --sizes"), ("targets", "targets --rows")):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            command.main([what, "--help"])
        assert end.value.code == 0
        assert f"Example: python -m benchmarks {example}" in " ".join(
            capsys.readouterr().out.split()
        )


def test_every_command_is_listed(capsys: pytest.CaptureFixture) -> None:
    command.main(["--help"])
    words = capsys.readouterr().out.split()
    for what in (*SUITES, "targets", "compare", *command.OTHERS):
        assert what in words


def test_the_package_runs_the_benchmarks_of_its_checkout(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["bench", "--help"]) == 0
    assert "python -m benchmarks WHAT" in capsys.readouterr().out
    installed = tmp_path / "lib" / "python" / "memory_layers" / "cli" / "commands.py"
    monkeypatch.setattr("memory_layers.cli.folders.__file__", str(installed))
    assert main(["bench", "read"]) == 2
    assert "in a checkout of the project, python -m benchmarks read" in capsys.readouterr().err


def test_compare_says_same_inside_the_spread(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    record = run(tmp_path / "a.json")
    slower = json.loads(json.dumps(record))
    first, second, third, *_ = slower["results"]["variants"]
    for name in ("median_ms", "p20_ms", "p80_ms"):
        first[name] *= 100
    slower["results"]["variants"].remove(third)
    (tmp_path / "b.json").write_text(json.dumps(slower))
    capsys.readouterr()
    assert command.main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    by_name = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert by_name[first["name"]].endswith("100.00 × slower")
    assert by_name[second["name"]].endswith("same")
    assert by_name[third["name"]].endswith("only in A")


def test_what_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    record = run(a)
    for name, value in (("sizes", {}), ("op", "find"), ("device", "another")):
        b.write_text(json.dumps({**record, name: value}))
        assert f"differ in {name}" in error_of(capsys, "compare", a, b)
    for text, message in (
        ("[1, 2]", "is no result file: schema"),
        ("{", "it is not JSON"),
        (json.dumps({**record, "schema": 99}), "has schema 99, this version reads 1"),
    ):
        b.write_text(text)
        assert message in error_of(capsys, "compare", a, b)


def test_recorded_slots_are_those_of_the_model(tmp_path: Path) -> None:
    config = {
        "name": "x",
        "model": SHAPE,
        "memory": {"layers": [0, 1], "sub_keys": 8, "top_k": 4, "heads": 2},
        "data": {
            "facts": str(write_facts(tmp_path / "facts")),
            "vocab_size": 300,
            "cache_dir": str(tmp_path / "cache"),
        },
        "optim": {"warmup_steps": 1},
        "train": {"steps": 2, "batch_size": 2, "seq_len": 32},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out")]) == 0
    flags = ["--slots", "recorded", "--model", str(tmp_path / "out" / "model")]
    flags += ["--sizes", "tokens=100", "dtype=float32", "--repeats", "1"]
    assert command.main(["read", *flags, "--out", str(tmp_path / "a.json")]) == 0
    record = json.loads((tmp_path / "a.json").read_text())
    facts = record["results"]["facts"]
    assert facts["distribution"]["name"] == "recorded"
    assert 1 <= facts["distinct_rows"] <= 64
    rows = next(v for v in record["results"]["variants"] if v["name"] == "gather_sum float32")
    # 100 tokens, J = 2 * 4 reads of V = 16 numbers.
    assert rows["bytes"] == 100 * 8 * 16 * 4 + 100 * 8 * 12 + 100 * 16 * 4
    # The sizes are the model's, whatever the defaults are.
    assert record["sizes"] == {"tokens": 100, "slots": 64, "value_dim": 16, "heads": 2, "top_k": 4,
                               "dtype": "float32"}  # fmt: skip
