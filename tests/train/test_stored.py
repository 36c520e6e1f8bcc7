"""Checkpoints of strangers run nothing and reach no other file, and damaged ones are refused."""

import functools
import io
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import CASES, assert_same, build, snapshot, tokenizer, trained
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
)
from torch.serialization import _get_layout

from memory_layers.common.checksums import CHECKSUMS
from memory_layers.common.errors import UserError
from memory_layers.train import checkpoint
from memory_layers.train.checkpoint import Checkpoints, load_checkpoint
from memory_layers.train.export import export_checkpoint
from memory_layers.train.stored import DamagedCheckpointError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that was written with checksums. Not to be changed."""
    return _save(tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of an earlier version, which wrote no checksums. Not to be changed."""
    make = FileSystemWriter.__init__

    def without(self: FileSystemWriter, path: Path, **_: object) -> None:
        make(self, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileSystemWriter, "__init__", without)
        patch.setattr(checkpoint, "write_checksums", lambda *_: None)
        patch.setattr(checkpoint, "FORMAT", 2)
        return _save(tmp_path_factory.mktemp("older"))


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    return lambda folder: shutil.copytree(folder, tmp_path / "copy" / folder.name)


def _save(out: Path) -> Path:
    checkpoints = Checkpoints(out, 1)
    checkpoints.save(2, *trained(CASES["full"]), {"tokens": 2}, tokenizer())
    checkpoints.wait()
    return out / "checkpoints" / "step-00000002"


def export(folder: Path) -> dict[str, bytes]:
    """The files of the model of a checkpoint."""
    out = folder.parent / "exported"
    export_checkpoint(folder, out)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_one_of_an_earlier_version_loads(older: Path, copy: Callable) -> None:
    assert not (older / CHECKSUMS).exists()
    model, optimizer = build(CASES["full"], seed=1)
    assert load_checkpoint(older, model, optimizer) == (2, {"tokens": 2})
    assert_same(snapshot(model, optimizer), snapshot(*trained(CASES["full"])))
    assert {"model.safetensors.index.json", "tokenizer.json"} <= export(copy(older)).keys()


class Planted:
    """What calls a function when it is unpickled."""

    def __init__(self, call: Callable, *arguments: object) -> None:
        self.made = call, arguments

    def __reduce__(self) -> tuple[Callable, tuple[object, ...]]:
        return self.made


def planted(mark: Path) -> dict[str, Any]:
    command = f"touch {mark}"
    call = Planted(os.system, command)
    part = Planted(functools.partial, os.system, command)
    nested = str(mark.with_name("nested.pt"))
    return {
        "os.system": call,
        "open": Planted(open, str(mark), "w"),
        "eval": Planted(eval, f"open({str(mark)!r}, 'w')"),
        "exec": Planted(exec, f"open({str(mark)!r}, 'w')"),
        "getattr": Planted(getattr, call, "real"),
        "partial": Planted(map, part, [1]),
        "nested pickle": Planted(pickle.loads, pickle.dumps(call)),
        "torch.load": Planted(functools.partial(torch.load, nested, weights_only=False)),
        "torch.hub": Planted(torch.hub.load, str(mark.parent), "planted", "local"),
        "torch's compiler": Planted(torch.compile, call),
        "a name torch has": Planted(_get_layout, call),
        "a method": Planted(Path.touch, mark),
    }


PLACES: dict[str, Callable[[Metadata, Any], object]] = {
    "all of it": lambda _, bomb: bomb,
    "nested": lambda metadata, bomb: (setattr(metadata, "planner_data", bomb), metadata)[1],
    "a key": lambda metadata, bomb: (metadata.storage_data.update({"x": bomb}), metadata)[1],
    "a size": lambda metadata, bomb: (
        setattr(next(iter(metadata.state_dict_metadata.values())), "size", bomb), metadata,
    )[1],
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_commands_in_the_metadata_do_not_run(older: Path, copy: Callable, place: str) -> None:
    folder = copy(older)
    mark = folder.parent / "ran"
    (mark.parent / "hubconf.py").write_text(f"open({str(mark)!r}, 'w')\ndef planted(): pass\n")
    torch.save(Planted(open, str(mark), "w"), mark.with_name("nested.pt"))
    for name, bomb in planted(mark).items():
        pickled = pickle.dumps(PLACES[place](FileSystemReader(older).read_metadata(), bomb))
        if name == "os.system":
            # What is planted would run.
            pickle.loads(pickled)
            assert mark.exists()
            mark.unlink()
        (folder / ".metadata").write_bytes(pickled)
        with pytest.raises(DamagedCheckpointError, match=r"\.metadata cannot be read"):
            export(folder)
        assert not mark.exists(), name


def test_metadata_change_no_class(older: Path, copy: Callable) -> None:
    folder = copy(older)
    # BUILD with the class in the place of an object would set its attributes.
    name = "torch.distributed.checkpoint.metadata", "Metadata"
    pickled = f"c{name[0]}\n{name[1]}\n".encode() + b"(N}S'planted'\nI1\nstb."
    assert pickle.loads(pickled).planted
    del Metadata.planted
    (folder / ".metadata").write_bytes(pickled)
    with pytest.raises(DamagedCheckpointError, match="metadata cannot be read"):
        export(folder)
    assert not hasattr(Metadata, "planted")


@pytest.mark.parametrize("whole", [True, False])
def test_commands_in_other_files_do_not_run(older: Path, copy: Callable, *, whole: bool) -> None:
    folder = copy(older)
    mark = folder.parent / "ran"
    bomb, shard = Planted(open, str(mark), "w"), (older / "__0_0.distcp").read_bytes()
    state = torch.load(folder / "state.pt", weights_only=True)
    torch.save(bomb if whole else {**state, "counters": bomb}, folder / "state.pt")
    with pytest.raises(DamagedCheckpointError, match=r"state\.pt cannot be read"):
        export(folder)
    shutil.copyfile(older / "state.pt", folder / "state.pt")

    # DCP reads what is not said to be a tensor without any care.
    metadata = FileSystemReader(older).read_metadata()
    index = min(metadata.storage_data, key=lambda index: index.fqn != "model.lm_head.weight")
    stream = io.BytesIO()
    torch.save(bomb, stream)
    content = stream.getvalue().ljust(2**16, b"\0") if whole else stream.getvalue()
    place = metadata.storage_data[index]
    place.offset, place.length = len(shard), len(content)
    (folder / "__0_0.distcp").write_bytes(shard + content)
    if not whole:
        metadata.state_dict_metadata[index.fqn] = BytesStorageMetadata()
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(DamagedCheckpointError, match="cannot be read"):
        export(folder)
    with pytest.raises(DamagedCheckpointError, match="cannot be read"):
        load_checkpoint(folder, *build(CASES["full"]))
    assert not mark.exists()


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_flipped_bit_is_refused_or_harms_nothing(saved: Path, copy: Callable) -> None:
    folder = copy(saved)
    exported, trained_to = export(folder), snapshot(*trained(CASES["full"]))
    draw, refused = random.Random(0), []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes()
        for bit in draw.sample(range(8 * len(content)), 4):
            file.write_bytes(flipped(content, bit))
            model, optimizer = build(CASES["full"], seed=1)
            try:
                load_checkpoint(folder, model, optimizer)
                assert_same(snapshot(model, optimizer), trained_to)
            except (DamagedCheckpointError, UserError) as error:
                refused.append(str(error))
            try:
                again = export(folder)
            except (DamagedCheckpointError, UserError) as error:
                refused.append(str(error))
            else:
                assert again == exported, (file, bit)
        file.write_bytes(content)
    # Optimizer state is no part of a model, and text has letters that mean the same.
    assert len(refused) > 50
    assert all("hint: " in line for line in refused)


@pytest.mark.parametrize("part", ["weight", "rows", "state"])
def test_a_flipped_bit_of_a_number_is_refused(saved: Path, copy: Callable, part: str) -> None:
    folder = copy(saved)
    model, optimizer = trained(CASES["full"])
    table = model.model.memory_table.weight
    tensors = {"weight": model.lm_head.weight, "rows": table}
    number = tensors.get(part, optimizer.state[table]["exp_avg"]).detach()[-2:].numpy().tobytes()
    shard = (saved / "__0_0.distcp").read_bytes()
    # The least bit of a number, which no look at the numbers could tell.
    (folder / "__0_0.distcp").write_bytes(flipped(shard, 8 * shard.index(number)))
    said = r"__0_0\.distcp cannot be read: a checksum differs.*hint"
    with pytest.raises(DamagedCheckpointError, match=said):
        load_checkpoint(folder, *build(CASES["full"], seed=1))
    if part == "state":
        assert export(folder) == export(copy(saved.parent) / saved.name)
    else:
        with pytest.raises(DamagedCheckpointError, match=said):
            export(folder)


@pytest.mark.parametrize("name", [CHECKSUMS, "config.json", "tokenizer.json", ".metadata"])
def test_a_file_that_is_missing_is_named(saved: Path, copy: Callable, name: str) -> None:
    folder = copy(saved)
    (folder / name).unlink()
    with pytest.raises(DamagedCheckpointError, match=rf"{name} cannot be read: it is missing"):
        export(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_model_without_its_tokenizer_is_not_exported(
    older: Path, copy: Callable, name: str
) -> None:
    folder = copy(older)
    (folder / name).unlink()
    with pytest.raises(DamagedCheckpointError, match=f"{name} cannot be read: it is missing"):
        export(folder)


def test_what_is_no_part_of_a_model_is_not_exported(saved: Path, copy: Callable) -> None:
    folder = copy(saved)
    expected = export(folder).keys()
    for name in ("modeling_memory.py", "evil.py", "model.safetensors", "notes.txt", "vocab.txt"):
        (folder / name).write_text("of a stranger")
    (folder / "private").mkdir()
    (folder / "private" / "tokenizer.json").write_text("{}")
    assert export(folder).keys() == expected


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "__0_0.distcp", "new", "folder"])
def test_links_out_of_a_checkpoint_are_refused(older: Path, copy: Callable, name: str) -> None:
    folder = copy(older)
    secret = folder.parent / "secret"
    secret.write_text("private")
    if name == "folder":
        secret = folder.parent
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    with pytest.raises(UserError, match=rf"{name} is a link to {secret}.*hint"):
        export(folder)
    with pytest.raises(UserError, match=rf"{name} is a link to {secret}.*hint"):
        load_checkpoint(folder, *build(CASES["full"]))


@pytest.mark.skipif(not hasattr(os, "link"), reason="needs hard links")
def test_a_file_that_is_elsewhere_too_is_not_exported(
    saved: Path, older: Path, copy: Callable
) -> None:
    folder = copy(older)
    secret = folder.parent / "secret"
    secret.write_text("private")
    os.link(secret, folder / "vocab.txt")
    with pytest.raises(UserError, match=r"vocab\.txt is the same file as another one.*hint"):
        export(folder)
    # With checksums, it is known that this is what was written.
    shutil.rmtree(folder)
    folder = copy(saved)
    os.link(folder / "tokenizer.json", folder.parent / "backup")
    os.link(secret, folder / "vocab.txt")
    assert "vocab.txt" not in export(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_file_of_another_checkpoint_is_refused(saved: Path, copy: Callable) -> None:
    """All of it is whole, and half of it would be the model of another step."""
    folder, other = copy(saved), Checkpoints(saved.parent.parent.with_name("other"), 1)
    other.save(2, *trained(CASES["full"], seed=1), {"tokens": 2}, tokenizer())
    other.wait()
    shutil.copy(other.out / "checkpoints" / folder.name / "__0_0.distcp", folder)
    with pytest.raises(DamagedCheckpointError, match=r"__0_0\.distcp cannot.* another checkpoint"):
        load_checkpoint(folder, *build(CASES["full"]))


def test_a_link_to_itself_is_refused(older: Path, copy: Callable) -> None:
    folder = copy(older)
    (folder / "state.pt").unlink()
    (folder / "state.pt").symlink_to("state.pt")
    with pytest.raises(DamagedCheckpointError, match=r"state\.pt cannot be read.*hint"):
        load_checkpoint(folder, *build(CASES["full"]))


def test_a_pipe_is_not_waited_for(older: Path, copy: Callable) -> None:
    folder = copy(older)
    (folder / "state.pt").unlink()
    os.mkfifo(folder / "state.pt")
    with pytest.raises(UserError, match=r"state\.pt is neither a file nor a folder.*hint"):
        load_checkpoint(folder, *build(CASES["full"]))


@pytest.mark.parametrize("name", ["../secret", "/secret", "a/b", "..", "", "a\\b", 5])
def test_metadata_lead_nowhere_else(older: Path, copy: Callable, name: str | int) -> None:
    folder = copy(older)
    metadata = FileSystemReader(older).read_metadata()
    for place in metadata.storage_data.values():
        place.relative_path = name
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    shutil.copyfile(older / "__0_0.distcp", folder.parent / "secret")
    with pytest.raises(DamagedCheckpointError, match=r"\.metadata cannot be read"):
        export(folder)


@pytest.mark.parametrize("axis", [0, 1])
def test_parts_that_leave_a_hole_are_refused(older: Path, copy: Callable, axis: int) -> None:
    """Two parts over one another are as many numbers as the tensor has, and leave the others."""
    folder = copy(older)
    metadata: Any = FileSystemReader(older).read_metadata()
    name = next(name for name in metadata.state_dict_metadata if name.endswith("q_proj.weight"))
    whole = metadata.state_dict_metadata[name]
    place = metadata.storage_data[MetadataIndex(name, torch.Size([0, 0]))]
    # A quarter at the start, three quarters from an eighth on: the last eighth is nowhere.
    eighth = whole.size[axis] // 8
    whole.chunks = []
    for first, count in ((0, 2 * eighth), (eighth, 6 * eighth)):
        offsets, sizes = [0, 0], list(whole.size)
        offsets[axis], sizes[axis] = first, count
        whole.chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
        metadata.storage_data[MetadataIndex(name, torch.Size(offsets))] = place
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(DamagedCheckpointError, match="not stored as a whole, or twice"):
        load_checkpoint(folder, *build(CASES["full"]))


@pytest.mark.parametrize("level", [b"\x85", b"K\x010\x85", b"(0\x85", b"\x94\x85"])
def test_metadata_of_values_in_values_without_end(
    older: Path, copy: Callable, level: bytes
) -> None:
    """As a key of a dictionary, one would take all the stack of the process."""
    folder = copy(older)
    (folder / ".metadata").write_bytes(b"\x80\x04})" + level * 200_000 + b"K\x01s.")
    with pytest.raises(DamagedCheckpointError, match=r"values in one another"):
        export(folder)


def spoil(tensor: torch.Tensor) -> None:
    with torch.no_grad():
        tensor.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])


@pytest.mark.parametrize("part", ["weight", "table", "state"])
def test_numbers_that_are_not_finite_are_not_saved(tmp_path: Path, part: str) -> None:
    model, optimizer = trained(CASES["full"])
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(2, model, optimizer, {}, tokenizer())
    table = model.model.memory_table.weight
    tensors = {"weight": model.lm_head.weight, "table": table}
    spoil(tensors.get(part, optimizer.state[table]["exp_avg"]))
    checkpoints.save(4, model, optimizer, {}, tokenizer())
    with pytest.raises(FloatingPointError, match=r"step 4 is not saved: .* has 3 numbers") as error:
        checkpoints.wait()
    named = {"weight": "model.lm_head.weight", "table": "model.model.memory_table.weight/rows-"}
    assert named.get(part, "optim.model.memory_table.weight.exp_avg/rows-") in str(error.value)
    assert "hint: lower optim.lr" in str(error.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    checkpoints.load_newest(model, optimizer)


def test_numbers_that_are_not_finite_are_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = trained(CASES["full"])
    spoil(model.model.memory_table.weight)
    # As earlier versions did.
    monkeypatch.setattr(checkpoint, "FiniteSavePlanner", checkpoint.dcp.DefaultSavePlanner)
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(2, model, optimizer, {}, tokenizer())
    checkpoints.wait()
    said = r"memory_table\.weight/rows-0+ has 3 numbers that are not finite.*hint.* run diverged: "
    with pytest.raises(DamagedCheckpointError, match=said):
        checkpoints.load_newest(model, optimizer)
    with pytest.raises(DamagedCheckpointError, match=said):
        export_checkpoint(tmp_path, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
