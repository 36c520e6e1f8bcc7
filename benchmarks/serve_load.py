"""Ask `memory-layers serve` for minutes, many clients at a time, beside its dense twin.

`python -m benchmarks.serve_load smollm2` serves the model twice: as it is, and with a memory that
was just added and answers as the model does. Every client asks again as soon as it is answered.
"""

import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import torch
import tyro

from benchmarks.results import default_path, make_record, write_result
from memory_layers.common.packages import quiet_transformers
from memory_layers.config import MemoryConfig
from memory_layers.evaluate.trained import load_trained
from memory_layers.models import add_memory

# So that all answers are of one length.
ANSWER_TOKENS = 32
# Prompts are of so many tokens.
SHORTEST, LONGEST = 16, 128
SAMPLE_SECONDS = 1.0


@dataclass(kw_only=True)
class Load:
    """What is measured."""

    model: tyro.conf.Positional[str]
    """Folder of a dense model, a name of the hub, or smollm2."""
    clients: tuple[int, ...] = (8, 64, 200)
    """How many ask at a time, one measurement each."""
    seconds: float = 300
    """Of each measurement."""
    sub_keys: int = 256
    """Of the memory. Its square is the number of slots."""
    layers: tuple[int, ...] | None = None
    """Blocks that read the memory. Default: the middle one."""
    out: Path | None = None
    """Result file. Default: where documents take their numbers from, if nothing was changed."""


@dataclass
class Answers:
    """What clients have seen."""

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    failed: int = 0
    tokens: int = 0


def write_twins(load: Load, folder: Path) -> dict[str, Path]:
    """Write the model and the same with a memory beside, and return their folders."""
    model, tokenizer = load_trained(load.model)
    twins = {"dense": folder / "dense", "memory": folder / "memory"}
    model.save_pretrained(twins["dense"])
    blocks = model.config.num_hidden_layers
    config = MemoryConfig(
        layers=load.layers or (blocks // 2,), sub_keys=load.sub_keys, placement="beside"
    )
    add_memory(model, config).save_pretrained(twins["memory"])
    for twin in twins.values():
        tokenizer.save_pretrained(twin)
    return twins


@contextmanager
def serving(folder: Path) -> Generator[tuple[psutil.Process, int]]:
    """Serve a folder, and give the process and the port."""
    command = [sys.executable, "-m", "memory_layers", "serve", str(folder), "--port", "0"]
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--name", "model"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        line = next((line for line in server.stderr if "http://127.0.0.1:" in line), "")
        if not line:
            raise RuntimeError(f"the server did not start: {' '.join(command)}")
        yield psutil.Process(server.pid), int(line.rpartition(":")[2].split("/")[0])
    finally:
        server.terminate()
        server.wait()


async def ask(port: int, until: float, seed: int, vocabulary: int, answers: Answers) -> None:
    """Ask for completions, one after the other, until a time of time.monotonic."""
    source = random.Random(seed)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.monotonic() < until:
        prompt = [
            source.randrange(10, vocabulary) for _ in range(source.randint(SHORTEST, LONGEST))
        ]
        body = json.dumps(
            {
                "model": "model", "prompt": prompt, "max_tokens": ANSWER_TOKENS,
                "temperature": 1, "top_p": 0.9, "seed": seed,
            }
        ).encode()  # fmt: skip
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            "Content-Type: application/json\r\n\r\n"
        )
        began = time.monotonic()
        writer.write(head.encode() + body)
        status, content = await read_answer(reader)
        if status == 200:
            answers.seconds.append(time.monotonic() - began)
            answers.tokens += content["usage"]["completion_tokens"]
        elif status == 503:
            answers.refused += 1
            await asyncio.sleep(1)
        else:
            answers.failed += 1
    writer.close()


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    """Read the status and the body of an answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length:")[2].split()[0])
    return int(head.split()[1]), json.loads(await reader.readexactly(length))


async def sample(process: psutil.Process, until: float) -> list[int]:
    """Return the memory of a process in bytes, a number a second."""
    found = []
    while time.monotonic() < until:
        found.append(process.memory_info().rss)
        await asyncio.sleep(SAMPLE_SECONDS)
    return found


async def measure(
    process: psutil.Process, port: int, clients: int, seconds: float, vocabulary: int
) -> dict[str, Any]:
    """Let clients ask for some seconds, and return what they have seen."""
    answers = Answers()
    began = time.monotonic()
    until = began + seconds
    async with asyncio.TaskGroup() as tasks:
        sampling = tasks.create_task(sample(process, until))
        for seed in range(clients):
            tasks.create_task(ask(port, until, seed, vocabulary, answers))
    memory = sampling.result()
    took = time.monotonic() - began
    cuts = statistics.quantiles(answers.seconds, n=20, method="inclusive")
    # Caches have grown by then.
    half = len(memory) // 2
    return {
        "clients": clients,
        "answers": len(answers.seconds),
        "refused": answers.refused,
        "failed": answers.failed,
        "tokens_per_second": answers.tokens / took,
        "seconds_p50": cuts[9],
        "seconds_p95": cuts[18],
        "rss_half_bytes": memory[half],
        "rss_end_bytes": memory[-1],
        "rss_bytes": memory,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write the result file.

    Args:
        arguments: Of the command line. None: those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    load = tyro.cli(Load, args=words, prog="python -m benchmarks.serve_load")
    quiet_transformers()
    variants = []
    with tempfile.TemporaryDirectory() as folder:
        twins = write_twins(load, Path(folder))
        # In turns: other work on the machine falls on both.
        for clients, (name, twin) in product(load.clients, twins.items()):
            vocabulary = json.loads((twin / "config.json").read_text("utf-8"))["vocab_size"]
            # A server of its own: what another measurement left is not seen.
            with serving(twin) as (process, port):
                asyncio.run(measure(process, port, 2, min(5, load.seconds), vocabulary))
                found = asyncio.run(measure(process, port, clients, load.seconds, vocabulary))
            variants.append({"name": name, **found})
            print(
                f"{name}, {clients} clients: {found['tokens_per_second']:.1f} tokens/s, "
                f"p50 {found['seconds_p50']:.2f} s, p95 {found['seconds_p95']:.2f} s, "
                f"{found['failed']} failed",
                flush=True,
            )
    sizes = {
        "model": Path(load.model).name, "slots": load.sub_keys**2, "seconds": load.seconds,
        "answer tokens": ANSWER_TOKENS,
    }  # fmt: skip
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    record = make_record(
        "serve",
        device,
        " ".join(["python -m benchmarks.serve_load", *words]),
        {"variants": variants},
        sizes=sizes,
        cores=torch.get_num_threads(),
    )
    complete = load.clients == Load.clients and load.seconds == Load.seconds
    print(write_result(record, load.out or default_path(record, complete=complete)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
