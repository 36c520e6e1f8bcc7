"""How a run of a comparison ended: its measurements, or why there are none.

A run that did not finish stays in the results, with one of these statuses: "diverged",
"out_of_memory", "killed" or "failed". Next: runs.py, which starts the runs.
"""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memory_layers.common.errors import is_out_of_memory
from memory_layers.common.files import write_json
from memory_layers.train.claim import read_object
from memory_layers.train.folders import RESULT
from memory_layers.train.metrics import METRICS, read_lines

FAILURE, LOG = "failure.json", "log.txt"
# Of what measure_run writes, what is no plain number: where one differs, the file is damaged.
_KINDS = {
    "recall": dict, "losses": dict, "shape": dict, "config": dict, "history": list,
    "examples": list, "recall_by_exposures": list, "recall_by_entropy": list,
    "facts": dict, "params_total": int, "params_active": int, "tokens": int,
}  # fmt: skip


@contextmanager
def recorded_failures(folder: Path) -> Generator[None]:
    """Record in FOLDER the error that ends the block early, and raise it again."""
    try:
        yield
    except (
        RuntimeError, OSError, MemoryError, ValueError, ArithmeticError, KeyboardInterrupt,
    ) as error:  # fmt: skip
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
    if read_result(folder) is not None:
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


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return what measure_run wrote. None: the run has not finished, or is to be measured again."""
    result = read_object(folder / RESULT) or {}
    whole = all(isinstance(result.get(name, kind()), kind) for name, kind in _KINDS.items())
    return result if result.get("status") == "ok" and whole else None


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
    if (result := read_result(folder)) is not None:
        return result
    ended = {"status": "unfinished", "error": "the run has not ended yet"}
    failure = read_object(folder / FAILURE) or {}
    if all(isinstance(failure.get(name), str) for name in ended):
        ended = failure
    lines = read_lines(folder / METRICS)
    steps = lines[-1]["step"] if lines else 0
    losses = [line["loss"] for line in lines if "loss" in line]
    last = losses[-1] if losses else None
    return {"variant": variant, "seed": seed, **ended, "steps": steps, "last_loss": last}


def _write_failure(folder: Path, status: str, error: str) -> None:
    write_json(folder / FAILURE, {"status": status, "error": error})


def _status_of(error: BaseException) -> str:
    if isinstance(error, FloatingPointError):
        return "diverged"
    if isinstance(error, KeyboardInterrupt):
        return "killed"
    return "out_of_memory" if is_out_of_memory(error) else "failed"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
