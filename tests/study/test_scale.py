"""A sweep from configuration to results: the grid, what is refused, reuse, order, failures."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests_support import SHAPE, in_this_process, untimed, write_study

from memory_layers.cli import main
from memory_layers.common.errors import UserError
from memory_layers.configs import find_config
from memory_layers.study import runs as study_runs
from memory_layers.study.results import check_results
from memory_layers.study.scale import ScaleConfig, check_slots, load_scale, scale

ROOT = Path(__file__).parents[2]
MEMORY = {"layers": [1], "top_k": 4, "heads": 2}


def write_sweep(folder: Path, **changes: Any) -> Path:
    values = {
        "memory": MEMORY,
        "data": {"exposures": [1]},
        "optim": {"warmup_steps": 2, "value_lr": 0.02},
        "train": {"steps": 4, "batch_size": 2, "seq_len": 32, "eval_every": 2},
        "bases": {"a": {}, "b": {"model": {"hidden_size": 24}}},
        "slots": [0, 64],
        **changes,
    }
    return write_study(folder / "scale.yaml", **values)


def entries(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [untimed(run) for run in results["runs"]]


def test_a_start_that_fails_leaves_its_folder_alone(tmp_path: Path) -> None:
    values = yaml.safe_load(write_sweep(tmp_path).read_text())
    config = load_scale(write_sweep(tmp_path, data={**values["data"], "shown_fraction": 0.001}))
    with pytest.raises(UserError, match="leaves no shown subject"):
        scale(config, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_finished_runs_are_made_whole_again_and_learn_the_same_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_runs, "run_all", in_this_process())
    config = load_scale(write_sweep(tmp_path, bases={"a": {}}, slots=[0, 64]))
    out = tmp_path / "out"
    whole = scale(config, out)
    run = out / "runs" / "a-slots64-seed0"
    for lost in ({"result.json": "{"}, {"result.json": '{"status": "ok", "recall": 3}'},
                 {"result.json": "", "metrics.jsonl": ""}):  # fmt: skip
        for name, content in lost.items():
            (run / name).write_text(content)
        again = scale(config, out)
        assert again["complete"]
        for name in ("recall", "answer_nll", "slot_usage", "examples"):
            assert again["runs"][1][name] == whole["runs"][1][name]
    facts = tmp_path / "facts" / "facts.jsonl"
    facts.write_text(facts.read_text().replace("X37", "X38"))
    with pytest.raises(UserError, match=r"a-slots0-seed0 holds a run on other data: data\.facts"):
        scale(config, out)


def test_the_grid(tmp_path: Path) -> None:
    path = write_sweep(
        tmp_path,
        bases={"a": None, "b": {"memory": {"top_k": 2}}, "c": {"model": SHAPE, "slots": [0]}},
        slots=[0, 64, 256],
        seeds=[3, 1],
    )
    config = load_scale(path)
    cells = config.cells()
    assert [cell[:2] for cell in cells.values()] == [
        ("a", 0), ("a", 64), ("a", 256), ("b", 0), ("b", 64), ("b", 256), ("c", 0),
    ]  # fmt: skip
    assert list(cells)[1] == "a-slots64"
    for base, slots, run in cells.values():
        assert (run.memory.num_slots if run.memory else 0) == slots
        if run.memory:
            assert run.memory.top_k == {"a": 4, "b": 2}[base]
    jobs = config.jobs()
    assert len(jobs) == 7 * 2
    cell, seed, run = jobs["b-slots64-seed1"]
    assert (cell, seed, run.train.seed, run.name) == ("b-slots64", 1, 1, "b-slots64")
    # A sweep that is stopped has whole seeds; the largest runs of a seed come first.
    order = config.longest_first()
    assert {name.split("-seed")[1] for name in order[:7]} == {"3"}
    assert order[0] == "b-slots256-seed3"
    assert sorted(order) == sorted(jobs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bases": {}}, "needs `bases:`, names and what each changes"),
        ({"bases": {"a b": {}}}, "'a b' must be letters, digits, - and _"),
        ({"bases": {"a": 3}}, "bases.a must be a mapping, got 3"),
        ({"bases": {"a": {"memory": 3}}, "slots": [0]}, "bases.a.memory must be a mapping, got 3"),
        ({"slots": [10**60]}, "sub_keys must be a whole number >= 1 and <= 46340"),
        ({"bases": {"a": {"modle": {}}}}, "did you mean 'model'"),
        ({"bases": {"a": {"data": {}}}}, "bases.a.data: all runs of a sweep learn the same"),
        ({"bases": {"a": {"slots": [0]}}}, "slots has no effect, every base sets its own"),
        ({"bases": {"a": {"slots": [5]}, "b": {}}}, "bases.a.slots: 5 is no square number"),
        ({"bases": {"a": {"train": {"seed": 3}}}}, "bases.a.train.seed has no effect"),
        ({"bases": {"a": {"memory": {"sub_keys": 3}}}}, "bases.a.memory.sub_keys has no effect"),
        ({"bases": {"a": {}, "b": {"train": {"steps": 9}}}}, "the same number of tokens"),
        (
            {"memory": {**MEMORY, "sub_keys": 8}},
            "memory.sub_keys has no effect. hint: use `slots:`",
        ),
        ({"memory": None}, "bases.a with slots 64: needs `memory:`"),
        (
            {"memory": {**MEMORY, "top_k": 9}},
            "bases.a with slots 64: memory: top_k must be at most",
        ),
        ({"moe": {"experts": 4}}, "moe: the models of a sweep are dense or have memory"),
        ({"slots": None}, "slots must be different whole numbers"),
        ({"slots": [0, 4, 4]}, "slots must be different whole numbers"),
        ({"slots": [0, 16000]}, "hint: 15876 = 126 * 126 or 16129 = 127 * 127"),
        ({"seeds": [0, 0]}, "seeds must be different whole numbers"),
        ({"variants": {"a": {}}}, "hint: memory-layers compare"),
        ({"match": ["seconds"]}, "match has no effect: all runs of a sweep read the same tokens"),
    ],
)
def test_mistakes(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_scale(write_sweep(tmp_path, **changes))
    assert message in str(error.value)


def test_slots_that_are_squares() -> None:
    check_slots((0, 1, 2**20, 3**20), "slots")
    with pytest.raises(UserError, match=r"slots must be different whole numbers"):
        check_slots([True], "--slots")


def test_flags_without_effect_are_refused(tmp_path: Path) -> None:
    config = load_scale(write_sweep(tmp_path))
    base = config.base

    def change(**parts: Any) -> ScaleConfig:
        changed = {k: replace(getattr(base, k), **v) for k, v in parts.items()}
        return config.changed(replace(base, **changed), (0, 16), (5,))

    with pytest.raises(UserError, match=r"--model.hidden_size has no effect: base 'b' sets"):
        change(model={"hidden_size": 32})
    with pytest.raises(UserError, match=r"--train.seed has no effect.* use --seeds"):
        change(train={"seed": 1})
    with pytest.raises(UserError, match=r"--memory.sub_keys has no effect.* use --slots"):
        change(memory={"sub_keys": 16})
    longer = change(train={"steps": 7})
    assert list(longer.jobs()) == [f"{b}-slots{n}-seed5" for b in "ab" for n in (0, 16)]
    assert {run.train.steps for _, _, run in longer.cells().values()} == {7}


def test_stopped_sweep_goes_on_and_the_order_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_scale(write_sweep(tmp_path))
    monkeypatch.setattr(study_runs, "run_all", in_this_process(most=2))
    with pytest.raises(KeyboardInterrupt):
        scale(config, tmp_path / "out")
    partial = json.loads((tmp_path / "out" / "results.json").read_text())
    assert not partial["complete"]
    assert [run["status"] for run in partial["runs"]] == ["unfinished", "ok", "unfinished", "ok"]
    assert partial["fits"]["flops"]["recall"]["left_out"] == [
        "a-slots0, seed 0: unfinished", "b-slots0, seed 0: unfinished",
    ]  # fmt: skip
    monkeypatch.setattr(study_runs, "run_all", in_this_process())
    whole = scale(config, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == whole
    assert whole["complete"]
    assert whole["runs"][1] == partial["runs"][1]
    assert whole["exposure"]["code"]["candidates"] == 30
    check_results(whole, "results.json")
    assert (tmp_path / "out" / "report.html").is_file()

    monkeypatch.setattr(study_runs, "run_all", in_this_process(lambda names: names[::-1]))
    other = scale(config, tmp_path / "other", workers=2)
    assert entries(other) == entries(whole)
    assert (other["fits"], other["exchange"]) == (whole["fits"], whole["exchange"])

    # A larger sweep takes over what is there; other threads would not give the same numbers.
    monkeypatch.setattr(study_runs, "run_all", in_this_process(most=0))
    with pytest.raises(KeyboardInterrupt):
        scale(replace(config, slots=(64, 256)), tmp_path / "out")
    with pytest.raises(UserError, match=r"runs with 1 threads each, got 2. hint: --threads 1"):
        scale(config, tmp_path / "out", threads=2)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write_sweep(tmp_path, bases={"a": {}})
    out = tmp_path / "out"
    # The second run fails: the first step overflows all weights.
    flags = ("--out", str(out), "--workers", "2", "--slots", "0", "16", "--optim.value-lr", "1e38")
    assert main(["scale", str(path), *flags]) == 1
    printed = capsys.readouterr().out
    assert str(out / "results.json") in printed
    results = json.loads((out / "results.json").read_text())
    dense, memory = results["runs"]
    assert (dense["status"], dense["base"], dense["slots"]) == ("ok", "a", 0)
    assert (memory["variant"], memory["status"]) == ("a-slots16", "diverged")
    assert results["command"].startswith("memory-layers scale ")
    assert (results["threads"], results["slots"], results["bases"]) == (1, [0, 16], ["a"])
    assert results["exchange"][0]["reason"] == "no run finished"


def test_help_and_hints(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["scale", "--help"])
    assert "memory-layers scale scale" in capsys.readouterr().out
    path = write_sweep(tmp_path)
    assert main(["train", str(path)]) == 2
    error = capsys.readouterr().err
    assert "lists bases" in error
    assert f"memory-layers scale {path}" in error
    assert main(["scale", str(path), "--threads", "0"]) == 2
    assert "--threads must be a whole number >= 1" in capsys.readouterr().err
    assert main(["scale"]) == 2
    assert "hint: memory-layers scale scale" in capsys.readouterr().err


def test_config_of_the_repository_has_enough_to_fit() -> None:
    config = load_scale(find_config("scale"))
    sizes = [(base, slots) for base, slots, _ in config.cells().values()]
    assert len([base for base, slots in sizes if not slots]) >= 3
    assert len(config.seeds) >= 3
    assert 2**20 in config.slots
