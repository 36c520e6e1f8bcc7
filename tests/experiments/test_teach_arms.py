"""The harness of experiments/06-teach: what counts as right, what trains, what is reported."""

import copy
import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from memory_layers.data.facts import Fact

FOLDER = Path(__file__).parents[2] / "experiments" / "06-teach"
FACTS = [
    Fact("r", name, answer) for name, answer in zip("ABCD", ("11", "2", "33", "4"), strict=True)
]
TEMPLATES = {
    "r": {
        "statements": ["{subject} is {answer}.", "of {subject}: {answer}."],
        "heldout": ["it is {subject} {answer}."],
        "question": "{subject}? {answer}",
    }
}
TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules of the experiment."""
    monkeypatch.syspath_prepend(FOLDER)
    names = ("arms", "protocol", "report", "run", "texts")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    spelled = Tokenizer(BPE({letter: n for n, letter in enumerate(letters)}, []))
    spelled.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spelled.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=spelled, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    made.chat_template = TURNS
    return made


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=len(tokenizer),
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def taught(harness: SimpleNamespace, tokenizer: PreTrainedTokenizerFast) -> SimpleNamespace:
    """What is taught: four facts in two statements, two of them as a question too."""
    speller = harness.protocol.Speller(tokenizer)
    train = []
    for n, fact in enumerate(FACTS):
        items = harness.protocol.wordings(speller, fact, TEMPLATES, shown=n % 2 == 0)
        train.append(tuple(item for item in items if item.form in ("seen", "chat_shown")))
    return harness.protocol.Protocol(tuple(FACTS), tuple(train), (), (), ())


def train(harness: SimpleNamespace, job: object, *rest: object) -> list[float]:
    return [loss for _, _, loss in harness.arms.train(job, *rest, replay_blocks=2)]


def test_taught_answers_count_as_right_and_others_do_not(
    harness: SimpleNamespace,
    tokenizer: PreTrainedTokenizerFast,
    model: LlamaForCausalLM,
    taught: object,
    tmp_path: Path,
) -> None:
    items = [item for fact in taught.train for item in fact]
    assert {item.form for item in items} == {"seen", "chat_shown"}
    answered = harness.protocol.answered
    assert not any(right for right, _ in answered(model, items))
    train(
        harness, harness.arms.Job("full", 1e-2, passes=(120,)), model, tokenizer, taught, tmp_path
    )
    # In batches of several lengths and in a batch each.
    assert answered(model, items) == [(True, True)] * len(items)
    assert answered(model, items, tokens=1) == [(True, True)] * len(items)
    wrong = [replace(item, answer=(*item.answer[:-1], 3)) for item in items]
    assert answered(model, wrong) == [(False, False)] * len(items)
    goes_on = [replace(item, end=(3,)) for item in items]
    assert answered(model, goes_on) == [(True, False)] * len(items)


def rounded(model: LlamaForCausalLM) -> set[bytes]:
    """All weights in bfloat16, as they are computed with."""
    return {weight.detach().bfloat16().float().numpy().tobytes() for weight in model.parameters()}


# What the memory of "ours" says at a name, and nowhere else, moves an answer of an untrained model
# by little, at any rate: its attention hardly carries it there.
@pytest.mark.parametrize(
    ("arm", "rate", "learned"), [("lora4", 1e-2, 0.5), ("memory", 1e-2, 0.5), ("ours", 0.3, 0.005)]
)
def test_adapters_leave_the_base_as_it_is(
    arm: str,
    rate: float,
    learned: float,
    harness: SimpleNamespace,
    tokenizer: PreTrainedTokenizerFast,
    model: LlamaForCausalLM,
    taught: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = rounded(model)
    job = harness.arms.Job(arm, rate, passes=(30,))
    losses = train(harness, job, model, tokenizer, taught, tmp_path)
    assert losses[-1] < losses[0] - learned
    # Each weight of the base is still there, under the same name or another.
    assert before <= rounded(model)
    kept = sum(w.numel() * w.element_size() for w in model.parameters() if w.requires_grad)
    size = harness.arms.result_bytes(model)
    # A memory that is taught comes with what its rows are found by.
    assert size > kept if arm == "ours" else size == kept


def test_the_own_distributions_hold_a_model_in_place(
    harness: SimpleNamespace,
    tokenizer: PreTrainedTokenizerFast,
    model: LlamaForCausalLM,
    taught: object,
    tmp_path: Path,
) -> None:
    text = torch.randint(0, 256, (2, harness.texts.BLOCK))
    # Kept where the training looks for it.
    path = tmp_path / "replay-2.safetensors"
    teacher = harness.texts.Teacher.kept(path, model, lambda: text)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    far = {"base": harness.texts.damage(model, teacher)["kl"]}
    for guard in ("none", "distill"):
        model.load_state_dict(start)
        job = harness.arms.Job("full", 1e-2, guard, passes=(15,))
        train(harness, job, model, tokenizer, taught, tmp_path)
        far[guard] = harness.texts.damage(model, teacher)["kl"]
    assert far["base"] < 1e-3
    assert far["base"] < far["distill"] < far["none"] / 2


def test_the_statement_of_the_subject_is_found(
    harness: SimpleNamespace, tokenizer: PreTrainedTokenizerFast, taught: object
) -> None:
    retriever = harness.arms.Retriever(taught, tokenizer)
    speller = harness.protocol.Speller(tokenizer)
    *_, heldout, chat = harness.protocol.wordings(speller, FACTS[2], TEMPLATES, shown=False)
    assert tokenizer.decode(retriever.with_fact(heldout).prompt) == "C is 33.\nit is C"
    assert tokenizer.decode(retriever.with_fact(chat).prompt).startswith(
        "<|im_start|>user\nC is 33.\nC?<|im_end|>"
    )


def test_the_headline_has_ours_beside_the_usual_ways(
    harness: SimpleNamespace, tmp_path: Path
) -> None:
    for seed, recall in enumerate((0.91, 0.95)):
        write(tmp_path, "ours", 0, seed, (recall, 0.0))
    write(tmp_path, "full", 1e-4, 0, (0.92, 0.2))
    text = harness.report.headline("../", tmp_path)
    assert "mean of 2 seeds" in text
    assert "0.93 (0.91 to 0.95) of the wordings" in text
    assert "Full finetuning (one seed): 0.92" in text
    assert "+20.00%" in text
    assert "(../experiments/06-teach/plots/frontier_known.png)" in text


def test_jobs_have_names_of_their_own(harness: SimpleNamespace) -> None:
    names = [job.name for job in harness.run.jobs(FOLDER / "jobs.yaml")]
    assert len(set(names)) == len(names)


def write(folder: Path, arm: str, rate: float, seed: int, *points: tuple[float, float]) -> None:
    kinds = ("python", "licences", "descriptions", "own")
    record = {
        "job": {"arm": arm, "rate": rate, "guard": "none", "seed": seed},
        "base": {"texts": {kind: {"loss": 2.0, "kl": 0.0} for kind in kinds}},
        "facts": 200, "known": 300, "tokens_of_text": 2048, "device": "a CPU", "threads": 1,
        "commit": "c", "bytes": 10**6,
        "points": [
            {
                "passes": n + 1, "updates": 25 * (n + 1), "kept": 0.5, "cpu_seconds": 60.0,
                "heldout_by_relation": {"r": recall},
                "recall": dict.fromkeys(("heldout", "seen", "chat_shown", "chat_heldout"), recall),
                "texts": {kind: {"loss": 2.0 * (1 + rise), "kl": rise} for kind in kinds},
            }
            for n, (recall, rise) in enumerate(points)
        ],
    }  # fmt: skip
    (folder / f"{arm}-{rate}-{seed}.json").write_text(json.dumps(record))


def test_the_table_has_the_least_damage_at_the_target(
    harness: SimpleNamespace, tmp_path: Path
) -> None:
    report: ModuleType = harness.report
    assert "No results yet" in report.section(tmp_path)
    write(tmp_path, "full", 1e-5, 0, (0.5, 0.01), (0.95, 0.3))
    write(tmp_path, "full", 1e-4, 0, (0.92, 0.2), (1.0, 0.9))
    write(tmp_path, "lora16", 1e-3, 0, (0.3, 0.5), (0.5, 0.6))
    write(tmp_path, "lora16", 1e-3, 1, (0.5, 0.5), (0.7, 0.8))
    table = report.section(tmp_path)
    assert "| full finetuning | 0.0001 | 1 (25) | 0.92 |" in table
    assert "+20.0%" in table
    # It does not reach the target: where it comes nearest, over both seeds.
    assert "| LoRA r = 16 | 0.001 | 2 (50) | 0.60 (0.50 to 0.70) |" in table
    assert "+70.0% (+60.0% to +80.0%)" in table
    assert "4 trainings" in table
    points = report.load(tmp_path)
    plot = report.frontier(points, known=False)
    assert plot.png.startswith(b"\x89PNG")
    assert len(plot.csv.splitlines()) == 1 + len(points) == 7


@pytest.mark.parametrize("arm", ["full", "lora4", "memory"])
def test_a_training_that_goes_on_ends_as_one_in_a_piece(
    arm: str,
    harness: SimpleNamespace,
    tokenizer: PreTrainedTokenizerFast,
    model: LlamaForCausalLM,
    taught: object,
    tmp_path: Path,
) -> None:
    teach = harness.arms.train
    whole, first, rest = (copy.deepcopy(model) for _ in range(3))
    # More passes than the warm-up.
    job = harness.arms.Job(arm, 1e-3, passes=(12, 14))
    list(teach(job, whole, tokenizer, taught, tmp_path / "whole"))
    list(teach(replace(job, passes=(12,)), first, tokenizer, taught, tmp_path / "parts"))
    passes = [n for n, *_ in teach(job, rest, tokenizer, taught, tmp_path / "parts", done=12)]
    assert passes == [13, 14]
    ends = dict(rest.named_parameters())
    assert all(torch.equal(weight, ends[name]) for name, weight in whole.named_parameters())
    assert any(not torch.equal(w, ends[name]) for name, w in first.named_parameters())
