"""The generated parts of docs/results.md and of the experiments: tables from result files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memory_layers.common.text import markdown_table as table
from memory_layers.study.match_config import MEASURES
from memory_layers.study.report import (
    comparisons,
    markdown_table,
    percent,
    scale_rows,
    seconds_off,
    summary_table,
)

ROOT = Path(__file__).parent.parent
COLUMNS = (
    "seeds", "question_heldout", "answer_nll", "text_nll", "flops_per_token", "params_total",
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


def text_section() -> str:
    """Return how much text is installed, by source, with version and licence."""
    found = load("01-headline", "text.json")
    if found is None:
        return missing("python experiments/01-headline/text.py")
    counts = ("documents", "words", "tokens")
    rows = [
        [source["source"], source["version"], source["licence"]]
        + [f"{source[count]:,}" for count in counts]
        for source in found["sources"]
    ]
    sums = [f"{sum(source[count] for source in found['sources']):,}" for count in counts]
    header = ("", "version", "licence", *counts)
    return (
        f"{table(header, [*rows, ['all', '', '', *sums]])}\n\nTokens are those of a byte-level BPE "
        f"of {found['vocab_size']:,} trained on all of it. Python is `builtin`, the others are "
        "`packages`, without the paragraphs that are in `builtin` too."
    )


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
    match = results.get("match") or {}
    # Of the seconds those that were measured, not those that were expected.
    known = {n: seconds_off(results) if n == "seconds" else match[n]["off"] for n in MEASURES
             if match.get(n)}  # fmt: skip
    off = {
        name: max(found.items(), key=lambda pair: abs(pair[1] or 0.0), default=("none", 0.0))
        for name, found in known.items()
    }
    if off:
        parts = " and ".join(
            f"{name} (`{variant}` is farthest off: {percent(value)})"
            for name, (variant, value) in off.items()
        )
        tokens = "" if match.get("tokens") is None else "tokens, "
        text += f" Matched: {tokens}{parts}."
    return text


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
            f"| `{entry[key]}` | {names[entry['measure']]} | {interval_text(entry)} | "
            f"{entry['verdict']} |"
        )
    return "\n".join(lines)


def interval_text(entry: Mapping[str, Any]) -> str:
    """Write a difference of `comparisons` with its interval."""
    ends = "" if entry["low"] is None else f" ({entry['low']:+.3f} to {entry['high']:+.3f})"
    return f"{entry['difference']:+.3f}{ends}"


def runs_section(folder: str, file: str) -> str:
    """Return the table of further runs of an experiment, such as those at other learning rates."""
    path = ROOT / "experiments" / folder / file
    results = json.loads(path.read_text("utf-8"))
    return markdown_table(results, COLUMNS[:4], ranges=False).strip()


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
        ours = [mean_text(row[key]) for key in ("question_heldout", "answer_nll")]
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


def mean_text(found: Mapping[str, Any] | None) -> str:
    """Write a mean of `summary_table` with half of its interval, or a dash."""
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
        (
            f"`{row['base']}`",
            f"{row['slots']:,}",
            mean_text(row["recall"]),
            mean_text(row["answer_nll"]),
        )
        for row in scale_rows(results)
    ]
    done = sum(run["status"] == "ok" for run in results["runs"])
    note = f"{done} of {len(results['runs'])} runs finished, on {results['device']}."
    return table(("Base", "slots", "held-out recall", "answer NLL"), rows) + f"\n\n{note}"
