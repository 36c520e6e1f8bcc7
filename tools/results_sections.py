"""The generated parts of docs/results.md and of the experiments: tables from result files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memory_layers.common.text import markdown_table as table
from memory_layers.study.report import (
    comparisons,
    markdown_table,
    percent,
    scale_rows,
    summary_table,
)

ROOT = Path(__file__).parent.parent
# Their learning rates were not swept in the set-up: figures are shown, nothing is concluded.
OPEN = ("dense_2x", "dense_4x")
COLUMNS = (
    "seeds", "question_heldout", "answer_nll", "text_nll", "flops_per_token", "params_total",
)  # fmt: skip
BITS = (
    "question_heldout", "bits_stored", "bits_per_parameter", "bits_per_active_parameter",
    "bits_per_train_flop",
)  # fmt: skip

# Table 3 and table 4 of arXiv 2412.09764, 373m base: loss, NQ and TQA answers, in nats.
# "PK base" is the row with layer 12, v_dim 1024 and key_dim 256 too.
PAPER = {
    "plain": ("12; PK base", 2.11, 12.13, 8.34),
    "three_layers_late": ("12, 16, 20", 2.08, 11.60, 7.54),
    "three_layers_middle": ("8, 12, 16", 2.07, 11.79, 7.64),
    "three_layers": ("4, 12, 20", 2.06, 11.32, 7.20),
    "all_layers": ("5, 8, 11, 14, 17, 21", 2.11, 11.79, 7.73),
    "sigmoid_gate": ("+ gated", 2.11, 12.24, 8.17),
    "silu_gate": ("+ swilu", 2.11, 12.05, 8.09),
    "random_slots": ("+ random values", 2.11, 12.36, 8.09),
    "sink_slot": ("+ softmax sink", 2.11, 12.19, 8.04),
    "value_dim_sixteenth": ("v_dim 64, 16m values", 2.15, 12.86, 8.75),
    "value_dim_quarter": ("v_dim 256, 4m values", 2.14, 12.63, 8.49),
    "value_dim_double": ("v_dim 2048, 512k values", 2.14, 12.49, 8.53),
    "key_dim_double": ("key_dim 512", 2.12, 12.32, 8.15),
    "key_dim_4x": ("key_dim 1024", 2.11, 12.37, 8.25),
    "key_dim_8x": ("key_dim 2048", 2.09, 11.98, 7.83),
}


def load(folder: str, file: str = "results.json") -> dict[str, Any] | None:
    """Return the results of an experiment. None: it has not been run."""
    path = ROOT / "experiments" / folder / file
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def missing(command: str) -> str:
    """Say that an experiment has not been run to its end, and how to."""
    return f"No complete results yet: `{command}`."


def table_section(folder: str, columns: Sequence[str] = COLUMNS) -> str:
    """Return the table of a comparison, what it was run on, and what its runs have in common."""
    results = load(folder)
    if results is None:
        return missing(f"memory-layers compare experiments/{folder}/compare.yaml")
    return f"{markdown_table(results, columns, ranges=False)}\n{about(results)}"


def about(results: Mapping[str, Any]) -> str:
    """Return a sentence on data, seeds, device and matching of a comparison."""
    facts, runs = results["facts"], results["runs"]
    done = sum(run["status"] == "ok" for run in runs)
    seeds = len({run["seed"] for run in runs})
    spent = sum(run.get("seconds", 0.0) for run in runs)
    text = (
        f"{facts['facts']:,} facts of {len(facts['relations'])} relations, {done} of {len(runs)} "
        f"runs finished, {seeds} seed{'s' * (seeds != 1)}, mean ± half of the 95 % interval, on "
        f"{results['device']}, {spent / 3600:.1f} core hours, commit `{results['commit']}`."
    )
    off = {
        name: max(entry["off"].items(), key=lambda pair: abs(pair[1]), default=("none", 0.0))
        for name, entry in (results.get("match") or {}).items()
        if isinstance(entry, Mapping)
    }
    if off:
        parts = " and ".join(
            f"{name} (`{variant}` is farthest off: {percent(value)})"
            for name, (variant, value) in off.items()
        )
        text += f" Matched: tokens, {parts}."
    return text


def differences_section(folder: str) -> str:
    """Return what `memory_plus` has over each other variant, paired over seeds."""
    results = load(folder)
    if results is None:
        return missing(f"memory-layers compare experiments/{folder}/compare.yaml")
    return _differences(comparisons(results, ["memory_plus"]), "reference", "`memory_plus` less")


def recipe_differences(folder: str, file: str = "results.json") -> str:
    """Return what each variant has over `memory_plus`, paired over seeds."""
    results = load(folder, file)
    if results is None:
        return missing(f"memory-layers compare experiments/{folder}/compare.yaml")
    others = [row["variant"] for row in summary_table(results) if row["variant"] != "memory_plus"]
    found = [e for e in comparisons(results, others) if e["reference"] == "memory_plus"]
    return _differences(found, "variant", "Less `memory_plus`")


def _differences(entries: Sequence[Mapping[str, Any]], key: str, title: str) -> str:
    names = {
        "question_heldout": "held-out recall",
        "answer_nll": "answer NLL",
        "text_nll": "text loss",
    }
    lines = [f"| {title} | of | difference (95 %) | verdict |", "|:---|:---|---:|:---|"]
    for entry in entries:
        lines.append(
            f"| `{entry[key]}` | {names[entry['measure']]} | {_interval(entry)} | "
            f"{'open' if entry[key] in OPEN else entry['verdict']} |"
        )
    return "\n".join(lines)


def _interval(entry: Mapping[str, Any]) -> str:
    ends = "" if entry["low"] is None else f" ({entry['low']:+.3f} to {entry['high']:+.3f})"
    return f"{entry['difference']:+.3f}{ends}"


def runs_section(folder: str, file: str) -> str:
    """Return the table of further runs of an experiment, such as those at other learning rates."""
    path = ROOT / "experiments" / folder / file
    results = json.loads(path.read_text("utf-8"))
    return markdown_table(results, COLUMNS[:4], ranges=False).strip()


def tried_section(folder: str = "01-headline") -> str:
    """Return the single runs that came before the headline."""
    record = json.loads((ROOT / "experiments" / folder / "tried.json").read_text("utf-8"))
    lines = [
        "| Variant | what | steps | held-out recall | answer NLL | text loss |",
        "|:---|:---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {run['variant']} | {run['what']} | {run['step']:,} | {run['recall']:.3f} | "
        f"{run['answer_nll']:.2f} | {run['text_nll']:.3f} |"
        for run in record["runs"]
    ]
    return "\n".join(lines)


def exposures_section(folder: str) -> str:
    """Return held-out recall by the number of statements of a fact, means over seeds."""
    results = load(folder)
    if results is None:
        return missing(f"memory-layers compare experiments/{folder}/compare.yaml")
    found: dict[str, dict[int, list[float]]] = {}
    for run in results["runs"]:
        for entry in run.get("recall_by_exposures") or ():
            cell = found.setdefault(run["variant"], {}).setdefault(entry["exposures"], [])
            cell.append(entry["recall"])
    counts = sorted({count for cells in found.values() for count in cells})
    rows = [
        (
            f"`{name}`",
            *(f"{sum(cells[c]) / len(cells[c]):.3f}" if c in cells else "–" for c in counts),
        )
        for name, cells in found.items()
    ]
    return table(("Statements an epoch", *map(str, counts)), rows)


def usage_section(folder: str, file: str = "results.json") -> str:
    """Return how evenly each variant reads its slots, means over seeds."""
    results = load(folder, file)
    if results is None:
        return missing(f"memory-layers compare experiments/{folder}/compare.yaml")
    found: dict[str, list[Mapping[str, Any]]] = {}
    for run in results["runs"]:
        if run.get("slot_usage"):
            found.setdefault(run["variant"], []).append(run["slot_usage"])
    rows = []
    for name, usages in found.items():
        used, divergence = (
            sum(usage[key] for usage in usages) / len(usages)
            for key in ("used_share", "kl_to_uniform")
        )
        rows.append((f"`{name}`", f"{usages[0]['slots']:,}", f"{used:.1%}", f"{divergence:.2f}"))
    return table(("Variant", "slots", "read at least once", "KL to uniform"), rows)


def ablation_section(folder: str) -> str:
    """Return our ablations beside those that the paper prints."""
    results = load(folder)
    if results is None:
        return missing(f"memory-layers compare experiments/{folder}/compare.yaml")
    lines = [
        "| Variant | ours: recall | answer NLL | in the paper | loss | NQ NLL | TQA NLL |",
        "|:---|---:|---:|:---|---:|---:|---:|",
    ]
    for row in summary_table(results):
        theirs = PAPER.get(row["variant"])
        printed = ["–"] * 4 if theirs is None else [theirs[0], *(f"{v:.2f}" for v in theirs[1:])]
        ours = [_mean(row[key]) for key in ("question_heldout", "answer_nll")]
        lines.append("| " + " | ".join([f"`{row['variant']}`", *ours, *printed]) + " |")
    return "\n".join(lines) + f"\n\n{about(results)}"


def teach_section(folder: str = "05-teach") -> str:
    """Return what the guide's models know of new and old facts, means over seeds."""
    results = load(folder)
    if results is None:
        return missing(f"python experiments/{folder}/run.py runs/teach")
    head = (
        "Recall", "new facts: questions not shown", "shown", "statements",
        "old facts: questions not shown", "shown", "statements",
    )  # fmt: skip
    rows = []
    names = {"base": "the base", "old facts mixed in": "taught, with old facts mixed in",
             "new facts alone": "taught new facts alone"}  # fmt: skip
    for model, words in names.items():
        runs = [run for run in results["runs"] if run["model"] == model]
        cells = [
            _spread([run[facts][kind] for run in runs])
            for facts in ("new", "old")
            for kind in ("question_heldout", "question_shown", "statement")
        ]
        rows.append((words, *cells))
    seeds = len({run["seed"] for run in results["runs"]})
    return table(head, rows) + (
        f"\n\n{seeds} seeds, mean and the least and the most of them, on {results['device']}, "
        f"commit `{results['commit']}`."
    )


def _spread(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _mean(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    half = found.get("half")
    return f"{found['mean']:.3f}" + (f" ± {half:.3f}" if half is not None else "")


def scaling_section(folder: str) -> str:
    """Return recall and answer NLL of a sweep."""
    results = load(folder)
    if results is None:
        return missing("memory-layers scale scale")
    rows = [
        (f"`{row['base']}`", f"{row['slots']:,}", _mean(row["recall"]), _mean(row["answer_nll"]))
        for row in scale_rows(results)
    ]
    done = sum(run["status"] == "ok" for run in results["runs"])
    note = f"{done} of {len(results['runs'])} runs finished, on {results['device']}."
    return table(("Base", "slots", "held-out recall", "answer NLL"), rows) + f"\n\n{note}"


def verdict_section(folder: str = "01-headline") -> str:
    """Return the stated expectation of the headline, each part with what came out."""
    results = load(folder)
    if results is None:
        return missing(f"memory-layers compare experiments/{folder}/compare.yaml")
    expected = (
        ("dense_2x", "question_heldout", "above", "recalls more held-out facts than `dense_2x`"),
        ("moe_expert_choice", "question_heldout", "above", "recalls more than `moe_expert_choice`"),
        ("moe_fine", "question_heldout", "above", "recalls more than `moe_fine`"),
        ("dense", "text_nll", "below", "has no higher loss on running text than `dense`"),
        ("dense_2x", "text_nll", "below", "has no higher loss on running text than `dense_2x`"),
    )
    found = {(e["reference"], e["measure"]): e for e in comparisons(results, ["memory_plus"])}
    lines = ["| Expected: `memory_plus` | difference (95 %) | |", "|:---|---:|:---|"]
    for reference, measure, wanted, words in expected:
        entry = found.get((reference, measure))
        if entry is None:
            lines.append(f"| {words} | – | not measured |")
            continue
        is_loss = measure == "text_nll"
        opposite = {"above": "below", "below": "above"}[wanted]
        outcome = {
            wanted: "holds",
            opposite: "does not hold",
            "not distinguishable": "not distinguishable" + (", so not shown worse" * is_loss),
        }.get(entry["verdict"], entry["verdict"])
        if reference in OPEN:
            outcome = "open"
        lines.append(f"| {words} | {_interval(entry)} | {outcome} |")
    return "\n".join(lines)
