"""A report with all there is: verdicts, what was matched, how runs ended, every plot and its data.

The plots are drawn once. Other tests leave out the pixels.
"""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_up import KINDS, make_up

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from memory_layers.study.metrics import BITS
from memory_layers.study.plots.comparison import PLOT_NAMES, draw_plots
from memory_layers.study.plots.cost import cost_plot, pareto_front
from memory_layers.study.plots.drawing import Plot, variant_styles
from memory_layers.study.report import comparisons, markdown_table, render_table, write_report
from memory_layers.study.report.page import (
    Cell,
    Figure,
    Glossary,
    Page,
    Row,
    Table,
    render_page,
    write_page,
)
from memory_layers.study.results import check_results
from memory_layers.study.summary import by_variant, finished, summary_table

ROOT = Path(__file__).parents[2]


@pytest.fixture
def no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are built but not drawn, which takes the most of their time."""
    monkeypatch.setattr("memory_layers.study.plots.drawing.render_png", lambda _figure: b"no image")


def plots_of(results: dict[str, Any]) -> dict[str, Any]:
    groups = {
        name: done
        for name, runs in by_variant(results).items()
        if (done := [run for run in runs if finished(run)])
    }
    sections = draw_plots(groups, variant_styles(list(by_variant(results))))
    return {name: plot for plots in sections.values() for name, plot in plots.items()}


def rows_of(plot: Any) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(plot.csv)))


def text_of(page: str) -> str:
    class Text(HTMLParser):
        text = ""

        def handle_data(self, data: str) -> None:
            self.text += data + " "

    reader = Text()
    reader.feed(page.split("</style>")[1])
    return " ".join(reader.text.split())


def make_runs(**values: list[tuple[float | None, float | None]]) -> dict[str, Any]:
    """Results whose variants have (recall, text loss) by seed. None for both: a failed run."""
    runs = []
    for variant, seeds in values.items():
        for seed, (recall, loss) in enumerate(seeds):
            run: dict[str, Any] = {"variant": variant, "seed": seed, "status": "ok"}
            if recall is None and loss is None:
                run["status"] = "killed"
            run |= {"recall": {"question_heldout": recall}, "text": loss and {"nll": loss}}
            runs.append(run)
    return {"runs": runs}


def verdicts(results: dict[str, Any], measure: str = "question_heldout") -> dict[str, str]:
    return {e["reference"]: e["verdict"] for e in comparisons(results) if e["measure"] == measure}


# ------------------------------------------------------------------ comparisons


def test_difference_is_paired_over_seeds() -> None:
    # The seeds differ by far more than the variants, so that unpaired intervals would overlap.
    results = make_runs(
        dense=[(0.1, 3.0), (0.4, 3.5), (0.7, 4.0)],
        memory_plus=[(0.15, 3.0), (0.46, 3.5), (0.76, 4.0)],
    )
    recall, loss = comparisons(results)
    assert (recall["variant"], recall["reference"], recall["seeds"]) == ("memory_plus", "dense", 3)
    assert recall["difference"] == pytest.approx(0.17 / 3)
    half = 4.302653 * 0.0057735 / 3**0.5
    assert recall["low"] == pytest.approx(0.17 / 3 - half, rel=1e-4)
    assert recall["high"] == pytest.approx(0.17 / 3 + half, rel=1e-4)
    assert recall["verdict"] == "above"
    assert (loss["measure"], loss["verdict"]) == ("text_nll", "not distinguishable")


def test_verdicts() -> None:
    results = make_runs(
        memory_plus=[(0.50, 3.0), (0.52, 3.1)],
        weak=[(0.10, 3.5), (0.12, 3.6)],
        strong=[(0.90, 2.0), (0.92, 2.1)],
        noisy=[(0.10, 2.0), (0.92, 5.1)],
        lonely=[(0.1, None), (None, None)],
        dead=[(None, None), (None, None)],
    )
    assert verdicts(results) == {
        "weak": "above",
        "strong": "below",
        "noisy": "not distinguishable",
        "lonely": "one seed",
    }
    assert verdicts(results, "text_nll") == {
        "weak": "below",
        "strong": "above",
        "noisy": "not distinguishable",
    }
    (lonely,) = [e for e in comparisons(results) if e["reference"] == "lonely"]
    assert (lonely["low"], lonely["high"], lonely["seeds"]) == (None, None, 1)


def test_seeds_of_one_side_only_are_left_out() -> None:
    results = make_runs(
        dense=[(0.1, None), (None, None), (0.3, None)],
        memory_plus=[(0.2, None), (0.9, None), (0.4, None)],
    )
    (entry,) = comparisons(results)
    assert entry["seeds"] == 2
    assert entry["difference"] == pytest.approx(0.1)


def test_subjects_are_memory_plus_by_kind_then_all_with_memory() -> None:
    results = make_runs(a=[(0.1, None)], b=[(0.2, None)], c=[(0.3, None)])
    assert comparisons(results) == []
    for run in results["runs"][1:]:
        run["params_memory"] = 10
    assert {e["variant"] for e in comparisons(results)} == {"b", "c"}
    results["kinds"] = {"a": "dense", "b": "memory", "c": "memory_plus"}
    assert {e["variant"] for e in comparisons(results)} == {"c"}
    assert {e["variant"] for e in comparisons(results, ["a"])} == {"a"}
    with pytest.raises(ValueError, match="subjects must be variants of the results, got"):
        comparisons(results, ["d"])


# ------------------------------------------------------------------ the page


@pytest.fixture(scope="module")
def full_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of eight variants with three seeds, drawn small."""
    folder = tmp_path_factory.mktemp("full")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memory_layers.study.plots.drawing.DPI", 50)
        write_report(make_up(), folder)
    return folder


def test_every_plot_is_written_with_its_data(full_page: Path) -> None:
    from PIL import Image

    files = {path.name for path in (full_page / "plots").iterdir()}
    assert files == {f"{name}.{ending}" for name in PLOT_NAMES for ending in ("png", "csv")}
    page = (full_page / "report.html").read_text("utf-8")
    assert page.count("<figure>") == page.count('download="') == len(PLOT_NAMES)
    for name in PLOT_NAMES:
        text = (full_page / "plots" / f"{name}.csv").read_text("utf-8")
        found = {row["variant"] for row in csv.DictReader(io.StringIO(text))}
        assert found <= set(KINDS)
        assert "memory_plus" in found
        with Image.open(full_page / "plots" / f"{name}.png") as image:
            assert image.width == 360


def test_page_says_what_was_matched_and_the_verdicts(full_page: Path) -> None:
    text = text_of((full_page / "report.html").read_text("utf-8"))
    assert "Every variant was trained on 9.00M tokens." in text
    assert "FLOPs per token were matched to 10.0M; the furthest off is peer, by +10.0 %." in text
    assert "Total parameters were not matched." in text
    assert "moe_fine seed 2 diverged: loss is nan at step 812" in text
    assert "1 of 24 runs gave no result (1 diverged)" in text
    assert "memory_plus is above dense, dense_2x" in text
    assert "memory_plus against each other variant" in text


def test_curves_over_time_have_the_mean_seconds_of_the_seeds(full_page: Path) -> None:
    text = (full_page / "plots" / "recall_over_seconds.csv").read_text("utf-8")
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row["variant"] == "dense"]
    # Seeds of 100, 101 and 102 s, asked ten times.
    places = {row["seed"]: [] for row in rows}
    for row in rows:
        places[row["seed"]].append(float(row["seconds"]))
    assert set(places) == {"0", "1", "2"}
    for found in places.values():
        assert found == pytest.approx([10.1 * i for i in range(1, 11)])


@pytest.mark.usefixtures("no_pixels")
def test_page_says_who_was_trained_for_as_long(tmp_path: Path) -> None:
    results = make_up(("dense", "memory_plus", "moe_fine"))
    names = ("dense", "memory_plus")
    results["match"] = {
        "tokens": None,
        "flops": {"reference": "dense", "target": 1e7, "off": {"dense": 0.0, "moe_fine": 0.03}},
        "parameters": None,
        "seconds": {
            "reference": "memory_plus", "target": 100.0, "off": {"dense": -0.001, "memory_plus": 0},
            "step": dict.fromkeys(names, 0.1),
        },
    }  # fmt: skip
    check_results(results, "results.json")
    text = text_of(write_report(results, tmp_path).read_text("utf-8"))
    assert "Every variant was trained on" not in text
    assert "train for the same time: 100 s, by steps that were timed before training." in text
    # 101 s in the mean where the reference took 106.
    assert "the furthest from the reference in fact is dense, by −4.7 %." in text
    head = "Variant Matched by FLOPs off the target Seconds off the target"
    assert f"{head} Seconds off the reference, measured Tokens" in text
    assert "dense FLOPs (reference), seconds +0.0 % −0.1 % −4.7 % 9.00M" in text
    assert "memory_plus seconds (reference) – +0.0 % +0.0 % 9.00M" in text
    assert "moe_fine tokens, FLOPs +3.0 % – – 9.00M" in text


def test_page_is_valid_and_bounded(full_page: Path) -> None:
    page = (full_page / "report.html").read_text("utf-8")
    # Every table scrolls in a box of its own, so that the page itself never does.
    assert page.count("<table>") == len(re.findall(r'<div class="scroll"[^>]*>\n<table>', page))
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in page
    assert "max-width: 640px" in page.split("</style>")[0]


@pytest.mark.usefixtures("no_pixels")
def test_statuses_and_incomplete_comparisons_are_said(tmp_path: Path) -> None:
    from rich.console import Console

    results = make_up(("dense", "memory_plus"), 4)
    ends = ("out_of_memory", "killed", "diverged", "unfinished")
    for run, status in zip(results["runs"], ends, strict=False):
        run.update(status=status, error=f"the reason of {status}")
    results["complete"] = False
    text = text_of(write_report(results, tmp_path).read_text("utf-8"))
    assert "This comparison is not complete: 1 of 8 runs have not ended." in text
    assert "3 of 8 runs gave no result (1 out of memory, 1 killed and 1 diverged)" in text
    for status in ends:
        shown = f"{status.replace('_', ' ')}: the reason of {status}"
        # In the results, the bits and the list of all runs.
        assert text.count(shown) == 3
        assert shown in markdown_table(results)
    # No pair with dense, and still a row of it.
    assert "dense 0 \u2013 no pair" in text
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_table(results))
    assert "This comparison is not complete" in console.export_text()
    assert [run["status"] for run in summary_table(results)[0]["failed"]] == [
        status.replace("_", " ") for status in ends
    ]


@pytest.mark.usefixtures("no_pixels")
def test_results_of_the_first_format_still_give_a_report(tmp_path: Path) -> None:
    results = json.loads((ROOT / "experiments" / "00-demo" / "results.json").read_text("utf-8"))
    for key in ("complete", "match", "kinds"):
        results.pop(key)
    later = (
        "bits_per_parameter", "bits_per_active_parameter", "bits_per_train_flop", "text",
        "recall_by_exposures", "recall_by_entropy",
    )  # fmt: skip
    results["runs"] = [{k: v for k, v in run.items() if k not in later} for run in results["runs"]]
    text = text_of(write_report(results, tmp_path).read_text("utf-8"))
    assert "compared with dense" in text
    assert "What was matched" not in text
    assert "Text loss \u2193" not in text
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == {
        "recall_over_tokens",
        "recall_over_flops",
        "recall_against_flops",
        "recall_against_parameters",
        "recall_by_relation",
        "slot_usage",
        "loss_over_tokens",
    }


# ------------------------------------------------------------------ tables


def test_markdown_table_of_chosen_columns() -> None:
    columns = ("seeds", "question_heldout", "text_nll", "bits_per_parameter")
    lines = markdown_table(make_up(("dense", "memory_plus")), columns, ranges=False).splitlines()
    assert lines[0] == (
        "| Variant | Seeds | Held-out questions\u00a0\u2191 | Text loss\u00a0\u2193 "
        "| Bits per parameter\u00a0\u2191 |"
    )
    shown = re.sub(r"\d", "9", lines[2])
    assert shown == "| `dense` | 9 | 9.999 ± 9.999 | 9.999 ± 9.999 | 9.99999 ± 9.99999 |"
    with pytest.raises(ValueError, match=r"columns: unknown \['recall'\]. hint: seeds, "):
        markdown_table(make_up(), ("recall",))


def test_table_of_one_column_can_hold_a_failure() -> None:
    results = make_runs(dense=[(None, None)])
    lines = markdown_table(results, ("seeds",)).splitlines()
    assert lines[2] == "| `dense`, seed 0 | killed: no reason was recorded |"


# ------------------------------------------------------------------ plots


@pytest.mark.usefixtures("no_pixels")
def test_twelve_variants_and_one_can_be_drawn() -> None:
    groups = by_variant(make_up(tuple(KINDS), 5))
    plot = cost_plot(groups, variant_styles(list(KINDS)), "params_total", "question_heldout")
    assert [row["variant"] for row in rows_of(plot)] == list(KINDS)
    assert set(plots_of(make_up(("memory_plus",), 1))) == set(PLOT_NAMES)


@pytest.mark.usefixtures("no_pixels")
def test_what_is_no_number_is_left_out() -> None:
    nan = float("nan")
    results = make_up(("dense", "memory_plus"), 2)
    first = results["runs"][0]
    first["recall"]["question_heldout"] = first["text"]["nll"] = nan
    first["recall_by_entropy"][0]["recall"] = None
    first["recall_by_exposures"][0]["recall"] = nan
    first["bits_per_parameter"] = nan
    first["history"][3]["question_heldout"] = nan
    for run in results["runs"][2:]:
        run["text"] = run["recall_by_entropy"] = run["bits_per_train_flop"] = None
        run["params_total"] = nan
    plots = plots_of(results)
    assert "nan" not in "".join(plot.csv for plot in plots.values())
    dense, memory = rows_of(plots["recall_against_flops"])
    assert (dense["seeds"], dense["low_95"], memory["seeds"]) == ("1", "", "2")
    assert [row["variant"] for row in rows_of(plots["recall_against_parameters"])] == ["dense"]
    assert len(rows_of(plots["recall_by_entropy"])) == 15


def test_hostile_names_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_layers.study.plots.drawing.DPI", 50)
    results = make_up(("dense",), 1)
    (run,) = results["runs"]
    run["variant"] = "_<script>$x^$|`[red]\n"
    run["recall"]["by_relation"] = {"$\\frac{": run["recall"]["by_relation"]["capital_of"]}
    for key in ("history", "recall_by_entropy", "recall_by_exposures", "text", "slot_usage"):
        run[key] = None
    for key in ("params_total", *BITS):
        run[key] = None
    first, second = plots_of(results), plots_of(results)
    assert set(first) == {"recall_against_flops", "recall_by_relation"}
    assert first == second


def test_data_has_the_interval_of_the_mean() -> None:
    results = make_runs(dense=[(0.1, None), (0.2, None), (0.3, None)])
    for run in results["runs"]:
        run["flops_per_token"] = 1e6
    (row,) = rows_of(plots_of(results)["recall_against_flops"])
    half = 4.302653 * 0.1 / 3**0.5
    assert float(row["low_95"]) == pytest.approx(0.2 - half, rel=1e-5)
    assert float(row["high_95"]) == pytest.approx(0.2 + half, rel=1e-5)
    assert (row["flops_per_token"], row["seeds"], row["on_front"]) == ("1000000.0", "3", "1")


def test_pareto_front() -> None:
    points = {"a": (1, 0.5), "b": (1, 0.6), "c": (2, 0.6), "d": (3, 0.9), "e": (4, 0.8)}
    assert pareto_front(points) == ["b", "d"]
    assert pareto_front(points, more_is_better=False) == ["a"]
    assert pareto_front({}) == []


# ------------------------------------------------------------------ any page


def test_a_page_of_its_own(tmp_path: Path) -> None:
    row = Row(Cell("a<b"), [Cell("1", "2")])
    table = Table(("Law", "Slope"), [row], "Laws & more", fold="open")
    figure = Figure("fit", Plot(b"png", "x,y\n1,2\n"))
    page = Page(
        title="T",
        lead="L",
        notes=["N"],
        sections={
            "Full": ["A paragraph.", figure, figure, table, {"<term>": "& meaning"}],
            "Empty": [],
            "Meaning": [Glossary("sweep")],
        },
        footer={"Device": "D"},
    )
    text = render_page(page)
    assert text.count('<div class="plots">') == 1
    assert "<details open><summary>Laws &amp; more</summary>" in text
    assert "a&lt;b" in text
    assert "&lt;term&gt;" in text
    assert "& meaning" in text_of(text)
    assert "Worth of dense compute" in text
    assert "Empty" not in text
    assert write_page(page, tmp_path) == tmp_path / "report.html"
    assert (tmp_path / "plots" / "fit.csv").read_bytes() == b"x,y\n1,2\n"
    assert (tmp_path / "plots" / "fit.png").read_bytes() == b"png"
