"""Each first mistake at the command line: one line that says what to do, and exit code 2."""

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tests_support import SHAPE, write_facts, write_untrained

from memory_layers.cli import main
from memory_layers.common.reader import from_dict
from memory_layers.evaluate import command
from memory_layers.models import build_model
from memory_layers.study.measure import count_parameters
from memory_layers.train.config import RunConfig, load_run

COMMANDS = ("train", "compare", "eval", "generate", "show")
MEMORY = {"layers": [1], "sub_keys": 8, "top_k": 4, "heads": 2}


def error_of(capsys: pytest.CaptureFixture, *arguments: str | Path) -> str:
    """Run a command that must fail and return the one line it writes, to stderr alone."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def flag_error_of(capsys: pytest.CaptureFixture, *arguments: str | Path) -> str:
    """Likewise for flags, whose errors tyro prints in a box."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


@pytest.fixture
def config(tmp_path: Path) -> Path:
    values = {
        "name": "x",
        "model": SHAPE,
        "memory": MEMORY,
        "data": {
            "facts": str(write_facts(tmp_path / "facts")),
            "vocab_size": 300,
            "cache_dir": str(tmp_path / "cache"),
        },
        "train": {"steps": 2, "batch_size": 2, "seq_len": 32},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained model, which no test changes."""
    return write_untrained(tmp_path_factory.mktemp("untrained") / "model")


@pytest.fixture
def model(untrained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(untrained, tmp_path / "model"))


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("train mine", "did you mean 'mine.yaml'?"),
        ("train mime.yaml", "did you mean 'mine.yaml'?"),
        ("show run", "did you mean 'run/config.json'?"),
        ("generate run/nosuch hello", "run/nosuch is no model folder: it does not exist"),
        ("train tiny --out mine.yaml", "--out mine.yaml: File exists"),
        ("scale scale --out mine.yaml/x", "--out mine.yaml/x: Not a directory"),
        ("compare demo --memory.layers 1", "--memory.* has no effect: variant "),
        ("report run", "run: cannot be read: Is a directory. hint: results.json"),
        ("report mine.yaml", "mine.yaml:1: the text is not valid JSON"),
        ("eval .", ". is no model folder"),
        ("eval nosuch --tasks piqa", "nosuch is no model folder"),
        ("generate nosuch hello", "nosuch is no model folder"),
        ("serve nosuch", "nosuch is no model folder"),
        ("eval ./nosuch", "./nosuch is no model folder: it does not exist"),
        ("serve smolm2", "smolm2 is no model folder. hint: did you mean smollm2?"),
        ("init ''", "NAME must be the name of a folder, not a path"),
        ("init mine", "mine.yaml exists already"),
        ("init ' '", "NAME must be the name of a folder"),
        ("init 'a: b'", "NAME must be the name of a folder"),
        ("train tiny --out ''", "--out is empty"),
        ("report mine.yaml --out=", "--out is empty"),
        ("show " + "x" * 9999, "x..."),
        ("show 'x\0'", "an argument has U+0000"),
    ],
)
def test_in_a_folder_of_ones_own(
    typed: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine"]) == 0
    Path("run").mkdir()
    Path("run/config.json").write_text("{}")
    assert says in error_of(capsys, *shlex.split(typed))


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("init", "NAME"), ("report", "RESULTS"), ("export run", "OUT"), ("eval", "MODEL"),
        ("generate model", "PROMPT"), ("serve", "MODEL"), ("serve m --port abc", "--port"),
        ("generate m hello --max-token", "--max-tokens"), ("eval m --taks facts", "--tasks"),
    ],
)  # fmt: skip
def test_missing_and_misspelt_arguments_are_named(
    typed: str, says: str, capsys: pytest.CaptureFixture
) -> None:
    assert says in flag_error_of(capsys, *shlex.split(typed))


@pytest.mark.parametrize("command", [*COMMANDS, "report", "scale"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    captured = capsys.readouterr()
    assert "Example: memory-layers " in " ".join(captured.out.split())
    assert captured.err == ""


def test_help_of_a_config_shows_its_values(config: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", str(config), "--help"])
    assert end.value.code == 0
    assert "(default: 300)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", ["train", "compare", "show"])
def test_no_config(command: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert f"hint: memory-layers {command} " in error_of(capsys, command)
    assert "needs a configuration file first" in error_of(capsys, command, "--out", tmp_path)
    assert "No such file" in error_of(capsys, command, tmp_path / "no.yaml")
    assert "Is a directory" in error_of(capsys, command, tmp_path)
    path = tmp_path / "x.yaml"
    for text, says in (
        ("- a", "got list"),
        ("name: [", "is not valid YAML"),
        ("", "got an empty file"),
    ):
        path.write_text(text)
        assert says in error_of(capsys, command, path)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--optim.lrr", "1"], "--optim.lr"),
        (["--train.stepss", "1"], "--train.steps"),
        (["--train.steps", "many"], "many"),
        (["--train.steps", "0"], "train.steps must be a whole number >= 1, got 0"),
        (["--model.heads", "0"], "model.heads must be a whole number >= 1, got 0"),
        (["--optim.schedule", "step"], "cosine"),
    ],
)
def test_wrong_flags(
    config: Path, flags: list[str], says: str, capsys: pytest.CaptureFixture
) -> None:
    assert says in flag_error_of(capsys, "train", config, *flags)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--train.seed=1", "--train.seed", "2"], "--train.seed is there more than once"),
        (
            ["--train.eval-every", "1", "--train.eval_every", "2"],
            "--train.eval-every is there more",
        ),
        (["--memory.layers", "7"], "memory.layers must be below model.layers = 2, got [7]"),
        (["--train.seq-len", "999"], "train.seq_len must be at most 256"),
        (["--data.shown-fraction", "0.001"], "leaves no shown subject"),
        (["--data.tokenizer", "{facts}"], "holds no tokenizer that transformers can load"),
        (["--out", "{config}"], "File exists"),
        (["--out", "{config}/x"], "Not a directory"),
        (["--out", "x" * 300], "File name too long. hint: another name"),
        (["--out", "\udc80"], "it is not UTF-8. hint: another name"),
    ],
)
def test_flags_that_do_not_fit(
    config: Path, flags: list[str], says: str, capsys: pytest.CaptureFixture
) -> None:
    flags = [flag.format(config=config, facts=config.parent / "facts") for flag in flags]
    if "--out" not in flags:
        flags += ["--out", str(config.parent / "out")]
    assert says in error_of(capsys, "train", config, *flags)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("facts.jsonl", "", "facts.jsonl:1: the file is empty"),
        ("facts.jsonl", "\n{'a'}", "facts.jsonl:2: the line is not valid JSON"),
        ("facts.jsonl", '{"relation": "cod", "subject": "a", "answer": "b"}', "facts.jsonl:1: rel"),
        ("facts.jsonl", None, "facts.jsonl:1: there is no such file"),
        ("templates.yaml", "", "templates.yaml:1: the file is empty"),
        ("templates.yaml", "code:\n  statements: 3\n  question: x", "templates.yaml:2: `state"),
        ("templates.yaml", None, "templates.yaml:1: there is no such file"),
    ],
)
def test_wrong_facts(
    config: Path, model: Path, name: str, content: str | None, says: str,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    path = config.parent / "facts" / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert says in error_of(capsys, "train", config, "--out", config.parent / "out")
    assert says in error_of(capsys, "eval", model, "--facts", path.parent)


def test_refused_comparisons(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    values = yaml.safe_load(config.read_text())
    path = tmp_path / "compare.yaml"

    def refused(*flags: str, **changes: object) -> str:
        path.write_text(yaml.safe_dump({**values, "variants": {"a": {}}, **changes}))
        return error_of(capsys, "compare", path, "--out", tmp_path / "out", *flags)

    assert "--workers must be a whole number >= 1" in refused("--workers", "0")
    assert "--seeds must be different" in refused("--seeds", "1", "1")
    assert "--train.seed has no effect" in refused("--train.seed", "3")
    lr = {"a": {"optim": {"lr": 0.1}}}
    assert "--optim.lr has no effect: variant 'a'" in refused("--optim.lr", "0.3", variants=lr)
    (tmp_path / "a.txt").write_text("text " * 100)
    data = {**values["data"], "facts": None, "text": [str(tmp_path / "a.txt")]}
    assert "a comparison measures recall and needs data.facts" in refused(data=data)
    assert "memory-layers compare" in error_of(capsys, "train", path)


def half(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewritten(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "checksums.json").unlink()

    return rewrite


def later_format(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "memory_format": 99}))


TABLE = "model.memory_table.weight"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (half, "model.safetensors is missing, damaged or cut off"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "damaged or cut off"),
        (lambda folder: (folder / "config.json").write_text("{"), "the text is not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), "model_type"),
        (lambda folder: (folder / "config.json").unlink(), "is no model folder"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer"),
        (rewritten(lambda tensors: tensors.pop(TABLE)), f"1 missing tensors, such as {TABLE}"),
        (
            rewritten(lambda tensors: tensors.update({TABLE: tensors[TABLE][:9].clone()})),
            f"1 mismatched tensors, such as ('{TABLE}'",
        ),
        (
            rewritten(lambda tensors: tensors.update({"model.extra": torch.zeros(2)})),
            "1 unexpected tensors, such as model.extra",
        ),
        (later_format, "memory format 99"),
    ],
    ids=[
        "half", "no-weights", "empty", "bad-json", "no-type", "no-config", "no-tokenizer",
        "missing", "mismatched", "surplus", "later",
    ],
)  # fmt: skip
def test_damaged_models(
    model: Path, tmp_path: Path, damage: Callable, says: str, capsys: pytest.CaptureFixture
) -> None:
    """None of them is evaluated with weights that were never trained."""
    damage(model)
    assert says in error_of(capsys, "generate", model, "Place 3 has")
    facts = write_facts(tmp_path / "facts")
    assert says in error_of(capsys, "eval", model, "--facts", facts)


def test_wrong_folders_and_values(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(model, run / "model")
    (run / "config.json").write_text('{"name": "x"}')
    assert f"did you mean {run / 'model'}?" in error_of(capsys, "generate", run, "a")
    assert "is no model folder" in error_of(capsys, "eval", tmp_path, "--facts", "builtin")
    facts = write_facts(tmp_path / "facts")
    os.mkfifo(tmp_path / "pipe")
    for flags, says in (
        (["--facts", tmp_path / "no"], "--facts must be a folder"),
        (["--facts", facts, "--relations", "capital"], "select built-in facts"),
        (["--facts", "builtin", "--relations", "capitals"], "unknown relations ['capitals']"),
        (["--facts", facts, "--shown-fraction", "2"], "must lie between 0 and 1, got 2.0"),
        (["--facts", facts, "--shown-fraction", "0.001"], "leaves no shown subject"),
        (["--facts", facts, "--tasks", "piqa"], "--facts has no effect on these tasks"),
        (["--tasks", "facts"], "--facts is missing"),
        (["--tasks", "piqa", "--limit", "0"], "--limit must be a whole number >= 1"),
        (["--tasks", "piqa", "--limit", "9" * 30], "--limit must be a whole number >= 1"),
        (["--tasks", "piqa", "--device", "meta"], "--device meta"),
        (["--facts", facts, "--seed", str(2**64)], "--seed must be"),
        (["--facts", facts, "--out", model / "config.json"], "holds no results of eval"),
        (["--facts", facts, "--out", tmp_path / "pipe"], "holds no results of eval"),
        (["--facts", facts, "--out", "/proc/x.json"], "--out: /proc cannot be written: "),
        (["--tasks", "piqa", "--device", "cuda:9"], "--device cuda:9"),
        (["--facts", facts, "--data-dir", facts], "--data-dir has no effect without --tasks"),
        (["--facts", facts, "--out", tmp_path / "no" / "a.json"], "there is no folder"),
        (["--facts", facts, "--out", facts], "is a folder"),
        ([], "--facts is missing"),
    ):
        assert says in error_of(capsys, "eval", model, *flags)
    assert "the prompt is empty" in error_of(capsys, "generate", model, "")
    assert "--seed must be" in error_of(capsys, "generate", model, "a", "--seed", str(2**64))


@pytest.mark.parametrize(
    ("prompt", "flags", "says"),
    [
        ("a", "--max-tokens 0", "--max-tokens must be a whole number >= 1, got 0"),
        ("a", f"--max-tokens {10**30}", "hint: --max-tokens 255"),
        ("Place 3 " * 200, "", "hint: a shorter PROMPT"),
        ("a", "--temperature -1", "--temperature must be a finite number >= 0, got -1.0"),
        ("a", "--temperature nan", "--temperature must be a finite number >= 0, got nan"),
        ("a", "--temperature inf", "--temperature must be a finite number >= 0, got inf"),
        ("a", "--temperature 1e-320", "--temperature must be 0 or >= 0.001"),
        ("a\udcff", "", "PROMPT has half of a surrogate pair"),
        ("a\0", "", "expected text, got no character"),
    ],
)
def test_prompts_and_numbers_that_cannot_be_used(
    model: Path, prompt: str, flags: str, says: str, capsys: pytest.CaptureFixture
) -> None:
    assert says in error_of(capsys, "generate", model, prompt, *flags.split())


@pytest.mark.parametrize(
    "values",
    ["{", "[" * 100_000, '{"data": {"facts": [1]}}', '{"data": {"facts": "builtin", "seed": "x", '
     '"exposures": 3}}'],
    ids=["cut", "deep", "facts", "exposures"],
)  # fmt: skip
def test_the_configuration_of_a_run_that_is_damaged(
    model: Path, values: str, capsys: pytest.CaptureFixture
) -> None:
    (model.parent / "config.json").write_text(values)
    assert "config.json" in error_of(capsys, "eval", model)


def test_generate_is_greedy_or_seeded(model: Path, capsys: pytest.CaptureFixture) -> None:
    def text(*flags: str) -> str:
        assert main(["generate", str(model), "Place 3", "--max-tokens", "6", *flags]) == 0
        return capsys.readouterr().out

    assert text() == text("--seed", "5")
    assert text().startswith("Place 3")
    warm = [text("--temperature", "1.5", "--seed", seed) for seed in ("1", "1", "2")]
    assert warm[0] == warm[1] != warm[2]


def test_show_can_be_read_again(config: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["show", str(config), "--memory.sub-keys", "16", "--optim.lr", "1e-5"]) == 0
    shown = capsys.readouterr().out
    (values,) = yaml.safe_load(shown.split("┏")[0]).values()
    run = from_dict(RunConfig, values, "shown")
    assert run.memory is not None
    assert (run.memory.sub_keys, run.memory.value_dim, run.memory.key_dim) == (16, 16, 8)
    assert run.optim.lr == 1e-5
    counts = count_parameters(build_model(run.model.to_preset(), run.memory, vocab_size=300))
    for name in ("params_total", "params_active", "params_memory"):
        assert f"{counts[name]:,}" in shown


def test_show_counts_experts(config: Path, capsys: pytest.CaptureFixture) -> None:
    values = yaml.safe_load(config.read_text()) | {"memory": None}
    values["moe"] = {"routing": "token_choice", "experts": 6, "top_k": 2}
    config.write_text(yaml.safe_dump(values))
    assert main(["show", str(config)]) == 0
    shown = capsys.readouterr().out
    run = from_dict(RunConfig, values, "shown")
    model = build_model(run.model.to_preset(), moe=run.moe, vocab_size=300)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert f"{total:,}" in shown
    # Four of the six experts of each block are not a token's: three matrices of half the width.
    idle = 2 * 4 * 3 * SHAPE["hidden_size"] * SHAPE["mlp_size"] // 2
    assert f"{total - idle:,}" in shown


def test_show_a_comparison(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    values = {**yaml.safe_load(config.read_text()), "memory": None, "seeds": [1]}
    values["variants"] = {"dense": {}, "memory": {"memory": MEMORY}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    assert main(["show", str(tmp_path / "c.yaml"), "--train.steps", "9"]) == 0
    runs = yaml.safe_load(capsys.readouterr().out.split("┏")[0])
    assert list(runs) == ["dense", "memory"]
    assert [from_dict(RunConfig, run, name).train.steps for name, run in runs.items()] == [9, 9]
    assert runs["dense"]["memory"] is None
    assert runs["memory"]["memory"]["sub_keys"] == 8


def test_a_failed_start_leaves_no_folder(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    values = yaml.safe_load(config.read_text())
    values["data"] |= {"facts": "builtin", "relations": ["capitol"]}
    config.write_text(yaml.safe_dump(values))
    for study_of in ("train", "compare", "scale"):
        study = tmp_path / f"{study_of}.yaml"
        grid = {
            "train": {}, "compare": {"variants": {"a": {}}},
            "scale": {"slots": [64], "bases": {"a": {}}},
        }[study_of]  # fmt: skip
        if study_of == "scale":
            values["memory"] = {"layers": [1], "top_k": 4}
        study.write_text(yaml.safe_dump({**values, **grid}))
        message = error_of(capsys, study_of, study, "--out", out)
        assert "capitol" in message
        assert "capital" in message
        assert not out.exists()
    assert main(["train", str(config), "--data.relations", "capital", "--out", str(out)]) == 0


def test_a_finished_run_is_made_longer(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    train = ["train", config, "--out", out]
    assert main([str(word) for word in train]) == 0
    capsys.readouterr()
    assert main([str(word) for word in (*train, "--train.steps", "4")]) == 0
    assert "2" in capsys.readouterr().err
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 4
    assert min(steps) == 2
    for flag, value in (("--train.steps", "3"), ("--optim.lr", "0.5")):
        message = error_of(capsys, *train, flag, value)
        assert flag.removeprefix("--") in message
        assert value in message


def test_flags_make_a_dense_run_one_with_memory(
    config: Path, capsys: pytest.CaptureFixture
) -> None:
    values = yaml.safe_load(config.read_text()) | {"memory": None}
    config.write_text(yaml.safe_dump(values))
    assert main(["show", str(config), "--memory.layers", "0", "1", "--memory.sub-keys=64"]) == 0
    (shown,) = yaml.safe_load(capsys.readouterr().out.split("┏")[0]).values()
    assert shown["memory"]["layers"] == [0, 1]
    assert shown["memory"]["sub_keys"] == 64
    assert (
        main(
            [
                "show",
                str(config),
                "--moe.routing",
                "token_choice",
                "--moe.experts",
                "4",
                "--moe.top-k",
                "2",
            ]
        )
        == 0
    )
    (shown,) = yaml.safe_load(capsys.readouterr().out.split("┏")[0]).values()
    assert shown["memory"] is None
    assert shown["moe"]["experts"] == 4
    message = error_of(capsys, "show", config, "--memory.sub-keys", "64")
    assert "--memory.layers is needed" in message
    assert "--memory.sub-kes" in flag_error_of(
        capsys, "show", config, "--memory.layers", "1", "--memory.sub-kes", "64"
    )


def test_eval_asks_what_the_run_was_taught(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    flags = ["--data.shown-fraction", "0.2", "--data.seed", "3", "--optim.lr", "0.01"]
    assert main(["train", str(config), "--out", str(out), "--train.steps", "60", *flags]) == 0
    in_training = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["recall"]
    facts = str(tmp_path / "facts")

    def recall(*arguments: str | Path) -> dict:
        capsys.readouterr()
        assert main(["eval", *map(str, arguments), "--answered", "0"]) == 0
        return json.loads(capsys.readouterr().out)["recall"]

    assert recall(out) == recall(out / "model") == in_training
    assert recall(out, "--facts", facts) == in_training
    # Other flags, and a model that has left its run, are taken at their word.
    copy = shutil.copytree(out / "model", tmp_path / "elsewhere")
    assert "--facts is missing" in error_of(capsys, "eval", copy)
    own = ["--shown-fraction", "0.2", "--seed", "3"]
    assert recall(copy, "--facts", facts, *own) == in_training
    # Of a model alone it is not known which questions it was shown.
    assert recall(copy, "--facts", facts).keys() == {"statement", "question", "by_relation"}


def test_eval_of_all_builtin_facts_says_what_it_asks(
    model: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "MAX_SUBJECTS", 2)
    assert main(["eval", str(model), "--facts", "builtin", "--answered", "0"]) == 0
    captured = capsys.readouterr()
    assert "2 subjects of each built-in source" in captured.err
    assert "hint: --max-subjects" in captured.err
    assert len(json.loads(captured.out)["recall"]["by_relation"]) > 15


def test_init_writes_a_run_to_start_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my_run"]) == 0
    assert "memory-layers train my_run.yaml" in capsys.readouterr().out
    text = Path("my_run.yaml").read_text()
    assert text.count("#") > 10
    assert "my_run.yaml exists already" in error_of(capsys, "init", "my_run")
    assert Path("my_run.yaml").read_text() == text
    # What YAML would read as a number is in quotes there.
    assert main(["init", "2024"]) == 0
    assert load_run(Path("2024.yaml")).name == "2024"
    small = ["--train.steps", "2", "--data.max-subjects", "20", "--data.cache-dir", "cache"]
    assert main(["train", "my_run.yaml", *small]) == 0
    assert Path("runs/my_run/model/config.json").is_file()
