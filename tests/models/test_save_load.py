"""A saved memory model is a transformers model like any other, and comes back to the bit."""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from helpers import fresh_interpreter
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import tiny_llama, tiny_memory
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from memory_layers import MemoryAdamW
from memory_layers.models import add_memory
from memory_layers.models.remote_code import FORMAT_VERSION

IDS = torch.arange(18).view(2, 9) * 7 % 40


def logits(model: torch.nn.Module) -> torch.Tensor:
    # A loaded weight lies at any address of the file's memory map, and the matrix products of some
    # processors round differently where an address is not aligned.
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        return model(IDS).logits


def trained(
    dtype: torch.dtype = torch.float32, value_dtype: torch.dtype | None = None, **memory: object
) -> torch.nn.Module:
    """A model whose every parameter is away from what its initialisation would give."""
    model = add_memory(tiny_llama(dtype), tiny_memory(**memory), value_dtype=value_dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("value_dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(dtype: torch.dtype, value_dtype: torch.dtype | None, tmp_path: Path) -> None:
    # Shared with one type of model and apart with the other, in turn.
    share_values = (dtype == torch.float32) == (value_dtype != torch.bfloat16)
    model = trained(dtype, value_dtype=value_dtype, share_values=share_values)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == value.dtype, name
        assert torch.equal(loaded.state_dict()[name], value), name
    assert torch.equal(logits(loaded), logits(model))

    backbone = AutoModel.from_pretrained(tmp_path)
    assert type(backbone) is type(model.model)
    with torch.no_grad():
        hidden = model.model(IDS).last_hidden_state
        assert torch.equal(backbone(IDS).last_hidden_state, hidden)


@pytest.mark.parametrize(
    "memory",
    [
        {"share_values": False},
        {"placement": "beside"},
        {"placement": "beside", "share_values": False, "gate": "none"},
        {"gate": "sigmoid", "value_dim": 10, "key_dim": 6, "qk_norm": False},
        {"layers": (1,)},
    ],
    ids=str,
)
def test_round_trip_of_every_kind(memory: dict[str, object], tmp_path: Path) -> None:
    model = trained(**memory)
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(logits(loaded), logits(model))


def test_folder_that_says_how_gradients_are_kept_loads(tmp_path: Path) -> None:
    """As earlier versions wrote it."""
    model = trained()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config["memory"]["grad_mode"] = "factored"
    path.write_text(json.dumps(config), "utf-8")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model))


def test_table_is_stored_once(tmp_path: Path) -> None:
    model = trained()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert [name for name, shape in shapes.items() if shape == (36, 16)] == [
        "model.memory_table.weight"
    ]
    assert set(shapes) == set(model.state_dict())


def test_sharded_files(tmp_path: Path) -> None:
    model = trained()
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_saved_again_it_is_the_same(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path / "one")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    loaded.save_pretrained(tmp_path / "two")
    for name in ("config.json", "model.safetensors", "modeling_memory.py"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_trains_on_after_loading(tmp_path: Path) -> None:
    model = trained()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for each in (model, loaded):
        optimizer = MemoryAdamW(each, lr=1e-2)
        each(IDS, labels=IDS).loss.backward()
        assert len(each.model.memory_table.weight.grad.reads) == 2
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_memory_that_is_not_in_the_file_is_initialised(tmp_path: Path) -> None:
    """As for any transformers model: missing weights are drawn, the others are kept."""
    model = trained()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    ours = [name for name in tensors if "memory_table" in name or "layers.0.mlp" in name]
    save_file(
        {name: tensor for name, tensor in tensors.items() if name not in ours},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    # Whoever changes a file on purpose takes these away.
    (tmp_path / "checksums.json").unlink()
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == set(ours)
    fresh = add_memory(tiny_llama(), tiny_memory()).state_dict()
    for name, value in loaded.state_dict().items():
        if name not in ours:
            assert torch.equal(value, tensors[name]), name
        elif fresh[name].flatten().unique().numel() == 1:
            assert torch.equal(value, fresh[name]), name
        else:
            assert not torch.equal(value, tensors[name]), name
            assert float(value.std()) == pytest.approx(float(fresh[name].std()), rel=0.3), name


def test_config_json(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config["model_type"] == "memory_llama"
    assert config["architectures"] == ["MemoryLlamaForCausalLM"]
    assert config["memory"] == tiny_memory().to_dict()
    assert config["memory_format"] == FORMAT_VERSION
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.memory == tiny_memory().to_dict()
    assert not list(tmp_path.glob("*.part"))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


@pytest.mark.parametrize("value_dtype", ["model", "bfloat16"])
def test_folders_of_before(value_dtype: str, tmp_path: Path) -> None:
    """Their memory had fields for the type of tables, frozen keys and kinds of gradients."""
    dtype = None if value_dtype == "model" else torch.bfloat16
    model = trained(value_dtype=dtype)
    model.save_pretrained(tmp_path / "new")
    model.save_pretrained(tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    values = json.loads(path.read_text("utf-8"))
    del values["value_dtype"]
    before = {"value_dtype": value_dtype, "train_keys": False}
    edit_config(tmp_path / "old", memory={**values["memory"], **before})
    with pytest.warns(UserWarning, match=r"train_keys=False .*freeze_keys\(model\)") as warned:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "old")
    assert len(warned) == 1
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.model.memory_table.weight.dtype == (dtype or torch.float32)
    loaded.save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        new, again = (tmp_path / folder / name for folder in ("new", "again"))
        assert new.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_format": FORMAT_VERSION + 1}, "this package reads up to"),
        ({"memory": None}, "config.memory is None"),
        ({"memory": {**tiny_memory().to_dict(), "sub_key": 3}}, "did you mean 'sub_keys'"),
        ({"memory": tiny_memory(layers=(9,)).to_dict()}, "below the number of blocks"),
    ],
)
def test_bad_configs_are_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_table_of_another_shape_is_refused(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    edit_config(tmp_path, memory=tiny_memory(sub_keys=7).to_dict())
    with pytest.raises(RuntimeError, match="mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


LOAD = """
import sys
import torch
from transformers import AutoModelForCausalLM
assert not any(name.startswith("memory_layers") for name in sys.modules)
folder = sys.argv[1]
try:
    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    print("trust_remote_code" in str(error))
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
ids = torch.arange(18).view(2, 9) * 7 % 40
with torch.no_grad():
    print(torch.equal(model(ids).logits, torch.load(folder + "/logits.pt", weights_only=True)))
import memory_layers.models
print(isinstance(model, memory_layers.models.classes.memory_classes(
    memory_layers.models.families.find_family("llama")).causal_lm))
"""


def test_process_that_never_imported_us_can_load(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = trained()
    model.save_pretrained(folder)
    torch.save(logits(model), folder / "logits.pt")
    printed = fresh_interpreter(LOAD, str(folder), HF_HOME=str(tmp_path / "home"))
    assert printed.split() == ["True", "True", "True"]


def test_others_may_read_what_is_saved_as_other_new_files(tmp_path: Path) -> None:
    """safetensors writes files that nobody but their user may read."""
    before = os.umask(0o022)
    try:
        trained().save_pretrained(tmp_path / "model", max_shard_size="20KB")
    finally:
        os.umask(before)
    modes = {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "model").iterdir()}
    assert modes == {"0o644"}
