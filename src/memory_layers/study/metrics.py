"""The metrics of a study: what each is called, where a run has it, and whether more is better.

Tables and plots ask here, so that a metric is one entry. Next: summary.py, which adds up what the
runs of a variant measured.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from memory_layers.study.intervals import finite

# The entry of a run in results.json.
Run = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure of a run.

    Attributes:
        label: What tables call it.
        axis: What the axis of a plot says.
        short: Its heading in a terminal. Empty: it is not shown there.
        form: Format of its numbers. Empty: a short count.
        better: 1 if more of it is better, -1 if less of it is, and 0 for what a run costs.
        most: The largest possible value.
        unit: Tables and plots show it times this.
        paired: Variants are compared by it, seed by seed.
        path: Where a run has it. Empty: under its own name.
    """

    label: str
    axis: str = ""
    short: str = ""
    form: str = ""
    better: int = 0
    most: float = math.inf
    unit: float = 1.0
    paired: bool = False
    path: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        """The label with an arrow that points to what is better."""
        return self.label + {1: "\u00a0↑", -1: "\u00a0↓", 0: ""}[self.better]


def _recall(label: str, form: str, **options: Any) -> Metric:  # noqa: ANN401
    return Metric(label=label, form=".3f", better=1, most=1.0, path=("recall", form), **options)


def _bits(label: str, form: str = ".3g", **options: Any) -> Metric:  # noqa: ANN401
    return Metric(label=label, form=form, better=1, **options)


METRICS: Mapping[str, Metric] = MappingProxyType({
    "question_heldout": _recall(
        "Held-out questions", "question_heldout", axis="Recall on held-out questions",
        short="Held-out\nrecall", paired=True,
    ),
    "question_shown": _recall("Shown questions", "question_shown", short="Shown\nrecall"),
    "statement": _recall("Statements", "statement"),
    "answer_nll": Metric(
        label="Answer NLL", axis="Answer NLL, held-out (nats)", form=".3f", better=-1,
        paired=True, path=("answer_nll", "question_heldout"),
    ),
    "text_nll": Metric(
        label="Text loss", axis="Loss on running text (nats per token)", short="Text\nloss",
        form=".3f", better=-1, paired=True, path=("text", "nll"),
    ),
    "bits_stored": _bits("Bits stored", ",.0f", short="Bits\nstored"),
    "bits_per_parameter": _bits("Bits per parameter", axis="Bits per parameter"),
    "bits_per_active_parameter": _bits(
        "Bits per active parameter", axis="Bits per active parameter"
    ),
    "bits_per_train_flop": _bits(
        "Bits per training TFLOP", axis="Bits per TFLOP of training", unit=1e12
    ),
    "flops_per_token": Metric(
        label="FLOPs per token", axis="Forward FLOPs per token (log scale)", short="FLOPs\n/token"
    ),
    "params_total": Metric(
        label="Parameters", axis="Total parameters (log scale)", short="Params"
    ),
    "params_active": Metric(label="Active parameters"),
    "params_memory": Metric(label="Parameters of tables"),
    "tokens": Metric(label="Tokens"),
    "seconds": Metric(label="Seconds", short="Time\n(s)", form=",.0f"),
    "last_loss": Metric(label="Last loss", form=".3f"),
    "learning_rate": Metric(label="Learning rate", form=".3g"),
    "value_learning_rate": Metric(label="Value learning rate", form=".3g"),
    "slots_read": Metric(label="Slots read", form=".0%", path=("slot_usage", "used_share")),
    "kl_to_uniform": Metric(
        label="KL to uniform", form=".2f", path=("slot_usage", "kl_to_uniform")
    ),
})  # fmt: skip
# Forms of questions, in each of which every relation is asked for.
FORMS = tuple(key for key, metric in METRICS.items() if metric.path[:1] == ("recall",))
BITS = tuple(key for key in METRICS if key.startswith("bits_per_"))


def measured(run: Run, key: str) -> float | None:
    """Return one metric of a run, if it was measured."""
    if key == "tokens":
        return tokens_read(run)
    if key == "last_loss":
        return finite((run.get("history") or [{}])[-1].get("loss"))
    value: Any = run
    for name in METRICS[key].path or (key,):
        value = (value or {}).get(name)
    return finite(value)


def tokens_read(run: Run) -> float | None:
    """Return how many tokens a run read in training, whether they were predicted or not.

    Runs that do not hold their configuration give those that were predicted.
    """
    train = (run.get("config") or {}).get("train")
    if not train:
        return finite(run.get("tokens"))
    return float(
        math.prod(train.get(name, 1) for name in ("steps", "batch_size", "accumulate", "seq_len"))
    )


def tokens_at(run: Run, entry: Mapping[str, Any]) -> float | None:
    """Return how many tokens a run had read at an entry of its history."""
    train, step = (run.get("config") or {}).get("train"), finite(entry.get("step"))
    total = tokens_read(run)
    if not train or step is None or total is None:
        return finite(entry.get("tokens"))
    return total * step / train["steps"]
