"""The result file, one JSON a run with all that its numbers depend on: write, read, lay out."""

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from memory_layers.common import provenance
from memory_layers.common.errors import UserError
from memory_layers.common.files import write_json

SCHEMA = 1
REQUIRED = (
    "schema", "op", "date", "device", "device_type", "versions", "commit", "command", "results",
)  # fmt: skip
ROOT = Path(__file__).parents[1]
HEAD = (
    "What", "Median ms (20th to 80th percentile)", "Speed-up", "GB moved", "GB/s",
    "Share of a copy", "Peak extra memory",
)  # fmt: skip
COMPARE_HEAD = ("What", "A, ms", "B, ms", "B against A")
# What must agree for a difference in time to mean anything.
SAME = ("op", "device", "threads", "sizes", "slots", "impl")
NONE = "–"


def make_record(
    op: str, device: torch.device, command: str, results: Mapping[str, Any], **details: object
) -> dict[str, Any]:
    """Put results together with where they come from.

    Args:
        op: Name of the suite.
        device: Where it ran.
        command: The one that repeats it.
        results: The numbers.
        **details: What else decides them: sizes, slots, impl.
    """
    commit = provenance.commit()
    on_gpu = device.type == "cuda"
    return {
        "schema": SCHEMA,
        "op": op,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if on_gpu else provenance.device_name(),
        "device_type": device.type,
        "driver": _driver() if on_gpu else None,
        "threads": torch.get_num_threads(),
        "versions": provenance.versions("torch", "numba", "triton", "numpy"),
        "commit": None if commit is None else commit.removesuffix("-dirty"),
        "dirty": None if commit is None else commit.endswith("-dirty"),
        "command": command,
        **details,
        "results": results,
    }


def default_path(record: Mapping[str, Any], *, complete: bool = True) -> Path:
    """Return where a result goes.

    Args:
        record: The result.
        complete: Goes to benchmarks/results/DEVICE/DATE_COMMIT_OP.json, where documents take their
            numbers from. A run of a part, or of other sizes, goes to runs/bench.
    """
    date = re.sub(r"[-:]", "", record["date"].split("+")[0])
    name = f"{date}_{(record['commit'] or 'unknown')[:12]}_{record['op']}.json"
    if not complete:
        return ROOT / "runs" / "bench" / name
    slug = re.sub(r"[^a-z0-9]+", "-", record["device"].lower()).strip("-")
    return ROOT / "benchmarks" / "results" / slug / name


def check_new(path: Path) -> None:
    """Refuse to replace a result: a new run is a new file.

    Raises:
        UserError: There is something at this path.
    """
    if path.exists():
        raise UserError(f"{path} exists, and a result is never replaced. hint: another --out")


def write_result(record: Mapping[str, Any], path: Path) -> Path:
    """Write a result file whole or not at all, and return its path.

    Raises:
        UserError: There is something at this path.
    """
    check_new(path)
    write_json(path, record)
    return path


def read_result(path: Path) -> dict[str, Any]:
    """Read a result file.

    Raises:
        UserError: It cannot be read, or is no result file of this version.
    """
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no result file: it is not JSON ({error})") from error
    missing = [name for name in REQUIRED if not (isinstance(record, dict) and name in record)]
    if missing:
        raise UserError(
            f"{path} is no result file: {', '.join(missing)} missing. hint: give a file that "
            "`python -m benchmarks` wrote"
        )
    if record["schema"] != SCHEMA:
        raise UserError(f"{path} has schema {record['schema']}, this version reads {SCHEMA}")
    return record


def newest(op: str, device_type: str) -> list[tuple[Path, dict[str, Any]]]:
    """Return the newest results of a suite here, one of each size, slots, rows and device."""
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    paths = sorted((ROOT / "benchmarks" / "results").rglob("*.json"))
    for path, record in sorted(((p, read_result(p)) for p in paths), key=lambda r: r[1]["date"]):
        if record["op"] == op and record["device_type"] == device_type:
            what = [record.get(name) for name in ("device", "sizes", "slots", "impl")]
            what += [row["row"] for row in record["results"].get("rows", ())]
            found[json.dumps(what)] = (path, record)
    return list(found.values())


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return found.stdout.strip().splitlines()[0] if found.stdout.strip() else None


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Return a table of two results: "same" inside the spread, else how much faster B is.

    Args:
        a: The earlier one, as `read_result` returned it.
        b: The later one.

    Raises:
        UserError: They are of different benchmarks, or hold no times.
    """
    for name in SAME:
        if a.get(name) != b.get(name):
            raise UserError(
                f"the results differ in {name}: {a.get(name)} and {b.get(name)}. hint: compare "
                "runs of one benchmark on one machine"
            )
    if "variants" not in a["results"]:
        raise UserError(f"`{a['op']}` results hold no times. hint: compare results of a suite")
    old, new = ({v["name"]: v for v in record["results"]["variants"]} for record in (a, b))
    rows = [
        (name, _times(old.get(name)), _times(new.get(name)), _change(old.get(name), new.get(name)))
        for name in {**old, **new}
    ]
    lines = [f"{label}: {measured_on(record)}" for label, record in (("A", a), ("B", b))]
    return "\n".join([*lines, "", aligned(COMPARE_HEAD, rows)])


def _change(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> str:
    if a is None or b is None:
        return "only in A" if b is None else "only in B"
    if a["p20_ms"] <= b["p80_ms"] and b["p20_ms"] <= a["p80_ms"]:
        return "same"
    ratio = a["median_ms"] / b["median_ms"]
    return f"{ratio:.2f} × faster" if ratio >= 1 else f"{1 / ratio:.2f} × slower"


def _times(variant: Mapping[str, Any] | None) -> str:
    if variant is None:
        return NONE
    median, low, high = (three_digits(variant[name]) for name in ("median_ms", "p20_ms", "p80_ms"))
    return f"{median} ({low} to {high})"


def suite_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of a suite's table under HEAD, one row a variant."""
    return [
        (
            variant["name"],
            _times(variant),
            NONE if variant["speedup"] is None else f"{variant['speedup']:.2f} ×",
            f"{variant['bytes'] / 1e9:.3f}",
            f"{variant['gbs']:.1f}",
            f"{variant['share_of_copy']:.0%}",
            _binary_bytes(variant["peak_extra_bytes"]),
        )
        for variant in results["variants"]
    ]


def measured_on(record: Mapping[str, Any]) -> str:
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


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table for a terminal."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "  ".join([first, *rest]).rstrip()

    return "\n".join([line(head), *(line(cells) for cells in rows)])


def three_digits(value: float) -> str:
    """Write a number with three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _binary_bytes(count: int | None) -> str:
    if count is None:
        return NONE
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
