"""READ of an fp32 table against torch's embedding_bag: python -m benchmarks embedding-bag.

Both run in turn on random rows, other ones each time, forward only. Printed is the ratio of the
medians of time, embedding_bag over gather_sum: above 1, gather_sum is the faster.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from memory_layers import gather_sum
from memory_layers.common import provenance
from memory_layers.common.files import write_json
from memory_layers.ops.huge_pages import advise_huge_pages

TOKENS, READS, WIDTHS = (1, 16, 256, 2048), (16, 64, 128), (64, 256, 512, 1024)
SLOTS, THREADS = (2**14, 2**20), (1, 2)
LEAST_ROUNDS, MOST_ROUNDS = 5, 31


def main(arguments: Sequence[str]) -> int:
    """Time both for every size, and print or write the ratios.

    Args:
        arguments: What follows `python -m benchmarks embedding-bag`.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each size")
    options = parser.parse_args(arguments)
    numbers = torch.empty(max(SLOTS), max(WIDTHS))
    advise_huge_pages(numbers)
    numbers.fill_(0.01)
    threads_before, sizes = torch.get_num_threads(), []
    for threads in THREADS:
        torch.set_num_threads(threads)
        for slots, width, tokens, reads in product(SLOTS, WIDTHS, TOKENS, READS):
            table = numbers.flatten()[: slots * width].view(slots, width)
            found = compare(table, tokens, reads, options.seconds)
            size = {"threads": threads, "N": slots, "V": width, "T": tokens, "J": reads}
            sizes.append({**size, **found})
    torch.set_num_threads(threads_before)
    for threads in THREADS:
        for tokens in TOKENS:
            chosen = [s["ratio"] for s in sizes if (s["threads"], s["T"]) == (threads, tokens)]
            middle = statistics.median(chosen)
            print(
                f"threads={threads} T={tokens}: {middle:.2f} ({min(chosen):.2f} to "
                f"{max(chosen):.2f}), gather_sum faster in {sum(r > 1 for r in chosen)} of "
                f"{len(chosen)}"
            )
    if options.out:
        result = {
            "op": "embedding_bag over gather_sum, fp32, forward",
            "sizes": sizes,
            "device": provenance.device_name(),
            "versions": provenance.versions("torch", "numba"),
            "commit": provenance.commit(),
            "command": " ".join(["python -m benchmarks embedding-bag", *arguments]),
        }
        write_json(options.out, result)
    return 0


def compare(table: Tensor, tokens: int, reads: int, seconds: float) -> dict[str, Any]:
    """Time both in turn and return medians in microseconds, their ratio and the number of rounds.

    Args:
        table: [N, V] fp32.
        tokens: T.
        reads: J.
        seconds: How long to go on.
    """
    weights = torch.rand(tokens, reads)
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "embedding_bag": lambda slots: F.embedding_bag(
            slots, table, mode="sum", per_sample_weights=weights
        ),
        "gather_sum": lambda slots: gather_sum(table, slots, weights, impl="cpu"),
    }
    slots = torch.randint(len(table), (tokens, reads))
    torch.testing.assert_close(*(call(slots) for call in calls.values()))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < LEAST_ROUNDS or (time.perf_counter() < end and rounds < MOST_ROUNDS):
        for name, call in calls.items():
            # Rows that the call before has read would come from a cache.
            slots = torch.randint(len(table), (tokens, reads))
            start = time.perf_counter()
            call(slots)
            samples[name].append(1e6 * (time.perf_counter() - start))
        rounds += 1
    medians = {f"{name}_us": statistics.median(times) for name, times in samples.items()}
    ratio = medians["embedding_bag_us"] / medians["gather_sum_us"]
    return {**medians, "ratio": ratio, "rounds": rounds}
