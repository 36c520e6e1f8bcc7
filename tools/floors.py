"""What each operation must move and multiply, and the time that this takes at least."""

from benchmarks.inputs import DTYPES, Sizes
from memory_layers.plan.devices import DEVICES
from memory_layers.plan.job import distinct_rows

H100 = DEVICES["h100"]
# arXiv 2412.09764: the 373m model, a batch of 8 x 4096 a GPU. And the sizes of the CPU targets.
SHAPES = {
    "373m, T = 32768, V = 1024, N = 2²⁰, bf16": Sizes(
        tokens=32768, value_dim=1024, dtype="bfloat16"
    ),
    "T = 2048, V = 512, N = 2²⁰, fp32": Sizes(),
}


def costs(sizes: Sizes) -> dict[str, tuple[float, float]]:
    """Return bytes and operations of each step of the layer that this package has a kernel for.

    A row is counted once a read, and a touched row read and written once with its fp32 moments.
    Slots are uniform.
    """
    t, j, v = sizes.tokens, sizes.reads, sizes.value_dim
    item = DTYPES[sizes.dtype].itemsize
    touched = distinct_rows(sizes.slots, t * j)
    queries = t * sizes.heads * 2 * sizes.half_dim
    keys = sizes.heads * 2 * sizes.sub_keys * sizes.half_dim
    factors = t * j * (8 + 4) + t * v * 4
    read = t * j * v * item + factors
    return {
        "FIND": ((queries + keys) * item + t * j * (4 + 8), 2 * queries * sizes.sub_keys),
        "READ": (read, 2 * t * j * v),
        "READ backward, to the weights": (read, 2 * t * j * v),
        "WRITE, AdamW": (
            2 * touched * v * (item + 4 + 4) + factors,
            2 * t * j * v + 12 * touched * v,
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
    for shape, sizes in SHAPES.items():
        for name, (moved, operations) in costs(sizes).items():
            cpu = "–" if cpu_bytes_per_s is None else f"{moved / cpu_bytes_per_s * 1e3:.3g} ms"
            gpu = max(moved / H100.bandwidth, operations / H100.bf16_flops)
            lines.append(
                f"| {shape} | {name} | {moved / 1e9:.3g} GB | {operations / 1e9:.3g} G "
                f"| {cpu} | {gpu * 1e3:.2g} ms |"
            )
    return "\n".join(lines)
