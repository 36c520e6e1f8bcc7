"""Export: a checkpoint becomes a model folder as save_pretrained writes it, in little memory."""

import json
from collections.abc import Callable
from pathlib import Path

import checkpoint_cases as cases
import pytest
import torch
from checkpoint_cases import CASES, tokenizer, trained
from helpers import fresh_interpreter
from ranks import run_ranks
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import tiny_llama, tiny_memory
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from memory_layers.common import files
from memory_layers.common.checksums import write_checksums
from memory_layers.common.errors import UserError
from memory_layers.evaluate.trained import load_trained
from memory_layers.models import add_memory
from memory_layers.optim import MemoryAdamW
from memory_layers.train.checkpoint import Checkpoints
from memory_layers.train.export import export_checkpoint
from memory_layers.train.folders import list_checkpoints

IDS = torch.arange(12).reshape(1, 12)


def checkpoint_of(
    model: PreTrainedModel, out: Path, optimizer: MemoryAdamW | None = None, step: int = 2
) -> Path:
    checkpoints = Checkpoints(out, 9, block_bytes=cases.BLOCK_BYTES)
    checkpoints.save(step, model, optimizer or MemoryAdamW(model), {}, tokenizer())
    checkpoints.wait()
    return list_checkpoints(out)[-1]


def dense() -> PreTrainedModel:
    return tiny_llama()


def tied() -> PreTrainedModel:
    model = add_memory(tiny_llama(), tiny_memory())
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    return model


def bfloat16() -> PreTrainedModel:
    return add_memory(tiny_llama(torch.bfloat16), tiny_memory(placement="beside"))


def small_dense_wide_table() -> PreTrainedModel:
    return add_memory(tiny_llama(), tiny_memory(), value_dtype=torch.bfloat16)


MODELS = [dense, tied, bfloat16, small_dense_wide_table]


@pytest.mark.parametrize("make", MODELS)
def test_same_model_as_save_pretrained_writes(
    tmp_path: Path, make: Callable[[], PreTrainedModel]
) -> None:
    model = make()
    export_checkpoint(checkpoint_of(model, tmp_path), tmp_path / "exported")
    model.save_pretrained(tmp_path / "saved")
    exported, saved = tmp_path / "exported", tmp_path / "saved"
    for file in saved.iterdir():
        # The files of the weights are cut otherwise.
        if file.suffix != ".safetensors" and file.name != "checksums.json":
            assert (exported / file.name).read_text() == file.read_text(), file.name
    tensors = {}
    for file in exported.glob("*.safetensors"):
        tensors |= load_file(file)
    expected = load_file(saved / "model.safetensors")
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype, name
        assert torch.equal(tensors[name], tensor), name
    (one, other) = (AutoModelForCausalLM.from_pretrained(folder) for folder in (exported, saved))
    assert torch.equal(one(IDS).logits, other(IDS).logits)
    if make is not small_dense_wide_table:
        # from_pretrained gives every parameter one type.
        assert torch.equal(one(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("case", ["full", "row"])
def test_trained_model(tmp_path: Path, case: str) -> None:
    model, optimizer = trained(CASES[case])
    seen: list[tuple[int, int]] = []
    export_checkpoint(
        checkpoint_of(model, tmp_path, optimizer),
        tmp_path / "exported",
        progress=lambda done, whole: seen.append((done, whole)),
    )
    loaded, its_tokenizer = load_trained(tmp_path / "exported")
    assert torch.equal(loaded(IDS).logits, model.eval()(IDS).logits)
    assert its_tokenizer.encode("a") == [0]
    assert AutoTokenizer.from_pretrained(tmp_path / "exported").encode("a") == [0]
    assert (tmp_path / "exported" / "modeling_memory.py").is_file()
    whole = sum(tensor.nbytes for tensor in model.parameters())
    assert seen == sorted(seen)
    assert seen[-1] == (whole, whole)
    assert len(seen) > 3
    index = json.loads((tmp_path / "exported" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == whole
    tables = {"full": 1, "row": 2}[case]
    files = sorted(path.name for path in (tmp_path / "exported").glob("*.safetensors"))
    assert files == [
        f"model-0000{n + 1}-of-0000{tables + 1}.safetensors" for n in range(tables + 1)
    ]


def test_rows_begin_on_a_cache_line(tmp_path: Path) -> None:
    export_checkpoint(checkpoint_of(tied(), tmp_path), tmp_path / "exported")
    file = tmp_path / "exported" / "model-00002-of-00002.safetensors"
    start = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert start % 64 == 0
    assert file.stat().st_size == start + 36 * 16 * 4
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_checkpoint_of_several_ranks(tmp_path: Path) -> None:
    run_ranks(2, cases.save_on_ranks, tmp_path)
    for name in cases.ON_RANKS:
        export_checkpoint(tmp_path / name, tmp_path / name / "exported")
        expected = torch.load(tmp_path / name / "expected.pt", weights_only=True)
        tensors = {}
        for file in (tmp_path / name / "exported").glob("*.safetensors"):
            tensors |= load_file(file)
        for parameter, tensor in tensors.items():
            assert torch.equal(tensor, expected[f"model.{parameter}"]), parameter
        assert len(tensors) == sum(key.startswith("model.") for key in expected)
        load_trained(tmp_path / name / "exported")


def test_newest_of_a_run_is_taken(tmp_path: Path) -> None:
    model = dense()
    checkpoint_of(model, tmp_path, step=1)
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    checkpoint_of(model, tmp_path, step=2)
    for _ in range(2):
        # The second time it replaces what is there.
        export_checkpoint(tmp_path, tmp_path / "exported")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a checkpoint nor the folder of a run"):
        export_checkpoint(tmp_path, tmp_path / "exported")
    with pytest.raises(UserError, match="neither a checkpoint"):
        export_checkpoint(tmp_path / "nowhere", tmp_path / "exported")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "trainer.pt").touch()
    with pytest.raises(UserError, match="earlier version"):
        export_checkpoint(tmp_path / "old", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_a_model_folder_that_lost_its_configuration_is_replaced(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(dense(), tmp_path)
    export_checkpoint(checkpoint, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_bytes(b"")
    export_checkpoint(checkpoint, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"]


def test_nothing_but_a_model_folder_is_replaced(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(dense(), tmp_path)
    (tmp_path / "config.json").write_text('{"name": "a run"}')
    for out in (tmp_path, checkpoint, tmp_path / "checkpoints", tmp_path / "config.json"):
        with pytest.raises(UserError, match="exists and is not a model folder"):
            export_checkpoint(checkpoint, out)
    assert checkpoint.is_dir()
    (tmp_path / "empty").mkdir()
    export_checkpoint(checkpoint, tmp_path / "empty")


def test_checkpoint_that_is_not_of_its_config(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tied(), tmp_path)
    values = json.loads((checkpoint / "config.json").read_text())
    values["memory"]["sub_keys"] = 7
    (checkpoint / "config.json").write_text(json.dumps(values))
    (checkpoint / "checksums.json").unlink()
    write_checksums(checkpoint, [p for p in checkpoint.iterdir() if p.suffix != ".distcp"])
    with pytest.raises(UserError, match=r"tensors are .* such as model\.layers\.0\.mlp\.keys"):
        export_checkpoint(checkpoint, tmp_path / "exported")


@pytest.mark.parametrize("name", ["config.json", ".metadata", "__0_0.distcp"])
def test_damaged_checkpoint(tmp_path: Path, name: str) -> None:
    checkpoint = checkpoint_of(dense(), tmp_path)
    (checkpoint / name).write_bytes(b"{")
    with pytest.raises(OSError, match=f"{name} cannot be read"):
        export_checkpoint(checkpoint, tmp_path / "exported")


def test_failed_export_leaves_the_older_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_of(dense(), tmp_path)
    export_checkpoint(checkpoint, tmp_path / "exported")
    before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "exported").iterdir())

    def no_space(_path: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(files, "sync", no_space)
    with pytest.raises(OSError, match=r"could not write .*No space left"):
        export_checkpoint(checkpoint, tmp_path / "exported")
    after = sorted((path.name, path.read_bytes()) for path in (tmp_path / "exported").iterdir())
    assert after == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "exported"]


MEASURE = """
import re, sys
from pathlib import Path
from memory_layers.train.export import export_checkpoint
small, large, out = map(Path, sys.argv[1:])
# Not of getrusage: that of a new process begins with the peak of the one that started it.
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
export_checkpoint(small, out / "small")
before = peak()
export_checkpoint(large, out / "large")
print(1024 * (peak() - before))
"""


def test_table_is_never_in_memory(tmp_path: Path) -> None:
    small = checkpoint_of(tied(), tmp_path / "a")
    # 160 MB. No optimizer state.
    memory = tiny_memory(sub_keys=200, value_dim=1000, value_init_std=0.0)
    large = add_memory(tiny_llama(), memory)
    checkpoints = Checkpoints(tmp_path / "b", 1, block_bytes=4 * 2**20)
    checkpoints.save(2, large, MemoryAdamW(large), {}, tokenizer())
    checkpoints.wait()
    table = large.model.memory_table.weight.nbytes
    grown = fresh_interpreter(MEASURE, str(small), str(tmp_path / "b"), str(tmp_path))
    assert int(grown) < table / 3, f"{int(grown) / table:.2f} of the table"
    file = tmp_path / "large" / "model-00002-of-00002.safetensors"
    assert file.stat().st_size > table
