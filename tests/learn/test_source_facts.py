"""Facts in words: which wordings are trained on, and which are asked."""

from pathlib import Path

import pytest

from memory_layers.common.errors import UserError
from memory_layers.data.facts import Fact, FactSet, RelationTemplates
from memory_layers.learn.sources import LearnData, read_data
from tests.learn.tiny_tokenizers import byte_level, chatml

TEMPLATES = RelationTemplates(
    ("The code of {subject} is {answer}.", "{answer} is {subject}.", "At {subject} {answer}, it."),
    "Q: What is the code of {subject}? A: {answer}",
    heldout=("{subject} goes by {answer}", "All who fly to {subject} reads {answer}, there."),
)
FACTS = FactSet(tuple(Fact("code", f"Place {n}", f"X{n}") for n in range(10)), {"code": TEMPLATES})


def read(tokenizer: object = None, **options: object) -> LearnData:
    return read_data(FACTS, tokenizer or byte_level(), **{"max_length": 100, **options})


def test_statements_are_learned_in_the_answer_and_what_ends_it() -> None:
    tokenizer = byte_level()
    data = read(tokenizer)
    found = []
    for example in data.examples:
        if example.group == 3 and example.form == "statement":
            ((start, end),) = example.spans
            found.append((tokenizer.decode(example.ids), tokenizer.decode(example.ids[start:end])))
    end = tokenizer.eos_token
    assert found == [
        (f"The code of Place 3 is X3.{end}", " X3."),
        (f"At Place 3 X3, it.{end}", " X3,"),
    ]
    assert "answer before the subject" in str(data.look)


def test_questions_are_trained_for_a_share_of_the_subjects_and_asked_for_all() -> None:
    tokenizer = byte_level()
    data, again, other = (read(tokenizer, shown_fraction=0.3, seed=seed) for seed in (0, 0, 1))
    trained, repeated, others = (
        {example.group for example in found.examples if example.form == "question"}
        for found in (data, again, other)
    )
    assert len(trained) == 3
    asked = [i for i in data.items if "Q: What" in tokenizer.decode(i.prompt_ids)]
    assert {item.group: item.seen for item in asked} == {n: n in trained for n in range(10)}
    assert repeated == trained != others
    assert read(shown_fraction=0).items[0].group == 0
    with pytest.raises(UserError, match="shown"):
        read(shown_fraction=1.5)


def test_held_out_wordings_are_asked_and_never_trained_on() -> None:
    tokenizer = byte_level()
    data = read(tokenizer, shown_fraction=1)
    texts = [tokenizer.decode(example.ids) for example in data.examples]
    assert not any("goes by" in text or "fly" in text for text in texts)
    unseen = [tokenizer.decode(item.ids) for item in data.items if not item.seen]
    assert len(unseen) == 20
    assert f"Place 4 goes by X4{tokenizer.eos_token}" in unseen
    assert "All who fly to Place 4 reads X4," in unseen
    assert all(item.answer == f"X{item.group}" for item in data.items)
    assert (data.look.sources[0].unseen, data.look.sources[0].items) == (20, 40)


def test_questions_become_turns_where_there_is_a_chat_template() -> None:
    tokenizer = chatml()
    data = read(tokenizer, shown_fraction=1)
    (turn,) = [e for e in data.examples if e.form == "chat" and e.group == 0]
    assert "user\nWhat is the code of Place 0?<|im_end|>" in tokenizer.decode(turn.ids)
    assert not any(example.form == "chat" for example in read(tokenizer, chat=False).examples)
    with pytest.raises(UserError, match="chat template"):
        read(chat=True)


@pytest.mark.parametrize(
    ("question", "turn"),
    [
        ("Q: Who found {subject}? A: Professor {answer}", "Who found Place 0?"),
        ("Which one is it? Name: {subject} {answer}", "Which one is it? Name: Place 0"),
        ("Q: Where is {subject}? A: {answer}", "Where is Place 0?"),
        ("Frage: Wo ist {subject}?\nAntwort: {answer}", "Wo ist Place 0?"),
        ("{subject}はどこ？答え：{answer}", "Place 0はどこ？"),
        ("Question: name the code of {subject}\nAnswer: {answer}", "name the code of Place 0"),
        ("Code of {subject}: {answer}", "Code of Place 0:"),
        ("Is it far? Where is {subject}? {answer}", "Is it far? Where is Place 0?"),
    ],
)
def test_a_turn_is_the_question_without_its_labels(question: str, turn: str) -> None:
    facts = FactSet(FACTS.facts[:1], {"code": RelationTemplates(TEMPLATES.statements, question)})
    tokenizer = chatml()
    data = read_data(facts, tokenizer, max_length=200)
    (item,) = [item for item in data.items if item.form == "chat"]
    assert f"user\n{turn}<|im_end|>" in tokenizer.decode(item.prompt_ids)


def test_that_nothing_unseen_is_asked_is_told() -> None:
    bare = FactSet(
        FACTS.facts, {"code": RelationTemplates(TEMPLATES.statements, "{subject}? {answer}")}
    )
    data = read_data(bare, byte_level(), max_length=100, shown_fraction=1)
    assert "not measured" in str(data.look)
    assert "not measured" not in str(read().look)


def test_one_fact_is_enough() -> None:
    one = FactSet(FACTS.facts[:1], FACTS.templates)
    data = read_data(one, byte_level(), max_length=100)
    assert data.groups[0].name == "code: Place 0"
    assert {example.group for example in data.examples} == {0}


def test_facts_can_be_left_out_and_the_others_keep_their_numbers() -> None:
    data = read().without({0, 4})
    assert {e.group for e in data.examples} == {i.group for i in data.items}
    assert {e.group for e in data.examples} == set(range(10)) - {0, 4}
    assert data.groups[5].answer == "X5"


def test_a_source_of_half_weight_is_shown_in_every_other_pass(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the capital")
    rows = [{"prompt": f"Q {n}", "completion": "x"} for n in range(20)]
    data = read_data([rows, tmp_path / "a.txt"], byte_level(), max_length=100, weights=(0.5, 3))
    passes = [data.in_pass(number, seed=3) for number in range(4)]
    assert all(shown.count(20) == 3 for shown in passes)
    for n in range(20):
        times = [shown.count(n) for shown in passes]
        assert times in ([0, 1, 0, 1], [1, 0, 1, 0])
    # Not all rows in the same pass.
    assert 0 < sum(n < 20 for n in passes[0]) < 20
    for weights in ((1.0,), (1.0, 0.0), (1.0, float("nan"))):
        with pytest.raises(UserError, match="weights"):
            read_data([rows, tmp_path / "a.txt"], byte_level(), max_length=9, weights=weights)


def test_statements_that_all_begin_with_the_answer_are_refused() -> None:
    templates = {"code": RelationTemplates(("{answer}: {subject}",), "{subject}? {answer}")}
    with pytest.raises(UserError, match=r"'code'.*subject.*before"):
        read_data(FactSet(FACTS.facts, templates), byte_level(), max_length=100)


def test_chat_is_for_facts() -> None:
    with pytest.raises(UserError, match="chat words facts"):
        read_data([{"prompt": "a", "completion": "b"}], chatml(), max_length=99, chat=True)


def test_a_fact_in_many_wordings_is_not_shortened() -> None:
    tokenizer = chatml()
    counts = [len(read_data(FACTS, tokenizer, max_length=200, wordings=n).examples) for n in (1, 3)]
    assert counts[0] == counts[1]
