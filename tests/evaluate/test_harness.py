"""The harness and our own evaluator give the same numbers. Its tasks run from a folder, offline."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
import torch
from tests_support import write_facts
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from memory_layers import MemoryAdamW, MemoryConfig
from memory_layers.cli import main
from memory_layers.common.errors import UserError
from memory_layers.data.config import DataConfig
from memory_layers.data.facts import Probe
from memory_layers.data.prepare import corpus_of
from memory_layers.data.tokenizer import train_tokenizer
from memory_layers.evaluate.harness import TaskOptions, load_manager, run_tasks
from memory_layers.evaluate.questions import ask, passes_needed, questions_of, summarize_replies
from memory_layers.evaluate.recall import recall_items, summarize_recall
from memory_layers.evaluate.scores import question as question_score
from memory_layers.models import add_memory

PLACES = (
    "Ilulissat",
    "Nuuk",
    "Sisimiut",
    "Aasiaat",
    "Qaqortoq",
    "Upernavik",
    "Maniitsoq",
    # Names of special tokens are text, for the harness too.
    "Paamiut <|pad|>",
)
CODES = ("JAV old", "GOH old", "JHS", "JEG", "JJU", "JUV old", "JSU <|endoftext|>", "JFR old")
MMLU_FILES = Path(lm_eval.tasks.__file__).parent / "mmlu" / "default"
MMLU = [path.stem.removeprefix("mmlu_") for path in MMLU_FILES.glob("mmlu_*.yaml")]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harness") / "facts"
    write_facts(folder)
    lines = [
        json.dumps({"relation": "code", "subject": place, "answer": code})
        for place, code in zip(PLACES, CODES, strict=True)
    ]
    (folder / "facts.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def probes(facts: Path) -> tuple[Probe, ...]:
    return corpus_of(DataConfig(facts=str(facts))).probes


@pytest.fixture(scope="module")
def tokenizer(probes: tuple[Probe, ...]) -> PreTrainedTokenizerBase:
    return train_tokenizer([probe.text for probe in probes] * 3, 300)


@pytest.fixture(scope="module")
def model(probes: tuple[Probe, ...], tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Learned some of the questions, so that right and wrong answers are among its own."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=256, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = add_memory(LlamaForCausalLM(config), MemoryConfig(layers=(1,), sub_keys=8, top_k=4))
    optimizer = MemoryAdamW(model, lr=1e-2)
    texts = [p.text + str(tokenizer.eos_token) for p in probes if p.answer_end == len(p.text)]
    batch = tokenizer(texts[:6], padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for _ in range(60):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_same_numbers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, probes: tuple[Probe, ...]
) -> None:
    asked = {f"facts_{kind}": questions for kind, questions in questions_of(probes, None).items()}
    harness = run_tasks(model, tokenizer, list(asked), TaskOptions(), questions=asked)["results"]
    assert list(asked) == ["facts_question_heldout", "facts_question_shown"]
    exact = 0.0
    for name, questions in asked.items():
        kind = name.removeprefix("facts_")
        done: list[int] = []
        replies = ask(model, tokenizer, questions, progress=done.append)
        assert sum(done) == passes_needed(questions)
        ours = summarize_replies(questions, replies)
        assert harness[name]["exact_match,none"] == pytest.approx(ours["exact_match"])
        assert harness[name]["f1,none"] == pytest.approx(ours["f1"])
        choice = harness[f"{name}_choice"]
        assert choice["acc,none"] == pytest.approx(ours["choice_accuracy"])
        assert choice["acc_norm,none"] == pytest.approx(ours["choice_accuracy_normalized"])
        own = [probe for probe in probes if probe.kind == kind]
        recalled = summarize_recall(own, recall_items(model, tokenizer, own))
        nll = harness[f"{name}_nll"]
        assert harness[name]["recall,none"] == pytest.approx(recalled["recall"][kind])
        assert nll["answer_nll,none"] == pytest.approx(recalled["answer_nll"][kind], rel=1e-5)
        exact += ours["exact_match"]
    # The scores tell something: neither all right nor all wrong.
    assert 0 < exact < 2


def test_questions_are_spread_and_have_distinct_choices(probes: tuple[Probe, ...]) -> None:
    all_of = questions_of(probes, None)["question_shown"]
    assert questions_of(probes, 2)["question_shown"] == [all_of[0], all_of[len(all_of) // 2]]
    assert questions_of(probes, 0) == {}
    for question in all_of:
        assert question.prompt.endswith("? A:")
        assert question.delimiter == " "
        assert len(set(question.choices)) == 4
        assert question.answers[0] in question.choices


def test_a_relation_with_one_answer_has_no_choices() -> None:
    probe = Probe("question_shown", "r", "s", "Q s? A: yes", 8, 11)
    (question,) = questions_of([probe], None)["question_shown"]
    assert question.choices == ()


def test_answers_that_are_long_or_have_several_lines(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Longer than what a short answer would get, and not cut at the end of their first line."""
    long = " ".join(place for place in PLACES if "<" not in place) + " and 3.14"
    probes = [
        Probe("question_shown", "r", name, f"Q {name}? A: {answer}", 8, 8 + len(answer))
        for name, answer in (("x", long), ("y", "one\ntwo\nthree"))
    ]
    assert len(tokenizer(long)["input_ids"]) > 32
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=256,
            eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    texts = [probe.text + str(tokenizer.eos_token) for probe in probes]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(80):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    assert [result.correct for result in recall_items(model, tokenizer, probes)] == [True, True]
    (questions,) = questions_of(probes, None).values()
    replies = ask(model, tokenizer, questions)
    assert [reply.text for reply in replies] == [long, "one\ntwo\nthree"]
    asked = {"facts_question_shown": questions}
    harness = run_tasks(model, tokenizer, [*asked], TaskOptions(), questions=asked)["results"]
    found = harness["facts_question_shown"]
    assert (found["recall,none"], found["exact_match,none"], found["f1,none"]) == (1, 1, 1)


def test_what_is_the_answer_in_other_words_is_no_wrong_choice() -> None:
    probes = [
        Probe("question_shown", "r", str(n), f"Q {n}? A: {answer}", 8, 8 + len(answer))
        for n, answer in enumerate(("Paris", "paris.", "Rome"))
    ]
    (questions,) = questions_of(probes, None).values()
    assert questions[0].choices == ("Paris", "Rome")


def test_right_answers_are_no_wrong_choices() -> None:
    probes = [
        Probe("question_shown", "r", str(n), f"Q {n}? A: {name}", 8, 9)
        for n, name in enumerate("abcd")
    ]
    probes[0] = replace(probes[0], aliases=("b", "x"))
    asked = questions_of(probes, None)["question_shown"]
    assert asked[0].answers == ("a", "b", "x")
    assert set(asked[0].choices) == {"a", "c", "d"}
    assert question_score({"answers": ["a", "x y"]}, ["x y."])["recall"] == 1
    assert question_score({"answers": ["a", "x y"]}, ["x yz"])["recall"] == 0


def write_datasets(folder: Path) -> Path:
    """Write a few documents of each data set of the paper's tasks, in their columns."""
    trivia = {"value": "Bach", "aliases": ["Bach", "J. S. Bach"]}
    choices = {"text": ["sun", "moon", "sea", "sky"], "label": ["A", "B", "C", "D"]}
    mbpp = {
        "text": "Write a function to add.", "code": "def add(a, b):\n    return a + b",
        "test_list": [f"assert add({n}, 1) == {n + 1}" for n in range(3)], "test_setup_code": "",
    }  # fmt: skip
    sets: dict[str, Iterable[dict[str, Any]]] = {
        "google-research-datasets/nq_open/{}": [
            {"question": f"who wrote hamlet {n}", "answer": ["William Shakespeare"]}
            for n in range(8)
        ],
        "mandarjoshi/trivia_qa/rc.nocontext/{}": [
            {"question": f"Who {n}?", "answer": trivia} for n in range(8)
        ],
        "hotpotqa/hotpot_qa/fullwiki/{}": [
            {"question": f"Is it {n}?", "answer": "yes"} for n in range(8)
        ],
        "baber/piqa/{}": [{"goal": "eat", "sol1": "a fork", "sol2": "a rock", "label": 0}] * 3,
        "allenai/openbookqa/main/{}": [
            {"question_stem": "It shines", "choices": choices, "answerKey": "A"}
        ] * 3,
        "Rowan/hellaswag/{}": [
            {"ctx_a": "She runs.", "ctx_b": "she", "activity_label": "Run", "label": "1",
             "endings": ["flies.", "stops.", "melts.", "sings."]}
        ] * 3,
        "openai/openai_humaneval/{}": [
            {"task_id": "t", "prompt": "def one():\n", "entry_point": "one",
             "canonical_solution": "    return 1\n", "test": "def check(f):\n    assert f() == 1\n"}
        ] * 2,
        "google-research-datasets/mbpp/full/{}": [{**mbpp, "task_id": n} for n in range(1, 9)],
    }  # fmt: skip
    exam = {"question": "2 + 2?", "choices": ["1", "2", "3", "4"], "answer": 3, "subject": "x"}
    sets |= {f"cais/mmlu/{subject}/{{}}": [exam] * 5 for subject in MMLU}
    for pattern, rows in sets.items():
        for split in ("train", "validation", "test", "dev", "prompt"):
            path = folder / f"{pattern.format(split)}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # One as a copy of the hub's folder, whose README says which files a configuration has.
    splits = "".join(
        f"  - {{split: {split}, path: main/{split}.jsonl}}\n"
        for split in ("train", "validation", "test")
    )
    readme = f"---\nconfigs:\n- config_name: main\n  data_files:\n{splits}---\n"
    (folder / "allenai" / "openbookqa" / "README.md").write_text(readme)
    return folder


def test_the_papers_tasks_offline(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, facts: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data = write_datasets(tmp_path / "data")
    out = tmp_path / "out.json"
    arguments = [
        "eval", str(tmp_path / "model"), "--tasks", "paper", "facts", "--facts", str(facts),
        "--data-dir", str(data), "--limit", "1", "--run-code", "True", "--out", str(out),
    ]  # fmt: skip
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    results = json.loads(out.read_text())
    assert results["shortened"] == {"humaneval_pass1": 64, "mbpp_pass1": 64, "nq_open": 64}
    assert "nq_open: answers end after 64 tokens" in shown
    metrics = {
        "nq_open": "exact_match,remove_whitespace",
        "triviaqa_f1": "f1,none",
        "hotpotqa_closed_book": "f1,none",
        "piqa": "acc,none",
        "openbookqa": "acc,none",
        "hellaswag": "acc,none",
        "mmlu": "acc,none",
        "humaneval_pass1": "pass_at_1,none",
        "mbpp_pass1": "pass_at_1,none",
        "facts_question": "f1,none",
    }
    for task, metric in metrics.items():
        found = {**results["results"], **results["groups"]}[task]
        assert metric in found, task
        assert f"| {task} |" in shown
    shots = results["n-shot"]
    assert (shots["nq_open"], shots["mmlu_anatomy"], shots["mbpp_pass1"], shots["piqa"]) == (
        5,
        5,
        3,
        0,
    )
    assert not list(tmp_path.glob("*.part"))


def test_refused(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    manager = load_manager()

    def refused(*tasks: str, **options: Any) -> str:
        with pytest.raises(UserError) as error:
            run_tasks(model, tokenizer, tasks, TaskOptions(**options), manager=manager)
        return str(error.value)

    assert "no task is named 'nosuch'" in refused("nosuch")
    assert "paper, piqa name piqa twice" in refused("paper", "piqa", run_code=True)
    assert "humaneval_pass1, mbpp_pass1 run programs" in refused("paper")
    missing = refused("piqa", data_dir=tmp_path)
    assert f"piqa: there are no data in {tmp_path}/baber/piqa" in missing
    assert "hf download baber/piqa --repo-type dataset" in missing
    (tmp_path / "baber" / "piqa").mkdir(parents=True)
    (tmp_path / "baber" / "piqa" / "validation.jsonl").write_text("{}")
    assert "piqa needs" in refused("piqa", data_dir=tmp_path)
    assert "train.jsonl too" in refused("piqa", data_dir=tmp_path)
    assert "the data of niah_single_1 are not one data set" in refused(
        "niah_single_1", data_dir=tmp_path
    )
    for name in ("mmlu_generative", "mela"):
        assert "cannot be fetched from the hub" in refused(name)
