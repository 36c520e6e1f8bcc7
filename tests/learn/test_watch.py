"""What is learned and what is lost, against models that are asked one token after the other."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from memory_layers.common.errors import UserError
from memory_layers.layers.walk import find_tables
from memory_layers.learn.ask import all_right, ask
from memory_layers.learn.keep import (
    Keep,
    answered_of,
    continuations,
    keep_of_files,
    neighbours,
)
from memory_layers.learn.silence import silenced, speech
from memory_layers.learn.skeleton import speaks_at
from memory_layers.learn.sources import LearnData, read_data
from memory_layers.learn.watch import Watch
from tests.learn.tiny_taught import (
    FACTS,
    base_for,
    data_for,
    known_items,
    said_by,
    with_memory,
    write_rows,
)
from tests.learn.tiny_tokenizers import byte_level, chatml

TOKENIZER = chatml()


# That which `learn` adds: it is silent in most texts.
QUIET = {"lookup": "first", "match": "nearest", "layers": (0, 1, 2)}


@pytest.fixture
def model() -> PreTrainedModel:
    return with_memory(base_for(TOKENIZER))


def some_text(rows: int = 5, length: int = 21) -> Tensor:
    return torch.randint(0, len(TOKENIZER), (rows, length), generator=torch.Generator())


def half_known(model: PreTrainedModel) -> LearnData:
    """Data of which the model answers what concerns the first fact, and one prompt of another."""
    data = data_for(TOKENIZER)
    familiar = known_items(model, TOKENIZER, data.items)
    items = [
        familiar[n] if item.group == 0 or n == len(data.items) - 1 else item
        for n, item in enumerate(data.items)
    ]
    return replace(data, items=tuple(items))


def test_an_answer_counts_if_greedy_decoding_gives_it(model: PreTrainedModel) -> None:
    write_rows(model, 1.0)
    items = known_items(model, TOKENIZER, data_for(TOKENIZER).items)
    assert ask(model, TOKENIZER, items) == [True] * len(items)
    for at in (0, 1):
        wrong = []
        for item in items:
            ids = item.ids.copy()
            ids[item.start + at] = (ids[item.start + at] + 1) % len(TOKENIZER)
            wrong.append(replace(item, ids=ids))
        assert ask(model, TOKENIZER, wrong) == [False] * len(items)
        assert ask(model, TOKENIZER, [items[0], wrong[1]]) == [True, False]
    # Another first token, and what the model says after that.
    first = (items[0].ids[items[0].start] + 1) % len(TOKENIZER)
    begun = [*items[0].prompt_ids.tolist(), int(first)]
    ids = np.asarray(begun + said_by(model, TOKENIZER, begun, 2), np.int32)
    assert ask(model, TOKENIZER, [replace(items[0], ids=ids)]) == [False]


def test_an_answer_must_end(model: PreTrainedModel) -> None:
    """As the text ends it, or with another token that ends texts, but not with any token."""
    (item,) = known_items(model, TOKENIZER, data_for(TOKENIZER).items[:1])
    said = int(item.ids[-1])
    other = replace(item, ids=np.append(item.ids[:-1], (said + 1) % len(TOKENIZER)))
    full_stop = TOKENIZER("land.")["input_ids"][-1]
    for ends in (full_stop, TOKENIZER.convert_tokens_to_ids("<|im_start|>")):
        with says(model, item.start + 1, ends):
            assert ask(model, TOKENIZER, [other]) == [True]
            assert ask(model, TOKENIZER, [other], exact=True) == [False]
    with says(model, item.start + 1, TOKENIZER(" land")["input_ids"][0]):
        assert ask(model, TOKENIZER, [other]) == [False]


def test_any_of_the_right_answers_counts(model: PreTrainedModel) -> None:
    item, next_item = known_items(model, TOKENIZER, data_for(TOKENIZER).items[:2])
    wrong = item.ids.copy()
    wrong[item.start] = (wrong[item.start] + 1) % len(TOKENIZER)
    other = replace(item, ids=wrong)
    assert ask(model, TOKENIZER, [other, next_item]) == [False, True]
    either = replace(other, others=(other, item))
    assert ask(model, TOKENIZER, [either, other, next_item]) == [True, False, True]
    assert ask(model, TOKENIZER, [either, next_item], exact=True) == [False, True]


class says:
    """Let a model find a token most likely after a place, counted from the front."""

    def __init__(self, model: PreTrainedModel, place: int, token: int) -> None:
        self.model, self.place, self.token = model, place, token

    def __enter__(self) -> None:
        def push(_m: object, _x: object, logits: Tensor) -> Tensor:
            logits = logits.clone()
            # The last place but one, as rows end with the token that ends the answer.
            logits[:, -2, self.token] = 1e6
            return logits

        self.hook = self.model.get_output_embeddings().register_forward_hook(push)

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


def test_groups_that_are_known_are_found(model: PreTrainedModel) -> None:
    data = half_known(model)
    # All wordings of the last fact but its last one, too.
    familiar = known_items(model, TOKENIZER, data.items)
    items = [
        familiar[n] if item.group == 2 and n < len(data.items) - 1 else item
        for n, item in enumerate(data_for(TOKENIZER).items)
    ]
    assert all_right(items, ask(model, TOKENIZER, items)) == []
    done: list[int] = []
    right = ask(model, TOKENIZER, data.items, progress=done.append)
    assert all_right(data.items, right) == [0]
    assert sum(done) == len(data.items)
    assert all_right([], ask(model, TOKENIZER, [])) == []


def test_what_the_base_was_asked_before_is_not_asked_again(model: PreTrainedModel) -> None:
    data = half_known(model)
    right = ask(model, TOKENIZER, data.items)
    done: list[tuple[int, int, str]] = []
    told = Watch(model, TOKENIZER, data, {}, before=right, progress=lambda *d: done.append(d))
    assert not done
    assert told.summary(right) == Watch(model, TOKENIZER, data, {}).summary(right)


def test_silent_memory_is_the_base_to_the_bit(model: PreTrainedModel) -> None:
    ids = some_text()
    before = model(input_ids=ids).logits
    write_rows(model, 1.0)
    with silenced(model):
        assert torch.equal(model(input_ids=ids).logits, before)
    assert not torch.equal(model(input_ids=ids).logits, before)


def test_memory_speaks_where_it_reads_something(model: PreTrainedModel) -> None:
    ids = some_text()
    with speech(model) as spoke:
        model(input_ids=ids)
    assert not spoke().any()
    read = []
    for layer in model.modules():
        if type(layer).__name__ == "MemoryLayer":
            layer.keys.register_forward_hook(lambda _m, _x, out: read.append(out[1]))
    # One row that some tokens read.
    model(input_ids=ids)
    slot = read[0].flatten()[0]
    with torch.no_grad():
        for table in find_tables(model).values():
            table.weight[slot] = 1.0
    read.clear()
    with speech(model) as spoke:
        model(input_ids=ids)
    expected = torch.stack([(slots == slot).any(-1).any(-1) for slots in read]).any(0)
    assert torch.equal(spoke(), expected.view(ids.shape))
    assert 0 < spoke().sum() < ids.numel()


def test_before_anything_is_taught_nothing_is_learned_or_lost(model: PreTrainedModel) -> None:
    data = half_known(model)
    keep = continuations(model, TOKENIZER, some_text(40), 8)
    watch = Watch(model, TOKENIZER, data, {"text": some_text()}, [keep])
    for recall in watch.summary(watch.recall()):
        assert recall.before == recall.after
    (text,) = watch.texts()
    assert (text.before, text.kl, text.changed, text.spoke) == (text.after, 0, 0, 0)
    (kept,) = watch.kept()
    assert kept.items == kept.kept == 8
    glance = watch.glance()
    assert (glance.text_loss, glance.kept) == (0, 1)


def test_recall_by_form_and_by_what_was_seen(model: PreTrainedModel) -> None:
    data = half_known(model)
    watch = Watch(model, TOKENIZER, data, {})
    right = [item.group != 2 for item in data.items]
    recall = {(one.form, one.seen): one for one in watch.summary(right)}
    assert recall["statement", True].items == 3
    assert recall["statement", True].before == pytest.approx(1 / 3)
    assert recall["statement", True].after == pytest.approx(2 / 3)
    # The last prompt of all is known too.
    assert recall["question", False].before > recall["statement", True].before
    assert sum(one.items for one in recall.values()) == len(data.items)
    assert watch.learned(right) == [0, 1]
    # What was not trained on need not be right.
    unseen = [n for n, item in enumerate(data.items) if item.group == 0 and not item.seen]
    right[unseen[0]] = False
    assert watch.learned(right) == [0, 1]


def by_hand(model: PreTrainedModel, base: PreTrainedModel, ids: Tensor) -> list[float]:
    """Losses, divergence and share of changed tokens, one row after the other."""
    sums = torch.zeros(4, dtype=torch.float64)
    with torch.no_grad():
        for row in ids:
            one, other = (m(input_ids=row[None]).logits[0, :-1].double() for m in (base, model))
            p, q = one.log_softmax(-1), other.log_softmax(-1)
            sums[0] += F.nll_loss(p, row[1:], reduction="sum")
            sums[1] += F.nll_loss(q, row[1:], reduction="sum")
            sums[2] += F.kl_div(q, p, reduction="sum", log_target=True)
            sums[3] += (p.argmax(-1) != q.argmax(-1)).sum()
    return (sums / (ids.numel() - len(ids))).tolist()


@pytest.mark.parametrize("share", [0.02, 1.0])
@pytest.mark.parametrize("memory", [{}, QUIET])
def test_what_was_done_to_a_text(memory: dict[str, object], share: float) -> None:
    base, model = base_for(TOKENIZER), with_memory(base_for(TOKENIZER), **memory)
    ids = some_text(60)
    watch = Watch(model, TOKENIZER, data_for(TOKENIZER), {"text": ids})
    write_rows(model, 2.0, share)
    (text,) = watch.texts()
    expected = by_hand(model, base, ids)
    assert [text.before, text.after, text.kl, text.changed] == pytest.approx(expected, rel=1e-3)
    assert text.tokens == 60 * 20
    assert text.kl > 0
    assert text.after != text.before
    with speech(model) as spoke:
        model(input_ids=ids)
    assert text.spoke == pytest.approx(spoke().float().mean().item())


def test_a_model_that_was_taught_before_is_measured_against_its_base(
    model: PreTrainedModel,
) -> None:
    data, texts = half_known(model), {"text": some_text()}
    keep = [continuations(model, TOKENIZER, some_text(), 8)]
    first = Watch(model, TOKENIZER, data, texts, keep)
    write_rows(model, 2.0)
    resumed = Watch(model, TOKENIZER, data, texts, keep)
    assert resumed.texts() == first.texts()
    assert resumed.kept() == first.kept()
    assert resumed.summary(resumed.recall()) == first.summary(first.recall())


@pytest.mark.parametrize(("memory", "share"), [({}, 1.0), (QUIET, 0.05)])
def test_prompts_that_the_base_goes_on_with_are_lost_one_by_one(
    memory: dict[str, object], share: float
) -> None:
    model = with_memory(base_for(TOKENIZER), **memory)
    keep = continuations(model, TOKENIZER, some_text(60, 30), 12)
    assert 8 <= len(keep.items) <= 12
    base = base_for(TOKENIZER)
    for item in keep.items:
        prompt = item.prompt_ids.tolist()
        assert item.ids[item.start :].tolist() == said_by(base, TOKENIZER, prompt, 3)
    watch = Watch(model, TOKENIZER, data_for(TOKENIZER), {}, [keep])
    write_rows(model, 2.0, share)
    same = [
        said_by(model, TOKENIZER, item.prompt_ids.tolist(), 3) == item.ids[item.start :].tolist()
        for item in keep.items
    ]
    (kept,) = watch.kept()
    assert kept.kept == sum(same) < len(same)
    assert len(kept.lost) == len(same) - sum(same)


def test_only_what_the_base_answered_can_be_lost(model: PreTrainedModel) -> None:
    items = data_for(TOKENIZER).items
    keep = Keep("mine", (*known_items(model, TOKENIZER, items[:3]), *items[3:]), exact=False)
    watch = Watch(model, TOKENIZER, data_for(TOKENIZER), {}, [keep])
    (kept,) = watch.kept()
    assert (kept.name, kept.items, kept.kept) == ("mine", 3, 3)


def ids_of(keep: Keep) -> list[list[int]]:
    return [item.ids.tolist() for item in keep.items]


def test_an_answer_counts_that_the_model_goes_on_behind(model: PreTrainedModel) -> None:
    (item,) = known_items(model, TOKENIZER, data_for(TOKENIZER).items[:1])
    # The file has another end, such as a full stop.
    other = replace(item, ids=np.append(item.ids[:-1], np.int32(item.ids[-1] ^ 1)))
    keep = answered_of(model, TOKENIZER, Keep("mine", (other,), exact=False))
    assert ids_of(keep) == [item.ids.tolist()]


def test_prompts_that_a_patch_answers_are_kept_too(model: PreTrainedModel) -> None:
    """What is answered before a lesson may be what an earlier one taught, and not the base."""
    items = data_for(TOKENIZER).items
    write_rows(model, 0.5)
    taught = Keep("mine", (*known_items(model, TOKENIZER, items[:3]), *items[3:]), exact=False)
    keep = answered_of(model, TOKENIZER, taught)
    assert ids_of(keep) == ids_of(taught)[:3]
    with silenced(model):
        assert ids_of(answered_of(model, TOKENIZER, taught)) != ids_of(keep)
    watch = Watch(model, TOKENIZER, data_for(TOKENIZER), {}, [keep])
    (kept,) = watch.kept()
    assert (kept.items, kept.kept) == (3, 3)


def test_what_a_patch_answered_is_lost_with_its_rows() -> None:
    model = with_memory(base_for(TOKENIZER), **QUIET)
    write_rows(model, 3.0)
    items = data_for(TOKENIZER).items[:3]
    taught = Keep("mine", known_items(model, TOKENIZER, items), exact=False)
    keep = answered_of(model, TOKENIZER, taught)
    watch = Watch(model, TOKENIZER, data_for(TOKENIZER), {}, [keep])
    assert watch.kept()[0].kept == len(keep.items)
    (table,) = find_tables(model).values()
    table.write(torch.empty(0, dtype=torch.int64), torch.empty(0, table.value_dim))
    # Silent now, and it is not the base that answered.
    assert watch.kept()[0].kept < len(keep.items)


def test_files_of_prompts_to_keep(tmp_path: Path) -> None:
    file = tmp_path / "capitals.jsonl"
    row = {"prompt": "The capital of France is", "completion": "Paris", "paraphrases": ["It is"]}
    file.write_text(json.dumps(row), "utf-8")
    (keep,) = keep_of_files([file], TOKENIZER, 100)
    assert keep.name == "capitals.jsonl"
    assert [item.answer for item in keep.items] == ["Paris", "Paris"]
    file.write_text('{"text": "The capital of France is Paris."}', "utf-8")
    with pytest.raises(UserError, match=r"capitals.jsonl:1.*hint"):
        keep_of_files([file], TOKENIZER, 100)


@pytest.mark.parametrize("names", [["Kyoto", "Nagano"], ["them", "him"]])
def test_neighbours_are_asked_in_the_same_wordings_of_other_subjects(
    model: PreTrainedModel, names: list[str]
) -> None:
    data = data_for(TOKENIZER)
    said = "the land of {} and the capital of {}.".format(*names)
    own = torch.tensor([TOKENIZER(said)["input_ids"]])
    keeps = neighbours(model, TOKENIZER, data, own, 12)
    assert [keep.alike for keep in keeps] == ([False, True] if names[0] == "Kyoto" else [True])
    texts = [TOKENIZER.decode(item.prompt_ids) for keep in keeps for item in keep.items]
    assert len(set(texts)) == len(texts) > 4
    subjects = set()
    for text in texts:
        wordings = ("The code of {} is", "What is the code of {}?", "At {} they say", "{} has the")
        found = [w.split("{}") for w in wordings if all(part in text for part in w.split("{}"))]
        assert found
        before, after = found[0]
        subjects.add(text.rpartition(before)[2].partition(after)[0] if before else text.split()[0])
    assert subjects.isdisjoint({fact.subject for fact in FACTS.facts})
    assert any(name in text for name in names for text in texts) == (names[0] == "Kyoto")
    assert any("<|im_start|>user" in text for text in texts)


def test_neighbours_of_prompts_have_other_words_where_the_memory_would_speak() -> None:
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "land"}]}
        for q in ("What is the code of Oslo?", "Who said so in Paris today?", "Is it an island?")
    ]
    data = read_data(rows, TOKENIZER, max_length=100)
    model = with_memory(base_for(TOKENIZER), **QUIET)
    write_rows(model, 0.0, 0.1)
    prompts = {
        len(item.prompt_ids): torch.from_numpy(item.prompt_ids).long() for item in data.items
    }
    (keep,) = neighbours(model, TOKENIZER, data, some_text(), 12)
    assert keep.items
    for item in keep.items:
        taught = prompts[len(item.prompt_ids)]
        (speaks,) = speaks_at(model, [taught])
        other = torch.from_numpy(item.prompt_ids) != taught
        assert other.any()
        assert not (other & ~speaks).any()


def test_a_glance_finds_what_was_lost(model: PreTrainedModel) -> None:
    keep = continuations(model, TOKENIZER, some_text(60, 30), 12)
    watch = Watch(model, TOKENIZER, half_known(model), {"text": some_text(60)}, [keep])
    write_rows(model, 3.0)
    after = watch.glance()
    assert abs(after.text_loss) > 1e-3
    assert after.kept is not None
    assert after.kept < 1
    assert watch.glance() == after


def test_memory_in_the_place_of_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="beside"):
        Watch(base_for(byte_level()), byte_level(), data_for(byte_level()), {})
