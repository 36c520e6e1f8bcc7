"""Complete results of comparisons that nobody ran, for tests of figures and of the report."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

RELATIONS = ("airport_iata", "airport_country", "capital_of", "element_symbol")
# Kind: forward FLOPs per token, parameters, active parameters, recall, loss on text.
KINDS = {
    "dense": (1.00e7, 5.0e6, 5.0e6, 0.31, 3.10),
    "dense_2x": (2.00e7, 1.0e7, 1.0e7, 0.47, 2.98),
    "dense_4x": (4.00e7, 2.0e7, 2.0e7, 0.58, 2.86),
    "moe_expert_choice": (1.02e7, 3.8e7, 5.2e6, 0.52, 3.01),
    "moe_fine": (1.03e7, 3.9e7, 5.3e6, 0.60, 2.97),
    "peer": (1.10e7, 3.7e7, 5.4e6, 0.57, 3.04),
    "memory": (1.06e7, 3.8e7, 5.3e6, 0.55, 3.06),
    "memory_plus": (1.05e7, 3.8e7, 5.3e6, 0.66, 2.99),
    "memory_beside": (1.30e7, 3.9e7, 6.0e6, 0.67, 2.95),
    "one_slot": (1.05e7, 5.1e6, 5.1e6, 0.33, 3.09),
    "fixed_slots": (1.05e7, 3.8e7, 5.3e6, 0.39, 3.08),
    "memory_plus_wide_values": (1.15e7, 7.5e7, 5.6e6, 0.70, 2.98),
}
LEVELS = (0, 1, 2, 4, 8, 16, 32, 64)


def make_up(kinds: Sequence[str] = tuple(KINDS)[:8], seeds: int = 3) -> dict[str, Any]:
    """Return results with every field. The last seed of moe_fine diverged."""
    runs = [_run(kind, seed) for kind in kinds for seed in range(seeds)]
    for run in runs:
        if (run["variant"], run["seed"]) == ("moe_fine", seeds - 1):
            kept = {key: run[key] for key in ("variant", "seed")}
            run.clear()
            run |= {**kept, "status": "diverged", "error": "loss is nan at step 812", "steps": 812}
    times = {"dense_2x": 2, "dense_4x": 4}
    off = {kind: KINDS[kind][0] / (1e7 * times.get(kind, 1)) - 1 for kind in kinds}
    return {
        "format_version": 1,
        "name": "made-up",
        "command": "memory-layers compare made-up.yaml",
        "device": "No CPU (2 cores)",
        "versions": {"python": "3.11.9", "torch": "2.13.0"},
        "commit": "0123456789ab",
        "date": "2026-11-23T12:00:00Z",
        "complete": True,
        "kinds": {kind: kind for kind in kinds},
        "match": {
            "tokens": 9_000_000,
            "flops": {"target": 1e7, "off": off},
            "parameters": None,
        },
        "facts": {
            "source": "builtin",
            "facts": 4000,
            "relations": dict.fromkeys(RELATIONS, 1000),
            "shown": 2000,
            "heldout": 2000,
        },
        "runs": runs,
    }


def add_exposures(
    results: dict[str, Any],
    recall: Callable[[str, int, int], float],
    *,
    levels: Sequence[int] = LEVELS,
    subjects: int = 40,
    relations: Sequence[str] = ("person_city", "person_badge"),
    unseen: float = 0.75,
) -> dict[str, Any]:
    """Give the finished runs answers by exposures, and return the results.

    Args:
        results: Changed in place.
        recall: Of facts in wordings that were seen, by variant, seed and number of statements: of
            the subjects of each number it is the share that is answered, the easiest first. All
            variants find the same subjects easy. Others have a probability of 1/40.
        levels: Numbers of statements.
        subjects: Of each number.
        relations: Each subject has a fact of each.
        unseen: What recall of questions is, as a share of that of statements.
    """
    order = list(range(subjects * len(levels)))
    random.Random(0).shuffle(order)
    statements = [levels[i % len(levels)] for i in order]
    told = {
        "subjects": " ".join(map(str, range(len(order)))),
        "statements": " ".join(map(str, statements)),
        "answers": 40,
        "candidates": 32,
    }
    results["exposure"] = {name: dict(told) for name in relations}
    for run in results["runs"]:
        if run.get("status", "ok") == "ok":
            shares = {k: recall(run["variant"], run["seed"], k) for k in levels}
            run["facts"] = {}
            for name in relations:
                run["facts"][name] = entry = {}
                for wording, times in (("seen", 1.0), ("unseen", unseen)):
                    ease = [(i // len(levels) + 0.5) / subjects for i in order]
                    right = [at < times * shares[k] for at, k in zip(ease, statements, strict=True)]
                    entry[wording] = "".join(str(int(known)) for known in right)
                    entry[f"p_{wording}"] = " ".join("9000" if known else "250" for known in right)
    return results


def _run(kind: str, seed: int) -> dict[str, Any]:
    flops, total, active, base, loss = KINDS[kind]
    noise = random.Random(f"{kind} {seed}")
    recall = min(0.99, base + 0.02 * (seed - 1) + noise.gauss(0, 0.01))
    memory = total > 2 * active and "moe" not in kind
    usage = {
        "slots": 65536,
        "used_share": 0.9,
        "kl_to_uniform": 1.2,
        "histogram": [6500, 9000, 12000, 14000, 11000, 8000, 4000, 900, 130, 6],
        "histogram_edges": [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
    }
    forms = {"question_heldout": recall, "question_shown": recall + 0.005, "statement": recall}
    tokens, bits = 9_000_000, 40_000 * recall
    return {
        "variant": kind,
        "seed": seed,
        "status": "ok",
        "flops_per_token": flops,
        "train_flops_per_token": 3 * flops,
        "params_total": total,
        "params_active": active,
        "params_memory": total - active if memory else 0,
        "tokens": tokens,
        "seconds": flops / 1e5 + seed,
        "learning_rate": 0.003,
        "value_learning_rate": 0.03 if memory else None,
        "recall": {
            **forms,
            "by_relation": {
                name: {key: max(0.0, value - 0.06 * i) for key, value in forms.items()}
                for i, name in enumerate(RELATIONS)
            },
        },
        "answer_nll": dict.fromkeys(forms, 2 * (1 - recall)),
        "text": {"nll": loss + noise.gauss(0, 0.01), "perplexity": math.exp(loss), "tokens": 5000},
        "recall_by_exposures": [
            {"exposures": n, "facts": 300, "recall": recall * n / (n + 1.5)}
            for n in (1, 2, 3, 4, 6, 8, 12, 16)
        ],
        "recall_by_entropy": [
            {"low": 1.5 * i, "high": 1.5 * (i + 1), "facts": 250, "recall": recall ** (1 + i / 3)}
            for i in range(8)
        ],
        "bits_stored": bits,
        "bits_per_parameter": bits / total,
        "bits_per_active_parameter": bits / active,
        "bits_per_train_flop": bits / (tokens * 3 * flops),
        "slot_usage": usage if memory else None,
        "history": [
            {
                "step": 100 * i,
                "tokens": tokens * i / 10,
                "flops": tokens * i / 10 * 3 * flops,
                "seconds": (flops / 1e5 + seed) * i / 10,
                "question_heldout": recall * (1 - math.exp(-i / 3)) / (1 - math.exp(-10 / 3)),
                "loss": loss + 2 / i,
            }
            for i in range(1, 11)
        ],
    }
