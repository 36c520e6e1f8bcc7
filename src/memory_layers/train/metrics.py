"""The numbers that a run writes as it goes: metrics.jsonl and TensorBoard."""

import json
from pathlib import Path
from typing import Any, Self

from memory_layers.common.files import write_file


class MetricsWriter:
    """Append numbers to OUT/metrics.jsonl and OUT/tensorboard.

    Args:
        folder: OUT, the folder of the run.
        resume_step: Lines after this step are dropped first: the resumed run writes them again.
        writes: False on all ranks but the first: they do nothing.
    """

    def __init__(self, folder: Path, resume_step: int, *, writes: bool = True) -> None:
        self.path = folder / "metrics.jsonl"
        self._writes = writes
        if not writes:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._drop_after(resume_step)
        self._file = self.path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write the numbers of one step.

        Args:
            step: Steps done so far.
            values: Numbers by name. Nested mappings become names with slashes on TensorBoard.
        """
        if not self._writes:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in _flatten(values):
            self._board.add_scalar(name, value, step)

    def read(self) -> list[dict[str, Any]]:
        """Return all lines written so far. Empty on a rank that writes nothing."""
        if not self._writes:
            return []
        self._file.flush()
        return [json.loads(line) for line in self.path.read_text("utf-8").splitlines()]

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close both outputs."""
        if self._writes:
            self._file.close()
            self._board.close()

    def _drop_after(self, step: int) -> None:
        if not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text("utf-8").splitlines(keepends=True):
            # A killed run may have left half a line at the end.
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        write_file(self.path, "".join(kept))


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += _flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            found.append((prefix + name, float(value)))
    return found
