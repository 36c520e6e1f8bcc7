"""How answers are scored: over words, as SQuAD defines it, and by the tasks in tasks/."""

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from memory_layers.evaluate.programs import passes

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_END = re.compile(r'[ \t]*[\r\n.,;:!?()\]}"”»。，；：！？]')
_PART_OF_NUMBER = re.compile(r"[.,:]")


def normalize(text: str) -> str:
    """Return a text in lower case without punctuation, articles and repeated spaces.

    The normalisation of Rajpurkar et al., arXiv 1606.05250.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(text: str, answers: Iterable[str]) -> float:
    """Return 1.0 where a text equals a right answer once both are normalised, else 0.0."""
    return float(normalize(text) in map(normalize, answers))


def f1(text: str, answers: Iterable[str]) -> float:
    """Return the F1 of the words of a text against the right answer that it is closest to.

    F1 = 2 · precision · recall / (precision + recall), over words as often as they occur. A text
    and an answer without any word equal each other.
    """
    return max((_f1(normalize(text).split(), normalize(a).split()) for a in answers), default=0.0)


def _f1(given: list[str], right: list[str]) -> float:
    if not given or not right:
        return float(given == right)
    shared = (Counter(given) & Counter(right)).total()
    return 2 * shared / (len(given) + len(right))


def is_over(answer: str, following: str) -> bool:
    """Say whether an answer is whole where a text goes on like this.

    It is before the end of a line and before punctuation. It is not before a word or a sign that
    joins words: "Paris" is another answer than "Paris Saint-Germain" and "Paris-Nord". Nor are 3.5
    and 3,500 the answer 3.

    Args:
        answer: The answer.
        following: The text after it, or its beginning.
    """
    if answer[-1:].isdigit() and _PART_OF_NUMBER.match(following):
        return False
    return _END.match(following) is not None


def score_answer(text: str, answers: Sequence[str]) -> dict[str, float]:
    """Return `exact_match` and `f1` of a text."""
    return {"exact_match": exact_match(text, answers), "f1": f1(text, answers)}


def question(doc: Mapping[str, Any], texts: Sequence[str]) -> dict[str, float]:
    """Score the answer to a question of ours."""
    text, answers = texts[0].strip(), doc["answers"]
    recalled = any(_begins_with(text, answer) for answer in answers)
    return {**score_answer(text, answers), "recall": float(recalled)}


def _begins_with(text: str, answer: str) -> bool:
    """Say whether a text begins with an answer, whole, and ends it there."""
    left = text.removeprefix(answer)
    return text == answer or (left != text and is_over(answer, left))


def triviaqa(doc: Mapping[str, Any], texts: Sequence[str]) -> dict[str, float]:
    """Score an answer of TriviaQA by its aliases."""
    return score_answer(texts[0], [doc["answer"]["value"], *doc["answer"]["aliases"]])


def hotpotqa(doc: Mapping[str, Any], texts: Sequence[str]) -> dict[str, float]:
    """Score an answer of HotpotQA."""
    return score_answer(texts[0], [doc["answer"]])


def humaneval(doc: Mapping[str, Any], texts: Sequence[str]) -> dict[str, float]:
    """Run the completion of a function of HumanEval with its tests."""
    program = f"{doc['prompt']}{texts[0]}\n{doc['test']}\ncheck({doc['entry_point']})\n"
    return {"pass_at_1": float(passes(program))}


def mbpp(doc: Mapping[str, Any], texts: Sequence[str]) -> dict[str, float]:
    """Run a program of MBPP with its tests."""
    lines = [doc["test_setup_code"], texts[0], *doc["test_list"]]
    return {"pass_at_1": float(passes("\n".join(lines)))}


def mbpp_examples(docs: Any) -> Any:  # noqa: ANN401  (a datasets.Dataset)
    """Return the three solved problems that the authors of MBPP show before each question."""
    return docs.filter(lambda doc: doc["task_id"] in (2, 3, 4))


def answer_likelihood(
    doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]
) -> dict[str, float]:
    """Score the answer of a question of ours, its end included, by its likelihood."""
    del doc
    ((likelihood, _),) = results
    return {"answer_nll": -likelihood}
