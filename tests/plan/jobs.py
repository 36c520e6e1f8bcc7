"""Small runs to hold the formulas to, with everything that they depend on."""

from typing import Any

from memory_layers.config import MemoryConfig
from memory_layers.data.config import DataConfig
from memory_layers.parallel.config import Layout, ParallelConfig
from memory_layers.plan.job import Job
from memory_layers.train.config import ModelConfig, OptimConfig, RunConfig, TrainConfig

ALONE = Layout(1, 1, 1, 1)
SHAPE = {"preset": "134m", "hidden_size": 128, "layers": 4, "heads": 4, "mlp_size": 320}


def memory(**changes: Any) -> MemoryConfig:
    """Two memory layers on 4096 slots."""
    sizes = {"layers": (1, 2), "sub_keys": 64, "top_k": 8, "heads": 2}
    return MemoryConfig(**{**sizes, **changes})


def job(
    layout: Layout = ALONE,
    *,
    memory: MemoryConfig | None = None,
    packed: bool = True,
    vocab: int = 512,
    model: dict[str, Any] | None = None,
    optim: dict[str, Any] | None = None,
    weights_dtype: str = "float32",
    **train: Any,
) -> Job:
    """A run of four blocks of width 128 on rows of 128 tokens.

    Args:
        layout: How it is divided.
        memory: Memory layers.
        packed: A row holds two documents.
        vocab: Tokens of the vocabulary.
        model: Fields of `model`, beside SHAPE.
        optim: Fields of `optim`.
        weights_dtype: Of `parallel`.
        **train: Fields of `train`.
    """
    run = RunConfig(
        name="x",
        model=ModelConfig(**{**SHAPE, **(model or {})}),
        memory=memory,
        data=DataConfig(vocab_size=vocab),
        optim=OptimConfig(**(optim or {})),
        train=TrainConfig(**{"batch_size": 4, "seq_len": 128, **train}),
        parallel=ParallelConfig(weights_dtype=weights_dtype),
    )
    return Job(run, layout, packed=packed)
