"""The report of a sweep shows what results.json holds, and draws each figure from its data."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from rich.console import Console

from memory_layers.study.fits import fit_sweep
from memory_layers.study.plots.sweep import PLOT_NAMES, slots_label
from memory_layers.study.report import render_scale_table, scale_rows, write_scale_report

BASES = ("small", "middle", "<b>large")
HOSTILE = "<script>alert(1)</script>"


def make_run(base: str, slots: int, seed: int) -> dict[str, Any]:
    flops = 2.0 ** (18 + BASES.index(base))
    line = -10 + 0.5 * np.log2(flops) + 0.1 * np.log2(max(slots, 1)) + 0.1 * seed
    recall = float(1 / (1 + np.exp(-line)))
    return {
        "variant": f"{base}-slots{slots}",
        "base": base,
        "slots": slots,
        "seed": seed,
        "status": "ok",
        "flops_per_token": flops,
        "params_total": 1000 + slots,
        "tokens": 500,
        "seconds": 3.0,
        "recall": {"question_heldout": recall},
        "answer_nll": {"question_heldout": 2 * (1 - recall)},
        "slot_usage": {"used_share": 0.5} if slots else None,
    }


def make_results(change: Callable[[list[dict]], object] = lambda runs: None) -> dict[str, Any]:
    sizes = (0, 256, 4096, 2**20)
    runs = [make_run(base, n, seed) for base in BASES for n in sizes for seed in (0, 1)]
    change(runs)
    return {
        "name": HOSTILE,
        "workers": 2,
        "threads": 1,
        "facts": {"facts": 3200, "source": "builtin"},
        "bases": list(BASES),
        "slots": list(sizes),
        "seeds": [0, 1],
        "runs": runs,
        **fit_sweep(runs),
    }


def test_page_figures_and_data(tmp_path: Path) -> None:
    results = make_results()
    page = write_scale_report(json.loads(json.dumps(results)), tmp_path).read_text()
    assert HOSTILE not in page
    assert "<b>large" not in page
    for text in (
        "taught 3,200 facts",
        "no memory",
        "1M slots",
        "Fitted laws",
        "lie outside",
        "Recall over memory size.",
    ):
        assert text in page
    assert page.count("data:image/png;base64,") == len(PLOT_NAMES)
    files = {path.name for path in (tmp_path / "plots").iterdir()}
    assert files == {f"{name}.{kind}" for name in PLOT_NAMES for kind in ("png", "csv")}

    text = (tmp_path / "plots" / "recall_exchange.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    rates = [e for e in results["exchange"] if e["metric"] == "recall"]
    assert [(r["base"], float(r["y"])) for r in rows] == [(e["base"], e["times"]) for e in rates]
    text = (tmp_path / "plots" / "answer_nll_over_slots.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    runs = [float(row["y"]) for row in rows if row["kind"] == "run"]
    assert runs == [run["answer_nll"]["question_heldout"] for run in results["runs"]]
    curve = [float(row["y"]) for row in rows if (row["kind"], row["base"]) == ("fit", "middle")]
    assert curve == results["fits"]["slots"]["middle"]["answer_nll"]["curve"]["y"]


def test_rows_and_terminal() -> None:
    def kill(runs: list[dict]) -> None:
        runs[1] = {k: runs[1][k] for k in ("variant", "base", "slots", "seed")}
        runs[1] |= {"status": "out_of_memory", "error": "line 1\nMemoryError: [red] full"}

    results = make_results(kill)
    rows = scale_rows(results)
    assert [(row["base"], row["slots"]) for row in rows[:3]] == [
        ("small", 0), ("small", 256), ("small", 4096),
    ]  # fmt: skip
    assert (len(rows[0]["runs"]), len(rows[0]["failed"])) == (1, 1)
    assert rows[0]["recall"]["n"] == 1
    values = [run["recall"]["question_heldout"] for run in results["runs"][2:4]]
    assert rows[1]["recall"]["mean"] == pytest.approx(sum(values) / 2)
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(render_scale_table(results))
    text = console.export_text()
    assert "small, dense, seed 1 out of memory: MemoryError: [red] full" in text
    times = rows[1]["exchange"]["recall"]["times"]
    assert f"{times:.2f} ×" in text


def test_sweep_in_which_little_can_be_fitted(tmp_path: Path) -> None:
    """One base without dense runs, then no finished run at all: no figures are made up."""
    results = make_results(lambda runs: runs.__setitem__(slice(None), runs[2:4]))
    page = write_scale_report(results, tmp_path).read_text()
    assert "no fit: 0 measured points, a fit needs 3" in page
    files = {path.stem for path in (tmp_path / "plots").iterdir()}
    assert files == {f"{m}_over_{x}" for m in ("recall", "answer_nll") for x in ("slots", "flops")}

    def fail(runs: list[dict]) -> None:
        for run in runs:
            run |= {"status": "diverged", "error": "nan"}

    page = write_scale_report(make_results(fail), tmp_path).read_text()
    assert "24 of 24 runs did not finish" in page
    assert "diverged: nan" in page
    assert not list((tmp_path / "plots").iterdir())


@pytest.mark.parametrize(
    ("slots", "label"), [(256, "256"), (4096, "4k"), (2**20, "1M"), (10_000, "10.0k")]
)
def test_labels_of_slots(slots: int, label: str) -> None:
    assert slots_label(slots) == label
