"""The smallest runs that have everything: facts, a model of two blocks, a few steps."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests_support import SHAPE, write_facts

from memory_layers.common.reader import from_dict
from memory_layers.train.config import RunConfig

MEMORY = {"layers": [1], "sub_keys": 8, "top_k": 4, "heads": 2}


def tiny_run(folder: Path, *, memory: bool = True, **changes: Mapping[str, Any]) -> RunConfig:
    """A run on thirty facts.

    Args:
        folder: Gets the facts and the prepared data.
        memory: With a memory layer or without.
        **changes: Fields of the sections `model`, `data`, `optim` and `train`.
    """
    if not (folder / "facts").is_dir():
        write_facts(folder / "facts")
    sections: dict[str, dict[str, Any]] = {
        "model": dict(SHAPE),
        "data": {
            "facts": str(folder / "facts"),
            "vocab_size": 300,
            "cache_dir": str(folder / "cache"),
        },
        "optim": {"warmup_steps": 2, "value_lr": 0.02},
        "train": {"steps": 4, "batch_size": 2, "seq_len": 32, "log_every": 1},
    }
    for name, fields in changes.items():
        sections[name] |= fields
    return from_dict(
        RunConfig, {"name": "x", "memory": MEMORY if memory else None, **sections}, "test"
    )


def metrics_of(out: Path) -> list[dict[str, Any]]:
    """The lines of a run, without what depends on the clock."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    timed = ("seconds", "tokens_per_second")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]
