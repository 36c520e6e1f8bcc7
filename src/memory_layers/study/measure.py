"""One run of a study: train it, then record everything that the report needs."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from memory_layers.common.files import write_json
from memory_layers.data.prepare import PreparedData
from memory_layers.layers.experts import RoutedExperts
from memory_layers.models import memory_layers_of
from memory_layers.study.breakdown import bits_stored, recall_by_entropy, recall_by_exposures
from memory_layers.study.config import tokens_of
from memory_layers.study.examples import example_answers
from memory_layers.study.facts_asked import measure_facts
from memory_layers.study.flops import count_flops
from memory_layers.train.config import RunConfig
from memory_layers.train.folders import RESULT
from memory_layers.train.loop import TrainedModel, train


def measure_run(
    variant: str,
    seed: int,
    config: RunConfig,
    out: Path,
    *,
    show: bool = False,
    data: PreparedData | None = None,
) -> dict[str, Any]:
    """Train one variant with one seed, write OUT/result.json, and return its content.

    Args:
        variant: Name in the report.
        seed: For the report. `config` holds it too.
        config: The run.
        out: Its folder.
        show: As for train().
        data: As for train().
    """
    trained = train(config, out, show=show, data=data)
    final = trained.history[-1]
    forward, training = count_flops(trained.model, config.train.seq_len, config.train.batch_size)
    parameters = count_parameters(trained.model)
    asked, shape = final.get("asked"), trained.model.config
    answered = (trained.data.probes, final["correct"], asked)
    bits = bits_stored(*answered)
    facts = {}
    if config.data.exposures:
        facts["facts"] = measure_facts(trained.model, trained.data, final["correct"], asked)
    result = {
        "variant": variant,
        "seed": seed,
        "status": "ok",
        "flops_per_token": forward,
        "train_flops_per_token": training,
        **parameters,
        "tokens": trained.tokens,
        "seconds": round(trained.seconds, 1),
        "learning_rate": config.optim.lr,
        "value_learning_rate": config.optim.peak_value_lr if config.memory else None,
        "recall": final["recall"],
        "answer_nll": final["answer_nll"],
        "bits_stored": bits,
        "bits_per_parameter": bits / parameters["params_total"],
        "bits_per_active_parameter": bits / parameters["params_active"],
        "bits_per_train_flop": bits / (training * tokens_of(config)),
        "recall_by_exposures": recall_by_exposures(*answered),
        "recall_by_entropy": recall_by_entropy(*answered),
        **facts,
        "text": final.get("text"),
        "slot_usage": final.get("slot_usage"),
        "examples": example_answers(trained.model, trained.data, final["correct"], asked),
        "losses": _losses(trained.history),
        "shape": {
            "layers": shape.num_hidden_layers,
            "hidden_size": shape.hidden_size,
            "mlp_size": shape.intermediate_size,
        },
        "history": _history(trained, training * tokens_of(config) / config.train.steps),
        "config": asdict(config),
    }
    write_json(out / RESULT, result)
    return result


def count_parameters(model: PreTrainedModel) -> dict[str, int]:
    """Count parameters: all, those that a token uses, and those of tables.

    A token uses every dense parameter, J rows of V numbers in each memory layer, where slots are
    experts also J rows of D numbers, and of a mixture of experts as many as it is sent to, in the
    mean. Parameters that are not trained count like others.
    """
    tables, reads = {}, defaultdict(int)
    for layer in memory_layers_of(model):
        rows = layer.query.heads * layer.keys.top_k
        # Layers may share a table, and each reads it.
        for table in layer.tables:
            tables[id(table)] = table.weight.numel()
            reads[id(table)] += rows * table.weight.shape[1]
    active = sum(min(reads[table], size) for table, size in tables.items())
    memory = sum(tables.values())
    total = sum(parameter.numel() for parameter in model.parameters())
    idle = 0
    for module in model.modules():
        if isinstance(module, RoutedExperts):
            count = sum(parameter.numel() for parameter in module.experts.parameters())
            idle += count - round(count * module.config.share)
    return {
        "params_total": total,
        "params_active": total - memory - idle + active,
        "params_memory": memory,
    }


def _history(trained: TrainedModel, flops_per_step: float) -> list[dict[str, Any]]:
    losses = {line["step"]: line["loss"] for line in trained.history if "loss" in line}
    return [
        {
            "step": line["step"],
            "tokens": line["tokens"],
            "flops": line["step"] * flops_per_step,
            "seconds": line["seconds"],
            "loss": losses.get(line["step"]),
            **{k: v for k, v in line["recall"].items() if k != "by_relation"},
        }
        for line in trained.history
        if "recall" in line
    ]


def _losses(history: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """Return step and loss, of training and of held-out text, each at most about a hundred times.

    The loss of training is the mean over neighbouring lines.
    """
    lines = [line for line in history if "loss" in line]
    size = math.ceil(len(lines) / 100) or 1
    parts = [lines[i : i + size] for i in range(0, len(lines), size)]
    return {
        "training": [
            [part[-1]["step"], sum(line["loss"] for line in part) / len(part)] for part in parts
        ],
        "text": [[line["step"], line["text"]["nll"]] for line in history if line.get("text")],
    }
