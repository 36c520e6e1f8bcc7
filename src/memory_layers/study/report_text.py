"""What a comparison's report says in words: its lead, warnings, captions and definitions.

Next: :mod:`memory_layers.study.report` puts them on a page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from memory_layers.study.intervals import finite
from memory_layers.study.report_summary import comparisons, summary_table
from memory_layers.study.report_tables import number, percent

# For each plot: what it shows, and how to read it.
CAPTIONS = {
    "recall_over_tokens": (
        "Recall over training tokens.",
        "At the same horizontal position every variant has read the same amount of text. "
        "Higher is better; a line that is still rising had not finished learning. Bands run from "
        "the lowest to the highest seed; the bar at the end of a line is the 95 % interval.",
    ),
    "recall_over_flops": (
        "Recall over training FLOPs.",
        "At the same horizontal position every variant has spent the same compute. A line "
        "further left reaches the same recall more cheaply.",
    ),
    "recall_against_flops": (
        "Recall against compute.",
        "Each point is a variant at the end of training, with its 95 % interval over seeds. The "
        "grey line is the Pareto front: no variant on or left of it recalls more. Up and left is "
        "better.",
    ),
    "recall_against_parameters": (
        "Recall against size.",
        "The same variants by all the parameters that they store, used for a token or not. Up "
        "and left is better.",
    ),
    "text_loss_against_flops": (
        "Loss on running text against compute.",
        "Loss on text that was kept out of training, so that a gain in recall cannot hide a loss "
        "in language modelling. Down and left is better.",
    ),
    "recall_by_relation": (
        "Recall by relation.",
        "One group of bars per kind of fact, one bar per variant, at the end of training. Thin "
        "black lines are 95 % intervals where there are several seeds.",
    ),
    "recall_by_entropy": (
        "Recall by information in the answer.",
        "Facts in groups of equal size by how rare their answer is within the relation. On the "
        "left, guessing the commonest answer goes far; on the right, only knowing helps.",
    ),
    "recall_by_exposures": (
        "Recall by number of statements.",
        "Facts by how many statements of them an epoch of the corpus has. A line further up on "
        "the left learns from fewer.",
    ),
    "bits_per_parameter": (
        "Bits of knowledge per parameter.",
        "Bits stored, divided by all parameters. Dense models trained long enough were found to "
        "store up to 2 bits per parameter (Allen-Zhu and Li, Knowledge Capacity Scaling Laws, "
        "arXiv 2404.05405). They counted what a model knows in another way, by its loss, and "
        "saw each fact 1000 times: the line is a landmark, not a target.",
    ),
    "bits_per_active_parameter": (
        "Bits of knowledge per active parameter.",
        "The same bits, divided by the parameters that a token uses.",
    ),
    "bits_per_train_flop": (
        "Bits of knowledge per training compute.",
        "The same bits, divided by the FLOPs of the whole training, in units of 10¹² FLOPs.",
    ),
    "slot_usage": (
        "How evenly the memory is used.",
        "Slots are grouped by how many reads they received in the measurement. A tall bar at 0 "
        "means slots that nothing read: parameters without a use.",
    ),
}

DEFINITIONS = (
    (
        "Recall",
        "The share of questions for which every token of the answer is produced exactly, by "
        "greedy decoding. A partly right answer counts as wrong.",
    ),
    (
        "Held-out questions",
        "Facts the model has seen only as statements. The question form was never shown for "
        "that subject, so the model has to find the fact from a wording it has not met it in.",
    ),
    (
        "Shown questions",
        "Facts whose question and answer were part of the training text, beside the statement.",
    ),
    ("Statements", "The answer is completed in the wording the fact was taught in."),
    (
        "Answer NLL",
        "Negative log-likelihood of the right answer to held-out questions, in nats. Lower is "
        "better. It still moves where recall is near 0 or 1.",
    ),
    (
        "Text loss",
        "Negative log-likelihood of a token of running text that was kept out of training, in "
        "nats. Lower is better.",
    ),
    (
        "Bits stored",
        "Sum of log2(number of distinct answers of the relation) over the held-out and shown "
        "question facts the model recalled. A recalled fact counts for more when there were "
        "more answers to choose from.",
    ),
    (
        "FLOPs per token",
        "Compute of the forward pass of one token, and its ratio to the base variant's. Parameters "
        "that are stored but not touched by a token cost none.",
    ),
    (
        "Parameters",
        "All that are stored and, in small print, those that are active for a token: of a "
        "memory layer, only the slots it reads.",
    ),
    (
        "Interval",
        "0.72 ± 0.02: the mean over the seeds and half the width of its 95 % interval, by "
        "Student's t over the seeds. It tells how far other seeds would move the mean, not other "
        "facts or other settings. Two seeds give a very wide one, one seed none. In plots, bars "
        "end where no value can be.",
    ),
    (
        "Range",
        "Small figures such as 0.71\u20130.74 are the lowest and the highest seed.",
    ),
    (
        "Verdict",
        "Runs of two variants with the same seed are paired, and the mean of their differences "
        "gets a 95 % interval. Above or below: the interval excludes 0. Not distinguishable: it "
        "does not, which is no proof of equality. Each verdict stands alone: of twenty between "
        "equal variants, one would be expected to be wrong.",
    ),
)


def title(results: Mapping[str, Any]) -> str:
    """Return the title of the report."""
    return f"Comparison: {results.get('name') or 'unnamed'}"


def join(names: Sequence[str]) -> str:
    """Write names as a list in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def lead(results: Mapping[str, Any]) -> str:
    """Return what was compared and what came out, in a sentence."""
    rows = summary_table(results)
    if not rows:
        return "The results hold no runs."
    facts = results.get("facts") or {}
    text = f"Compared {join([row['variant'] for row in rows])}"
    if facts.get("facts"):
        text += f", taught {facts['facts']:,} facts"
        relations = len(facts.get("relations") or ())
        text += f" of {relations} relation{'s' * (relations != 1)}" if relations else ""
    ranked = sorted(
        (
            (row["question_heldout"]["mean"], row["variant"])
            for row in rows
            if row["question_heldout"]
        ),
        key=lambda pair: -pair[0],
    )
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
    ended = Counter(run["status"] for row in rows for run in row["failed"])
    waiting = ended.pop("unfinished", 0)
    total = sum(row["seeds"] + len(row["failed"]) for row in rows)
    if results.get("complete") is False or waiting:
        runs = f": {waiting} of {total} runs have not ended" if waiting else ""
        found.append(f"This comparison is not complete{runs}. Its figures may still change.")
    if ended:
        how = join([f"{count} {status}" for status, count in ended.items()])
        found.append(
            f"{sum(ended.values())} of {total} runs gave no result ({how}) and are in no mean; the "
            "tables show the reason."
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
        found.append(f"The figures of {join(names)} come from one seed, which shows no spread.")
    elif fewest == 2:
        found.append(
            "Some figures come from two seeds. An interval of two is many times as wide as their "
            "distance, as two seeds know little about a third."
        )
    return found


def match_text(results: Mapping[str, Any]) -> str:
    """Return what was made equal between the variants, and the largest miss."""
    match = results.get("match") or {}
    tokens = finite(match.get("tokens"))
    texts = []
    if tokens is not None:
        texts.append(f"Every variant was trained on {tokens:,.0f} tokens.")
    for key, name in (("flops", "FLOPs per token"), ("parameters", "Total parameters")):
        if not match:
            continue
        if not match.get(key):
            texts.append(f"{name} were not matched.")
            continue
        off = {
            variant: value
            for variant, entry in (match[key].get("off") or {}).items()
            if (value := finite(entry)) is not None
        }
        text = f"{name} were matched to {number(match[key].get('target'))}"
        if off:
            worst = max(off, key=lambda variant: abs(off[variant]))
            text += f"; the furthest off is {worst}, by {percent(off[worst])}"
        texts.append(f"{text}.")
    if any(match.get(key) for key in ("flops", "parameters")):
        texts.append(
            "A dense model that is meant to be larger is measured against its multiple of the "
            "target, and a dash stands for a variant that has nothing to set."
        )
    return " ".join(texts)


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
        + "; ".join(words[v].format(join(verdicts[v])) for v in words if v in verdicts)
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
