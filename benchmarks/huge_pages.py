"""Random rows of a table with and without huge pages: python -m benchmarks huge-pages.

Reads the same rows from two tables in turn and prints the ratio of the medians, huge over small.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from memory_layers import gather_sum
from memory_layers.common import provenance
from memory_layers.common.errors import UserError
from memory_layers.common.files import write_json
from memory_layers.ops.huge_pages import advise_huge_pages

ROWS, WIDTH, TOKENS, READS = 2**20, 512, 2048, 128
ROUNDS = 15


def main(arguments: Sequence[str]) -> int:
    """Time both tables and print or write the ratio.

    Args:
        arguments: What follows `python -m benchmarks huge-pages`.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    slots, weights = torch.randint(ROWS, (TOKENS, READS)), torch.rand(TOKENS, READS)
    tables = {"small": torch.empty(ROWS, WIDTH), "huge": torch.empty(ROWS, WIDTH)}
    if not advise_huge_pages(tables["huge"]):
        raise UserError("this system has no huge pages to ask for")
    samples: dict[str, list[float]] = {name: [] for name in tables}
    for table in tables.values():
        table.normal_()
        gather_sum(table, slots, weights)
    for _ in range(ROUNDS):
        for name, table in tables.items():
            start = time.perf_counter()
            gather_sum(table, slots, weights)
            samples[name].append(1e3 * (time.perf_counter() - start))
    ratio = statistics.median(samples["huge"]) / statistics.median(samples["small"])
    result = {
        "op": "huge_pages",
        "ratio_of_medians": ratio,
        "milliseconds": samples,
        "device": provenance.device_name(),
        "commit": provenance.commit(),
    }
    print(f"huge over small pages: {ratio:.2f} of the time")
    if options.out:
        write_json(options.out, result)
    return 0
