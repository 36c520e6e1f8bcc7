"""`memory-layers plan`: what it prints, and what it says to mistakes."""

import contextlib
import io
import json
import re
from typing import Any

import pytest

from memory_layers.cli import main

TINY, LARGE = "tiny", "1.3b_memory_64m"


def plan(*arguments: str) -> str:
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setenv("COLUMNS", "160")
        assert main(["plan", *arguments]) == 0
    return out.getvalue()


def values(*arguments: str) -> dict[str, Any]:
    return json.loads(plan(*arguments, "--json"))


def test_tables() -> None:
    text = plan(LARGE, "--ranks", "8")
    for part in (
        "138,747,693,056", "bytes a rank", "memory all-to-all", "predicted seconds of a step",
        "It fits", "Predicted, not measured", "NVIDIA H100", "overlaps with computation",
    ):  # fmt: skip
        assert part in text


def test_json_is_nested() -> None:
    found = values(LARGE, "--ranks", "8", "--device", "h200")
    assert found["params"]["total"] == 138_747_693_056
    held = found["bytes_per_rank"]
    parts = ("weights", "optimizer", "gradients", "gathered", "pending", "exchange", "activations")
    assert held["total"] == sum(held[part] for part in parts)
    assert held["fits"] is True
    assert found["ranks"] == 8
    assert found["layout"] == {"replicate": 1, "shard": 8, "tensor": 1, "memory": 8}
    assert found["device"]["name"] == "H200 SXM"
    assert found["smallest_devices"] == 4
    time = found["predicted_step_seconds"]
    terms = time["compute"] + time["memory_bandwidth"] + time["communication"]
    assert time["total"] == pytest.approx(terms)
    gathered = found["communication_per_rank_and_step"]["memory all-gather"]
    assert gathered["sent"] == 7 * gathered["payload"]


def test_fields_of_the_run_are_flags() -> None:
    plain = values(LARGE, "--ranks", "8")
    changed = values(
        LARGE, "--ranks", "8", "--memory.sub-keys", "4096", "--parallel.memory", "4",
        "--train.batch-size", "16",
    )  # fmt: skip
    assert changed["params"]["values"] * 4 == plain["params"]["values"]
    assert changed["layout"]["memory"] == 4
    assert changed["tokens"]["step"] == 2 * plain["tokens"]["step"]


def test_a_dense_model_and_this_cpu() -> None:
    found = values(TINY, "--device", "cpu")
    assert found["device"]["is_measured"] is True
    assert found["bytes_per_rank"]["fits"] is True
    assert found["communication_per_rank_and_step"] == {}
    assert "measured rates" in plan(TINY, "--device", "cpu")


def test_help_has_examples(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(["plan", "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Example: memory-layers plan 1.3b_memory_64m --ranks 8" in text
    assert "--parallel.tensor" in text


def test_a_batch_that_ranks_cannot_share_is_raised_and_said() -> None:
    assert "Planned with train.batch_size 15, the next that 5 ranks can share" in plan(
        TINY, "--ranks", "5"
    )
    assert "Planned with" not in plan(TINY, "--ranks", "4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "8"], r"needs a configuration file first"),
        ([TINY, "--ranks", "0"], r"--ranks must be at least 1, got 0"),
        ([TINY, "--device", "h10"], r"no device 'h10'. hint: did you mean 'h100'"),
        ([TINY, "--device", "abacus"], r"hint: one of h100, h200"),
        ([TINY, "--ranks", "4", "--parallel.tensor", "3"], r"--ranks 4: .*got 1 \* 1 \* 3"),
        (["demo"], r"lists variants, `plan` is for one run"),
        (["none.yaml"], r"none.yaml: cannot be read"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
