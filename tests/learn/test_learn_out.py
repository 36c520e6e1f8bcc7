"""`learn` at its edges: folders that others use, passes without data, models that read little."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tiny_families import tiny_model
from tiny_taught import FACTS, base_for
from tiny_tokenizers import chatml

from memory_layers.common.errors import UserError
from memory_layers.common.tensors import save_tensors
from memory_layers.learn import learn
from memory_layers.learn.result import LearnResult, Point, Silent
from memory_layers.learn.state import State

TOKENIZER = chatml()


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def taught(out: Path | None = None, data: Any = FACTS, **options: Any) -> LearnResult:
    return learn(
        base_for(TOKENIZER), data, tokenizer=TOKENIZER, out=out, **{"passes": 1, **options}
    )


@pytest.mark.skipif(os.name == "nt", reason="files are not locked there")
def test_a_second_teaching_in_the_same_folder_is_refused_at_once(tmp_path: Path) -> None:
    class Second(Silent):
        """Begins another teaching in each stage of the first."""

        stages = 0

        def stage(self, _text: str) -> None:
            self.stages += 1
            with pytest.raises(UserError, match=r"out: another process works there.*hint"):
                taught(tmp_path / "out")

    second = Second()
    taught(tmp_path / "out", progress=second)
    assert second.stages > 3
    names = {"memory.json", "memory.safetensors", "result.json", "report.html"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


@pytest.mark.parametrize(
    "other", [{}, {"curve": []}, {"choices": {}, "curve": [{"x": 1}]},
              {"choices": {}, "curve": [], "more": 1}]
)  # fmt: skip
def test_a_state_of_another_version_is_refused_with_what_to_do(
    other: dict[str, Any], tmp_path: Path
) -> None:
    State({}).save(tmp_path)
    (path,) = tmp_path.iterdir()
    save_tensors({}, path, {"state": json.dumps(other)})
    with pytest.raises(UserError, match=r"another version.*hint: another --out, or remove"):
        State.load(tmp_path, {})


def test_a_pass_in_which_nothing_is_shown_has_no_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOOK_EVERY", "LOOKS"):
        monkeypatch.setattr(f"memory_layers.learn.lesson.{name}", 0)

    class Points(Silent):
        def point(self, point: Point) -> None:
            points.append(point)

    points: list[Point] = []
    row = [{"prompt": "said by the island of Japan:", "completion": "東京"}]
    result = taught(data=row, weights=[0.5], passes=4, progress=Points())
    assert result.passes == 4
    assert [point.updates for point in points] == [1, 2]
    assert all(point.loss > 0 for point in points)
    assert result.curve == tuple(points)


def test_a_model_that_reads_less_than_a_row_of_text_is_taught(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("The land of Oslo and the island of Japan. " * 200)
    # It has a vector for each place, and none behind the last.
    sizes = {"vocab_size": len(TOKENIZER), "max_position_embeddings": 200, "pad_token_id": None}
    model = tiny_model("gpt2", **sizes)
    result = learn(model, FACTS, tokenizer=TOKENIZER, background=[notes], passes=1)
    assert result.updates > 0
    assert {text.name for text in result.texts} >= {"background", "Python's documentation"}


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 0.5])
def test_what_is_no_seed_is_named(seed: float) -> None:
    with pytest.raises(UserError, match=f"seed must be .*got {seed}"):
        taught(seed=seed)


def test_the_largest_seed_is_one() -> None:
    assert taught(seed=2**63 - 1).updates > 0
