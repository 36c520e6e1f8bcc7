"""What a model learns and what it loses, measured while it is taught and at the end."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memory_layers.common.progress import Report, counter
from memory_layers.data.lines import shorten
from memory_layers.learn.ask import all_right, ask, measuring
from memory_layers.learn.keep import Keep
from memory_layers.learn.result import Kept, Recall, TextLoss
from memory_layers.learn.silence import may_speak, silenced, speech
from memory_layers.learn.sources import LearnData, RecallItem

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Tokens of text in a pass: their logits, in fp32 and more than once, are what fills the memory.
PASS_TOKENS = 1024
# What is looked at in a glance.
GLANCE_KEPT, GLANCE_TOKENS = 32, 1500


@dataclass(frozen=True, slots=True)
class Glance:
    """What a look at samples shows. The attributes are those of Point."""

    text_loss: float
    kept: float | None


@dataclass(frozen=True, eq=False)
class _Text:
    """A text and what the base makes of it.

    Attributes:
        ids: [n, L] int64.
        nll: [n, L - 1], of each token but the first.
        likely: [n, L - 1] int32, the most likely tokens.
    """

    ids: Tensor
    nll: Tensor
    likely: Tensor


class Watch:
    """Measures a model that is taught against its base, which is the model with silent memory.

    Args:
        model: With memory beside its blocks.
        tokenizer: Of the model.
        data: What is taught.
        texts: What is not taught, by name: [n, L] int64 token ids with L >= 2.
        keep: Prompts that are to be answered as before.
        before: What the model answers of the items of the data. None: it is asked.
        seed: Picks what is looked at in a glance.
        progress: Called with what of the base is measured, and how much there is.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        data: LearnData,
        texts: Mapping[str, Tensor],
        keep: Sequence[Keep] = (),
        *,
        before: Sequence[bool] | None = None,
        seed: int = 0,
        progress: Report | None = None,
    ) -> None:
        self._model: Any = model
        self._tokenizer = tokenizer
        self.data = data
        items = data.items if before is None else ()
        count = counter(self._work(texts, keep, items), "measuring the base", progress)
        with silenced(model):
            self._before = self._ask(items, count) if before is None else before
            rights = [
                [True] * len(one.items)
                if one.answered
                else self._ask(one.items, count, exact=one.exact)
                for one in keep
            ]
            self._texts = {name: self._base_of(ids, count) for name, ids in texts.items()}
        self._keep = [
            replace(one, items=_where(one.items, right))
            for one, right in zip(keep, rights, strict=True)
        ]
        draw = random.Random(seed)  # noqa: S311
        usual = [one for one in self._keep if not one.alike]
        most = GLANCE_KEPT // max(1, len(usual))
        self._keep_sample = [
            replace(one, items=tuple(_some(one.items, most, draw))) for one in usual
        ]
        tokens = GLANCE_TOKENS // max(1, len(texts))
        self._rows = {
            name: _some(range(len(ids)), max(1, tokens // ids.shape[1]), draw)
            for name, ids in texts.items()
        }

    def recall(
        self, subset: Sequence[int] | None = None, progress: Report | None = None
    ) -> list[bool]:
        """Ask items of the data, and tell which are answered.

        Args:
            subset: Numbers of the items. None: all.
            progress: Called with what is asked, and how much there is.
        """
        items = self.data.items if subset is None else [self.data.items[n] for n in subset]
        return self._ask(items, counter(len(items), "asking what was taught", progress))

    def summary(self, right: Sequence[bool]) -> tuple[Recall, ...]:
        """Return recall by form, and by whether it was trained on.

        Args:
            right: Of all items, from `recall`.
        """
        kinds: dict[tuple[bool, str], list[tuple[bool, bool]]] = defaultdict(list)
        for item, before, after in zip(self.data.items, self._before, right, strict=True):
            kinds[not item.seen, item.form].append((before, after))
        return tuple(
            Recall(
                form,
                not unseen,
                len(found),
                *(sum(x) / len(found) for x in zip(*found, strict=True)),
            )
            for (unseen, form), found in sorted(kinds.items())
        )

    def learned(self, right: Sequence[bool]) -> list[int]:
        """Return the groups that are answered in all wordings that are trained on.

        Args:
            right: Of all items, from `recall`.
        """
        seen = [item.seen for item in self.data.items]
        return all_right(_where(self.data.items, seen), _where(right, seen))

    def texts(self, progress: Report | None = None) -> tuple[TextLoss, ...]:
        """Measure what was done to all texts."""
        total = sum(len(text.ids) for text in self._texts.values())
        count = counter(total, "reading watched texts", progress)
        return tuple(self._loss(name, range(len(t.ids)), count) for name, t in self._texts.items())

    def kept(self, progress: Report | None = None) -> tuple[Kept, ...]:
        """Ask what was answered before."""
        total = sum(len(one.items) for one in self._keep)
        return self._kept(self._keep, counter(total, "asking what was known", progress))

    def glance(self) -> Glance:
        """Measure what was lost on samples, the same ones each time."""
        losses = [self._loss(name, rows, _ignore, kl=False) for name, rows in self._rows.items()]
        before, after = (
            sum(one.tokens * getattr(one, when) for one in losses) for when in ("before", "after")
        )
        kept = self._kept(self._keep_sample, _ignore)
        asked_for = sum(one.items for one in kept)
        return Glance(
            after / before - 1 if before else 0.0,
            sum(one.kept for one in kept) / asked_for if asked_for else None,
        )

    def _ask(
        self, items: Sequence[RecallItem], count: Callable[[int], object], *, exact: bool = False
    ) -> list[bool]:
        return ask(self._model, self._tokenizer, items, exact=exact, progress=count)

    def _kept(self, keeps: Iterable[Keep], count: Callable[[int], object]) -> tuple[Kept, ...]:
        found = []
        for one in keeps:
            asked = one.items
            if not one.answered:
                # What is silent answers as the base does, which was asked.
                loud = may_speak(self._model, [torch.from_numpy(i.ids).long() for i in asked])
                asked = _where(asked, loud)
            count(len(one.items) - len(asked))
            right = self._ask(asked, count, exact=one.exact)
            lost = _where(asked, [not is_right for is_right in right])
            prompts = tuple(_shown(self._tokenizer, item) for item in lost)
            found.append(Kept(one.name, len(one.items), len(one.items) - len(lost), prompts))
        return tuple(found)

    def _base_of(self, ids: Tensor, count: Callable[[int], object]) -> _Text:
        nll, likely = [], []
        with measuring(self._model):
            for part in _parts(range(len(ids)), ids.shape[1]):
                logs = self._logs(ids[part])
                nll.append(_nll(logs, ids[part]))
                likely.append(logs.argmax(-1).int().cpu())
                count(len(part))
        return _Text(ids, torch.cat(nll), torch.cat(likely))

    def _loss(
        self, name: str, rows: Sequence[int], count: Callable[[int], object], *, kl: bool = True
    ) -> TextLoss:
        """Measure what was done to rows of a text, its divergence from the base too or not."""
        text = self._texts[name]
        before = after = float(text.nll[rows].double().sum())
        divergence, changed, spoken = 0.0, 0, 0
        loud = _where(rows, may_speak(self._model, list(text.ids[rows])))
        count(len(rows) - len(loud))
        with measuring(self._model):
            for part in _parts(loud, text.ids.shape[1]):
                ids = text.ids[part]
                with speech(self._model) as spoke:
                    logs = self._logs(ids)
                said = spoke()
                heard = said.any(1)
                ids, logs = ids[heard], logs[heard.to(logs.device)]
                numbers = torch.tensor(part)[heard]
                after += float((_nll(logs, ids) - text.nll[numbers]).double().sum())
                changed += int((logs.argmax(-1).cpu() != text.likely[numbers]).sum())
                spoken += int(said.sum())
                if kl and len(ids):
                    with silenced(self._model):
                        base = self._logs(ids)
                    divergence += float((base.exp() * (base - logs)).sum(dtype=torch.float64))
                count(len(part))
        tokens = text.nll[rows].numel()
        return TextLoss(
            name, tokens, before / tokens, after / tokens, divergence / tokens, changed / tokens,
            spoken / text.ids[rows].numel(),
        )  # fmt: skip

    def _logs(self, ids: Tensor) -> Tensor:
        """Return the log-probabilities of each next token: [b, L - 1, vocabulary] fp32."""
        ids = ids.to(self._model.device)
        logits = self._model(input_ids=ids, use_cache=False).logits[:, :-1]
        return logits.float().log_softmax(-1)

    @staticmethod
    def _work(texts: Mapping[str, Tensor], keep: Iterable[Keep], items: Sequence[object]) -> int:
        rows = sum(len(ids) for ids in texts.values())
        return len(items) + sum(len(one.items) for one in keep if not one.answered) + rows


def _nll(logs: Tensor, ids: Tensor) -> Tensor:
    """Return the negative log-likelihood of each token but the first: [b, L - 1]."""
    return -logs.gather(-1, ids[:, 1:, None].to(logs.device))[..., 0].cpu()


def _parts(rows: Sequence[int], length: int) -> list[list[int]]:
    """Return rows in the groups that share a pass."""
    step = max(1, PASS_TOKENS // length)
    return [list(rows[low : low + step]) for low in range(0, len(rows), step)]


def _where(items: Sequence[Any], chosen: Sequence[bool]) -> tuple[Any, ...]:
    return tuple(item for item, is_chosen in zip(items, chosen, strict=True) if is_chosen)


def _some(items: Sequence[Any], most: int, draw: random.Random) -> list[Any]:
    return draw.sample(list(items), min(most, len(items)))


def _shown(tokenizer: Any, item: RecallItem) -> str:  # noqa: ANN401
    """Return the end of a prompt, which is what tells it from others, and its answer."""
    text = " ".join(tokenizer.decode(item.prompt_ids, skip_special_tokens=True).split())
    return f"{text if len(text) <= 100 else f'...{text[-100:]}'} -> {shorten(item.answer)[1:-1]}"


def _ignore(_: int) -> None:
    pass
