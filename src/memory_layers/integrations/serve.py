"""Answer the OpenAI protocol for a model, through transformers' own server."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tyro.conf import FlagConversionOff, Positional


@dataclass(frozen=True)
class Serve:
    """Answer the OpenAI protocol, /v1/completions and /v1/chat/completions, until Ctrl-C.

    Example: memory-layers serve runs/tiny/model --port 8000
    """

    model: Positional[Path]
    """Folder of a model with its tokenizer. Chat needs one with a chat template."""
    host: str = "localhost"
    """To listen at."""
    port: int = 8000
    """To listen at."""
    device: str = "auto"
    """auto, cpu, cuda:0 and so on."""
    continuous_batching: FlagConversionOff[bool] = False
    """Let requests join a batch that is being generated."""
    trust_remote_code: FlagConversionOff[bool] = False
    """Run code that lies in the model folder: for models whose memory has a `target_module`."""

    def __call__(self) -> int:
        """Serve the model until interrupted.

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
        from transformers.cli.serve import Serve as Server

        # Weights are mapped, not read: loading twice costs little, and says what is wrong.
        cls = type(load_trained(self.model, trust_remote_code=self.trust_remote_code)[0])

        def load(*args: Any, **options: Any) -> PreTrainedModel:  # noqa: ANN401
            return fuse_for_inference(cls.from_pretrained(*args, **options))

        # The server looks the class up by its name among those of transformers, and loads it.
        setattr(transformers, cls.__name__, SimpleNamespace(from_pretrained=load))
        Server(
            force_model=str(self.model),
            host=self.host,
            port=self.port,
            device=self.device,
            continuous_batching=self.continuous_batching,
            trust_remote_code=self.trust_remote_code,
        )
        return 0
