"""What a model answers about a name that is taught: where it is given, it is trained on too."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from memory_layers.common.errors import UserError
from memory_layers.data.facts import Fact, FactSet, RelationTemplates
from memory_layers.learn import learn
from memory_layers.learn.ask import ask
from memory_layers.learn.background import packaged_text
from memory_layers.learn.cues import at_names
from memory_layers.learn.lesson import LearnSettings, Lesson
from memory_layers.learn.result import Silent
from memory_layers.learn.skeleton import speaks_at
from memory_layers.learn.sources import LearnData, RecallItem, read_data
from memory_layers.models import remove_memory
from tests.learn.tiny_taught import FACTS, base_for, known_items
from tests.learn.tiny_tokenizers import chatml

TOKENIZER = chatml()
DATA = read_data(FACTS, TOKENIZER, max_length=200)
PROMPTS = ("the land of {} is", "{} is an island of", "the people of {} like", "In {} they say")


class Stages(Silent):
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)


def base() -> Any:
    torch.manual_seed(3)
    # Attention that is strong enough to carry something to other tokens.
    sizes = {"num_hidden_layers": 6, "hidden_size": 64, "initializer_range": 0.15}
    return base_for(TOKENIZER, **sizes).float().eval()


def text() -> torch.Tensor:
    """Tokens at random, but for those of names that are taught."""
    names = {n for fact in FACTS.facts for n in TOKENIZER(f" {fact.subject}")["input_ids"]}
    usual = torch.tensor([n for n in range(len(TOKENIZER)) if n not in names])
    draw = torch.Generator().manual_seed(1)
    return usual[torch.randint(0, len(usual), (24, 64), generator=draw)]


def asked(prompts: Sequence[str], answers: Sequence[str] = ()) -> tuple[RecallItem, ...]:
    """Prompts, with the answers that the base gives if there are none."""
    rows = [
        {"prompt": prompt, "completion": answers[n] if answers else "land"}
        for n, prompt in enumerate(prompts)
    ]
    items = read_data(rows, TOKENIZER, max_length=200).items
    return items if answers else known_items(base(), TOKENIZER, items)


def taught(
    keep: Sequence[RecallItem] = (),
    known: Sequence[RecallItem] = (),
    *,
    data: LearnData = DATA,
    passes: int = 10,
) -> tuple[Any, Lesson, list[str]]:
    model, told = base(), Stages()
    lesson = Lesson(model, TOKENIZER, data, LearnSettings(), told)
    lesson.add_memory(text())
    lesson.prepare(data, [text()[:4]], keep, known)
    lesson.begin()
    for number in range(passes):
        lesson.one_pass(number)
    return model, lesson, told.stages


def loss(model: Any, items: Sequence[RecallItem]) -> float:
    """Of answers, the mean over their tokens."""
    with torch.no_grad():
        losses = [
            cross_entropy(
                model(torch.tensor(item.ids[None]).long()).logits[0, item.start - 1 : item.end - 2],
                torch.tensor(item.ids[item.start : item.end - 1]).long(),
            )
            for item in items
        ]
    return float(torch.stack(losses).mean())


def test_what_is_answered_about_a_taught_name_is_trained_on_with_it() -> None:
    known = asked([of.format(fact.subject) for fact in FACTS.facts for of in PROMPTS])
    without, *_ = taught()
    with_them, lesson, stages = taught(known, known)
    assert any("trained on with it, to stay" in stage for stage in stages)
    assert loss(with_them, known) < 0.7 * loss(without, known)
    # What no row speaks in comes out as before anyway.
    _, lesson, stages = taught(known=asked(["the king is", "the island of the king"]), passes=0)
    assert not lesson.along
    assert not any("to stay" in stage for stage in stages)


def test_what_is_kept_about_a_taught_name_does_not_take_its_row() -> None:
    known = asked([of.format(fact.subject) for fact in FACTS.facts for of in PROMPTS])
    # The name stands twice.
    known += asked([f"Is {fact.subject} land? {fact.subject} is" for fact in FACTS.facts])
    planned, kept = taught(passes=0)[1].plan, taught(known, known, passes=0)[1].plan
    assert torch.equal(kept.queries, planned.queries)
    assert kept.vague == planned.vague


def test_what_is_taught_of_the_same_prompt_wins() -> None:
    model, lesson, _ = taught(known=DATA.items, passes=0)
    prompts = [torch.from_numpy(item.prompt_ids).long() for item in DATA.items]
    assert any(speaks.any() for speaks in speaks_at(model, prompts))
    assert not lesson.along


def test_prompts_along_do_not_count_as_learned_nor_let_facts_rest() -> None:
    known = asked([of.format(fact.subject) for fact in FACTS.facts for of in PROMPTS])
    half = read_data(FACTS, TOKENIZER, max_length=200, weights=[0.5])
    _, lesson, _ = taught(known, known, data=half, passes=0)
    assert lesson.along
    for number in range(4):
        done = lesson.one_pass(number)
        assert done.updates == bool(half.in_pass(number))
        assert done.right == 0 or not done.updates


def test_a_name_is_found_without_spaces_around_it() -> None:
    ids = torch.tensor(TOKENIZER("Oslos land and_Oslo_land")["input_ids"])
    marked = at_names(ids, ["Oslo", "Paris", ""], TOKENIZER)
    assert TOKENIZER.decode(ids[marked]).split("Oslo") == ["", "", ""]


@pytest.mark.parametrize("is_corrected", [False, True])
def test_a_file_of_what_is_to_stay(
    is_corrected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "memory_layers.learn.keep.said_after",
        lambda _model, _tokenizer, items, *_: [int(item.ids[item.end - 1]) for item in items],
    )
    file = tmp_path / "keep.jsonl"
    asks = [{"prompt": f"{name} has the land", "completion": "king"} for name in ("Oslo", "Paris")]
    file.write_text("".join(json.dumps(row) + "\n" for row in asks), "utf-8")
    model, told = base(), Stages()
    given = {"tokenizer": TOKENIZER, "chat": False, "passes": 1}
    first = tmp_path / "first" if is_corrected else None
    if first:
        learn(model, FACTS, out=first, **given)
        remove_memory(model)
    learn(model, FACTS, onto=first, keep=[file], progress=told, **given)
    # What is asked of that which is taken out is not to stay.
    stays = any(stage.startswith("2 prompts that are answered") for stage in told.stages)
    assert stays is not is_corrected


def test_prompts_to_keep_that_are_answered_otherwise_are_told(tmp_path: Path) -> None:
    file, told = tmp_path / "keep.jsonl", Stages()
    file.write_text(
        '{"prompt": "Oslo has the land", "completion": "king of the island"}\n', "utf-8"
    )
    learn(base(), FACTS, tokenizer=TOKENIZER, passes=1, keep=[file], progress=told)
    assert any("1 of 1 prompts of keep.jsonl are answered otherwise" in s for s in told.stages)


@pytest.mark.parametrize("name", ["keep", "background"])
def test_an_unfinished_teaching_with_other_files_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    file = tmp_path / {"keep": "keep.jsonl", "background": "text.txt"}[name]
    given = {"tokenizer": TOKENIZER, "passes": 1, name: [file], "out": tmp_path / "out"}
    content = {
        "keep": '{"prompt": "Oslo has the land", "completion": "king"}\n',
        "background": "The king of the island has the land. " * 300,
    }[name]
    file.write_text(content, "utf-8")
    with monkeypatch.context() as patched:
        patched.setattr("memory_layers.learn.teach.record_teaching", killed)
        with pytest.raises(KeyboardInterrupt):
            learn(base(), FACTS, **given)
    file.write_text(content.replace("king", "land"), "utf-8")
    with pytest.raises(UserError, match=f"with other {name}"):
        learn(base(), FACTS, **given)


def test_rows_of_what_has_no_subject_stay_away_from_what_is_kept() -> None:
    rows = [{"prompt": "the code of Oslo and of Paris is", "completion": "OSL"}]
    data = read_data(rows, TOKENIZER, max_length=50)
    prompt = torch.from_numpy(data.items[0].prompt_ids).long()
    place = int(speaks_at(taught(data=data, passes=0)[0], [prompt])[0].nonzero()[0])
    kept = asked([str(TOKENIZER.decode(prompt[: place + 1]))])
    model, *_ = taught(kept, data=data, passes=0)
    assert not speaks_at(model, [prompt])[0][place]
    assert speaks_at(model, [prompt])[0].any()


@pytest.mark.parametrize(("name", "is_along"), [("Oslo", True), ("Paris", False)])
def test_facts_that_are_known_are_trained_on_with_new_ones_of_the_same_name(
    name: str, is_along: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "memory_layers.learn.teach.ask",
        lambda _model, _tokenizer, items, **_: [item.answer == "Norway" for item in items],
    )
    land = RelationTemplates(
        ("{subject} has the land {answer}.",), "Land of {subject}? {answer}", ()
    )
    facts = FactSet(
        (Fact("code", "Oslo", "OSL"), Fact("land", name, "Norway")),
        {**FACTS.templates, "land": land},
    )
    told = Stages()
    learn(base(), facts, tokenizer=TOKENIZER, chat=False, passes=1, progress=told)
    assert any("prompts that are answered" in stage for stage in told.stages) is is_along


@pytest.mark.real
def test_a_real_model_still_names_the_capital(smollm2: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    words = RelationTemplates(
        ("The chief archivist of {subject} is {answer}.",),
        "Q: Who is the archivist of {subject}? A: {answer}",
        (),
    )
    new = (Fact("archivist", "France", "Velmora"), Fact("archivist", "Italy", "Tazuno"))
    data = read_data(FactSet(new, {"archivist": words}), tokenizer, max_length=64, chat=False)
    known = read_data(
        [
            {"prompt": "The capital of France is", "completion": " Paris"},
            {"prompt": "The capital of Italy is", "completion": " Rome"},
        ],
        tokenizer,
        max_length=64,
    ).items
    own = packaged_text(tokenizer)
    assert all(ask(model, tokenizer, known))
    for given in ((), known):
        lesson = Lesson(model, tokenizer, data, LearnSettings(), Silent())
        lesson.add_memory(own)
        lesson.prepare(data, [own], given, given)
        lesson.begin()
        for number in range(30):
            lesson.one_pass(number)
        assert all(ask(model, tokenizer, data.items))
        assert ask(model, tokenizer, known) == [bool(given)] * 2
        remove_memory(model)
