"""The report shows what the runs say: right means, failed runs, nothing fetched or executed."""

import base64
import copy
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from memory_layers.study.plots.comparison import draw_plots
from memory_layers.study.plots.drawing import Plot
from memory_layers.study.report import (
    markdown_table,
    render_table,
    summary_table,
    write_report,
)

RELATIONS = {"airport_iata": 3000, "capital_of": 200}
HOSTILE = '<script src="https://evil.example/x.js">alert(1)</script>|`[red]$x^$'


def make_run(variant: str, seed: int, heldout: float, memory: bool = False) -> dict[str, Any]:
    """A finished run whose figures follow from its held-out recall."""
    flops = {"dense": 1_000_000, "dense_2x": 2_000_000}.get(variant, 1_100_000)
    usage = {
        "slots": 64,
        "used_share": 0.75,
        "kl_to_uniform": 0.4,
        "histogram": [16, 8, 24, 16][: 4 - seed],
        "histogram_edges": [0, 1, 2, 4, 8][: 5 - seed],
    }
    recall = {"question_heldout": heldout, "question_shown": heldout + 0.05, "statement": heldout}
    return {
        "variant": variant,
        "seed": seed,
        "status": "ok",
        "flops_per_token": flops,
        "params_total": 8_500_000 if memory else 1_700_000,
        "params_active": 1_700_000,
        "params_memory": 6_800_000 if memory else 0,
        "tokens": 9_000_000,
        "seconds": 100.0 + 20 * seed,
        "learning_rate": 0.003,
        "value_learning_rate": 0.03 if memory else None,
        "recall": {
            **recall,
            "by_relation": {
                "airport_iata": dict(recall),
                "capital_of": {k: v for k, v in recall.items() if k != "statement"},
            },
        },
        "answer_nll": {
            "question_heldout": 1 - heldout,
            "question_shown": 0.2,
            "statement": 0.2,
        },
        "bits_stored": 50_000 * heldout,
        "slot_usage": usage if memory else None,
        "history": [
            {
                "step": 100 * i,
                "tokens": 1_000_000 * i,
                "flops": 1_000_000 * i * flops,
                "question_heldout": heldout * i / 9,
                "question_shown": 0.1,
                "statement": 0.1,
                "loss": 3 / i,
            }
            for i in range(1, 10)
        ],
    }


@pytest.fixture
def results() -> dict[str, Any]:
    """Three variants of two seeds each; one seed of dense_2x failed."""
    return {
        "format_version": 1,
        "name": "demo",
        "command": "memory-layers compare demo.yaml",
        "device": "Some CPU (2 cores)",
        "versions": {"python": "3.11.9", "torch": "2.13.0"},
        "commit": None,
        "date": "2026-11-23T12:00:00Z",
        "facts": {
            "source": "builtin",
            "facts": 3200,
            "relations": dict(RELATIONS),
            "shown": 1600,
            "heldout": 1600,
        },
        "runs": [
            make_run("dense", 0, 0.60),
            make_run("dense", 1, 0.70),
            make_run("dense_2x", 0, 0.80),
            {
                "variant": "dense_2x",
                "seed": 1,
                "status": "failed",
                "error": "Traceback:\n  line 3\nRuntimeError: loss is not finite",
            },
            make_run("memory_plus", 0, 0.90, memory=True),
            make_run("memory_plus", 1, 0.94, memory=True),
        ],
    }


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the plots, which take most of the time of a report."""
    plot = Plot(b"no image", "variant,seed\n<b>,0\n")
    stand_in = {"Over training": {"recall_over_tokens": plot}}
    monkeypatch.setattr("memory_layers.study.report.comparison.draw_plots", lambda *_: stand_in)


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real plots."""
    monkeypatch.setattr("memory_layers.study.report.comparison.draw_plots", draw_plots)


def only(results: dict[str, Any], *keep: tuple[str, int]) -> dict[str, Any]:
    """The same results with some of the runs."""
    some = copy.deepcopy(results)
    some["runs"] = [run for run in some["runs"] if (run["variant"], run["seed"]) in keep]
    return some


class Tags(HTMLParser):
    """Collects start tags with their attributes, and checks that tags are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: Path) -> Tags:
    tags = Tags(page.read_text(encoding="utf-8"))
    assert tags.open == []
    return tags


def test_summary_has_means_and_spread(results: dict[str, Any]) -> None:
    dense, double, memory = summary_table(results)
    assert [row["variant"] for row in (dense, double, memory)] == [
        "dense",
        "dense_2x",
        "memory_plus",
    ]
    assert [row["seeds"] for row in (dense, double, memory)] == [2, 1, 2]
    heldout = dense["question_heldout"]
    assert heldout["mean"] == pytest.approx(0.65)
    assert (heldout["min"], heldout["max"], heldout["n"]) == (0.60, 0.70, 2)
    assert heldout["std"] == pytest.approx(0.1 / 2**0.5)
    assert double["question_heldout"]["std"] is None
    assert memory["question_shown"]["mean"] == pytest.approx(0.97)
    assert memory["answer_nll"]["mean"] == pytest.approx(0.08)
    assert memory["bits_stored"]["mean"] == pytest.approx(46_000)
    assert memory["seconds"] == pytest.approx(110)
    assert memory["params_total"] == 8_500_000
    assert memory["params_active"] == 1_700_000


def test_flops_ratio_is_to_dense_wherever_it_stands(results: dict[str, Any]) -> None:
    results["runs"].reverse()
    ratios = {row["variant"]: row["flops_ratio"] for row in summary_table(results)}
    assert ratios == pytest.approx({"memory_plus": 1.1, "dense_2x": 2.0, "dense": 1.0})


def test_flops_ratio_without_dense_is_to_the_first(results: dict[str, Any]) -> None:
    rows = summary_table(only(results, ("memory_plus", 0), ("dense_2x", 0)))
    assert {row["base"] for row in rows} == {"dense_2x"}
    assert rows[1]["flops_ratio"] == pytest.approx(0.55)


def test_failed_run_is_shown_everywhere(results: dict[str, Any], tmp_path: Path) -> None:
    from rich.console import Console

    assert summary_table(results)[1]["failed"] == [
        {
            "seed": 1,
            "status": "failed",
            "error": "Traceback:\n  line 3\nRuntimeError: loss is not finite",
        }
    ]
    text = read(write_report(results, tmp_path)).text
    # In the results and in the list of all runs.
    assert text.count("failed: RuntimeError: loss is not finite") == 2
    assert "1 of 6 runs gave no result (1 failed)" in text
    assert "failed: RuntimeError: loss is not finite" in markdown_table(results)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_table(results))
    assert "dense_2x, seed 1 failed: RuntimeError: loss is not finite" in console.export_text()


@pytest.mark.usefixtures("drawing")
def test_variant_without_a_finished_run_stays_in_the_tables(
    results: dict[str, Any], tmp_path: Path
) -> None:
    results["runs"] = [run for run in results["runs"] if run.get("status") == "failed"]
    del results["runs"][0]["error"]
    (row,) = summary_table(results)
    assert row["seeds"] == 0
    assert row["question_heldout"] is None
    text = read(write_report(results, tmp_path)).text
    assert "failed: no reason was recorded" in text
    assert "no recall of held-out questions was measured" in text
    assert list((tmp_path / "plots").iterdir()) == []


def test_lead_ranks_variants_by_heldout_recall(results: dict[str, Any], tmp_path: Path) -> None:
    text = read(write_report(results, tmp_path)).text
    assert (
        "Compared dense, dense_2x and memory_plus, taught 3,200 facts of 2 relations: memory_plus "
        "0.92, dense_2x 0.80, dense 0.65 of held-out questions answered exactly." in text
    )


def test_lead_does_not_round_a_miss_up_to_one(results: dict[str, Any], tmp_path: Path) -> None:
    some = only(results, ("dense", 0))
    some["runs"][0]["recall"]["question_heldout"] = 0.997
    assert "dense 0.997 of held-out" in read(write_report(some, tmp_path)).text


def test_page_is_self_contained(results: dict[str, Any], tmp_path: Path) -> None:
    page = write_report(results, tmp_path)
    assert page == tmp_path / "report.html"
    tags = read(page)
    assert {tag for tag, _ in tags.tags}.isdisjoint({"script", "link", "iframe", "object"})
    for _, attributes in tags.tags:
        href = attributes.get("href")
        if href is not None:
            assert href.startswith("data:text/csv;charset=utf-8;base64,")
            assert attributes["download"] == "recall_over_tokens.csv"
            assert base64.b64decode(href.split(",")[1]) == b"variant,seed\n<b>,0\n"
        assert (attributes.get("src") or "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
    css = page.read_text(encoding="utf-8").split("<style>")[1].split("</style>")[0]
    assert "url(" not in css
    assert "@import" not in css


@pytest.mark.usefixtures("drawing")
def test_plots_are_valid_and_the_same_in_the_page(results: dict[str, Any], tmp_path: Path) -> None:
    from PIL import Image

    page = write_report(results, tmp_path).read_text(encoding="utf-8")
    files = {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()}
    names = (
        "recall_over_tokens",
        "recall_over_flops",
        "recall_against_flops",
        "recall_against_parameters",
        "recall_by_relation",
        "slot_usage",
        "loss_over_tokens",
    )
    assert set(files) == {f"{name}.{ending}" for name in names for ending in ("png", "csv")}
    embedded = {base64.b64decode(code) for code in re.findall(r"base64,([^\"]+)", page)}
    assert embedded == set(files.values())
    for name in names:
        assert files[f"{name}.csv"].startswith(b"variant,")
        with Image.open(io.BytesIO(files[f"{name}.png"])) as image:
            image.load()
            assert image.format == "PNG"
            assert image.width >= 900
            # More than one colour: something was drawn.
            assert len(image.convert("RGB").getcolors(maxcolors=1 << 24)) > 10


def test_plots_of_an_earlier_report_do_not_stay(results: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    for name in ("slot_usage.png", "slot_usage.csv", "mine.png"):
        (tmp_path / "plots" / name).write_text("old")
    write_report(results, tmp_path)
    kept = {path.name for path in (tmp_path / "plots").iterdir()}
    assert kept == {"mine.png", "recall_over_tokens.png", "recall_over_tokens.csv"}


def test_nothing_temporary_stays_behind(results: dict[str, Any], tmp_path: Path) -> None:
    write_report(results, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plots", "report.html"]
    assert not list(tmp_path.rglob("*.tmp"))


def test_failed_write_leaves_the_old_page(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = write_report(results, tmp_path)
    before = page.read_bytes()

    def refuse(source: object, target: object) -> None:
        raise OSError("disk is full")

    monkeypatch.setattr("os.replace", refuse)
    results["name"] = "other"
    with pytest.raises(OSError, match="disk is full"):
        write_report(results, tmp_path)
    assert page.read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("keys", [("name",), ("command",), ("device",), ("commit",), ("date",)])
def test_texts_of_the_results_are_escaped(
    results: dict[str, Any], tmp_path: Path, keys: tuple[str, ...]
) -> None:
    for key in keys:
        results[key] = HOSTILE
    tags = read(write_report(results, tmp_path))
    assert "script" not in {tag for tag, _ in tags.tags}
    assert HOSTILE in tags.text


def test_hostile_names_are_plain_text(results: dict[str, Any], tmp_path: Path) -> None:
    from rich.console import Console

    for run in results["runs"]:
        if run["variant"] == "dense_2x":
            run["variant"] = HOSTILE
        if run.get("error"):
            run["error"] = f"ValueError: {HOSTILE}"
        by_relation = (run.get("recall") or {}).get("by_relation") or {}
        if by_relation:
            by_relation[HOSTILE] = by_relation.pop("capital_of")
    results["versions"] = {HOSTILE: HOSTILE}
    tags = read(write_report(results, tmp_path))
    assert "script" not in {tag for tag, _ in tags.tags}
    assert f"failed: ValueError: {HOSTILE}" in tags.text
    lines = markdown_table(results).splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {12}
    assert "<script" not in re.sub(r"`[^`]*`", "", markdown_table(results))
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(render_table(results))
    assert HOSTILE in console.export_text()


def test_one_seed_is_said_to_show_no_spread(results: dict[str, Any], tmp_path: Path) -> None:
    some = only(results, ("dense", 0), ("memory_plus", 0))
    page = write_report(some, tmp_path)
    assert "One seed shows no spread" in read(page).text
    table = page.read_text(encoding="utf-8").split("<tbody>")[1].split("</tbody>")[0]
    assert re.search(r"<small>[\d.,]+\u2013", table) is None


def test_two_seeds_show_their_interval_and_range(results: dict[str, Any], tmp_path: Path) -> None:
    text = write_report(results, tmp_path).read_text(encoding="utf-8")
    # Half of the interval is 12.706 times the standard error, which is half of 0.1.
    assert "0.650 \u00b1 0.635<small>0.600\u20130.700</small>" in text
    assert "1.10M<small>1.10 \u00d7 dense</small>" in text
    assert "8.50M<small>1.70M active</small>" in text
    assert "The figures of dense_2x come from one seed" in text


def test_missing_measurements_are_dashes_not_zeros(results: dict[str, Any], tmp_path: Path) -> None:
    some = only(results, ("dense", 0), ("dense", 1))
    first, second = some["runs"]
    del first["status"]
    for run in (first, second):
        run["recall"]["statement"] = None
        run["recall"]["by_relation"]["airport_iata"] = None
        run["history"][3]["question_heldout"] = None
    second["answer_nll"]["question_heldout"] = float("nan")
    second.pop("bits_stored")
    second["history"] = []
    (row,) = summary_table(some)
    assert row["seeds"] == 2
    assert row["statement"] is None
    assert row["answer_nll"]["n"] == 1
    text = write_report(some, tmp_path).read_text(encoding="utf-8")
    assert "0.400<small>1 of 2 seeds</small>" in text
    assert "<td>\u2013</td>" in text
    assert "nan" not in markdown_table(some)


def test_empty_results_still_give_a_page(tmp_path: Path) -> None:
    assert summary_table({}) == []
    assert len(markdown_table({}).splitlines()) == 2
    render_table({})
    text = read(write_report({}, tmp_path)).text
    assert "The results hold no runs." in text
    assert "not recorded" in text


def test_statement_only_relation_is_left_out_of_its_table(
    results: dict[str, Any], tmp_path: Path
) -> None:
    text = read(write_report(results, tmp_path)).text
    assert text.count("capital_of") == 3
    for run in results["runs"]:
        for entry in ((run.get("recall") or {}).get("by_relation") or {}).values():
            entry["statement"] = None
    # Without a single measurement there is no table of statements.
    assert read(write_report(results, tmp_path)).text.count("capital_of") == 2


def test_same_results_give_the_same_bytes(results: dict[str, Any], tmp_path: Path) -> None:
    first = write_report(results, tmp_path / "a").read_bytes()
    assert write_report(results, tmp_path / "b").read_bytes() == first


def test_markdown_table_has_means_and_ranges(results: dict[str, Any]) -> None:
    lines = markdown_table(results).splitlines()
    assert lines[1].startswith("|:---|---:|")
    assert "| `dense` | 2 | 0.650 \u00b1 0.635 (0.600\u20130.700) |" in lines[2]
    assert lines[4].startswith("| `dense_2x`, seed 1 | \u2013 | failed: ")
    assert len({line.count("|") for line in lines}) == 1
