"""torch.compile of a model with memory: one graph in inference, the same gradients in training."""

import pytest
import torch
from tiny_models import tiny_llama, tiny_memory
from torch._dynamo.utils import counters

from memory_layers import MemoryAdamW, add_memory

# torch looks at .grad of tensors that are no leaves while it traces.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
IDS = torch.arange(18).view(2, 9) * 7 % 40


def two_blocks(**memory: object) -> torch.nn.Module:
    """A model whose blocks all read the memory: the time to trace goes with their number."""
    model = tiny_llama()
    model.config.num_hidden_layers = 2
    del model.model.layers[2:]
    return add_memory(model, tiny_memory(layers=(0, 1), **memory))


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()
    counters.clear()


# The first of torch's backends that makes no machine code: what is tested are the graphs.
@pytest.mark.parametrize("placement", ["replace", "beside"])
def test_inference_is_one_graph(placement: str) -> None:
    model = two_blocks(placement=placement).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(IDS).logits, model(IDS).logits)
    assert counters["stats"]["unique_graphs"] == 1


def gradients(model: torch.nn.Module, call: object) -> tuple[torch.Tensor, ...]:
    call(IDS, labels=IDS).loss.backward()
    table = model.model.memory_table
    dense = [p.grad for p in model.parameters() if p is not table.weight]
    return table.weight.grad.to_dense(), *dense


@pytest.mark.parametrize("kind", ["factored", "sparse", "dense"])
def test_training_gives_the_same_gradients(kind: str) -> None:
    model = two_blocks()
    model.model.memory_table.sparse = kind == "sparse"
    optimizer = MemoryAdamW(model) if kind == "factored" else None
    expected = gradients(model, model)
    for parameter in model.parameters():
        parameter.grad = None
    # A dense table gradient needs no break in the graph.
    compiled = torch.compile(model, fullgraph=kind == "dense", backend="aot_eager")
    for actual, exact in zip(gradients(model, compiled), expected, strict=True):
        torch.testing.assert_close(actual, exact)
    # A model that was compiled goes on when its optimizer has gone.
    del optimizer
    for parameter in model.parameters():
        parameter.grad = None
    for actual, exact in zip(gradients(model, compiled), expected, strict=True):
        torch.testing.assert_close(actual, exact)
    if kind != "sparse":
        assert type(model.model.memory_table.weight.grad) is torch.Tensor
