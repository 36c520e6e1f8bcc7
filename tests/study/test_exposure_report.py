"""What the report and the terminal say of recall by exposures, also where results lack it."""

import copy
import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up import add_exposures, make_up

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from memory_layers.study.report import render_table, write_report
from memory_layers.study.report.exposure import ratio_text
from memory_layers.study.results import check_results


def recall(variant: str, _seed: int, k: int) -> float:
    """Half of the seen facts at 4 statements of memory_plus, 8 of dense, and never of one_slot."""
    return k / (k + {"memory_plus": 4, "dense": 8, "one_slot": 400}[variant])


@pytest.fixture(autouse=True, scope="module")
def _no_pixels() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memory_layers.study.plots.drawing.render_png", lambda _figure: b"no image")
        yield


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    made_up = make_up(("dense", "memory_plus", "one_slot"), 3)
    return add_exposures(made_up, recall, unseen=1.0)


@pytest.fixture(scope="module")
def page(results: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    check_results(results, "results.json")
    return write_report(results, tmp_path_factory.mktemp("report"))


def read_rows(page: Path, plot: str) -> list[dict[str, str]]:
    text = (page.parent / "plots" / f"{plot}.csv").read_text("utf-8")
    return list(csv.DictReader(io.StringIO(text)))


def text_of(page: Path) -> str:
    section = page.read_text("utf-8").split("<h2>Recall by exposures</h2>")[1]
    section = re.sub(r"base64,[^\"]*", "", section.split("</section>")[0])
    return " ".join(re.sub(r"<[^>]+>", " ", section).split())


def test_the_section_says_who_needs_how_many_exposures(page: Path) -> None:
    text = text_of(page)
    number = r"\d[\d.]+"
    assert re.search(
        rf"memory_plus recalls half of the facts after 4\.00 \({number} to {number}\) statements\. "
        rf"In multiples of that, others need: dense 2\.00 × \({number} to {number}\) and "
        rf"one_slot &gt; 16\.0 × \({number} to ∞\)\.",
        text,
    )
    assert re.search(rf"dense 3 8\.00 {number} to {number} 8\.00", text)
    assert "one_slot 3 &gt; 64 &gt; 64" in text
    for table in (
        "memory_plus against each other variant, by exposures", "Recall, unseen wordings",
        "Recall, seen wordings", "Lift of the probability of the right answer, unseen wordings",
        "Exposures for half recall by relation, unseen wordings",
        "Pooled lift by relation, seen wordings",
    ):  # fmt: skip
        assert table in text
    by_relation = text.split("Times the exposures of memory_plus by relation, unseen wordings")[1]
    assert re.match(
        r" Relation Facts dense one_slot person_city 40 answers 320 2\.00 × \S+ to \S+ &gt; 16\.0",
        by_relation,
    )


def test_plots_by_exposures_have_their_data(page: Path) -> None:
    rows = read_rows(page, "recall_by_exposures")
    # The plot of before, of questions alone, is not there beside it.
    assert page.read_text("utf-8").count('download="recall_by_exposures.csv"') == 1
    found = {(row["variant"], row["wording"], row["exposures"]): row for row in rows}
    assert len(found) == len(rows) == 3 * 2 * 8
    memory = found["memory_plus", "unseen", "4"]
    assert float(memory["recall"]) == pytest.approx(0.5)
    assert float(memory["recall_low"]) < 0.5 < float(memory["recall_high"])
    assert found["dense", "seen", "0"]["recall"] == "0.0"
    # Facts that no document states are what the others are measured against.
    assert {row["exposures"] for row in read_rows(page, "lift_by_exposures")} == {
        "1", "2", "4", "8", "16", "32", "64",
    }  # fmt: skip


def test_the_terminal_has_a_line_of_it(results: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_table(results))
    assert re.search(
        r"Exposures for half recall, unseen wordings: memory_plus 4\.00 \(\S+ to \S+\), "
        r"dense 8\.00 \(\S+ to \S+\), one_slot > 64",
        " ".join(console.export_text().split()),
    )


@pytest.mark.parametrize(
    ("ends", "says"),
    [((1.5, 3.0), "> 2.00 × (1.50 to 3.00)"), ((1.5, None), "> 2.00 × (1.50 to ∞)"),
     # Guessing is enough in nearly all draws.
     ((None, None), "> 2.00 ×")],
)  # fmt: skip
def test_a_ratio_is_written_with_the_ends_that_are_known(
    ends: tuple[float | None, float | None], says: str
) -> None:
    row = dict(zip(("low", "high"), ends, strict=True), ratio=2.0, bound=">")
    assert ratio_text(row) == says
    assert ratio_text({**row, "ratio": None}) == "\u2013"
    assert ratio_text({**row, "ratio": 1 / 16, "bound": "<"}).startswith("< 0.0625 ×")


def test_a_variant_that_guesses_half_or_never_reaches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not keep the report from being written: nor does one seed, nor no k = 0."""
    monkeypatch.setattr("memory_layers.study.report.comparison.draw_plots", lambda *_: {})
    guesses = {"memory_plus": 0.7, "dense": 0.1}
    made_up = add_exposures(
        make_up(tuple(guesses), 1), lambda name, _seed, _k: guesses[name],
        relations=("a",), unseen=1.0,
    )  # fmt: skip
    text = text_of(write_report(made_up, tmp_path))
    assert "memory_plus recalls half of the facts after 0.00 (0.00 to 0.00) statements." in text
    assert "by relation" not in text
    add_exposures(made_up, lambda *_: 0.1, levels=(1, 2), relations=("a",))
    text = text_of(write_report(made_up, tmp_path))
    assert "memory_plus does not recall half of the facts after 2 statements." in text
    assert "Lift by exposures" not in text
    assert not (tmp_path / "plots" / "lift_by_exposures.png").exists()


def test_the_table_has_seconds_as_multiples_of_the_dense_ones(page: Path) -> None:
    assert "106<small>1.05 × dense</small>" in page.read_text("utf-8")


def test_results_of_before_have_the_plot_of_before(results: dict[str, Any], tmp_path: Path) -> None:
    before = copy.deepcopy(results)
    del before["exposure"]
    for run in before["runs"]:
        del run["facts"]
        for entry in run["history"]:
            del entry["seconds"]
    page = write_report(before, tmp_path).read_text("utf-8")
    assert "<h2>Recall by exposures</h2>" not in page
    assert 'download="recall_by_exposures.csv"' in page
    assert not list((tmp_path / "plots").glob("*seconds*"))
