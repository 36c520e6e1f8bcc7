"""`learn`: teach a model, and measure what it learned and what it lost.

The way of it: sources/ reads the data, skeleton.py adds a memory, rows.py plans what it writes,
lesson.py and train.py train that, watch.py measures, report.py tells.
"""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec

import torch
from transformers import PreTrainedModel

from memory_layers.common.errors import UserError
from memory_layers.common.files import is_left
from memory_layers.common.locks import alone_in
from memory_layers.common.packages import needs
from memory_layers.common.progress import counter
from memory_layers.common.provenance import commit, device_name, peak_bytes, versions
from memory_layers.common.seeds import stable_number
from memory_layers.evaluate.positions import longest_text
from memory_layers.evaluate.trained import load_trained
from memory_layers.layers.walk import memory_layers_of
from memory_layers.learn.ask import all_right, ask
from memory_layers.learn.background import (
    LENGTH,
    own_questions,
    own_text,
    packaged_text,
    users_text,
)
from memory_layers.learn.keep import (
    Keep,
    answered_of,
    continuations,
    keep_of_files,
    neighbours,
)
from memory_layers.learn.lesson import HAS_MEMORY, LearnSettings, Lesson
from memory_layers.learn.record import facts_of, make_way
from memory_layers.learn.report import write_report
from memory_layers.learn.result import LearnResult, Progress, Silent
from memory_layers.learn.silence import silenced
from memory_layers.learn.skeleton import slots_at
from memory_layers.learn.sources import LearnData, read_data
from memory_layers.learn.state import State
from memory_layers.learn.watch import Watch
from memory_layers.models import Patch, record_teaching, remove_memory
from memory_layers.models.names import base_name
from memory_layers.models.quantised import check_quantised, stay_trainable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

P = ParamSpec("P")


def _alone(teach: Callable[P, LearnResult]) -> Callable[P, LearnResult]:
    """Refuse a second teaching in a folder where one goes on."""

    @wraps(teach)
    def alone(*args: P.args, **given: P.kwargs) -> LearnResult:
        out: Any = given.get("out")
        folder = None if out is None else Path(out)
        # Before a lock is put there, and inside again: another teaching may have ended in between.
        _check_out(folder)
        with nullcontext() if folder is None else alone_in(folder):
            return teach(*args, **given)

    return alone


@_alone
def learn(
    model: PreTrainedModel | str | Path,
    data: Any,  # noqa: ANN401
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    out: str | Path | None = None,
    weights: Sequence[float] = (),
    max_length: int = 512,
    shown_fraction: float = 1.0,
    chat: bool | None = None,
    wordings: int = 4,
    background: Sequence[str | Path] = (),
    keep: Sequence[str | Path] = (),
    onto: str | Path | Patch | None = None,
    known: Literal["skip", "train"] = "skip",
    minutes: float = 15.0,
    passes: int = 40,
    lr: float | None = None,
    seed: int = 0,
    author: str = "",
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> LearnResult:
    """Teach a language model, in place, what it does not know, and lose nothing that it knew.

    A memory beside a few blocks is added. It speaks at tokens that are known again from what is
    taught, most often the end of a name, and is silent at all others. A text in which it is silent
    throughout is, to the bit, what it was for the base.

    Args:
        model: A plain causal language model, which gets the memory and keeps it; or a folder, a
            name on a hub, or "smollm2".
        data: As for `read_data`: files, folders of facts, or objects.
        tokenizer: Of the model. None: that of the folder.
        out: Folder of the patch, its `result.json` and its `report.html`. What is unfinished there
            goes on. None: nothing is written.
        weights: As for `read_data`.
        max_length: As for `read_data`, and at most what the model reads.
        shown_fraction: As for `read_data`.
        chat: As for `read_data`.
        wordings: As for `read_data`.
        background: Files of text that the memory must be silent in, beside text that the model
            writes itself and Python's documentation.
        keep: Files of prompts and completions that must stay as they are: the report tells. Those
            about subjects of facts are trained on too.
        onto: A patch of the same base that is applied first. What the data teaches and it answers
            otherwise or not is taken out, and what has no row of its own takes with it what shares
            its rows. What reads rows that went may be answered otherwise.
        known: What becomes of what the model knows already: "skip" it or "train" it all the same.
        minutes: Most that training takes.
        passes: Most passes through the data.
        lr: How far an entry of a row moves in a step. None: 0.22 of the size of the entries of
            hidden states where the memory adds to them.
        seed: Of sub-keys, of the order of the data, and of text that the model writes.
        author: Who teaches, for the record.
        dtype: To load a folder in. None: float32 on a CPU, else what the folder says.
        trust_remote_code: Run code that lies in the folder of the model, which loads it.
        progress: Is told how far it is.

    Returns:
        What it brought. `model` has learned it, if it is an object.

    Raises:
        UserError: The data is malformed, the model is of no supported family or has memory, all is
            known already, `out` has something else, or another teaching goes on there.
        ImportError: `out` is given, and what draws its report is not installed.
    """
    settings = LearnSettings(minutes=minutes, passes=passes, lr=lr, known=known, seed=seed)
    told = progress or Silent()
    begin = time.monotonic()
    folder = None if out is None else Path(out)
    name = model if isinstance(model, str | Path) else base_name(model)
    _check_out(folder)
    if folder is not None:
        needs("jinja2", "matplotlib")
    if isinstance(model, str | Path):
        told.stage(f"loading {model}")
        on_gpu = torch.cuda.is_available()
        loaded, own_tokenizer = load_trained(
            model,
            dtype=dtype or ("auto" if on_gpu else torch.float32),
            trust_remote_code=trust_remote_code,
        )
        model = loaded.to("cuda" if on_gpu else "cpu")
        tokenizer = own_tokenizer if tokenizer is None else tokenizer
    if tokenizer is None:
        raise UserError("tokenizer is needed with a model that is loaded, got None")
    model.eval()
    if memory_layers_of(model):
        raise UserError(HAS_MEMORY)
    check_quantised(model)
    stay_trainable(model)
    told.stage("reading the data")
    longest = min(max_length, longest_text(model))
    taught = read_data(
        data, tokenizer, max_length=longest, weights=weights,
        shown_fraction=shown_fraction, chat=chat, wordings=wordings, seed=seed,
        progress=told.work,
    )  # fmt: skip
    told.stage(str(taught.look))
    kept_files = keep_of_files(keep, tokenizer, longest)
    row = min(LENGTH, longest_text(model))
    users = users_text(background, tokenizer, length=row) if background else None
    earlier = Patch.load(onto) if isinstance(onto, str | Path) else onto
    choices = {
        "model": str(name), "data": [look.digest for look in taught.look.sources],
        "weights": [look.weight for look in taught.look.sources], "max_length": longest,
        "shown_fraction": shown_fraction, "chat": chat, "wordings": wordings,
        "background": [] if users is None else [stable_number(0, str(users.tolist()))],
        "keep": [_digest_of(one) for one in kept_files], "onto": earlier and earlier.ids,
        "known": known, "lr": lr, "seed": seed,
    }  # fmt: skip
    state = (State.load(folder, choices) if folder else None) or State(choices)
    own = own_text(model, tokenizer, seed=seed, progress=told.work)
    asked = own_questions(model, tokenizer, seed=seed, progress=told.work)
    lesson = Lesson(model, tokenizer, taught, settings, told)
    with _as_it_was(model):
        lesson.add_memory(own, earlier)
        told.stage("asking what the model knows already")
        before = ask(
            model, tokenizer, taught.items,
            progress=counter(len(taught.items), "asking the model", told.work),
        )  # fmt: skip
        items = [item for one in kept_files for item in one.items]
        prompts = [torch.from_numpy(item.prompt_ids).long() for item in items]
        given = kept_files
        kept_files = [answered_of(model, tokenizer, one, told.work) for one in given]
        for one, left in zip(given, kept_files, strict=True):
            if missing := len(one.items) - len(left.items):
                told.stage(
                    f"{missing} of {len(one.items)} prompts of {one.name} are answered otherwise "
                    "by the model, and do not count"
                )
        slots = slots_at(model, prompts)
        # What is not shown is never trained on.
        shown = [pair for pair in zip(taught.items, before, strict=True) if pair[0].seen]
        answered = set(all_right(*zip(*shown, strict=True))) if shown else set()
        corrected, gone, readers = _make_way(lesson, answered if known == "skip" else set())
        # What is asked of that is not to be kept.
        now = slots_at(model, prompts)
        staying = [i for i, *at in zip(items, slots, now, strict=True) if torch.equal(*at)]
        stays = {tuple(item.prompt_ids.tolist()) for item in staying}
        known_items = [
            item
            for one in kept_files
            for item in one.items
            if tuple(item.prompt_ids.tolist()) in stays
        ]
        names_known = tuple(taught.groups[n].name for n in sorted(answered))
        if known == "skip":
            # The memory speaks at their names too where others are taught of them.
            left_out = tuple(item for item in taught.items if item.group in answered and item.seen)
            known_items += left_out
            kept_files += (
                [Keep("known before", left_out, exact=False, answered=True)] if left_out else []
            )
            pairs = zip(taught.items, before, strict=True)
            before = [right for item, right in pairs if item.group not in answered]
            taught = taught.without(answered)
            if not taught.examples:
                raise UserError(
                    f"the model answers all of it already: {', '.join(names_known[:3])}. "
                    'hint: known="train" (--known train) teaches it all the same'
                )
        watched = {
            "its own text": own[1::2], "its own questions": asked[1::2],
            "Python's documentation": packaged_text(tokenizer, length=row),
        }  # fmt: skip
        protected = [own[::2], asked[::2]]
        if users is not None:
            watched["background"], protected = users[1::2], [*protected, users[::2]]
        lesson.prepare(taught, protected, staying, known_items)
        state.check_slots(str(stable_number(0, *map(str, lesson.table.slots.tolist()))))
        told.stage("measuring the base")
        with silenced(model):
            keeps = [*kept_files, continuations(model, tokenizer, own[1::2], seed=seed)]
            keeps += neighbours(model, tokenizer, taught, own[1::2], seed=seed)
        watch = Watch(
            model, tokenizer, taught, watched, keeps, before=before, seed=seed, progress=told.work
        )
        stopped = lesson.train(watch, state, folder)
        patch = record_teaching(
            model,
            author=author,
            data=_record_of(taught),
            settings={**vars(settings), "lr": lesson.lr},
            facts=facts_of(model, taught, lesson.plan),
        )
    if folder is not None:
        # Measuring takes long, and what was learned is not lost any more.
        patch.save(folder)
    told.stage("measuring what was learned and what was lost")
    right = watch.recall(progress=told.work)
    learned = set(watch.learned(right))
    # Running text is not asked, so nobody knows whether it was learned.
    groups = sorted({item.group for item in taught.items if item.seen})
    result = LearnResult(
        model=str(name),
        out="" if folder is None else str(folder),
        recall=watch.summary(right),
        texts=watch.texts(told.work),
        kept=watch.kept(told.work),
        curve=tuple(state.curve),
        groups=len(groups),
        learned=sum(group in learned for group in groups),
        not_learned=tuple(taught.groups[n].name for n in groups if n not in learned),
        known_before=names_known,
        corrected=corrected,
        gone=gone,
        readers=readers,
        **_costs(lesson, state, folder),
        seconds=time.monotonic() - begin,
        stopped=stopped,
        settings={**vars(settings), "lr": lesson.lr},
        look=taught.look.to_dict(),
        provenance={
            "device": device_name(), "commit": commit(),
            "versions": versions("torch", "transformers"),
        },
    )  # fmt: skip
    if folder is not None:
        write_report(result, folder)
        # Killed before this, it goes on from here.
        State.remove(folder)
    return result


def _digest_of(keep: Keep) -> str:
    return str(stable_number(0, *(str([item.start, *item.ids.tolist()]) for item in keep.items)))


@contextmanager
def _as_it_was(model: PreTrainedModel) -> Generator[None]:
    """Take the memory off again if an error ends a `with` block."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        yield
    except BaseException:
        if memory_layers_of(model):
            remove_memory(model)
        for weight in trainable:
            weight.requires_grad_(True)
        raise


def _make_way(
    lesson: Lesson, answered: set[int]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Make way for what is not answered, and say so.

    Returns:
        Names as in LearnResult: corrected, gone and readers.
    """
    if not len(lesson.table.weight):
        return (), (), ()
    facts = make_way(lesson.model, lesson.data, answered)
    corrected, gone, readers = (tuple(dict.fromkeys(fact.prompt for fact in of)) for of in facts)
    if corrected:
        lesson.told.stage(
            f"{len(corrected)} of onto get other answers, and what they wrote is taken out: "
            f"{', '.join(corrected[:5])}"
        )
    if gone:
        lesson.told.stage(
            f"{len(gone)} more of onto hang on the same rows, and are taken out too: "
            f"{', '.join(gone[:5])}. hint: to keep them, put them into the data and begin again"
        )
    if readers:
        lesson.told.stage(
            f"{len(readers)} more of onto read some of these rows, and may be answered otherwise: "
            f"{', '.join(readers[:5])}. hint: --keep asks them"
        )
    return corrected, gone, readers


def _costs(lesson: Lesson, state: State, folder: Path | None) -> dict[str, Any]:
    """Return what a teaching wrote and took."""
    return {
        "rows": len(lesson.table.weight),
        "parameters": lesson.table.weight.numel(),
        "bytes": sum(f.stat().st_size for f in folder.glob("memory.*")) if folder else 0,
        "training_seconds": state.seconds,
        "passes": state.passes,
        "updates": state.updates,
        "tokens": sum(len(example.ids) for example in lesson.data.examples),
        "peak_bytes": peak_bytes(),
    }


def _check_out(folder: Path | None) -> None:
    if folder is None or not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"out must be a folder, got the file {folder}")
    if State.is_in(folder):
        return
    if (folder / "memory.json").exists():
        raise UserError(
            f"{folder} has a finished patch. hint: another --out, or --onto {folder} to teach more"
        )
    if others := sorted(path.name for path in folder.iterdir() if not is_left(path.name)):
        raise UserError(
            f"out {folder} has other files, such as {others[0]}, expected an empty folder "
            "or none. hint: another --out"
        )


def _record_of(data: LearnData) -> list[dict[str, Any]]:
    return [
        {"name": look.name, "sha256": look.digest, "rows": look.rows} for look in data.look.sources
    ]
