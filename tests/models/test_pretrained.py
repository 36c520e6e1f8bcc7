"""A model by name or folder: what is found, what is refused, and the one that is a package."""

from pathlib import Path

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
