"""Learning rates swept before a study: the search, its errors, and what is trained with."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests_support import in_this_process, write_study

from memory_layers.common.errors import UserError
from memory_layers.config import MemoryConfig
from memory_layers.data.config import DataConfig
from memory_layers.study import tune
from memory_layers.study.compare import compare
from memory_layers.study.config import load_compare
from memory_layers.study.outcome import read_result
from memory_layers.study.rates import Sweep
from memory_layers.study.report import render_table
from memory_layers.study.results import read_results
from memory_layers.study.scale import load_scale, scale
from memory_layers.study.tune import search, sweep_rates
from memory_layers.train.config import ModelConfig, OptimConfig, RunConfig

MEMORY = {"layers": [1], "sub_keys": 8, "top_k": 4, "heads": 2}
LR, VALUE_LR = "optim.lr", "optim.value_lr"


def found(
    fields: Mapping[str, tuple[float, ...]], recall: Mapping[str, Mapping[float, float]]
) -> tuple[dict[str, float], Mapping[str, str], list[float]]:
    """Search where the recall of a value is known. Return best, edges, and what was tried."""
    tried: dict[tuple[tuple[str, float], ...], tuple[float, float]] = {}
    order: list[float] = []
    for _ in range(50):
        state = search(fields, tried.get)
        if not state.wanted:
            return dict(state.best), state.edges, order
        for point in state.wanted:
            field, value = point[-1]
            nearest = min(recall[field], key=lambda known, value=value: abs(known - value))
            tried[point] = (recall[field][nearest], 0.0)
            order.append(value)
    raise AssertionError("the search does not end")


def test_the_best_of_a_field_is_found_and_the_next_is_swept_at_it() -> None:
    best, edges, order = found(
        {LR: (1.0, 2.0, 4.0), VALUE_LR: (10.0, 20.0, 40.0)},
        {LR: {1.0: 0.1, 2.0: 0.3, 4.0: 0.2}, VALUE_LR: {10.0: 0.1, 20.0: 0.2, 40.0: 0.1}},
    )
    assert best == {LR: 2.0, VALUE_LR: 20.0}
    assert not edges
    assert order == [1.0, 2.0, 4.0, 10.0, 20.0, 40.0]


def test_values_beyond_an_edge_are_tried_until_one_is_worse() -> None:
    rising = {1.0: 0.1, 2.0: 0.2, 4.0: 0.3, 8.0: 0.4, 16.0: 0.1}
    assert found({LR: (1.0, 2.0)}, {LR: rising}) == ({LR: 8.0}, {}, [1.0, 2.0, 4.0, 8.0, 16.0])
    falling = {8.0: 0.1, 4.0: 0.2, 2.0: 0.1}
    assert found({LR: (4.0, 8.0)}, {LR: falling}) == ({LR: 4.0}, {}, [4.0, 8.0, 2.0])


def test_an_edge_without_end_is_named() -> None:
    endless = {float(2**n): n / 20 for n in range(20)}
    best, edges, order = found({LR: (1.0, 2.0)}, {LR: endless})
    assert best == {LR: 32.0}
    assert edges == {LR: "highest"}
    assert order[-1] == 32.0


def test_of_equal_recall_the_lower_loss_is_better_and_a_failed_run_is_worst() -> None:
    scores = {0.5: (-1.0, 0.0), 1.0: (0.2, -3.0), 2.0: (0.2, -2.0), 4.0: (-1.0, 0.0)}
    state = search({LR: (0.5, 1.0, 2.0, 4.0)}, lambda point: scores[point[0][1]])
    assert dict(state.best) == {LR: 2.0}


def test_where_all_values_of_a_field_fail_nothing_more_is_swept() -> None:
    fails = {2.0**n: -1.0 for n in range(-9, 9)}
    best, _, order = found({LR: (1.0, 2.0), VALUE_LR: (1.0, 2.0)}, {LR: fails, VALUE_LR: fails})
    assert best == {}
    assert order == [1.0, 2.0, 0.5, 0.25, 0.125, 0.0625]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs of a sweep take no time: those of rates below 1 recall as much, others fail."""
    names = []

    def fake(jobs: Mapping[str, Any], folder: Path, *_: object) -> None:
        for name in (name for name in jobs if read_result(folder / name) is None):
            names.append(name)
            (folder / name).mkdir(parents=True, exist_ok=True)
            optim = jobs[name][2].optim
            share = max(optim.lr, optim.value_lr or 0.0)
            told = {"question_heldout": share}
            result = {"status": "ok", "recall": told, "answer_nll": told, "seconds": 1.0}
            failure = {"status": "killed", "error": "the process was killed"}
            file, content = ("result", result) if share < 1 else ("failure", failure)
            (folder / name / f"{file}.json").write_text(json.dumps(content))

    monkeypatch.setattr(tune, "prepare_runs", lambda *_: {})
    monkeypatch.setattr(tune, "claim_runs", lambda *_: None)
    monkeypatch.setattr(tune, "run_all", fake)
    return names


DENSE = RunConfig(name="x", model=ModelConfig(), data=DataConfig())


def test_a_run_that_failed_is_tried_again_until_its_variant_is_trained(
    tmp_path: Path, trained: list[str]
) -> None:
    sweep = Sweep(values={LR: (0.1, 0.2, 1.0)}, seed=7)
    runs, first = sweep_rates({"x": DENSE}, sweep, tmp_path, 1, 1)
    assert runs["x"].optim.lr == 0.2
    assert trained == ["x-lr0.1", "x-lr0.2", "x-lr1.0"]
    assert sweep_rates({"x": DENSE}, sweep, tmp_path, 1, 1)[1] == first
    assert trained[3:] == ["x-lr1.0"]
    (tmp_path / "runs" / "x-seed0" / "model").mkdir(parents=True)
    assert sweep_rates({"x": DENSE}, sweep, tmp_path, 1, 1)[1] == first
    assert len(trained) == 4


def test_rates_that_are_nearly_the_same_are_both_tried(tmp_path: Path, trained: list[str]) -> None:
    sweep = Sweep(values={LR: (0.1, 0.2000001, 0.2000002, 1.0)}, seed=7)
    runs, _ = sweep_rates({"x": DENSE}, sweep, tmp_path, 1, 1)
    assert runs["x"].optim.lr == 0.2000002
    assert len(trained) == 4


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("field", [LR, VALUE_LR])
def test_a_variant_that_fails_at_all_values_is_named(tmp_path: Path, field: str) -> None:
    run = replace(
        DENSE, memory=MemoryConfig(layers=(1,), sub_keys=8, top_k=4), optim=OptimConfig(lr=0.1)
    )
    sweep = Sweep(values={LR: (0.1, 0.2, 1.0), VALUE_LR: (0.1, 0.2, 1.0), field: (90.0, 99.0)},
                  seed=7)  # fmt: skip
    with pytest.raises(
        UserError,
        match=rf"sweep\.{field}: x must finish .* got 6 .*'the process was killed': .*logs",
    ):
        sweep_rates({"x": run}, sweep, tmp_path, 1, 1)


@pytest.fixture
def trains_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in this process, and draw nothing: both take longer than these runs."""
    monkeypatch.setattr("memory_layers.study.runs.run_all", in_this_process())
    monkeypatch.setattr("memory_layers.study.tune.run_all", in_this_process())
    monkeypatch.setattr("memory_layers.study.report.comparison.draw_plots", lambda *_: {})


def write(folder: Path, **changes: Any) -> Path:
    values = {
        "train": {"steps": 4, "batch_size": 2, "seq_len": 32},
        # The weights overflow at the last, and hardly move at the first.
        "sweep": {LR: [1e-5, 0.02, 1e30]},
        **changes,
    }
    return write_study(folder / "study.yaml", **values)


@pytest.mark.usefixtures("trains_here")
def test_a_comparison_trains_each_variant_at_its_best(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        variants={"dense": "dense", "plus": {"memory": MEMORY}},
        optim={"warmup_steps": 2, "value_lr": 0.02, "value_state": "full"},
        sweep={LR: [1e-5, 0.02, 1e30], VALUE_LR: [1e-5, 0.02, 1e30], "seed": 7},
    )
    out = tmp_path / "out"
    results = compare(load_compare(path), out, workers=2)
    rates = results["rates"]
    assert (rates["seed"], rates["fields"]) == (7, [LR, VALUE_LR])
    assert set(rates["variants"]["dense"]["best"]) == {LR}
    assert set(rates["variants"]["plus"]["best"]) == {LR, VALUE_LR}
    for run in results["runs"]:
        swept = rates["variants"][run["variant"]]
        assert run["learning_rate"] == swept["best"][LR] == 0.02
        assert run["seed"] == 0
        tried = {entry[LR]: entry for entry in swept["tried"] if VALUE_LR not in entry}
        assert tried[1e30]["status"] == "diverged"
        assert "error" in tried[1e30]
        assert tried[0.02]["answer_nll"] < tried[1e-5]["answer_nll"]
    # At the value rate of the file, the best rate has been trained already.
    assert {path.name for path in (out / "sweep").glob("plus-lr0.02-*")} == {
        "plus-lr0.02-value_lr1e-05", "plus-lr0.02-value_lr1e+30",
    }  # fmt: skip
    plus = rates["variants"]["plus"]
    assert sorted(entry.get(VALUE_LR, 0) for entry in plus["tried"] if entry[LR] == 0.02) == [
        0, 1e-5, 0.02, 1e30,
    ]  # fmt: skip
    assert read_results(out / "results.json") == results
    page = (out / "report.html").read_text()
    assert "Learning rates" in page
    # What is there is not tried again.
    before = {p: p.stat().st_mtime_ns for p in out.rglob("result.json")}
    assert compare(load_compare(path), out, workers=2)["rates"] == rates
    assert {p: p.stat().st_mtime_ns for p in out.rglob("result.json")} == before


@pytest.mark.usefixtures("trains_here")
def test_a_sweep_of_sizes_trains_each_cell_at_its_best(tmp_path: Path) -> None:
    memory = {name: MEMORY[name] for name in ("layers", "top_k", "heads")}
    path = write(tmp_path, bases={"a": {}}, slots=[64], memory=memory)
    results = scale(load_scale(path), tmp_path / "out", workers=2)
    (run,) = results["runs"]
    assert run["learning_rate"] == 0.02 == results["rates"]["variants"]["a-slots64"]["best"][LR]


def test_rates_that_may_not_be_the_best_are_warned_of() -> None:
    run = {"variant": "dense", "seed": 0, "recall": {"question_heldout": 0.5}}
    for unswept in ({"runs": [run]}, {"runs": [run], "rates": None}):
        said = " ".join(str(render_table(unswept).caption).split())
        assert "Learning rates were not swept" in said
    edge = {"best": {LR: 0.004}, "edges": {LR: "highest"}, "tried": []}
    swept = {"runs": [run], "rates": {"seed": 7, "fields": [LR], "variants": {"dense": edge}}}
    said = " ".join(str(render_table(swept).caption).split())
    assert "The best optim.lr of dense, 0.004, is the highest that was tried" in said


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sweep": [1]}, r"sweep must be a mapping"),
        ({"sweep": {}}, r"sweep names no field"),
        ({"sweep": {"optim.lrr": [1e-3, 2e-3]}}, r"unknown field 'optim\.lrr'.*optim\.lr"),
        ({"sweep": {LR: [2e-3, 1e-3]}}, r"two or more numbers above 0, rising, got \[0\.002"),
        ({"sweep": {LR: [1e-3]}}, "two or more numbers"),
        ({"sweep": {LR: 1e-3}}, "two or more numbers"),
        ({"sweep": {LR: [0, 1]}}, "two or more numbers"),
        ({"optim": {"lr": 1e-3}}, r"study\.yaml: optim\.lr has no effect: `sweep:` sets it"),
        (
            {"sweep": {LR: [1e-3, 2e-3], "seed": 1}, "seeds": [0, 1]},
            r"another than the seeds of the study, got 1: .*hint: sweep: \{seed: 1000\}",
        ),
        # Its facts would be those of the study.
        (
            {"sweep": {LR: [1e-3, 2e-3], "seed": 0}, "seeds": [1]},
            r"sweep\.seed must be another than data\.seed, got 0",
        ),
        ({"sweep": {LR: [1e-3, 2e-3], "seed": -1}}, r"sweep\.seed"),
        (
            {"variants": {"a": {"kind": "dense", "optim": {"lr": 1e-3}}}},
            r"variants\.a\.optim\.lr has no effect: `sweep:` sets it",
        ),
        ({"sweep": {VALUE_LR: [1e-3, 2e-3]}}, r"value_lr has no effect: none of variants"),
        ({"sweep": {LR: [1e-3, 1e39]}}, r"sweep\.optim\.lr: variants\.d: optim\.lr must lie"),
    ],
)
def test_a_sweep_that_finds_nothing_is_refused(
    tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        load_compare(write(tmp_path, **{"variants": {"d": "dense"}, **changes}))
