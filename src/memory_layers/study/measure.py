"""One run of a comparison: train it, then put down everything the report needs."""

import json
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from memory_layers.data.facts import Probe
from memory_layers.models import memory_layers_of
from memory_layers.study.flops import count_flops
from memory_layers.train.config import RunConfig
from memory_layers.train.loop import TrainedModel, train


def measure_run(variant: str, seed: int, config: RunConfig, out: Path) -> dict[str, Any]:
    """Train one variant with one seed, write OUT/result.json, and return its content.

    Args:
        variant: Name in the report.
        seed: For the report. `config` holds it too.
        config: The run.
        out: Its folder.
    """
    trained = train(config, out, show=False)
    final = trained.history[-1]
    forward, training = count_flops(trained.model, config.train.seq_len)
    result = {
        "variant": variant,
        "seed": seed,
        "status": "ok",
        "flops_per_token": forward,
        "train_flops_per_token": training,
        **count_parameters(trained.model),
        "tokens": trained.tokens,
        "seconds": round(trained.seconds, 1),
        "learning_rate": config.optim.lr,
        "value_learning_rate": config.optim.value_lr if config.memory else None,
        "recall": final["recall"],
        "answer_nll": final["answer_nll"],
        "bits_stored": bits_stored(trained.data.probes, final["correct"]),
        "slot_usage": final.get("slot_usage"),
        "history": _history(trained, training),
        "config": asdict(config),
    }
    part = out / "result.json.part"
    part.write_text(json.dumps(result, indent=1), "utf-8")
    os.replace(part, out / "result.json")
    return result


def count_parameters(model: PreTrainedModel) -> dict[str, int]:
    """Count parameters: all, those that a token uses, and those of value tables.

    A token uses every dense parameter and J rows of V numbers in each memory layer.
    """
    layers = memory_layers_of(model)
    tables = {id(layer.values): layer.values.weight for layer in layers}
    memory = sum(weight.numel() for weight in tables.values())
    total = sum(parameter.numel() for parameter in model.parameters())
    read = sum(
        layer.query.heads * layer.keys.top_k * layer.values.weight.shape[1] for layer in layers
    )
    return {
        "params_total": total,
        "params_active": total - memory + read,
        "params_memory": memory,
    }


def bits_stored(probes: Sequence[Probe], correct: Sequence[bool]) -> float:
    """Add up log2 of the number of distinct answers over all facts recalled by question.

    Args:
        probes: All recall items.
        correct: Whether each was answered.
    """
    answers = defaultdict(set)
    for probe in probes:
        answers[probe.relation].add(probe.text[probe.answer_start : probe.answer_end])
    bits = {relation: math.log2(len(found)) for relation, found in answers.items()}
    return sum(
        bits[probe.relation]
        for probe, right in zip(probes, correct, strict=True)
        if right and probe.kind != "statement"
    )


def _history(trained: TrainedModel, flops_per_token: float) -> list[dict[str, Any]]:
    losses = {line["step"]: line["loss"] for line in trained.history if "loss" in line}
    points = []
    for line in trained.history:
        if "recall" in line:
            recall = {k: v for k, v in line["recall"].items() if k != "by_relation"}
            step, tokens = line["step"], line["tokens"]
            points.append(
                {
                    "step": step,
                    "tokens": tokens,
                    "flops": tokens * flops_per_token,
                    "loss": losses.get(step),
                    **recall,
                }
            )
    return points
