"""A comparison from configuration to results: fields, failures, reuse, refusals."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests_support import write_study

from memory_layers import MemoryConfig
from memory_layers.common.errors import UserError
from memory_layers.models import PRESETS, build_model
from memory_layers.study.compare import compare
from memory_layers.study.config import load_compare
from memory_layers.study.flops import count_flops
from memory_layers.study.measure import count_parameters
from memory_layers.study.results import check_results
from memory_layers.train.metrics import read_lines

MEMORY = {"layers": [1], "sub_keys": 8, "top_k": 4, "heads": 2}


def write_comparison(folder: Path, **changes: Any) -> Path:
    values = {
        "data": {"exposures": [1]},
        "train": {"steps": 6, "batch_size": 2, "seq_len": 32, "eval_every": 3},
        "variants": {"dense": {}, "memory": {"memory": MEMORY}},
        **changes,
    }
    return write_study(folder / "compare.yaml", **values)


def test_results_and_report(tmp_path: Path) -> None:
    path = write_comparison(
        tmp_path,
        variants={
            "dense": {},
            "memory": {"memory": MEMORY},
            # The first step overflows all weights.
            "broken": {"optim": {"lr": 1e30}},
        },
    )
    out = tmp_path / "out"
    results = compare(load_compare(path), out, workers=2)
    assert json.loads((out / "results.json").read_text()) == results
    assert (out / "report.html").read_text().count("data:image/png;base64,") >= 3
    runs = {run["variant"]: run for run in results["runs"]}
    assert runs["broken"]["status"] == "diverged"
    assert "loss became" in runs["broken"]["error"]
    assert runs["broken"]["steps"] == 0
    assert results["complete"]
    assert results["kinds"] == {"dense": "dense", "memory": "memory_plus", "broken": "dense"}
    # All answers differ, so that nobody can guess one.
    assert results["guessers"]["code"] == {
        "facts": 30, "heldout": 15, "asked": 15, "chance": 1 / 30, "majority": 0.0,
        "neighbour": 0.0, "prefix": 0.0,
    }  # fmt: skip
    assert "What can be guessed" in (out / "report.html").read_text()
    assert results["match"] == {
        "tokens": 6 * 2 * 32,
        **dict.fromkeys(("flops", "parameters", "seconds")),
    }
    fields = (
        "seed flops_per_token params_total params_active tokens seconds recall answer_nll "
        "bits_stored bits_per_parameter bits_per_active_parameter bits_per_train_flop text "
        "recall_by_exposures recall_by_entropy slot_usage history examples losses shape"
    )
    for name in ("dense", "memory"):
        assert set(fields.split()) <= set(runs[name])
        assert {"question_heldout", "question_shown", "statement", "by_relation"} == set(
            runs[name]["recall"]
        )
        assert [point["step"] for point in runs[name]["history"]] == [3, 6]
        # All tokens cost, those too that are not predicted.
        spent = 6 * 2 * 32 * runs[name]["train_flops_per_token"]
        assert runs[name]["history"][-1]["flops"] == spent > runs[name]["tokens"]
        assert runs[name]["bits_per_train_flop"] == runs[name]["bits_stored"] / spent
        times = [point["seconds"] for point in runs[name]["history"]]
        assert 0 < times[0] < times[1]
        assert runs[name]["seconds"] == round(times[1], 1)
        # One statement of each fact, and fifteen held-out subjects.
        (exposures,) = runs[name]["recall_by_exposures"]
        assert (exposures["exposures"], exposures["facts"]) == (1, 15)
        assert sum(part["facts"] for part in runs[name]["recall_by_entropy"]) == 15
        assert runs[name]["text"] is None
        right = [example["said"] == example["answer"] for example in runs[name]["examples"]]
        assert right == [example["correct"] for example in runs[name]["examples"]]
        assert 1 <= len(right) <= 6
        (facts,) = runs[name]["facts"].values()
        assert facts["unseen"].count("1") == 15 * runs[name]["recall"]["question_heldout"]
        assert len(facts["seen"]) == len(facts["p_seen"].split()) == 15
        assert runs[name]["losses"]["training"][-1][0] == 6
    assert runs["dense"]["tokens"] == runs["memory"]["tokens"] > 0
    assert runs["dense"]["slot_usage"] is None
    assert runs["memory"]["slot_usage"]["slots"] == 64
    assert {"device", "versions", "commit"} <= set(results)
    assert results["exposure"]["code"]["statements"] == " ".join("1" * 15)
    check_results(results, "results.json")
    # What is asked after the run counts as no read of a slot.
    (last,) = read_lines(out / "runs" / "memory-seed0" / "metrics.jsonl")[-1:]
    assert runs["memory"]["slot_usage"] == last["slot_usage"]

    written = (out / "runs" / "dense-seed0" / "result.json").stat().st_mtime_ns
    again = compare(load_compare(path), out, workers=1)
    assert again["runs"][0] == results["runs"][0]
    assert (out / "runs" / "dense-seed0" / "result.json").stat().st_mtime_ns == written


def test_flag_that_a_variant_overrides_is_refused(tmp_path: Path) -> None:
    config = load_compare(write_comparison(tmp_path, variants={"a": {"optim": {"lr": 0.1}}}))
    base = config.base
    with pytest.raises(UserError, match=r"--optim\.lr has no effect: variant 'a'"):
        config.with_base(replace(base, optim=replace(base.optim, lr=0.2)))
    changed = config.with_base(replace(base, optim=replace(base.optim, eps=1e-6)))
    assert changed.variants()["a"].optim.eps == 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {}}, "needs `variants:`"),
        ({"variants": {"a": {"optimm": {}}}}, "did you mean 'optim'"),
        ({"variants": {"a/b": {}}}, "letters, digits"),
        ({"variants": {"a" * 101: {}}}, "must be the name of a folder"),
        ({"variants": {"a": {"optim": {"value_weight_decay": 199}}}}, "variants.a: .*be below 1"),
        ({"seeds": [2**64]}, "seeds must be a whole number >= 0 and <= "),
        ({"train": {3: 4}}, "a name is not a string"),
        ({"seeds": [0, 0]}, "different whole numbers"),
        ({"variants": {"a": {"memory": {"layers": [7]}}}}, "below model.layers"),
    ],
)
def test_bad_comparisons(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_compare(write_comparison(tmp_path, **changes))


def test_parameters_and_flops_of_a_memory_model() -> None:
    preset = replace(PRESETS["tiny"], vocab_size=300)
    memory = MemoryConfig(layers=(1, 2), sub_keys=32, heads=2, top_k=8, key_dim=16, gate="none")
    dense, model = build_model(preset), build_model(preset, memory)
    counts = count_parameters(model)
    assert counts["params_memory"] == 32 * 32 * 64
    assert counts["params_total"] == sum(p.numel() for p in model.parameters())
    assert counts["params_total"] - counts["params_active"] == (32 * 32 - 2 * 2 * 8) * 64
    mlp = 2 * 3 * 64 * 172
    layer = 2 * (64 * 2 * 16 + 2 * 2 * 32 * 8 + 2 * 8 * 64)
    assert count_flops(model, 16)[0] - count_flops(dense, 16)[0] == 2 * (layer - mlp)
