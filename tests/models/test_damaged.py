"""A folder that is damaged, or that somebody else made, is refused by the file that is wrong."""

import json
import re
import shutil
import struct
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from example_models import write_example
from power import Disk
from safetensors.torch import load_file, save_file
from tiny_models import tiny_memory
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, BltConfig, LlamaForCausalLM

from memory_layers.common.errors import UserError
from memory_layers.evaluate.trained import load_trained
from memory_layers.models import add_memory, load_memory, memory_layers_of, save_memory
from memory_layers.models.intact import check_numbers

WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
Damage = Callable[[Path], object]


@cache
def made() -> Path:
    """Folders of a plain model, one with memory, the same in parts, and a memory alone."""
    folder = Path(mkdtemp())
    base, _ = write_example(folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(0)
    model = add_memory(AutoModelForCausalLM.from_pretrained(base), tiny_memory())
    for name, size in (("whole", "1GB"), ("parts", "20KB")):
        model.save_pretrained(folder / name, max_shard_size=size)
        tokenizer.save_pretrained(folder / name)
    beside = tiny_memory(placement="beside")
    save_memory(add_memory(AutoModelForCausalLM.from_pretrained(base), beside), folder / "memory")
    return folder


@pytest.fixture(scope="module", autouse=True)
def remove_made() -> Any:
    yield
    shutil.rmtree(made())
    made.cache_clear()


def content(new: bytes | Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(new if isinstance(new, bytes) else new(path.read_bytes()))


def field(name: str, value: object) -> Callable[[Path], object]:
    """Set a field of a JSON file, such as "memory.heads"."""

    def change(path: Path) -> None:
        values = inner = json.loads(path.read_text("utf-8"))
        *outer, last = name.split("/")
        for key in outer:
            inner = inner[key]
        inner[last] = value
        path.write_text(json.dumps(values), "utf-8")

    return change


def tensor(name: str, change: Callable[[Tensor], Tensor | None]) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        tensors = load_file(path)
        new = {**tensors, name: change(tensors[name].clone())}
        path.unlink()
        save_file({n: t for n, t in new.items() if t is not None}, path, {"format": "pt"})

    return write


def first_number(value: float) -> Callable[[Tensor], Tensor]:
    def change(weight: Tensor) -> Tensor:
        weight.view(-1)[0] = value
        return weight

    return change


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


ANY_FILE: dict[str, Callable[[Path], object]] = {
    "empty": content(b""),
    "cut off": content(lambda whole: whole[: len(whole) // 2]),
    "not UTF-8": content(b"\xff\xfe garbage" * 9),
    "a folder": as_folder,
}
JSON: dict[str, Callable[[Path], object]] = {
    "a list": content(b"[1]"),
    "nested too deep": content(b"[" * 100_000),
    "a number of 9999 digits": content(b'{"a": ' + b"9" * 9999 + b"}"),
}
TENSOR: dict[str, Callable[[Tensor], Tensor | None]] = {
    "missing": lambda weight: None,
    "misshapen": lambda weight: torch.zeros(3, 5),
    "NaN": first_number(float("nan")),
    "infinite": first_number(float("-inf")),
    "whole numbers": lambda weight: weight.int(),
}
HEADER: dict[str, Callable[[Path], object]] = {
    "long": content(lambda whole: struct.pack("<Q", 2**40) + whole[8:]),
    "a list": content(struct.pack("<Q", 2) + b"[]"),
}
# For a model with memory: field of config.json, and what it must not be.
FIELDS = {
    "hidden_size": ["x", -1, 10**9], "vocab_size": [None, 10**9], "num_hidden_layers": [10**9],
    "rope_parameters": [3], "model_type": [[]], "dtype": ["int32"], "eos_token_id": ["x", [None]],
    "memory": [3, {}, "x"], "memory_format": [0, "x", 99], "value_dtype": ["int8", []],
    "written": [-1, "x"], "memory/layers": [3, [99], [0.5]], "memory/sub_keys": [10**12, "6"],
    "memory/value_dim": [10**9, 0], "memory/gate": [[], "\ud800"],
}  # fmt: skip
DESCRIPTION = {
    "memory": [None, 3, {"layers": 3}], "memory/sub_keys": [10**6, 0], "memory/layers": [[7]],
    "target_module": [3, "nothing"], "base": [[], {"norm.weight": 3}], "memory_format": ["x", 99],
    "base/norm.weight/values": ["%", 3], "base/norm.weight/shape": [None], "head": [3, {"a": 1}],
    "value_dtype": [[], "int8"], "base/norm.weight/bits": ["x", 0],
}  # fmt: skip


def cases() -> list[Any]:
    found: list[tuple[str, str, str, Damage]] = []
    for where, name in (
        ("whole", CONFIG), ("whole", "generation_config.json"), ("whole", WEIGHTS),
        ("parts", INDEX), ("memory", "memory.json"), ("memory", "memory.safetensors"),
    ):  # fmt: skip
        damages = ANY_FILE | (JSON if name.endswith("json") else HEADER)
        found += [(where, name, kind, damage) for kind, damage in damages.items()]
    for where, name, weight in (
        ("whole", WEIGHTS, "model.memory_table.weight"), ("base", WEIGHTS, "model.norm.weight"),
        ("memory", "memory.safetensors", "memory_table.weight"),
    ):  # fmt: skip
        found += [(where, name, f"{w} of {weight}", tensor(weight, d)) for w, d in TENSOR.items()]
    for where, name, fields in (
        ("whole", CONFIG, FIELDS), ("memory", "memory.json", DESCRIPTION),
        ("parts", INDEX, {"weight_map": [3, {}, {"a": 1}, {"a": "../b"}], "metadata": [3]}),
    ):  # fmt: skip
        found += [
            (where, name, f"{key}={str(v)[:12]}", field(key, v)) for key, values in fields.items()
            for v in values
        ]  # fmt: skip
    return [pytest.param(w, n, d, id=f"{w}-{n}-{k!a}") for w, n, k, d in found]


@pytest.mark.parametrize(("where", "name", "damage"), cases())
def test_what_is_damaged_is_refused_by_name(
    where: str, name: str, damage: Damage, tmp_path: Path
) -> None:
    folder = tmp_path / where
    shutil.copytree(made() / where, folder)
    damage(folder / name)
    # Whatever else it is, it is told that a file is another: here the rest is looked at.
    (folder / "checksums.json").unlink(missing_ok=True)
    if (folder / "memory.json").is_file() and name == "memory.safetensors":
        field("crc32", None)(folder / "memory.json")
    with pytest.raises(UserError, match=re.escape(str(folder))):
        use(folder)


def use(folder: Path) -> None:
    if folder.name != "memory":
        load_trained(folder)
        return
    base = AutoModelForCausalLM.from_pretrained(made() / "base")
    try:
        load_memory(base, folder)
    except UserError:
        assert not memory_layers_of(base)
        raise


@pytest.mark.parametrize("where", ["whole", "parts", "memory"])
def test_a_flipped_bit_in_any_weight_is_told(where: str, tmp_path: Path) -> None:
    folder = tmp_path / where
    shutil.copytree(made() / where, folder)
    use(folder)
    for path in folder.glob("m*.safetensors"):
        whole = path.read_bytes()
        # The lowest bit of a number: it stays a number, and nearly the same.
        path.write_bytes(whole[:-4] + bytes([whole[-4] ^ 1]) + whole[-3:])
        said = "(is not what was|is not as it was) written"
        with pytest.raises(UserError, match=rf"{re.escape(str(path))} {said}"):
            use(folder)
        path.write_bytes(whole)
    use(folder)


@pytest.mark.parametrize("where", ["whole", "memory"])
def test_folders_of_before_had_no_checksums(where: str, tmp_path: Path) -> None:
    folder = tmp_path / where
    shutil.copytree(made() / where, folder)
    if where == "whole":
        (folder / "checksums.json").unlink()
    else:
        values = json.loads((folder / "memory.json").read_text("utf-8"))
        del values["crc32"]
        (folder / "memory.json").write_text(json.dumps(values), "utf-8")
    use(folder)


@pytest.mark.parametrize("kind", ["NaN", "whole numbers"])
def test_from_pretrained_refuses_what_are_no_numbers(kind: str, tmp_path: Path) -> None:
    shutil.copytree(made() / "whole", tmp_path / "whole")
    tensor("model.memory_table.weight", TENSOR[kind])(tmp_path / "whole" / WEIGHTS)
    (tmp_path / "whole" / "checksums.json").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: model\.memory_table\.weight"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "whole")


def test_numbers_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """Where checksums are right they are not looked for again."""
    model = AutoModelForCausalLM.from_pretrained(made() / "whole")
    model.model.norm.weight.data[0] = float("inf")
    with pytest.raises(UserError, match=r"norm\.weight has numbers that are not finite"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_other_kinds_of_numbers_and_infinite_buffers_are_taken(tmp_path: Path) -> None:
    shutil.copytree(made() / "base", tmp_path / "base")
    half = partial(Tensor.to, dtype=torch.float8_e4m3fn)
    tensor("model.norm.weight", half)(tmp_path / "base" / WEIGHTS)
    model, _ = load_trained(tmp_path / "base")
    model.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))
    check_numbers(model, tmp_path / "base", is_whole=False)


def test_a_model_that_cannot_generate_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "can_generate", lambda *_: False)
    assert not hasattr(load_trained(made() / "base")[0], "generation_config")


def test_a_configuration_may_count_no_blocks(tmp_path: Path) -> None:
    BltConfig().save_pretrained(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / WEIGHTS, {"format": "pt"})
    with pytest.raises(UserError, match="is of a model of"):
        load_trained(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="asks Linux for names")
def test_what_is_saved_is_on_the_disk_before_its_checksums(tmp_path: Path) -> None:
    """After a power cut a good folder is not taken for a damaged one."""
    model = AutoModelForCausalLM.from_pretrained(made() / "whole")
    for name in ("folder", "cuts"):
        (tmp_path / name).mkdir()
    disk = Disk(tmp_path / "folder", tmp_path / "cuts")
    with disk.watched():
        model.save_pretrained(tmp_path / "folder" / "model")
    for state in disk.states():
        if (state / "model" / "checksums.json").exists():
            for path in (state / "model").iterdir():
                written = tmp_path / "folder" / "model" / path.name
                assert path.read_bytes() == written.read_bytes(), path
    assert (disk.states()[-1] / "model" / "checksums.json").exists()
