"""The dimension letters of the project, and the one shape check.

T  tokens in a call (batch x length)      D  model width
H  memory heads                           C  width of half a query
M  sub-keys per half                      N  slots, M * M
K  slots read per head                    J  reads per token, H * K
V  value width                            R  distinct rows touched in a step
E  reads of a step, all calls together    S  gradient vectors of a step
G  ranks                                  B, L  batch and length, only outside the layer
X  experts of a mixture                   F  hidden width of an expert
Q  experts of a token                     P  pairs of a token and an expert

A letter never has a second meaning. Next: config/memory.py.
"""

from collections.abc import Mapping

from torch import Tensor

from memory_layers.common.errors import UserError


def check_shape(name: str, tensor: Tensor, letters: str, **sizes: int) -> Mapping[str, int]:
    """Check a tensor against a shape written in letters, and return the sizes of all letters.

    Args:
        name: Argument name for the error.
        tensor: The tensor to check.
        letters: Axis names separated by blanks, such as "T J". A number stands for itself.
        **sizes: Letters whose size is already known.

    Returns:
        The known sizes and those read off this tensor.

    Raises:
        UserError: The number of axes or a known size disagrees.
    """
    axes = letters.split()
    known = dict(sizes)
    fits = tensor.dim() == len(axes)
    if fits:
        for axis, size in zip(axes, tensor.shape, strict=True):
            expected = int(axis) if axis.isdigit() else known.setdefault(axis, size)
            fits = fits and expected == size
    if not fits:
        wanted = ", ".join(f"{a}={sizes[a]}" if a in sizes else a for a in axes)
        raise UserError(f"{name} must have shape [{wanted}], got {list(tensor.shape)}")
    return known
