"""What a comparison's report says in words: its lead, warnings, verdicts and provenance.

Next: variants.py, what each variant is; comparison.py puts all of it on a page.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from memory_layers.study.intervals import finite
from memory_layers.study.report.matched import seconds_off
from memory_layers.study.report.tables import percent
from memory_layers.study.summary import comparisons, summary_table

# What is further from an equal time, as a share of it, is no equal time.
_TIME_OFF = 0.05


def report_title(results: Mapping[str, Any]) -> str:
    """Return the title of the report."""
    return f"Comparison: {results.get('name') or 'unnamed'}"


def join_words(names: Sequence[str]) -> str:
    """Write names as a list in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def lead(results: Mapping[str, Any]) -> str:
    """Return what was compared and what came out, in a sentence."""
    rows = summary_table(results)
    if not rows:
        return "The results hold no runs."
    facts = results.get("facts") or {}
    text = f"Compared {join_words([row['variant'] for row in rows])}"
    if facts.get("facts"):
        text += f", taught {facts['facts']:,} facts"
        relations = len(facts.get("relations") or ())
        text += f" of {relations} relation{'s' * (relations != 1)}" if relations else ""
    measured = [row for row in rows if row["question_heldout"]]
    ranked = [(row["question_heldout"]["mean"], row["variant"]) for row in measured]
    ranked.sort(key=lambda pair: -pair[0])
    if not ranked:
        return f"{text}: no recall of held-out questions was measured."
    means = [mean for mean, _ in ranked]
    # Two decimals read best, unless they hide a difference or round a miss up to 1.
    coarse = len({f"{m:.2f}" for m in means}) == len(set(means))
    digits = 2 if coarse and not any(0.995 <= m < 1 for m in means) else 3
    scores = ", ".join(f"{name} {mean:.{digits}f}" for mean, name in ranked)
    return f"{text}: {scores} of held-out questions answered exactly."


def notes(results: Mapping[str, Any]) -> list[str]:
    """Return what a reader has to know before believing the figures."""
    rows = summary_table(results)
    found = []
    study, fate = "comparison", ("gave no result", "no mean")
    if "bases" in results:
        study, fate = "sweep", ("did not finish", "no mean and no fit")
    ended = Counter(run["status"] for row in rows for run in row["failed"])
    waiting = ended.pop("unfinished", 0)
    total = sum(row["seeds"] + len(row["failed"]) for row in rows)
    if results.get("complete") is False or waiting:
        runs = f": {waiting} of {total} runs have not ended" if waiting else ""
        found.append(f"This {study} is not complete{runs}. Its figures may still change.")
    if ended:
        how = join_words([f"{count} {status}" for status, count in ended.items()])
        found.append(
            f"{sum(ended.values())} of {total} runs {fate[0]} ({how}) and are in {fate[1]}; "
            "the tables show the reason."
        )
    off = {name: share for name, share in seconds_off(results).items() if share is not None}
    worst = max(off, key=lambda name: abs(off[name]), default="")
    if worst and abs(off[worst]) > _TIME_OFF:
        found.append(
            f"Variants were to be trained for the same time, and that of {worst} is "
            f"{percent(off[worst])} off: the machine had other work, or steps took longer later on."
        )
    fewest = min((row["seeds"] for row in rows if row["seeds"]), default=None)
    most = max((row["seeds"] for row in rows), default=0)
    names = [row["variant"] for row in rows if row["seeds"] == 1]
    if most == 1:
        found.append(
            "Every figure comes from one seed. One seed shows no spread: how far another seed "
            "would have landed is not known."
        )
    elif names:
        found.append(
            f"The figures of {join_words(names)} come from one seed, which shows no spread."
        )
    elif fewest == 2:
        found.append(
            "Some figures come from two seeds. An interval of two is many times as wide as their "
            "distance, as two seeds know little about a third."
        )
    return found


def verdict_text(results: Mapping[str, Any]) -> list[str]:
    """Return, a sentence for each variant with memory, what it is above and below in recall."""
    found: dict[str, dict[str, list[str]]] = {}
    for entry in comparisons(results):
        if entry["measure"] == "question_heldout":
            verdicts = found.setdefault(entry["variant"], {})
            verdicts.setdefault(entry["verdict"], []).append(entry["reference"])
    words = {
        "above": "above {}",
        "below": "below {}",
        "not distinguishable": "not distinguishable from {}",
        "one seed": "compared with {} on one seed only",
    }
    return [
        f"In recall of held-out questions, {subject} is "
        + "; ".join(words[v].format(join_words(verdicts[v])) for v in words if v in verdicts)
        + "."
        for subject, verdicts in found.items()
    ]


def provenance(results: Mapping[str, Any]) -> dict[str, str]:
    """Return where the figures come from, for the foot of the page."""
    facts = results.get("facts") or {}
    shown, heldout = finite(facts.get("shown")), finite(facts.get("heldout"))
    split = "" if shown is None or heldout is None else f", {shown:,.0f} shown as questions"
    split += f", {heldout:,.0f} held out" if split else ""
    entries = {
        "Device": results.get("device"),
        "Versions": ", ".join(f"{k} {v}" for k, v in (results.get("versions") or {}).items()),
        "Commit": results.get("commit"),
        "Command": results.get("command"),
        "Facts": f"{facts.get('source') or 'source not recorded'}{split}" if facts else None,
        "Date": results.get("date"),
    }
    return {name: str(value or "not recorded") for name, value in entries.items()}
