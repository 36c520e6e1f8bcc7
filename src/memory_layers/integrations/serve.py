"""Answer the OpenAI protocol for a model, through transformers' own server."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from tyro.conf import FlagConversionOff

from memory_layers.common.packages import needs
from memory_layers.evaluate.trained import OfModel, check_folder, load_trained


@dataclass(frozen=True, kw_only=True)
class Serve(OfModel):
    """Answer the OpenAI protocol, /v1/completions and /v1/chat/completions, until Ctrl-C.

    Chat needs a tokenizer with a chat template.

    Example: memory-layers serve runs/tiny/model --port 8000
    """

    host: str = "localhost"
    """To listen at."""
    port: int = 8000
    """To listen at."""
    device: str = "auto"
    """auto, cpu, cuda:0 and so on."""
    continuous_batching: FlagConversionOff[bool] = False
    """Let requests join a batch that is being generated."""

    def __call__(self) -> int:
        """Serve the model until interrupted.

        Raises:
            UserError: The folder holds no whole model, or no tokenizer.
            ImportError: The packages of the extra `serve` are missing.
        """
        needs("fastapi", "openai", "pydantic", "uvicorn")
        check_folder(self.model)
        import transformers
        from transformers import PreTrainedModel
        from transformers.cli.serve import Serve as Server

        from memory_layers.layers import fuse_for_inference

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
