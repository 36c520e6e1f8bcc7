"""The table of targets: every row is measured, judged by its own limit, and rendered."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, targets
from benchmarks.__main__ import main
from benchmarks.gpu import run_all
from benchmarks.sizes import Sizes
from benchmarks.tables import targets_markdown
from benchmarks.target_runs import Plan
from benchmarks.targets import ROWS, measure_targets, target_line

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
    monkeypatch.setattr("benchmarks.copying.SMALLEST_BYTES", 2**20)


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


def test_limits_are_those_of_the_issue() -> None:
    limits = {name: (target.limit, target.at_most) for name, target in ROWS.items()}
    assert limits == {
        "read_write": (14, False),
        "growth": (1.3, True),
        "read_fp32": (0.9, False),
        "read_bf16": (1.6, False),
        "write": (0.8, False),
        "find_selection": (5, False),
        "find_fp32": (2.2, False),
        "find_bf16": (4, False),
        "layer": (6, False),
        "memory": (1.05, True),
        "compile": (20, True),
    }
    plan = Plan()
    assert plan.sizes == Sizes(tokens=2048, slots=2**20, value_dim=512, sub_keys=1024)
    assert plan.growth == (2**18, 2**20, 2**22)
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


def test_gpu_runs_go_on_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(gpu, "SUITES", {**gpu.SUITES, "write": _out_of_memory})
    monkeypatch.setattr(gpu, "measure", partial(gpu.measure, seconds=0.0))
    runs = [("read", SMALL), ("write", SMALL), ("find", SMALL)]
    cpu = torch.device("cpu")
    assert run_all(runs, cpu, tmp_path, lines.append, seconds=60, repeats=1) == 1
    failed = [line for line in lines if line.startswith("failed")]
    assert failed[0] == "failed: out of memory"
    assert failed[1].startswith("failed: write: tokens=24")
    ops = [json.loads(path.read_text())["op"] for path in sorted(tmp_path.iterdir())]
    assert sorted(ops) == ["find", "read"]
    assert run_all(runs[:1], cpu, tmp_path, lines.append, seconds=-1, repeats=1) == 1
    assert "the time was up" in lines[-1]


def test_gpu_needs_a_gpu(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu"]) == 2
    assert "torch sees none" in capsys.readouterr().err
