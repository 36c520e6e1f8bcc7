"""Answer the OpenAI protocol for a model. Next: serving/, the server."""

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import FlagConversionOff

from memory_layers.common.errors import UserError
from memory_layers.common.packages import PACKAGED, needs
from memory_layers.evaluate.trained import OfModel, check_model, load_trained


@dataclass(frozen=True, kw_only=True)
class Serve(OfModel):
    """Answer the OpenAI protocol, /v1/completions and /v1/chat/completions, until Ctrl-C.

    Chat needs a tokenizer with a chat template.

    Example: memory-layers serve runs/tiny/model --port 8000

    Example: memory-layers serve smollm2 --memory taught
    """

    host: str = "localhost"
    """To listen at. 0.0.0.0: all addresses, so that other machines reach the server."""
    port: int = 8000
    """To listen at. 0: any that is free."""
    name: str | None = None
    """By which clients ask for the model. Default: the name of its folder, or of the hub."""
    device: str = "auto"
    """auto, cpu, cuda:0 and so on."""
    batch: int = 32
    """Most texts that are generated together."""
    queue: int = 512
    """Most texts that wait. Requests beyond are answered with status 503."""
    max_tokens: int = 2048
    """Most tokens of an answer, and of a chat's where the client does not say."""
    cache_tokens: int = 131_072
    """Most tokens whose keys and values are held, of all texts together. Default: 32 of 4,096."""
    continuous_batching: FlagConversionOff[bool | None] = None
    """Refused, since it is always so: requests join those that are being generated."""

    def __call__(self) -> int:
        """Serve the model until interrupted.

        Raises:
            UserError: There is no such model, device, host or port, no tokenizer, the memory is
                not the model's own, or a number is out of range.
            ImportError: The packages of the extra `serve` are missing.
        """
        needs("pydantic", "starlette", "uvicorn")
        if self.continuous_batching is not None:
            raise UserError(
                "--continuous-batching: requests always join those that are being generated. "
                "hint: leave it out, --batch N sets how many"
            )
        for field in ("batch", "queue", "max_tokens", "cache_tokens"):
            if (value := getattr(self, field)) < 1:
                raise UserError(f"--{field.replace('_', '-')} must be >= 1, got {value}")
        check_model(self.model, self.memory)
        from memory_layers.integrations.serving.app import Served, make_app
        from memory_layers.integrations.serving.engine import Engine, Limits
        from memory_layers.integrations.serving.server import Server, listen
        from memory_layers.layers import fuse_for_inference

        device = find_device(self.device)
        with ExitStack() as closing:
            sockets = [closing.enter_context(one) for one in listen(self.host, self.port)]
            model, tokenizer = load_trained(
                self.model, memory=self.memory, trust_remote_code=self.trust_remote_code
            )
            model = fuse_for_inference(model.to(device))
            engine = Engine(model, Limits(self.batch, self.queue, self.cache_tokens))
            config = model.config.get_text_config(decoder=True)
            context = getattr(config, "max_position_embeddings", None)
            served = Served(self._name(), tokenizer, context, self.max_tokens)
            server = Server(make_app(engine, served), engine)
            port = sockets[0].getsockname()[1]
            host = f"[{self.host}]" if ":" in self.host else self.host
            sys.stderr.write(f'model "{served.name}" at http://{host}:{port}/v1\n')
            sys.stderr.flush()
            return server.serve_until_signal(sockets)

    def _name(self) -> str:
        folder = Path(self.model).expanduser()
        # A folder of such a name is ./smollm2, as for load_trained.
        known = self.model in PACKAGED or not folder.is_dir()
        name = self.name or (self.model if known else folder.resolve().name)
        # Names of folders need not be UTF-8.
        return name.encode("utf-8", "replace").decode()


def find_device(name: str) -> Any:  # noqa: ANN401
    """Return the torch.device of a name.

    Args:
        name: As torch has it, or auto: a GPU if there is one.

    Raises:
        UserError: This machine has no such device.
    """
    import torch

    accelerator = torch.accelerator.current_accelerator()
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name} is no device. hint: auto, cpu, cuda or cuda:0") from error
    count = torch.accelerator.device_count() if accelerator is not None else 0
    kind = accelerator.type if accelerator is not None else None
    if device.type != "cpu" and (device.type != kind or (device.index or 0) >= count):
        found = f"{count} of {kind}" if count else "none but the CPU"
        raise UserError(f"--device {name} is not here, this machine has {found}. hint: auto")
    return device
