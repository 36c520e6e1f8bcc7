"""How our tasks of lm-evaluation-harness score what a model does: functions that tasks/ names."""

from collections.abc import Mapping, Sequence
from typing import Any

from memory_layers.evaluate.answers import score_answer
from memory_layers.evaluate.programs import passes


def question(doc: Mapping[str, Any], texts: Sequence[str]) -> dict[str, float]:
    """Score the answer to a question of ours."""
    return score_answer(texts[0], doc["answers"])


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
    ((likelihood, is_greedy),) = results
    return {"recall": float(is_greedy), "answer_nll": -likelihood}
