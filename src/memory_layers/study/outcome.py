"""How a run of a comparison ended: its measurements, or why there are none.

A run that did not finish stays in the results, with one of these statuses: "diverged",
"out_of_memory", "killed" or "failed". Next: runs.py, which starts the runs.
"""

import errno
import json
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from memory_layers.common.files import write_json
from memory_layers.common.text_files import read_json

RESULT, FAILURE, LOG = "result.json", "failure.json", "log.txt"


@contextmanager
def recorded_failures(folder: Path) -> Generator[None]:
    """Record in FOLDER the error that ends the block early, and raise it again."""
    try:
        yield
    except (RuntimeError, OSError, MemoryError, FloatingPointError, KeyboardInterrupt) as error:
        _write_failure(
            folder, _status_of(error), f"{type(error).__name__}: {error}".removesuffix(": ")
        )
        raise


def record_exit(folder: Path, exit_code: int | None) -> bool:
    """Record in FOLDER how its process ended, unless that is known.

    Args:
        folder: Of a run.
        exit_code: Of its process. Below 0: the number of the signal that killed it.

    Returns:
        Whether the run has finished.
    """
    if (folder / RESULT).is_file():
        return True
    if exit_code is not None and exit_code < 0:
        # Whatever it wrote before was not the end of it.
        name = _signal_name(-exit_code)
        hint = ". hint: out of memory? Try fewer --workers" if name == "SIGKILL" else ""
        _write_failure(folder, "killed", f"the process was killed by {name}{hint}")
    elif not (folder / FAILURE).is_file():
        log = folder / LOG
        lines = log.read_text("utf-8", "replace").split("\n") if log.is_file() else []
        said = [line for line in lines if line.strip()]
        unknown = f"the process ended with exit code {exit_code} and said nothing"
        _write_failure(folder, "failed", said[-1] if said else unknown)
    return False


def read_outcome(variant: str, seed: int, folder: Path) -> dict[str, Any]:
    """Return the entry of a run in results.json.

    Args:
        variant: Name in the report.
        seed: Of the run.
        folder: Of the run.

    Returns:
        What measure_run wrote. Without it: `status` and `error`, and as far as the run got:
        `steps` done and `last_loss`, None where it logged none. The status of a run that has not
        ended is "unfinished".
    """
    if (folder / RESULT).is_file():
        return read_json(folder / RESULT)
    ended = {"status": "unfinished", "error": "the run has not ended yet"}
    if (folder / FAILURE).is_file():
        ended = read_json(folder / FAILURE)
    lines = read_metrics(folder)
    steps = lines[-1]["step"] if lines else 0
    losses = [line["loss"] for line in lines if "loss" in line]
    last = losses[-1] if losses else None
    return {"variant": variant, "seed": seed, **ended, "steps": steps, "last_loss": last}


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines that a run has written to its metrics.jsonl so far."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text("utf-8").splitlines(keepends=True)
    # The last one may be half a line: still being written, or left by a killed run.
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _write_failure(folder: Path, status: str, error: str) -> None:
    write_json(folder / FAILURE, {"status": status, "error": error})


def _status_of(error: BaseException) -> str:
    if isinstance(error, FloatingPointError):
        return "diverged"
    if isinstance(error, KeyboardInterrupt):
        return "killed"
    # torch has a type of its own for a full GPU and none for a full host.
    full = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
    full |= isinstance(error, OSError) and error.errno == errno.ENOMEM
    return "out_of_memory" if full else "failed"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
