"""What the report says about each variant, its answers, its losses and its tokens."""

import copy
import csv
import io
from pathlib import Path
from typing import Any

import pytest
from made_up import make_up

pytest.importorskip("matplotlib")

from memory_layers.study.plots.curves import history_plot, loss_plot
from memory_layers.study.plots.drawing import variant_styles
from memory_layers.study.report import summary_table, write_report
from memory_layers.study.report.variants import describe_variants, example_tables
from memory_layers.study.summary import by_variant

TRAIN = {"steps": 1000, "batch_size": 8, "accumulate": 2, "seq_len": 64, "seed": 0}
MEMORY = {"layers": [1, 3], "sub_keys": 256, "heads": 2, "top_k": 32, "gate": "silu"}


def with_configs(**changes: dict[str, Any]) -> dict[str, Any]:
    """Results of one seed a variant, whose configurations differ in the fields of `changes`."""
    results = make_up(("dense", "memory_plus", "memory"), 1)
    for run in results["runs"]:
        model = {"preset": "tiny", "hidden_size": 72, "mlp_size": None}
        memory = None if run["variant"] == "dense" else copy.deepcopy(MEMORY)
        run["config"] = {"name": run["variant"], "model": model, "memory": memory, "moe": None}
        run["config"]["train"] = dict(TRAIN)
        run["config"] |= changes.get(run["variant"], {})
    return results


def rows_of(plot: Any) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(plot.csv)))


def test_a_variant_is_described_by_kind_sizes_and_what_differs() -> None:
    one = {**MEMORY, "layers": [2], "gate": "none"}
    texts = describe_variants(with_configs(memory={"memory": one}))
    assert texts["dense"].startswith("Dense")
    assert "width 72" in texts["dense"]
    for part in ("65,536 slots", "blocks 1 and 3", "width 72"):
        assert part in texts["memory_plus"]
    assert "memory.gate" not in texts["memory_plus"]
    assert "block 2" in texts["memory"]
    assert "memory.gate none in place of silu" in texts["memory"]
    assert "Unlike memory_plus" in texts["memory"]


def test_a_mixture_is_described_by_its_experts_and_steps_that_differ_are_said() -> None:
    moe = {"routing": "token_choice", "experts": 64, "top_k": 8, "expert_size": 19}
    train = {"train": {**TRAIN, "steps": 1500, "eval_every": 300}}
    texts = describe_variants(with_configs(memory_plus={"memory": None, "moe": moe}, memory=train))
    assert "64 of width 19 a block, each token takes 8" in texts["memory_plus"]
    texts = describe_variants(with_configs(memory=train))
    # Evaluations change nothing.
    assert texts["memory"].endswith("Unlike memory_plus: train.steps 1500 in place of 1000.")


def test_recorded_sizes_complete_the_description_and_old_runs_give_their_kind() -> None:
    results = with_configs()
    results["runs"][0]["shape"] = {"layers": 4, "hidden_size": 72, "mlp_size": 192}
    del results["runs"][1]["config"]
    texts = describe_variants(results)
    assert "4 blocks" in texts["dense"]
    assert "192" in texts["dense"]
    assert "memory_plus" in texts["memory_plus"]


def test_examples_show_question_answer_and_what_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memory_layers.study.report.comparison.draw_plots", lambda *_: {})
    results = with_configs()
    asked = {"relation": "capital_of", "prompt": "Capital of <b>Peru?", "answer": "Lima"}
    results["runs"][0]["examples"] = [
        {**asked, "said": "Lima", "correct": True},
        {**asked, "said": "Quito & more", "correct": False},
    ]
    groups = by_variant(results)
    (table,) = example_tables(groups, variant_styles(list(groups)))
    assert [row.title.text for row in table.rows] == ["right", "wrong"]
    assert [cell.text for cell in table.rows[1].cells] == [
        "Capital of <b>Peru?", "Lima", "Quito & more",
    ]  # fmt: skip
    page = write_report(results, tmp_path).read_text("utf-8")
    assert "Capital of &lt;b&gt;Peru?" in page
    assert "Quito &amp; more" in page
    assert "<b>Peru" not in page


def test_loss_curves_of_training_and_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_layers.study.plots.drawing.render_png", lambda _figure: b"")
    results = with_configs()
    results["runs"][0]["losses"] = {
        "training": [[500, 3.0], [1000, 2.0]],
        "text": [[500, 3.5], [1000, 3.2]],
    }
    groups = by_variant(results)
    rows = rows_of(loss_plot(groups, variant_styles(list(groups))))
    dense = [(row["kind"], float(row["tokens"]), float(row["loss"])) for row in rows[:2]]
    assert dense == [("training", 512_000, 3.0), ("training", 1_024_000, 2.0)]
    text = [row for row in rows if row["kind"] == "text"]
    assert [(row["variant"], float(row["loss"])) for row in text] == [
        ("dense", 3.5), ("dense", 3.2),
    ]  # fmt: skip
    # Runs without the record have their loss where recall was measured.
    history = results["runs"][1]["history"]
    old = [row for row in rows if row["variant"] == "memory_plus"]
    assert [float(row["loss"]) for row in old] == [entry["loss"] for entry in history]


def test_there_is_one_count_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are read: the tables and the ends of the curves agree, whatever was predicted."""
    monkeypatch.setattr("memory_layers.study.plots.drawing.render_png", lambda _figure: b"")
    results = with_configs()
    for run in results["runs"]:
        run["tokens"] = 777
    assert {row["tokens"] for row in summary_table(results)} == {1000 * 8 * 2 * 64}
    groups = by_variant(results)
    plot = history_plot(groups, variant_styles(list(groups)), "tokens")
    assert max(float(row["tokens"]) for row in rows_of(plot)) == 1000 * 8 * 2 * 64


def test_every_plot_has_its_own_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_layers.study.plots.drawing.render_png", lambda _figure: b"")
    page = write_report(make_up(), tmp_path).read_text("utf-8")
    captions = [part.split("</b>")[0] for part in page.split("<figcaption><b>")[1:]]
    assert len(set(captions)) == len(captions)
    assert "Recall over training FLOPs." in captions
    # A plot without a caption would show its name.
    assert not [caption for caption in captions if "_" in caption]
