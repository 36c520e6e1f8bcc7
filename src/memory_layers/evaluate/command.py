"""Evaluate the model of a folder: on facts by our own evaluator, or on tasks of the harness."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from memory_layers.common.checks import check_seed, check_whole
from memory_layers.common.errors import UserError
from memory_layers.common.files import check_writable, write_json
from memory_layers.common.packages import needs, quiet_transformers
from memory_layers.common.paths import IS_PATH, PathText
from memory_layers.common.progress import ProgressLine, progress_of
from memory_layers.common.text import json_shown, printable
from memory_layers.common.text_files import read_json
from memory_layers.data.config import BUILTIN, DataConfig
from memory_layers.evaluate.harness import TaskOptions, results_table, run_tasks
from memory_layers.evaluate.trained import OfModel, check_model, load_trained

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from memory_layers.data.facts import Probe

# Fields of DataConfig that say which facts there are and what of them was shown.
SELECTION = ("relations", "max_subjects", "templates", "exposures", "shown_fraction", "seed")
# Subjects of each source of built-in facts, where nothing says how many: all are a million facts.
MAX_SUBJECTS = 200


@dataclass(frozen=True, kw_only=True)
class Eval(TaskOptions, OfModel):
    """Ask a model facts, or run tasks of lm-evaluation-harness.

    With facts alone: the share of answers given exactly under greedy decoding, their likelihood,
    and F1 and choices on some of them. With --tasks: what the harness measures. The folder of a
    run is asked the facts that it was trained on, the flags below say otherwise. Of other models it
    is not known which questions were shown: a statement and the question of each fact are asked,
    and its held-out wordings, unless --shown-fraction, --exposures or --seed tell.

    Example: memory-layers eval runs/tiny

    Example: memory-layers eval my_model --facts my_facts --tasks facts

    Example: memory-layers eval smollm2 --memory taught --facts my_facts

    Example: memory-layers eval runs/tiny --tasks paper --run-code True --out results.json

    Example: memory-layers eval runs/tiny --tasks nq_open piqa --data-dir datasets
    """

    model: Positional[Annotated[str, arg(metavar="MODEL"), IS_PATH]]
    """Folder of a run or of a model, a name of the Hugging Face hub, or smollm2."""
    facts: PathText | None = None
    """Folder with facts.jsonl and templates.yaml, or "builtin". Default: those of the run."""
    tasks: tuple[str, ...] = ()
    """Tasks of the harness. `paper`: those of Memory Layers at Scale. `facts`: those of --facts.
    NAME.yaml: a task file of yours, or a folder of them."""
    answered: int = 200
    """Without --tasks: questions of each kind for F1 and choices. 0: recall alone, much faster."""
    device: str = "cpu"
    """cpu, cuda:0 and so on."""
    out: Path | None = None
    """File for the results, as JSON."""
    shown_fraction: float | None = None
    """As in training: decides which questions count as shown."""
    seed: int | None = None
    """As data.seed in training: decides which questions count as shown."""
    relations: tuple[str, ...] = ()
    """Relations of the built-in facts. Default: those of the run, or all."""
    max_subjects: int | None = None
    """Subjects of each source of built-in facts. Default: as the run has it, or 200."""
    templates: PathText | None = None
    """As data.templates in training, for the built-in facts."""
    exposures: tuple[int, ...] = ()
    """As data.exposures in training: decides which statements are asked for."""

    def __call__(self) -> str:
        """Evaluate the model and return what is to be shown.

        Raises:
            UserError: An argument is wrong, or the folder holds no whole model.
            ImportError: A package that is needed is not installed.
        """
        if self.tasks:
            needs("lm_eval")
        quiet_transformers()
        folder, trained_on, sources = _run_of(self.model)
        check_model(folder, self.memory)
        _check(self)
        data, note, split = _facts(self, trained_on)
        if data is not None and data.facts != BUILTIN and note:
            _check_facts(data, sources)
        import torch

        try:
            place = torch.empty(0, device=self.device).device
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"--device {self.device}: {error}. hint: cpu, or cuda:0") from error
        if place.type == "meta":
            raise UserError("--device meta holds no numbers. hint: cpu, or cuda:0")
        from memory_layers.data.facts import probes_of
        from memory_layers.data.prepare import corpus_of, read_facts
        from memory_layers.evaluate.questions import questions_of

        model, tokenizer = load_trained(
            folder, memory=self.memory, trust_remote_code=self.trust_remote_code
        )
        model = model.to(place)
        sys.stderr.write(printable(note))
        with ProgressLine() as line:
            if data is None:
                probes: Sequence[Probe] = ()
            elif split:
                probes = corpus_of(data, line.update).probes
            else:
                probes = probes_of(read_facts(data, line.update))
        if self.tasks:
            own = {f"facts_{kind}": q for kind, q in questions_of(probes, self.limit).items()}
            names = [n for task in self.tasks for n in (own if task == "facts" else [task])]
            results = run_tasks(
                model,
                tokenizer,
                names,
                self,
                questions=own,
                trust_remote_code=self.trust_remote_code,
            )
            shown = results_table(results)
        else:
            results = _ask_facts(model, tokenizer, probes, self.answered)
            shown = json_shown(results)
        if self.out is not None:
            write_json(self.out, json.loads(json.dumps(results, default=str)))
        return shown


def _run_of(name: str) -> tuple[Path | str, dict[str, Any], dict[str, Any]]:
    """Return the model folder of a run, or what else names a model, and what it was trained on.

    And what that was made of, where the run has a record of it.
    """
    folder = Path(name)
    run = folder if (folder / "model").is_dir() else folder.resolve().parent
    model, path = run / "model", run / "config.json"
    if path.is_file() and (run == folder or model.resolve() == folder.resolve()):
        try:
            values = read_json(path)
            record = read_json(run / "data.json") if (run / "data.json").is_file() else {}
        except UserError as error:
            raise UserError(f"{error}. hint: copy {model} elsewhere, and give --facts") from error
        sources = record.get("sources") if isinstance(record, dict) else None
        if isinstance(values, dict) and isinstance(values.get("data"), dict):
            return model, values["data"], sources if isinstance(sources, dict) else {}
    return name, {}, {}


def _check_facts(data: DataConfig, sources: dict[str, Any]) -> None:
    """Refuse facts of a run that are no longer what it was trained on."""
    from memory_layers.data.prepare import facts_changed

    if changed := facts_changed(data, sources):
        raise UserError(
            f"{data.facts}: {', '.join(changed)} has other content than when the run began. hint: "
            "bring it back, or copy the folder, and give --facts COPY to ask what is there now"
        )


def _facts(asked: Eval, trained_on: dict[str, Any]) -> tuple[DataConfig | None, str, bool]:
    """Return the facts to ask, as the flags or else the run have them, and a line that says so.

    And whether it is known which questions were shown.
    """
    given = {name: getattr(asked, name) for name in SELECTION}
    given = {name: value for name, value in given.items() if value not in (None, ())}
    if asked.tasks and "facts" not in asked.tasks:
        if asked.facts is not None:
            raise UserError("--facts has no effect on these tasks. hint: add the task `facts`")
        for name in given:
            raise UserError(f"{_flag(name)} has no effect without --facts. hint: leave it out")
        return None, "", False
    own = trained_on.get("facts")
    wrong = (
        "config.json of the run: `data:` holds a value of a wrong type: {}. "
        "hint: give the folder of the model, with --facts"
    )
    if not isinstance(own, str | None):
        raise UserError(wrong.format(f"facts: {own!r}"))
    facts = asked.facts or own
    if facts is None:
        raise UserError("--facts is missing. hint: --facts builtin, or --tasks nq_open")
    if facts != BUILTIN and {"relations", "max_subjects"} & given.keys():
        raise UserError(
            "--relations and --max-subjects select built-in facts. hint: leave them out, users' "
            "facts are used whole"
        )
    values: dict[str, Any] = {"facts": facts}
    note = ""
    same = facts == own
    if own is not None and BUILTIN not in (facts, own):
        same = Path(facts).resolve() == Path(own).resolve()
    if same:
        for name in trained_on.keys() & set(SELECTION):
            value = trained_on[name]
            values[name] = tuple(value) if isinstance(value, list) else value
        note = f"asking the facts of the run, {facts}, and what of them it was shown\n"
    elif facts == BUILTIN and not {"relations", "max_subjects"} & given.keys():
        values["max_subjects"] = MAX_SUBJECTS
        note = (
            f"asking about {MAX_SUBJECTS} subjects of each built-in source. hint: --max-subjects N "
            "or --relations NAME for others\n"
        )
    try:
        told = same or not given.keys().isdisjoint({"shown_fraction", "exposures", "seed"})
        return DataConfig(**{**values, **given}), note, told
    except TypeError as error:
        raise UserError(wrong.format(error)) from error
    except ValueError as error:
        moved = asked.facts is None and not Path(facts).is_dir() and facts != BUILTIN
        message = str(error)
        if moved:
            hint = "hint: --facts FOLDER says where it is now"
            message = f"{message.partition('. hint:')[0]}. {hint}"
        for name in (*given, *(() if asked.facts is None else ("facts",))):
            message = message.replace(f"data.{name} ", f"{_flag(name)} ")
        place = "config.json of the run: " if same and not given else ""
        raise UserError(f"{place}{message}") from error


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check(asked: Eval) -> None:
    for name, least in (("limit", 1), ("num_fewshot", 0), ("batch_size", 1), ("answered", 0)):
        value = getattr(asked, name)
        if value is not None:
            check_whole(_flag(name), value, least, sys.maxsize)
    if asked.tasks and asked.answered != Eval.answered:
        raise UserError("--answered has no effect with --tasks. hint: --limit")
    for field in () if asked.tasks else fields(TaskOptions):
        if getattr(asked, field.name) != field.default:
            flag = _flag(field.name)
            raise UserError(f"{flag} has no effect without --tasks. hint: leave it out")
    if asked.seed is not None:
        check_seed("--seed", asked.seed)
    if asked.out is not None:
        _check_out(asked.out)


def _check_out(out: Path) -> None:
    """Refuse to write where that cannot be, or to where something else is."""
    if out.is_dir():
        raise UserError(f"--out {out} is a folder. hint: {out / 'results.json'}")
    if "\0" in str(out) or not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}. hint: make it first")
    check_writable(out.parent, "--out")
    if not out.exists():
        return
    try:
        # What is no file, such as a device, is not even opened.
        before = json.loads(out.read_bytes()) if out.is_file() else None
    except (ValueError, RecursionError):
        before = None
    if not isinstance(before, dict) or not {"recall", "results"} & before.keys():
        raise UserError(
            f"--out {out} exists and holds no results of eval. hint: choose another name"
        )


def _ask_facts(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    probes: Sequence["Probe"],
    answered: int,
) -> dict[str, Any]:
    from memory_layers.evaluate.questions import (
        ask,
        passes_needed,
        questions_of,
        summarize_replies,
    )
    from memory_layers.evaluate.recall import recall_items, summarize_recall

    with progress_of("facts asked", len(probes)) as progress:
        results = recall_items(model, tokenizer, probes, special_tokens=True, progress=progress)
    summary = summarize_recall(probes, results)
    for kind, questions in questions_of(probes, answered).items():
        with progress_of(f"{kind} answered", passes_needed(questions)) as progress:
            replies = ask(model, tokenizer, questions, progress=progress)
        summary.setdefault("answered", {})[kind] = summarize_replies(questions, replies)
    return summary
