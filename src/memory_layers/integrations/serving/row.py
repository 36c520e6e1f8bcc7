"""One text that is generated: what it began with, how far it is, and who is told."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from memory_layers.integrations.serving.errors import RequestError
from memory_layers.integrations.serving.sampling import Sampling
from memory_layers.integrations.serving.text import Pieces, Stopped


@dataclass(frozen=True, slots=True)
class Scored:
    """A token with what the model made of it.

    Attributes:
        token: Its id.
        logprob: Of the model, before temperature, penalties and biases. None: it was not asked.
        top: The likeliest tokens in its place, and theirs.
        offset: Where its text begins in the text of the row.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """What a row has more than when it was last told of.

    Attributes:
        text: That can no longer be the start of a stop string.
        scored: The tokens that begin in it.
        reason: Why the row ended, "stop" or "length". None: it goes on.
    """

    text: str
    scored: tuple[Scored, ...]
    reason: str | None


class Row:
    """A text that is generated.

    Args:
        prompt: Token ids, at least one.
        max_tokens: Most tokens to generate. 0: the prompt is scored alone.
        sampling: How tokens are chosen.
        seed: Of the draws.
        stops: Texts to end before.
        top: How many of the likeliest tokens are kept at each place. None: no logprobs.
        score_prompt: Whether the tokens of the prompt are scored too.
        tokenizer: To decode with.
        of_prompt: Whether the text goes on that of the prompt. False: it begins.

    Attributes:
        generated: How many tokens were generated, the one that ends a text included.
        logprob: Sum over them.
        prompt_scores: One for each token of the prompt, if they were asked for.
        left: Whether nobody waits for the row any more.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        *,
        sampling: Sampling,
        seed: str,
        stops: Sequence[str],
        top: int | None,
        score_prompt: bool,
        tokenizer: Any,  # noqa: ANN401
        of_prompt: bool,
        send: Callable[[Delta | RequestError], None],
    ) -> None:
        self.prompt, self.max_tokens, self.sampling = prompt, max_tokens, sampling
        self.top, self.score_prompt, self.send = top, score_prompt, send
        self.random = random.Random(seed)  # noqa: S311
        self.counts: Counter[int] = Counter()
        self.pieces = Pieces(tokenizer, prompt if of_prompt else ())
        self.text = Stopped(stops)
        self.waiting: list[Scored] = []
        self.prompt_scores: list[Scored] = []
        self.generated, self.logprob, self.left = 0, 0.0, False

    @property
    def room(self) -> int:
        """How many tokens may still be generated."""
        return self.max_tokens - self.generated

    @property
    def size(self) -> int:
        """Most tokens that the row has in a cache."""
        return len(self.prompt) + self.max_tokens

    def take(self, token: int, score: Scored, *, ends: bool) -> bool:
        """Add a token that was generated, and tell of it.

        Args:
            token: Its id.
            score: The same token, without its offset.
            ends: Whether it ends the text.

        Returns:
            Whether the row has ended.
        """
        self.generated += 1
        self.counts[token] += 1
        self.logprob += score.logprob or 0.0
        self.waiting.append(Scored(token, score.logprob, score.top, offset=len(self.text.text)))
        if not ends:
            self.text.add(self.pieces.push(token))
        reason = "stop" if ends or self.text.found else "length" if self.room == 0 else None
        self.tell(reason)
        return reason is not None

    def tell(self, reason: str | None) -> None:
        """Send what can be sent.

        Args:
            reason: Why the row has ended. None: it goes on.
        """
        final = reason is not None
        if final and not self.text.found:
            self.text.add(self.pieces.rest())
        new = self.text.release(final=final)
        end = self.text.sent
        whole = final and not self.text.found
        ready = tuple(one for one in self.waiting if whole or one.offset < end)
        self.waiting = self.waiting[len(ready) :]
        if (final or new or ready) and not self.left:
            self.send(Delta(new, ready, reason))

    def fail(self, error: RequestError) -> None:
        """Tell that the row will not be finished."""
        if not self.left:
            self.send(error)
        self.left = True
