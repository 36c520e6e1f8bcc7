"""Folders of strangers: unasked, no command runs what lies in them or reads what lies elsewhere."""

import ast
import io
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import yaml
from example_models import write_example
from tests_support import SHAPE, write_facts
from tiny_models import tiny_memory
from transformers import AutoModelForCausalLM, AutoTokenizer

from memory_layers.cli import main
from memory_layers.common.checksums import read_checksums, write_checksums
from memory_layers.common.errors import UserError
from memory_layers.data.tokenizer import load_tokenizer
from memory_layers.evaluate.trained import load_trained
from memory_layers.models import add_memory, load_memory, save_memory

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary model with its tokenizer, and facts beside it."""
    folder = tmp_path_factory.mktemp("strangers")
    write_facts(folder / "facts")
    return Path(write_example(folder)[0])


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that planted code writes. Whoever is asked says yes."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    return tmp_path / "ran"


def edit(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**values, **changes}), "utf-8")


def planted(base: Path, folder: Path, ran: Path) -> Path:
    """Copy a model, with code that no loader that knows its classes needs."""
    shutil.copytree(base, folder)
    code = f"open({str(ran)!r}, 'w').close()\nclass Own: pass\ndef generate(*_, **__): pass\n"
    (folder / "custom_generate").mkdir()
    for name in ("own.py", "tok.py", "custom_generate/generate.py"):
        (folder / name).write_text(code)
    autos = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoProcessor")
    edit(folder / "config.json", auto_map=dict.fromkeys(autos, "own.Own"))
    for name in ("processor_config.json", "preprocessor_config.json"):
        edit(folder / name, auto_map={"AutoProcessor": "own.Own"}, processor_class="Own")
    return folder


def tokenizer_with_code(base: Path, folder: Path, ran: Path) -> Path:
    planted(base, folder, ran)
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="Own",
        auto_map={"AutoTokenizer": ["tok.Own", "tok.Own"]},
    )
    edit(folder / "config.json", auto_map={})
    return folder


def model_with_code(base: Path, folder: Path, ran: Path) -> Path:
    edit(planted(base, folder, ran) / "config.json", model_type="own_llama")
    return folder


def arguments(command: str, folder: Path, base: Path, work: Path) -> list[str]:
    facts = str(base.parent / "facts")
    run = {
        "name": "x", "model": SHAPE, "train": {"steps": 1, "batch_size": 2, "seq_len": 32},
        "data": {"facts": facts, "tokenizer": str(folder), "cache_dir": str(work / "cache")},
    }  # fmt: skip
    config = work / "x.yaml"
    config.write_text(yaml.safe_dump(run))
    both = {**run, "variants": {"one": {}, "two": {}}, "seeds": [1]}
    (work / "both.yaml").write_text(yaml.safe_dump(both))
    return {
        "generate": ["generate", str(folder), "The code"],
        "eval": ["eval", str(folder), "--facts", facts],
        "serve": ["serve", str(folder)],
        "learn": ["learn", str(folder), facts, "--out", str(work / "taught")],
        "look": ["learn", str(folder), facts, "--dry-run"],
        "train": ["train", str(config), "--out", str(work / "out")],
        "revert": ["patch", "revert", str(folder), "0123", "--out", str(work / "out")],
        "show": ["show", str(config)],
        "plan": ["plan", str(config)],
        "compare": ["compare", str(work / "both.yaml"), "--out", str(work / "out")],
    }[command]


@pytest.mark.parametrize(
    "command",
    ["generate", "eval", "serve", "learn", "look", "revert", "train", "show", "plan", "compare"],
)
def test_code_of_a_tokenizer_is_refused(
    command: str, base: Path, ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tokenizer_with_code(base, tmp_path / "folder", ran)
    assert main(arguments(command, folder, base, tmp_path)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "without running code that it brings: tok.py. hint" in error
    assert "--trust-remote-code True" in error
    assert not ran.exists()


@pytest.mark.parametrize("command", ["generate", "eval", "serve", "learn", "revert"])
def test_code_of_a_model_is_refused(
    command: str, base: Path, ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = model_with_code(base, tmp_path / "folder", ran)
    assert main(arguments(command, folder, base, tmp_path)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "without running code that it brings: own.py. hint" in error
    assert not ran.exists()


def test_code_beside_what_is_known_is_left_alone(
    base: Path, ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = planted(base, tmp_path / "folder", ran)
    assert main(["generate", str(base), "The code of town 3 is"]) == 0
    expected = capsys.readouterr().out
    assert main(["generate", str(folder), "The code of town 3 is"]) == 0
    assert capsys.readouterr().out == expected
    assert not ran.exists()


@pytest.mark.parametrize("plant", [tokenizer_with_code, model_with_code, planted])
def test_code_runs_where_it_is_trusted(
    plant: object, base: Path, ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    folder = plant(base, tmp_path / "trusted", ran)  # ty: ignore[call-non-callable]
    # Not a class of transformers, so it ends in an error of the code's own.
    with pytest.raises((UserError, AttributeError)):
        load_trained(folder, trust_remote_code=True)
    assert ran.exists()


def test_a_model_with_memory_needs_none_of_its_code(base: Path, ran: Path, tmp_path: Path) -> None:
    model = add_memory(AutoModelForCausalLM.from_pretrained(base), tiny_memory())
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "model")
    (module,) = (tmp_path / "model").glob("*.py")
    module.write_text(f"open({str(ran)!r}, 'w')")
    load_trained(tmp_path / "model")
    assert not ran.exists()


def rewrite_checksums(checkpoint: Path) -> None:
    """Make them fit, as who plants something can."""
    write_checksums(checkpoint, [checkpoint / name for name in read_checksums(checkpoint) or ()])


def test_a_checkpoint_is_exported_without_its_code(
    base: Path, ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(arguments("train", base, base, tmp_path)) == 0
    (checkpoint,) = (tmp_path / "out" / "checkpoints").iterdir()
    (checkpoint / "own.py").write_text(f"open({str(ran)!r}, 'w')")
    autos = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "own.Own")
    edit(checkpoint / "config.json", auto_map=autos)
    rewrite_checksums(checkpoint)
    assert main(["export", str(checkpoint), str(tmp_path / "model")]) == 0
    edit(checkpoint / "config.json", model_type="own_llama")
    rewrite_checksums(checkpoint)
    assert main(["export", str(checkpoint), str(tmp_path / "other")]) == 2
    assert str(checkpoint / "config.json") in capsys.readouterr().err
    assert not ran.exists()


def test_pickled_weights_run_nothing(
    base: Path, ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()

    class Command:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {ran}",)

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Command(), 2))
    assert main(["generate", str(folder), "The code"]) == 2
    assert "error: " in capsys.readouterr().err
    assert not ran.exists()


@pytest.mark.parametrize(
    "name",
    [
        "chat_template.jinja", "additional_chat_templates/more.jinja", "tokenizer.json",
        "config.json",
    ],
)  # fmt: skip
def test_a_link_out_of_a_model_folder_is_refused(name: str, base: Path, tmp_path: Path) -> None:
    folder, secret = tmp_path / "folder", tmp_path / "secret"
    shutil.copytree(base, folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / name).unlink(missing_ok=True)
    secret.write_text("my own {{ messages }}")
    (folder / name).symlink_to(secret)
    with pytest.raises(UserError, match=rf"{name} is a link that leads out .*{secret}. hint"):
        load_trained(folder)
    for given in (folder, str(folder)):
        with pytest.raises(UserError, match="is a link that leads out"):
            load_tokenizer(given)


def test_links_inside_and_into_the_cache_of_the_hub_are_taken(base: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b/snapshots/0123", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(base.iterdir())):
        shutil.copyfile(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    (snapshot / "again.json").symlink_to("config.json")
    (tmp_path / "other").symlink_to(snapshot)
    (snapshot / "runs").symlink_to(tmp_path)
    for name in ("training.log", ".notes.json"):
        (snapshot / name).symlink_to(tmp_path / "elsewhere")
    load_trained(tmp_path / "other")


def test_links_are_followed_where_the_folder_is_trusted(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "folder")
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / "folder" / name).rename(tmp_path / name)
        (tmp_path / "folder" / name).symlink_to(tmp_path / name)
    with pytest.raises(UserError, match=r"cp -rL .*--trust-remote-code True"):
        load_trained(tmp_path / "folder")
    load_trained(tmp_path / "folder", trust_remote_code=True)


def test_weights_elsewhere_are_refused(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(folder, max_shard_size="20KB")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text("utf-8"))["weight_map"]
    load_trained(folder)
    for wrong in ("../model.safetensors", "/etc/model.safetensors", 3):
        edit(index, weight_map={**places, "lm_head.weight": wrong})
        with pytest.raises(UserError, match="weight_map must name files of its folder, got"):
            load_trained(folder)


def test_a_link_out_of_a_memory_is_refused(base: Path, tmp_path: Path) -> None:
    model = add_memory(AutoModelForCausalLM.from_pretrained(base), tiny_memory(placement="beside"))
    save_memory(model, tmp_path / "memory")
    (tmp_path / "memory" / "memory.safetensors").rename(tmp_path / "elsewhere")
    (tmp_path / "memory" / "memory.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"memory.safetensors is a link that leads out"):
        load_memory(AutoModelForCausalLM.from_pretrained(base), tmp_path / "memory")


@pytest.mark.parametrize("kind", ["facts", "text"])
def test_a_link_out_of_a_folder_of_data_is_refused(
    kind: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data, secret = tmp_path / "data", tmp_path / "secret"
    secret.write_text('{"relation": "code", "subject": "me", "answer": "my own"}')
    shutil.copytree(base.parent / "facts", data)
    name = "facts.jsonl" if kind == "facts" else "notes.txt"
    if kind == "text":
        for file in data.iterdir():
            file.unlink()
    (data / name).unlink(missing_ok=True)
    (data / name).symlink_to(secret)
    config = Path(arguments("train", base, base, tmp_path)[1])
    run = yaml.safe_load(config.read_text())
    named = {"facts": str(data)} if kind == "facts" else {"facts": None, "text": [str(data)]}
    config.write_text(yaml.safe_dump({**run, "data": {**run["data"], **named}}))
    assert main(["train", str(config), "--out", str(tmp_path / "out")]) == 2
    assert f"{name} is a link that leads out" in capsys.readouterr().err
    if kind == "facts":
        assert main(["learn", str(base), str(data), "--dry-run"]) == 2
        assert f"{name} is a link that leads out" in capsys.readouterr().err


def test_a_pipe_is_no_file(base: Path, tmp_path: Path) -> None:
    """Reading it would wait for ever."""
    shutil.copytree(base, tmp_path / "folder")
    os.mkfifo(tmp_path / "folder" / "special_tokens_map.json")
    with pytest.raises(UserError, match="is a pipe or device"):
        load_tokenizer(tmp_path / "folder")


def test_an_adapter_beside_a_model_is_not_passed_over(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "folder")
    edit(tmp_path / "folder" / "adapter_config.json", peft_type="LORA")
    with pytest.raises(UserError, match=r"adapter of PEFT .*hint: load both in Python"):
        load_trained(tmp_path / "folder")


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_every_loader_says_whom_it_trusts() -> None:
    """Without the argument transformers asks on stdin, and torch decides by its version."""
    needed = {"from_pretrained": "trust_remote_code", "from_config": "trust_remote_code"}
    needed["load"] = "weights_only"
    wrong, seen = [], 0
    for folder in ("src", "examples", "benchmarks", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            for call in calls(ast.parse(path.read_text("utf-8"))):
                match call.func:
                    case ast.Attribute(ast.Name(of), name) if name in needed:
                        pass
                    case _:
                        continue
                if of != "torch" and not of.startswith("Auto"):
                    continue
                seen += 1
                if needed[name] not in {keyword.arg for keyword in call.keywords}:
                    wrong.append(f"{path}:{call.lineno}")
    assert not wrong
    assert seen > 8


@pytest.mark.parametrize(
    ("field", "tokenizer_class"),
    [
        ("vocab", "BertTokenizer"),
        ("vocab", "EsmcTokenizer"),
        ("vocab_file", "TokenizersBackend"),
        ("init_inputs", "BlenderbotTokenizer"),
        ("fast_tokenizer_files", "TokenizersBackend"),
    ],
)
def test_a_tokenizer_reads_no_file_elsewhere(
    field: str, tokenizer_class: str, base: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "tokenizer.1.0.json"
    secret.write_text("a\nmy own\n")
    shutil.copytree(base, tmp_path / "folder")
    value = [str(secret)] if field in ("init_inputs", "fast_tokenizer_files") else str(secret)
    edit(
        tmp_path / "folder" / "tokenizer_config.json",
        **{"tokenizer_class": tokenizer_class, field: value},
    )
    with pytest.raises(UserError, match=rf"{field} of tokenizer_config.json names a file that is"):
        load_tokenizer(tmp_path / "folder")


def test_paths_that_older_versions_left_are_passed_over(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    shutil.copytree(base, tmp_path / "folder")
    edit(
        tmp_path / "folder" / "tokenizer_config.json",
        tokenizer_file=str(base / "tokenizer.json"),
        special_tokens_map_file=str(tmp_path / "author" / "special_tokens_map.json"),
        vocab_file=str(tmp_path / "author" / "vocab.json"),
        name_or_path="gpt2",
    )
    load_tokenizer(tmp_path / "folder")
