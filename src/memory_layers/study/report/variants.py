"""What each variant of a comparison is, in a line, and what it answered."""

from collections.abc import Mapping
from typing import Any

from memory_layers.study.fields import changed_fields, flat_fields
from memory_layers.study.metrics import Run
from memory_layers.study.plots.drawing import Styles
from memory_layers.study.report.page import Cell, Row, Table
from memory_layers.study.report.text import join_words
from memory_layers.study.summary import Groups, by_variant

# What the words say already, or what makes no difference.
_SAID = (
    "name", "train.seed", "model.hidden_size", "model.mlp_size", "model.layers", "memory.layers",
    "memory.sub_keys", "memory.heads", "memory.top_k", "moe.experts", "moe.expert_size",
    "train.eval_every", "train.checkpoint_every",
)  # fmt: skip
_SPECIAL = {
    "peer": "whose values are experts of one neuron (PEER)",
    "memory_beside": "beside the feed-forward blocks",
    "fixed_slots": "found by keys that are not trained",
    "one_slot": "as a control, with nothing to choose from",
}


def describe_variants(results: Mapping[str, Any]) -> dict[str, str]:
    """Return what each variant is: kind, width, slots, and in what it differs from the first alike.

    A variant is alike to another one if both are dense, have memory or have experts.

    Args:
        results: The content of results.json. Runs that hold no configuration give the kind alone.
    """
    kinds = results.get("kinds") or {}
    firsts: dict[str, tuple[str, dict[str, Any]]] = {}
    texts = {}
    for name, runs in by_variant(results).items():
        run = next((run for run in runs if run.get("config")), None)
        kind = str(kinds.get(name) or name)
        if run is None:
            texts[name] = f"Kind: {kind}."
            continue
        config = run["config"]
        family = "memory" if config.get("memory") else "moe" if config.get("moe") else "dense"
        first, other = firsts.setdefault(family, (name, config))
        own, others = flat_fields(config), flat_fields(other)
        changes = [
            f"{field} {_value(own.get(field))} in place of {_value(others.get(field))}"
            for field in changed_fields(other, config)
            if field not in _SAID
        ]
        texts[name] = _words(run, kind)
        if changes:
            texts[name] += f" Unlike {first}: {'; '.join(changes)}."
    return texts


def _words(run: Run, kind: str) -> str:
    config = run["config"]
    model = {**{k: v for k, v in config["model"].items() if v is not None}, **run.get("shape", {})}
    parts = [
        f"{words} {model[field]}"
        for field, words in (("hidden_size", "width"), ("mlp_size", "feed-forward width"))
        if field in model
    ]
    base = f"{model.get('preset', 'custom')} model"
    if "layers" in model:
        base += f" of {model['layers']} blocks"
    base += f" ({', '.join(parts)})" if parts else ""
    memory, moe = config.get("memory"), config.get("moe")
    if memory:
        slots = memory["sub_keys"] ** 2
        blocks = [str(layer) for layer in memory["layers"]]
        where = f"in block{'s' * (len(blocks) > 1)} {join_words(blocks)}"
        reads = f"{memory['heads']} heads read {memory['top_k']} each"
        if memory["heads"] == 1:
            reads = f"one head reads {memory['top_k']}"
        special = f", {_SPECIAL[kind]}" if kind in _SPECIAL else ""
        return f"Memory: {slots:,} slots {where}, {reads}{special}; {base}."
    if moe:
        choice = (
            f"each token takes {moe['top_k']}"
            if moe["routing"] == "token_choice"
            else "each expert takes its best tokens"
        )
        # None: it follows from the feed-forward width.
        width = f" of width {moe['expert_size']}" if moe.get("expert_size") else ""
        return f"Mixture of experts: {moe['experts']}{width} a block, {choice}; {base}."
    return f"Dense: {base}, without memory."


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return join_words([str(part) for part in value]) if value else "none"
    return "unset" if value is None else str(value)


def example_tables(groups: Groups, styles: Styles) -> list[Table]:
    """Return a few held-out questions with what each variant answered, of its first seed."""
    tables = []
    for name, runs in groups.items():
        examples = next((run["examples"] for run in runs if run.get("examples")), [])
        rows = [
            Row(
                Cell("right" if example["correct"] else "wrong", example["relation"]),
                [Cell(example[key]) for key in ("prompt", "answer", "said")],
                styles[name].colour,
            )
            for example in examples
        ]
        if rows:
            head = (name, "Question", "Right answer", "The model said")
            tables.append(Table(head, rows, name, "closed" if tables else "open", prose=True))
    return tables
