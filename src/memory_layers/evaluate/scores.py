"""How answers are scored: in words, and by the tasks in tasks/. Next: normalize.py."""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from memory_layers.evaluate.normalize import normalize, normalize_squad, words
from memory_layers.evaluate.programs import passes

# Before a letter a stop is a part of the word, as in ASP.NET, and so is a bracket without a space.
_END = re.compile(r'[ \t]*(?:[\r\n)\]}"”»」』。，；：！？、।،؛؟۔]|[.,;:!?](?!\w))|[ \t]+\(')
_PART_OF_NUMBER = re.compile(r"[.,:]")


def matches(reply: str, answer: str, *, squad: bool = False) -> bool:
    """Say whether a reply is an answer, and nothing but it.

    "Paris." and "the Eiffel Tower" are Paris and Eiffel Tower; "Paris, France" is not Paris. An
    empty reply is no answer.

    Args:
        reply: What was said.
        answer: What is right.
        squad: Compare as SQuAD does, for numbers that stand beside published ones. Else as facts
            are compared: see normalize.
    """
    if not reply.strip():
        return False
    if squad:
        return normalize_squad(reply) == normalize_squad(answer)
    return not _forms(reply).isdisjoint(_forms(answer))


def _forms(text: str) -> set[str]:
    return {normalize(text), normalize(text, articles=False)}


def f1(text: str, answers: Iterable[str], *, squad: bool = False) -> float:
    """Return the F1 of the words of a text against the right answer that it is closest to.

    F1 = 2 · precision · recall / (precision + recall), over words as often as they occur.

    Args:
        text: What was said.
        answers: Right answers.
        squad: As for matches.
    """
    split = (lambda text: normalize_squad(text).split()) if squad else words
    return max((_f1(split(text), split(answer)) for answer in answers), default=0.0)


def _f1(given: Sequence[str], right: Sequence[str]) -> float:
    shared = (Counter(given) & Counter(right)).total()
    return 2 * shared / max(len(given) + len(right), 1)


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


def score_answer(text: str, answers: Sequence[str], *, squad: bool = False) -> dict[str, float]:
    """Return `exact_match`, 1.0 where a text is a right answer, and `f1`."""
    exact = any(matches(text, answer, squad=squad) for answer in answers)
    return {"exact_match": float(exact), "f1": max(f1(text, answers, squad=squad), float(exact))}


def first_lines(text: str, answers: Iterable[str]) -> str:
    """Return so many lines of a text as the longest answer has, without white space around them."""
    count = max((answer.count("\n") for answer in answers), default=0) + 1
    return "\n".join(text.split("\n")[:count]).strip()


def question(doc: Mapping[str, Any], texts: Sequence[str]) -> dict[str, float]:
    """Score the answer to a question of ours."""
    answers = doc["answers"]
    text = first_lines(texts[0], answers)
    recalled = any(_begins_with(text, answer) for answer in answers)
    return {**score_answer(text, answers), "recall": float(recalled)}


def _begins_with(text: str, answer: str) -> bool:
    """Say whether a text begins with an answer, whole, and ends it there."""
    left = text.removeprefix(answer)
    return text == answer or (left != text and is_over(answer, left))


def triviaqa(doc: Mapping[str, Any], texts: Sequence[str]) -> dict[str, float]:
    """Score an answer of TriviaQA by its aliases."""
    answers = [doc["answer"]["value"], *doc["answer"]["aliases"]]
    return score_answer(texts[0], answers, squad=True)


def hotpotqa(doc: Mapping[str, Any], texts: Sequence[str]) -> dict[str, float]:
    """Score an answer of HotpotQA."""
    return score_answer(texts[0], [doc["answer"]], squad=True)


def humaneval(doc: Mapping[str, Any], texts: Sequence[str]) -> dict[str, float]:
    """Run the completion of a function of HumanEval with its tests."""
    name = doc["entry_point"]
    # Some tests call what stands before the function.
    before = f"{doc['prompt']}{doc['canonical_solution']}"
    tests = f"{doc['test']}\ncheck({name})\n"
    return {"pass_at_1": float(passes(doc["prompt"] + texts[0], tests, [name], before=before))}


def mbpp(doc: Mapping[str, Any], texts: Sequence[str]) -> dict[str, float]:
    """Run a program of MBPP with its tests."""
    right = ast.parse(doc["code"]).body
    # The tests use what the solution imports, too.
    imports = [ast.unparse(n) for n in right if isinstance(n, ast.Import | ast.ImportFrom)]
    names = [node.name for node in right if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    tests = "\n".join([doc["test_setup_code"], *doc["test_list"]])
    return {"pass_at_1": float(passes(texts[0], tests, names, before="\n".join(imports)))}


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
