"""What was made equal between the variants of a comparison, and by how much each is off."""

from collections.abc import Mapping
from typing import Any

from memory_layers.study.intervals import finite
from memory_layers.study.plots.drawing import Styles
from memory_layers.study.report.page import Cell, Row, Table
from memory_layers.study.report.tables import number, percent
from memory_layers.study.summary import by_variant, summary_table

_WORDS = {"flops": "FLOPs", "parameters": "parameters", "seconds": "seconds"}


def match_text(results: Mapping[str, Any]) -> str:
    """Return what was made equal between the variants, and the largest miss."""
    match = results.get("match") or {}
    if not match:
        return ""
    texts = []
    if finite(match.get("tokens")) is not None:
        texts.append(f"Every variant was trained on {number(match['tokens'])} tokens.")
    for key, name in (("flops", "FLOPs per token"), ("parameters", "Total parameters")):
        if not match.get(key):
            texts.append(f"{name} were not matched.")
            continue
        target = number(match[key].get("target"))
        texts.append(f"{name} were matched to {target}{_furthest(match[key].get('off') or {})}.")
    if match.get("seconds"):
        texts.append(
            "Steps were set so that variants train for the same time: "
            f"{number(match['seconds'].get('target'), ',.0f')} s, by steps that were timed before "
            "training. Each reads as many tokens as it can in it"
            f"{_furthest(seconds_off(results), 'from the reference in fact')}."
        )
    if any(match.get(key) for key in ("flops", "parameters")):
        texts.append(
            "A dense model that is meant to be larger is measured against its multiple of the "
            "target, and a dash stands for a variant that has nothing to set or is not matched by "
            "it."
        )
    return " ".join(texts)


def _furthest(off: Mapping[str, Any], what: str = "off") -> str:
    known = {name: value for name, entry in off.items() if (value := finite(entry)) is not None}
    if not known:
        return ""
    worst = max(known, key=lambda name: abs(known[name]))
    return f"; the furthest {what} is {worst}, by {percent(known[worst])}"


def seconds_off(results: Mapping[str, Any]) -> dict[str, float | None]:
    """Return how far each variant that was matched by seconds ended from its reference.

    Args:
        results: The content of results.json.

    Returns:
        By variant, of the mean seconds of its finished runs, as a share of the reference's. None:
        there is none yet.
    """
    match = (results.get("match") or {}).get("seconds") or {}
    means = {row["variant"]: row["seconds"] for row in summary_table(results)}
    base = means.get(match.get("reference"))
    return {
        name: own / base - 1 if (own := means.get(name)) is not None and base else None
        for name in match.get("off") or {}
    }


def match_table(results: Mapping[str, Any], styles: Styles) -> Table | None:
    """Return what each variant was matched by and how far it is off, None where nothing was."""
    match = results.get("match") or {}
    columns = {
        f"{words[:1].upper()}{words[1:]} off the target": match[key].get("off") or {}
        for key, words in _WORDS.items()
        if match.get(key)
    }
    if not columns:
        return None
    if match.get("seconds"):
        columns["Seconds off the reference, measured"] = seconds_off(results)
    tokens = {row["variant"]: row["tokens"] for row in summary_table(results)}
    differ = finite(match.get("tokens")) is None
    rows = []
    for name in by_variant(results):
        cells = [Cell(_matched_by(match, name))]
        cells += [Cell(percent(off.get(name))) for off in columns.values()]
        cells += [Cell(number(tokens[name]))] if differ else []
        rows.append(Row(Cell(name), cells, styles[name].colour))
    head = ["Variant", "Matched by", *columns, *(["Tokens"] if differ else [])]
    return Table(head, rows, "What was matched")


def _matched_by(match: Mapping[str, Any], name: str) -> str:
    words = {
        key: f"{word} (reference)" if (match.get(key) or {}).get("reference") == name else word
        for key, word in _WORDS.items()
        if name in ((match.get(key) or {}).get("off") or {})
    }
    # Who is not trained for as long as others reads as much.
    return ", ".join([*([] if "seconds" in words else ["tokens"]), *words.values()])
