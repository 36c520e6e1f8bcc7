"""Answer the OpenAI protocol for a model, through transformers' own server."""

import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from tyro.conf import FlagConversionOff

from memory_layers.common.packages import needs
from memory_layers.evaluate.trained import OfModel, check_model, complete, load_trained


@dataclass(frozen=True, kw_only=True)
class Serve(OfModel):
    """Answer the OpenAI protocol, /v1/completions and /v1/chat/completions, until Ctrl-C.

    Chat needs a tokenizer with a chat template.

    Example: memory-layers serve runs/tiny/model --port 8000

    Example: memory-layers serve smollm2 --memory taught
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
            UserError: There is no such model, no tokenizer, or the memory is not its own.
            ImportError: The packages of the extra `serve` are missing.
        """
        needs("fastapi", "openai", "pydantic", "uvicorn")
        check_model(self.model, self.memory)
        import transformers
        from transformers import PreTrainedModel
        from transformers.cli.serve import Serve as Server
        from transformers.cli.serving.model_manager import ModelManager

        from memory_layers.layers import fuse_for_inference
        from memory_layers.models import resolve_model

        # Weights are mapped, not read: loading twice costs little, and says what is wrong.
        model, tokenizer = load_trained(self.model, trust_remote_code=self.trust_remote_code)
        cls = type(model)
        complete(model, tokenizer, self.memory)
        del model
        known = getattr(transformers, cls.__name__, cls)

        def load(*args: Any, **options: Any) -> PreTrainedModel:  # noqa: ANN401
            # Once: what looks for the class of the base from here on finds it.
            setattr(transformers, cls.__name__, known)
            model = cls.from_pretrained(*args, **options)
            return fuse_for_inference(complete(model, tokenizer, self.memory))

        # The server looks the class up by its name among those of transformers, and loads it.
        setattr(transformers, cls.__name__, SimpleNamespace(from_pretrained=load))
        name = str(resolve_model(self.model))
        served = {"id": name, "object": "model", "created": int(time.time()), "owned_by": ""}
        # The server lists what is in the cache of the hub, and fails without one.
        setattr(ModelManager, "get_gen_models", lambda *_: [served])  # noqa: B010
        sys.stderr.write(f'model "{name}" at http://{self.host}:{self.port}/v1\n')
        Server(
            force_model=name,
            host=self.host,
            port=self.port,
            device=self.device,
            continuous_batching=self.continuous_batching,
            trust_remote_code=self.trust_remote_code,
        )
        return 0
