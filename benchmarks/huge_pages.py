"""Random rows of a table with and without huge pages: python -m benchmarks huge-pages.

Reads the same rows from two tables in turn and prints the ratio of the medians, huge over small.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness import Variant, percentile, shown, time_variants
from benchmarks.results import make_record, write_result
from memory_layers import gather_sum
from memory_layers.common.errors import UserError
from memory_layers.ops.huge_pages import advise_huge_pages

ROWS, WIDTH, TOKENS, READS = 2**20, 512, 2048, 128
ROUNDS = 15


def main(arguments: Sequence[str]) -> int:
    """Time both tables and print or write the ratio.

    Args:
        arguments: What follows `python -m benchmarks huge-pages`.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="result file")
    options = parser.parse_args(arguments)
    slots, weights = torch.randint(ROWS, (TOKENS, READS)), torch.rand(TOKENS, READS)
    tables = {"small": torch.empty(ROWS, WIDTH), "huge": torch.empty(ROWS, WIDTH)}
    if not advise_huge_pages(tables["huge"]):
        raise UserError("this system has no huge pages to ask for")
    variants = [
        Variant(
            name=name,
            run=partial(gather_sum, table.normal_(), slots, weights),
            check=lambda: None,
            checked="nothing",
            bytes=slots.numel() * WIDTH * 4,
        )
        for name, table in tables.items()
    ]
    cpu = torch.device("cpu")
    with shown("huge-pages") as report:
        samples = time_variants(variants, cpu, repeats=ROUNDS, seconds=0.0, report=report)
    ratio = percentile(samples["huge"], 0.5) / percentile(samples["small"], 0.5)
    print(f"huge over small pages: {ratio:.2f} of the time")
    if options.out:
        found = {"ratio_of_medians": ratio, "milliseconds": samples}
        record = make_record("huge_pages", cpu, "python -m benchmarks huge-pages", found)
        write_result(record, options.out)
    return 0
