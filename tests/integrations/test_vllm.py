"""The steps that vLLM takes with a model, replayed: vLLM itself is not needed, and not run."""

from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_families import IDS, tiny_model
from tiny_models import tiny_memory
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from memory_layers.models import add_memory, backbone_of


class ServerLinear(nn.Module):
    """A linear map of another class, with a weight of its own, as vLLM's are."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty_like(plain.weight), requires_grad=False)
        self.bias = None
        if plain.bias is not None:
            self.bias = nn.Parameter(torch.empty_like(plain.bias), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


def server_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: object,
    *, attention_instances: dict[int, str], scaling: float | None = None, **_: object,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention that needs what the server passes by keyword through all layers."""
    assert attention_instances[module.layer_idx] == "cache"
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    out = nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling
    )
    return out.transpose(1, 2).contiguous(), None


@pytest.mark.parametrize("name", ["llama", "qwen3", "olmo2"])
@pytest.mark.parametrize("placement", ["replace", "beside"])
def test_meta_init_exchanged_parts_and_load_by_name(
    name: str, placement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plugin,) = entry_points(group="vllm.general_plugins", name="memory_layers")
    plugin.load()()
    model = add_memory(tiny_model(name), tiny_memory(placement=placement))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        expected = backbone_of(model)(IDS).last_hidden_state
    model.save_pretrained(tmp_path)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "server", server_attention)
    config = AutoConfig.from_pretrained(tmp_path)
    config._attn_implementation = "server"
    with torch.device("meta"):
        served = AutoModel.from_config(config).eval()
    for path, module in list(served.named_modules()):
        if isinstance(module, nn.Linear):
            with torch.device("meta"):
                served.set_submodule(path, ServerLinear(module))
    tensors = load_file(tmp_path / "model.safetensors")
    for path, module in list(served.named_modules()):
        for kind, parameter in list(module.named_parameters(recurse=False)):
            loaded = tensors.pop(f"model.{path}.{kind}")
            assert loaded.shape == parameter.shape
            setattr(module, kind, nn.Parameter(loaded.clone(), requires_grad=False))
        for kind, buffer in list(module.named_buffers(recurse=False)):
            # vLLM makes buffers on the device from the start: here, those of a plain model.
            assert buffer.is_meta
            plain = backbone_of(model).get_submodule(path).get_buffer(kind)
            module.register_buffer(kind, plain.clone(), persistent=False)
    assert set(tensors) <= {"lm_head.weight"}
    with torch.no_grad():
        caches = dict.fromkeys(range(3), "cache")
        out = served(IDS, use_cache=False, attention_instances=caches).last_hidden_state
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
