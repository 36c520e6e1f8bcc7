"""What a teaching brought, in words and tables for a terminal. Next: page.py, the same as HTML."""

import math
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memory_layers.common.files import write_file, write_json
from memory_layers.common.locks import alone_in
from memory_layers.common.text import rendered, short_bytes, short_number
from memory_layers.learn.result import LearnResult

if TYPE_CHECKING:
    from memory_layers.models import Patch

RECALL_HEAD = ("answered exactly", "prompts", "before", "now")
TEXT_HEAD = (
    "loss on text",
    "tokens",
    "before",
    "now",
    "grew by",
    "KL",
    "other next token",
    "spoke",
)
KEPT_HEAD = ("answers it knew", "known", "kept", "share")
REASONS = {
    "learned": "it has learned",
    "minutes": "the minutes were over",
    "passes": "the passes were over",
    "interrupted": "it was interrupted, and what was learned is kept",
}
# Of names, in the report for a terminal.
_LISTED = 5
_WIDTH = 100


def write_report(result: LearnResult, folder: Path) -> Path:
    """Write `result.json` and `report.html`.

    Args:
        result: Of a teaching.
        folder: Created if it is missing.

    Returns:
        The path of the page, which needs no other file to be read.

    Raises:
        OSError: The disk is full or cannot be written.
        ImportError: matplotlib or Jinja is not installed.
    """
    from memory_layers.learn.page import render_page

    page = render_page(result)
    write_json(folder / "result.json", result.to_dict())
    write_file(folder / "report.html", page.encode("utf-8", errors="replace"))
    return folder / "report.html"


def save_patch(patch: "Patch", folder: Path) -> list[str]:
    """Write a patch that is not fresh from teaching, and remove the report of an older one there.

    Args:
        patch: What to write.
        folder: Where. It has a report where it has both files of one.

    Returns:
        Lines that say what was done.

    Raises:
        UserError: A teaching goes on there.
        OSError: The folder cannot be written.
    """
    files = folder / "result.json", folder / "report.html"
    with alone_in(folder):
        patch.save(folder)
        if not all(file.is_file() for file in files):
            return [f"patch: {folder}"]
        for file in files:
            file.unlink()
    removed = f"removed, as they told of the older patch: {', '.join(map(str, files))}"
    return [removed, f"patch: {folder}"]


def text_report(result: LearnResult) -> str:
    """Return what a terminal shows: learned, forgotten, what it cost, what to type next."""
    lines = [lead(result), ""]
    if result.recall:
        lines += [_table(RECALL_HEAD, recall_rows(result)), ""]
    if result.texts:
        lines += [_table(TEXT_HEAD, text_rows(result)), ""]
    if result.kept:
        lines += [_table(KEPT_HEAD, kept_rows(result))]
        lost = [prompt for kept in result.kept for prompt in kept.lost]
        lines += [f"lost: {_listed(lost)}", ""] if lost else [""]
    lines += [f"{name}: {value}" for name, value in cost(result).items()]
    if result.not_learned:
        lines += ["", f"not learned: {_listed(result.not_learned)}"]
    if result.known_before:
        lines += ["", f"known before: {_listed(result.known_before)}"]
    if result.corrected:
        lines += ["", f"had other answers: {_listed(result.corrected)}"]
    if result.gone:
        lines += ["", f"went with these, not being in the data: {_listed(result.gone)}"]
    if result.readers:
        lines += [
            "",
            f"read rows of these, and may be answered otherwise: {_listed(result.readers)}",
        ]
    if commands := next_commands(result):
        lines += ["", "next:", *(f"  {command}" for command in commands)]
    return "\n".join(lines)


def lead(result: LearnResult) -> str:
    """Return what was learned, how long it took and why it ended, in a sentence."""
    passes = f"{result.passes:,} pass{'es' * (result.passes != 1)}"
    return (
        f"{_printable(result.model)} learned {result.learned:,} of {result.groups:,} in "
        f"{passes}, {minutes(result.training_seconds)} of training and "
        f"{minutes(result.seconds)} in all. It ended because {REASONS[result.stopped]}."
    )


def recall_rows(result: LearnResult) -> list[tuple[str, ...]]:
    """Return the cells below RECALL_HEAD: wordings that were trained on, then those that were not.

    Shares are rounded down: what is 1.000 has no miss.
    """
    rows = sorted(result.recall, key=lambda one: not one.seen)
    return [
        (
            f"{one.form}, {'seen' if one.seen else 'not seen'} in training",
            f"{one.items:,}",
            _share(one.before),
            _share(one.after),
        )
        for one in rows
    ]


def text_rows(result: LearnResult) -> list[tuple[str, ...]]:
    """Return the cells below TEXT_HEAD. Losses are in nats a token."""
    return [
        (
            _printable(text.name),
            f"{text.tokens:,}",
            f"{text.before:.4f}",
            f"{text.after:.4f}",
            growth(text.increase),
            f"{text.kl:.2g}",
            f"{100 * text.changed:.2f} %",
            f"{100 * text.spoke:.2f} %",
        )
        for text in result.texts
    ]


def kept_rows(result: LearnResult) -> list[tuple[str, ...]]:
    """Return the cells below KEPT_HEAD. Shares are rounded down."""
    return [
        (
            _printable(kept.name),
            f"{kept.items:,}",
            f"{kept.kept:,}",
            _share(kept.kept / kept.items) if kept.items else "-",
        )
        for kept in result.kept
    ]


def cost(result: LearnResult) -> dict[str, str]:
    """Return what was written and what it took, by name."""
    return {
        "written": f"{result.rows:,} rows, {short_number(result.parameters)} parameters, "
        f"{short_bytes(result.bytes)}",
        "trained": f"{minutes(result.training_seconds)}, {result.updates:,} updates, "
        f"{result.tokens:,} tokens a pass",
        "memory": f"{short_bytes(result.peak_bytes)} at most",
    }


def next_commands(result: LearnResult) -> list[str]:
    """Return commands that use what was learned. None if nothing was written."""
    if not result.out:
        return []
    model, out = shlex.quote(result.model), shlex.quote(result.out)
    chat = "--chat " * any(one.form == "chat" for one in result.recall)
    return [
        f'memory-layers generate {model} --memory {out} {chat}"..."',
        f"memory-layers serve {model} --memory {out}",
        f"memory-layers patch show {out}",
    ]


def growth(share: float) -> str:
    """Return by how much something grew, in percent with two digits, zero without a minus."""
    return f"{round(100 * share, 2) + 0.0:+.2f} %"


def minutes(seconds: float) -> str:
    """Return a duration in minutes, or in seconds if it is a short one."""
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.1f} minutes"


def _share(value: float) -> str:
    # The product of 0.29 and 1000 is a little less than 290.
    return f"{math.floor(1000 * value + 1e-6) / 1000:.3f}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    shown = "; ".join(map(_printable, names[:_LISTED]))
    return f"{len(names):,}: {shown}" + (f"; and {more:,} more" if more > 0 else "")


def _printable(text: str) -> str:
    """Keep what users' data says from moving the cursor of a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose columns but the first are aligned to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    for n, name in enumerate(head):
        table.add_column(name, justify="right" if n else "left", overflow="fold")
    for row in rows:
        # Text, so that square brackets in a name are not taken for rich's markup.
        table.add_row(*map(Text, row))
    lines = (line.rstrip() for line in rendered(table, width=_WIDTH).splitlines())
    return "\n".join(line for line in lines if line)
