"""A small language model with memory in training, and one writing text, against it without memory.

Of text, a result says where the time goes.
"""

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases.step import LR
from benchmarks.checks import check_greedy, check_norm
from benchmarks.harness import Suite, Variant
from benchmarks.inputs import SEED, Request
from memory_layers.common.errors import UserError
from memory_layers.layers import MemoryLayer, fuse_for_inference
from memory_layers.layers.walk import find_tables, memory_layers_of
from memory_layers.optim import MemoryAdamW

# Of training.
TRAINED = "small"
LENGTH = 256
TOLERANCE = 1e-4
# Of text.
WRITER = "134m"
BATCHES = (1, 32)
PROMPT, NEW = 16, 16
OURS, DENSE = "with memory", "dense"
PARTS = ("query", "keys", "gate", "values")


def train_suite(request: Request) -> Suite:
    """Time forward, backward and step. The memory replaces three of the six feed-forwards."""
    tokens = request.sizes.tokens
    if tokens > LENGTH and tokens % LENGTH:
        raise UserError(
            f"size tokens must be a multiple of the sequence length {LENGTH}, got {tokens}. "
            f"hint: tokens={tokens // LENGTH * LENGTH}"
        )
    (ours, dense), vocab_size = build_twins(TRAINED, request)
    rows, length = max(1, tokens // LENGTH), min(tokens, LENGTH)
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(vocab_size, (rows, length), generator=generator).to(request.device)
    against = f"{TRAINED}, {DENSE}"
    variants = (
        _trained(f"{TRAINED} {OURS}", ours, ids, (against,)),
        _trained(against, dense, ids, ()),
    )
    return Suite(variants, {"preset": TRAINED, "sequence_length": length, "sequences": rows})


def build_twins(name: str, request: Request) -> tuple[tuple[Any, Any], int]:
    """Build a preset with memory and without.

    Args:
        name: Of the preset.
        request: Has the sizes of the memory.

    Returns:
        Both models, and the size of their vocabulary.
    """
    from memory_layers.models import PRESETS, build_model

    preset, sizes = PRESETS[name], request.sizes
    memory = replace(
        preset.memory_plus(sizes.sub_keys), heads=sizes.heads, top_k=sizes.top_k, qk_norm=True
    )
    models = []
    for config in (memory, None):
        torch.manual_seed(SEED)
        models.append(build_model(preset, config).to(request.device))
    return (models[0], models[1]), preset.vocab_size


def dense_parameters(model: torch.nn.Module) -> int:
    """Return the number of parameters that are in no value table."""
    tables = {id(table.weight) for table in find_tables(model).values()}
    return sum(p.numel() for p in model.parameters() if id(p) not in tables)


def _trained(name: str, model: Any, ids: Tensor, against: tuple[str, ...]) -> Variant:  # noqa: ANN401
    optimizer = MemoryAdamW(model, lr=LR, value_state="full")

    def run() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def check() -> None:
        with torch.no_grad():
            found = model(input_ids=ids[:1], use_cache=False).logits
            exact = copy.deepcopy(model).double()(input_ids=ids[:1], use_cache=False).logits
        check_norm(f"{name}, logits,", found, exact, TOLERANCE)

    return Variant(
        name=name,
        run=run,
        check=check,
        checked="the logits of a sequence",
        # Every dense parameter is read in both passes and stepped. What a memory adds is small.
        bytes=dense_parameters(model) * 4 * (2 + 6),
        against=against,
        tokens=ids.numel(),
    )


def generate_suite(request: Request) -> Suite:
    """Time greedy decoding with a cache. The memory replaces three of the feed-forwards."""
    models, vocab_size = build_twins(WRITER, request)
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
            variant = _writer(name, model, ids, request.sizes.reads)
            variants.append(variant)
            if request.device.type == "cpu":
                spent[variant.name] = time_spent(model, variant.run, layers=layers)
    facts = {"preset": WRITER, "prompt": PROMPT, "new_tokens": NEW, "ms_by_part": spent}
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


def _writer(name: str, model: Any, ids: Tensor, reads: int) -> Variant:  # noqa: ANN401
    texts = f"{len(ids)} text{'s' * (len(ids) > 1)}"
    # Every dense parameter is read in each pass, and the rows of each token.
    width = sum(table.value_dim for table in find_tables(model).values())
    rows = len(ids) * reads * len(memory_layers_of(model)) * width

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
        name=f"{WRITER} {name}, {texts}",
        run=run,
        check=check,
        checked="each token is the most likely one, without the cache too",
        bytes=NEW * (dense_parameters(model) + rows) * 4,
        against=(f"{WRITER} {DENSE}, {texts}",) if name == OURS else (),
        tokens=len(ids) * NEW,
    )
