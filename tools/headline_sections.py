"""The generated parts of the headline: what a fact costs in statements, with memory and without."""

from collections.abc import Mapping
from typing import Any

from memory_layers.common.text import markdown_table as table
from memory_layers.common.text import short_number
from memory_layers.study.exposure import (
    WORDINGS,
    curve_rows,
    exposed_relations,
    lift_differences,
    lift_rows,
    read_curves,
)
from memory_layers.study.guess import GUESSERS
from memory_layers.study.half_recall import half_ratios, half_rows
from memory_layers.study.report import comparisons, summary_table
from memory_layers.study.report.exposure import half_text, ratio_text
from memory_layers.study.report.guessing import unstated_recall
from memory_layers.study.summary import finished
from tools.results_sections import about, interval_text, load, mean_text, missing

FOLDER = "01-headline"
MEMORY = "memory_plus"
# What the README calls the variants that it has.
WORDS = {
    "dense": "a dense model of the same FLOPs",
    "dense_2x": "a dense model of twice the FLOPs",
    "dense_4x": "a dense model of four times the FLOPs",
    "memory": "one plain memory layer",
    "one_slot": "the same layers without slots to choose from",
    "moe_fine": "a mixture of 64 experts of the same FLOPs",
}
# The bases, by the file of their results, from the narrowest to the widest.
SIZES = {"d32.json": "32", "results.json": "64", "d128.json": "128"}


def _command(name: str = "compare") -> str:
    return missing(f"memory-layers compare experiments/{FOLDER}/{name}.yaml")


def table_section(file: str = "results.json", config: str = "compare") -> str:
    """Return what each variant needs for half recall, its loss on text, and what it costs."""
    results = load(FOLDER, file)
    if results is None:
        return _command(config)
    needs = {
        wording: {row["variant"]: row for row in half_rows(curves)}
        for wording in WORDINGS
        if (curves := read_curves(results, wording))
    }
    rows = []
    for row in summary_table(results):
        name = row["variant"]
        if row["seeds"]:
            rows.append((
                f"`{name}`", str(row["seeds"]),
                *(_need(by_variant.get(name)) for by_variant in needs.values()),
                mean_text(row["question_heldout"]), mean_text(row["text_nll"]),
                f"{short_number(row['flops_per_token'])} ({row['flops_ratio']:.2f} ×)",
                f"{short_number(row['params_total'])}",
                f"{row['seconds']:,.0f} ({row['seconds_ratio']:.2f} ×)",
            ))  # fmt: skip
    head = (
        "Variant", "seeds", *(f"statements for half recall, {w} wordings" for w in needs),
        "recall, all facts", "text loss", "FLOPs a token", "parameters", "seconds",
    )  # fmt: skip
    return f"{table(head, rows)}\n\n{about(results)} × is of `dense`."


def claims_section(file: str = "results.json", config: str = "compare") -> str:
    """Return what `memory_plus` has over each other variant: a claim a row, with both figures."""
    results = load(FOLDER, file)
    if results is None:
        return _command(config)
    curves = read_curves(results, "unseen")
    if curves is None:
        return _command(config)
    needs = {row["variant"]: row for row in half_rows(curves)}
    losses = {row["variant"]: row["text_nll"] for row in summary_table(results)}
    texts = {
        entry["reference"]: entry
        for entry in comparisons(results, [MEMORY])
        if entry["measure"] == "text_nll"
    }
    rows = []
    for entry in half_ratios(curves, [MEMORY]):
        other = entry["reference"]
        rows.append((
            f"needs fewer statements for half recall than `{other}`",
            half_text(needs[MEMORY]), half_text(needs[other]),
            f"{_verdict(entry)}: {ratio_text(entry)}",
        ))  # fmt: skip
    for other, entry in texts.items():
        said = {"below": "holds", "above": "does not hold"}.get(entry["verdict"], entry["verdict"])
        rows.append((
            f"has no higher loss on running text than `{other}`",
            mean_text(losses[MEMORY]), mean_text(losses[other]), f"{said}: {interval_text(entry)}",
        ))  # fmt: skip
    return table((f"`{MEMORY}`", "its figure", "the other's", ""), rows)


def short_section() -> str:
    """Return the claims that the README makes, with their figures, and the plot."""
    results = load(FOLDER)
    curves = read_curves(results, "unseen") if results else None
    if results is None or curves is None:
        return _command()
    needs = {row["variant"]: row for row in half_rows(curves)}
    rows = [
        (f"than {WORDS[entry['reference']]}", half_text(needs[MEMORY]),
         half_text(needs[entry["reference"]]), f"{_verdict(entry)}: {ratio_text(entry)}")
        for entry in half_ratios(curves, [MEMORY])
        if entry["reference"] in WORDS
    ]  # fmt: skip
    seeds = len({run["seed"] for run in results["runs"] if finished(run)})
    head = ("Memory needs fewer statements for half recall", "memory", "the other", "")
    return (
        f"What a fact costs: {results['facts']['facts']:,} facts that can hardly be guessed, "
        f"stated up to {curves.levels[-1]} times among text, and asked for in wordings in which "
        f"they were not read; each variant at its best learning rates, {seeds} seeds, 95 % "
        f"intervals ([all figures](experiments/{FOLDER}/README.md)):\n\n{table(head, rows)}"
    )


def levels_section() -> str:
    """Return recall of questions by the number of statements."""
    results = load(FOLDER)
    curves = read_curves(results, "unseen") if results else None
    if curves is None:
        return _command()
    levels = curves.levels.tolist()
    by_level = {(row["variant"], row["exposures"]): row for row in curve_rows(curves)}
    rows = [
        (f"`{name}`", *(f"{by_level[name, k]['recall']:.3f}" for k in levels))
        for name in curves.seeds
    ]
    return table(("Statements", *map(str, levels)), rows)


def lift_section() -> str:
    """Return the pooled lift of each variant, and how `memory_plus` differs, paired."""
    results = load(FOLDER)
    curves = read_curves(results, "unseen") if results else None
    if curves is None:
        return _command()
    less = {row["reference"]: row for row in lift_differences(curves, [MEMORY])}
    rows = [
        (
            f"`{row['variant']}`",
            f"{row['lift']:.3f} ({row['lift_low']:.3f} to {row['lift_high']:.3f})",
            interval_text(less[row["variant"]]) if row["variant"] in less else "–",
        )
        for row in lift_rows(curves)
    ]
    return table(("Variant", "pooled lift", f"`{MEMORY}` less it"), rows)


def relations_section() -> str:
    """Return the statements for half recall by relation."""
    results = load(FOLDER)
    whole = read_curves(results, "unseen") if results else None
    if results is None or whole is None:
        return _command()
    rows = []
    for name in exposed_relations(results):
        curves = read_curves(results, "unseen", [name])
        if curves is not None:
            needs = {row["variant"]: row for row in half_rows(curves)}
            answers = results["exposure"][name]["answers"]
            cells = (half_text(needs[variant], ends=False) for variant in whole.seeds)
            rows.append((f"`{name}`", f"{answers:,}", *cells))
    return table(("Relation", "answers", *(f"`{name}`" for name in whole.seeds)), rows)


def guess_section() -> str:
    """Return what guessers reach, and what is answered of facts that are never stated."""
    results = load(FOLDER)
    if results is None or "guessers" not in results:
        return _command()
    rows = []
    for relation, found in results["guessers"].items():
        known: dict[str, list[float]] = {}
        for run in filter(finished, results["runs"]):
            share = unstated_recall(results, run, relation)
            if share is not None:
                known.setdefault(run["variant"], []).append(share)
        means = [(sum(shares) / len(shares), name) for name, shares in known.items()]
        most = "–" if not means else "{:.3f} (`{}`)".format(*max(means))
        cells = (f"{found[guesser]:.3f}" for guesser in GUESSERS)
        rows.append((f"`{relation}`", f"{found['facts']:,}", *cells, most))
    head = ("Relation", "facts", "chance", "most frequent answer", "nearest name",
            "longest prefix", "best of all models where never stated")  # fmt: skip
    return table(head, rows)


def rates_section(file: str = "results.json", config: str = "compare") -> str:
    """Return all learning rates that were tried for each variant, and the best."""
    results = load(FOLDER, file)
    rates = (results or {}).get("rates")
    if not rates:
        return _command(config)
    rows: list[tuple[str, ...]] = []
    for name, swept in rates["variants"].items():
        # Fields are swept one after the other: a run is of the last that it names.
        of: dict[str, list[Mapping[str, Any]]] = {field: [] for field in rates["fields"]}
        for run in swept["tried"]:
            of[[field for field in of if field in run][-1]].append(run)
        cells = [
            ", ".join(_tried(run, field, swept["best"]) for run in runs) or "–"
            for field, runs in of.items()
        ]
        edges = ", ".join(f"{field} {edge}" for field, edge in swept["edges"].items())
        rows.append((f"`{name}`", *cells, edges or "none"))
    return table(("Variant", *(f"{f}: recall" for f in rates["fields"]), "best at an edge"), rows)


def _tried(run: Mapping[str, Any], field: str, best: Mapping[str, float]) -> str:
    recall = f"{run['question_heldout']:.3f}" if run["status"] == "ok" else run["status"]
    text = f"{run[field]:g}: {recall}"
    return f"**{text}**" if run[field] == best.get(field) else text


def sizes_section() -> str:
    """Return the statements for half recall by the width of the base."""
    names = (MEMORY, "dense", "dense_2x", "dense_4x")
    rows: list[tuple[str, ...]] = []
    for file, width in SIZES.items():
        results = load(FOLDER, file)
        curves = read_curves(results, "unseen") if results else None
        if results is None or curves is None:
            rows.append((width, *["not run yet"] * len(names), "–"))
            continue
        needs = {row["variant"]: row for row in half_rows(curves)}
        ratios = {row["reference"]: row for row in half_ratios(curves, [MEMORY])}
        told = "; ".join(f"`{n}` {ratio_text(ratios[n])}" for n in names[1:] if n in ratios)
        rows.append((width, *(_need(needs.get(n)) for n in names), told))
    return table(("Width", *(f"`{n}`" for n in names), f"others need, × `{MEMORY}`"), rows)


def _need(row: Mapping[str, Any] | None) -> str:
    return "–" if row is None else half_text(row)


def _verdict(row: Mapping[str, Any]) -> str:
    if row["low"] is not None and row["low"] > 1:
        return "holds"
    if row["high"] is not None and row["high"] < 1:
        return "does not hold"
    return "not distinguishable"
