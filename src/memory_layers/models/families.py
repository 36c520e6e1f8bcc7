"""Which model families can get memory, and where their feed-forward blocks are."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Family:
    """Names of a family in transformers, and where its blocks are.

    Attributes:
        model_type: `config.model_type`.
        prefix: What the class names start with, "Llama" for LlamaForCausalLM.
        blocks: Attribute of the backbone that lists the blocks.
        mlp: Attribute of a block that is its feed-forward part, hidden [..., D] → [..., D].
    """

    model_type: str
    prefix: str
    blocks: str = "layers"
    mlp: str = "mlp"

    def blocks_of(self, backbone: nn.Module) -> nn.ModuleList:
        """Return the blocks of a backbone, in order."""
        return getattr(backbone, self.blocks)


FAMILIES = (Family("llama", "Llama"),)


def find_family(model_type: str) -> Family:
    """Return the family of a model type.

    Raises:
        ValueError: The type is not in the table.
    """
    for family in FAMILIES:
        if model_type == family.model_type:
            return family
    known = ", ".join(family.model_type for family in FAMILIES)
    raise ValueError(
        f"models of type {model_type!r} cannot get memory layers yet, supported: {known}"
    )
