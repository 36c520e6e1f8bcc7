"""Trainers that people use take our optimizer, in one process and in several."""

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist
from datasets import Dataset
from example_models import write_example
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from ranks import run_ranks
from safetensors.torch import load_file
from tiny_models import tiny_llama, tiny_memory
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer

from memory_layers import MemoryAdamW, ValueTable
from memory_layers.data.fact_files import load_facts
from memory_layers.integrations.trainer import MemoryCallback, memory_optimizer, sync_tables
from memory_layers.models import add_memory, load_memory, memory_layers_of

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

OPTIONS = {
    "use_cpu": True, "max_steps": 4, "save_steps": 2, "disable_tqdm": True, "report_to": "none",
    "save_total_limit": None, "lr_scheduler_type": "constant",
}  # fmt: skip


@pytest.fixture(autouse=True)
def examples_in_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")


def example(name: str) -> ModuleType:
    return import_module(name)


def memory_of(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "memory" / "memory.safetensors")


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 4}, {"bf16": True}, {"gradient_checkpointing": True}],
    ids=str,
)
def test_trainer_teaches_the_memory_and_resumes_to_the_bit(
    options: dict[str, object], tmp_path: Path
) -> None:
    model, lines = write_example(tmp_path)
    main = example("hf_trainer").main
    whole = main(model, lines, str(tmp_path / "whole"), **{**OPTIONS, **options})
    assert whole.state.global_step == 4
    before = AutoModelForCausalLM.from_pretrained(model).state_dict()
    trained = load_memory(AutoModelForCausalLM.from_pretrained(model), tmp_path / "whole/memory")
    for key, value in trained.state_dict().items():
        plain = key.replace(".mlp.mlp.", ".mlp.")
        assert plain not in before or torch.equal(value, before[plain]), key
    assert len(memory_layers_of(trained)) == 2
    # Updates without effect would pass all else.
    table = trained.base_model.memory_table.weight
    assert float(table.detach().std()) > 1.5 * trained.base_model.memory_table.init_std

    for steps in (2, 4):
        main(model, lines, str(tmp_path / "parts"), **{**OPTIONS, **options, "max_steps": steps})
    ours, theirs = memory_of(tmp_path / "whole"), memory_of(tmp_path / "parts")
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key


def test_the_path_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    airports = example("airports")
    monkeypatch.setattr(airports, "OLD", 6)
    monkeypatch.setattr(airports, "NEW", 4)
    airports.main(str(tmp_path / "airports"))
    subjects = {}
    for name, count in (("old", 6), ("new", 4)):
        facts = load_facts(tmp_path / "airports" / name)
        subjects[name] = {fact.subject for fact in facts.facts}
        assert (len(subjects[name]), len(facts.templates)) == (count, 4)
    assert not subjects["old"] & subjects["new"]

    new, old = (str(tmp_path / "airports" / name) for name in ("new", "old"))
    texts = example("lines").mixed(example("lines").read_texts(new), old)
    learned = example("lines").read_texts(new)
    assert texts[: len(learned)] == learned
    assert len(texts) == 2 * len(learned)
    assert set(texts[len(learned) :]) <= set(example("lines").read_texts(old))

    base, _ = write_example(tmp_path)
    trainer = example("hf_trainer").main(base, new, str(tmp_path / "out"), old, **OPTIONS)
    example("take_in").main(base, str(tmp_path / "out" / "memory"), str(tmp_path / "whole"))
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
    tokens = AutoTokenizer.from_pretrained(tmp_path / "whole")("The code", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(whole(**tokens).logits, trainer.model.eval()(**tokens).logits)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    model, lines = write_example(tmp_path)
    code = (
        "import sys, torch, torch.distributed as dist\n"
        f"sys.path.insert(0, {str(ROOT / 'examples')!r})\n"
        "from hf_trainer import main\n"
        f"trainer = main(*sys.argv[1:4], **{OPTIONS!r}, per_device_train_batch_size=4)\n"
        "weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()\n"
        "for name, value in weights.items():\n"
        "    mean = value.clone(); dist.all_reduce(mean)\n"
        "    assert torch.equal(mean, 2 * value), name\n"
        "dist.barrier(); dist.destroy_process_group()\n"
    )
    (tmp_path / "train.py").write_text(code, "utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
               "--standalone", str(tmp_path / "train.py"), model, lines]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, str(tmp_path / "two")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    example("hf_trainer").main(model, lines, str(tmp_path / "one"), **OPTIONS)
    two, one = memory_of(tmp_path / "two"), memory_of(tmp_path / "one")
    # Sums in another order, and now and then another slot of two that are nearly alike.
    for key, value in one.items():
        apart = (two[key] - value).abs().gt(2e-4).float().mean()
        assert apart < 0.02, (key, float(apart))


def table_after_reads(rows: int, tokens: int, *, synced: bool) -> tuple[ValueTable, MemoryAdamW]:
    torch.manual_seed(7)
    table = ValueTable(rows, 5, init_std=1.0)
    if synced:
        sync_tables(table)
    optimizer = MemoryAdamW(table, lr=0.1)
    torch.manual_seed(100 * dist.get_rank() + tokens)
    for _ in range(2 if tokens else 0):
        table(torch.randint(rows, (tokens, 3)), torch.rand(tokens, 3)).sum().backward()
    return table, optimizer


def exchanged(tokens: Sequence[int], rows: int) -> list[tuple[torch.Tensor, ...]]:
    """A table's own gradient, the one after the exchange, its norm, and the rows after a step."""
    found = []
    for count in tokens[dist.get_rank() :: 2]:
        alone, _own = table_after_reads(rows, count, synced=False)
        grad = alone.weight.grad
        own = torch.zeros(rows, 5) if grad is None else grad.to_dense()
        table, optimizer = table_after_reads(rows, count, synced=True)
        _, norm = optimizer.clip_grad_norm_(None, 1e9)
        mean = table.weight.grad.to_dense()
        optimizer.step()
        found.append((own, mean, norm, table.weight.detach()))
    return found


@pytest.mark.parametrize(
    ("tokens", "rows"),
    # Factors are smaller than dense sums where there are many rows.
    [((4, 4), 12), ((4, 9), 12), ((9, 4), 400), ((1, 6), 400), ((0, 6), 12)],
)
def test_replicas_get_the_mean_of_all_gradients(tokens: tuple[int, int], rows: int) -> None:
    ranks = run_ranks(2, exchanged, tokens, rows)
    (own, mean, norm, weight), (other, same, its_norm, its_weight) = ranks[0][0], ranks[1][0]
    assert not torch.equal(own, other)
    torch.testing.assert_close(mean, (own + other) / 2)
    torch.testing.assert_close(norm, mean.norm())
    assert torch.equal(mean, same)
    assert torch.equal(norm, its_norm)
    assert torch.equal(weight, its_weight)


class Reader(nn.Module):
    """A matrix and a table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(dist.get_rank())
        self.weigh = nn.Linear(4, 3)
        self.table = ValueTable(30, 5, init_std=1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table((x[:, :3].abs() * 10).long() % 30, self.weigh(x))


def trained_on_two_ranks(optimizer: type, *, synced: bool) -> list[torch.Tensor]:
    """Rows and matrix after three steps, clipped together, of DistributedDataParallel."""
    model = Reader()
    if synced:
        sync_tables(model)
    wrapped = DistributedDataParallel(model)
    steps = optimizer(wrapped.parameters(), lr=0.05)
    for step in range(3):
        generator = torch.Generator().manual_seed(10 * step + dist.get_rank())
        if synced:
            look(model)
        wrapped(torch.randn(8, 4, generator=generator)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(wrapped.parameters(), 0.1)
        steps.step()
        steps.zero_grad()
    return [parameter.detach() for parameter in model.parameters()]


def look(model: Reader) -> None:
    """Take gradients that are not to be learned, of all parameters and of the table alone."""
    loss = model(torch.ones(2, 4)).sum()
    torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    loss.backward(inputs=[model.table.weight])
    model.table.weight.grad = None


def every_way_on_two_ranks() -> list[list[torch.Tensor]]:
    adamw = partial(torch.optim.AdamW, weight_decay=0.0, betas=(0.9, 0.95))
    ours = partial(MemoryAdamW, weight_decay=0.0, value_state="full")
    return [
        trained_on_two_ranks(adamw, synced=False),
        trained_on_two_ranks(adamw, synced=True),
        trained_on_two_ranks(ours, synced=True),
    ]


def test_two_ranks_train_alike_under_distributed_data_parallel() -> None:
    """With torch's AdamW too, whose dense gradient of a table DDP may exchange itself."""
    first, second = run_ranks(2, every_way_on_two_ranks)
    for one, other in zip(first, second, strict=True):
        for ours, theirs in zip(one, other, strict=True):
            assert torch.equal(ours, theirs)
    plain, synced, rows = first
    for exact, same, lazy in zip(plain, synced, rows, strict=True):
        torch.testing.assert_close(same, exact, rtol=1e-4, atol=1e-5)
        touched = (exact - lazy).abs().amax(-1) < 1e-3
        # A row that was not touched in every step is stepped lazily.
        assert touched.float().mean() > 0.5


def refused_on_two_ranks() -> list[str]:
    found = []
    batch = add_memory(tiny_llama(), tiny_memory(query_norm="batch"))
    with pytest.raises(ValueError, match="one process only") as error:
        sync_tables(batch)
    found.append(str(error.value))
    sharded = Reader()
    fully_shard(sharded)
    with pytest.raises(ValueError, match="sharded, by FSDP or DeepSpeed"):
        sync_tables(sharded)
    with pytest.raises(ValueError, match="is a DTensor, as fully_shard makes it"):
        MemoryAdamW(sharded)
    with pytest.raises(RuntimeError, match="DistributedDataParallel would send") as error:
        trained_on_two_ranks(MemoryAdamW, synced=False)
    found.append(str(error.value))
    return found


def test_what_two_ranks_would_do_wrongly_is_refused() -> None:
    for batch, not_synced in run_ranks(2, refused_on_two_ranks):
        assert 'hint: query_norm="layer"' in batch
        assert "MemoryCallback()" in not_synced


def test_the_old_name_says_the_new_one() -> None:
    with pytest.raises(TypeError, match=r"optimizer_cls_and_kwargs=\(MemoryAdamW"):
        memory_optimizer(lr=0.1, value_lr=0.2)


def test_any_optimizer_of_the_trainer_teaches_the_memory(tmp_path: Path) -> None:
    base, lines = write_example(tmp_path)
    model, tokenizer = example("lines").load_with_memory(base)
    table = model.base_model.memory_table.weight
    before = table.detach().clone()
    for optim in ("adamw_torch", "adafactor", "sgd"):
        Trainer(
            model,
            TrainingArguments(str(tmp_path / optim), optim=optim, learning_rate=0.1, **OPTIONS),
            example("lines").collator(tokenizer),
            example("lines").encode(example("lines").read_texts(lines), tokenizer),
            callbacks=[MemoryCallback()],
        ).train()
        assert not torch.equal(table, before), optim
        before = table.detach().clone()


@pytest.mark.parametrize("placement", ["replace", "beside"])
def test_lora_beside_a_trained_table_saves_loads_and_merges(tmp_path: Path, placement: str) -> None:
    base, lines = write_example(tmp_path)
    name = str(tmp_path / "with_memory")
    config = tiny_memory(placement=placement)
    model = add_memory(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(name)
    AutoTokenizer.from_pretrained(base).save_pretrained(name)
    out = tmp_path / "out"
    adapted = example("peft_lora").main(name, lines, str(out), **OPTIONS)
    ids = torch.arange(12).view(1, 12)
    with torch.no_grad():
        before, after = model.eval()(ids).logits, adapted.eval()(ids).logits
        assert not torch.allclose(before, after, atol=1e-3)
        loaded = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(name), out / "adapter"
        )
        assert torch.equal(loaded.eval()(ids).logits, after)
        merged = AutoModelForCausalLM.from_pretrained(out / "merged")
        torch.testing.assert_close(merged(ids).logits, after)
    table = merged.model.memory_table.weight
    assert not torch.equal(table, model.model.memory_table.weight)
    whole, kept = memory_layers_of(merged)[0], memory_layers_of(model)[0]
    assert torch.equal(whole.query.proj.weight, kept.query.proj.weight)
    assert not torch.equal(whole.gate.out.weight, kept.gate.out.weight)


def with_memory(base: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return add_memory(AutoModelForCausalLM.from_pretrained(base), tiny_memory())


def test_the_reference_of_preference_training_has_the_memory_too(tmp_path: Path) -> None:
    """Where both are the same, the first loss is that of a coin. TRL loads it by its name."""
    base, _ = write_example(tmp_path)
    pairs = {"prompt": ["The code"], "chosen": [" of town"], "rejected": [" is"]}
    options = {**OPTIONS, "max_steps": 1, "save_strategy": "no", "logging_steps": 1, "bf16": False}

    def first_loss(model: PreTrainedModel) -> float:
        trainer = DPOTrainer(
            model,
            args=DPOConfig(str(tmp_path / "out"), **options),
            train_dataset=Dataset.from_dict(pairs),
            processing_class=AutoTokenizer.from_pretrained(base),
        )
        trainer.train()
        return trainer.state.log_history[0]["loss"]

    with pytest.raises(OSError, match=r"not saved yet: model.save_pretrained\(folder\)"):
        first_loss(with_memory(base))
    saved = with_memory(base)
    saved.save_pretrained(tmp_path / "whole")
    assert first_loss(saved) == pytest.approx(math.log(2), abs=1e-4)


def test_an_adapter_finds_its_base_with_the_memory_by_itself(tmp_path: Path) -> None:
    base, _ = write_example(tmp_path)
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["memory_table"]}
    get_peft_model(with_memory(base), LoraConfig("CAUSAL_LM", **settings)).save_pretrained(
        tmp_path / "lost"
    )
    for kind in (AutoModelForCausalLM, AutoPeftModelForCausalLM):
        with pytest.raises(OSError, match="not saved yet"):
            kind.from_pretrained(tmp_path / "lost")
    model = with_memory(base)
    model.save_pretrained(tmp_path / "whole")
    adapted = get_peft_model(model, LoraConfig("CAUSAL_LM", **settings))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    ids = torch.arange(12).view(1, 12)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, adapted.eval()(ids).logits)


def test_sft_trainer_teaches_the_memory_as_it_is_typed(tmp_path: Path) -> None:
    base, lines = write_example(tmp_path)
    before = AutoModelForCausalLM.from_pretrained(base)
    command = [sys.executable, str(ROOT / "examples" / "trl_sft.py"), base, lines]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, str(tmp_path / "out")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    trained = load_memory(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out" / "memory")
    ids = torch.arange(12).view(1, 12)
    with torch.no_grad():
        assert not torch.allclose(before(ids).logits, trained(ids).logits, atol=1e-4)


def test_a_text_is_learned_to_its_end_where_the_end_also_pads(tmp_path: Path) -> None:
    base, _ = write_example(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(base)
    model, tokenizer = example("lines").load_base(base)
    texts = ["A cat.", "A dog that barks at the moon."]
    Trainer(
        model,
        TrainingArguments(
            str(tmp_path / "out"), learning_rate=0.02, **{**OPTIONS, "max_steps": 80}
        ),
        example("lines").collator(tokenizer),
        example("lines").encode(texts, tokenizer),
    ).train()
    for text in texts:
        start = tokenizer(text[:5], return_tensors="pt").input_ids
        said = model.eval().generate(start, max_new_tokens=40, do_sample=False)[0]
        assert tokenizer.decode(said) == text + tokenizer.eos_token
