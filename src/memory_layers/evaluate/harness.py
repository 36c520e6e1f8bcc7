"""Tasks of lm-evaluation-harness: the field's, the paper's as group `paper`, and our questions.

Datasets come from the hub, or from a folder in its place. Next: tasks/, and scores.py.
"""

import logging
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import FlagConversionOff

from memory_layers.common.errors import UserError
from memory_layers.common.packages import needs
from memory_layers.common.text import markdown_table
from memory_layers.evaluate.programs import tell_gaps
from memory_layers.evaluate.scores import answer_likelihood, question
from memory_layers.evaluate.task_files import task_files

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from memory_layers.evaluate.questions import Question

TASKS = Path(__file__).parent / "tasks"
DEFAULT_ANSWER_TOKENS = 256  # Of the harness.
# Tasks without a data set of the hub make their own, or name files.
NO_DATASET = (None, "", "json", "csv", "parquet", "text")


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """How tasks of the harness are run."""

    data_dir: Path | None = None
    """Where the datasets of tasks are, as DIR/ORGANISATION/NAME. Default: fetched from the hub."""
    limit: int | None = None
    """Use the first so many documents of each task only."""
    num_fewshot: int | None = None
    """Examples shown before a question of a task. Default: as the task has it."""
    batch_size: int = 8
    """Texts of a task at a time."""
    run_code: FlagConversionOff[bool] = False
    """Allow tasks that run programs which the model writes, such as those of `paper`."""


def run_tasks(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    tasks: Sequence[str],
    options: TaskOptions,
    *,
    questions: "Mapping[str, Sequence[Question]] | None" = None,
    manager: "TaskManager | None" = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Run tasks and return the results of the harness.

    Args:
        model: A causal language model, on the device where it is to run.
        tokenizer: Its tokenizer.
        tasks: Names of tasks, groups and tags of the harness, `paper`, names in `questions`, and
            task files, or folders of them.
        options: How they are run.
        questions: Questions of ours by the name of their task, see question_tasks.
        manager: Of load_manager, for many calls: reading the files of all tasks takes seconds.
        trust_remote_code: Let task files run code, and read what is outside of their folder.

    Raises:
        ImportError: lm-evaluation-harness is not installed.
        UserError: No task has such a name, its data are not there, a file is malformed, or one
            needs to run code and may not.
    """
    manager = manager or load_manager()
    with task_files(tasks, manager.task_index, trusted=trust_remote_code) as names:
        return _run(model, tokenizer, names, options, questions or {}, manager)


def _run(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    tasks: Sequence[str],
    options: TaskOptions,
    questions: "Mapping[str, Sequence[Question]]",
    manager: "TaskManager",
) -> dict[str, Any]:
    from datasets.exceptions import DatasetsError
    from lm_eval import simple_evaluate

    own = {name: question_tasks(name, asked, tokenizer) for name, asked in questions.items()}
    named = {name: list(_leaves(manager, name)) for name in tasks if name not in own}
    found = Counter(tasks)
    found |= Counter(task for part in named.values() for task in {str(t["task"]) for t in part})
    if twice := sorted(task for task, count in found.items() if count > 1):
        raise UserError(f"{', '.join(tasks)} name {twice[0]} twice. hint: leave one of them out")
    leaves = [leaf for part in named.values() for leaf in part]
    fixed = [task for part in own.values() for task in part] + leaves
    if options.num_fewshot is not None and all(task.get("num_fewshot") == 0 for task in fixed):
        raise UserError("--num-fewshot has no effect on these tasks. hint: leave it out")
    unsafe = sorted({str(leaf["task"]) for leaf in leaves if leaf.get("unsafe_code")})
    if unsafe and not options.run_code:
        raise UserError(
            f"{', '.join(unsafe)} run programs that the model writes, on this machine. hint: "
            "--run-code True allows it"
        )
    if unsafe:
        tell_gaps(unsafe)
    with _quiet():
        evaluated = _reader(model, tokenizer, options.batch_size)
    longest = evaluated.max_length
    with _quiet(), _adapted(manager, leaves, options.data_dir, longest):
        try:
            results = simple_evaluate(
                evaluated,
                tasks=[spec for name in tasks for spec in own.get(name, [name])],
                task_manager=manager,
                limit=options.limit,
                num_fewshot=options.num_fewshot,
                confirm_run_unsafe_code=options.run_code,
                log_samples=False,
            )
        except AssertionError as error:
            raise UserError(
                f"the harness cannot run {', '.join(tasks)}: {error or 'it says no more'}. hint: "
                "a smaller --num-fewshot"
            ) from error
        except (DatasetsError, StopIteration) as error:
            raise UserError(
                f"the data of {', '.join(tasks)} cannot be read: {error or 'a file is empty'}"
            ) from error
        except ConnectionError as error:
            raise UserError(
                f"a dataset cannot be fetched from the hub: {error}. hint: --data-dir FOLDER takes "
                "it from FOLDER/ORGANISATION/NAME"
            ) from error
    short = sorted(str(leaf["task"]) for leaf in leaves if _too_long(leaf, longest))
    return {**(results or {}), "shortened": {task: _room(longest) for task in short}}


def _reader(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", batch_size: int) -> Any:  # noqa: ANN401
    """Return the harness's model, which takes names of special tokens in documents for text."""
    from lm_eval.models.huggingface import HFLM

    end = str(tokenizer.eos_token)

    class Reader(HFLM):
        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            """Encode a question and an answer. An end of the text behind it is one."""
            answer = continuation.removesuffix(end)
            first, second = super()._encode_pair(context, answer)
            return first, second + [tokenizer.eos_token_id] * (answer != continuation)

    as_text = copy(tokenizer)
    as_text.split_special_tokens = True
    return Reader(pretrained=model, tokenizer=as_text, batch_size=batch_size)


def load_manager() -> "TaskManager":
    """Return what knows the tasks of the harness and ours.

    Raises:
        ImportError: lm-evaluation-harness is not installed.
    """
    needs("lm_eval")
    from lm_eval.tasks import TaskManager

    with _quiet():
        return TaskManager(include_path=str(TASKS))


def results_table(results: Mapping[str, Any]) -> str:
    """Return the results of tasks and groups as a Markdown table: value and standard error."""
    rows = []
    # A group has results of its own where it is an average, as mmlu is.
    for name, values in {**results["results"], **results.get("groups", {})}.items():
        shots = str(results.get("n-shot", {}).get(name, ""))
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            if comma and not metric.endswith("_stderr") and not isinstance(value, str):
                error = values.get(f"{metric}_stderr,{kind}")
                spread = f" ± {error:.4f}" if isinstance(error, float) else ""
                rows.append((name, shots, metric, f"{value:.4f}{spread}"))
    notes = [
        f"{task}: answers end after {tokens} tokens, since texts of this model are short."
        for task, tokens in results.get("shortened", {}).items()
    ]
    table = markdown_table(("Task", "Shots", "Metric", "Value"), rows)
    return "\n".join([table, *([""] * bool(notes)), *notes])


def question_tasks(
    name: str, questions: "Sequence[Question]", tokenizer: "PreTrainedTokenizerFast"
) -> list[dict[str, Any]]:
    """Return questions as tasks of the harness.

    Args:
        name: Of the first task: `exact_match` and `f1` of the text that is written, and `recall`,
            the share of texts that begin with the answer and end it there.
        questions: To ask. The second task, NAME_nll, has `answer_nll` in nats, with the end of the
            text. The third, NAME_choice, is there if some have choices: `acc` and `acc_norm`.
        tokenizer: Of the model that is asked.
    """
    from memory_layers.evaluate.questions import longest_answer

    end = str(tokenizer.eos_token)
    lines = any("\n" in answer for asked in questions for answer in asked.answers)
    rows = [
        {
            "prompt": asked.prompt,
            "answers": list(asked.answers),
            "ended": asked.delimiter + asked.answers[0] + end,
            "choices": [asked.delimiter + choice for choice in asked.choices],
            "right": asked.choices.index(asked.answers[0]) if asked.choices else -1,
        }
        for asked in questions
    ]
    common = {
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "target_delimiter": "",
        # There are no examples but the questions themselves.
        "num_fewshot": 0,
    }
    tasks = [
        {
            "task": name,
            "output_type": "generate_until",
            "doc_to_target": "{{ended}}",
            "generation_kwargs": {
                "until": [end if lines else "\n"],
                "do_sample": False,
                "max_gen_toks": longest_answer(tokenizer, questions),
            },
            "process_results": question,
            "metric_list": [_mean("exact_match"), _mean("f1"), _mean("recall")],
            "custom_dataset": _dataset(rows),
        },
        {
            "task": f"{name}_nll",
            "output_type": "loglikelihood",
            "doc_to_target": "{{ended}}",
            "process_results": answer_likelihood,
            "metric_list": [_mean("answer_nll", higher_is_better=False)],
            "custom_dataset": _dataset(rows),
        },
    ]
    if choosing := [row for row in rows if row["choices"]]:
        choice = {
            "task": f"{name}_choice",
            "output_type": "multiple_choice",
            "doc_to_target": "{{right}}",
            "doc_to_choice": "{{choices}}",
            "metric_list": [_mean("acc"), _mean("acc_norm")],
            "custom_dataset": _dataset(choosing),
        }
        tasks.append(choice)
    return [{**common, **task} for task in tasks]


def _mean(metric: str, *, higher_is_better: bool = True) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": higher_is_better}


def _dataset(rows: list[dict[str, Any]]) -> Any:  # noqa: ANN401
    def load(**_: object) -> dict[str, Any]:
        from datasets import Dataset

        return {"test": Dataset.from_list(rows)}

    return load


def _leaves(manager: "TaskManager", member: str | Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the configuration of each task that a name, or a member of a group, stands for."""
    changes: dict[str, Any] = {} if isinstance(member, str) else dict(member)
    name = member if isinstance(member, str) else member.get("group") or member.get("task")
    if isinstance(inner := changes.get("task"), list):
        # A group inside a group.
        for each in inner:
            yield from _leaves(manager, each)
        return
    entry = manager.task_index.get(str(name))
    if entry is None and not isinstance(member, str):
        # A task that is described where it is used.
        yield {"task": str(name), **changes}
        return
    if entry is None:
        raise UserError(
            f"no task is named {name!r}. hint: facts, paper, one that `lm-eval ls tasks` "
            "lists, or a file of yours, NAME.yaml"
        )
    config = entry.cfg or {}
    members = sorted(entry.tags) if entry.cfg is None else config.get("task")
    if isinstance(members, list):
        for each in members:
            yield from _leaves(manager, each)
    else:
        # What a group changes of a task makes no program of it harmless.
        unsafe = bool(config.get("unsafe_code") or changes.get("unsafe_code"))
        yield {"task": name, **config, **changes, "unsafe_code": unsafe}


def _too_long(leaf: Mapping[str, Any], longest: int) -> bool:
    """Whether what a task lets a model write is longer than the model's texts."""
    if leaf.get("output_type") != "generate_until":
        return False
    options = leaf.get("generation_kwargs") or {}
    return options.get("max_gen_toks", DEFAULT_ANSWER_TOKENS) >= longest


@contextmanager
def _quiet() -> Generator[None]:
    """Keep the harness from warning of what is meant so."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _adapted(
    manager: "TaskManager",
    leaves: Sequence[Mapping[str, Any]],
    data_dir: Path | None,
    longest: int,
) -> Generator[None]:
    """Let tasks take their data from a folder, and answers fit into the model's texts."""
    import yaml

    index = manager.task_index
    changes: dict[str, dict[str, Any]] = {}
    for leaf in leaves:
        name, changed = str(leaf["task"]), {}
        if data_dir is not None:
            if leaf.get("dataset_path") in NO_DATASET or name not in index:
                raise UserError(
                    f"the data of {name} are not one data set, so --data-dir cannot stand in for "
                    "it. hint: leave out the task, or --data-dir"
                )
            changed |= _local_dataset(leaf, data_dir)
        if _too_long(leaf, longest) and name in index:
            options = leaf.get("generation_kwargs") or {}
            changed["generation_kwargs"] = {**options, "max_gen_toks": _room(longest)}
        if changed:
            changes[name] = changed
    before = {name: index[name] for name in changes}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, changed) in enumerate(changes.items()):
            if before[name].yaml_path is None:
                index[name] = replace(before[name], cfg={**(before[name].cfg or {}), **changed})
                continue
            path = Path(folder) / f"{number}.yaml"
            full = {"include": str(before[name].yaml_path), "task": name, **changed}
            path.write_text(yaml.safe_dump(full), "utf-8")
            index[name] = replace(before[name], yaml_path=path)
        try:
            yield
        finally:
            index.update(before)


def _room(longest: int) -> int:
    """Return how much of a model's longest text an answer may take, the rest is the question's."""
    return max(1, longest // 4)


def _local_dataset(leaf: Mapping[str, Any], data_dir: Path) -> dict[str, Any]:
    """Return the fields of a task that say where its data are."""
    source, config = leaf.get("dataset_path"), leaf.get("dataset_name")
    place = data_dir / str(source)
    if (place / "README.md").is_file():
        # A copy of the hub's folder: its README says which files belong to a configuration.
        return {"dataset_path": str(place.resolve()), "dataset_name": config}
    place = place / (config or "")
    for suffix, kind in (("jsonl", "json"), ("parquet", "parquet"), ("csv", "csv")):
        if files := sorted(place.glob(f"*.{suffix}")):
            named = {file.stem: str(file.resolve()) for file in files}
            for kind_of_split in ("training", "validation", "test", "fewshot"):
                split = leaf.get(f"{kind_of_split}_split")
                if split is not None and split not in named:
                    raise UserError(
                        f"{leaf['task']} needs {place / split}.{suffix} too, found there: "
                        f"{', '.join(named)}. hint: a file with a few documents does for examples"
                    )
            kwargs = {"data_files": named}
            return {"dataset_path": kind, "dataset_name": None, "dataset_kwargs": kwargs}
    raise UserError(
        f"{leaf['task']}: there are no data in {place}. hint: hf download {source} --repo-type "
        f"dataset --local-dir {data_dir / str(source)}, or a file for each split, such as "
        f"{place / 'validation.jsonl'}"
    )
