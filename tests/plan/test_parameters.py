"""Parameter counts and FLOPs, against the real model and the figures of the paper."""

import math
from dataclasses import replace

import pytest
import torch
from jobs import job, memory
from live_bytes import recompute_blocks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from memory_layers.config import MemoryConfig
from memory_layers.models import PRESETS, build_model
from memory_layers.optim import MemoryAdamW
from memory_layers.parallel.config import Layout
from memory_layers.plan.job import Job
from memory_layers.plan.parameters import count, parameters_of, units_of
from memory_layers.plan.work import flops_of
from memory_layers.study.flops import count_flops
from memory_layers.study.measure import count_parameters
from memory_layers.train.config import ModelConfig

MEMORIES = {
    "dense": None,
    "memory": memory(),
    "plain": memory(gate="none", qk_norm=False),
    "sigmoid": memory(gate="sigmoid", value_dim=64),
    "beside": memory(placement="beside"),
    "beside, values at zero": memory(placement="beside", gate="none", value_init_std=0),
    "apart": memory(share_values=False),
}


def preset_job(name: str, config: MemoryConfig | None) -> Job:
    base = job()
    run = replace(base.run, model=ModelConfig(preset=name), memory=config)
    return Job(run, base.layout, vocab_size=PRESETS[name].vocab_size)


def model_of(job: Job):
    return build_model(job.run.model.to_preset(), job.memory, vocab_size=job.vocab)


@pytest.mark.parametrize(
    ("name", "sub_keys", "billions"),
    [("1.3b", 2048, "9.823"), ("1.3b", 4096, "35.618"), ("1.3b", 8192, "138.748")],
)
def test_totals_of_the_paper(name: str, sub_keys: int, billions: str) -> None:
    planned = preset_job(name, PRESETS[name].memory_plus(sub_keys))
    counts = count(planned, parameters_of(planned))
    assert f"{counts.total / 1e9:.3f}" == billions
    assert counts.values == sub_keys**2 * 2048
    assert counts.sub_keys == 3 * 4 * 2 * sub_keys * 512


@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize("tied", [True, False])
def test_counts_are_those_of_the_model(name: str, tied: bool) -> None:
    planned = job(memory=MEMORIES[name], model={"preset": "small"} if tied else None)
    counts = count(planned, parameters_of(planned))
    assert {
        "params_total": counts.total,
        "params_active": counts.used_per_token,
        "params_memory": counts.values,
    } == count_parameters(model_of(planned))
    assert counts.total == counts.dense + counts.values


@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize(("tied", "length"), [(True, 16), (False, 48)])
def test_flops_are_those_that_torch_counts(name: str, tied: bool, length: int) -> None:
    planned = job(
        memory=MEMORIES[name], seq_len=length, model={"preset": "small"} if tied else None
    )
    flops = flops_of(planned, parameters_of(planned))
    # Counted without a kernel that makes the scores a second time in the backward pass.
    expected = (
        flops.forward + flops.attention_forward,
        flops.training + 3 * flops.attention_forward,
    )
    assert count_flops(model_of(planned), length) == expected


def test_attention_flops_are_those_of_two_products_and_grow_with_the_length() -> None:
    planned = job(seq_len=32)
    flops = flops_of(planned, parameters_of(planned))
    model = model_of(planned)
    ids = torch.zeros(1, 32, dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    assert counter.get_total_flops() / 32 == flops.forward + flops.attention_forward
    longer = job(seq_len=64)
    assert flops_of(longer, parameters_of(longer)).attention_forward == 2 * flops.attention_forward
    # The backward pass makes the scores again: five products instead of twice two.
    assert flops.attention_training == 3.5 * flops.attention_forward


@pytest.mark.parametrize("name", ["dense", "memory", "sigmoid", "beside"])
def test_recomputed_flops(name: str) -> None:
    planned = job(memory=MEMORIES[name], seq_len=16, gradient_checkpointing=True)
    flops = flops_of(planned, parameters_of(planned))
    model = model_of(planned).train()
    recompute_blocks(model)
    optimizer = MemoryAdamW(model)
    with FlopCounterMode(display=False) as counter:
        model(
            input_ids=torch.zeros(1, 16, dtype=torch.int64), use_cache=False
        ).logits.sum().backward()
    del optimizer
    reads = sum(
        number
        for operation, number in counter.get_flop_counts()["Global"].items()
        if str(operation) == "memory_layers.gather_sum"
    )
    again = counter.get_total_flops() / 16 - flops.training
    # Reads are counted apart: they use no matrix units.
    assert again - reads / 2 / 16 == flops.recomputed - flops.attention_forward


@pytest.mark.parametrize("layout", [Layout(1, 4, 1, 4), Layout(1, 2, 2, 4), Layout(2, 2, 1, 4)])
def test_shares_add_up_to_the_model(layout: Layout) -> None:
    planned = job(layout, memory=memory(), batch_size=4)
    parameters = parameters_of(planned)
    root, blocks = units_of(planned, parameters)
    for unit in (root, *blocks):
        assert unit.shard * layout.shard >= unit.numel
    whole = sum(p.numel for p in parameters if not p.is_value and p.split is None)
    split = sum(p.numel for p in parameters if p.split is not None)
    assert sum(u.numel for u in (root, *blocks)) == whole + split // layout.tensor


def test_sub_keys_are_shared_without_padding() -> None:
    """Cut along their few heads, two over eight ranks, they would be padded to eight."""
    planned = job(Layout(1, 8, 1, 8), memory=memory(), batch_size=8)
    (sub_keys,) = [
        p for p in parameters_of(planned) if p.name.endswith("layers.1.mlp.keys.sub_keys")
    ]
    assert sub_keys.shard_numel(1, 8) * 8 == math.prod(sub_keys.shape)
