"""What tells one base from another, however their weights are stored: some values of each.

Weights are compared by what they mean, so that a base in full precision, in bfloat16 and quantised
is the same base. A quantised one is compared as coarsely as it is stored, and a finetune that
differs by less than that from its base is taken for it.
"""

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Of each weight, evenly spread: enough to tell two trained models apart in no time.
_VALUES, _VALUES_BEFORE = 64, 256


class Weights:
    """The weights of a model, each as plain numbers.

    Args:
        model: Any. Weights may be packed by bitsandbytes or in the blocks of a GGUF file.
    """

    def __init__(self, model: nn.Module) -> None:
        self._owners = {id(t): m for m in model.modules() for t in m.parameters(recurse=False)}

    def fingerprint(self, tensor: Tensor) -> dict[str, Any]:
        """Return the shape of a weight, some of its values as text, and if packed, their bits."""
        shape, bits = self._stored(tensor)
        found = self._pick(tensor, _VALUES).bfloat16().view(torch.int16).numpy()
        values = base64.b64encode(found.astype("<i2").tobytes()).decode()
        return {"shape": list(shape), "values": values} | ({} if bits is None else {"bits": bits})

    def is_like(self, tensor: Tensor, known: Any) -> bool:  # noqa: ANN401
        """Say whether a weight is the one that a fingerprint was taken of.

        Args:
            tensor: The weight.
            known: What `fingerprint` returned, or the digest that earlier versions wrote.
        """
        if isinstance(known, str):
            return self._digest(tensor) == known
        return same_weight(self.fingerprint(tensor), known)

    def difference(self, base: Mapping[str, Tensor], known: Mapping[str, Any]) -> str | None:
        """Return in what a base differs from that of the fingerprints, or None."""
        for name in sorted(base.keys() | known.keys()):
            if name not in base:
                return f"it has no {name}"
            if name not in known:
                return f"it has {name} too"
            if not self.is_like(base[name], known[name]):
                return f"its {name} is another, of shape {list(self._stored(base[name])[0])}"
        return None

    def _stored(self, tensor: Tensor) -> tuple[torch.Size, float | None]:
        """Return the shape of what a weight means, and the bits of a value if it is packed."""
        owner: Any = self._owners.get(id(tensor))
        packed: Any = tensor
        if type(tensor).__name__ == "Params4bit" and not tensor.is_floating_point():
            shape = tuple(packed.quant_state.shape)
        elif type(owner).__name__ == "GgufLinear" and tensor is owner.weight:
            shape = (owner.out_features, owner.in_features)
        elif type(owner).__name__ == "GgufEmbedding":
            shape = (owner.num_embeddings, owner.embedding_dim)
        elif type(tensor).__name__ == "Int8Params" and not tensor.is_floating_point():
            shape = tuple(tensor.shape)
        else:
            return tensor.shape, None
        # bitsandbytes turns the weights of a Conv1D.
        shape = torch.Size(shape[::-1] if _is_turned(owner) else shape)
        return shape, round(8 * tensor.nbytes / shape.numel(), 2)

    def _pick(self, tensor: Tensor, count: int) -> Tensor:
        """Return about `count` values of a weight on the CPU, in float32 if it is packed."""
        shape, bits = self._stored(tensor)
        # An odd step, so that not all are from one column.
        step = shape.numel() // count | 1
        owner: Any = self._owners.get(id(tensor))
        with torch.no_grad():
            if bits is None:
                return tensor.detach().flatten()[::step].to("cpu")
            if type(owner).__name__.startswith("Gguf"):
                from transformers.integrations.gguf.kernels import dequantize_blocks

                places = torch.arange(0, shape.numel(), step, device=tensor.device)
                rows, inverse = (places // shape[1]).unique(return_inverse=True)
                dense = dequantize_blocks(
                    tensor[rows], owner.ggml_type, len(rows), shape[1], torch.float32
                )
                return dense[inverse, places % shape[1]].to("cpu")
            from transformers.integrations.bitsandbytes import dequantize_bnb_weight

            packed: Any = tensor
            dense = dequantize_bnb_weight(packed, getattr(owner, "state", None))
            dense = dense.T if _is_turned(owner) else dense
            return dense.flatten()[::step].to(device="cpu", dtype=torch.float32)

    def _digest(self, tensor: Tensor) -> str:
        """Return what earlier versions told weights apart by."""
        shape, _ = self._stored(tensor)
        picked = self._pick(tensor, _VALUES_BEFORE).bfloat16().contiguous()
        digest = hashlib.blake2b(str(list(shape)).encode(), digest_size=8)
        digest.update(picked.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def same_weight(one: Any, other: Any) -> bool:  # noqa: ANN401
    """Say whether two fingerprints are of the same weight, however it was stored."""
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    (found, values), bits = map(_values, (one, other)), [one.get("bits"), other.get("bits")]
    if one["shape"] != other["shape"] or len(found) != len(values):
        return False
    # Rounded to bfloat16 twice at most, or once to half precision.
    if torch.allclose(found, values, rtol=2**-7, atol=1e-7, equal_nan=True):
        return True
    noise = sum(_noise(b) for b in bits if b is not None)
    return bool((found - values).norm() <= noise * values.norm())


def is_fingerprint(known: Any) -> bool:  # noqa: ANN401
    """Say whether something from a file is what `fingerprint` returns, or an earlier version's."""
    if not isinstance(known, dict):
        return isinstance(known, str)
    shape, bits = known.get("shape"), known.get("bits", 16)
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        return False
    try:
        values = base64.b64decode(known["values"], validate=True)
    except (KeyError, TypeError, ValueError):
        return False
    return len(values) > 0 == len(values) % 2 and type(bits) in (int, float) and 1 <= bits <= 64


def _values(known: Mapping[str, Any]) -> Tensor:
    raw = bytearray(base64.b64decode(known["values"]))
    return torch.frombuffer(raw, dtype=torch.bfloat16).double()


def _noise(bits: float) -> float:
    """Return how far weights move at most that are stored in so many bits, of their size."""
    return max(2 ** (2 - bits), 0.05)


def _is_turned(owner: object) -> bool:
    return getattr(getattr(owner, "source_cls", None), "__name__", "") == "Conv1D"
