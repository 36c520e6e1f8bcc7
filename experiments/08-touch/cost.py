"""What a step costs by each way to step rows: python experiments/08-touch/cost.py.

Steps one table of 2^18 rows of 256 numbers by the same gradients, one optimizer after the other in
each round, and writes the median times of a step, as multiples of that of "full", to cost.json.
"""

import statistics
import time
from pathlib import Path

import torch

from memory_layers import MemoryAdamW
from memory_layers.common.files import write_json
from memory_layers.common.provenance import commit, device_name
from memory_layers.layers import ValueTable

ROWS, WIDTH, TOKENS, READS, ROUNDS = 2**18, 256, 1024, 64, 40
STATES = ("full", "ahead", "row")


def main() -> None:
    """Time the steps, and write the result."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pairs = []
    for state in STATES:
        table = ValueTable(ROWS, WIDTH)
        pairs.append((state, table, MemoryAdamW(table, value_state=state)))
    seconds: dict[str, list[float]] = {state: [] for state in STATES}
    for _ in range(ROUNDS):
        slots, weights = torch.randint(ROWS, (TOKENS, READS)), torch.rand(TOKENS, READS)
        gradient = torch.randn(TOKENS, WIDTH)
        for state, table, optimizer in pairs:
            table(slots, weights).backward(gradient)
            start = time.perf_counter()
            optimizer.step()
            seconds[state].append(time.perf_counter() - start)
    # The first steps compile, and touch memory for the first time.
    medians = {state: statistics.median(times[5:]) for state, times in seconds.items()}
    ratios = {state: median / medians["full"] for state, median in medians.items()}
    print(ratios)
    write_json(
        Path(__file__).with_name("cost.json"),
        {
            "rows": ROWS, "width": WIDTH, "tokens": TOKENS, "reads": READS, "steps": ROUNDS - 5,
            "of_full": ratios, "device": device_name(), "commit": commit(),
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
