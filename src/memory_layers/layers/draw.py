"""Initial values of a table that do not depend on how it is cut into columns."""

import torch
from torch import Tensor

from memory_layers.common.seeds import mixed

ROWS = 4096
COLUMNS = 16


@torch.no_grad()
def draw_normal(table: Tensor, std: float, first_column: int = 0) -> None:
    """Fill some columns of a table from a normal distribution, in place.

    The value at a row and column is a function of the state of torch's global generator and of
    this place alone. Blocks of rows and columns have a seed each: no rank draws, or holds, more
    than the blocks that its columns lie in.

    Args:
        table: [N, any number of columns].
        std: Standard deviation.
        first_column: Place of the first of these columns in the whole table.
    """
    if table.is_meta:
        return
    seed = int(torch.randint(2**31, (), device="cpu"))
    if std == 0:
        table.zero_()
        return
    generator = torch.Generator(table.device)
    rows, width = table.shape
    block = torch.empty(ROWS, COLUMNS, device=table.device)
    for low in range(0, rows, ROWS):
        high = min(low + ROWS, rows)
        for number in range(first_column // COLUMNS, -(-(first_column + width) // COLUMNS)):
            generator.manual_seed(mixed(seed, low // ROWS, number))
            block.normal_(std=std, generator=generator)
            start = number * COLUMNS - first_column
            inside = slice(max(start, 0), min(start + COLUMNS, width))
            part = block[: high - low, inside.start - start : inside.stop - start]
            table[low:high, inside] = part.to(table.dtype)
