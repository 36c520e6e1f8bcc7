"""What each operation must move and multiply, and the time that this takes at least."""

from dataclasses import dataclass

from memory_layers.plan import DEVICES
from memory_layers.plan.work import distinct_rows

H100 = DEVICES["h100"]


@dataclass(frozen=True)
class Shape:
    """Sizes of one memory layer in training, uniform slots.

    Attributes:
        name: Of the sizes, for the table.
        tokens: T.
        value_dim: V.
        sub_keys: M.
        row_bytes: Of one number of the table.
        heads: H.
        top_k: K.
    """

    name: str
    tokens: int
    value_dim: int
    sub_keys: int
    row_bytes: int
    heads: int = 4
    top_k: int = 32

    @property
    def reads(self) -> int:
        """J."""
        return self.heads * self.top_k

    @property
    def touched(self) -> float:
        """R, expected, for slots drawn uniformly."""
        return distinct_rows(self.sub_keys**2, self.tokens * self.reads)


# arXiv 2412.09764: the 373m model, a batch of 8 x 4096 a GPU. And the sizes of the CPU targets.
PAPER = Shape("373m, T = 32768, V = 1024, N = 2²⁰, bf16", 32768, 1024, 1024, 2)
LAPTOP = Shape("T = 2048, V = 512, N = 2²⁰, fp32", 2048, 512, 1024, 4)


def costs(shape: Shape) -> dict[str, tuple[float, float]]:
    """Return bytes and operations of each step of the layer that this package has a kernel for.

    A row is counted once a read, and a touched row read and written once with its fp32 moments.
    """
    t, j, v = shape.tokens, shape.reads, shape.value_dim
    half = v // 4
    halves = t * shape.heads * 2
    keys = shape.heads * 2 * shape.sub_keys * half
    factors = t * j * (8 + 4) + t * v * 4
    read = t * j * v * shape.row_bytes + factors
    return {
        "FIND": (
            (halves * half + keys) * shape.row_bytes + t * j * (4 + 8),
            2 * halves * shape.sub_keys * half,
        ),
        "READ": (read, 2 * t * j * v),
        "READ backward, to the weights": (read, 2 * t * j * v),
        "WRITE, AdamW": (
            2 * shape.touched * v * (shape.row_bytes + 4 + 4) + factors,
            2 * t * j * v + 12 * shape.touched * v,
        ),
    }


def floors_table(cpu_bytes_per_s: float | None) -> str:
    """Render the costs, and the floors they imply, as Markdown.

    Args:
        cpu_bytes_per_s: Bandwidth of a streaming copy as measured. None: not measured yet.
    """
    lines = [
        "| sizes | operation | bytes | operations | floor on this CPU | floor on an H100 |",
        "|---|---|---|---|---|---|",
    ]
    for shape in (PAPER, LAPTOP):
        for name, (moved, operations) in costs(shape).items():
            cpu = "–" if cpu_bytes_per_s is None else f"{moved / cpu_bytes_per_s * 1e3:.3g} ms"
            gpu = max(moved / H100.bandwidth, operations / H100.bf16_flops)
            lines.append(
                f"| {shape.name} | {name} | {moved / 1e9:.3g} GB | {operations / 1e9:.3g} G "
                f"| {cpu} | {gpu * 1e3:.2g} ms |"
            )
    return "\n".join(lines)
