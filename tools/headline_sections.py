"""The generated parts of the headline: what a fact costs in statements, with memory and without."""

from collections.abc import Mapping, Sequence
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
from memory_layers.study.half_recall import half_ratios, half_rows
from memory_layers.study.report import comparisons, summary_table
from memory_layers.study.summary import finished
from tools.results_sections import about, load, missing

FOLDER = "01-headline"
MEMORY = "memory_plus"
# What the README calls the variants that it has.
WORDS = {
    "dense": "a dense model of the same FLOPs",
    "dense_2x": "a dense model of twice the FLOPs",
    "dense_4x": "a dense model of four times the FLOPs",
    "moe_fine": "a mixture of 64 experts of the same FLOPs",
    "one_slot": "the same layers without slots to choose from",
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
        for wording in ("unseen", "seen")
        if (curves := read_curves(results, wording))
    }
    rows = []
    for row in summary_table(results):
        name = row["variant"]
        if row["seeds"]:
            rows.append((
                f"`{name}`", str(row["seeds"]),
                *(_half(by_variant.get(name)) for by_variant in needs.values()),
                _mean(row["question_heldout"]), _mean(row["text_nll"]),
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
            _half(needs[MEMORY]), _half(needs[other]), f"{_verdict(entry)}: {_ratio(entry)}",
        ))  # fmt: skip
    for other, entry in texts.items():
        said = {"below": "holds", "above": "does not hold"}.get(entry["verdict"], entry["verdict"])
        rows.append((
            f"has no higher loss on running text than `{other}`",
            _mean(losses[MEMORY]), _mean(losses[other]), f"{said}: {_interval(entry)}",
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
        (f"than {WORDS[entry['reference']]}", _half(needs[MEMORY]),
         _half(needs[entry["reference"]]), f"{_verdict(entry)}: {_ratio(entry)}")
        for entry in half_ratios(curves, [MEMORY])
        if entry["reference"] in WORDS
    ]  # fmt: skip
    seeds = len({run["seed"] for run in results["runs"] if finished(run)})
    head = ("Memory needs fewer statements for half recall", "memory", "the other", "")
    return (
        f"{results['facts']['facts']:,} facts that cannot be guessed, stated up to 64 times among "
        "text; asked for in wordings in which they were not read; each variant at its best "
        f"learning rates; {seeds} seeds, 95 % intervals:\n\n{table(head, rows)}\n\n"
        "[How it was measured, on text, in equal time, and on wider bases]"
        f"(experiments/{FOLDER}/README.md)."
    )


def levels_section(wording: str = "unseen") -> str:
    """Return recall by the number of statements."""
    results = load(FOLDER)
    curves = read_curves(results, WORDINGS[WORDINGS.index(wording)]) if results else None
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
            _interval(less[row["variant"]]) if row["variant"] in less else "–",
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
            cells = (_half(needs[variant], ends=False) for variant in whole.seeds)
            rows.append((f"`{name}`", f"{answers:,}", *cells))
    return table(("Relation", "answers", *(f"`{name}`" for name in whole.seeds)), rows)


def guess_section() -> str:
    """Return what guessers reach, and what is answered of facts that are never stated."""
    results = load(FOLDER)
    if results is None or "guessers" not in results:
        return _command()
    unstated: dict[str, dict[str, list[float]]] = {}
    for run in filter(finished, results["runs"]):
        for relation, answered in (run.get("facts") or {}).items():
            counts = results["exposure"][relation]["statements"].split()
            right = [int(r) for r, k in zip(answered["unseen"], counts, strict=True) if k == "0"]
            share = sum(right) / len(right)
            unstated.setdefault(relation, {}).setdefault(run["variant"], []).append(share)
    rows = []
    for relation, found in results["guessers"].items():
        means = {n: sum(v) / len(v) for n, v in unstated.get(relation, {}).items()}
        best = max(means, key=lambda name: means[name]) if means else None
        keys = ("chance", "majority", "neighbour", "prefix")
        most = "–" if best is None else f"{means[best]:.3f} (`{best}`)"
        rows.append((f"`{relation}`", f"{found['facts']:,}", *(f"{found[k]:.3f}" for k in keys),
                     most))  # fmt: skip
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
        cells = []
        for field in rates["fields"]:
            at = {f: v for f, v in swept["best"].items() if f != field}
            tried = [
                run
                for run in swept["tried"]
                if field in run
                and set(run) & set(rates["fields"]) <= {field, *_before(rates, field)}
                and all(run.get(f) == v for f, v in at.items() if f in _before(rates, field))
            ]
            cells.append(", ".join(_tried(run, field, swept["best"]) for run in tried) or "–")
        edges = ", ".join(f"{field} {edge}" for field, edge in swept["edges"].items())
        rows.append((f"`{name}`", *cells, edges or "none"))
    return table(("Variant", *(f"{f}: recall" for f in rates["fields"]), "best at an edge"), rows)


def _before(rates: Mapping[str, Any], field: str) -> Sequence[str]:
    return rates["fields"][: rates["fields"].index(field)]


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
        told = "; ".join(f"`{n}` {_ratio(ratios[n])}" for n in names[1:] if n in ratios)
        rows.append((width, *(_half(needs.get(n)) for n in names), told))
    return table(("Width", *(f"`{n}`" for n in names), "times as many"), rows)


def _half(row: Mapping[str, Any] | None, *, ends: bool = True) -> str:
    if row is None:
        return "–"
    most = f"> {row['most']}"
    text = most if row["exposures"] is None else _three(row["exposures"])
    if not ends or row["low"] is None:
        return text
    return (
        f"{text} ({_three(row['low'])} to {most if row['high'] is None else _three(row['high'])})"
    )


def _ratio(row: Mapping[str, Any]) -> str:
    if row["ratio"] is None:
        return "–"
    high = "∞" if row["high"] is None else _three(row["high"])
    low = "0" if row["low"] is None else _three(row["low"])
    return f"{row['bound']} {_three(row['ratio'])} × ({low} to {high})".strip()


def _verdict(row: Mapping[str, Any]) -> str:
    if row["low"] is not None and row["low"] > 1:
        return "holds"
    if row["high"] is not None and row["high"] < 1:
        return "does not hold"
    return "not distinguishable"


def _interval(entry: Mapping[str, Any]) -> str:
    ends = "" if entry["low"] is None else f" ({entry['low']:+.3f} to {entry['high']:+.3f})"
    return f"{entry['difference']:+.3f}{ends}"


def _mean(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    half = found.get("half")
    return f"{found['mean']:.3f}" + (f" ± {half:.3f}" if half is not None else "")


def _three(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"
