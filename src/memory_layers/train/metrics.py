"""The numbers that a run writes as it goes: metrics.jsonl and TensorBoard."""

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from memory_layers.common.files import naming, sync, write_file

METRICS = "metrics.jsonl"


class MetricsWriter:
    """Append numbers to OUT/metrics.jsonl, and to OUT/tensorboard where TensorBoard is installed.

    Args:
        folder: OUT, the folder of the run.
        resume_step: Lines after this step are dropped first: the resumed run writes them again.
        writes: False on all ranks but the first: they do nothing.

    Attributes:
        lines: Lines in the file so far. 0 on a rank that writes nothing.
    """

    def __init__(self, folder: Path, resume_step: int, *, writes: bool = True) -> None:
        self.path = folder / METRICS
        self.lines = 0
        self._writes = writes
        if not writes:
            return
        try:
            self._drop_after(resume_step)
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise OSError(
                f"{self.path}: cannot be written: {error.strerror}. hint: remove what is there, or "
                "choose another --out"
            ) from error
        sync(folder)
        self._board = None
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write the numbers of one step.

        Args:
            step: Steps done so far.
            values: Numbers by name. Nested mappings become names with slashes on TensorBoard.
        """
        if not self._writes:
            return
        with naming(self.path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        self.lines += 1
        if self._board:
            for name, value in _flatten(values):
                self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Wait until all lines are on the disk: a checkpoint that follows does not outlive them."""
        if self._writes:
            os.fsync(self._file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """Return all lines written so far. Empty on a rank that writes nothing."""
        return read_lines(self.path) if self._writes else []

    def has_evaluation(self, step: int) -> bool:
        """Tell whether the evaluation of a step is there. False on a rank that writes nothing."""
        return any(line["step"] == step and "tokens_per_second" not in line for line in self.read())

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close both outputs."""
        if self._writes:
            self._file.close()
            if self._board:
                self._board.close()

    def _drop_after(self, step: int) -> None:
        kept = [line for line in read_lines(self.path) if line["step"] <= step]
        self.lines = len(kept)
        text = "".join(json.dumps(line) + "\n" for line in kept)
        if self.path.is_file() and text.encode() != self.path.read_bytes():
            write_file(self.path, text)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl that are whole. Empty without the file.

    The last one may be cut: still being written, or left by a killed run. After a loss of power
    others can be damaged, too.
    """
    if not path.exists():
        return []
    lines = path.read_text("utf-8", "replace").split("\n")[:-1]
    return [line for line in map(_parsed, lines) if line is not None]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        return None
    numbers = [values[name] for name in ("loss", "tokens", "seconds") if name in values]
    whole = all(type(number) in (int, float) for number in numbers) and isinstance(
        values.get("recall", {}), dict
    )
    return values if whole else None


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += _flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            found.append((prefix + name, float(value)))
    return found
