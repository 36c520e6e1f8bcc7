"""`memory-layers patch`: what people see, and what lies on the disk afterwards, to the bit."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from example_models import write_example
from safetensors.torch import load_file
from tiny_models import tiny_memory
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from memory_layers.cli import main
from memory_layers.common.locks import alone_in
from memory_layers.models import (
    Fact,
    Patch,
    add_memory,
    apply_patch,
    patch_of,
    record_teaching,
    revert_patch,
)

FACTS = [
    Fact("Lake Como is in", "Italy", torch.tensor([1, 2])),
    Fact("Lake Inari is in", "Finland", torch.tensor([2, 7])),
]
DATA = [{"name": "lakes.jsonl", "sha256": "c0ffee", "rows": 2, "facts": 2}]


def base() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained("base")


def write_patch(name: str, slots: list[int], **history: object) -> Patch:
    torch.manual_seed(0)
    model = add_memory(base(), tiny_memory(placement="beside", value_init_std=0))
    torch.manual_seed(len(name))
    with torch.no_grad():
        model.model.memory_table.weight[slots] = torch.randn(len(slots), 16)
    patch = record_teaching(model, **history)
    patch.save(name)
    return patch


@pytest.fixture
def patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Patch]:
    """A base model, and patches that were taught on it: lakes and rivers both wrote slot 7."""
    monkeypatch.chdir(tmp_path)
    write_example(tmp_path)
    return {
        "lakes": write_patch(
            "lakes", [1, 2, 7], author="Ada", data=DATA, settings={"lr": 0.1}, facts=FACTS
        ),
        "rivers": write_patch("rivers", [7, 9], author="Bo"),
        "hills": write_patch("hills", [11, 30]),
    }


def run(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    capsys.readouterr()
    assert main(["patch", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    capsys.readouterr()
    assert main(["patch", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def table_in(folder: str) -> Tensor:
    return load_file(Path(folder) / "model.safetensors")["model.memory_table.weight"]


def expected(patches: Sequence[Patch], rule: str = "refuse") -> Tensor:
    model = base()
    for patch in patches:
        apply_patch(model, patch, rule)
    return model.model.memory_table.weight.detach()


def test_show(patches: dict[str, Patch], capsys: pytest.CaptureFixture) -> None:
    shown = run(capsys, "show", "lakes", "rivers", "hills", "--facts")
    for part in ("by Ada", "3 of 36 rows", "lakes.jsonl", "sha256 c0ffee", "lr 0.1", "UTC"):
        assert part in shown
    assert "1: Lake Inari is in Finland  (2 rows)" in shown
    (one,), (two,) = patches["lakes"].ids, patches["rivers"].ids
    assert f"overlap: {one} and {two} both wrote 1 row" in shown
    assert "Lake Como" not in run(capsys, "show", "lakes")
    found = json.loads(run(capsys, "show", "lakes", "rivers", "--json"))
    assert found["overlaps"] == [{"first": one, "second": two, "rows": [7]}]
    (teaching,) = found["patches"][0]["teachings"]
    assert teaching["slots"] == [1, 2, 7]
    assert teaching["data"] == DATA
    assert teaching["facts"][1] == {
        "prompt": "Lake Inari is in", "answer": "Finland", "rows": [2, 7],
    }  # fmt: skip


def test_apply_and_revert_on_models(
    patches: dict[str, Patch], capsys: pytest.CaptureFixture
) -> None:
    lakes, rivers, hills = patches.values()
    assert run(capsys, "apply", "base", "lakes", "hills", "--out", "both") == "model: both\n"
    run(capsys, "apply", "base", "hills", "--out", "one")
    run(capsys, "apply", "one", "lakes", "--out", "other")
    for folder in ("both", "other"):
        assert torch.equal(table_in(folder), expected([lakes, hills]))
    main(["generate", "both", "The code of town 3 is", "--max-tokens", "2"])
    assert "by Ada" in run(capsys, "show", "both")
    # In place, and by the name of a model that carries it.
    run(capsys, "revert", "both", "lakes", "--out", "both")
    assert torch.equal(table_in("both"), expected([hills]))
    run(capsys, "revert", "other", *hills.ids, "--out", "other")
    assert torch.equal(table_in("other"), expected([lakes]))
    run(capsys, "revert", "other", "other", "--out", "other")
    assert not table_in("other").any()
    plain = load_file("base/model.safetensors")
    other = load_file("other/model.safetensors")
    left = {name.replace(".mlp.mlp.", ".mlp."): tensor for name, tensor in other.items()}
    assert all(torch.equal(left[name], tensor) for name, tensor in plain.items())
    error = refused(capsys, "apply", "one", "hills", "--out", "x")
    assert "carries the patch already" in error
    run(capsys, "apply", "base", "lakes", "rivers", "--rule", "sum", "--out", "summed")
    assert torch.equal(table_in("summed"), expected([lakes, rivers], "sum"))
    run(capsys, "revert", "summed", "lakes", "--out", "summed")
    assert torch.equal(table_in("summed"), expected([rivers]))


def test_operations_on_patches(patches: dict[str, Patch], capsys: pytest.CaptureFixture) -> None:
    lakes, rivers, hills = patches.values()
    run(capsys, "merge", "lakes", "hills", "--out", "merged")
    run(capsys, "apply", "hills", "lakes", "--out", "applied")
    for name in ("merged", "applied"):
        assert torch.equal(expected([Patch.load(name)]), expected([lakes, hills]))
    shown = run(capsys, "merge", "merged", "rivers", "--rule", "last", "--out", "merged")
    assert "both wrote 1 row: settled by last" in shown
    assert torch.equal(expected([Patch.load("merged")]), expected([lakes, hills, rivers], "last"))
    run(capsys, "revert", "merged", "hills", *lakes.ids, "--out", "left")
    assert torch.equal(expected([Patch.load("left")]), expected([rivers]))


@pytest.mark.parametrize("which", [("--facts", "como"), ("--numbers", "0")])
@pytest.mark.parametrize("place", ["lakes", "model"])
def test_revert_of_a_fact(
    which: tuple[str, str], place: str, patches: dict[str, Patch], capsys: pytest.CaptureFixture
) -> None:
    run(capsys, "apply", "base", "lakes", "hills", "--out", "model")
    shown = run(capsys, "revert", place, "lakes", *which, "--out", "fewer")
    assert "reverted: 1 row" in shown
    assert "Lake Como is in Italy" in shown
    assert "kept: 1 row" in shown
    model = apply_patch(base(), patches["lakes"])
    revert_patch(model, patches["lakes"], "Como")
    if place == "model":
        apply_patch(model, patches["hills"])
        assert torch.equal(table_in("fewer"), model.model.memory_table.weight)
    else:
        assert torch.equal(expected([Patch.load("fewer")]), model.model.memory_table.weight)
    assert "Como" not in run(capsys, "show", "fewer", "--facts")
    assert "1 fact reverted" in run(capsys, "show", "fewer")
    assert "no prompt or answer" in refused(
        capsys, "revert", "fewer", "lakes", "--facts", "como", "--out", "x"
    )


def test_a_patch_is_not_written_where_a_teaching_goes_on(
    patches: dict[str, Patch], capsys: pytest.CaptureFixture
) -> None:
    with alone_in(Path("out")):
        said = refused(capsys, "merge", "lakes", "hills", "--out", "out")
        assert "out: another process works there" in said
        assert not Path("out", "memory.json").exists()
    run(capsys, "merge", "lakes", "hills", "--out", "out")


def test_mistakes(patches: dict[str, Patch], capsys: pytest.CaptureFixture) -> None:
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    out = ("--out", "out")
    assert "both wrote 1 row: 7" in refused(capsys, "merge", "lakes", "rivers", *out)
    assert "both wrote 1 row: 7" in refused(capsys, "apply", "base", "lakes", "rivers", *out)
    for arguments in (
        ["show"],
        ["merge", *out],
        ["apply", "base", *out],
        ["revert", "lakes", *out],
    ):
        assert "PATCH: at least one is needed" in refused(capsys, *arguments)
    assert "nowhere: is no patch" in refused(capsys, "show", "nowhere")
    assert "base: model carries no patch" in refused(capsys, "show", "base")
    assert "no memory layers" in refused(capsys, "revert", "base", "lakes", *out)
    assert "there is no teaching 'abc'" in refused(capsys, "revert", "lakes", "abc", *out)
    assert "--out base exists and is not a patch" in refused(
        capsys, "merge", "lakes", "hills", "--out", "base"
    )
    assert "lakes exists and is not a model folder" in refused(
        capsys, "apply", "base", "hills", "--out", "lakes"
    )
    assert "--facts and --numbers" in refused(
        capsys, "revert", "lakes", "lakes", "--facts", "x", "--numbers", "1", *out
    )
    run(capsys, "apply", "base", "lakes", "hills", "--out", "model")
    assert "indices of facts are those of one teaching" in refused(
        capsys, "revert", "model", "lakes", "hills", "--numbers", "0", *out
    )
    changed = base()
    with torch.no_grad():
        changed.model.norm.weight.mul_(2)
    changed.save_pretrained("changed")
    Path("changed/tokenizer.json").write_bytes(Path("base/tokenizer.json").read_bytes())
    Path("changed/tokenizer_config.json").write_bytes(
        Path("base/tokenizer_config.json").read_bytes()
    )
    assert "another base" in refused(capsys, "apply", "changed", "lakes", *out)
    torch.manual_seed(9)
    other = add_memory(base(), tiny_memory(placement="beside", value_init_std=0))
    patch_of(other).save("others")
    assert "another skeleton" in refused(capsys, "merge", "lakes", "others", *out)
    assert "they do not go together" in run(capsys, "show", "lakes", "others")
    weights = Path("hills/memory.safetensors")
    weights.write_bytes(weights.read_bytes()[:200])
    assert "damaged or cut off" in refused(capsys, "apply", "base", "hills", *out)
    weights.write_bytes(before[weights])
    assert not Path("out").exists()
    assert all(path.read_bytes() == content for path, content in before.items())


def test_help_shows_every_operation(capsys: pytest.CaptureFixture) -> None:
    for arguments in ([], ["show"], ["apply"], ["revert"], ["merge"]):
        with pytest.raises(SystemExit) as end:
            main(["patch", *arguments, "--help"])
        assert end.value.code == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert f"Example: memory-layers patch {' '.join(arguments)}" in shown
        assert "operation" not in shown


def test_what_would_steer_a_terminal_is_shown_as_text(
    patches: dict[str, Patch], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del patches
    steering = "\x1b]0;title\x07\x9b31m\u202eevil\rover"
    write_patch("steers", [3], author=f"Ada{steering} Müller")
    assert main(["patch", "show", "steers"]) == 0
    piped = capsys.readouterr().out
    with monkeypatch.context() as patched:
        patched.setattr(type(sys.stdout), "isatty", lambda _: True)
        assert main(["patch", "show", "steers"]) == 0
        shown = capsys.readouterr().out
    assert "\x1b" in piped
    assert not set(steering) & set(shown) - set("0;title31mevilover]")
    assert r"Ada\u001b]0;title\u0007\u009b31m\u202eevil\u000dover Müller" in shown
    assert main(["patch", "show", f"no{steering}"]) == 2
    assert r"no\u001b]0;title" in capsys.readouterr().err
