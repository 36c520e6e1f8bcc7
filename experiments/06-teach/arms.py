"""The ways to teach that are compared, all on the same items; that of `learn` is in ours.py."""

import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import ours
import torch
from peft import LoraConfig, inject_adapter_in_model
from protocol import Item, Protocol, by_length, logits_at, padded
from safetensors import safe_open
from safetensors.torch import save_file
from texts import REPLAYED, Teacher, kl, written
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memory_layers import MemoryAdamW, MemoryConfig
from memory_layers.common.files import replacing
from memory_layers.models import add_memory, freeze_all_but_memory

FACTS_A_BATCH = 8
# Of the text that the base wrote: 80 blocks are some 20,000 tokens. One block joins every batch,
# with the same weight in the loss as the answers of the batch.
REPLAY_BLOCKS = 80
WARM_UP = 10
CLIP = 1.0


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        arm: "ours" (ours.py), "lora16", "lora64", "full", "memory" (as by hand) or "retrieval".
        rate: Learning rate, constant after the warm-up. That of values is five times as large. For
            "ours", 0 is the default of the command.
        guard: "none", "replay" (the base's own text as a training text) or "distill" (its
            distributions on that text).
        seed: Draws the facts, their order and the initial weights.
        passes: After which passes over the facts is measured; the last one ends the training.
    """

    arm: str
    rate: float = 0.0
    guard: str = "none"
    seed: int = 0
    passes: tuple[int, ...] = (1, 3, 5, 8, 12, 16)

    @property
    def name(self) -> str:
        """Of the result file."""
        guard = "" if self.guard == "none" else f"+{self.guard}"
        rate = f"-{self.rate:g}" if self.rate else ""
        return f"{self.arm}{guard}{rate}-seed{self.seed}"


def install(job: Job, model: PreTrainedModel) -> torch.optim.Optimizer:
    """Make ready what an arm trains, in place, and return its optimizer."""
    torch.manual_seed(job.seed)
    if job.arm == "full":
        return torch.optim.AdamW(model.parameters(), job.rate, weight_decay=0, fused=True)
    if job.arm == "memory":
        # docs/guides/add_memory.md, with a quarter of its default of slots, which need 7 GB.
        blocks = model.config.num_hidden_layers
        layers = (4, 12, 20) if blocks > 20 else (blocks // 2,)
        config = MemoryConfig(layers=layers, sub_keys=512, placement="beside")
        freeze_all_but_memory(add_memory(model, config))
        _halve_frozen(model)
        return MemoryAdamW(model, lr=job.rate, value_lr=5 * job.rate, value_state="full")
    if not (rank := re.fullmatch(r"lora(\d+)", job.arm)):
        raise ValueError(f"arm must be full, memory, retrieval or lora and a rank, got {job.arm!r}")
    r = int(rank[1])
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    inject_adapter_in_model(LoraConfig(r=r, lora_alpha=2 * r, target_modules=names), model)
    _halve_frozen(model)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.AdamW(trained, job.rate, weight_decay=0, fused=True)


def _halve_frozen(model: PreTrainedModel) -> None:
    """Keep frozen maps of blocks as autocast would round them in every step."""
    for module in model.get_decoder().modules():
        if isinstance(module, nn.Linear) and not module.weight.requires_grad:
            module.weight.data = module.weight.data.to(torch.bfloat16)


def result_bytes(model: nn.Module) -> int:
    """Return the bytes of what has to be kept: all trained parameters, or the memory."""
    if ours.is_taught(model):
        return ours.memory_bytes(model)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return sum(weight.numel() * weight.element_size() for weight in trained)


def train(
    job: Job,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    protocol: Protocol,
    cache: Path,
    replay_blocks: int = REPLAY_BLOCKS,
    done: int = 0,
) -> Iterator[tuple[int, int, float]]:
    """Train in place; yield (passes, updates, mean loss of the pass) at the end of each pass.

    What the job trained is kept in `cache` after each of its `passes`. With `done` passes, the
    training goes on behind them: from there, or from the beginning where nothing is kept, as of
    "ours".
    """
    if job.arm == "ours":
        yield from ours.train(
            model, tokenizer, protocol,
            lr=job.rate or None, seed=job.seed, passes=max(job.passes),
        )  # fmt: skip
        return
    guard = None
    if job.guard != "none":
        text = partial(written, model, tokenizer, REPLAYED, replay_blocks)
        guard = Teacher.kept(cache / f"replay-{replay_blocks}.safetensors", model, text)
    optimizer = install(job, model)
    rates = [group["lr"] for group in optimizer.param_groups]
    state = cache / f"{job.name}.safetensors"
    kept = done > 0 and passes_of(state) == done
    if kept:
        load_state(state, model, optimizer)
    order = random.Random(job.seed)
    facts = list(protocol.train)
    updates = 0
    for number in range(1, max(job.passes) + 1):
        order.shuffle(facts)
        if kept and number <= done:
            updates += -(-len(facts) // FACTS_A_BATCH)
            continue
        model.train()
        losses = []
        for start in range(0, len(facts), FACTS_A_BATCH):
            items = [item for fact in facts[start : start + FACTS_A_BATCH] for item in fact]
            losses.append(_backward(model, items))
            if guard is not None:
                block = torch.tensor([updates % len(guard.text)])
                _backward_guard(model, guard, block, distill=job.guard == "distill")
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * min(1.0, (updates + 1) / WARM_UP)
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
        model.eval()
        if number in job.passes:
            save_state(state, model, optimizer, number)
        yield number, updates, sum(losses) / len(losses)


def save_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, passes: int) -> None:
    """Write what is trained, and the moments of its gradients."""
    weights = {f"weight/{n}": w.data for n, w in model.named_parameters() if w.requires_grad}
    moments = {
        f"{index}/{key}": torch.as_tensor(value)
        for index, of in optimizer.state_dict()["state"].items()
        for key, value in of.items()
    }
    with replacing(path) as (part,):
        save_file(weights | moments, part, {"passes": str(passes)})


def passes_of(path: Path) -> int:
    """Return after how many passes save_state wrote. 0: it did not."""
    if not path.is_file():
        return 0
    with safe_open(path, "pt") as file:
        return int(file.metadata()["passes"])


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read what save_state wrote."""
    weights = dict(model.named_parameters())
    moments: dict[int, dict[str, torch.Tensor]] = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            head, _, tail = name.partition("/")
            if head == "weight":
                weights[tail].data.copy_(file.get_tensor(name))
            else:
                moments.setdefault(int(head), {})[tail] = file.get_tensor(name)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def _backward(model: PreTrainedModel, items: Sequence[Item], tokens: int = 900) -> float:
    """Add the gradient of the loss on answers and ends, the mean over all of their tokens."""
    count = sum(len(item.answer) + len(item.end) for item in items)
    total = 0.0
    for batch in by_length(items, tokens):
        ids, places, targets = padded([items[n] for n in batch])
        with torch.autocast("cpu", torch.bfloat16):
            logits = logits_at(model, ids, places)
        loss = cross_entropy(logits, targets, reduction="sum") / count
        loss.backward()
        total += loss.item()
    return total


def _backward_guard(
    model: PreTrainedModel, guard: Teacher, rows: torch.Tensor, *, distill: bool
) -> None:
    ids = guard.text[rows]
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    if distill:
        loss = kl(guard.log_probabilities(rows), logits)
    else:
        loss = cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()


class Retriever:
    """The statement of a fact that is nearest to a prompt by BM25 (k1 = 1.5, b = 0.75)."""

    def __init__(self, protocol: Protocol, tokenizer: PreTrainedTokenizerBase) -> None:
        """Index all statements that the other arms train on."""
        self.tokenizer = tokenizer
        statements = [item for fact in protocol.train for item in fact if item.form == "seen"]
        self.texts = [tokenizer.decode([*s.prompt, *s.answer, *s.end]) for s in statements]
        documents = [Counter(_words(text)) for text in self.texts]
        holding = Counter(word for document in documents for word in document)
        mean = sum(document.total() for document in documents) / len(documents)
        self.weights = [
            {
                word: math.log(1 + (len(documents) - holding[word] + 0.5) / (holding[word] + 0.5))
                * 2.5 * count / (count + 1.5 * (0.25 + 0.75 * document.total() / mean))
                for word, count in document.items()
            }
            for document in documents
        ]  # fmt: skip

    def nearest(self, prompt: str) -> str:
        """Return a statement."""
        words = set(_words(prompt))
        scores = [sum(of.get(word, 0.0) for word in words) for of in self.weights]
        return self.texts[max(range(len(scores)), key=scores.__getitem__)]

    def with_fact(self, item: Item) -> Item:
        """Return an item with the nearest statement before its prompt, in the turn of a user."""
        text = self.tokenizer.decode(item.prompt)
        begin = "<|im_start|>user\n"
        before, turn, asked = text.rpartition(begin)
        nearest = self.nearest(asked)
        prompt = f"{before}{turn}{nearest}\n{asked}"
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return replace(item, prompt=tuple(ids))

    def bytes(self) -> int:
        """Return the size of the statements."""
        return len("\n".join(self.texts).encode())


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
