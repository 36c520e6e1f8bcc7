"""Task files of users: run as the harness runs its own, and no code of theirs unasked."""

import json
import os
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2.exceptions import SecurityError
from tests_support import write_untrained
from transformers import AutoModelForCausalLM, AutoTokenizer

from memory_layers.cli import main
from memory_layers.common.errors import UserError
from memory_layers.evaluate.harness import TaskOptions, load_manager, run_tasks
from memory_layers.evaluate.plain_values import plain_values

TASK = {
    "task": "mine",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data/*.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "Q: {{question | upper}}\nA:",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
CODE = "import pathlib; pathlib.Path({!r}).touch()"
# Where something is planted, and what of it is named.
PLANTED = {
    "a function": ("process_results: !function evil.run", "!function evil.run"),
    "a function of Python": ("process_docs: !function os.system", "!function os.system"),
    "a function in a list": (
        "metric_list: [{metric: !function evil.run, aggregation: mean}]", "!function"
    ),
    "an object": ("description: !!python/object/apply:os.system ['touch x']", "python/object"),
    "a class": ("class: !function evil.Task", "!function evil.Task"),
    "a class by name": ("class: evil.Task", "`class:`"),
    "a prompt file": ("use_prompt: 'other.yaml:x'", "`use_prompt:`"),
    "a metric of a folder": ("metric_list: [{metric: ./evil.py, aggregation: mean}]", "./evil.py"),
    "a metric of the hub": (
        "metric_list: [{metric: exact_match, hf_evaluate: true}]", "exact_match"
    ),
    "a way to generate": (
        "generation_kwargs: {custom_generate: ./evil, trust_remote_code: true}", "custom_generate"
    ),
    "a script": ("dataset_path: ./evil.py", "./evil.py"),
    "pickles": ("dataset_path: pandas", "pandas"),
    "a data base": ("dataset_path: sql", "dataset_kwargs"),
    "a file elsewhere": ("dataset_kwargs: {data_files: ../private.jsonl}", "lies outside"),
    "a file by its path": ("dataset_kwargs: {data_files: /etc/hostname}", "lies outside"),
    "a pattern elsewhere": ("dataset_kwargs: {data_files: '../*.jsonl'}", "lies outside"),
    "a pattern for folders in folders": ("dataset_kwargs: {data_files: 'deep/**'}", "lies outside"),
    "examples that are code": ("fewshot_config: {samples: os.system}", "must be a list"),
    "a link": ("dataset_kwargs: {data_files: link.jsonl}", "lies outside"),
    "an address": ("dataset_kwargs: {data_files: 'http://localhost/x'}", "http://localhost/x"),
    "an archive": ("dataset_kwargs: {data_files: 'zip://x::/etc/hostname'}", "zip://"),
    "a cache": ("dataset_kwargs: {cache_dir: cache}", "cache_dir"),
    "an include elsewhere": ("include: ../outer.yaml", "lies outside"),
    "an include by its path": ("include: /etc/hostname", "lies outside"),
    "an include of code": ("include: coded.inc", "!function evil.run"),
    "examples by code": ("fewshot_config: {process_docs: x}", "process_docs"),
}  # fmt: skip


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write_untrained(tmp_path_factory.mktemp("task_files") / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    return model, AutoTokenizer.from_pretrained(folder), load_manager()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tasks with code beside it, and what it must not reach around it."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "tasks"
    (folder / "data").mkdir(parents=True)
    rows = [{"question": f"q {n}", "answer": str(n)} for n in range(3)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "data" / "test.jsonl").write_text(text)
    (tmp_path / "private.jsonl").write_text(text)
    (tmp_path / "outer.yaml").write_text("description: x")
    (folder / "link.jsonl").symlink_to(tmp_path / "private.jsonl")
    (folder / "deep" / "deeper").mkdir(parents=True)
    (folder / "deep" / "deeper" / "link.jsonl").symlink_to(tmp_path / "private.jsonl")
    (folder / "coded.inc").write_text("process_results: !function evil.run")
    (folder / "mine.yaml").write_text(yaml.safe_dump(TASK))
    code = CODE.format(str(tmp_path / "ran"))
    code += "\ndef run(doc, results): return {'exact_match': 1.0}\nclass Task: pass\n"
    (folder / "evil.py").write_text(code)
    return folder


def run(loaded: Any, *tasks: str | Path, trusted: bool = False, **options: Any) -> dict[str, Any]:
    model, tokenizer, manager = loaded
    names = [str(task) for task in tasks]
    options = TaskOptions(**options)
    return run_tasks(model, tokenizer, names, options, manager=manager, trust_remote_code=trusted)


def refused(loaded: Any, *tasks: str | Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        run(loaded, *tasks, **options)
    return str(error.value)


def with_line(folder: Path, line: str) -> Path:
    """Write a task with other fields, and return its file."""
    own = line.split(":")[0]
    kept = {name: value for name, value in TASK.items() if name != own}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(kept) + line + "\n")
    return path


def test_a_file_and_a_folder(
    loaded: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (folder / "more").mkdir()
    choice = {
        **TASK, "task": "chosen", "output_type": "multiple_choice", "doc_to_target": "answer",
        "doc_to_choice": ["0", "1", "2"], "metric_list": [{"metric": "acc", "aggregation": "mean"}],
        "dataset_kwargs": {"data_files": {"test": "../data/test.jsonl"}},
    }  # fmt: skip
    del choice["generation_kwargs"]
    (folder / "more" / "chosen.yaml").write_text(yaml.safe_dump(choice))
    both = {"group": "both", "task": ["mine", "chosen"]}
    both["aggregate_metric_list"] = [{"metric": "acc"}]
    (folder / "both.yaml").write_text(yaml.safe_dump(both))
    before = dict(loaded[2].task_index)
    assert [*run(loaded, folder / "mine.yaml")["results"]] == ["mine"]
    whole = run(loaded, folder, limit=2)
    assert {"both", "mine", "chosen"} == whole["results"].keys() | whole["groups"].keys()
    assert whole["n-samples"]["mine"] == {"original": 3, "effective": 2}
    assert loaded[2].task_index == before
    loaded[0].save_pretrained(tmp_path / "model")
    loaded[1].save_pretrained(tmp_path / "model")
    monkeypatch.setattr("memory_layers.evaluate.harness.load_manager", lambda: loaded[2])
    assert main(["eval", str(tmp_path / "model"), "--tasks", str(folder / "mine.yaml")]) == 0
    assert "| mine |" in capsys.readouterr().out


@pytest.mark.parametrize("name", PLANTED)
def test_nothing_planted_runs_or_reaches_out(name: str, loaded: Any, folder: Path) -> None:
    line, named = PLANTED[name]
    says = refused(loaded, with_line(folder, line))
    assert named in says
    assert "mine.yaml" in says or "coded.inc" in says or "outer.yaml" in says or "/etc" in says
    assert not (folder.parent / "ran").exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ question['__cl' ~ 'ass__']['__mro__'] }}",
        "{{ question | attr('__class__') | attr('__mro__') }}",
        "{{ cycler.__init__.__globals__.os.popen('touch x').read() }}",
        "{{ self.__init__.__globals__ }}",
    ],
)
def test_templates_reach_no_code(template: str, loaded: Any, folder: Path) -> None:
    path = with_line(folder, f"doc_to_text: {json.dumps(template)}")
    assert "the harness cannot run it" in refused(loaded, path)


@pytest.mark.parametrize("nested", [False, True])
def test_pictures_open_and_write_no_files(nested: bool, loaded: Any, folder: Path) -> None:
    from datasets import Dataset, Features, Image, Value

    # Written as it is, its size is asked for. It is never read.
    picture = {"path": str(folder.parent / "private.jsonl"), "bytes": None}
    kind = [{"inner": Image()}] if nested else Image()
    features = Features(question=Value("string"), answer=Value("string"), shown=kind)
    shown = [{"inner": picture}] if nested else picture
    rows = [{"question": "q", "answer": "a", "shown": shown}]
    Dataset.from_list(rows, features).to_parquet(folder / "shown.parquet")
    path = with_line(folder, "dataset_kwargs: {data_files: {test: shown.parquet}}")
    path.write_text(path.read_text().replace("dataset_path: json", "dataset_path: parquet"))
    assert "'shown' holds" in refused(loaded, path)


def test_templates_use_plain_values_alone() -> None:
    from lm_eval import utils

    class Picture:
        def save(self) -> str:
            raise AssertionError

    with plain_values():
        template = "{{ day.year }} {{ rows[0].a | upper }} {% for r in rows %}{{ loop.index }}"
        values = {"day": date(2020, 1, 1), "rows": [{"a": "b"}]}
        assert utils.apply_template(template + "{% endfor %}", values) == "2020 B 1"
        with pytest.raises(SecurityError):
            utils.apply_template("{{ shown.save() }}", {"shown": Picture()})


@pytest.mark.parametrize(
    "group",
    [
        "task: [{task: niah_single_1, metadata: {tokenizer: ./evil}}]",
        "task: [{task: longcxt, metadata: {tokenizer: ./evil}}]",
        "task: [{group: more, task: [{task: niah_single_1, metadata: {tokenizer: ./evil}}]}]",
        "task: [piqa]\ndataset_path: json\ndataset_kwargs: {data_files: data/test.jsonl}",
        "task: [inner]\ndataset_path: json\ndataset_kwargs: {data_files: data/test.jsonl}",
    ],
)
def test_functions_of_the_harness_get_nothing_of_a_file(
    group: str, loaded: Any, folder: Path
) -> None:
    (folder / "group.yaml").write_text(f"group: mine_too\n{group}\n")
    (folder / "inner.yaml").write_text("group: inner\ntask: [piqa]\n")
    assert "of another task is changed" in refused(loaded, folder)


def test_a_group_changes_tasks_of_its_own_folder(loaded: Any, folder: Path) -> None:
    changed = "[{task: mine, doc_to_text: 'x'}, {group: in, task: [mine]}]"
    (folder / "group.yaml").write_text(f"group: mine_too\nmetadata: {{a: 1}}\ntask: {changed}\n")
    assert "mine" in run(loaded, folder)["results"]


def test_code_runs_where_the_file_is_trusted(loaded: Any, folder: Path) -> None:
    path = with_line(folder, "process_results: !function evil.run")
    found = run(loaded, path, trusted=True)
    assert found["results"]["mine"]["exact_match,none"] == 1.0
    assert (folder.parent / "ran").exists()


def test_a_group_does_not_make_programs_harmless(loaded: Any, folder: Path) -> None:
    path = folder / "group.yaml"
    inner = {"task": "humaneval_pass1", "unsafe_code": False}
    path.write_text(yaml.safe_dump({"group": "mine_too", "task": [inner]}))
    assert "`unsafe_code:` of another task is changed" in refused(loaded, path)
    assert "--run-code True allows it" in refused(loaded, path, trusted=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "mine.yaml"), ("[]", "mine.yaml"), ("task: {", "not valid YAML"),
            ("task: 3", "a name"),
        ("dataset_path: json", "must hold `task:` or `group:`"), ("task: [a]", "with a name"),
        ("task: x\ninclude: 3", "must name a file"), ("task: x\ninclude: mine.yaml", "itself"),
        ("task: x\ninclude: no.yaml", "no.yaml: cannot be read"), ("task: piqa", "rename yours"),
        ("task: x\ndataset_path: 3", "must be a name"), ("task: x\nnosuch: 3", "`nosuch:`"),
        ("task: x\ndataset_kwargs: 3", "must be a mapping"), ("task: x", "cannot run it"),
        ("task: x\nmetric_list: 3", "`metric_list:`"), ("task: x\noutput_type: y", "'y'"),
        ("task: x\ndataset_path: json", "`data_files:`"), ("group: x\ntask: [nosuch]", "'nosuch'"),
        ("task: x\ndataset_path: json\ndataset_kwargs: {data_files: a.jsonl}", "no such data file"),
        ("task: ../../x\ndataset_path: csv\ndataset_kwargs: {data_files: mine.yaml}", "mine.yaml"),
        ("task: x\nmetric_list: [{metric: exact_match, aggregation: y}]", "cannot run it"),
        ("\0", "mine.yaml"), ("task: &a [*a]", "mine.yaml"),
        ("group: x\ntask: [x]", "is in itself"),
        ("task: x\ndataset_path: json\ndataset_kwargs: {data_files: data}", "no such data file"),
    ],
)  # fmt: skip
def test_malformed_files_are_named(text: str, says: str, loaded: Any, folder: Path) -> None:
    path = folder / "mine.yaml"
    path.write_text(text)
    assert says in refused(loaded, path)


def test_what_is_no_task_file(loaded: Any, folder: Path) -> None:
    assert "there is no task file" in refused(loaded, folder / "data")
    assert "nosuch.yaml: cannot be read" in refused(loaded, folder / "nosuch.yaml")
    os.mkfifo(folder / "pipe.yaml")
    assert "pipe.yaml is no file" in refused(loaded, folder)
    (folder / "pipe.yaml").unlink()
    (folder / "again.yaml").write_text(yaml.safe_dump(TASK))
    assert "'mine' is named in another file too" in refused(loaded, folder)
