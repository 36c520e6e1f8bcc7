"""Models as commands load them: by name or folder, with a memory put onto them, answering."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from example_models import write_example
from tests_support import write_facts
from tiny_models import tiny_memory
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

from memory_layers.cli import main
from memory_layers.common.errors import UserError
from memory_layers.data.tokenizer import train_tokenizer
from memory_layers.evaluate.trained import load_trained
from memory_layers.models import add_memory, memory_layers_of, save_memory

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo",
    "Russia": "Moscow", "Egypt": "Cairo", "Greece": "Athens", "Portugal": "Lisbon",
    "Poland": "Warsaw", "Norway": "Oslo", "China": "Beijing",
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_example(tmp_path_factory.mktemp("base"))[0])


@pytest.fixture(scope="module")
def memory(base: Path) -> Path:
    """Of the base, drawn at random."""
    model = add_memory(AutoModelForCausalLM.from_pretrained(base), tiny_memory(placement="beside"))
    with torch.no_grad():
        for layer in memory_layers_of(model):
            layer.gate.out.weight.normal_(std=5.0)
    save_memory(model, base.parent / "taught" / "memory")
    model.save_pretrained(base.parent / "joined")
    AutoTokenizer.from_pretrained(base).save_pretrained(base.parent / "joined")
    return base.parent / "taught" / "memory"


def test_eval_of_a_base_with_its_memory_is_that_of_the_joined_model(
    base: Path, memory: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    facts = str(write_facts(tmp_path / "facts"))
    found = []
    for model in ([base], [base, "--memory", memory], [base.parent / "joined"]):
        assert main(["eval", *map(str, model), "--facts", facts, "--answered", "3"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    plain, beside, joined = found
    assert beside == joined
    assert plain["answer_nll"] != beside["answer_nll"]


@pytest.mark.parametrize("command", ["generate", "eval", "serve"])
def test_what_is_no_memory_of_the_model_is_refused(
    command: str, base: Path, memory: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    more = {"generate": ["a"], "eval": ["--facts", str(write_facts(tmp_path / "facts"))]}
    other = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        other.model.norm.weight.add_(1)
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "other")
    for model, folder, says in (
        (base, tmp_path, "is no memory: it has no memory.json"),
        (base, memory.parent, f"did you mean {memory}?"),
        (tmp_path / "other", memory, "another base"),
    ):
        asked = [command, str(model), *more.get(command, []), "--memory", str(folder)]
        assert main(asked) == 2
        assert says in capsys.readouterr().err


def test_a_file_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "model.gguf").write_bytes(b"")
    assert main(["generate", str(tmp_path / "model.gguf"), "The code"]) == 2
    assert "model.gguf is no model folder: it is a file" in capsys.readouterr().err


def test_chat_needs_a_template(base: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["generate", str(base), "The code", "--chat"]) == 2
    assert "has no chat template" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", {"attn_implementation": "a/b"}, "code that it brings: a/b. hint: read it"),
        ("config.json", "[]", "config.json must hold a JSON object, got list"),
        (
            "config.json",
            "[" * 9999,
            "config.json: the text is not valid JSON",
        ),
        ("config.json", {"hidden_size": "x"}, "cannot be loaded: .*'hidden_size'"),
        ("config.json", {"hidden_act": "x"}, "cannot be loaded: KeyError: 'x'"),
        ("config.json", {"num_attention_heads": 0}, "cannot be loaded: ZeroDivisionError: "),
        ("config.json", {"model_type": []}, "cannot be loaded: unhashable type"),
        (
            "generation_config.json",
            "[]",
            "generation_config.json must hold a JSON object, got list",
        ),
        (
            "generation_config.json",
            {"eos_token_id": "x"},
            "must be the number of a token",
        ),
        (
            "generation_config.json",
            {"penalty_alpha": 0.6, "top_k": 4},
            "asks for contrastive search, which needs code of the hub",
        ),
        ("pytorch_model.bin", "not weights", "cannot be loaded: "),
    ],
)
def test_what_is_wrong_in_a_model_folder_is_said_in_one_line(
    file: str, content: object, says: str, base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    if file == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    if isinstance(content, dict):
        values = json.loads((folder / file).read_text("utf-8"))
        (folder / file).write_text(json.dumps({**values, **content}), "utf-8")
    else:
        (folder / file).write_text(str(content), "utf-8")
    with pytest.raises(UserError, match=says) as error:
        load_trained(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "template",
    ["{% for x in %}", "{% include '/etc/passwd' %}", "{{ ''.__class__.__mro__ }}", "{{ 1 / 0 }}"],
)
def test_a_chat_template_that_does_not_work(
    template: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """It reads no file and no object of Python: it is run in Jinja's sandbox."""
    shutil.copytree(base, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    assert main(["generate", str(tmp_path / "model"), "The code", "--chat"]) == 2
    assert "model refuses these turns of user: " in capsys.readouterr().err


@pytest.mark.parametrize("own", [True, False])
def test_tokens_that_the_model_has_not_are_refused(own: bool, base: Path, tmp_path: Path) -> None:
    """A mark beyond is taken, as families have one for images that their text models lack."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(tmp_path)
    if own:
        tokenizer = train_tokenizer(["Words of another model, which has more of them."] * 9, 350)
        tokenizer.add_tokens([f"word {n}" for n in range(50)])
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(UserError, match=r"tokens, such as .* beyond the 300 embeddings"):
            load_trained(tmp_path)
        return
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    tokenizer.save_pretrained(tmp_path)
    load_trained(tmp_path)
    tokenizer.add_special_tokens({"eos_token": "<|end|>"})
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"1 tokens, such as '<\|end\|>', beyond"):
        load_trained(tmp_path)


def test_names_of_special_tokens_in_a_prompt_are_text(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    prompt = "The <|pad|> code of <|endoftext|>"
    assert main(["generate", str(base), prompt, "--max-tokens", "1"]) == 0
    # Special tokens are not printed.
    assert capsys.readouterr().out.startswith(prompt)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}<|pad|>{{ raise_exception('seen') "
        "if '<|pad|>' in messages[0]['content'] }}"
    )
    tokenizer.save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(tmp_path)
    assert main(["generate", str(tmp_path), prompt, "--chat", "--max-tokens", "1"]) == 0
    assert main(["generate", str(base), "a \udcff", "--max-tokens", "1"]) == 2
    assert "PROMPT has half of a surrogate pair" in capsys.readouterr().err


def test_texts_end_at_the_end_of_the_tokenizer_too(base: Path, tmp_path: Path) -> None:
    """Also where the model names another token that ends what it generates, as some bases do."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.generation_config = GenerationConfig(eos_token_id=7)
    with torch.no_grad():
        # The end of a text always, since all logits are alike and its token is the first.
        model.get_output_embeddings().weight.zero_()
    assert tokenizer.eos_token_id == 0
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = load_trained(tmp_path)
    ids = torch.tensor([[5, 6, 8]])
    assert loaded.generate(ids, max_new_tokens=9, do_sample=False).tolist() == [[5, 6, 8, 0]]


@pytest.mark.real
def test_an_untouched_model_is_credited_with_what_it_knows(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    facts = tmp_path / "facts"
    facts.mkdir()
    lines = [
        json.dumps({"relation": "capital", "subject": country, "answer": city})
        for country, city in CAPITALS.items()
    ]
    (facts / "facts.jsonl").write_text("\n".join(lines))
    (facts / "templates.yaml").write_text(
        'capital: {statements: ["{subject} has the capital {answer}."], '
        'question: "The capital of {subject} is {answer}", '
        'heldout: ["The seat of government of {subject} is {answer}"]}'
    )
    assert main(["eval", str(smollm2), "--facts", str(facts), "--answered", "0"]) == 0
    recall = json.loads(capsys.readouterr().out)["recall"]
    # Nobody knows what it was shown.
    assert recall.keys() == {"statement", "question", "heldout", "by_relation"}
    assert recall["question"] > 0.5
    monkeypatch.chdir(tmp_path)
    # A folder of that name does not stand in the way.
    Path("smollm2").mkdir()
    assert main(["generate", "smollm2", "What is the capital of France?", "--chat"]) == 0
    assert capsys.readouterr().out == "The capital of France is Paris.\n"


def test_marks_that_a_text_begins_with_need_embeddings(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    values = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**values, "tokenizer_class": "CLIPTokenizer"}), "utf-8")
    with pytest.raises(UserError, match=r"beyond the 300 embeddings|holds no tokenizer"):
        load_trained(tmp_path / "model")


@pytest.mark.parametrize(
    "asked",
    [
        {"num_beams": "x"},
        {"num_beams": 60_000},
        {"forced_eos_token_id": 10**9},
        {"stop_strings": 3},
        {"max_time": "soon"},
        {"bad_words_ids": [["x"]]},
        {"repetition_penalty": 0},
        {"suppress_tokens": "all"},
        # Looked at while sampling alone.
        {"top_k": -1},
        {"eta_cutoff": "x"},
    ],
)
@pytest.mark.parametrize("command", [["generate", "The code"], ["eval", "--facts", "builtin"]])
def test_settings_of_generating_that_do_not_work(
    command: list[str], asked: dict, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(base, tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **asked}), "utf-8")
    assert main([command[0], str(tmp_path / "model"), *command[1:]]) == 2
    assert "generation_config.json" in capsys.readouterr().err


def test_settings_of_generating_change_nothing_that_is_drawn(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    settings = {**json.loads(path.read_text("utf-8")), "return_dict_in_generate": True, "top_k": 5}
    path.write_text(json.dumps(settings), "utf-8")
    torch.manual_seed(0)
    model, _ = load_trained(tmp_path / "model")
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.manual_seed(0)))
    # Tokens, as of any other model.
    assert model.generate(torch.tensor([[1]]), max_new_tokens=2).ndim == 2


def test_settings_of_generating_do_not_end_the_teaching_of_weights_in_four_bits(
    base: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=BitsAndBytesConfig(load_in_4bit=True), device_map="cpu"
    )
    model.generation_config.update(do_sample=True, temperature=0.2)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "model")
    loaded, _ = load_trained(tmp_path / "model")
    assert loaded.generation_config.temperature == 0.2
    # It is refused where bitsandbytes has laid out the weights for inference.
    add_memory(loaded, tiny_memory(placement="beside"))
