"""`learn` from data to patch, on a tiny model."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_taught import FACTS, base_for
from tiny_tokenizers import chatml
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from memory_layers.common.errors import UserError
from memory_layers.data.facts import Fact, FactSet
from memory_layers.learn import learn
from memory_layers.learn.cues import find_cues
from memory_layers.learn.result import Silent
from memory_layers.learn.sources import read_data
from memory_layers.learn.state import State
from memory_layers.learn.train import Trainer
from memory_layers.models import Patch, load_memory, patch_of, revert_patch

TOKENIZER = chatml()


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def base():
    """An untrained model whose attention is strong enough to carry something to other tokens."""
    torch.manual_seed(3)
    sizes = {"num_hidden_layers": 6, "hidden_size": 64, "initializer_range": 0.15}
    return base_for(TOKENIZER, **sizes).float().eval()


class Stages(Silent):
    """A display that keeps what it is told."""

    def __init__(self):
        self.stages = []

    def stage(self, text):
        self.stages.append(text)


def logits(model, text="Oslo and Paris are in Europe"):
    with torch.no_grad():
        return model(torch.tensor([TOKENIZER(text)["input_ids"]])).logits


def taught(out=None, model=None, data=FACTS, **options):
    options = {"passes": 5, **options}
    return learn(model or base(), data, tokenizer=TOKENIZER, out=out, **options)


def look_after_each_pass(monkeypatch):
    for name in ("LOOK_EVERY", "LOOKS"):
        monkeypatch.setattr(f"memory_layers.learn.lesson.{name}", 0)


def test_facts_come_nearer_and_other_text_stays_to_the_bit(tmp_path, monkeypatch):
    look_after_each_pass(monkeypatch)
    model = base()
    result = taught(tmp_path / "patch", model)
    assert result.stopped == "passes"
    # An untrained model has little that carries an answer, but its loss falls.
    assert result.curve[-1].loss < 0.95 * result.curve[0].loss
    assert result.groups == 3
    assert all(text.spoke < 0.05 for text in result.texts)
    other = "user said what land"
    assert torch.equal(logits(model, other), logits(base(), other))
    # The patch is all that is needed beside the base.
    loaded = load_memory(base(), tmp_path / "patch")
    assert torch.equal(logits(loaded), logits(model))
    assert not torch.equal(logits(loaded), logits(base()))
    names = {"memory.json", "memory.safetensors", "result.json", "report.html"}
    assert {path.name for path in (tmp_path / "patch").iterdir()} == names


def test_a_single_fact_can_be_reverted(tmp_path):
    taught(tmp_path / "patch")
    patch = Patch.load(tmp_path / "patch")
    model = load_memory(base(), tmp_path / "patch")
    revert_patch(model, patch, facts="Oslo")
    asked = "Q: What is the code of {}? A:"
    whole = load_memory(base(), tmp_path / "patch")
    assert torch.equal(logits(model, asked.format("Oslo")), logits(base(), asked.format("Oslo")))
    assert torch.equal(logits(model, asked.format("Paris")), logits(whole, asked.format("Paris")))


@pytest.mark.parametrize("at", ["pass 2", "pass 3", "asking what was taught"])
def test_an_interrupted_teaching_goes_on_with_equal_weights(at, tmp_path, monkeypatch):
    look_after_each_pass(monkeypatch)
    backward = Trainer.backward
    # An untrained model never learns, and what is learned rests for a pass.
    monkeypatch.setattr(
        Trainer,
        "backward",
        lambda self, texts: (backward(self, texts)[0], [text.group == 0 for text in texts]),
    )
    taught(tmp_path / "whole", passes=4)

    class Killed(Exception):
        pass

    class Display(Silent):
        def work(self, done, total, name):
            if name == at:
                raise Killed

    with pytest.raises(Killed):
        taught(tmp_path / "cut", passes=4, progress=Display())
    assert list((tmp_path / "cut").glob("unfinished*"))
    # What was learned can be used while it has not been measured.
    assert (tmp_path / "cut" / "memory.json").exists() == at.startswith("asking")
    for other in ({"lr": 0.5}, {"known": "train"}, {"weights": [2]}):
        told = Stages()
        with pytest.raises(UserError, match=f"other {next(iter(other))}\\."):
            taught(tmp_path / "cut", passes=4, progress=told, **other)
        assert "adding the memory" not in told.stages
    result = taught(tmp_path / "cut", passes=4)
    assert [point.passes for point in result.curve] == [1, 2, 3, 4]
    assert not list((tmp_path / "cut").glob("unfinished*"))
    whole, cut = (Patch.load(tmp_path / name).rows()[1] for name in ("whole", "cut"))
    assert torch.equal(whole, cut)


def test_a_flipped_bit_of_an_unfinished_teaching_is_refused_or_harms_nothing(tmp_path):
    choices = {"model": "x", "lr": 0.1}
    tensors = {"rows": torch.arange(40.0).bfloat16(), "step": torch.tensor(3)}
    State(choices, "slots", tensors, passes=2, seconds=1.5, resting=[4]).save(tmp_path)
    (path,) = tmp_path.glob("unfinished*")
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = State.load(tmp_path, choices)
        except UserError:
            refused += 1
            continue
        assert (found.slots, found.passes, found.resting) == ("slots", 2, [4])
        assert all(torch.equal(found.tensors[name], tensors[name]) for name in tensors)
    assert refused > 100


def test_teaching_more_leaves_what_was_taught_before_to_the_bit(tmp_path):
    taught(tmp_path / "first")
    more = [{"prompt": "said by the island of Japan:", "completion": "東京"}]
    result = taught(tmp_path / "second", data=more, onto=tmp_path / "first")
    both = Patch.load(tmp_path / "second")
    assert len(both.teachings) == 2
    assert both.teachings[0].id == Patch.load(tmp_path / "first").teachings[0].id
    assert result.groups == 1
    asked = "Q: What is the code of Oslo? A:"
    one, two = (load_memory(base(), tmp_path / name) for name in ("first", "second"))
    assert torch.equal(logits(one, asked), logits(two, asked))


def knows(monkeypatch, *answers):
    """Let every model give these answers, and no others."""
    monkeypatch.setattr(
        "memory_layers.learn.teach.ask",
        lambda _model, _tokenizer, items, **_: [item.answer in answers for item in items],
    )


def test_another_answer_takes_the_place_of_the_first(tmp_path, monkeypatch):
    words = {**FACTS.templates, "land": replace(FACTS.templates["code"], statements=(
        "The land of {subject} is {answer}.", "{subject} is in {answer}."
    ))}  # fmt: skip
    oslo, france = (Fact("land", name, "Norway") for name in ("Oslo", "New France"))
    taught(tmp_path / "first", data=FactSet((*FACTS.facts, oslo, france), words), passes=1)
    knows(monkeypatch, "Norway")
    told = Stages()
    new = FactSet((Fact("code", "Oslo", "PAR"), france), words)
    again = {"onto": tmp_path / "first", "passes": 1}
    result = taught(tmp_path / "second", data=new, progress=told, **again)
    assert (result.corrected, result.gone) == (("code: Oslo",), ("land: Oslo",))
    assert any("1 of onto get other answers" in stage for stage in told.stages)
    assert any("land: Oslo. hint" in stage for stage in told.stages)
    assert result.known_before == ("land: New France",)
    first, second = Patch.load(tmp_path / "second").teachings
    assert not [fact for fact in first.facts if "Oslo" in fact.prompt]
    assert {fact.prompt: fact.answer for fact in second.facts} == {"code: Oslo": "PAR"}
    # Its rows are gone, and not only what is said of them.
    rows = {tuple(fact.rows.tolist()) for fact in first.facts}
    assert {*first.slots.tolist()} == {slot for of in rows for slot in of}
    # What stands in the same rows is learned again where it is given, though it was known.
    both = taught(data=FactSet((*new.facts, oslo), words), **again)
    assert (both.corrected, both.gone, both.groups) == (("code: Oslo",), (), 2)


def test_what_was_taught_and_is_not_answered_is_learned_again(tmp_path):
    taught(tmp_path / "first", passes=1)
    second = taught(tmp_path / "second", onto=tmp_path / "first", passes=1)
    assert (second.corrected, second.gone, second.groups) == ((), (), 3)
    assert second.rows == len(Patch.load(tmp_path / "first").rows()[0])
    # Facts of several teachings, and a patch that was applied in Python.
    third = taught(onto=Patch.load(tmp_path / "second"), passes=1)
    assert third.rows == second.rows


def test_what_is_kept_may_be_about_what_is_corrected(tmp_path):
    file = tmp_path / "keep.jsonl"
    asked = [f"{name} has the code" for name in ("Oslo", "Paris", "New France")]
    file.write_text(
        "".join(json.dumps({"prompt": q, "completion": "OSL"}) + "\n" for q in asked), "utf-8"
    )
    taught(tmp_path / "first", passes=1)
    planned = Patch.load(tmp_path / "first").rows()[1][:, :65]
    again = taught(tmp_path / "again", onto=tmp_path / "first", keep=[file], passes=1)
    assert torch.equal(Patch.load(tmp_path / "again").rows()[1][:, :65], planned)
    assert again.groups == 3


def test_a_model_with_memory_is_refused_as_it_is(tmp_path):
    taught(tmp_path / "first", passes=1)
    model = load_memory(base(), tmp_path / "first")
    with pytest.raises(UserError, match=r"has memory layers already.*onto"):
        taught(model=model, onto=tmp_path / "first")
    assert patch_of(model).ids == Patch.load(tmp_path / "first").ids


def test_what_the_model_knows_is_left_out_and_all_of_it_is_refused(monkeypatch):
    model = base()
    knows(monkeypatch, "OSL", "PAR", "NFR")
    with pytest.raises(UserError, match=r"answers all of it already.*known"):
        taught(model=model)
    # It can be taught all the same.
    assert all(weight.requires_grad for weight in model.parameters())
    assert taught(model=model, known="train", passes=1).groups == 3
    knows(monkeypatch, "OSL")
    result = taught(passes=1)
    assert result.known_before == ("code: Oslo",)
    assert result.groups == 2


def test_questions_that_may_be_others_are_not_corrected(tmp_path):
    def chat(before, question, answer):
        said = [*before, question, answer]
        return [{"messages": [
            {"role": role, "content": text}
            for role, text in zip(("user", "assistant") * 2, said, strict=False)
        ]}]  # fmt: skip

    long = "the land of Oslo " * 8
    first = chat(["Oslo?", "land"], "Where is it?", "Norway") + chat([], "What?", "land")
    first += chat(["Oslo?", "land"], "And it?", "Norway")
    second = chat([], "Where is it?", "Japan") + chat([], "What?", "land")
    second += chat(["Paris?", "land"], "And it?", "Japan")
    asked = [[{"prompt": f"{long} {end}", "completion": end}] for end in ("is", "was")]
    taught(tmp_path / "first", data=[first, asked[0]], passes=1)
    again = {"onto": tmp_path / "first", "known": "train", "passes": 1}
    assert taught(data=[second, asked[1]], **again).corrected == ()


def test_a_question_is_known_again_in_any_of_its_wordings(tmp_path):
    def rows(answer, *prompts):
        return [{"prompt": p, "completion": answer, "group": "g"} for p in prompts]

    one, two = "The land of Oslo is", "Oslo is in the land"
    taught(tmp_path / "first", data=rows("Norway", one, two), passes=1)
    for prompts in ((two, one), (two,)):
        again = taught(data=rows("Japan", *prompts), onto=tmp_path / "first", passes=1)
        assert again.corrected == (one,)


def test_the_turn_of_the_system_makes_another_question(tmp_path, monkeypatch):
    def chat(system, answer):
        said = (("system", system), ("user", "the land of Oslo?"), ("assistant", answer))
        return {"messages": [{"role": role, "content": text} for role, text in said]}

    both = [chat("said by Paris", "Norway"), chat("said by Japan", "France")]
    taught(tmp_path / "first", data=both, passes=1)
    knows(monkeypatch, "France")
    new = [chat("said by Paris", "Japan"), both[1]]
    again = taught(tmp_path / "second", data=new, onto=tmp_path / "first", passes=1)
    assert again.corrected == ("chat: the land of Oslo?",)
    teachings = Patch.load(tmp_path / "second").teachings
    assert sorted(fact.answer for of in teachings for fact in of.facts) == ["France", "Japan"]


def test_forgetting_one_prompt_leaves_the_others_to_the_bit(tmp_path):
    prompts = ["the code of Oslo is", "the code of Oslo and Paris and New France is",
               "the code of Paris is", "New France has the code"]  # fmt: skip
    data = [{"prompt": prompt, "completion": "land"} for prompt in prompts]
    taught(tmp_path / "first", data=data, passes=3)
    (teaching,) = Patch.load(tmp_path / "first").teachings
    whole = load_memory(base(), tmp_path / "first")
    for number, forgotten in enumerate(prompts):
        model = load_memory(base(), tmp_path / "first")
        revert_patch(model, teaching.id, {number})
        for prompt in prompts:
            if prompt != forgotten:
                assert torch.equal(logits(model, prompt), logits(whole, prompt))


def test_what_was_known_and_left_out_is_watched(tmp_path, monkeypatch):
    data = [
        {"prompt": "the code of Oslo is", "completion": "land"},
        {"prompt": "the land of Oslo is", "completion": "Norway"},
    ]
    knows(monkeypatch, "Norway")
    # The model does not say so, so it is lost.
    result = taught(data=data, passes=1)
    (kept,) = [kept for kept in result.kept if kept.name == "known before"]
    assert (kept.items, kept.kept) == (1, 0)


@pytest.mark.parametrize(
    "left", [".unfinished.safetensors.here.{}.part", ".memory.json.here.{}.mode.part"]
)
def test_what_a_killed_process_left_is_no_other_file(left, tmp_path, monkeypatch):
    monkeypatch.setattr("platform.node", lambda: "here")
    out = tmp_path / "out"
    out.mkdir()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (out / left.format(dead.pid)).write_text("half")
    os.utime(out / left.format(dead.pid), (0, 0))
    taught(out, passes=1)
    assert not list(out.glob(".*"))


def test_killed_before_its_report_it_goes_on_from_there(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("memory_layers.learn.teach.write_report", killed)
        with pytest.raises(KeyboardInterrupt):
            taught(tmp_path / "out", passes=1)
    before = Patch.load(tmp_path / "out").rows()[1]
    assert taught(tmp_path / "out", passes=1).passes == 1
    assert (tmp_path / "out" / "report.html").is_file()
    assert torch.equal(Patch.load(tmp_path / "out").rows()[1], before)


def test_a_name_that_is_no_utf_8_is_saved(tmp_path):
    author = os.fsdecode(b"J\xf6rg")
    taught(tmp_path / "out", passes=1, author=author)
    assert Patch.load(tmp_path / "out").teachings[0].author == author


def test_rows_that_are_shown_in_every_other_pass_are_learned_too():
    row = [{"prompt": "said by the island of Japan:", "completion": "東京"}]
    assert taught(data=row, weights=[0.5], passes=4).updates == 2


def test_in_a_conversation_all_turns_of_the_user_count():
    turns = [("user", "said"), ("assistant", "land"), ("user", "Oslo?"), ("assistant", "Norway")]
    messages = [{"role": role, "content": content} for role, content in turns]
    data = read_data([{"messages": messages}], TOKENIZER, max_length=256)
    (example,) = data.examples
    (_, end), (start, _) = example.spans
    places = {cue.place for cue in find_cues(data, TOKENIZER, ())}
    assert any(end < place < start for place in places)
    assert not any(low <= place < high for low, high in example.spans for place in places)


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "result.json").write_text("mine")
    with pytest.raises(UserError, match=r"result\.json"):
        taught(tmp_path)
    assert (tmp_path / "result.json").read_text() == "mine"


def test_a_base_in_four_bits_is_taught_where_it_computes_before_it_has_a_memory(tmp_path):
    pytest.importorskip("bitsandbytes")
    base().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base",
        quantization_config=BitsAndBytesConfig(load_in_4bit=True),
        device_map="cpu",
    )
    result = taught(tmp_path / "patch", model, passes=2)
    assert result.updates == 2


def test_a_state_of_other_rows_is_refused():
    state = State({}, slots="1")
    state.check_slots("1")
    with pytest.raises(UserError, match=r"other rows.*hint"):
        state.check_slots("2")


def test_a_finished_patch_is_not_overwritten(tmp_path):
    taught(tmp_path / "patch", passes=1)
    with pytest.raises(UserError, match="onto"):
        taught(tmp_path / "patch", passes=1)


@pytest.mark.parametrize("option", ["minutes", "passes", "lr"])
def test_wrong_numbers_are_named(option):
    with pytest.raises(UserError, match=option):
        taught(**{option: 0})


def test_the_record_says_who_taught_from_what(tmp_path):
    taught(tmp_path / "patch", passes=1, author="me")
    description = json.loads((tmp_path / "patch" / "memory.json").read_text("utf-8"))
    assert description["teachings"][0]["author"] == "me"
    assert len(description["teachings"][0]["facts"]) == 3


def test_running_text_is_not_counted_among_what_was_or_was_not_learned(tmp_path):
    text = [{"text": "the land of Oslo and of Paris"}]
    result = taught(data=[FACTS, text], passes=1)
    assert result.groups == 3
    assert len(result.not_learned) == 3
