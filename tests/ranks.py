"""Run a function on several gloo ranks of this machine, and get each rank's result or traceback."""

import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

# Imported once, by the server that all ranks are forked from: most of the time of a spawn.
PRELOAD = [
    "torch",
    "transformers",
    "torch.distributed.fsdp",
    "memory_layers.train.loop",
    # What is imported at a first use: by optimizers of torch, and by the operations.
    "torch._dynamo",
    "memory_layers.ops.find.cpu",
    "memory_layers.ops.read.cpu",
    "memory_layers.ops.write.cpu",
]


def run_ranks(
    world: int, function: Callable[..., Any], *arguments: object, seconds: float = 60
) -> list[Any]:
    """Run `function(*arguments)` on each rank of a new process group.

    Args:
        world: Number of ranks.
        function: Of a module, so that it can be pickled by name.
        *arguments: The same for all ranks.
        seconds: Until a collective that a rank does not join gives up.

    Returns:
        What each rank returned.

    Raises:
        AssertionError: A rank failed, with its own traceback. The others are stopped.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory() as folder:
        ranks, pipes = [], {}
        for rank in range(world):
            ours, theirs = context.Pipe(duplex=False)
            place = (f"file://{folder}/store", rank, world, seconds)
            process = context.Process(target=_run, args=(theirs, place, function, arguments))
            process.start()
            theirs.close()
            ranks.append(process)
            pipes[ours] = rank
        results: list[Any] = [None] * world
        try:
            while pipes:
                for pipe in wait(list(pipes)):
                    assert isinstance(pipe, Connection)
                    rank = pipes.pop(pipe)
                    try:
                        failure, results[rank] = pickle.loads(pipe.recv_bytes())
                    except EOFError:
                        failure = "it died without a word\n"
                    assert failure is None, f"rank {rank} of {world} failed:\n{failure}"
        finally:
            for process in ranks:
                if pipes:
                    process.kill()
                process.join()
    return results


def _run(
    pipe: Connection, place: tuple[str, int, int, float], function: Callable, arguments: tuple
) -> None:
    store, rank, world, seconds = place
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=store, rank=rank, world_size=world,
            timeout=timedelta(seconds=seconds),
        )  # fmt: skip
        result = function(*arguments)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        pipe.send_bytes(pickle.dumps((traceback.format_exc(), None)))
        raise
    # By value: a rank does not outlive its result, whose tensors it would share otherwise.
    pipe.send_bytes(pickle.dumps((None, result)))
