"""What people read after a teaching: as text, as JSON and as a page that needs nothing else."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from example_result import RESULT

from memory_layers.learn.page import render_page
from memory_layers.learn.report import text_report, write_report
from memory_layers.learn.result import Kept, LearnResult, Point, Recall, TextLoss

EVIL = '<script>alert("x")</script>'
VOID = ("meta", "link", "br", "img", "hr", "input")


class Tags(HTMLParser):
    """Collects elements, and text outside of the style, and sees whether all are closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.addresses += [v or "" for name, v in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def lines_with(report: str, *words: str) -> list[str]:
    return [line for line in report.splitlines() if all(word in line for word in words)]


def test_the_report_says_what_was_learned_and_what_was_forgotten() -> None:
    report = text_report(RESULT)
    assert report == str(RESULT)
    assert "9 of 10" in report
    (seen,) = lines_with(report, "statement, seen")
    assert seen.split()[-3:] == ["30", "0.000", "1.000"]
    (unseen,) = lines_with(report, "question, not seen")
    assert unseen.split()[-3:] == ["10", "0.100", "0.500"]
    (text,) = lines_with(report, "documentation")
    assert text.split()[1:] == [
        "100",
        "2.0000",
        "2.1000",
        "+5.00",
        "%",
        "0.01",
        "2.00",
        "%",
        "3.00",
        "%",
    ]
    assert lines_with(report, "capitals", "49", "48")
    assert lines_with(report, "lost", "The capital of France is")
    assert lines_with(report, "not learned", "city: Ilulissat")
    assert lines_with(report, "120 rows", "5 kB")
    assert lines_with(report, "memory-layers generate base --memory out")
    assert lines_with(report, "memory-layers serve base --memory out")


def test_commands_ask_in_the_form_that_was_taught_and_take_any_path() -> None:
    taught = replace(
        RESULT, model="my model", recall=(Recall("chat", False, 4, 0.0, 1.0), *RESULT.recall)
    )
    assert "generate 'my model' --memory out --chat " in text_report(taught)
    assert "--chat" not in text_report(RESULT)
    assert "generate" not in text_report(replace(RESULT, out=""))


def test_a_miss_never_reads_as_all() -> None:
    nearly = replace(
        RESULT,
        recall=(Recall("statement", True, 5000, 0.29, 4999 / 5000),),
        kept=(Kept("capitals", 5000, 4999, ("one",)),),
    )
    report = text_report(nearly)
    (recall,) = lines_with(report, "statement")
    assert recall.split()[-2:] == ["0.290", "0.999"]
    (kept,) = lines_with(report, "capitals")
    assert kept.split()[-1] == "0.999"


def test_nothing_grows_by_less_than_nothing() -> None:
    text = replace(RESULT.texts[0], after=RESULT.texts[0].before - 1e-7)
    assert "+0.00 %" in text_report(replace(RESULT, texts=(text,)))


@pytest.mark.parametrize("many", [3, 40])
def test_long_lists_are_short_in_the_text_and_whole_on_the_page(many: int) -> None:
    names = tuple(f"city: number {n}." for n in range(many))
    result = replace(RESULT, not_learned=names)
    assert sum(name in text_report(result) for name in names) == min(many, 5)
    page = Tags(render_page(result)).text
    assert all(name in page for name in names)


def test_names_of_users_move_no_cursor() -> None:
    result = replace(
        RESULT,
        model="a\x1b[2J",
        not_learned=("b\x1b[1A\r",),
        texts=(TextLoss("[red]c\x1b", 1, 1.0, 1.0, 0.0, 0.0, 0.0),),
        kept=(Kept("d\x1b", 1, 0, ("e\x1b]8",)),),
    )
    report = text_report(result)
    assert "[red]c" in report
    # The commands are to be copied as they are.
    shown = report.split("next:")[0]
    assert not [c for c in shown if not c.isprintable() and c != "\n"]


def test_users_texts_are_text_on_the_page() -> None:
    source = {
        "name": EVIL, "kind": "facts", "weight": 1.0, "rows": 1, "repeated": 0, "examples": 1,
        "items": 1, "unseen": 0, "tokens": 9, "learned": 2, "longest": 9, "longest_at": EVIL,
        "cut": 0, "left_out": 0, "unused": [EVIL], "digest": "",
    }  # fmt: skip
    result = replace(
        RESULT,
        model=EVIL,
        out=EVIL,
        texts=(replace(RESULT.texts[0], name=EVIL),),
        kept=(Kept(EVIL, 2, 1, (EVIL,)),),
        not_learned=(EVIL,),
        known_before=(EVIL,),
        corrected=(EVIL,),
        gone=(EVIL,),
        settings={EVIL: EVIL},
        provenance={"device": EVIL},
        look={"sources": [source], "notes": [EVIL], "samples": [EVIL], "max_length": 9},
        curve=(Point(1, 1, 1.0, 1.0, 0.5, 0.5, 0.0, 1.0),),
    )
    page = Tags(render_page(result))
    assert page.open == []
    assert "script" not in page.seen
    assert page.text.count(EVIL) > 10


def test_the_page_stands_alone_and_follows_the_light() -> None:
    page = render_page(RESULT)
    parsed = Tags(page)
    assert parsed.open == []
    assert "svg" in parsed.seen
    # Parts of the drawing name one another.
    assert all(address.startswith("#") for address in parsed.addresses)
    assert "@import" not in page
    assert "prefers-color-scheme: dark" in page
    assert "currentColor" in page


@pytest.mark.parametrize(
    "changes",
    [
        {"curve": (), "recall": (), "texts": (), "kept": (), "not_learned": ()},
        {"curve": (Point(0, 0, 0.0, 3.0, 0.0, None, 0.0, None),), "stopped": "interrupted"},
        {"curve": tuple(Point(n, n, 1.0, 0.1, 1.0, 0.5, 0.9, 0.2) for n in range(9))},
    ],
)
def test_any_result_has_a_report(changes: dict) -> None:
    result = replace(RESULT, **changes)
    assert Tags(render_page(result)).open == []
    assert text_report(result)


def test_files(tmp_path: Path) -> None:
    page = write_report(RESULT, tmp_path / "out")
    assert page == tmp_path / "out" / "report.html"
    written = page.read_bytes()
    values = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))
    assert LearnResult.from_dict(values) == RESULT
    write_report(RESULT, tmp_path / "out")
    assert page.read_bytes() == written
