"""Teach a pretrained language model from a user's data: `learn`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memory_layers.learn.teach import learn as learn


def __getattr__(name: str) -> Any:  # noqa: ANN401
    # The command shows its help without torch.
    if name == "learn":
        from memory_layers.learn.teach import learn

        return learn
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
