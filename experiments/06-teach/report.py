"""Draw what the arms learn against what they lose, and make the table of the README.

python experiments/06-teach/report.py, once run.py has written results.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memory_layers.common.files import write_file
from memory_layers.common.text import markdown_table
from memory_layers.learn.result import LearnResult, recall_of
from memory_layers.study.plots.drawing import Plot, Style, finish, new_figure, variant_styles

HERE = Path(__file__).parent
# Running text of these kinds is of nobody's making here; "own" is written by the base.
UNSEEN = ("python", "licences", "descriptions")
TARGET = 0.9
# The least rise that the plot tells from none.
FLOOR = 1e-4
NAMES = {
    "ours": "memory-layers learn",
    "memory": "memory beside, as by hand",
    "lora16": "LoRA r = 16",
    "lora64": "LoRA r = 64",
    "full": "full finetuning",
    "retrieval": "retrieval (BM25), untaught",
}
GUARDS = {"none": "", "replay": ", own text replayed", "distill": ", held to its own text"}
COLUMNS = (
    "arm", "rate", "passes", "updates", "seeds", "heldout", "heldout_low", "heldout_high", "seen",
    "chat_heldout", "rise", "rise_low", "rise_high", "kl", "kept", "kept_low", "kept_high",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """What one way knows after some passes, of each seed the same number.

    Attributes:
        arm: Name of the arm with its guard.
        rate: Learning rate.
        passes: Over the facts.
        records: Result files, one a seed.
        points: Their entries of these passes.
    """

    arm: str
    rate: float
    passes: int
    records: tuple[Mapping[str, Any], ...]
    points: tuple[Mapping[str, Any], ...]

    def recall(self, form: str = "heldout") -> list[float]:
        """Return recall of a form, of each seed."""
        return [point["recall"][form] for point in self.points]

    def rise(self, kinds: Sequence[str] = UNSEEN) -> list[float]:
        """Return by which share the loss on running text has risen, the mean over its kinds."""
        return [
            mean(
                [
                    point["texts"][kind]["loss"] / record["base"]["texts"][kind]["loss"] - 1
                    for kind in kinds
                ]
            )
            for record, point in zip(self.records, self.points, strict=True)
        ]

    def kl(self) -> list[float]:
        """Return KL(base || taught) on running text, nats a token, the mean over its kinds."""
        return [mean([point["texts"][kind]["kl"] for kind in UNSEEN]) for point in self.points]

    def field(self, name: str) -> list[float]:
        """Return a number of the entries, of those seeds that have it."""
        return [point[name] for point in self.points if name in point]


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)


def load(folder: Path = HERE / "results") -> list[Point]:
    """Return all points of result files, by arm, rate and passes."""
    found: dict[tuple[str, float, int], list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text("utf-8"))
        job = record["job"]
        arm = NAMES[job["arm"]] + GUARDS[job["guard"]]
        for point in record["points"]:
            found.setdefault((arm, job["rate"], point["passes"]), []).append((record, point))
    order = [name + guard for name in NAMES.values() for guard in GUARDS.values()]
    return [
        Point(*key, *zip(*found[key], strict=True))
        for key in sorted(found, key=lambda key: (order.index(key[0]), *key[1:]))
    ]


def best(points: Sequence[Point]) -> list[Point]:
    """Return for each arm the point of least rise at the target, or of the highest recall."""
    chosen = []
    for arm in dict.fromkeys(point.arm for point in points):
        of = [point for point in points if point.arm == arm]
        there = [point for point in of if mean(point.recall()) >= TARGET]
        # What several seeds have reached comes before what a single seed has.
        most = max(len(point.points) for point in there or of)
        of = [point for point in there or of if len(point.points) == most]
        chosen.append(
            min(of, key=lambda point: mean(point.rise()))
            if there
            else max(of, key=lambda point: mean(point.recall()))
        )
    return chosen


def spread(values: Sequence[float], form: str) -> str:
    """Write a mean, with the least and the most where there are several."""
    if not values:
        return "–"
    if len({form.format(value) for value in values}) == 1:
        return form.format(values[0])
    ends = f"{form} to {form}".format(min(values), max(values))
    return f"{form.format(mean(values))} ({ends})"


def section(folder: Path = HERE / "results") -> str:
    """Return the table of the best point of each arm, and where the numbers come from."""
    points = load(folder)
    if not points:
        return (
            "No results yet: `python experiments/06-teach/run.py --model smollm2 --work runs/06`."
        )
    head = (
        "Way", "rate", "passes (updates)", "held-out wordings", "wordings seen",
        "chat, question shown", "chat, question not shown", "loss on unseen text", "KL",
        "known answers kept", "free answers kept", "core minutes", "peak memory",
        "size of the result",
    )  # fmt: skip
    rows = [
        (
            point.arm,
            f"{point.rate:g}" if point.rate else "–",
            f"{point.passes} ({point.points[0]['updates']})" if point.passes else "–",
            spread(point.recall(), "{:.2f}"),
            spread(point.recall("seen"), "{:.2f}"),
            spread(point.recall("chat_shown"), "{:.2f}"),
            spread(point.recall("chat_heldout"), "{:.2f}"),
            spread(point.rise(), "{:+.1%}"),
            spread(point.kl(), "{:.3f}"),
            spread(point.field("kept"), "{:.1%}"),
            spread(point.field("replies_kept"), "{:.1%}"),
            spread([value / 60 for value in point.field("cpu_seconds")], "{:.1f}"),
            spread([r["peak_bytes"] / 2**30 for r in point.records if "peak_bytes" in r], "{:.1f}")
            + " GiB" * any("peak_bytes" in record for record in point.records),
            size(point.records[0]["bytes"]),
        )
        for point in best(points)
    ]
    plots = (
        "![Recall over the rise of loss on unseen text](plots/frontier_text.png)",
        "![Recall over known answers lost](plots/frontier_known.png)",
    )
    table = markdown_table(head, rows)
    parts = (table, about(points), other_rates(points), command(), *plots, near())
    return "\n\n".join(part for part in parts if part)


def other_rates(points: Sequence[Point]) -> str:
    """Return what each arm has at rates that are not in the table, after most passes."""
    shown = {(point.arm, point.rate) for point in best(points)}
    last = {(point.arm, point.rate): point for point in points}
    found = [
        f"{point.arm} at {point.rate:g} after {point.passes} passes: "
        f"{spread(point.recall(), '{:.2f}')} of the held-out wordings, loss on unseen text "
        f"{spread(point.rise(), '{:+.1%}')}, known answers kept "
        f"{spread(point.field('kept'), '{:.1%}')}"
        for key, point in last.items()
        if key not in shown
    ]
    return f"At other rates: {'; '.join(found)}." if found else ""


def command(path: Path = HERE / "command.json") -> str:
    """Return how long the command takes for the facts of seed 0, and what it brings."""
    result = LearnResult.from_dict(json.loads(path.read_text("utf-8")))
    unseen = recall_of(result.recall, seen=False)
    assert unseen is not None
    return (
        f"The command itself, with the facts of seed 0 in a folder and all of them as chats too "
        f"([command.json](command.json)): {result.seconds / 60:.1f} minutes in all, "
        f"{result.training_seconds / 60:.1f} of them training, {result.passes} passes, "
        f"{result.learned} of {result.groups} learned, {unseen.after:.2f} of the held-out "
        f"wordings; once, on {result.provenance['device']}."
    )


def near(path: Path = HERE / "near.json") -> str:
    """Return what each way keeps of what the base knows about names that it is taught."""
    if not path.is_file():
        return ""
    records = json.loads(path.read_text("utf-8"))
    rows = []
    for way, given in sorted({(r["way"], r["given"]) for r in records}, key=_order):
        of = [r for r in records if (r["way"], r["given"]) == (way, given)]
        name = NAMES[way] + ", half of it given" * given
        kept = [
            spread([r["kept"][form] for r in of], "{:.2f}") for form in ("given", "near", "far")
        ]
        if not given:
            # Neither half was.
            both = [_of_names(r) for r in of]
            kept[:2] = ["–", spread(both, "{:.2f}")]
        rows.append(
            (
                name, f"{of[0]['passes']} ({of[0]['updates']})",
                *(spread([r["recall"][x] for r in of], "{:.2f}") for x in ("heldout", "seen")),
                *kept,
                spread([r["cpu_seconds"] / 60 for r in of], "{:.1f}"),
            )
        )  # fmt: skip
    head = (
        "Way", "passes (updates)", "held-out wordings", "wordings seen", "kept: given",
        "kept: other of these names", "kept: of other names", "core minutes",
    )  # fmt: skip
    places = sorted({(r["device"], r["commit"]) for r in records})
    first = records[0]
    return (
        f"**What a model knows about the names that it is taught.** {first['facts']} countries get "
        "an archivist whose name is made up; the base names capital, currency or language of each "
        'of them. "Given" is half of these answers, as for `--keep`: they are trained on too.\n\n'
        f"{markdown_table(head, rows)}\n\n"
        f"Mean of {len({r['seed'] for r in records})} seeds, with the least and the most, at the "
        f"rates of the table above; {sum(first['asked'].values())} answers, "
        f"{spread([r['asked']['far'] for r in records], '{:.0f}')} of them of other names. "
        f"{'; '.join(f'{device}, 1 thread, `{commit}`' for device, commit in places)}."
    )


def _order(way: tuple[str, bool]) -> tuple[int, bool]:
    return list(NAMES).index(way[0]), way[1]


def _of_names(record: Mapping[str, Any]) -> float:
    """Return what is kept about names that are taught, of what is given and of what is not."""
    counts = {form: record["asked"][form] for form in ("given", "near")}
    kept = sum(count * record["kept"][form] for form, count in counts.items())
    return kept / sum(counts.values())


def headline(root: str, folder: Path = HERE / "results") -> str:
    """Return in a few sentences and a plot what the best point of each way is.

    Args:
        root: Path from the document to the root of the repository.
        folder: Of result files.
    """
    points = {point.arm: point for point in best(load(folder))}
    ours = points.pop(NAMES["ours"], None)
    if ours is None:
        return "No results yet."
    relations = len(ours.points[0]["heldout_by_relation"])
    minutes = mean([value / 60 for value in ours.field("cpu_seconds")])
    # The last keeps most of what is compared.
    arms = (NAMES["full"], NAMES["lora16"], NAMES["full"] + GUARDS["distill"])
    others = [
        f"{arm[0].upper()}{arm[1:]} ({_seeds(points[arm])}): {_in_short(points[arm])}"
        for arm in arms
        if arm in points
    ]
    text = (
        f"SmolLM2-135M-Instruct, {ours.records[0]['facts']} facts of {relations} relations that it "
        f"does not know, four wordings each, {minutes:.0f} minutes of one core: `learn` "
        f"({_seeds(ours)}) answers {_in_short(ours)}. {'. '.join(others)}"
    )
    place = f"{root}experiments/06-teach"
    return (
        f"{text}. [How it was measured, and other ways]({place}/README.md).\n\n"
        f"![Recall over known answers lost]({place}/plots/frontier_known.png)"
    )


def _seeds(point: Point) -> str:
    count = len(point.points)
    return f"mean of {count} seeds" if count > 1 else "one seed"


def _in_short(point: Point) -> str:
    return (
        f"{spread(point.recall(), '{:.2f}')} of the wordings that it was not shown, keeps "
        f"{spread(point.field('kept'), '{:.1%}')} of the answers that it knew about other names, "
        f"and its loss on other text moves by {spread(point.rise(), '{:+.2%}')}"
    )


def size(count: int) -> str:
    """Write a number of bytes."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"


def about(points: Sequence[Point]) -> str:
    """Return where the numbers come from."""
    records = [record for point in points for record in point.records]
    jobs = {json.dumps(r["job"]) for r in records if r["job"]["arm"] != "retrieval"}
    places = sorted({(r["device"], r["threads"], r["commit"]) for r in records}, key=str)
    listed = "; ".join(f"{device}, {n} thread, `{commit}`" for device, n, commit in places)
    first = records[0]
    return (
        f"{len(jobs)} trainings. Each arm at its point of least rise of loss with {TARGET:.0%} of "
        "the held-out wordings, or else of the highest recall; mean over seeds, with the least and "
        f"the most. {first['facts']} facts, {first['known']} known answers, "
        f"{first['tokens_of_text']:,} tokens of each kind of text. {listed}."
    )


def frontier(points: Sequence[Point], *, known: bool) -> Plot:
    """Draw recall of held-out wordings over damage: to running text, or to known answers."""
    label = "Known answers lost" if known else "Rise of loss on unseen text (log scale)"
    figure, axes = new_figure(label, "Recall, wordings not shown", height=5.2)
    arms = list(dict.fromkeys(point.arm for point in points))
    styles: Mapping[str, Style] = variant_styles(arms)
    for arm in arms:
        of = [point for point in points if point.arm == arm]
        for number, rate in enumerate(sorted({point.rate for point in of})):
            line = [point for point in of if point.rate == rate]
            damage = [[1 - kept for kept in p.field("kept")] if known else p.rise() for p in line]
            x = [max(mean(values), 0 if known else FLOOR) for values in damage]
            y = [mean(point.recall()) for point in line]
            style = styles[arm]
            axes.plot(
                x, y, color=style.colour, marker=style.marker, linestyle=style.dash,
                label=arm if number == 0 else None, markersize=6, linewidth=1.4,
            )  # fmt: skip
            if rate:
                axes.annotate(
                    f"{rate:g}", (x[-1], y[-1]), textcoords="offset points", xytext=(5, 4),
                    fontsize=8, color=style.colour,
                )  # fmt: skip
            for point, values, a, b in zip(line, damage, x, y, strict=True):
                if len(values) > 1:
                    low, high = (
                        max(end, 0 if known else FLOOR) for end in (min(values), max(values))
                    )
                    axes.plot([low, high], [b, b], color=style.colour, linewidth=0.8, alpha=0.6)
                    ends = [min(point.recall()), max(point.recall())]
                    axes.plot([a, a], ends, color=style.colour, linewidth=0.8, alpha=0.6)
    axes.set_ylim(-0.02, 1.02)
    if known:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    else:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.legend(fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.14), ncols=2)
    return finish(figure, COLUMNS, [row(point) for point in points])


def row(point: Point) -> tuple[object, ...]:
    """Return the numbers of a point in the order of COLUMNS."""
    heldout, rise, kept = point.recall(), point.rise(), point.field("kept")
    return (
        point.arm, point.rate or None, point.passes, point.points[0]["updates"],
        len(point.points), mean(heldout), min(heldout), max(heldout), mean(point.recall("seen")),
        mean(point.recall("chat_heldout")), mean(rise), min(rise), max(rise), mean(point.kl()),
        mean(kept), min(kept), max(kept),
    )  # fmt: skip


def main() -> None:
    """Draw both frontiers into plots/."""
    points = load()
    for name, known in (("frontier_text", False), ("frontier_known", True)):
        plot = frontier(points, known=known)
        write_file(HERE / "plots" / f"{name}.png", plot.png)
    write_file(HERE / "plots" / "frontier.csv", plot.csv)


if __name__ == "__main__":
    main()
