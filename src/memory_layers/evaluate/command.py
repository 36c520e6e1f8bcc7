"""Evaluate the model of a folder: on facts by our own evaluator, or on tasks of the harness."""

import json
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import Progress

from memory_layers.common.errors import UserError
from memory_layers.common.seeds import stable_hash
from memory_layers.data.config import BUILTIN, DataConfig
from memory_layers.data.facts import Probe
from memory_layers.data.prepare import corpus_of
from memory_layers.evaluate.harness import results_table, run_tasks
from memory_layers.evaluate.questions import Question, ask, passes_needed, summarize_replies
from memory_layers.evaluate.recall import recall_items, summarize_recall
from memory_layers.evaluate.trained import load_trained

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHOICES = 4
DEFAULT_ANSWERED = 200
# Fields of DataConfig that say which facts there are and what of them was shown.
_SELECTION = {
    field.name: field.default
    for field in fields(DataConfig)
    if field.name
    in ("relations", "max_subjects", "templates", "exposures", "shown_fraction", "seed")
}


def evaluate_model(
    model: Path,
    *,
    facts: str | None = None,
    tasks: Sequence[str] = (),
    data_dir: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
    run_code: bool = False,
    answered: int = DEFAULT_ANSWERED,
    device: str = "cpu",
    out: Path | None = None,
    trust_remote_code: bool = False,
    **selection: Any,  # noqa: ANN401
) -> str:
    """Evaluate a model and return what is to be shown: the flags of `memory-layers eval`.

    Args:
        model: A model folder with a tokenizer.
        facts: A folder of facts, or "builtin".
        tasks: Tasks of the harness. `facts` stands for those made of the facts.
        data_dir: Of run_tasks.
        limit: Of run_tasks.
        num_fewshot: Of run_tasks.
        batch_size: Of run_tasks.
        run_code: Of run_tasks.
        answered: Without tasks: questions of each kind to answer in words and to choose answers
            for, at most so many, spread over all.
        device: To run on.
        out: File for the results.
        trust_remote_code: Run code that lies in the folder.
        **selection: Fields of DataConfig, as in training.

    Raises:
        UserError: An argument is wrong, or the folder holds no whole model.
        UserError: Of run_tasks.
    """
    data = _facts(facts, tasks, selection)
    for name, value, least in (
        ("limit", limit, 1), ("num-fewshot", num_fewshot, 0), ("batch-size", batch_size, 1),
        ("answered", answered, 0),
    ):  # fmt: skip
        if value is not None and value < least:
            raise UserError(f"--{name} must be >= {least}, got {value}")
    for name, value, default in (
        ("data-dir", data_dir, None), ("limit", limit, None), ("num-fewshot", num_fewshot, None),
        ("batch-size", batch_size, 8), ("run-code", run_code, False),
    ):  # fmt: skip
        if not tasks and value != default:
            raise UserError(f"--{name} has no effect without --tasks. hint: leave it out")
    if tasks and answered != DEFAULT_ANSWERED:
        raise UserError("--answered has no effect with --tasks. hint: --limit")
    if out is not None and not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}. hint: make it first")
    place = _device(device)
    loaded, tokenizer = load_trained(model, trust_remote_code=trust_remote_code)
    loaded = loaded.to(place)
    probes = () if data is None else corpus_of(data).probes
    if tasks:
        asked = {f"facts_{kind}": q for kind, q in questions_of(probes, limit).items()}
        results = run_tasks(
            loaded,
            tokenizer,
            [name for task in tasks for name in (asked if task == "facts" else [task])],
            questions=asked,
            data_dir=data_dir,
            batch_size=batch_size,
            limit=limit,
            num_fewshot=num_fewshot,
            run_code=run_code,
        )
        shown = results_table(results)
    else:
        results = _ask_facts(loaded, tokenizer, probes, answered)
        shown = json.dumps(results, indent=2, ensure_ascii=False)
    if out is not None:
        part = out.with_name(f"{out.name}.part")
        part.write_text(json.dumps(results, indent=1, default=str) + "\n", "utf-8")
        part.replace(out)
    return shown


def _facts(facts: str | None, tasks: Sequence[str], selection: dict[str, Any]) -> DataConfig | None:
    if facts is None:
        if not tasks or "facts" in tasks:
            raise UserError("--facts is missing. hint: --facts builtin, or --tasks nq_open")
        for name, default in _SELECTION.items():
            if selection[name] != default:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} has no effect without --facts. hint: leave it out")
        return None
    if tasks and "facts" not in tasks:
        raise UserError("--facts has no effect on these tasks. hint: add the task `facts`")
    if facts != BUILTIN and (selection["relations"] or selection["max_subjects"] is not None):
        raise UserError(
            "--relations and --max-subjects select built-in facts. hint: leave them out, users' "
            "facts are used whole"
        )
    try:
        return DataConfig(facts=facts, **selection)
    except ValueError as error:
        raise UserError(str(error)) from error


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {error}. hint: cpu, or cuda:0") from error


def _ask_facts(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    probes: Sequence[Probe],
    answered: int,
) -> dict[str, Any]:
    summary = summarize_recall(probes, recall_items(model, tokenizer, probes, special_tokens=True))
    for kind, questions in questions_of(probes, answered).items():
        with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task(f"answer {kind}", total=passes_needed(questions))
            replies = ask(model, tokenizer, questions, progress=partial(progress.advance, task))
        summary.setdefault("answered", {})[kind] = summarize_replies(questions, replies)
    return summary


def questions_of(probes: Sequence[Probe], most: int | None) -> dict[str, list[Question]]:
    """Return probes as questions with choices, by kind, at most so many, spread over all."""
    answers = defaultdict(set)
    kinds = defaultdict(list)
    for probe in probes:
        answers[probe.relation].add(probe.text[probe.answer_start : probe.answer_end])
        # What follows the answer of a statement is no part of it, so only answers at the end count.
        if probe.answer_end == len(probe.text):
            kinds[probe.kind].append(probe)
    ordered = {relation: sorted(found) for relation, found in answers.items()}
    asked = {}
    for kind, found in sorted(kinds.items()):
        count = len(found) if most is None else min(most, len(found))
        chosen = [found[n * len(found) // count] for n in range(count)]
        if chosen:
            asked[kind] = [_question(probe, ordered[probe.relation]) for probe in chosen]
    return asked


def _question(probe: Probe, answers: Sequence[str]) -> Question:
    before, answer = probe.text[: probe.answer_start], probe.text[probe.answer_start :]
    prompt = before.rstrip()
    others = _others(probe, answer, answers)
    choices = tuple(sorted([answer, *others])) if others else ()
    return Question(prompt, (answer,), choices, before[len(prompt) :])


def _others(probe: Probe, answer: str, answers: Sequence[str]) -> list[str]:
    """Return wrong answers of the same relation, the same ones each time."""
    number = int.from_bytes(stable_hash(0, "choices", probe.relation, probe.subject))
    drawn = random.Random(number).sample(answers, min(CHOICES, len(answers)))  # noqa: S311
    return [other for other in drawn if other != answer][: CHOICES - 1]
