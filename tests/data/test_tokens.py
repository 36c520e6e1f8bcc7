"""Packed rows: the same for the same arguments, every document once an epoch and in one piece."""

import itertools
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from memory_layers.common.errors import UserError
from memory_layers.data.tokens import (
    IGNORE,
    Batch,
    Document,
    TokenStream,
    read_pieces,
    write_tokens,
)

L = 16
PAD = 9
SIZES = [2, 3, 5, 7, 11, 16, 4, 9, 13, 6, 2, 8, 15, 10, 12] * 2
WIDE = 70_000


def documents(sizes: list[int]) -> list[list[int]]:
    """Documents in which no token appears twice."""
    return [[100 + 64 * n + i for i in range(size)] for n, size in enumerate(sizes)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokens(tmp_path, map(Document, documents(SIZES)), vocab_size=3000)
    return tmp_path


def stream(folder: Path, seed: int = 0) -> TokenStream:
    return TokenStream(folder, L, seed, PAD)


def assert_equal(one: Batch, other: Batch) -> None:
    for name in ("input_ids", "position_ids", "labels"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.targets == other.targets


def epoch_rows(tokens: TokenStream, epoch: int = 0) -> list[Batch]:
    rows, step = [], 0
    while (at := tokens.epoch_of(step, 1)) < epoch + 1:
        if at >= epoch:
            rows.append(tokens.batch(step, 1))
        step += 1
    return rows


def pieces(rows: list[Batch]) -> list[list[int]]:
    """The documents of rows, cut where positions restart, padding left out."""
    found: list[list[int]] = []
    for row in rows:
        for token, position in zip(row.input_ids[0], row.position_ids[0], strict=True):
            if token == PAD:
                continue
            if position == 0:
                found.append([])
            found[-1].append(int(token))
    return found


def test_batch_is_a_pure_function(folder: Path) -> None:
    steps = [0, 7, 3, 40, 1, 3, 0]
    one = stream(folder)
    batches = {step: one.batch(step, 3) for step in steps}
    for step in sorted(set(steps)):
        assert_equal(stream(folder).batch(step, 3), batches[step])
        assert_equal(one.batch(step, 3), batches[step])


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_partition_the_rows(folder: Path, ranks: int) -> None:
    for step in (0, 2, 9):
        whole = stream(folder).batch(step, 2 * ranks)
        parts = [stream(folder).batch(step, 2, rank=rank, ranks=ranks) for rank in range(ranks)]
        assert torch.equal(torch.cat([part.input_ids for part in parts]), whole.input_ids)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        assert sum(part.targets for part in parts) == whole.targets
        assert stream(folder).epoch_of(step, 2, ranks=ranks) == stream(folder).epoch_of(
            step, 2 * ranks
        )


@pytest.mark.parametrize("epoch", [0, 1, 4])
def test_every_document_is_whole_and_once_in_an_epoch(folder: Path, epoch: int) -> None:
    found = pieces(epoch_rows(stream(folder), epoch))
    assert sorted(found) == sorted(documents(SIZES))


def test_rows_are_full(folder: Path) -> None:
    """A row ends only where the next document would not fit."""
    rows = epoch_rows(stream(folder))
    for row, following in itertools.pairwise(rows):
        free = int((row.input_ids == PAD).sum())
        assert len(pieces([following])[0]) > free


def test_long_documents_are_cut(tmp_path: Path) -> None:
    sizes = [40, 33, 5, 16, 1]
    write_tokens(tmp_path, map(Document, documents(sizes)), vocab_size=3000)
    found = pieces(epoch_rows(stream(tmp_path)))
    one, other, *short = documents(sizes)
    # The 33rd token of the second and the only one of the last have no context and no label.
    expected = [one[:16], one[16:32], one[32:], other[:16], other[16:32], *short[:2]]
    assert sorted(found) == sorted(expected)
    assert sorted(piece.tolist() for piece in read_pieces(tmp_path, L)) == sorted(expected)


def test_labels_and_positions(folder: Path) -> None:
    batch = stream(folder).batch(0, 8)
    targets = 0
    for ids, positions, labels in zip(
        batch.input_ids, batch.position_ids, batch.labels, strict=True
    ):
        expected = -1
        for at in range(L):
            padding = ids[at] == PAD
            starts = at == 0 or positions[at] == 0
            expected = 0 if starts else expected + 1
            assert positions[at] == expected
            assert labels[at] == (IGNORE if padding or starts else ids[at])
            targets += int(labels[at] != IGNORE)
        first_pad = (ids == PAD).nonzero()
        if len(first_pad):
            assert positions[first_pad[0]] == 0, "padding must not see the document before it"
    assert batch.targets == targets


def test_epochs_and_seeds_differ_in_order_alone(folder: Path) -> None:
    orders = {
        (seed, epoch): pieces(epoch_rows(stream(folder, seed), epoch))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len({tuple(map(tuple, order)) for order in orders.values()}) == 4
    counts = [Counter(map(tuple, order)) for order in orders.values()]
    assert counts[1:] == counts[:-1]


@pytest.mark.parametrize(
    ("vocab_size", "name"), [(2**16, "uint16"), (2**16 + 1, "uint32"), (WIDE, "uint32")]
)
def test_width_of_tokens(tmp_path: Path, vocab_size: int, name: str) -> None:
    document = [vocab_size - 1, 0, vocab_size - 2]
    write_tokens(tmp_path, [Document(document)], vocab_size)
    assert name in (tmp_path / "tokens.json").read_text()
    assert stream(tmp_path).batch(0, 1).input_ids[0, :3].tolist() == document


def test_epoch_of_counts_what_was_seen(folder: Path) -> None:
    tokens = stream(folder)
    rows = len(epoch_rows(tokens))
    assert tokens.epoch_of(0, 4) == 0
    assert tokens.epoch_of(1, 4) == pytest.approx(4 / rows)
    assert tokens.epoch_of(rows, 1) == 1
    assert 1 < tokens.epoch_of(rows, 1, ranks=2) < 3


def test_no_documents(tmp_path: Path) -> None:
    write_tokens(tmp_path, [], vocab_size=300)
    assert read_pieces(tmp_path, L) == []


class Planted:
    """What calls a function when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["starts.npy", "predicted.npy"])
@pytest.mark.parametrize("as_zip", [False, True])
def test_commands_in_arrays_do_not_run(folder: Path, name: str, *, as_zip: bool) -> None:
    planted = np.array([Planted(folder / "ran")], object)
    if as_zip:
        np.savez(folder / "a.npz", planted)
        (folder / "a.npz").rename(folder / name)
    else:
        np.save(folder / name, planted, allow_pickle=True)
        # What is planted would run.
        np.load(folder / name, allow_pickle=True)
        (folder / "ran").rmdir()
    with pytest.raises(UserError, match="prepared to train on"):
        stream(folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokens.json", ""),
        ("tokens.json", "[1]"),
        ("tokens.json", '{"dtype": "object", "documents": 30, "tokens": 1}'),
        ("tokens.json", '{"dtype": "uint16", "documents": -1, "tokens": "1"}'),
        ("starts.npy", "no array"),
        ("predicted.npy", ""),
        ("tokens.bin", "odd"),
    ],
)
def test_damaged_tokens_name_their_folder(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=rf"^{folder} is no data.*hint: delete the folder"):
        stream(folder)
    with pytest.raises(UserError, match="hint: delete the folder"):
        read_pieces(folder, L)


def test_an_array_that_says_to_be_huge_takes_no_memory(folder: Path) -> None:
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (100000000000000,), }"
    content = np.lib.format.magic(1, 0) + b"v\0" + header.ljust(117) + b"\n"
    (folder / "starts.npy").write_bytes(content)
    with pytest.raises(UserError, match="hint: delete the folder"):
        stream(folder)


def test_nothing_to_predict_is_said(tmp_path: Path) -> None:
    write_tokens(tmp_path, [Document([1])], vocab_size=10)
    with pytest.raises(UserError, match="there is nothing to predict"):
        stream(tmp_path)
