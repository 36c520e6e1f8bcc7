"""Variants that are trained for the same time: steps from measured or made-up times of a step."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests_support import write_study

from memory_layers.common.errors import UserError
from memory_layers.study import step_time
from memory_layers.study.compare import compare
from memory_layers.study.config import CompareConfig, load_compare
from memory_layers.study.match import Matched, match_variants
from memory_layers.study.runs import prepare_runs
from memory_layers.study.step_time import match_seconds, measure_steps

MEMORY = {"layers": [1], "sub_keys": 8, "top_k": 4, "heads": 2}
# Seconds of steps. The median is not moved by one that was held up.
TIMES = {"dense": [0.1, 0.1, 9.0], "plus": [0.3, 0.2, 0.2], "wide": [1.0, 1.0, 1.0]}


def load(folder: Path, **changes: Any) -> CompareConfig:
    values = {
        "memory": MEMORY,
        "train": {
            "steps": 60, "batch_size": 2, "seq_len": 32, "eval_every": 20, "checkpoint_every": 0,
        },
        "match": "seconds",
        "variants": {
            "dense": "dense", "plus": "memory_plus", "wide": {"model": {"mlp_size": 64}},
        },
        **changes,
    }  # fmt: skip
    return load_compare(write_study(folder / "compare.yaml", **values))


def match(config: CompareConfig, out: Path) -> Matched:
    matched = match_variants(config, dict.fromkeys(config.overrides, 300))
    return match_seconds(config, matched, out, 1, 1)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Measurements take no time. The variants of each are listed."""
    asked = []

    def fake(runs: dict, _workers: int, _threads: int) -> dict[str, list[float]]:
        asked.append(list(runs))
        return {name: TIMES[name] for name in runs}

    monkeypatch.setattr(step_time, "measure_steps", fake)
    return asked


@pytest.mark.usefixtures("measured")
def test_all_are_expected_to_take_as_long(tmp_path: Path) -> None:
    result = match(load(tmp_path), tmp_path)
    steps = {name: run.train.steps for name, run in result.variants.items()}
    assert steps == {"dense": 120, "plus": 60, "wide": 12}
    # As many evaluations, and still no checkpoint but the last.
    assert [run.train.eval_every for run in result.variants.values()] == [40, 20, 4]
    assert {run.train.checkpoint_every for run in result.variants.values()} == {0}
    assert result.record["tokens"] is None
    assert result.record["seconds"] == {
        "reference": "plus",
        "target": pytest.approx(12.0),
        "off": {"dense": pytest.approx(0), "plus": 0, "wide": pytest.approx(0)},
        "step": {"dense": 0.1, "plus": 0.2, "wide": 1.0},
    }


@pytest.mark.usefixtures("measured")
def test_another_reference_and_a_variant_with_the_steps_of_the_file(tmp_path: Path) -> None:
    variants = {"dense": "dense", "plus": "memory_plus", "wide": {"match": []}}
    train = {"steps": 7, "batch_size": 2, "seq_len": 32, "eval_every": 3, "checkpoint_every": 7}
    config = load(tmp_path, variants=variants, reference={"seconds": "dense"}, train=train)
    result = match(config, tmp_path)
    assert [run.train.steps for run in result.variants.values()] == [7, 4, 7]
    # 3.5 steps were wanted: what could not be reached is said.
    assert result.record["seconds"]["off"] == {"dense": 0, "plus": pytest.approx(0.8 / 0.7 - 1)}
    # Two evaluations before the last, as in seven steps.
    assert [run.train.eval_every for run in result.variants.values()] == [3, 2, 3]
    assert [run.train.checkpoint_every for run in result.variants.values()] == [7, 4, 7]


def test_a_folder_holds_one_measurement(tmp_path: Path, measured: list) -> None:
    config, out = load(tmp_path), tmp_path / "out"
    first = match(config, out)
    assert match(config, out) == first
    assert measured == [["dense", "plus", "wide"]]
    # A rate costs no time, and nothing was trained yet that another batch would not fit to.
    base = config.base
    other_rate = replace(config, base=replace(base, optim=replace(base.optim, lr=0.1)))
    assert match(other_rate, out).record == first.record
    other_batch = replace(config, base=replace(base, train=replace(base.train, batch_size=3)))
    match(other_batch, out)
    assert len(measured) == 2
    # One of a sweep of learning rates counts too.
    (out / "sweep" / "dense-lr0.1" / "model").mkdir(parents=True)
    assert match(other_batch, out).record["seconds"] == first.record["seconds"]
    with pytest.raises(
        UserError, match=r"got dense with another train.batch_size, .*another --out"
    ):
        match(config, out)
    (out / "step_seconds.json").write_text("{")
    with pytest.raises(UserError, match=r"step_seconds.json: must hold .*got none of dense, "):
        match(other_batch, out)
    assert len(measured) == 2


def test_real_steps_are_timed_and_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_layers.study.report.comparison.draw_plots", lambda *_: {})
    variants = {"dense": "dense", "plus": "memory_plus"}
    train = {"steps": 4, "batch_size": 2, "seq_len": 32, "eval_every": 2}
    config, out = load(tmp_path, variants=variants, train=train), tmp_path / "out"
    results = compare(config, out, workers=2)
    stored = json.loads((out / "step_seconds.json").read_text())
    assert (stored["workers"], stored["threads"]) == (2, 1)
    step = {name: entry["seconds"] for name, entry in stored["variants"].items()}
    found = results["match"]["seconds"]
    assert (found["step"], found["target"]) == (step, 4 * step["plus"])
    for entry in stored["variants"].values():
        assert len(entry["all"]) == 32
        assert min(entry["all"]) <= entry["seconds"] <= max(entry["all"])
    steps = {run["variant"]: run["config"]["train"]["steps"] for run in results["runs"]}
    assert steps == {"dense": max(1, round(4 * step["plus"] / step["dense"])), "plus": 4}
    assert {run["status"] for run in results["runs"]} == {"ok"}
    # Steps that take as long are as many: then all read the same.
    same = len(set(steps.values())) == 1
    assert ("trained on" in (out / "report.html").read_text()) == same
    written = (out / "runs" / "plus-seed0" / "result.json").stat().st_mtime_ns
    assert compare(config, out, workers=1)["runs"] == results["runs"]
    assert (out / "runs" / "plus-seed0" / "result.json").stat().st_mtime_ns == written


def test_a_variant_whose_steps_fail_is_named(tmp_path: Path) -> None:
    # The first step overflows all weights.
    config = load(tmp_path, variants={"broken": {"optim": {"lr": 1e30}}, "plus": "memory_plus"})
    prepare_runs([config.base], "a comparison")
    with pytest.raises(
        UserError, match=r"variants.broken: its steps cannot be timed: Floating.*the loss became"
    ):
        measure_steps(config.variants(), 1, 1)
