"""Whose a folder of a run is: on which data it goes on, what may differ, and who is in it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from tiny_runs import metrics_of, tiny_run

from memory_layers.cli import main
from memory_layers.common.errors import UserError
from memory_layers.common.locks import alone_in
from memory_layers.config import MemoryConfig, MoeConfig
from memory_layers.data import prepare
from memory_layers.data.config import DataConfig
from memory_layers.parallel.world import World
from memory_layers.train.claim import check_folder, claim_folder
from memory_layers.train.config import RunConfig
from memory_layers.train.folders import list_checkpoints
from memory_layers.train.loop import train


def longer(config: RunConfig) -> RunConfig:
    return replace(config, train=replace(config.train, steps=config.train.steps + 2))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on facts and text, with a tokenizer of its own, in a folder that no test changes."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "text").mkdir()
    (folder / "text" / "a.txt").write_text("Place 3 has X11 and more.\n")
    config = tiny_run(folder, data={"text": ["text"]})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(relative(config), Path("out"), show=False)
    return folder


def relative(config: RunConfig, **changes: object) -> RunConfig:
    data = {"facts": "facts", "cache_dir": "cache", "text": ("text",), **changes}
    return replace(config, data=replace(config.data, **data))


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The configuration of a copy of it, in the working directory."""
    folder = shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(folder)
    return relative(tiny_run(folder))


def edit(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda: edit("facts/facts.jsonl", "X37", "X38"), "data.facts: facts.jsonl has other con"),
        (lambda: edit("facts/templates.yaml", "has", "is"), "data.facts: templates.yaml has other"),
        (lambda: edit("text/a.txt", "more", "less"), r"data.text\[0\]: a.txt has other content"),
        (lambda: Path("text/b.txt").write_text("More."), r"data.text\[0\]: b.txt is new"),
    ],
)
def test_a_run_on_other_data_is_refused_with_what_changed(run: RunConfig, change, says) -> None:
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    change()
    for config in (run, longer(run)):
        with pytest.raises(UserError, match=f"out holds a run on other data: .*{says}.*hint: bri"):
            train(config, Path("out"), show=False)
    assert before == {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}


def test_the_same_data_elsewhere_or_made_again_is_the_same(run: RunConfig) -> None:
    shutil.rmtree("cache")
    Path("facts").rename("moved")
    Path("text/.hidden").write_text("of an editor")
    Path("text").rename("prose")
    Path("prose/a.txt").rename("prose/c.txt")
    moved = relative(run, facts="moved", text=("prose",), cache_dir="elsewhere")
    trained = train(longer(moved), Path("out"), show=False)
    assert trained.history[-1]["step"] == run.train.steps + 2
    assert json.loads(Path("out/config.json").read_text())["data"]["cache_dir"] == "elsewhere"


def test_other_versions_of_packages_and_of_prepared_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("airportsdata")
    data = DataConfig(relations=("airport_iata",), max_subjects=20, cache_dir=str(tmp_path / "c"))
    config = replace(tiny_run(tmp_path), data=data)
    out = tmp_path / "out"
    claim_folder(out, config, prepare.prepare_data(data))
    (out / "model").mkdir()
    versions = prepare.metadata.version
    monkeypatch.setattr(prepare.metadata, "version", lambda name: f"{versions(name)}.1")
    monkeypatch.setattr(prepare, "LAYOUT_VERSION", 99)
    # They made the same.
    assert claim_folder(out, config, prepare.prepare_data(data)) == []
    monkeypatch.setattr(prepare.metadata, "version", lambda name: f"{versions(name)}.2")
    monkeypatch.setattr(prepare, "LAYOUT_VERSION", 100)
    other = prepare.prepare_data(data)
    other = replace(other, content={**other.content, "tokens.bin": "12345678"})
    said = r"version of airportsdata was '(.*).1', is '\1.2'; .*format of .* was '99', is '100'\."
    with pytest.raises(UserError, match=said):
        claim_folder(out, config, other)
    # As with another version of the package that trains tokenizers.
    other = replace(other, sources=json.loads((out / "data.json").read_text())["sources"])
    with pytest.raises(UserError, match=r"other data: tokens\.bin has other content\. hint"):
        claim_folder(out, config, other)


@pytest.mark.parametrize("same", [True, False])
def test_a_run_from_before_data_were_recorded(run: RunConfig, same: bool) -> None:
    Path("out/data.json").unlink()
    if not same:
        edit("facts/facts.jsonl", "X", "YZ")
    data = prepare.prepare_data(run.data)
    with (
        nullcontext()
        if same
        else pytest.raises(
            UserError, match=r"the tokenizer of .*step-00000004 is not that of cache.*hint"
        )
    ):
        claim_folder(Path("out"), run, data)
    assert Path("out/data.json").exists() == same


def test_data_that_are_there_are_read_through_once(
    run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, checked = prepare.check_files, []
    monkeypatch.setattr(prepare, "check_files", lambda at: checked.append(at) or check(at))
    train(run, Path("out"), show=False)
    assert len(checked) == 1


def test_ranks_with_different_data_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Played on one process: what the second rank has read."""

    def all_gather(_: World, value: object) -> list:
        assert isinstance(value, tuple)
        content, sources = value
        return [
            value,
            (content, {**sources, "version of python": "0"}),
            ({**content, "tokens.bin": ""}, {**sources, "data.facts: facts.jsonl": "0" * 64}),
        ]

    monkeypatch.setattr(World, "all_gather", all_gather)
    with pytest.raises(
        UserError, match=r"ranks have different data: data\.facts: facts\.jsonl has other con.*hint"
    ):
        train(tiny_run(tmp_path), tmp_path / "out", show=False)
    assert not (tmp_path / "out").exists()


def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(tmp_path).data
    read = prepare.load_facts

    def changing(folder: Path) -> object:
        facts = read(folder)
        (folder / "facts.jsonl").write_text("")
        return facts

    monkeypatch.setattr(prepare, "load_facts", changing)
    with pytest.raises(UserError, match="changed while it was read"):
        prepare.prepare_data(config)
    assert not list((tmp_path / "cache").iterdir())


def test_a_checkpoint_of_a_version_that_counts_more_is_refused(run: RunConfig) -> None:
    (folder,) = list_checkpoints(Path("out"))
    (folder / "checksums.json").unlink()
    state = torch.load(folder / "state.pt", weights_only=True)
    torch.save({**state, "format": 2, "counters": {"sheep": 3}}, folder / "state.pt")
    with pytest.raises(UserError, match=r"step-00000004 counts sheep too. hint"):
        train(run, Path("out"), show=False)


@pytest.mark.parametrize("name", ["config.json", "data.json", "metrics.jsonl"])
def test_a_pipe_in_a_run_is_not_waited_for(run: RunConfig, name: str) -> None:
    (Path("out") / name).unlink()
    os.mkfifo(Path("out") / name)
    with pytest.raises(UserError, match=rf"{name} is a pipe or device.*hint"):
        train(run, Path("out"), show=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokens", "9"), ("tokens", None), ("tokens", -1), ("seconds", float("nan")),
        ("losses", [1.0, None]), ("losses", 2.0), ("lines", True),
        ("reads", torch.zeros(3, dtype=torch.int64)), ("reads", torch.zeros(64)), ("reads", 5),
    ],
)  # fmt: skip
def test_counts_of_another_kind_are_refused(run: RunConfig, name: str, value: object) -> None:
    (folder,) = list_checkpoints(Path("out"))
    (folder / "checksums.json").unlink()
    state = torch.load(folder / "state.pt", weights_only=True)
    state["counters"][name] = value
    torch.save({**state, "format": 2}, folder / "state.pt")
    with pytest.raises(
        OSError, match=rf"state\.pt cannot be read: it has no count of {name}.*hint"
    ):
        train(run, Path("out"), show=False)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_checkpoint_damaged_beside_lost_records_can_be_given_up(
    run: RunConfig, name: str
) -> None:
    Path("out/data.json").unlink()
    (folder,) = list_checkpoints(Path("out"))
    (folder / name).write_bytes(b"")
    with pytest.raises(
        OSError, match=rf"{name} .*hint: the checkpoint is damaged, delete {folder}"
    ):
        train(run, Path("out"), show=False)


def test_settings_that_decide_no_content_may_change(run: RunConfig) -> None:
    free = replace(run.train, log_every=2, checkpoint_every=3, keep_checkpoints=5, device="cpu")
    train(replace(run, name="renamed", train=free), Path("out"), show=False)
    for name, value in {"seed": 1, "batch_size": 4, "eval_items": 3}.items():
        other = replace(run, train=replace(run.train, **{name: value}))
        with pytest.raises(UserError, match=f"another configuration: train.{name} was"):
            train(other, Path("out"), show=False)


def test_a_run_that_saved_nothing_leaves_its_folder_to_another(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = tiny_run(tmp_path)
    out = tmp_path / "out"
    wrong = replace(config, optim=replace(config.optim, lr=1e30))
    with pytest.raises(FloatingPointError, match="No checkpoint was saved before"):
        train(wrong, out, show=False)
    train(config, out)
    assert "a run of other settings there had saved nothing" in capsys.readouterr().err
    assert [line["step"] for line in metrics_of(out) if "loss" in line] == [1, 2, 3, 4]


def test_a_run_from_before_rows_were_moved_ahead(tmp_path: Path) -> None:
    memory = MemoryConfig(layers=(1,))
    for config in (RunConfig(name="x"), RunConfig(name="x", memory=memory)):
        values = asdict(config)
        values["optim"] |= {"value_state": "full", "value_lr": 5 * config.optim.lr}
        (tmp_path / "config.json").write_text(json.dumps(values))
        (tmp_path / "model").mkdir(exist_ok=True)
        if config.memory is None:
            check_folder(tmp_path, config)
            continue
        with pytest.raises(UserError, match=r"optim\.value_state was 'full', is 'ahead'"):
            check_folder(tmp_path, config)
        as_before = replace(config.optim, value_state="full")
        check_folder(tmp_path, replace(config, optim=as_before))


def test_a_mixture_from_before_its_factors_could_be_normalized(tmp_path: Path) -> None:
    config = RunConfig(name="x", moe=MoeConfig(routing="token_choice", experts=8))
    values = asdict(config)
    del values["moe"]["normalize_top_k"]
    values["optim"]["value_lr"] = config.optim.peak_value_lr
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "model").mkdir()
    check_folder(tmp_path, config)
    other = replace(config, moe=replace(config.moe, normalize_top_k=True))
    with pytest.raises(UserError, match=r"moe.normalize_top_k was False, is True"):
        check_folder(tmp_path, other)


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b'{"name": "x", "tra', b"[1]", b"\xff", None])
@pytest.mark.parametrize("name", ["config.json", "data.json"])
def test_records_that_were_lost_are_written_again(
    run: RunConfig, name: str, content: bytes | None, capsys: pytest.CaptureFixture
) -> None:
    path = Path("out", name)
    good = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    data = prepare.prepare_data(run.data)
    if name == "config.json":
        with pytest.raises(UserError, match=r"on other data: .*; tokens\.bin has other content"):
            claim_folder(Path("out"), run, replace(data, content={}))
    (told,) = claim_folder(Path("out"), run, data)
    assert f"{name} cannot be read or is not there" in told
    assert path.read_bytes() == good
    assert claim_folder(Path("out"), run, data) == []


@pytest.mark.parametrize(
    ("values", "says"),
    [({"train": 3}, "train was 3"), ({"optim": []}, r"optim was \[\]"), ({"new": 1}, "new was 1")],
)
def test_settings_of_another_kind_are_named(run: RunConfig, values: dict, says: str) -> None:
    old = json.loads(Path("out/config.json").read_text())
    Path("out/config.json").write_text(json.dumps({**old, **values}))
    with pytest.raises(UserError, match=f"another configuration: {says}"):
        train(run, Path("out"), show=False)


HOLD = """
import sys, time
from pathlib import Path
from memory_layers.common.locks import alone_in
with alone_in(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
def test_one_living_process_works_in_a_folder(tmp_path: Path) -> None:
    config, out = tiny_run(tmp_path), tmp_path / "out"
    command = [sys.executable, "-c", HOLD, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "in\n"
        with pytest.raises(UserError, match=rf"another process works.* process {holder.pid} on"):
            train(config, out, show=False)
        holder.send_signal(signal.SIGKILL)
    assert (out / ".lock").is_file()
    train(config, out, show=False)
    assert list_checkpoints(out)
    assert not (out / ".lock").exists()


@pytest.mark.skipif(os.name == "nt", reason="fcntl is POSIX")
def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.warns(UserWarning, match="has no locks .No locks available.*hint"),
        alone_in(tmp_path / "out"),
    ):
        pass


def test_facts_that_changed_are_not_those_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train(tiny_run(tmp_path, train={"steps": 1}), tmp_path / "out", show=False)
    ask = ["eval", str(tmp_path / "out"), "--answered", "0"]
    assert main(ask) == 0
    facts = tmp_path / "facts" / "facts.jsonl"
    lines = facts.read_text("utf-8").splitlines()
    facts.write_text("\n".join(lines[1:]), "utf-8")
    capsys.readouterr()
    assert main(ask) == 2
    assert "data.facts: facts.jsonl has other content" in capsys.readouterr().err
    shutil.copytree(tmp_path / "facts", tmp_path / "copy")
    assert main([*ask, "--facts", str(tmp_path / "copy")]) == 0
