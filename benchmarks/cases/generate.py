"""Text from a model with memory, against the same model without, and where the time goes."""

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases.train import build_twins, dense_parameters
from benchmarks.checks import check_greedy
from benchmarks.harness import Suite, Variant
from benchmarks.inputs import SEED
from benchmarks.request import Request
from memory_layers.layers import MemoryLayer, fuse_for_inference
from memory_layers.layers.walk import find_layers, find_tables

PRESET = "134m"
BATCHES = (1, 32)
PROMPT, NEW = 16, 16
OURS, DENSE = "with memory", "dense"
PARTS = ("query", "keys", "gate", "values")


def generate_suite(request: Request) -> Suite:
    """Time greedy decoding with a cache. The memory replaces three of the feed-forwards."""
    models, vocab_size = build_twins(PRESET, request)
    for model in models:
        fuse_for_inference(model.eval())
        # Nothing ends a text: all have the same number of tokens.
        model.generation_config.eos_token_id = None
    layers = models[0].config.memory["layers"]
    generator = torch.Generator().manual_seed(SEED)
    variants = []
    spent: dict[str, dict[str, float]] = {}
    for batch in BATCHES:
        ids = torch.randint(vocab_size, (batch, PROMPT), generator=generator).to(request.device)
        for name, model in zip((OURS, DENSE), models, strict=True):
            variant = _variant(name, model, ids, request.sizes.reads)
            variants.append(variant)
            if request.device.type == "cpu":
                spent[variant.name] = time_spent(model, variant.run, layers=layers)
    facts = {"preset": PRESET, "prompt": PROMPT, "new_tokens": NEW, "ms_by_part": spent}
    return Suite(tuple(variants), facts)


def time_spent(
    model: nn.Module, run: Callable[[], object], *, layers: tuple[int, ...]
) -> dict[str, float]:
    """Run once and return where the time went, in milliseconds of the whole run.

    Args:
        model: The model that `run` runs.
        run: Once before, to warm up, and once with clocks on.
        layers: Blocks whose feed-forward, or memory, counts on its own.
    """
    run()
    spent: defaultdict[str, float] = defaultdict(float)
    with _clocks(_timed_parts(model, layers), spent):
        started = time.perf_counter()
        run()
        whole = time.perf_counter() - started
    # A memory layer's parts are in its own time too.
    inner = sum(seconds for part, seconds in spent.items() if not part.startswith("memory: "))
    spent["the rest"] = whole - inner
    return {part: 1e3 * seconds for part, seconds in spent.items()}


def _timed_parts(model: Any, layers: tuple[int, ...]) -> Iterator[tuple[str, nn.Module]]:  # noqa: ANN401
    for index, block in enumerate(model.model.layers):
        yield "attention", block.self_attn
        if index not in layers:
            yield "other feed-forwards", block.mlp
            continue
        yield "the blocks that have memory, or their feed-forwards", block.mlp
        if isinstance(block.mlp, MemoryLayer):
            # The layers share their values: one module, one clock.
            parts = PARTS if index == layers[0] else PARTS[:-1]
            yield from ((f"memory: {part}", getattr(block.mlp, part)) for part in parts)
    yield "output layer", model.lm_head


@contextmanager
def _clocks(parts: Iterator[tuple[str, nn.Module]], spent: dict[str, float]) -> Generator[None]:
    handles = []
    for name, module in parts:
        begun: list[float] = []

        def before(*_: object, begun: list[float] = begun) -> None:
            begun.append(time.perf_counter())

        def after(*_: object, name: str = name, begun: list[float] = begun) -> None:
            spent[name] += time.perf_counter() - begun.pop()

        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _variant(name: str, model: Any, ids: Tensor, reads: int) -> Variant:  # noqa: ANN401
    texts = f"{len(ids)} text{'s' * (len(ids) > 1)}"
    # Every dense parameter is read in each pass, and the rows of each token.
    width = sum(table.value_dim for table in find_tables(model).values())
    rows = len(ids) * reads * len(find_layers(model)) * width

    def run() -> Tensor:
        return model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=0,
        )

    def check() -> None:
        with torch.no_grad():
            written = run()
            logits = model(input_ids=written, use_cache=False).logits[:, PROMPT - 1 : -1]
        check_greedy(f"{name}, {texts},", logits, written[:, PROMPT:])

    return Variant(
        name=f"{PRESET} {name}, {texts}",
        run=run,
        check=check,
        checked="each token is the most likely one, without the cache too",
        bytes=NEW * (dense_parameters(model) + rows) * 4,
        against=(f"{PRESET} {DENSE}, {texts}",) if name == OURS else (),
        ours=name == OURS,
        tokens=len(ids) * NEW,
    )
