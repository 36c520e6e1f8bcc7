"""What a run writes down, and what it makes of the remains of a killed one."""

import json
from pathlib import Path

import pytest

from memory_layers.train.metrics import MetricsWriter

LINES = [{"step": n, "loss": 1 / n, "tokens": 10 * n} for n in (1, 2, 3)]


def written(folder: Path, tail: str) -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES) + tail)
    return path


@pytest.mark.parametrize(
    "tail",
    ["", "{", '{"step": 4, "lo', '{"step": 4, "recall": {"by_relation": {}}', '{"step": 3}'],
)
def test_half_a_line_is_dropped(tmp_path: Path, tail: str) -> None:
    """Also where the half ends as a whole line would."""
    path = written(tmp_path, tail)
    with MetricsWriter(tmp_path, 3) as metrics:
        assert metrics.read() == LINES
        metrics.write(4, {"loss": 0.5})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [*LINES, {"step": 4, "loss": 0.5}]


@pytest.mark.parametrize("step", [0, 1, 2, 5])
def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path, step: int) -> None:
    written(tmp_path, "")
    with MetricsWriter(tmp_path, step) as metrics:
        assert metrics.read() == [line for line in LINES if line["step"] <= step]
    assert not (tmp_path / "metrics.part").exists()


def test_lines_are_there_while_the_run_goes_on(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, 0) as metrics:
        metrics.write(1, {"loss": 2.0, "name": "Ærø"})
        line = json.loads((tmp_path / "metrics.jsonl").read_text())
        assert line == {"step": 1, "loss": 2.0, "name": "Ærø"}


def test_tensorboard_has_the_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsWriter(tmp_path, 0) as metrics:
        metrics.write(
            1, {"loss": 2.0, "recall": {"statement": 0.5, "by_relation": {"a": {"b": 1}}}}
        )
        metrics.write(2, {"loss": 1.0, "correct": [1, 0]})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "recall/statement", "recall/by_relation/a/b"}
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2), (2, 1)]
