"""The summary of a report as a table for a terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memory_layers.study.report.page import Row

if TYPE_CHECKING:
    import rich.table


def terminal_table(
    title: str, head: Sequence[str], rows: Sequence[Row], notes: Sequence[str]
) -> "rich.table.Table":
    """Return a table whose columns but the first are aligned to the right.

    Args:
        title: What stands above it.
        head: Titles of the columns.
        rows: Of a run without a result only name and status are shown, in red.
        notes: What stands below it, such as the reasons of these runs.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Text, not str, so that square brackets in a name are not taken for rich's markup.
    table = Table(
        title=Text(title),
        box=box.SIMPLE_HEAD,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        caption=Text("\n".join(notes)) if notes else None,
        caption_justify="left",
    )
    for i, name in enumerate(head):
        table.add_column(
            Text(name), justify="right" if i else "left", overflow="fold", no_wrap=i > 0
        )
    for row in rows:
        texts = [f"{cell.text}\n{cell.small}".strip() for cell in (row.title, *row.cells)]
        if row.failure is not None:
            texts = [texts[0], "", row.status.replace(" ", "\n")]
        table.add_row(*map(Text, texts), style=None if row.failure is None else "red")
    return table
