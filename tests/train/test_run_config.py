"""RunConfig from YAML: what is wrong is refused, with the field and what would be right."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from memory_layers import MemoryConfig
from memory_layers.common.errors import UserError
from memory_layers.common.reader import from_dict, read_yaml
from memory_layers.data.prepare import PreparedData
from memory_layers.study.flops import shape_of
from memory_layers.train.build import make_optimizer
from memory_layers.train.claim import check_folder, claim_folder
from memory_layers.train.config import (
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    load_run,
)

# Lists of ten of the line before: the last one stands for 10,000 words, and so on.
BOMB = "name: x\na: &a [" + "x, " * 10 + "]\n"
BOMB += "".join(f"{new}: &{new} [" + f"*{old}, " * 10 + "]\n" for old, new in ("ab", "bc", "cd"))


def load(folder: Path, text: str) -> RunConfig:
    path = folder / "run.yaml"
    path.write_text(text, "utf-8")
    return load_run(path)


def test_defaults_and_nesting(tmp_path: Path) -> None:
    run = load(
        tmp_path,
        """
name: x
model: {preset: small, layers: 3}
memory: {layers: [1, 2], top_k: 8}
data: {relations: [capital], max_subjects: 10}
""",
    )
    assert run.model.to_preset().layers == 3
    assert run.model.to_preset().hidden_size == 256
    assert run.memory == MemoryConfig(layers=(1, 2), top_k=8)
    assert run.data.relations == ("capital",)
    assert (run.optim, run.train) == (OptimConfig(), TrainConfig())
    assert from_dict(RunConfig, asdict(run), "again") == run


def test_what_is_written_once_counts_where_it_is_named(tmp_path: Path) -> None:
    run = load(
        tmp_path,
        "\ufeffname: no\nmodel: &m {layers: 3, heads: 2}\ntrain: {<<: {steps: 3}, seed: 2}",
    )
    assert (run.name, run.model.layers) == ("no", 3)
    assert (run.train.steps, run.train.seed) == (3, 2)


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    run = load(
        tmp_path,
        "name: x\noptim: {lr: 1e-3, eps: 1e-9, weight_decay: 0, clip_norm: null, end_ratio: '0.5'}",
    )
    assert (run.optim.lr, run.optim.eps) == (1e-3, 1e-9)
    assert run.optim.weight_decay == 0.0
    assert isinstance(run.optim.weight_decay, float)
    assert run.optim.clip_norm is None
    assert run.optim.end_ratio == 0.5


def test_no_memory_and_single_paths(tmp_path: Path) -> None:
    run = load(tmp_path, "name: x\nmemory: null\ndata: {facts: null, text: a.txt}")
    assert run.memory is None
    assert run.data.text == ("a.txt",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {}", "needs `name:`"),
        ("name: 3", "name: must be of type str, got 3"),
        ("name: x\nmodle: {}", "unknown field 'modle'. hint: did you mean 'model'?"),
        ("name: x\ntrain: {stepps: 3}", "train: unknown field 'stepps'. hint: did you mean 'ste"),
        ("name: x\ntrain: {zzz: 3}", "unknown field 'zzz'. hint: one of steps, "),
        ("name: x\n3: 4", "run.yaml:2: a name is not a string"),
        ("name: x\nmemory: {top_k: 3}", "memory: needs `layers:`"),
        ("name: x\nmodel: tiny", "model: must be a mapping of fields, got 'tiny'"),
        ("name: x\nmodel: null", "model: must be a mapping of fields, got None"),
        ("name: x\ntrain: {steps: many}", "steps: must be of type int, got 'many'"),
        ("name: x\ntrain: {steps: 1.5}", "steps: must be of type int, got 1.5"),
        ("name: x\ntrain: {steps: true}", "steps: must be of type int, got True"),
        ("name: x\ntrain: {steps: null}", "steps: must be of type int, got None"),
        ("name: x\noptim: {lr: fast}", "lr: must be of type float, got 'fast'"),
        ("name: x\noptim: {lr: true}", "lr: must be of type float, got True"),
        ("name: x\noptim: {schedule: step}", "must be one of ['constant', 'cosine', 'linear']"),
        ("name: x\ntrain: {precision: fp16}", "must be one of ['fp32', 'bf16'], got 'fp16'"),
        ("name: x\nmemory: {layers: 1}", "layers: must be a list, got 1"),
        ("name: x\nmemory: {layers: [1.5]}", "layers: must be of type int, got 1.5"),
        ("name: x\nmemory: {layers: [1], qk_norm: 1}", "qk_norm: must be of type bool, got 1"),
        ("name: x\nmemory: {layers: [4]}", "memory.layers must be below model.layers = 4, got [4]"),
        ("name: x\nmodel: {hidden_size: 24}\nmemory: {layers: [1], key_dim: 7}", "must be even"),
        ("name: x\nmodel: {preset: huge}", "model.preset must be one of ['tiny'"),
        ("name: x\nmodel: {pretrained: smollm2}", "memory-layers learn MODEL DATA"),
        ("name: x\nmodel: {preset: smollm2}", "memory-layers learn MODEL DATA"),
        ("name: x\nmodel: {hidden_size: 20}", "must be divisible by 2 * heads = 8, got 20"),
        ("name: x\nmodel: {heads: 0}", "model.heads must be a whole number >= 1, got 0"),
        ("name: x\nmodel: {layers: -1}", "model.layers must be a whole number >= 1, got -1"),
        ("name: x\nmodel: {init_std: 0}", "model.init_std must be a finite number above 0"),
        ("name: x\ntrain: {seq_len: 300}", "train.seq_len must be at most 256, the longest seq"),
        ("name: x\ntrain: {seq_len: 4}", "train.seq_len must be a whole number >= 8, got 4"),
        (
            "name: x\ntrain: {keep_checkpoints: 0}",
            "train.keep_checkpoints must be a whole number >= 1, got 0",
        ),
        ("name: x\ntrain: {seed: -1}", "train.seed must be a whole number >= 0, got -1"),
        ("name: x\noptim: {lr: 0}", "optim.lr must be a finite number above 0, got 0.0"),
        ("name: x\noptim: {value_lr: .inf}", "optim.value_lr must be a finite number above 0"),
        ("name: x\noptim: {beta2: 1}", "optim.beta2 must lie in [0, 1), got 1.0"),
        ("name: x\noptim: {weight_decay: .nan}", "optim.weight_decay must be >= 0, got nan"),
        ("name: x\ndata: {facts: null}", "data.facts and data.text are both empty"),
        (
            "name: x\ndata: {facts: no/folder}",
            "data.facts must be a folder, 'no/folder' is none. hint",
        ),
        ("name: x\ndata: {tokenizer: no/folder}", "data.tokenizer must be a folder"),
        ("name: x\ndata: {shown_fraction: 1}", "data.shown_fraction must lie between 0 and 1"),
        ("name: x\ndata: {text_heldout: 1}", "data.text_heldout must lie in [0, 1), got 1.0"),
        ("name: x\ndata: {vocab_size: 100}", "data.vocab_size must be at least 300"),
        ("name: x\ndata: {text_documents: 5}", "data.text_documents has no effect without"),
        ("name: x\ndata: {text: [builtin], text_documents: 0}", "data.text_documents must be"),
        ("name: x\ndata: {exposures: [0, 0]}", "data.exposures must have a number above 0"),
        ("name: x\ndata: {exposures: [2, -1]}", "data.exposures must be whole numbers >= 0"),
        ("name: x\ntrain: {final_items: 0}", "train.final_items must be >= 1, got 0"),
        ("name: x\ndata: {max_subjects: 1}", "data.max_subjects must be at least 2, got 1"),
        (
            "name: x\ntrain: {steps: 1000000000}",
            "train.steps must be a whole number >= 1 and <= 99",
        ),
        (
            "name: x\ntrain: {batch_size: 9223372036854775808}",
            "train.batch_size must be a whole num",
        ),
        (
            "name: x\ntrain: {accumulate: 2147483648}",
            "train.accumulate must be a whole number >= 1 a",
        ),
        (
            "name: x\ntrain: {seed: 18446744073709551616}",
            "train.seed must be a whole number >= 0 an",
        ),
        (
            "name: x\nmemory: {layers: [1]}\noptim: {beta2: 0.8}",
            "optim.beta2 must be above the square of optim.beta1, 0.81, got 0.8: a row",
        ),
        (
            "name: x\noptim: {lr: 1e300}",
            "optim.lr must lie between 1.2e-38 and 3.4e+38, which numb",
        ),
        ("name: x\noptim: {lr: 1" + 400 * "0" + "}", "run.yaml:2: a number is too large"),
        ("name: x\noptim: {warmup_steps: 1000000000}", "optim.warmup_steps must be a whole number"),
        (
            "name: x\noptim: {value_lr: 0.5, value_weight_decay: 2}",
            "optim.value_lr * optim.value_weight_decay must be below 1 in every step, got 0.5 * 2",
        ),
        (
            "name: x\noptim: {lr: 0.25, value_weight_decay: 2}",
            "optim.value_lr * optim.value_weight_decay must be below 1 in every step, got 0.5 * 2",
        ),
        (
            "name: x\noptim: {value_lr: 0.1, value_weight_decay: 2, end_ratio: 5, "
            "value_schedule: linear}",
            "optim.value_lr * optim.value_weight_decay must be below 1 in every step, got 0.5 * 2",
        ),
        (
            "name: x\nmodel: {hidden_size: 1099511627776}",
            "model.hidden_size must be a whole number",
        ),
        ("name: x\nmodel: {layers: 2147483648}", "model.layers must be a whole number >= 1 and"),
        (
            "name: x\nmodel: {init_std: 2}",
            "model.init_std must be a finite number above 0, at most 1",
        ),
        ("name: x\nmemory: {layers: [1], sub_keys: 2147483648}", "sub_keys must be a whole number"),
        (
            "name: x\nmemory: {layers: [1], random_slots: 2147483648}",
            "random_slots must be a whole",
        ),
        (
            "name: x\nmoe: {routing: expert_choice, experts: 9999999}",
            "experts must be a whole number",
        ),
        ("name: x\nparallel: {timeout: 1e30}", "parallel.timeout must be seconds above 0, at most"),
        ("name: x\ndata: {vocab_size: 1099511627776}", "data.vocab_size must be at least 300"),
        ("name: x\ndata: {seed: -1}", "data.seed must be a whole number >= 0, got -1"),
        (
            "name: x\ndata: {exposures: [99999999999]}",
            "data.exposures must be whole numbers >= 0, at",
        ),
        ("name: x\ndata: {facts: ''}", "data.facts must be a path, got ''"),
        ('name: x\ndata: {text: ["a\\0b"]}', "run.yaml:2: a text has U+0000"),
        ("name: x\ndata: {cache_dir: ''}", "data.cache_dir must be a path, got ''. hint: leave it"),
        ("- name: x", "must hold `name:` and other fields, got list"),
        ("", "must hold `name:` and other fields, got an empty file"),
        ("name: [x", "is not valid YAML"),
        ("name: x\n name: y", "is not valid YAML"),
        ("name: x\a", "run.yaml:1: the file is not valid YAML (character U+0007"),
        (
            "name: x\n\ntrain: {steps: 5, steps: 6}",
            "run.yaml:3: 'steps' is already there, in line 3",
        ),
        ("name: x\ntrain: {}\nname: y", "run.yaml:3: 'name' is already there, in line 1"),
        (BOMB, "run.yaml:5: the file is not valid YAML (aliases repeat more than"),
        ("name: x\nmodel: &m {a: *m}", "run.yaml:2: the file is not valid YAML (alias *m stands"),
        ("name: x\nmodel: " + "[" * 9999, "run.yaml:2: the file is not valid YAML (it is nested"),
        ("name: 2024-13-45\ntrain: {steps: 1:30}", "steps: must be of type int, got '1:30'"),
        ("name: no\noptim: {train_keys: no}", "must be of type bool, got 'no'. hint: true or"),
        ("name: x\ntrain: {steps: 010}", "must be of type int, got '010'"),
        ("name: 7", "name: must be of type str, got 7. hint: put it in quotes"),
        ("name: x\noptim: {lr: 1" + "0" * 4999 + "}", "run.yaml:2: a number is too large"),
        ("name: x\noptim: {lr: 1.0e+999}", "run.yaml:2: a number is too large"),
        ('name: "\\ud800"', "run.yaml:1: a text has U+D800"),
        ('name: "\\0"', "run.yaml:1: a text has U+0000"),
        ('name: "\\UFFFFFFFF"', "run.yaml:1: the file is not valid YAML"),
        ("name: x\n\toptim: {}", "run.yaml:2: the file is not valid YAML"),
        ("name: x\n---\nname: y", "run.yaml:2: the file is not valid YAML"),
        ("name: !!python/name:os.system", "run.yaml:1: a value has the tag !!python/name:os"),
        ("name: x\ntrain: {steps: !!int five}", "run.yaml:2: a value has the tag !!int"),
        ("name: x\ntrain: {<<: 5}", "run.yaml:2: `<<` does not name a mapping"),
        ("name: x\ntrain: {? [a] : 5}", "run.yaml:2: a name is not a string"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, text)
    assert message in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "run.yaml"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "...", "../../x", "/x", "a/b", "a\\b", "a\0b", "a\nb", "x" * 101, "é" * 60,
     "con", "NUL.txt", "com1", "x ", " x", "x.", "a:b", "a?", "\ud800"],
)  # fmt: skip
def test_a_name_is_one_of_a_folder(name: str) -> None:
    with pytest.raises(UserError, match=r"run: name must be the name of a folder.*hint"):
        from_dict(RunConfig, {"name": name}, "run")


@pytest.mark.parametrize("name", ["x", "con_1", "été 2", "x.y-z", "x" * 100])
def test_other_names_are_taken(name: str) -> None:
    assert from_dict(RunConfig, {"name": name}, "run").name == name


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.yaml: cannot be read: No such file"):
        read_yaml(tmp_path / "no.yaml")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(UserError, match=r"x\.yaml:1: the text is not valid UTF-8"):
        read_yaml(tmp_path / "x.yaml")


def test_preset_is_changed_by_what_is_given() -> None:
    shape = ModelConfig(preset="tiny", hidden_size=32, mlp_size=48, init_std=0.1).to_preset()
    assert (shape.hidden_size, shape.mlp_size, shape.layers, shape.heads) == (32, 48, 4, 4)
    assert shape.init_std == 0.1


def test_values_learn_at_a_multiple_of_the_rate_unless_theirs_is_given() -> None:
    config = RunConfig(
        name="x", memory=MemoryConfig(layers=(1,), sub_keys=32), optim=OptimConfig(lr=2e-3)
    )
    rates = []
    for optim in (
        config.optim, replace(config.optim, value_state="row"), replace(config.optim, value_lr=3e-3)
    ):  # fmt: skip
        run = replace(config, optim=optim)
        group = make_optimizer(run, shape_of(run, vocab_size=300)).memory_group
        assert group is not None
        rates.append(group["lr"])
    assert rates == [4e-3, 1e-2, 3e-3]


def test_the_run_of_an_earlier_version_is_the_same_run(tmp_path: Path) -> None:
    """The type of tables and frozen keys were fields of its memory."""
    memory = MemoryConfig(layers=(0,))
    config = RunConfig(
        name="x", memory=memory, optim=OptimConfig(value_dtype="bfloat16", train_keys=False)
    )
    claim_folder(tmp_path, config, PreparedData(tmp_path, None, (), {}))
    (tmp_path / "model").mkdir()
    path = tmp_path / "config.json"
    values = json.loads(path.read_text("utf-8"))
    values["memory"] |= {name: values["optim"].pop(name) for name in ("value_dtype", "train_keys")}
    path.write_text(json.dumps(values), "utf-8")
    check_folder(tmp_path, config)
    for change in ({"value_dtype": "float32"}, {"train_keys": True}):
        other = replace(config, optim=replace(config.optim, **change))
        with pytest.raises(UserError, match=f"another configuration: optim.{next(iter(change))}"):
            check_folder(tmp_path, other)
    plain = replace(config, optim=OptimConfig())
    values["memory"] |= {"value_dtype": "model", "train_keys": True}
    path.write_text(json.dumps(values), "utf-8")
    check_folder(tmp_path, plain)
