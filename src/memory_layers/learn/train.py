"""Training of the rows: everything else is frozen, so what does not change is computed once.

The memory is silent before the first token that it speaks at. Keys and values of attention of the
tokens before are those of the base in every pass, and are kept.
"""

import math
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import DynamicCache, PreTrainedModel

from memory_layers.common.errors import UserError
from memory_layers.data.tokens import IGNORE
from memory_layers.learn.bfloat16 import in_bfloat16
from memory_layers.learn.skeleton import speaks_at
from memory_layers.learn.steps import RowSteps
from memory_layers.models.classes import backbone_of

BATCH = 32
# Tokens of padding that cost as much as another forward and backward pass.
PADDING = 64
# Of a part: what is computed at a time must fit into memory.
MOST_TOKENS, MOST_LOGITS = 8192, 2**26
# Of the free memory: what the kept keys and values may take.
KEPT_SHARE = 0.3
# Between the loss with kept keys and values and without, as a share: the order of sums differs.
CLOSE = 1e-3


@dataclass(eq=False)
class Text:
    """A text to train on or to ask.

    Attributes:
        ids: int64 [L].
        labels: int64 [L], IGNORE where nothing is learned or asked.
        group: Texts of one group are trained on together.
        along: What is answered and is to stay, and not what is taught.
        speaks: The memory speaks somewhere in it.
        start: First token that is computed in every pass.
        cache: Keys and values of the tokens before, [blocks, 2, heads, start, width]. None: none.
    """

    ids: Tensor
    labels: Tensor
    group: int
    along: bool = False
    speaks: bool = False
    start: int = 0
    cache: Tensor | None = None

    @property
    def computed(self) -> int:
        """How many tokens are computed in every pass."""
        return len(self.ids) - 1 - self.start


class Trainer:
    """Computes losses and answers of texts with the memory of a model.

    Args:
        model: With memory whose rows are planned.
        texts: All texts that will be computed.
    """

    def __init__(self, model: PreTrainedModel, texts: Sequence[Text]) -> None:
        self.model: Any = model
        self.backbone: Any = backbone_of(model)
        self.head: Any = model.get_output_embeddings()
        self.bare_head = self._is_bare()
        self._find_starts(texts)
        self._keep(texts)
        self.products = in_bfloat16(model)

    def _is_bare(self) -> bool:
        """Tell whether logits are the head's product alone, without scale or cap."""
        ids = torch.arange(4, device=self.model.device)[None]
        with torch.no_grad():
            hidden = self.backbone(input_ids=ids, use_cache=False)[0]
            return torch.equal(self.head(hidden), self.model(input_ids=ids, use_cache=False).logits)

    def _find_starts(self, texts: Sequence[Text]) -> None:
        """Set whether the memory speaks in each text, and where it begins to differ."""
        spoken = speaks_at(self.model, [text.ids for text in texts])
        for text, at in zip(texts, spoken, strict=True):
            places = at.nonzero()[:, 0].tolist()
            text.speaks = bool(places)
            # What is learned or asked is predicted by the token before.
            first = int((text.labels != IGNORE).nonzero()[0]) - 1
            text.start = min([first, *places[:1]])

    def _keep(self, texts: Sequence[Text]) -> None:
        config = self.model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        size = config.num_hidden_layers * 2 * heads * width * self.model.dtype.itemsize
        if size * sum(t.start for t in texts) > KEPT_SHARE * psutil.virtual_memory().available:
            self._from_the_start(texts)
            return
        sample = [text for text in texts if text.start][:4]
        if not sample:
            return
        starts = [text.start for text in sample]
        self._from_the_start(sample)
        with torch.no_grad():
            plain = float(self.loss(sample)[0])
            for text, start in zip(sample, starts, strict=True):
                text.start = start
            self._fill(sample)
            kept = float(self.loss(sample)[0])
        if abs(plain - kept) > CLOSE * abs(plain):
            # Attention over a window, or a cache of another kind.
            self._from_the_start(texts)
            return
        self._fill(texts)

    def _from_the_start(self, texts: Sequence[Text]) -> None:
        for text in texts:
            text.start, text.cache = 0, None

    @torch.no_grad()
    def _fill(self, texts: Sequence[Text]) -> None:
        order = sorted((t for t in texts if t.start), key=lambda t: t.start)
        for low in range(0, len(order), BATCH):
            batch = order[low : low + BATCH]
            longest = batch[-1].start
            ids = torch.stack([F.pad(t.ids, (0, longest))[:longest] for t in batch])
            cache = DynamicCache()
            self.backbone(
                input_ids=ids.to(self.model.device), past_key_values=cache, use_cache=True
            )
            layers: Any = cache.layers
            whole = torch.stack([torch.stack([y.keys, y.values]) for y in layers])
            for row, text in enumerate(batch):
                text.cache = whole[:, :, row, :, : text.start].clone()

    def loss(self, texts: Sequence[Text]) -> tuple[Tensor, list[bool]]:
        """Return the mean loss of what texts learn, and whether each answers right, greedily."""
        logits, targets, rows = self._logits(texts)
        right = (logits.argmax(-1) == targets).cpu()
        wrong = set(rows[~right].tolist())
        return F.cross_entropy(logits, targets), [n not in wrong for n in range(len(texts))]

    def backward(self, texts: Sequence[Text]) -> tuple[float, list[bool]]:
        """Add the gradient of `loss`, in parts of like length, and return what `loss` does.

        Products may be in bfloat16. Called alone, `loss` computes in the type of the base.
        """
        learned = [int((text.labels[text.start + 1 :] != IGNORE).sum()) for text in texts]
        right = [False] * len(texts)
        total = 0.0
        for numbers in self._parts(texts):
            with self.products():
                loss, ok = self.loss([texts[n] for n in numbers])
            loss = loss * (sum(learned[n] for n in numbers) / sum(learned))
            loss.backward()
            total += float(loss.detach())
            for n, is_right in zip(numbers, ok, strict=True):
                right[n] = is_right
        return total, right

    def _logits(self, texts: Sequence[Text]) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits and targets of all labelled tokens, and the text of each."""
        device, count = self.model.device, len(texts)
        before = max(t.start for t in texts)
        after = max(t.computed for t in texts)
        # Both parts end where they meet, so that padding stands before them.
        ids = torch.zeros(count, after, dtype=torch.int64)
        mask = torch.zeros(count, before + after, dtype=torch.int64)
        positions = torch.zeros(count, after, dtype=torch.int64)
        rows, columns, targets = [], [], []
        for n, text in enumerate(texts):
            own = text.ids[text.start : -1]
            ids[n, after - len(own) :] = own
            mask[n, before - text.start : before] = 1
            mask[n, before + after - len(own) :] = 1
            positions[n, after - len(own) :] = torch.arange(text.start, text.start + len(own))
            places = (text.labels[text.start + 1 :] != IGNORE).nonzero()[:, 0]
            rows.append(torch.full_like(places, n))
            columns.append(places + after - len(own))
            targets.append(text.labels[text.start + 1 :][places])
        given: dict[str, Any] = {
            "position_ids": positions.to(device),
            "attention_mask": mask.to(device),
        }
        if before:
            given |= {"past_key_values": self._cache(texts, before), "use_cache": True}
        else:
            given["use_cache"] = False
        which, where = torch.cat(rows), torch.cat(columns)
        if self.bare_head:
            hidden = self.backbone(input_ids=ids.to(device), **given)[0]
            logits = self.head(hidden[which, where])
        else:
            logits = self.model(input_ids=ids.to(device), **given).logits[which, where]
        return logits.float(), torch.cat(targets).to(device), which

    def _cache(self, texts: Sequence[Text], before: int) -> DynamicCache:
        shape = next(t.cache.shape for t in texts if t.cache is not None)
        whole = torch.zeros(
            *shape[:2], len(texts), shape[2], before, shape[4],
            dtype=self.model.dtype, device=self.model.device,
        )  # fmt: skip
        for n, text in enumerate(texts):
            if text.cache is not None:
                whole[:, :, n, :, before - text.start :] = text.cache
        cache = DynamicCache()
        for number, (keys, values) in enumerate(whole):
            cache.update(keys, values, number)
        return cache

    def _parts(self, texts: Sequence[Text]) -> Iterator[list[int]]:
        """Put texts of like length together, where padding costs less than another part."""
        part: list[int] = []
        labels = 0
        for n in sorted(range(len(texts)), key=lambda n: texts[n].computed):
            text, more = texts[n], int((texts[n].labels != IGNORE).sum())
            padding = (text.computed - texts[part[0]].computed) * len(part) if part else 0
            tokens = (len(part) + 1) * len(text.ids)
            logits = (labels + more) * self.head.weight.shape[0]
            if part and (padding > PADDING or tokens > MOST_TOKENS or logits > MOST_LOGITS):
                yield part
                part, labels = [], 0
            part.append(n)
            labels += more
        if part:
            yield part

    @torch.no_grad()
    def answers(self, texts: Sequence[Text]) -> list[bool]:
        """Return whether each text answers right, greedily."""
        right = [False] * len(texts)
        for numbers in self._parts(texts):
            for n, ok in zip(numbers, self.loss([texts[n] for n in numbers])[1], strict=True):
                right[n] = ok
        return right


def batches(groups: Sequence[int], generator: random.Random) -> list[list[int]]:
    """Put texts into batches, those of a group together: one update for all that it is to do.

    Args:
        groups: Of the texts.
        generator: Draws the order.
    """
    members: dict[int, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    order = list(members.values())
    generator.shuffle(order)
    found: list[list[int]] = [[]]
    for numbers in order:
        if found[-1] and len(found[-1]) + len(numbers) > BATCH:
            found.append([])
        found[-1] += numbers
    return [numbers for numbers in found if numbers]


@dataclass(frozen=True)
class Pass:
    """What a pass through the texts brought.

    Attributes:
        loss: Mean over the texts that were trained on.
        right: Share of the texts that are taught and were answered right before their update.
        updates: Of the rows.
        whole: It was not ended before all texts were seen.
        learned: Groups of which all texts were answered right.
    """

    loss: float
    right: float
    updates: int
    whole: bool
    learned: frozenset[int]


def one_pass(
    trainer: Trainer,
    texts: Sequence[Text],
    steps: RowSteps,
    seed: int,
    step_done: Callable[[int, int, float], None],
    ends: Callable[[], bool],
    resting: Collection[int] = (),
) -> Pass:
    """Train on all texts once.

    Args:
        trainer: Computes the losses.
        texts: To train on.
        steps: Of the rows.
        seed: Draws the order.
        step_done: Called after each update with its number, how many there are, and its loss.
        ends: Asked before each update: the rest of the pass is left out.
        resting: Groups that are left out, and count as answered right. All: none is.

    Raises:
        UserError: The loss is not finite.
    """
    awake = [text for text in texts if text.group not in resting] or texts
    losses: list[float] = []
    right = [True] * (sum(not t.along for t in texts) - sum(not t.along for t in awake))
    wrong: set[int] = set()
    todo = batches([text.group for text in awake], random.Random(seed))  # noqa: S311
    updates, whole = 0, True
    for numbers in todo:
        if ends():
            whole = False
            break
        steps.zero_grad()
        batch = [awake[n] for n in numbers]
        loss, ok = trainer.backward(batch)
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss}. hint: a lower lr")
        steps.step()
        updates += 1
        losses += [loss] * len(ok)
        right += [is_right for text, is_right in zip(batch, ok, strict=True) if not text.along]
        wrong |= {text.group for text, is_right in zip(batch, ok, strict=True) if not is_right}
        step_done(updates, len(todo), loss)
    return Pass(
        sum(losses) / max(1, len(losses)), sum(right) / max(1, len(right)), updates, whole,
        frozenset(text.group for text in awake) - wrong,
    )  # fmt: skip
