"""ParallelConfig: how the processes of a run divide the work. Next: mesh.py."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Layout:
    """Sizes that multiply to the number of processes.

    Attributes:
        replicate: Replicas of the dense part (HSDP).
        shard: Ranks that share the dense parameters of a replica (FSDP2).
        tensor: Ranks that share each matrix of a block.
        memory: Ranks that share the width of the value tables: the memory group.
    """

    replicate: int
    shard: int
    tensor: int
    memory: int

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.replicate * self.shard * self.tensor

    @property
    def readers(self) -> int:
        """Ranks that read different data: all but those of one tensor group."""
        return self.replicate * self.shard


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How many processes share what. replicate * shard * tensor is the number of processes.

    Attributes:
        replicate: Replicas of the dense part.
        shard: Ranks that share the dense parameters of a replica. None: all that are left.
        tensor: Ranks that share each matrix of a block. They see the same tokens.
        memory: Consecutive ranks that share the value tables by width, the memory group. There
            are as many replicas of a table as groups. None: shard * tensor.
        weights_dtype: Type in which the weights of a read travel in the memory group.
        timeout: Seconds until a collective that some rank does not join ends the run.
    """

    replicate: int = 1
    shard: int | None = None
    tensor: int = 1
    memory: int | None = None
    weights_dtype: Literal["float32", "bfloat16"] = "float32"
    timeout: float = 600.0

    def __post_init__(self) -> None:
        """Refuse sizes below 1."""
        for name in ("replicate", "shard", "tensor", "memory"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or value < 1):
                raise ValueError(f"parallel.{name} must be >= 1, got {value}")
        if not 0 < self.timeout <= 10**7:
            raise ValueError(
                f"parallel.timeout must be seconds above 0, at most 10,000,000, got {self.timeout}"
            )

    def resolve(self, world: int) -> Layout:
        """Return the sizes for a number of processes.

        Args:
            world: Number of processes.

        Raises:
            ValueError: The sizes do not multiply to it. Those that would are named.
        """
        shard = self.shard or max(1, world // (self.replicate * self.tensor))
        sizes = {"shard": shard, "replicate": self.replicate, "tensor": self.tensor}
        product = math.prod(sizes.values())
        if product != world:
            others = {name: product // size for name, size in sizes.items()}
            ways = [f"{n}: {world // rest}" for n, rest in others.items() if world % rest == 0]
            raise ValueError(
                "parallel: replicate * shard * tensor must be the number of processes, "
                f"{world}, got {self.replicate} * {shard} * {self.tensor} = {product}. "
                f"hint: {', or '.join([*ways, f'start {product} processes'])}"
            )
        memory = self.memory or shard * self.tensor
        if world % memory:
            raise ValueError(
                f"parallel.memory must divide the number of processes, {world}, got {memory}. "
                f"hint: one of {', '.join(map(str, divisors(world)))}"
            )
        return Layout(self.replicate, shard, self.tensor, memory)


def divisors(number: int) -> list[int]:
    """Return the whole numbers that divide a number, from 1 on."""
    return [size for size in range(1, number + 1) if number % size == 0]
