"""How an answer in words is scored: exact match and F1 over words, as SQuAD defines them."""

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


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


def score_answer(text: str, answers: Sequence[str]) -> dict[str, float]:
    """Return `exact_match` and `f1` of a text."""
    return {"exact_match": exact_match(text, answers), "f1": f1(text, answers)}
