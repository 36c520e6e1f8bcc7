"""What is answered without having read the fact that is asked for, from the other facts alone.

As far as these guessers get, recall says little about what a model has stored. Next:
report/guessing.py, which shows them and warns.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from heapq import nsmallest
from itertools import tee

import numpy as np
from scipy import sparse

from memory_layers.common.progress import Report, counter
from memory_layers.common.seeds import stable_hash
from memory_layers.data.facts import Probe

GUESSERS = ("chance", "majority", "neighbour", "prefix")
# Of a relation: pairs of names to look at, and questions to ask however many pairs that makes.
MOST_PAIRS = 10**8
FEWEST_ASKED = 1000

_PAIRS_AT_ONCE = 2**22

# The two most frequent answers of some facts, each behind minus its count, the first one first.
_Top = Sequence[tuple[int, str]]


def guessers(
    probes: Sequence[Probe], progress: Report | None = None
) -> dict[str, dict[str, int | float]]:
    """Measure what guessers reach on held-out questions, each fact left out when it is asked.

    They know the answers of all other facts of the relation, those of shown subjects too, and
    answer:

    - `chance`: any of the distinct answers.
    - `majority`: the most frequent one. Below chance where all are as frequent, as the one that is
      left out is then rarer than the others.
    - `neighbour`: that of the subject whose name is nearest: by trigrams of characters, start and
      end of the name included, twice those in common over those of both (Dice). Of names that are
      equally near the most frequent answer.
    - `prefix`: the most frequent one of the subjects that begin with as many of the same characters
      as any does, as neighbouring ZIP codes do.

    Upper and lower case of subjects are the same. Of equally frequent answers the first in order of
    text is taken. A guess counts where it is one of the right answers of the fact.

    Args:
        probes: Recall items.
        progress: Called with the questions that are guessed at, and how many there are.

    Returns:
        For each relation with a held-out question: `facts`, `heldout` of them, `asked` of these,
        and the share that each of GUESSERS answers. Of a relation of more than some ten thousand
        facts not all questions are asked but a sample, picked by a hash: 1,000, or as many as make
        10⁸ pairs of names. The answers of all other facts are known all the same.
    """
    relations: dict[str, list[Probe]] = defaultdict(list)
    for probe in probes:
        if probe.kind in ("question_shown", "question_heldout"):
            relations[probe.relation].append(probe)
    # Relations often share their subjects, and what is near is looked for once.
    alike: dict[tuple[tuple[str, ...], tuple[int, ...]], list[str]] = defaultdict(list)
    for name, facts in relations.items():
        if asked := _asked(facts):
            alike[tuple(fact.subject.casefold() for fact in facts), asked].append(name)
    total = sum(len(asked) * len(names) for (_, asked), names in alike.items())
    count = counter(total, "guessing", progress)
    found = {}
    for (subjects, asked), names in alike.items():
        right = {name: Counter[str]() for name in names}
        guesses = [
            _guesses(relations[name], subjects, asked, nearest)
            for name, nearest in zip(names, tee(_nearest(subjects, asked), len(names)), strict=True)
        ]
        for index, *row in zip(asked, *guesses, strict=True):
            for name, own in zip(names, row, strict=True):
                answers = relations[name][index].answers
                right[name].update(who for who, guess in own.items() if guess in answers)
            count(len(names))
        for name in names:
            facts = relations[name]
            found[name] = {
                "facts": len(facts),
                "heldout": sum(fact.kind == "question_heldout" for fact in facts),
                "asked": len(asked),
                "chance": 1 / len({fact.answers[0] for fact in facts}),
                **{who: right[name][who] / len(asked) for who in GUESSERS[1:]},
            }
    return {name: found[name] for name in relations if name in found}


def _asked(facts: Sequence[Probe]) -> tuple[int, ...]:
    heldout = [n for n, fact in enumerate(facts) if fact.kind == "question_heldout"]
    most = max(FEWEST_ASKED, MOST_PAIRS // len(facts))
    if len(heldout) <= most:
        return tuple(heldout)
    return tuple(nsmallest(most, heldout, key=lambda n: stable_hash(0, "guess", facts[n].subject)))


def _guesses(
    facts: Sequence[Probe],
    subjects: Sequence[str],
    asked: Sequence[int],
    nearest: Iterator[np.ndarray],
) -> Iterator[dict[str, str | None]]:
    """Yield the guess of each guesser but chance at each fact that is asked. None: it has none."""
    answers = [fact.answers[0] for fact in facts]
    everything = _top(answers)
    order = sorted(range(len(facts)), key=lambda n: subjects[n])
    names = [subjects[n] for n in order]
    places = {n: place for place, n in enumerate(order)}
    tops: dict[tuple[int, int], _Top] = {}
    for index, near in zip(asked, nearest, strict=True):
        own, (low, high) = answers[index], _alike_beginnings(names, places[index])
        if (low, high) not in tops:
            tops[low, high] = _top([answers[n] for n in order[low:high]])
        majority = _without(everything, own)
        yield {
            "majority": majority,
            # Where no name is like this one, all others are as near.
            "neighbour": _top([answers[n] for n in near])[0][1] if len(near) else majority,
            "prefix": _without(tops[low, high], own),
        }


def _top(answers: Sequence[str]) -> _Top:
    return nsmallest(2, ((-count, answer) for answer, count in Counter(answers).items()))


def _without(top: _Top, own: str) -> str | None:
    """Return the most frequent answer when one fact with the answer `own` is left out."""
    count, answer = min((count + (answer == own), answer) for count, answer in top)
    return answer if count else None


def _alike_beginnings(names: Sequence[str], place: int) -> tuple[int, int]:
    """Return the range, in sorted names, of those that begin most like one, itself included."""
    name = names[place]
    beside = (*names[max(0, place - 1) : place], *names[place + 1 : place + 2])
    length = max((_alike(name, other) for other in beside), default=0)
    low = bisect_left(names, name[:length], key=lambda other: other[:length])
    return low, bisect_right(names, name[:length], low, key=lambda other: other[:length])


def _alike(one: str, other: str) -> int:
    """Return the number of characters with which both begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def _nearest(subjects: Sequence[str], asked: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield for each subject the indices of the other ones nearest to it, none where none is like.

    Similarities are quotients of whole numbers, so that equally near is equal.
    """
    numbers: dict[str, int] = {}
    grams = [
        sorted({numbers.setdefault(gram, len(numbers)) for gram in _trigrams(subject)})
        for subject in subjects
    ]
    # Enough digits to tell quotients of numbers of trigrams apart.
    sizes = np.array([len(own) for own in grams], np.float32)
    ends = np.concatenate([[0], np.cumsum([len(own) for own in grams])])
    flat = np.fromiter((gram for own in grams for gram in own), np.int32, ends[-1])
    ones = np.ones(len(flat), np.float32)
    has = sparse.csr_array((ones, flat, ends), shape=(len(subjects), max(1, len(numbers))))
    others = has.T.tocsr()
    step = max(1, _PAIRS_AT_ONCE // len(subjects))
    for start in range(0, len(asked), step):
        rows = np.array(asked[start : start + step])
        common = (has[rows] @ others).toarray()
        common[np.arange(len(rows)), rows] = 0
        similar = common / (sizes[rows, None] + sizes)
        for row in similar:
            best = row.max()
            yield np.flatnonzero(row == best) if best > 0 else np.array([], int)


def _trigrams(text: str) -> set[str]:
    framed = f"\x02{text}\x03"
    return {framed[n : n + 3] for n in range(max(1, len(framed) - 2))}
