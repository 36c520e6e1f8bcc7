"""What a patch has on record, and what of it makes way when something is taught again."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_taught import FACTS, base_for
from tiny_tokenizers import CHATML, chatml

from memory_layers.common.errors import UserError
from memory_layers.data.facts import Fact, FactSet
from memory_layers.layers.walk import memory_layers_of
from memory_layers.learn import learn
from memory_layers.learn.result import LearnResult, Point, Silent
from memory_layers.learn.sources import RecallItem
from memory_layers.models import Patch, load_memory, revert_patch

TOKENIZER = chatml()


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def base() -> Any:
    torch.manual_seed(3)
    return base_for(TOKENIZER, num_hidden_layers=6, hidden_size=64).float().eval()


def taught(out: Path | None = None, data: Any = FACTS, **options: Any) -> LearnResult:
    given = {"tokenizer": TOKENIZER, "passes": 1, **options}
    return learn(base(), data, out=out, **given)


def answering(monkeypatch: pytest.MonkeyPatch, is_right: Callable[[RecallItem], bool]) -> None:
    def ask(_model: Any, _tokenizer: Any, items: Sequence[RecallItem], **_: Any) -> list[bool]:
        return [is_right(item) for item in items]

    monkeypatch.setattr("memory_layers.learn.teach.ask", ask)


def prompts(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"prompt": prompt, "completion": answer} for prompt, answer in pairs]


def names(folder: Path) -> list[str]:
    return [fact.prompt for teaching in Patch.load(folder).teachings for fact in teaching.facts]


def logits(model: Any, text: str) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([TOKENIZER(text)["input_ids"]])).logits


def test_what_only_answers_with_a_name_stays_when_that_is_corrected(tmp_path: Path) -> None:
    words = {**FACTS.templates, "land": FACTS.templates["code"]}
    lands = [Fact("land", name, "Paris") for name in ("Oslo", "New France", "Japan")]
    taught(tmp_path / "first", FactSet((*lands, Fact("code", "Paris", "PAR")), words))
    new = FactSet((Fact("land", "Oslo", "Japan"),), words)
    result = taught(tmp_path / "second", new, onto=tmp_path / "first")
    assert (result.corrected, result.gone) == (("land: Oslo",), ())
    left = ["land: New France", "land: Japan", "code: Paris", "land: Oslo"]
    assert names(tmp_path / "second") == left
    # And it can be forgotten, although answers have its rows.
    model = load_memory(base(), tmp_path / "first")
    found = revert_patch(model, Patch.load(tmp_path / "first").ids, "code: Paris")
    assert len(found.rows)
    assert set(found.readers) == {f"land: {fact.subject}" for fact in lands}


def test_a_prompt_that_shares_a_name_is_corrected_alone(tmp_path: Path) -> None:
    one, two = "Oslo Spain Japan is", "Oslo Spain France is"
    taught(tmp_path / "first", prompts((one, "land"), (two, "code")))
    rows = [set(fact.rows.tolist()) for fact in Patch.load(tmp_path / "first").teachings[0].facts]
    assert rows[0] & rows[1]
    result = taught(tmp_path / "second", prompts((one, "be")), onto=tmp_path / "first")
    assert (result.corrected, result.gone) == ((one,), ())
    before, after = (load_memory(base(), tmp_path / name) for name in ("first", "second"))
    assert torch.equal(logits(before, two), logits(after, two))
    assert not torch.equal(logits(before, one), logits(after, one))


def test_what_has_no_row_of_its_own_takes_with_it_what_shares_it(tmp_path: Path) -> None:
    one, two = "code of Oslo is", "land of Oslo is"
    taught(tmp_path / "first", prompts((one, "land"), (two, "code")))
    result = taught(data=prompts((one, "be")), onto=tmp_path / "first")
    assert (result.corrected, result.gone) == ((one,), (two,))
    model = load_memory(base(), tmp_path / "first")
    with pytest.raises(UserError, match=rf"'{one}' cannot be taken out alone.*'{two}'"):
        revert_patch(model, Patch.load(tmp_path / "first").ids, one)
    assert len(revert_patch(model, Patch.load(tmp_path / "first").ids, [one, two]).rows)


def test_what_reads_rows_of_an_earlier_teaching_is_told(tmp_path: Path) -> None:
    taught(tmp_path / "first", prompts(("land of Oslo is", "land")))
    taught(tmp_path / "second", prompts(("code of Oslo is", "code")), onto=tmp_path / "first")
    model = load_memory(base(), tmp_path / "second")
    found = revert_patch(model, Patch.load(tmp_path / "second").ids, "land of Oslo")
    assert found.readers == ("code of Oslo is",)
    again = prompts(("land of Oslo is", "be"))
    assert taught(data=again, onto=tmp_path / "second").readers == ("code of Oslo is",)


def test_all_prompts_of_what_is_taken_out_are_taught_again_or_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = "land of Oslo is", "island of Japan is"
    both = [{**row, "group": 1} for row in prompts((one, "land"), (two, "land"))]
    taught(tmp_path / "first", both)
    answering(monkeypatch, lambda item: item.answer == "land")
    # The first is answered, with rows that have to go.
    result = taught(
        tmp_path / "second", prompts((one, "land"), (two, "be")), onto=tmp_path / "first"
    )
    assert (result.corrected, result.gone, result.known_before) == ((one,), (), ())
    assert names(tmp_path / "second") == [one, two]
    answering(monkeypatch, lambda item: False)
    assert taught(data=prompts((one, "land")), onto=tmp_path / "first").gone == (one,)


def test_what_reads_a_row_that_goes_is_taught_again_where_it_is_in_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    land, code = prompts(("land of Oslo is", "land"), ("code of Oslo is", "code"))
    taught(tmp_path / "first", [land])
    taught(tmp_path / "second", [code], onto=tmp_path / "first")
    for known in ((), ("code",)):
        answering(monkeypatch, lambda item: item.answer in known)  # noqa: B023
        result = taught(tmp_path / f"third{known}", [land, code], onto=tmp_path / "second")
        assert (result.readers, result.known_before, result.groups) == ((), (), 2)
        assert names(tmp_path / f"third{known}") == [land["prompt"], code["prompt"]]


def test_what_is_cut_before_its_answer_is_not_taken_out(tmp_path: Path) -> None:
    long = f"{'the land of ' * 40}Oslo is"
    taught(tmp_path / "first", prompts((long, "land")))
    new = prompts((long, "be"), ("the code of Japan is", "be"))
    result = taught(tmp_path / "second", new, onto=tmp_path / "first", max_length=20)
    assert result.corrected == ()
    assert len(names(tmp_path / "second")) == 2


def test_a_missed_wording_that_is_held_out_takes_nothing_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught(tmp_path / "first")
    answering(monkeypatch, lambda item: item.seen and item.answer != "OSL")
    result = taught(tmp_path / "second", onto=tmp_path / "first")
    assert result.known_before == ("code: Paris", "code: New France")
    assert sorted(names(tmp_path / "second")) == sorted(names(tmp_path / "first"))


def test_what_is_known_and_trained_all_the_same_takes_its_own_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught(tmp_path / "first")
    answering(monkeypatch, lambda item: True)
    result = taught(tmp_path / "second", onto=tmp_path / "first", known="train")
    assert len(result.known_before) == 3
    first, second = Patch.load(tmp_path / "second").teachings
    assert (len(first.facts), len(second.facts)) == (0, 3)


def test_a_chat_is_known_again_whatever_its_template_writes(tmp_path: Path) -> None:
    dated = chatml()
    dated.chat_template = "{{ strftime_now('%f') }}" + CHATML

    def said(answer: str) -> list[dict[str, Any]]:
        turns = (("user", "the land of Oslo?"), ("assistant", answer))
        return [{"messages": [{"role": role, "content": text} for role, text in turns]}]

    taught(tmp_path / "first", said("land"), tokenizer=dated)
    result = taught(data=said("be"), onto=tmp_path / "first", tokenizer=dated)
    assert result.corrected == ("chat: the land of Oslo?",)


def test_a_long_answer_that_ends_otherwise_is_another(tmp_path: Path) -> None:
    long = "the land of the code of " * 6
    taught(tmp_path / "first", prompts(("Oslo is", f"{long}land")))
    new = prompts(("Oslo is", f"{long}code"))
    assert taught(data=new, onto=tmp_path / "first").corrected == ("Oslo is",)


def test_a_model_is_as_it_was_when_teaching_it_fails() -> None:
    class Broken(Silent):
        def point(self, _point: Point) -> None:
            raise BrokenPipeError

    model, given = base(), {"tokenizer": TOKENIZER, "passes": 1}
    with pytest.raises(BrokenPipeError):
        learn(model, FACTS, progress=Broken(), **given)
    assert not memory_layers_of(model)
    assert all(weight.requires_grad for weight in model.parameters())
    assert learn(model, FACTS, **given).groups == 3
