"""The table of targets: every row is measured, judged by its own limit, and rendered."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import targets
from benchmarks.__main__ import main
from benchmarks.inputs import Request, Sizes
from benchmarks.results import ROOT, newest
from benchmarks.targets import ROWS, Plan, measure_targets, target_line
from tools.speed import targets_markdown

SMALL = Sizes(tokens=24, slots=2000, value_dim=16, heads=2, top_k=4, sub_keys=16)
PLAN = Plan(
    sizes=SMALL,
    growth=(500, 2000),
    growth_width=16,
    memory_tokens=256,
    memory_slots=(1000, 2000),
    few=1,
    many=1,
    seconds=0.0,
)


@pytest.fixture(autouse=True)
def small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.harness.SMALLEST_COPY", 2**20)


def silent(_line: object) -> None:
    pass


def test_rows_are_measured_and_judged() -> None:
    emitted: list[dict] = []
    rows = [name for name in ROWS if name not in ("compile", "memory")]
    found = measure_targets(rows, silent, emitted.append, PLAN)
    assert [row["row"] for row in emitted] == rows
    assert found["rows"] == emitted
    json.dumps(found)
    for row in emitted:
        if row["verdict"] == "not measured here":
            assert row["reason"]
            continue
        target = ROWS[row["row"]]
        reached = row["value"] <= target.limit if target.at_most else row["value"] >= target.limit
        assert row["verdict"] == ("holds" if reached else "falls short")
        assert target_line(row).endswith(row["verdict"])
    assert [point["slots"] for point in found["groups"]["growth"]["eager"]] == [500, 2000]
    assert found["groups"]["step"]["variants"]


def test_the_published_figures_are_held_to_these_targets() -> None:
    (_, record), *_ = newest("targets", "cpu")
    published = {row["row"]: row["target"] for row in record["results"]["rows"]}
    assert published == {name: target.text for name, target in ROWS.items()}
    assert {target.group for target in ROWS.values()} == set(targets.GROUPS)


def _tables(*growths: int) -> dict:
    return {"tables": [{"pending": 6, "growth": g, "factors": 10} for g in growths]}


@pytest.mark.parametrize(
    ("name", "found", "value", "verdict"),
    [
        ("compile", {"cold": 21.0, "warm": 2.0}, 19.0, "holds"),
        ("compile", {"cold": 23.0, "warm": 2.0}, 21.0, "falls short"),
        ("memory", _tables(4, 4), 1.0, "holds"),
        ("memory", _tables(4, 9), 1.5, "falls short"),
    ],
)
def test_figures(
    name: str, found: dict, value: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "GROUPS", {ROWS[name].group: lambda _plan, _report: found})
    (row,) = measure_targets((name,), silent, silent, PLAN)["rows"]
    assert row["value"] == pytest.approx(value)
    assert row["verdict"] == verdict


def test_memory_is_measured_in_a_process_of_its_own() -> None:
    found = measure_targets(("memory",), silent, silent, PLAN)
    first, second = found["groups"]["memory"]["tables"]
    assert first["factors"] == second["factors"] == 256 * (8 * 12 + 16 * 4)
    # What is pending is at least slots, weights and gradient at 4 bytes each.
    assert first["pending"] >= 256 * (8 * 8 + 16 * 4)


def test_bf16_products_are_asked_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "multiplies_bf16", lambda: False)
    (row,) = measure_targets(("find_bf16",), silent, silent, PLAN)["rows"]
    assert row["verdict"] == "not measured here"
    assert "avx512_bf16" in row["reason"]


def test_markdown() -> None:
    row = {
        "what": "READ",
        "size": "N = 1",
        "figure": "2.00 ×",
        "target": "≥ 1 ×",
        "verdict": "holds",
        "reason": None,
    }
    missing = {**row, "figure": None, "verdict": "not measured here", "reason": "no bf16"}
    record = {
        "results": {"rows": [row, missing]},
        "versions": {"torch": "2", "numba": "1"},
        "device": "a CPU",
        "threads": 2,
        "date": "2026-01-02T03:04:05+00:00",
        "commit": "abc",
        "dirty": True,
        "command": "memory-layers bench targets",
    }
    text = targets_markdown(record)
    assert "| READ | N = 1 | 2.00 × | ≥ 1 × | holds |" in text
    assert "| READ | N = 1 | – | ≥ 1 × | not measured here: no bf16 |" in text
    assert "commit `abc` with uncommitted changes" in text


def _out_of_memory(_request: object) -> None:
    raise torch.OutOfMemoryError("out of memory")


def test_gpu_runs_go_on_after_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "SUITES", {**command.SUITES, "write": _out_of_memory})
    requests = [Request(op=op, sizes=SMALL) for op in ("read", "write", "find")]

    def run(until: float, count: int) -> int:
        return command.run_all(
            requests[:count], "gpu", tmp_path, until=until, repeats=1, seconds=0.0
        )

    assert run(60, 3) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed")]
    assert failed[0] == "failed: out of memory"
    assert failed[1].startswith("failed: write: tokens=24")
    ops = [json.loads(path.read_text())["op"] for path in sorted(tmp_path.iterdir())]
    assert sorted(ops) == ["find", "read"]
    assert run(-1, 1) == 1
    assert "the time was up" in capsys.readouterr().out.splitlines()[-1]


def test_gpu_needs_a_gpu(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu"]) == 2
    assert "torch sees none" in capsys.readouterr().err


def test_gpu_run_is_rehearsed_with_torch_triton_and_numpy_alone(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    others = ("numba", "transformers", "safetensors", "tokenizers", "rich", "tyro", "yaml")
    program = f"""
import sys
sys.modules.update(dict.fromkeys({others}))
from benchmarks import harness
from benchmarks.__main__ import main
harness.SMALLEST_COPY = 2**20
sys.exit(main(["gpu", "--rehearse", "--out", {str(tmp_path)!r}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left out: it needs transformers" in done.stdout
    found = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    assert {record["op"] for record in found} == {"read", "write", "step", "find", "layer"}
    (step,) = (record for record in found if record["op"] == "step")
    names = [variant["name"] for variant in step["results"]["variants"]]
    assert "atomic-add backward + AdamW(fused=True)" in names
