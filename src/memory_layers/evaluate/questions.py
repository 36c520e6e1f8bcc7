"""Questions in words: what a model answers, and which of several choices it finds most likely.

With the numbers that lm-evaluation-harness gives on the same questions: a test holds them to that.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from memory_layers.common.seeds import stable_number
from memory_layers.data.encode import encode_texts
from memory_layers.data.facts import Probe
from memory_layers.evaluate.batches import by_length, score_spans
from memory_layers.evaluate.positions import check_lengths
from memory_layers.evaluate.scores import first_lines, matches, score_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHOICES = 4
# Of what a model writes, where no answer is longer.
ANSWER_TOKENS = 32


@dataclass(frozen=True)
class Question:
    """A text that is to be continued by an answer.

    Attributes:
        prompt: The text, without white space at its end.
        answers: Right answers.
        choices: Answers to choose from, the first of `answers` among them. Empty: none to choose.
        delimiter: What stands between prompt and answer.
    """

    prompt: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    delimiter: str = " "


@dataclass(frozen=True)
class Reply:
    """What the model did on one question.

    Attributes:
        text: What it wrote under greedy decoding, as many lines as the answer has.
        exact_match: 1.0 where it is a right answer, see scores.matches.
        f1: Over its words.
        choice_nll: Nats of each choice, in their order.
    """

    text: str
    exact_match: float
    f1: float
    choice_nll: tuple[float, ...]

    def chosen(self, question: Question, *, normalized: bool = False) -> int:
        """Return the number of the choice with the least nats, in sum or by character."""
        lengths = [len(question.delimiter + choice) for choice in question.choices]
        scores = [
            nll / length if normalized else nll
            for nll, length in zip(self.choice_nll, lengths, strict=True)
        ]
        return min(range(len(scores)), key=scores.__getitem__)


@torch.no_grad()
def ask(
    model: Any,  # noqa: ANN401  (generate is not one of PreTrainedModel's own)
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[Question],
    *,
    progress: Callable[[int], object] = lambda done: None,
) -> list[Reply]:
    """Ask every question and return the replies in their order.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer. Texts get the special tokens that it adds by default.
        questions: To ask.
        progress: Called with a number of passes that are done, of `passes_needed`.

    Raises:
        UserError: A prompt, with an answer, is longer than the model can read.
    """
    was_training = model.training
    model.eval()
    encoded = encode_texts(tokenizer, [asked.prompt for asked in questions], special_tokens=True)
    prompts = [prompt.ids for prompt in encoded]
    max_tokens = longest_answer(tokenizer, questions)
    check_lengths(model, [question.prompt for question in questions], prompts, max_tokens)
    texts = [""] * len(prompts)
    for part in by_length(prompts, len(tokenizer), extra=max_tokens):
        ids = torch.tensor([prompts[n] for n in part], device=model.device)
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
            # For what the model's generation_config.json says of strings.
            tokenizer=tokenizer,
        )[:, ids.shape[1] :]
        said = tokenizer.batch_decode(
            made, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        for n, text in zip(part, said, strict=True):
            texts[n] = first_lines(text, questions[n].answers)
        progress(len(part))
    chosen = [
        (asked.prompt + asked.delimiter + choice, len(prompt))
        for asked, prompt in zip(questions, prompts, strict=True)
        for choice in asked.choices
    ]
    encoded = encode_texts(tokenizer, [text for text, _ in chosen], special_tokens=True)
    rows = [
        (row.ids, (first, len(row.ids))) for row, (_, first) in zip(encoded, chosen, strict=True)
    ]
    nll = [0.0] * len(rows)
    for part in by_length([row for row, _ in rows], len(tokenizer)):
        for i, score in zip(part, score_spans(model, [rows[i] for i in part]), strict=True):
            nll[i] = score.nll
        progress(len(part))
    model.train(was_training)
    left = iter(nll)
    return [
        Reply(
            text,
            **score_answer(text, asked.answers),
            choice_nll=tuple(islice(left, len(asked.choices))),
        )
        for asked, text in zip(questions, texts, strict=True)
    ]


def longest_answer(tokenizer: "PreTrainedTokenizerBase", questions: Sequence[Question]) -> int:
    """Return how many tokens a reply may take: those of the longest answer and its end, or 32."""
    answers = [asked.delimiter + answer for asked in questions for answer in asked.answers]
    lengths = (len(answer.ids) + 1 for answer in encode_texts(tokenizer, answers))
    return max([ANSWER_TOKENS, *lengths])


def summarize_replies(questions: Sequence[Question], replies: Sequence[Reply]) -> dict[str, Any]:
    """Average replies.

    Returns:
        questions: How many.
        exact_match, f1: Means.
        choice_accuracy, choice_accuracy_normalized: Share of the questions with choices whose most
            likely choice is right, the second one by nats a character. None without any.
        choice_questions: How many have choices.
    """
    total = len(questions)
    chosen = [(q, reply) for q, reply in zip(questions, replies, strict=True) if q.choices]

    def accuracy(*, normalized: bool) -> float | None:
        right = [
            q.choices[reply.chosen(q, normalized=normalized)] in q.answers for q, reply in chosen
        ]
        return sum(right) / len(right) if right else None

    return {
        "questions": total,
        "exact_match": sum(reply.exact_match for reply in replies) / total,
        "f1": sum(reply.f1 for reply in replies) / total,
        "choice_accuracy": accuracy(normalized=False),
        "choice_accuracy_normalized": accuracy(normalized=True),
        "choice_questions": len(chosen),
    }


def passes_needed(questions: Sequence[Question]) -> int:
    """Return how often `ask` will call `progress`, in sum."""
    return len(questions) + sum(len(question.choices) for question in questions)


def questions_of(probes: Sequence[Probe], most: int | None) -> dict[str, list[Question]]:
    """Return probes as questions with choices, by kind, at most so many, spread over all."""
    answers = defaultdict(set)
    kinds = defaultdict(list)
    for probe in probes:
        answers[probe.relation].add(probe.text[probe.answer_start : probe.answer_end])
        # What follows the answer of a statement is no part of it, so only answers at the end count.
        if probe.answer_end == len(probe.text):
            kinds[probe.kind].append(probe)
    ordered = {relation: sorted(found) for relation, found in answers.items()}
    asked = {}
    for kind, found in sorted(kinds.items()):
        count = len(found) if most is None else min(most, len(found))
        chosen = [found[n * len(found) // count] for n in range(count)]
        if chosen:
            asked[kind] = [_question(probe, ordered[probe.relation]) for probe in chosen]
    return asked


def _question(probe: Probe, answers: Sequence[str]) -> Question:
    before, answer = probe.text[: probe.answer_start], probe.answers[0]
    prompt = before.rstrip()
    # Wrong answers of the same relation, the same ones each time.
    number = stable_number(0, "choices", probe.relation, probe.subject)
    drawn = random.Random(number).sample(answers, min(CHOICES, len(answers)))  # noqa: S311
    others = [
        other for other in drawn if not any(matches(other, right) for right in probe.answers)
    ][: CHOICES - 1]
    choices = tuple(sorted([answer, *others])) if others else ()
    return Question(prompt, probe.answers, choices, before[len(prompt) :])
