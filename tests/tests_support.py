"""Small inputs for tests of whole runs."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from memory_layers import MemoryConfig
from memory_layers.data.tokenizer import train_tokenizer
from memory_layers.models import PRESETS, build_model
from memory_layers.study.measure import measure_run
from memory_layers.study.outcome import read_result, recorded_failures

SHAPE = {"hidden_size": 16, "layers": 2, "heads": 2, "mlp_size": 32}


def write_facts(folder: Path, count: int = 30) -> Path:
    """Write facts in the user format and return the folder."""
    folder.mkdir()
    lines = [
        json.dumps({"relation": "code", "subject": f"Place {n}", "answer": f"X{n * 37 % 100}"})
        for n in range(count)
    ]
    (folder / "facts.jsonl").write_text("\n".join(lines))
    (folder / "templates.yaml").write_text(
        'code: {statements: ["{subject} has {answer}."], question: "Q {subject}? A: {answer}"}'
    )
    return folder


def write_study(path: Path, *, data: Mapping[str, Any] | None = None, **changes: object) -> Path:
    """Write the file of a comparison or a sweep that learns write_facts, and return its path.

    Args:
        path: The file. Its facts and the cache of its data are beside it.
        data: Fields of `data` in which it differs.
        changes: Fields of the file in which it differs.
    """
    folder = path.parent
    if not (folder / "facts").is_dir():
        write_facts(folder / "facts")
    values = {
        "name": "x",
        "model": SHAPE,
        "data": {
            "facts": str(folder / "facts"),
            "vocab_size": 300,
            "cache_dir": str(folder / "cache"),
            **(data or {}),
        },
        "optim": {"warmup_steps": 2},
        **changes,
    }
    path.write_text(yaml.safe_dump(values))
    return path


def in_this_process(order: Callable[[list[str]], list[str]] = list, most: int = 99) -> Callable:
    """Return a stand-in for run_all that trains at most `most` runs here, in some order.

    To start a process takes longer than these runs. One that diverges is recorded as such.
    """

    def run_all(
        jobs: Mapping[str, Any], folder: Path, workers: int, threads: int, ended: Callable
    ) -> None:
        waiting = [name for name in jobs if read_result(folder / name) is None]
        for name in order(waiting)[:most]:
            with suppress(FloatingPointError), recorded_failures(folder / name):
                measure_run(*jobs[name], folder / name)
            ended(name)
        if len(waiting) > most:
            raise KeyboardInterrupt("stopped")

    return run_all


def untimed(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what results.json has of a run without the times that it took."""
    history = [{**line, "seconds": None} for line in run.get("history", ())]
    return {**run, "seconds": None, "history": history}


def write_untrained(folder: Path) -> Path:
    """Write the folder of an untrained model with memory and return it."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["Place 3 has X11."], 300)
    preset = replace(PRESETS["tiny"], **SHAPE)
    memory = MemoryConfig(layers=(1,), sub_keys=8, top_k=4, heads=2)
    build_model(preset, memory, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
