"""The result file: one JSON a run, with everything that the numbers depend on."""

import json
import os
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.request import Request
from memory_layers.common import provenance
from memory_layers.common.errors import UserError

SCHEMA = 1
REQUIRED = (
    "schema",
    "op",
    "date",
    "device",
    "device_type",
    "versions",
    "commit",
    "command",
    "results",
)
ROOT = Path(__file__).parents[1]


def make_record(
    op: str, device: torch.device, command: str, results: Mapping[str, Any], **details: object
) -> dict[str, Any]:
    """Put results together with where they come from.

    Args:
        op: Name of the suite.
        device: Where it ran.
        command: That repeats it.
        results: The numbers.
        **details: What else decides them: sizes, slots, impl.
    """
    commit = provenance.commit()
    return {
        "schema": SCHEMA,
        "op": op,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": _device_name(device),
        "device_type": device.type,
        "driver": _driver() if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "versions": provenance.versions("torch", "numba", "triton", "numpy"),
        "commit": None if commit is None else commit.removesuffix("-dirty"),
        "dirty": None if commit is None else commit.endswith("-dirty"),
        "command": command,
        **details,
        "results": results,
    }


def suite_record(request: Request, command: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """Put the results of a suite together with what was asked for."""
    return make_record(
        request.op,
        request.device,
        command,
        results,
        sizes=request.sizes.used_by(request.op),
        slots=request.slots,
        impl=request.impl,
    )


def default_path(record: Mapping[str, Any], *, complete: bool = True) -> Path:
    """Return where a result goes in a checkout, else a name in this folder.

    Args:
        record: The result.
        complete: Goes to benchmarks/results/DEVICE/DATE_COMMIT_OP.json, where documents take their
            numbers from. A run of a part, or of other sizes, goes to runs/bench.
    """
    date = re.sub(r"[-:]", "", record["date"].split("+")[0])
    name = f"{date}_{(record['commit'] or 'unknown')[:12]}_{record['op']}.json"
    if not (ROOT / "pyproject.toml").is_file():
        return Path(name)
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
    """Write a result file in one step, and return its path.

    Raises:
        UserError: There is something at this path.
    """
    check_new(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
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
            f"{path} is no result file: {', '.join(missing)} missing. hint: give what "
            "`memory-layers bench` wrote"
        )
    if record["schema"] != SCHEMA:
        raise UserError(f"{path} has schema {record['schema']}, this version reads {SCHEMA}")
    return record


def newest(op: str, device_type: str) -> list[tuple[Path, dict[str, Any]]]:
    """Return the newest results of a suite here, one of each size, slots, rows and device.

    Args:
        op: Name of the suite.
        device_type: "cpu" or "cuda".
    """
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    paths = sorted((ROOT / "benchmarks" / "results").rglob("*.json"))
    for path, record in sorted(((p, read_result(p)) for p in paths), key=lambda r: r[1]["date"]):
        if record["op"] == op and record["device_type"] == device_type:
            what = [record.get(name) for name in ("device", "sizes", "slots", "impl")]
            what += [row["row"] for row in record["results"].get("rows", ())]
            found[json.dumps(what)] = (path, record)
    return list(found.values())


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return provenance.device_name()


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return found.stdout.strip().splitlines()[0] if found.stdout.strip() else None
