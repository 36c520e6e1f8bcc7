"""Inputs: the distributions are what they are called, and every row of a table is filled."""

import torch

from benchmarks.inputs import make_reads, make_table
from benchmarks.request import Request, Sizes

CPU = torch.device("cpu")
SIZES = Sizes(tokens=500, slots=1000, value_dim=8, heads=4, top_k=8)


def test_uniform_and_zipf_slots() -> None:
    uniform = make_reads(Request(op="read", sizes=SIZES))
    zipf = make_reads(Request(op="read", sizes=SIZES, slots="zipf"))
    for reads in (uniform, zipf):
        assert reads.slots.shape == reads.weights.shape == (500, 32)
        assert 0 <= int(reads.slots.min()) <= int(reads.slots.max()) < 1000
        torch.testing.assert_close(reads.weights.sum(1), torch.full((500,), 4.0))
        assert reads.distinct == len(set(reads.slots.flatten().tolist()))
    counts = zipf.slots.flatten().bincount(minlength=1000).sort(descending=True).values.double()
    # The first rank has 1 / (1 + 1/2 + ... + 1/1000) = 13.4 % of the reads, twice the second's.
    assert 0.11 < float(counts[0] / counts.sum()) < 0.16
    assert 1.6 < float(counts[0] / counts[1]) < 2.5
    assert int(uniform.slots.flatten().bincount(minlength=1000).max()) < 40
    # Permuted: the most read slots are not the first ones.
    assert int(zipf.slots.flatten().bincount().argmax()) != 0
    assert zipf.distribution["exponent"] == 1.0


def test_the_same_request_makes_the_same_inputs() -> None:
    first, second = (make_reads(Request(op="read", sizes=SIZES)) for _ in range(2))
    assert torch.equal(first.slots, second.slots)
    assert torch.equal(first.weights, second.weights)


def test_tables_are_filled_to_the_last_row() -> None:
    table = make_table(2**12 + 5, 3, torch.bfloat16, CPU)
    assert table.dtype == torch.bfloat16
    assert (table != 0).any(dim=1).all()
    assert 0.015 < float(table.float().std()) < 0.025
