"""The tables of docs/performance.md: results of the benchmarks, floors, and compiled kernels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.results import HEAD, NONE, ROOT, measured_on, newest, suite_rows
from benchmarks.targets import ROWS, verdict
from memory_layers.common.text import markdown_table
from tools.floors import floors_table

SERVE_HEAD = (
    "What", "Clients", "Tokens a second", "Median answer", "95th percentile", "Memory half-way",
    "Memory at the end", "Not answered",
)  # fmt: skip
TARGET_HEAD = ("What", "Size", "Measured", "Target", "Verdict")


def suite_markdown(record: Mapping[str, Any]) -> str:
    """Return a result file of a suite as a table with its provenance below."""
    return f"{markdown_table(HEAD, suite_rows(record['results']))}\n\n{measured_on(record)}"


def targets_markdown(record: Mapping[str, Any]) -> str:
    """Return a result file of the targets as a table with its provenance below."""
    rows = [
        (row["what"], row["size"], row["figure"] or NONE, row["target"], verdict(row))
        for row in record["results"]["rows"]
    ]
    return f"{markdown_table(TARGET_HEAD, rows)}\n\n{measured_on(record)}"


def complete_targets() -> list[tuple[Path, dict[str, Any]]]:
    """Return the newest table of targets of each machine that has every row."""
    found = newest("targets", "cpu")
    return [(path, r) for path, r in found if len(r["results"]["rows"]) == len(ROWS)]


def targets_section() -> str:
    """Return the newest table of targets of each machine, and where its file is."""
    parts = [f"{targets_markdown(record)}\n{_file(path)}" for path, record in complete_targets()]
    return "\n\n".join(parts) or _missing("targets")


def suite_section(op: str, device_type: str) -> str:
    """Return the newest results of a suite on a kind of device, a table for each size and slots.

    Args:
        op: Name of the suite.
        device_type: "cpu" or "cuda".
    """
    parts = []
    for path, record in newest(op, device_type):
        sizes = ", ".join(f"{name} = {value}" for name, value in record["sizes"].items())
        slots = f", {record['slots']} slots" if op in ("read", "write", "step") else ""
        parts.append(f"{sizes}{slots}:\n\n{suite_markdown(record)}\n{_file(path)}")
    return "\n\n".join(parts) or _missing(f"{op} --device {device_type}")


def serve_section() -> str:
    """Return what clients of a server have seen, from the newest result of each machine."""
    parts = []
    for path, record in newest("serve", "cpu"):
        sizes = ", ".join(f"{name} = {value}" for name, value in record["sizes"].items())
        rows = [
            (
                variant["name"],
                str(variant["clients"]),
                f"{variant['tokens_per_second']:.1f}",
                f"{variant['seconds_p50']:.2f} s",
                f"{variant['seconds_p95']:.2f} s",
                f"{variant['rss_half_bytes'] / 1e6:,.0f} MB",
                f"{variant['rss_end_bytes'] / 1e6:,.0f} MB",
                str(variant["refused"] + variant["failed"]),
            )
            for variant in record["results"]["variants"]
        ]
        table = markdown_table(SERVE_HEAD, rows)
        parts.append(f"{sizes}:\n\n{table}\n\n{measured_on(record)}\n{_file(path)}")
    return "\n\n".join(parts) or "Not measured yet: `python -m benchmarks.serve_load smollm2`."


def floors_section() -> str:
    """Return bytes, operations and floors, with the bandwidth of the newest table of targets."""
    found = complete_targets()
    if not found:
        return floors_table(None)
    path, record = found[-1]
    bandwidth = record["results"]["groups"]["step"]["bandwidth_gbs"]
    source = f"Copy: {bandwidth:.1f} GB/s on {record['device']}. {_file(path)}"
    return f"{floors_table(bandwidth * 1e9)}\n\n{source}"


def generate_parts() -> str:
    """Return where the time goes while text is written, from the newest result of each machine."""
    parts = []
    for path, record in newest("generate", "cpu"):
        facts = record["results"]["facts"]
        columns = facts["ms_by_part"]
        # The parts of the memory layers come last: they are inside another row.
        names = sorted(
            {part for spent in columns.values() for part in spent},
            key=lambda part: (part.startswith("memory: "), part),
        )
        rows = [
            (
                name,
                *(
                    f"{spent[name] / facts['new_tokens']:.2f}" if name in spent else NONE
                    for spent in columns.values()
                ),
            )
            for name in names
        ]
        parts.append(f"{markdown_table(('ms a token', *columns), rows)}\n\n{_file(path)}")
    return "\n\n".join(parts) or _missing("generate")


def sm90_section() -> str:
    """Return the worst registers, spills and shared memory of each kernel compiled for sm_90."""
    results = newest("sm90", "cpu")
    if not results:
        return _missing("sm90")
    path, record = results[-1]
    kernels: dict[str, list[dict[str, Any]]] = {}
    for case in record["results"]["kernels"]:
        kernels.setdefault(case["kernel"], []).append(case)
    rows = [
        (
            f"`{name}`",
            str(len(cases)),
            str(max(case["registers"] for case in cases)),
            str(max(case["spill_store_bytes"] + case["spill_load_bytes"] for case in cases)),
            f"{max(case['shared_bytes'] for case in cases) / 1024:.1f}",
        )
        for name, cases in sorted(kernels.items())
    ]
    table = markdown_table(("kernel", "cases", "registers", "spilled bytes", "shared KiB"), rows)
    return f"{table}\n\nTriton {record['versions']['triton']}. {_file(path)}"


def _missing(what: str) -> str:
    return f"Not measured yet: `python -m benchmarks {what}`."


def _file(path: Path) -> str:
    return f"Result file: `{path.relative_to(ROOT)}`."
