"""What was taught is a set of rows: applied, reverted and merged, to the bit, in any order."""

import copy
import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import IDS, tiny_model
from tiny_models import tiny_memory
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from memory_layers import MemoryAdamW
from memory_layers.layers import ValueTable
from memory_layers.layers.walk import find_tables
from memory_layers.models import (
    Fact,
    Patch,
    add_memory,
    apply_patch,
    backbone_of,
    freeze_all_but_memory,
    load_memory,
    memory_layers_of,
    merge_patches,
    patch_of,
    record_teaching,
    remove_memory,
    revert_patch,
    save_memory,
)

SLOTS = 36


def untaught(
    seed: int = 0, dtype: torch.dtype = torch.float32, **memory: object
) -> PreTrainedModel:
    """A base with memory whose values are zero, its skeleton drawn from a seed."""
    model = tiny_model("llama", dtype)
    torch.manual_seed(seed)
    config = tiny_memory(**{"placement": "beside", "value_init_std": 0, **memory})
    return freeze_all_but_memory(add_memory(model, config))


def tables_of(model: PreTrainedModel) -> Tensor:
    """All values, those of one table after those of another."""
    return torch.cat([table.weight.detach() for table in values_of(model)])


def values_of(model: PreTrainedModel) -> list[ValueTable]:
    """The tables of values, without those of experts."""
    return [table for name, table in find_tables(model).items() if name.endswith("memory_table")]


def write(model: PreTrainedModel, slots: list[int], seed: int = 0) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(1000 + seed)
    with torch.no_grad():
        for slot in slots:
            table = values_of(model)[slot // SLOTS]
            row = torch.randn(table.value_dim, generator=generator)
            table.weight[slot % SLOTS] = row.to(table.weight)
    return model


def taught(slots: list[int], seed: int = 0, **changes: object) -> Patch:
    """The patch of a memory in which some rows were written at random."""
    return record_teaching(write(untaught(**changes), slots, seed), author=f"author {seed}")


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def with_patches(patches: list[Patch], rule: str = "refuse") -> Tensor:
    """The rows of a plain base to which patches are applied in this order."""
    model = tiny_model("llama")
    for patch in patches:
        apply_patch(model, patch, rule)
    return tables_of(model) if patches else torch.zeros(SLOTS, 16)


def test_a_taught_memory_comes_back_from_a_small_file(tmp_path: Path) -> None:
    model = untaught()
    optimizer = MemoryAdamW(model.train(), lr=1e-2)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    model.eval()
    written = int(tables_of(model).any(1).sum())
    assert 0 < written < SLOTS
    save_memory(model, tmp_path)
    weights = load_file(tmp_path / "memory.safetensors")
    assert sum(len(t) for name, t in weights.items() if name.endswith("slots")) == written
    assert not any(tensor.shape == (SLOTS, 16) for tensor in weights.values())
    loaded = load_memory(tiny_model("llama"), tmp_path)
    assert torch.equal(tables_of(loaded), tables_of(model))
    assert torch.equal(logits(loaded), logits(model))
    # Onto one that has rows of its own, which go.
    other = write(untaught(seed=3), [0, 35])
    assert torch.equal(logits(load_memory(other, tmp_path)), logits(model))


@pytest.mark.parametrize(
    "memory",
    [
        {"share_values": False},
        {"placement": "replace"},
        {"readout": "experts", "gate": "none"},
        {"value_dim": 8, "gate": "sigmoid", "sink_slot": True},
    ],
    ids=str,
)
def test_every_kind_of_memory_makes_a_patch(memory: dict[str, object], tmp_path: Path) -> None:
    last = 2 * SLOTS - 1 if memory.get("share_values") is False else SLOTS - 1
    model = write(untaught(**memory), [0, 5, last])
    patch = record_teaching(model)
    assert patch.teachings[0].slots.tolist() == [0, 5, last]
    patch.save(tmp_path)
    loaded = load_memory(tiny_model("llama"), tmp_path)
    assert torch.equal(tables_of(loaded), tables_of(model))
    assert torch.equal(logits(loaded), logits(model))
    revert_patch(loaded, patch)
    assert not tables_of(loaded).any()


def test_whole_tables_of_before_are_loaded(tmp_path: Path) -> None:
    model = write(untaught(), [1, 2])
    save_memory(model, tmp_path)
    path = tmp_path / "memory.json"
    values = json.loads(path.read_text("utf-8"))
    for name in ("teachings", "rule", "skeleton"):
        del values[name]
    path.write_text(json.dumps(values), "utf-8")
    weights = dict(load_file(tmp_path / "memory.safetensors"))
    weights = {name: t for name, t in weights.items() if not name.startswith("teachings")}
    weights["memory_table.weight"] = tables_of(model)
    save_file(weights, tmp_path / "memory.safetensors")
    loaded = load_memory(tiny_model("llama"), tmp_path)
    assert torch.equal(tables_of(loaded), tables_of(model))
    with pytest.raises(ValueError, match="is no patch but a memory with whole tables"):
        Patch.load(tmp_path)


def test_who_taught_what_when_comes_back(tmp_path: Path) -> None:
    model = write(untaught(), [3, 4, 9, 20])
    data = [{"name": "facts.jsonl", "sha256": "ab", "rows": 7, "facts": 2}]
    facts = [
        Fact("Paris is in", "France", torch.tensor([9, 3, 3, 30])),
        Fact("Où est Rome ?", "Italie", torch.tensor([], dtype=torch.int64)),
    ]
    record_teaching(model, author="Ada", data=data, settings={"lr": 0.1}, facts=facts).save(
        tmp_path
    )
    (teaching,) = Patch.load(tmp_path).teachings
    assert (teaching.author, teaching.data, teaching.settings) == ("Ada", data, {"lr": 0.1})
    assert teaching.created.endswith("Z")
    assert teaching.slots.tolist() == [3, 4, 9, 20]
    found = [(fact.prompt, fact.answer, fact.rows.tolist()) for fact in teaching.facts]
    # Slot 30 was read and not changed.
    assert found == [("Paris is in", "France", [3, 9]), ("Où est Rome ?", "Italie", [])]
    for message, history in {
        "must be plain values": {"settings": {"model": model}},
        "author must be of type str, got None": {"author": None},
        "facts must have a prompt": {"facts": [Fact("x", 7, torch.tensor([1]))]},
        "data must be a list of sources": {"data": ["facts.jsonl"]},
    }.items():
        with pytest.raises(ValueError, match=message):
            record_teaching(write(model, [1]), **history)
    assert patch_of(model).ids[0] == teaching.id


@pytest.mark.parametrize("seed", range(4))
def test_disjoint_patches_in_any_order(seed: int) -> None:
    """Whatever is applied and reverted when, the rows are those of the patches that are there."""
    random.seed(seed)
    slots = random.sample(range(SLOTS), 24)
    patches = [taught(slots[n * 6 : n * 6 + 6], seed=n) for n in range(4)]
    model, there = tiny_model("llama"), set()
    plain = logits(model)
    for _ in range(14):
        chosen = random.randrange(4)
        if chosen in there:
            revert_patch(model, patches[chosen])
            there.remove(chosen)
        else:
            apply_patch(model, patches[chosen])
            there.add(chosen)
        expected = torch.zeros(SLOTS, 16)
        for n in there:
            expected[patches[n].teachings[0].slots] = patches[n].teachings[0].values
        assert torch.equal(tables_of(model), expected)
    for chosen in there:
        revert_patch(model, patches[chosen])
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("rule", ["first", "last", "sum"])
def test_overlapping_patches_are_what_remains_of_them(rule: str) -> None:
    """After any reverts the rows are as if what was reverted had never been applied."""
    random.seed(1)
    patches = [taught(random.sample(range(SLOTS), 20), seed=n) for n in range(4)]
    for order in itertools.permutations(range(4), 3):
        model = tiny_model("llama")
        for n in order:
            apply_patch(model, patches[n], rule)
        left = list(order)
        assert torch.equal(tables_of(model), with_patches([patches[n] for n in left], rule))
        for n in random.sample(order, 2):
            revert_patch(model, patches[n])
            left.remove(n)
            assert torch.equal(tables_of(model), with_patches([patches[n] for n in left], rule))
    one, two = patches[0].teachings[0], patches[1].teachings[0]
    both = [slot for slot in one.slots.tolist() if slot in two.slots.tolist()]
    assert both
    row = with_patches(patches[:2], rule)[both[0]]
    first = one.values[one.slots == both[0]][0]
    second = two.values[two.slots == both[0]][0]
    assert torch.equal(row, {"first": first, "last": second, "sum": first + second}[rule])


@pytest.mark.parametrize("rule", ["first", "last", "sum"])
@pytest.mark.parametrize("seed", range(3))
def test_random_patches_row_by_row(rule: str, seed: int) -> None:
    """Against a plain loop over rows: apply, merge and revert, of patches and of single facts."""
    random.seed(seed)
    patches, written = [], {}
    for n in range(5):
        slots = sorted(random.sample(range(SLOTS), 12))
        facts = [Fact(f"{n}", f"{i}", torch.tensor(random.sample(slots, 5))) for i in range(3)]
        model = write(untaught(), slots, seed=10 * seed + n)
        patches.append(record_teaching(model, facts=facts))
        values = patches[n].teachings[0].values
        written[n] = dict(zip(slots, values, strict=True))
    model, order, left = tiny_model("llama"), [], {}
    for step in range(25):
        n = random.randrange(5)
        if n not in order:
            pair = [m for m in random.sample(range(5), 2) if m not in order]
            if step % 3 == 0 and len(pair) == 2:
                merged = merge_patches([patches[m] for m in pair], rule)
                apply_patch(model, merged, rule)
            else:
                pair = [n]
                apply_patch(model, patches[n], rule)
            order += pair
            left |= {m: (dict(written[m]), set(range(3))) for m in pair}
        elif random.random() < 0.5 and len(left[n][1]) > 1:
            rows, facts = left[n]
            fact = random.choice(sorted(facts))
            revert_patch(model, patches[n], [sorted(facts).index(fact)])
            facts.remove(fact)
            mine = patches[n].teachings[0].facts
            others = {slot for other in facts for slot in mine[other].rows.tolist()}
            for slot in set(mine[fact].rows.tolist()) - others:
                rows.pop(slot, None)
        else:
            revert_patch(model, patches[n])
            order.remove(n)
        expected = torch.zeros(SLOTS, 16)
        for slot in range(SLOTS):
            here = [m for m in order if slot in left[m][0]]
            if rule == "sum":
                here.sort(key=lambda m: patches[m].ids)
                for m in here:
                    expected[slot] += left[m][0][slot]
            elif here:
                expected[slot] = left[here[0 if rule == "first" else -1]][0][slot]
        assert torch.equal(tables_of(model), expected), step


def test_a_sum_does_not_depend_on_the_order() -> None:
    patches = [taught(list(range(SLOTS)), seed=n) for n in range(4)]
    expected = with_patches(patches, "sum")
    for order in itertools.permutations(patches):
        assert torch.equal(with_patches(list(order), "sum"), expected)
        apply_patch(model := tiny_model("llama"), merge_patches(order, "sum"))
        assert torch.equal(tables_of(model), expected)


def test_merging_is_applying_one_after_the_other(tmp_path: Path) -> None:
    patches = [taught([1, 2, 3], seed=1), taught([3, 4], seed=2), taught([9], seed=3)]
    for rule in ("first", "last", "sum"):
        merge_patches(patches, rule).save(tmp_path / rule)
        merged = Patch.load(tmp_path / rule)
        assert torch.equal(with_patches([merged]), with_patches(patches, rule))
        (conflict,) = merged.conflicts()
        assert {conflict.first, conflict.second} == {*patches[0].ids, *patches[1].ids}
        assert conflict.slots.tolist() == [3]
        # Out of the merged one each can be taken again, and what is settled stays so.
        model = apply_patch(tiny_model("llama"), merge_patches([merged, patches[2]]))
        revert_patch(model, patches[0])
        assert torch.equal(tables_of(model), with_patches(patches[1:]))
    with pytest.raises(ValueError, match=r"both wrote 1 row: 3\. hint: rule"):
        merge_patches(patches)
    with pytest.raises(
        ValueError, match="settled its own conflicting rows by 'sum', not by 'last'"
    ):
        merge_patches([Patch.load(tmp_path / "sum"), taught([3], seed=4)], "last")
    with pytest.raises(ValueError, match="rule must be one of refuse, first, last, sum"):
        merge_patches(patches, "mean")
    with pytest.raises(ValueError, match="at least one patch"):
        merge_patches([])
    # One that is in both is there once.
    again = merge_patches(
        [merge_patches(patches[1:]), merge_patches([patches[0], patches[2]])], "sum"
    )
    assert torch.equal(with_patches([again]), with_patches(patches, "sum"))


def test_conflicts_are_refused_and_the_model_stays_as_it_was() -> None:
    one, two = taught([1, 2, 3], seed=1), taught([3, 4], seed=2)
    model = apply_patch(tiny_model("llama"), one)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="both wrote 1 row: 3"):
        apply_patch(model, two)
    with pytest.raises(ValueError, match="carries the patch already"):
        apply_patch(model, one)
    with pytest.raises(ValueError, match=f"there is no teaching '{two.ids[0]}'"):
        revert_patch(model, two)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert patch_of(model).ids == one.ids


def test_another_base_skeleton_or_memory_is_refused() -> None:
    patch = taught([1, 2])
    other = tiny_model("llama")
    with torch.no_grad():
        other.model.layers[1].self_attn.q_proj.weight.mul_(1.5)
    changed = apply_patch(tiny_model("llama"), taught([7], seed=3))
    with torch.no_grad():
        changed.model.norm.weight.mul_(1.5)
    for model in (other, changed):
        before = tables_of(model) if memory_layers_of(model) else None
        with pytest.raises(ValueError, match="another base than this model"):
            apply_patch(model, patch)
        assert before is None or torch.equal(tables_of(model), before)
    assert not memory_layers_of(other)
    with pytest.raises(ValueError, match=r"another skeleton: its layers\.0\.mlp\.memory\."):
        apply_patch(untaught(seed=1), patch)
    with pytest.raises(ValueError, match=r"another skeleton: its layers\.0\.mlp\.memory\."):
        merge_patches([patch, taught([5], dtype=torch.bfloat16)])
    with pytest.raises(ValueError, match="memory of another configuration"):
        apply_patch(untaught(top_k=2), patch)
    with pytest.raises(ValueError, match="another memory: its top_k is 2, not 3"):
        merge_patches([patch, taught([5], top_k=2)])
    base = taught([9], seed=2)
    base.description["base"]["norm.weight"]["shape"] = [8]
    with pytest.raises(ValueError, match=r"patch 2, \w+, is of another base: its norm\.weight"):
        merge_patches([patch, base])
    dense = add_memory(tiny_model("llama"), tiny_memory(placement="beside"))
    for call in (patch_of, record_teaching, lambda model: revert_patch(model, patch)):
        with pytest.raises(ValueError, match="memory whose values start at zero"):
            call(dense)
        with pytest.raises(ValueError, match="has no memory layers"):
            call(tiny_model("llama"))


def test_onto_memory_that_has_learned_nothing_yet() -> None:
    patch = taught([1, 2])
    for dtype in (torch.float32, torch.bfloat16):
        model = apply_patch(untaught(dtype=dtype), patch)
        plain = apply_patch(tiny_model("llama", dtype), patch)
        assert torch.equal(logits(model), logits(plain))
        assert patch_of(model).teachings == patch.teachings


def test_on_a_model_of_another_type_nothing_is_rounded_for_good(tmp_path: Path) -> None:
    one, two = taught([1, 2, 3], seed=1), taught([3, 4], seed=2)
    model = apply_patch(tiny_model("llama", torch.bfloat16), one)
    apply_patch(model, two, "sum")
    assert torch.equal(tables_of(model), with_patches([one, two], "sum").bfloat16())
    revert_patch(model, one)
    save_memory(model, tmp_path)
    assert torch.equal(with_patches([Patch.load(tmp_path)]), with_patches([two]))


def facts_of(*rows: list[int]) -> list[Fact]:
    names = ("Paris", "Rome", "Oslo")
    return [
        Fact(f"The country of {name} is", f"land {n}", torch.tensor(some))
        for n, (name, some) in enumerate(zip(names, rows, strict=False))
    ]


@pytest.mark.parametrize("which", ["rOmE", [1], "land 1", ["Rome", "land 1"], torch.tensor([1])])
def test_a_single_fact_is_reverted(which: Any, tmp_path: Path) -> None:
    model = write(untaught(), [1, 2, 3, 4, 5])
    patch = record_teaching(model, facts=facts_of([1, 2], [2, 3, 4], [5]))
    before = tables_of(model)
    found = revert_patch(model, patch, which)
    assert (found.rows.tolist(), found.kept.tolist()) == ([3, 4], [2])
    expected = before.clone()
    expected[[3, 4]] = 0
    assert torch.equal(tables_of(model), expected)
    save_memory(model, tmp_path)
    (left,) = Patch.load(tmp_path).teachings
    assert [fact.prompt for fact in left.facts] == [
        "The country of Paris is",
        "The country of Oslo is",
    ]
    assert (left.id, left.reverted_facts) == (patch.ids[0], 1)
    assert "Rome" not in (tmp_path / "memory.json").read_text("utf-8")
    with pytest.raises(ValueError, match="no prompt or answer of 2 facts has 'Rome'"):
        revert_patch(model, patch, "Rome")
    with pytest.raises(ValueError, match="is there twice, not the same"):
        merge_patches([patch_of(model), patch])
    # The other fact that wrote slot 2 goes, and the slot with it.
    revert_patch(model, patch, "Paris")
    expected[[1, 2]] = 0
    assert torch.equal(tables_of(model), expected)
    revert_patch(model, patch)
    assert not tables_of(model).any()


def test_facts_that_are_not_there_are_refused() -> None:
    model = write(untaught(), [1, 2])
    patch = record_teaching(model, facts=facts_of([1, 2]))
    with pytest.raises(ValueError, match=r"facts must be below 1, their number, got \[1\]"):
        revert_patch(model, patch, [1])
    with pytest.raises(ValueError, match=r"has '' in it\. hint: memory-layers patch show"):
        revert_patch(model, patch, "")
    with pytest.raises(ValueError, match="texts or indices, got both"):
        revert_patch(model, patch, ["Paris", 0])  # type: ignore[list-item]
    plain = taught([3], seed=2)
    with pytest.raises(ValueError, match="no teaching here says what rows"):
        revert_patch(apply_patch(model, plain), plain, "Paris")


def test_teaching_on_top_of_teaching() -> None:
    model = write(untaught(), [1, 2, 3], seed=1)
    first = record_teaching(model, facts=facts_of([1], [2, 3]))
    one = tables_of(model)
    second = record_teaching(write(model, [3, 4], seed=2), author="b")
    both = tables_of(model)
    assert second.teachings[1].slots.tolist() == [3, 4]
    assert second.conflicts() == []
    assert torch.equal(with_patches([second]), both)
    with pytest.raises(
        ValueError, match=r"2 rows of teaching \w+ were trained further from rows of"
    ):
        revert_patch(model, first)
    kept = revert_patch(model, first.ids[0], "Rome")
    assert (kept.rows.tolist(), kept.kept.tolist()) == ([2], [3])
    revert_patch(model, second.ids[1])
    one[2] = 0
    assert torch.equal(tables_of(model), one)
    # What nobody has put down is a teaching too, and set to zero is written.
    apply_patch(model, taught([9], seed=4))
    with torch.no_grad():
        model.model.memory_table.weight[[1, 9]] = 0
    unknown = patch_of(model).teachings[-1]
    assert (unknown.slots.tolist(), unknown.author, unknown.created) == ([1, 9], "", "")
    assert set(unknown.based_on) == set(patch_of(model).ids[:-1])


def test_what_is_taught_again_within_a_second_is_another_teaching() -> None:
    model = write(untaught(), [1, 2])
    first = record_teaching(model)
    revert_patch(model, first)
    # In every bit what was taken back.
    assert record_teaching(write(model, [1, 2])).ids != first.ids


def test_a_saved_model_remembers(tmp_path: Path) -> None:
    one, two = taught([1, 2, 3], seed=1), taught([3, 4], seed=2)
    model = apply_patch(apply_patch(tiny_model("llama"), one), two, "sum")
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(tables_of(loaded), tables_of(model))
    backbone = type(loaded.model).from_pretrained(tmp_path / "model")
    for again in (loaded, backbone, copy.deepcopy(loaded)):
        revert_patch(again, one)
        assert torch.equal(tables_of(again), with_patches([two]))
    loaded.save_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert patch_of(loaded).ids == two.ids
    assert patch_of(loaded).teachings[0].author == "author 2"
    # Trained further and saved without a word: that is put down.
    write(loaded, [8]).save_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert [t.slots.tolist() for t in patch_of(loaded).teachings] == [[3, 4], [8]]
    # Another model in the same folder does not inherit it.
    write(untaught(), [5]).save_pretrained(tmp_path / "model")
    assert patch_of(AutoModelForCausalLM.from_pretrained(tmp_path / "model")).ids != two.ids


def test_without_memory_nothing_is_remembered() -> None:
    one, two = taught([1, 2, 3], seed=1), taught([3, 4], seed=2)
    model = remove_memory(apply_patch(tiny_model("llama"), one))
    assert torch.equal(logits(model), logits(tiny_model("llama")))
    apply_patch(model, two)
    assert patch_of(model).ids == two.ids
    again = add_memory(remove_memory(model), tiny_memory(placement="beside", value_init_std=0))
    assert patch_of(again).ids == ()
    alone = apply_patch(backbone_of(tiny_model("llama")), one)
    assert torch.equal(tables_of(alone), with_patches([one]))


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    model = write(untaught(), [1, 2, 3])
    record_teaching(model, facts=facts_of([1], [2, 3])).save(tmp_path)
    weights, path = tmp_path / "memory.safetensors", tmp_path / "memory.json"
    whole, values = weights.read_bytes(), json.loads(path.read_text("utf-8"))
    tensors = load_file(weights)
    base = tiny_model("llama")

    def refused(message: str) -> None:
        for call in (Patch.load, lambda folder: load_memory(base, folder)):
            with pytest.raises(ValueError, match=message):
                call(tmp_path)
        assert not memory_layers_of(base)
        path.write_text(json.dumps(values), "utf-8")
        weights.write_bytes(whole)

    def with_tensors(**changes: Tensor | None) -> None:
        new = {**tensors, **{f"teachings.0.{name}": t for name, t in changes.items()}}
        save_file({name: t for name, t in new.items() if t is not None}, weights)

    def with_entry(**changes: object) -> None:
        entry = {**values["teachings"][0], **changes}
        path.write_text(json.dumps({**values, "teachings": [entry]}), "utf-8")

    weights.write_bytes(whole[: len(whole) // 2])
    refused("damaged or cut off")
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused("not as it was written")
    path.write_text(path.read_text("utf-8")[:99], "utf-8")
    refused("is damaged")
    rows = tensors["teachings.0.values"].clone()
    rows[1, 3] = float("nan")
    with_tensors(values=rows)
    refused("the values of slot 2 are not finite")
    with_tensors(values=rows[:2])
    refused(r"values must be floating point \[3, V\]")
    with_tensors(values=torch.ones(3, 16))
    refused("is not as it was written")
    for wrong in ([1, 3, 2], [1, 2, 2], [-1, 2, 3]):
        with_tensors(slots=torch.tensor(wrong))
        refused("slots must be ascending from 0 on, each of them once")
    with_tensors(slots=torch.tensor([1, 2, 3], dtype=torch.int32))
    refused(r"slots must be int64 \[R\]")
    with_tensors(fact_rows=torch.tensor([1, 2, 7]))
    refused("rows of fact 1 must be among the slots")
    with_tensors(fact_offsets=torch.tensor([0, 2, 1]))
    refused("fact_offsets must cut")
    with_tensors(fact_offsets=None)
    refused("its tensors must be")
    save_file({**tensors, "teachings.1.slots": torch.tensor([1])}, weights)
    refused("missing or surplus")
    save_file({k: t for k, t in tensors.items() if not k.endswith("gain")}, weights)
    refused("missing or surplus")
    for wrong, says in (("0", "skeleton is not as it was written"), ({}, "damaged, it lacks base")):
        base_of = {**values["base"], "norm.weight": wrong}
        path.write_text(json.dumps({**values, "base": base_of}), "utf-8")
        refused(says)
    with_entry(author="somebody else")
    refused("is not as it was written")
    with_entry(rows=4)
    refused("must have 4 slots, got 3")
    with_entry(based_on=[3])
    refused("based_on must be ids")
    with_entry(facts=[{"prompt": "x"}])
    refused("facts must have a prompt and an answer")
    with_entry(settings=None)
    refused("settings must be of type dict, got None")
    with_entry(colour="red")
    refused("colour must be left out")
    path.write_text(json.dumps({**values, "teachings": [1]}), "utf-8")
    refused("must be a list of objects")
    path.write_text(json.dumps({**values, "rule": "mean"}), "utf-8")
    refused("rule must be one of")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"memory\.json"):
        Patch.load(tmp_path)


def test_slots_beyond_the_table_are_refused(tmp_path: Path) -> None:
    beyond = taught([1, 40], share_values=False)
    replace(taught([1]), teachings=beyond.teachings).save(tmp_path)
    with pytest.raises(ValueError, match=r"slots must be below 36, teaching \w+ has 40"):
        load_memory(tiny_model("llama"), tmp_path)


def test_rows_that_are_not_finite_are_no_patch() -> None:
    model = write(untaught(), [1])
    with torch.no_grad():
        model.model.memory_table.weight[4, 2] = float("inf")
    with pytest.raises(ValueError, match="the values of slot 4 are not finite"):
        record_teaching(model)
