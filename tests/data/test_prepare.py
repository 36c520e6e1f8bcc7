"""Prepared data: built once, named after everything that decides it, there as a whole or not."""

import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests_support import write_facts

from memory_layers.common.checksums import CHECKSUMS
from memory_layers.common.errors import UserError
from memory_layers.data import encode, prepare, tokenizer
from memory_layers.data.config import DataConfig
from memory_layers.data.prepare import hold_out, prepare_data, read_facts
from memory_layers.data.tokenizer import train_tokenizer
from memory_layers.data.tokens import IGNORE, Document, TokenStream, read_pieces


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return DataConfig(
        facts=str(write_facts(tmp_path / "facts")),
        vocab_size=300,
        cache_dir=str(tmp_path / "cache"),
    )


def texts_of(config: DataConfig) -> list[str]:
    data = prepare_data(config)
    pieces = read_pieces(data.folder, 10_000)
    assert all(piece[-1] == data.tokenizer.eos_token_id for piece in pieces)
    return [data.tokenizer.decode(piece[:-1]) for piece in pieces]


@pytest.mark.parametrize("folder", ["/proc/x", "/proc/self", "facts/facts.jsonl", "facts.jsonl/x"])
def test_a_cache_that_cannot_be_written_is_named(
    config: DataConfig, tmp_path: Path, folder: str
) -> None:
    (tmp_path / "facts.jsonl").write_text("")
    elsewhere = tmp_path / folder
    with pytest.raises(UserError, match=rf"data\.cache_dir: {elsewhere} cannot be written: .*hint"):
        prepare_data(replace(config, cache_dir=str(elsewhere)))


@pytest.mark.parametrize("kind", ["file", "link to itself", "link elsewhere", "pipe"])
def test_what_is_in_the_way_of_prepared_data_is_replaced(
    config: DataConfig, tmp_path: Path, kind: str
) -> None:
    folder = prepare_data(config).folder
    shutil.rmtree(folder)
    (tmp_path / "other").mkdir()
    if kind == "file":
        folder.write_text("x")
    elif kind == "pipe":
        os.mkfifo(folder)
    else:
        folder.symlink_to(tmp_path / "other" if kind == "link elsewhere" else folder.name)
    assert prepare_data(config).summary["facts"] == 30
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert not any((tmp_path / "other").iterdir())


def test_facts_become_documents_and_probes(config: DataConfig) -> None:
    texts = texts_of(config)
    data = prepare_data(config)
    kinds = [probe.kind for probe in data.probes]
    assert len(texts) == 30 + 15
    assert "Place 3 has X11." in texts
    assert (kinds.count("question_shown"), kinds.count("question_heldout")) == (15, 15)
    for probe in data.probes:
        assert (probe.text in texts) == (probe.kind != "question_heldout")
        assert probe.text[probe.answer_start : probe.answer_end].startswith("X")
    summary = data.summary
    assert (summary["documents"], summary["facts"], summary["source"]) == (45, 30, "facts")
    assert (summary["shown"], summary["heldout"]) == (15, 15)
    assert summary["tokens"] == sum(map(len, read_pieces(data.folder, 10_000)))


def test_second_call_builds_nothing(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    built = prepare_data(config)
    monkeypatch.setattr(prepare, "_build", lambda *_: pytest.fail("built again"))
    found = prepare_data(config)
    assert (found.folder, found.probes, found.summary) == (
        built.folder,
        built.probes,
        built.summary,
    )


def test_whatever_decides_the_content_is_in_the_name(config: DataConfig, tmp_path: Path) -> None:
    folders = [prepare_data(config).folder]
    for changes in (
        {"seed": 1},
        {"vocab_size": 310},
        {"shown_fraction": 0.3},
        {"exposures": (1, 2)},
    ):
        folders.append(prepare_data(replace(config, **changes)).folder)
    templates = tmp_path / "facts" / "templates.yaml"
    templates.write_text(templates.read_text().replace("has", "is called"))
    folders.append(prepare_data(config).folder)
    facts = tmp_path / "facts" / "facts.jsonl"
    facts.write_text(facts.read_text().replace("X37", "X38"))
    folders.append(prepare_data(config).folder)
    assert len(set(folders)) == 7
    elsewhere = prepare_data(replace(config, cache_dir=str(tmp_path / "other"))).folder
    assert elsewhere.name == folders[-1].name


def test_progress_goes_from_nothing_to_all(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Once upon a time.")
    config = replace(config, text=(str(tmp_path / "a.txt"),))
    seen: dict[str, list[tuple[int, int]]] = {}

    def report(done: int, total: int, name: str) -> None:
        seen.setdefault(name, []).append((done, total))

    prepare_data(config, report)
    totals = {name: {total for _, total in counts} for name, counts in seen.items()}
    assert totals["stating facts"] == {30}
    assert totals["encoding facts"] == {45}
    for counts in seen.values():
        done = [number for number, _ in counts]
        assert done == sorted(done)
        assert (done[0], done[-1]) == (0, counts[0][1])
    seen.clear()
    prepare_data(config, report)
    assert not seen


@pytest.mark.parametrize("fault", ["facts", "tokenizer", "split"])
def test_failed_build_leaves_nothing(config: DataConfig, tmp_path: Path, fault: str) -> None:
    if fault == "facts":
        (tmp_path / "facts" / "facts.jsonl").write_text('{"relation": "code"}')
    elif fault == "tokenizer":
        (tmp_path / "empty").mkdir()
        config = replace(config, tokenizer=str(tmp_path / "empty"))
    else:
        config = replace(config, shown_fraction=0.001)
    with pytest.raises(UserError):
        prepare_data(config)
    cache = tmp_path / "cache"
    assert not cache.exists() or not list(cache.iterdir())


def test_two_builders_at_once(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """They meet in the file system alone, so threads stand for processes."""
    both = threading.Barrier(2, timeout=30)

    def train(*arguments: object) -> object:
        both.wait()
        return train_tokenizer(*arguments)

    monkeypatch.setattr(prepare, "train_tokenizer", train)
    results: list = []
    threads = [
        threading.Thread(target=lambda: results.append(prepare_data(config))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one, other = results
    assert (one.folder, one.probes) == (other.folder, other.probes)
    assert list(one.folder.parent.iterdir()) == [one.folder]


def content(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def replace_array(folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    np.save(folder / name, change(np.load(folder / name)))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda folder: (folder / "tokens.bin").unlink(),
    "empty": lambda folder: (folder / "summary.json").write_bytes(b""),
    "cut off": lambda folder: os.truncate(folder / "tokens.bin", 100),
    "longer": lambda folder: os.truncate(folder / "tokens.bin", 10_000),
    "held out": lambda folder: shutil.rmtree(folder / "heldout"),
    "beyond": lambda folder: (folder / "tokens.bin").write_bytes(
        b"\xff" * (folder / "tokens.bin").stat().st_size
    ),
    "unsorted": lambda folder: replace_array(folder, "starts.npy", lambda x: x[::-1].copy()),
    "dtype": lambda folder: replace_array(folder, "starts.npy", lambda x: x.astype(float)),
    "predicted": lambda folder: replace_array(folder, "predicted.npy", lambda x: x + 1000),
    "counts": lambda folder: (folder / "summary.json").write_text('{"facts": "many"}'),
    "list": lambda folder: (folder / "summary.json").write_text("[]"),
    "deep": lambda folder: (folder / "tokens.json").write_text("[" * 100_000),
    "probes": lambda folder: (folder / "probes.jsonl").write_text('{"kind": "statement"}\n'),
    "no probes": lambda folder: (folder / "probes.jsonl").write_text(""),
    "no tokenizer": lambda folder: shutil.rmtree(folder / "tokenizer"),
    "a folder": lambda folder: ((folder / "starts.npy").unlink(), (folder / "starts.npy").mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_data_are_prepared_again(config: DataConfig, damage: str) -> None:
    folder = prepare_data(config).folder
    expected = content(folder)
    # Earlier versions wrote none.
    (folder / CHECKSUMS).unlink()
    DAMAGES[damage](folder)
    data = prepare_data(config)
    assert content(data.folder) == expected
    assert list(folder.parent.iterdir()) == [folder]


def test_data_of_an_earlier_version_are_taken_as_they_are(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepare_data(config).folder
    (folder / CHECKSUMS).unlink()
    monkeypatch.setattr(prepare, "_build", lambda *_: pytest.fail("built again"))
    assert prepare_data(config).folder == folder


def test_a_flipped_bit_is_never_trained_on(config: DataConfig) -> None:
    folder = prepare_data(config).folder
    expected, draw = content(folder), random.Random(0)
    for name, written in expected.items():
        for bit in draw.sample(range(8 * len(written)), 2 if written else 0):
            changed = bytearray(written)
            changed[bit // 8] ^= 1 << bit % 8
            (folder / name).write_bytes(changed)
            prepare_data(config)
            # But for a blank in the list of checksums.
            assert content(folder) in (expected, {**expected, CHECKSUMS: bytes(changed)}), name
            (folder / name).write_bytes(written)


def test_one_look_for_damage_is_enough_for_all_ranks(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = prepare_data(config)
    monkeypatch.setattr(prepare, "check_files", lambda _: pytest.fail("read again"))
    monkeypatch.setattr(np, "memmap", lambda *_: pytest.fail("read again"))
    found = prepare_data(config, check=False)
    assert (found.content, found.probes) == (expected.content, expected.probes)
    assert {"tokens.bin", "heldout/starts.npy", "tokenizer/tokenizer.json"} < found.content.keys()


@pytest.mark.skipif(os.name == "nt", reason="files have no modes there")
def test_others_may_read_what_is_prepared(config: DataConfig) -> None:
    before = os.umask(0o022)
    try:
        folder = prepare_data(config).folder
    finally:
        os.umask(before)
    paths = [folder.parent, folder, *folder.rglob("*")]
    assert {(path.is_dir(), oct(path.stat().st_mode & 0o777)) for path in paths} == {
        (True, "0o755"),
        (False, "0o644"),
    }


def test_what_a_killed_preparation_left_is_removed(config: DataConfig) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = re.sub(r"\W", "_", platform.node())
    cache = Path(config.cache_dir or "")
    # Those of a living process, of other data and of another host are not known to be dead.
    living, other = f".a.{host}.{os.getppid()}.x.part", f".a.far_{host}.{dead.pid}.x.part"
    dead_too = f".a.{host}.{dead.pid}.x.part", f".b.{host}.{dead.pid}.y.part", ".part-abc_d123"
    for name in (living, other, *dead_too):
        (cache / name).mkdir(parents=True)
        (cache / name / "tokens.bin").write_bytes(b"half")
        for path in (cache / name / "tokens.bin", cache / name):
            os.utime(path, (0, 0))
    folder = prepare_data(config).folder
    assert {path.name for path in cache.iterdir()} == {folder.name, living, other}


def test_text_alone(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"line {n} of a long file"}) for n in range(100)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    config = DataConfig(
        facts=None,
        text=(str(tmp_path / "a.jsonl"),),
        vocab_size=300,
        cache_dir=str(tmp_path / "cache"),
    )
    kept = texts_of(config)
    data = prepare_data(config)
    assert data.probes == ()
    assert data.summary["source"] is None
    heldout = read_pieces(data.folder / "heldout", 1000)
    out = [data.tokenizer.decode(piece[:-1]) for piece in heldout]
    assert len(out) == 2
    assert sorted(kept + out) == sorted(f"line {n} of a long file" for n in range(100))
    assert data.summary["heldout_tokens"] == sum(map(len, heldout))
    with pytest.raises(ValueError, match=r"data\.facts is not set"):
        read_facts(config)


def test_text_together_with_facts(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Once upon a time.\nIt was Ægypt.")
    (tmp_path / "b.jsonl").write_text('{"text": "second file"}')
    text = (str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl"))
    texts = texts_of(replace(config, text=text, text_heldout=0.0))
    assert "Once upon a time.\nIt was Ægypt." in texts
    assert "second file" in texts
    assert "Place 3 has X11." in texts
    assert len(texts) == 47


def test_marks_in_texts_and_facts_are_text_but_where_they_divide_stories(
    config: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    mark, pad = "<|endoftext|>", "<|pad|>"
    (tmp_path / "a.txt").write_text(f"A lamp.\n{mark}\nOld {mark} Tomas {pad}.\n{mark}\n\n{mark}\n")
    facts = tmp_path / "facts" / "facts.jsonl"
    row = {"relation": "code", "subject": f"of {mark}", "answer": f"{pad} X"}
    facts.write_text("\n".join([facts.read_text(), json.dumps(row), json.dumps(row)]))
    config = replace(config, text=(str(tmp_path / "a.txt"),), text_heldout=0, exposures=(1,))
    for loss_on in ("all", "answers"):
        config = replace(config, loss_on=loss_on)
        # What was left out is told, by who builds and by who finds it done.
        for _ in range(2):
            data = prepare_data(config, lambda *_: None)
            told = capsys.readouterr().err.splitlines()
            assert told == data.summary["notes"]
            assert ["1 of 3" in note for note in told] == [True, True, False]
            assert "a.txt:5" in told[0]
            assert "there again, left out: 1, such as lines 31 and 32" in told[2]
        pieces = read_pieces(data.folder, 10_000)
        for piece in pieces:
            assert (piece == data.tokenizer.eos_token_id).nonzero().tolist() == [[len(piece) - 1]]
            assert data.tokenizer.pad_token_id not in piece
        texts = [data.tokenizer.decode(piece[:-1]) for piece in pieces]
        assert texts[:2] == ["A lamp.", f"Old {mark} Tomas {pad}."]
        assert f"of {mark} has {pad} X." in texts
    prepare_data(replace(config, seed=1))
    assert capsys.readouterr().err == ""


def test_one_long_text_shows_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "CHARACTERS_AT_A_TIME", 1000)
    monkeypatch.setattr(tokenizer, "SLICE", 1000)
    text = "The land is far. " * 500
    (tmp_path / "a.txt").write_text(text)
    config = DataConfig(
        facts=None, text=(str(tmp_path / "a.txt"),), text_heldout=0, vocab_size=300,
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    seen: dict[str, list[float]] = {}
    data = prepare_data(
        config, lambda done, total, name: seen.setdefault(name, []).append(done / total)
    )
    for name in ("reading for the tokenizer", "encoding text"):
        assert len(seen[name]) > 5
        assert (seen[name][0], seen[name][-1]) == (0, 1)
    (piece,) = read_pieces(data.folder, 100_000)
    assert data.tokenizer.decode(piece[:-1]) == text


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    config = DataConfig(
        facts=None,
        text=(str(tmp_path / "a.txt"),),
        vocab_size=300,
        cache_dir=str(tmp_path / "cache"),
    )
    with pytest.raises(UserError, match=r"too little text .* hint: data\.text_heldout: 0"):
        prepare_data(config)
    assert len(texts_of(replace(config, text_heldout=0.0))) == 1


def test_tokenizer_folder(config: DataConfig, tmp_path: Path) -> None:
    own = train_tokenizer(["nothing of the facts"], 270)
    own.save_pretrained(tmp_path / "own")
    data = prepare_data(replace(config, tokenizer=str(tmp_path / "own")))
    assert data.tokenizer.get_vocab() == own.get_vocab()
    assert "Place 3 has X11." in texts_of(replace(config, tokenizer=str(tmp_path / "own")))


def test_little_data_gives_a_smaller_vocabulary(config: DataConfig) -> None:
    data = prepare_data(replace(config, vocab_size=5000))
    assert 258 < len(data.tokenizer) < 500


@pytest.mark.parametrize(
    ("sizes", "share", "kept_out"),
    [
        ([5] * 10, 0.2, 2),
        ([5] * 10, 0.99, 9),
        ([5] * 10, 0.0, 0),
        ([], 0.5, 0),
    ],
)
def test_hold_out_whole_documents(sizes: list[int], share: float, kept_out: int) -> None:
    documents = [Document([n] * size) for n, size in enumerate(sizes)]
    kept, out = hold_out(documents, share)
    assert len(out) == kept_out
    assert sorted(kept + out, key=lambda document: document.ids) == documents


def test_hold_out_ends_of_few_documents() -> None:
    documents = [Document(list(range(100))), Document(list(range(200, 240)))]
    kept, out = hold_out(documents, 0.1)
    assert [Document(a.ids + b.ids) for a, b in zip(kept, out, strict=True)] == documents
    assert [len(document.ids) for document in out] == [10, 4]


def test_only_answers_are_predicted_where_asked_for(config: DataConfig, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Running text is predicted whole. " * 9)
    config = replace(config, text=(str(text),), text_heldout=0, loss_on="answers")
    data = prepare_data(config)
    stream = TokenStream(data.folder, 200, 0, data.tokenizer.pad_token_id)
    batch = stream.batch(0, 40)
    seen = []
    for ids, labels in zip(batch.input_ids, batch.labels, strict=True):
        chosen = labels != IGNORE
        assert (labels[chosen] == ids[chosen]).all()
        seen.append(data.tokenizer.decode(ids[chosen]))
    joined = "".join(seen)
    assert "unning text is predicted whole." in joined
    assert "X11" in joined
    assert "Place" not in joined
    assert batch.targets < 0.5 * (batch.input_ids != data.tokenizer.pad_token_id).sum()
    everything = prepare_data(replace(config, loss_on="all"))
    assert everything.folder != data.folder


def test_own_wordings_of_builtin_facts(tmp_path: Path) -> None:
    templates = tmp_path / "short.yaml"
    templates.write_text(
        'capital: {statements: ["{subject}: {answer}"], question: "{subject}? {answer}"}\n'
        'other: {statements: ["{subject} {answer}"], question: "{subject} {answer}"}\n'
    )
    config = DataConfig(
        relations=("capital",), max_subjects=4, templates=str(templates), vocab_size=300,
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    assert sum(": " in text for text in texts_of(config)) == 4
    before = prepare_data(config).folder
    templates.write_text(templates.read_text().replace(": {answer}", " - {answer}"))
    assert prepare_data(config).folder != before
    with pytest.raises(UserError, match=r"short\.yaml: no templates for the relations currency"):
        read_facts(replace(config, relations=("capital", "currency")))
    with pytest.raises(ValueError, match=r"data\.templates is for the built-in facts"):
        DataConfig(facts=str(tmp_path), templates=str(templates))
