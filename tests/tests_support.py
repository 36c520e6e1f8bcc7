"""Small inputs for tests of whole runs."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from memory_layers import MemoryConfig
from memory_layers.data.tokenizer import train_tokenizer
from memory_layers.models import PRESETS, build_model

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
