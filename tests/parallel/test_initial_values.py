"""Initial values are a function of seed and names, and no rank makes more than its share."""

import itertools

import pytest
import torch
from initial_cases import Largest, initial_weights, largest_tensors
from ranks import run_ranks
from same_cases import SEED, tiny_model, whole_weights

from memory_layers.layers import draw
from memory_layers.layers.draw import draw_normal
from memory_layers.models.initialize import materialize

ODD = {"value_dim": 7, "share_values": False}
BESIDE = {"tied": False, "placement": "beside", "value_dtype": torch.bfloat16}
CASES = {
    1: [({}, {}), ({}, ODD)],
    2: [({}, {}), ({"tensor": 2}, BESIDE), ({"replicate": 2, "memory": 1}, ODD)],
    3: [({}, {}), ({}, ODD), ({"memory": 1}, BESIDE)],
    4: [({}, ODD), ({"replicate": 2, "memory": 2}, {}), ({"tensor": 2}, BESIDE)],
}


@pytest.mark.parametrize("world", CASES)
def test_initial_values_are_those_of_one_process(world):
    ranks = run_ranks(world, initial_weights, CASES[world])
    for index, (layout, fields) in enumerate(CASES[world]):
        model = tiny_model(**fields)
        materialize(model, SEED)
        expected = whole_weights(model)
        for weights in (rank[index] for rank in ranks):
            assert list(weights) == list(expected)
            for name, weight in weights.items():
                assert torch.equal(weight, expected[name]), (layout, name)


def test_no_rank_makes_a_tensor_of_the_whole_table():
    sub_keys, value_dim = 128, 30
    layouts = [{"shard": 4}, {"tensor": 2}, {"replicate": 2}]
    for rank, found in enumerate(run_ranks(4, largest_tensors, layouts, sub_keys)):
        for layout, (largest, own) in zip(layouts, found, strict=True):
            memory = 2 if "replicate" in layout else 4
            columns = -(-value_dim // memory)
            width = min(columns, value_dim - rank % memory * columns)
            assert own == sub_keys**2 * width, layout
            assert largest == own, f"more than the share of this rank: {layout}"


def test_the_watch_sees_a_whole_table():
    model = tiny_model(sub_keys=128)
    with Largest() as largest:
        materialize(model, SEED)
    assert largest.numel == 128**2 * 30


def test_another_seed_or_name_gives_other_values():
    weights = []
    for seed in (0, 0, 1):
        model = tiny_model(share_values=False)
        materialize(model, seed)
        weights.append(whole_weights(model))
    first, same, other = weights
    tables = [name for name in first if name.endswith("memory_table.weight")]
    assert len(tables) == 2
    assert not torch.equal(*(first[name] for name in tables))
    for name, weight in first.items():
        assert torch.equal(weight, same[name])
        # Norms and gains start at a constant, biases at zero.
        assert weight.std() < 1e-6 or not torch.equal(weight, other[name]), name


def test_the_global_generator_is_left_as_it_was():
    before = torch.get_rng_state()
    materialize(tiny_model(), SEED)
    assert torch.equal(torch.get_rng_state(), before)


def drawn(rows: int, columns: slice, dtype: torch.dtype = torch.float32, seed: int = 0):
    table = torch.empty(rows, columns.stop - columns.start, dtype=dtype)
    torch.manual_seed(seed)
    draw_normal(table, 0.5, columns.start)
    return table


# Two blocks of rows and three of columns, the last of either not whole.
ROWS, WIDTH = draw.ROWS + 100, 2 * draw.COLUMNS + 5


@pytest.mark.parametrize("cuts", [[1], [16], [15, 17], [5, 10, 15, 20, 25, 30, 35], range(1, 37)])
def test_any_cut_into_columns_gives_the_same_values(cuts):
    whole = drawn(ROWS, slice(0, WIDTH))
    ends = [0, *cuts, WIDTH]
    parts = [drawn(ROWS, slice(low, high)) for low, high in itertools.pairwise(ends)]
    assert torch.equal(torch.cat(parts, 1), whole)


def test_values_do_not_depend_on_how_many_rows_and_columns_follow():
    whole = drawn(ROWS, slice(0, WIDTH))
    assert torch.equal(drawn(100, slice(0, WIDTH)), whole[:100])
    assert torch.equal(drawn(ROWS, slice(0, 3)), whole[:, :3])
    rounded = drawn(ROWS, slice(0, WIDTH), torch.bfloat16)
    assert torch.equal(rounded, whole.bfloat16())


def test_values_are_normal_and_independent_also_across_blocks():
    rows, width = 2 * draw.ROWS, 4 * draw.COLUMNS
    table = drawn(rows, slice(0, width)) / 0.5
    # Five standard errors.
    assert table.mean().abs() < 5 * table.numel() ** -0.5
    assert (table.std() - 1).abs() < 5 * (2 * table.numel()) ** -0.5
    assert (table.pow(4).mean() - 3).abs() < 5 * (96 / table.numel()) ** 0.5
    correlations = {
        "columns": table[:, 1:] * table[:, :-1],
        "rows": table[1:] * table[:-1],
        "column blocks": table[:, draw.COLUMNS :] * table[:, : -draw.COLUMNS],
        "row blocks": table[draw.ROWS :] * table[: draw.ROWS],
        "column seam": table[:, draw.COLUMNS] * table[:, draw.COLUMNS - 1],
        "row seam": table[draw.ROWS] * table[draw.ROWS - 1],
    }
    for name, products in correlations.items():
        assert products.mean().abs() < 5 * products.numel() ** -0.5, name


def test_seeds_of_blocks_and_tables_are_spread():
    seeds = [draw.mixed(a, b, c) for a in range(8) for b in range(8) for c in range(8)]
    assert len(set(seeds)) == 512
    assert all(0 <= seed < 2**63 for seed in seeds)
    ones = sum((seed ^ other).bit_count() for seed, other in itertools.pairwise(seeds))
    assert ones / 511 == pytest.approx(63 / 2, abs=1)


def test_tables_drawn_one_after_the_other_differ():
    torch.manual_seed(0)
    one, two = torch.empty(50, 20), torch.empty(50, 20)
    draw_normal(one, 1.0)
    draw_normal(two, 1.0)
    assert not one.eq(two).any()


def test_a_table_without_memory_is_left_alone():
    before = torch.get_rng_state()
    draw_normal(torch.empty(5, 3, device="meta"), 1.0)
    assert torch.equal(torch.get_rng_state(), before)
