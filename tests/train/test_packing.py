"""Documents of one packed row do not see one another."""

import itertools
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_llama, tiny_memory
from torch.nn import functional as F

from memory_layers import add_memory
from memory_layers.data.tokens import Document, TokenStream, write_tokens
from memory_layers.train.loss import summed_loss

PAD = 39


@pytest.mark.parametrize("memory", [False, True], ids=["dense", "memory"])
@pytest.mark.parametrize("rows", [1, 3])
@torch.no_grad()
def test_packed_rows_equal_documents_alone(tmp_path: Path, memory: bool, rows: int) -> None:
    documents = [torch.randint(38, (size,)).tolist() for size in (5, 9, 2, 12, 7, 3, 8, 6, 11, 4)]
    write_tokens(tmp_path, map(Document, documents), vocab_size=40)
    batch = TokenStream(tmp_path, 24, seed=0, pad_id=PAD).batch(0, rows)
    model = tiny_llama()
    for parameter in model.parameters():
        # Larger than at the start of training, so that attention looks somewhere.
        torch.nn.init.normal_(parameter, std=0.5)
    if memory:
        model = add_memory(model, tiny_memory())
    packed = model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
    ).logits
    compared = 0
    for ids, positions, logits in zip(batch.input_ids, batch.position_ids, packed, strict=True):
        starts = [*(positions == 0).nonzero()[:, 0].tolist(), len(ids)]
        for low, high in itertools.pairwise(starts):
            if ids[low] == PAD:
                continue
            alone = model(input_ids=ids[None, low:high], use_cache=False).logits[0]
            torch.testing.assert_close(logits[low:high], alone, rtol=1e-4, atol=1e-5)
            compared += 1
    assert compared > rows
    # The test can tell: without restarting positions the documents do see one another.
    joined = model(input_ids=batch.input_ids, use_cache=False).logits
    assert (joined - packed).abs().max() > 1e-2


@torch.no_grad()
def test_loss_is_that_of_each_document_alone(tmp_path: Path) -> None:
    documents = [torch.randint(38, (size,)) for size in (5, 9, 2, 12, 7, 3)]
    write_tokens(tmp_path, [Document(document.tolist()) for document in documents], vocab_size=40)
    stream = TokenStream(tmp_path, 48, seed=0, pad_id=PAD)
    assert stream.epoch_of(1, 1) == 1
    batch = stream.batch(0, 1)
    model = tiny_llama()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    positions = []
    handle = model.lm_head.register_forward_hook(
        lambda _module, _inputs, output: positions.append(tuple(output.shape[:2]))
    )
    loss = summed_loss(model, batch, torch.device("cpu"), bf16=False)
    handle.remove()
    # The head is spared padding and the last token of each document.
    assert positions == [(1, batch.targets)]
    expected = 0.0
    for document in documents:
        logits = model(input_ids=document[None], use_cache=False).logits[0, :-1]
        expected += float(F.cross_entropy(logits, document[1:], reduction="sum"))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert batch.targets == sum(len(document) - 1 for document in documents)
