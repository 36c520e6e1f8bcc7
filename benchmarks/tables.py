"""Results as tables: aligned text for a terminal, GitHub's Markdown for documents."""

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = (
    "What",
    "Median ms (20th to 80th percentile)",
    "Speed-up",
    "GB moved",
    "GB/s",
    "Share of a copy",
    "Peak extra memory",
)
TARGET_HEAD = ("What", "Size", "Measured", "Target", "Verdict")
NONE = "–"


def suite_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of a suite's table, one row a variant.

    Args:
        results: What `measure` returned, or a result file's `results`.
    """
    return [
        (
            variant["name"],
            f"{number(variant['median_ms'])} ({number(variant['p20_ms'])} to "
            f"{number(variant['p80_ms'])})",
            NONE if variant["speedup"] is None else f"{variant['speedup']:.2f} ×",
            f"{variant['bytes'] / 1e9:.3f}",
            f"{variant['gbs']:.1f}",
            f"{variant['share_of_copy']:.0%}",
            _bytes(variant["peak_extra_bytes"]),
        )
        for variant in results["variants"]
    ]


def target_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of the table of targets.

    Args:
        results: The `results` of a file that `bench targets` wrote.
    """
    return [
        (row["what"], row["size"], row["figure"] or NONE, row["target"], verdict(row))
        for row in results["rows"]
    ]


def verdict(row: Mapping[str, Any]) -> str:
    """Return `holds`, `falls short`, or `not measured here` with the reason."""
    return row["verdict"] if row["reason"] is None else f"{row['verdict']}: {row['reason']}"


def suite_markdown(record: Mapping[str, Any]) -> str:
    """Return a result file of a suite as a table with its provenance below.

    Args:
        record: What `read_result` returned.
    """
    return markdown(HEAD, suite_rows(record["results"])) + "\n\n" + provenance(record)


def targets_markdown(record: Mapping[str, Any]) -> str:
    """Return a result file of `bench targets` as a table with its provenance below.

    Args:
        record: What `read_result` returned.
    """
    return markdown(TARGET_HEAD, target_rows(record["results"])) + "\n\n" + provenance(record)


def provenance(record: Mapping[str, Any]) -> str:
    """Say in a line where numbers come from."""
    versions = record["versions"]
    software = ", ".join(
        f"{n} {versions[n]}" for n in ("torch", "numba", "triton") if n in versions
    )
    commit = record["commit"] or "unknown"
    changed = " with uncommitted changes" if record["dirty"] else ""
    return (
        f"Measured on {record['device']} ({record['threads']} threads), {record['date'][:10]}, "
        f"commit `{commit}`{changed}, {software}: `{record['command']}`."
    )


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a GitHub table. All columns but the first are aligned to the right."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|:---|" + "---:|" * (len(head) - 1), *lines[1:]])


def text(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table for a terminal."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "  ".join([first, *rest]).rstrip()

    return "\n".join([line(head), *(line(cells) for cells in rows)])


def number(value: float) -> str:
    """Write a number with three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _bytes(count: int | None) -> str:
    if count is None:
        return NONE
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
