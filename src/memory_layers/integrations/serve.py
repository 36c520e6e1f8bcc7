"""Answer the OpenAI protocol for a model, through transformers' own server."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any


def serve(
    folder: Path,
    *,
    host: str = "localhost",
    port: int = 8000,
    device: str = "auto",
    continuous_batching: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Serve /v1/completions and /v1/chat/completions until interrupted.

    Args:
        folder: A model folder with a tokenizer. Chat needs a tokenizer with a chat template.
        host: To listen at.
        port: To listen at.
        device: "auto", "cpu", "cuda:0" and so on.
        continuous_batching: Let requests join a batch that is being generated.
        trust_remote_code: Run code that lies in the folder.

    Raises:
        UserError: The folder holds no whole model, or no tokenizer.
        ImportError: The packages of the extra `serve` are missing.
    """
    import transformers
    from transformers import PreTrainedModel
    from transformers.utils.import_utils import is_serve_available

    from memory_layers.evaluate.trained import load_trained
    from memory_layers.layers import fuse_for_inference

    if not is_serve_available():
        raise ImportError(
            'packages of the server are missing. hint: pip install "memory-layers[serve]"'
        )
    from transformers.cli.serve import Serve

    # Weights are mapped, not read: loading twice costs little, and says what is wrong.
    cls = type(load_trained(folder, trust_remote_code=trust_remote_code)[0])

    def load(*args: Any, **options: Any) -> PreTrainedModel:  # noqa: ANN401
        return fuse_for_inference(cls.from_pretrained(*args, **options))

    # The server looks the class up by its name among those of transformers, and loads it.
    setattr(transformers, cls.__name__, SimpleNamespace(from_pretrained=load))
    Serve(
        force_model=str(folder),
        host=host,
        port=port,
        device=device,
        continuous_batching=continuous_batching,
        trust_remote_code=trust_remote_code,
    )
