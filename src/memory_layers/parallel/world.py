"""World: the ranks of a run, and what they exchange outside of the training step.

A single process is a World too, of one rank that exchanges nothing.
"""

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from memory_layers.common.errors import LostRankError
from memory_layers.parallel.config import Layout, ParallelConfig
from memory_layers.parallel.health import Heartbeat, Watchdog, is_lost_contact
from memory_layers.parallel.mesh import Meshes, make_meshes

Result = TypeVar("Result")

# Processes of one run do not start at the same time, however short their timeout is later.
SECONDS_TO_START = 60.0


class World:
    """The ranks of a run.

    Args:
        device: Of this rank.
        meshes: Of the ranks. None: this process is alone.
        heartbeat: Records where each rank is. None: this process is alone.
    """

    def __init__(
        self,
        device: torch.device,
        meshes: Meshes | None = None,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self.device = device
        self.meshes = meshes
        self.heartbeat = heartbeat
        self.rank = dist.get_rank() if meshes else 0
        self.size = dist.get_world_size() if meshes else 1

    @property
    def layout(self) -> Layout:
        """Sizes, all 1 for a process alone."""
        return self.meshes.layout if self.meshes else Layout(1, 1, 1, 1)

    @property
    def is_rank_0(self) -> bool:
        """Whether this rank writes and prints for all."""
        return self.rank == 0

    @property
    def reader(self) -> int:
        """Which share of the data this rank reads, of `layout.readers`."""
        return self.meshes.reader if self.meshes else 0

    @property
    def leads(self) -> bool:
        """Whether this is the first of the ranks that read the same data."""
        return self.rank % self.layout.tensor == 0

    def beat(self, step: int, place: int) -> None:
        """Record where this rank is: see Heartbeat.beat."""
        if self.heartbeat is not None:
            self.heartbeat.beat(step, place)

    def sum(self, *numbers: float) -> list[float]:
        """Add up numbers over all ranks."""
        return self.all_reduce(torch.tensor(numbers, dtype=torch.float64)).tolist()

    def all_reduce(self, values: Tensor) -> Tensor:
        """Add up a CPU tensor over all ranks, in place, and return it."""
        if self.meshes is not None:
            dist.all_reduce(values)
        return values

    def all_gather(self, value: Result) -> list[Result]:
        """Return what each rank has, in the order of the ranks."""
        values = [value] * self.size
        if self.meshes is not None:
            dist.all_gather_object(values, value)
        return values

    def on_rank_0(self, work: Callable[[], object]) -> None:
        """Call `work` on rank 0 only. All ranks return, or raise, when it is done."""
        failure: list[Exception | None] = [None]
        if self.is_rank_0:
            try:
                work()
            except (OSError, ValueError, RuntimeError) as error:
                if self.meshes is None:
                    raise
                failure = [error]
        if self.meshes is not None:
            dist.broadcast_object_list(failure, device=torch.device("cpu"))
        if failure[0] is not None:
            raise failure[0]


def place_of(config: ParallelConfig, device: str = "auto") -> tuple[str, Layout]:
    """Return the type of the device, and the sizes for the number of processes.

    Args:
        config: Sizes.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.

    Raises:
        ValueError: The sizes do not multiply to the number of processes, or there is no such
            device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError('device is "cuda", but torch finds no GPU. hint: device: auto')
    kind = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    return kind, config.resolve(int(os.environ.get("WORLD_SIZE", "1")))


@contextmanager
def join_world(config: ParallelConfig, device: str = "auto") -> Generator[World]:
    """Join the other processes that torchrun has started, if there are any.

    After contact is lost, this process ignores SIGTERM, which torchrun sends to all remaining
    ranks: they should report first what has happened.

    Args:
        config: Sizes, and the time that a collective may take.
        device: As for place_of.

    Raises:
        ValueError: As place_of.
        LostRankError: Another rank died or hung while the world was in use.
    """
    kind, layout = place_of(config, device)
    size, place = layout.world, torch.device(kind)
    if size == 1:
        yield World(place)
        return
    if kind == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    timeout = timedelta(seconds=config.timeout)
    store = _store_of_attempt(max(config.timeout, SECONDS_TO_START))
    rank = int(os.environ["RANK"])
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=dist.PrefixStore("groups", store), rank=rank, world_size=size,
        timeout=timeout,
    )  # fmt: skip
    health = dist.PrefixStore("health", store)
    heartbeat = Heartbeat(health, rank, size)
    apart = Heartbeat(health.clone(), rank, size)  # ty: ignore[missing-attribute]
    watchdog = Watchdog(apart, heartbeat, config.timeout)
    watchdog.start()
    try:
        yield World(place, make_meshes(layout, kind), heartbeat)
        dist.barrier()
    except (RuntimeError, OSError) as error:
        if not is_lost_contact(error):
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise LostRankError(
            f"lost contact in step {heartbeat.step}: {heartbeat.report_lost()}. Checkpoints "
            "written before are intact. hint: run the same command again to go on from the "
            f"newest, or raise parallel.timeout = {config.timeout:g} s "
            f"({str(error).splitlines()[0]})"
        ) from error
    finally:
        # Without this a process sometimes aborts when it ends.
        dist.destroy_process_group()
        watchdog.stop()


def _store_of_attempt(seconds: float) -> dist.Store:
    """Return a store that all ranks share, with nothing in it from before a restart.

    torchrun keeps one store over all restarts, with the addresses of dead ranks. The number of
    restarts does not tell attempts apart: each node counts its own. So rank 0 draws a name, and
    sends it to each rank in answer to a random number that only a living rank knows.

    Args:
        seconds: Until a rank that has not come ends the run.

    Raises:
        LostRankError: A rank has not come.
    """
    store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=seconds)))
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"call-{rank}", own)
        try:
            name = store.get(f"answer-{own}").decode()
        except RuntimeError as error:
            raise LostRankError(
                f"rank 0 did not answer for {seconds:g} s at the start. hint: see what it printed"
            ) from error
        store.set(f"{name}/here-{rank}", "")
        return dist.PrefixStore(name, store)
    missing = list(range(1, size))
    until = time.monotonic() + seconds
    while missing := [other for other in missing if not store.check([f"{own}/here-{other}"])]:
        if time.monotonic() > until:
            names = ", ".join(map(str, missing[:8]))
            raise LostRankError(
                f"{len(missing)} ranks did not start in {seconds:g} s, such as {names}. "
                "hint: see what they printed"
            )
        for other in missing:
            if store.check([f"call-{other}"]):
                store.set(f"answer-{store.get(f'call-{other}').decode()}", own)
        time.sleep(0.02)
    return dist.PrefixStore(own, store)
