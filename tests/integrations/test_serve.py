"""A server process, asked by the clients that people use."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import ascii_letters
from typing import Any

import openai
import psutil
import pytest
import torch
from example_models import write_example
from helpers import fresh_interpreter
from tiny_models import tiny_memory
from tiny_served import TEMPLATE, write_served
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import results, serve_load
from memory_layers.cli import main
from memory_layers.models import add_memory, load_memory, memory_layers_of, save_memory
from tools import speed

PROMPT = "The code of town 3 is"
ASKED = {"model": "model", "max_tokens": 6, "temperature": 0}


@contextmanager
def serving(home: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """Run `memory-layers serve` and give the process and its port, once it answers."""
    command = [sys.executable, "-m", "memory_layers", "serve", *arguments, "--port", "0"]
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(
        [*command, "--device", "cpu"], stderr=subprocess.PIPE, env=environment, text=True
    )
    try:
        assert server.stderr is not None
        said = []
        for line in server.stderr:
            said.append(line)
            if "http://localhost:" in line:
                break
        assert server.poll() is None, "".join(said)
        yield server, int(line.rpartition(":")[2].split("/")[0])
    finally:
        server.kill()
        server.wait()
        server.stderr.close()


def client_of(port: int) -> openai.OpenAI:
    url = f"http://localhost:{port}/v1"
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_served(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    with serving(folder.parent, str(folder)) as (server, port):
        yield server, port
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        server.wait(5)
        assert time.monotonic() - began < 5


@pytest.fixture
def port(server: tuple[subprocess.Popen, int]) -> int:
    return server[1]


@pytest.fixture
def client(port: int) -> Iterator[openai.OpenAI]:
    with client_of(port) as client:
        yield client


def loaded(folder: Path) -> tuple:
    return tuple(cls.from_pretrained(folder) for cls in (AutoModelForCausalLM, AutoTokenizer))


def continued(model: Any, tokenizer: Any, prompt: str, count: int) -> str:
    """How the model goes on, alone."""
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    made = model.eval().generate(ids, max_new_tokens=count, do_sample=False)[0, ids.shape[1] :]
    return tokenizer.decode(made, skip_special_tokens=True)


def test_completions(client: openai.OpenAI, folder: Path) -> None:
    assert [model.id for model in client.models.list()] == ["model"]
    assert client.models.retrieve("model").id == "model"
    expected = continued(*loaded(folder), PROMPT, 6)
    answer = client.completions.create(prompt=PROMPT, **ASKED)
    assert answer.choices[0].text == expected
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 6)
    *chunks, last = client.completions.create(
        prompt=PROMPT, stream=True, stream_options={"include_usage": True}, **ASKED
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "length"
    assert last.usage == answer.usage
    assert last.choices == []


def test_chat(client: openai.OpenAI, folder: Path) -> None:
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": PROMPT}]
    whole = client.chat.completions.create(messages=messages, n=2, logprobs=True, **ASKED)
    shown = "<|endoftext|>system Be short.<|endoftext|>user The code of town 3 is"
    expected = continued(*loaded(folder), f"{shown}<|endoftext|>assistant ", 6)
    assert [choice.message.content for choice in whole.choices] == [expected] * 2
    assert whole.choices[0].message.role == "assistant"
    assert len(whole.choices[0].logprobs.content) == 6
    chunks = [*client.chat.completions.create(messages=messages, stream=True, n=2, **ASKED)]
    for index in (0, 1):
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert "".join(one.delta.content or "" for one in mine) == expected
        assert [one.finish_reason for one in mine][-2:] == [None, "length"]
        assert mine[0].delta.role == "assistant"


def test_errors_reach_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has 'model'"):
        client.completions.create(model="gpt-4", prompt=PROMPT)
    with pytest.raises(openai.BadRequestError, match="`tools` is not supported") as error:
        client.chat.completions.create(
            messages=[{"role": "user", "content": PROMPT}], tools=[], **ASKED
        )
    assert error.value.param == "tools"


def test_the_end_of_a_stream_is_marked(port: int) -> None:
    body = json.dumps({**ASKED, "prompt": PROMPT, "stream": True}).encode()
    head = "POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\n"
    answer = exchanged(port, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert answer.endswith(b"data: [DONE]\n\n")
    assert b"text/event-stream" in answer


@pytest.mark.parametrize(
    "headers",
    [
        "Content-Length: 2\r\nContent-Length: 5", "Content-Length: -1", "Content-Length: x",
        "Transfer-Encoding: chunked\r\nContent-Length: 3", "no header", "Host: a\r\nHost: b",
    ],
)  # fmt: skip
def test_malformed_headers(port: int, headers: str) -> None:
    head = f"POST /v1/completions HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\r\n"
    assert b" 4" in exchanged(port, head.encode() + b"{}\r\n\r\n").splitlines()[0]


def exchanged(port: int, sent: bytes) -> bytes:
    with socket.create_connection(("localhost", port), timeout=30) as connection:
        connection.sendall(sent)
        received = b""
        while part := connection.recv(65536):
            received += part
    return received


def test_scores_of_the_harness_are_those_of_the_model_itself(port: int, folder: Path) -> None:
    """As lm_eval --model local-completions and --model hf give them."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    model, tokenizer = loaded(folder)
    likeliest = [(letter, continued(model, tokenizer, letter, 1)) for letter in ascii_letters]
    pairs = [pair for pair in likeliest if pair[1].isascii() and pair[1].isprintable()][:3]
    pairs += [(PROMPT, " 111."), ("The", " code of town 31"), ("", "The code")]
    pairs += [(f"The code of town {n} is", f" {n}") for n in range(5)]
    options = {"until": ["7", "\n"], "max_gen_toks": 12, "do_sample": False}
    asked = {
        "loglikelihood": [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)],
        "loglikelihood_rolling": [Instance("loglikelihood_rolling", {}, ("The code of town",), 0)],
        "generate_until": [
            Instance("generate_until", {}, (prompt, dict(options)), n)
            for n, (prompt, _) in enumerate(pairs)
            if prompt
        ],
    }
    own = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu")
    server = LocalCompletionsAPI(
        base_url=f"http://localhost:{port}/v1/completions",
        model="model",
        tokenizer=str(folder),
        tokenizer_backend="huggingface",
        batch_size=4,
        max_retries=1,
    )
    for kind, instances in asked.items():
        expected, found = (getattr(lm, kind)(instances) for lm in (own, server))
        if kind == "loglikelihood":
            assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
            assert {greedy for _, greedy in found} == {True, False}
            expected, found = ([score for score, _ in pairs] for pairs in (expected, found))
        if kind == "generate_until":
            assert found == expected
        else:
            assert found == pytest.approx(expected, abs=1e-4)


def test_load_is_measured(
    server: tuple[subprocess.Popen, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, port = server
    asked = serve_load.measure(psutil.Process(process.pid), port, 3, 0.6, 40)
    found = asyncio.run(asked)
    assert found["answers"] >= 3
    assert found["failed"] == found["refused"] == 0
    assert 0 < found["seconds_p50"] <= found["seconds_p95"] < 10
    assert found["rss_end_bytes"] > 10**7
    sizes, variants = {"model": "m"}, [{"name": "dense", **found}]
    record = results.make_record(
        "serve", torch.device("cpu"), "c", {"variants": variants}, sizes=sizes
    )
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(speed, "ROOT", tmp_path)
    assert "Not measured yet" in speed.serve_section()
    results.write_result(record, tmp_path / "benchmarks" / "results" / "a.json")
    assert f"| dense | 3 | {found['tokens_per_second']:.1f} |" in speed.serve_section()


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base that can chat, and a memory that turns its answers into others."""
    folder = tmp_path_factory.mktemp("taught")
    base = Path(write_example(folder, max_position_embeddings=100_000)[0])
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(base)
    model = add_memory(AutoModelForCausalLM.from_pretrained(base), tiny_memory(placement="beside"))
    with torch.no_grad():
        for layer in memory_layers_of(model):
            layer.gate.out.weight.normal_(std=5.0)
    save_memory(model, folder / "memory")
    return base, folder / "memory"


def answers(base: Path, memory: Path | None, prompt: str) -> tuple[str, str]:
    """How a text goes on, and what is answered to it as a message."""
    model, tokenizer = loaded(base)
    model = model if memory is None else load_memory(model, memory)
    message = f"<|endoftext|>user {prompt}<|endoftext|>assistant "
    return continued(model, tokenizer, prompt, 6), continued(model, tokenizer, message, 6)


def test_a_memory_is_served_with_its_base_until_ctrl_c(
    taught: tuple[Path, Path], tmp_path: Path
) -> None:
    base, memory = taught
    expected = answers(base, memory, PROMPT)
    assert all(a != b for a, b in zip(expected, answers(base, None, PROMPT), strict=True))
    limits = ["--max-tokens", "90000", "--cache-tokens", "200000"]
    with (
        serving(tmp_path, str(base), "--memory", str(memory), "--name", "mine", *limits) as (
            server,
            port,
        ),
        client_of(port) as client,
    ):
        asked = {**ASKED, "model": "mine"}
        assert client.completions.create(prompt=PROMPT, **asked).choices[0].text == expected[0]
        messages = [{"role": "user", "content": PROMPT}]
        answer = client.chat.completions.create(messages=messages, **asked).choices[0].message
        assert answer.content == expected[1]
        told: list[BaseException] = []

        def ask() -> None:
            # All but the end of a text.
            long = {**asked, "max_tokens": 90_000, "logit_bias": {"0": -100}}
            with pytest.raises(openai.APIStatusError) as error:
                client.completions.create(prompt=PROMPT, **long)
            told.append(error.value)

        waits = threading.Thread(target=ask)
        waits.start()
        long = {**asked, "max_tokens": 90_000, "logit_bias": {"0": -100}}
        stream = client.completions.create(prompt=PROMPT, stream=True, **long)
        for _ in range(20):
            next(stream)
        slow = socket.create_connection(("localhost", port))
        head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        slow.sendall(head + b"Content-Length: 9\r\n\r\n{")
        # Its request has been read before this is answered.
        client.models.list()
        began = time.monotonic()
        server.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIError, match="shutting down"):
            for _ in stream:
                pass
        with slow:
            assert slow.recv(64).startswith(b"HTTP/1.1 503")
        waits.join()
        assert server.wait(5) == 0
        assert time.monotonic() - began < 5
        assert [error.status_code for error in told] == [503]


def test_a_memory_answers_on_its_base(
    taught: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    base, memory = taught
    command = ["generate", str(base), PROMPT, "--max-tokens", "6"]
    for flags, folder in (([], None), (["--memory", str(memory)], memory)):
        goes_on, answered = answers(base, folder, PROMPT)
        assert main([*command, *flags]) == 0
        assert capsys.readouterr().out == f"{PROMPT}{goes_on}\n"
        assert main([*command, *flags, "--chat"]) == 0
        assert capsys.readouterr().out == f"{answered.strip()}\n"


def test_no_tokenizer(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["serve", str(tmp_path)]) == 2
    assert "it has no config.json" in capsys.readouterr().err
    (tmp_path / "model").mkdir()
    for path in folder.iterdir():
        if "token" not in path.name:
            (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    assert main(["serve", str(tmp_path / "model"), "--port", "0"]) == 2
    assert "no tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--port 65536", "--port must be from 0 to 65535, got 65536"),
        ("--port -1", "--port must be"),
        ("--port TAKEN", "cannot be listened at: Address already in use. hint: another --port"),
        ("--host no.such.host.invalid", "there is no such host"),
        ("--host 203.0.113.7", "hint: another --host"),
        ("--device abacus", "--device abacus is no device"),
        ("--device cuda:99", "--device cuda:99 is not here"),
        ("--device meta", "--device meta is not here"),
        ("--batch 0", "--batch must be >= 1, got 0"),
        ("--cache-tokens -5", "--cache-tokens must be >= 1"),
        ("--continuous-batching True", "requests always join"),
    ],
)
def test_mistakes(flags: str, says: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    with socket.create_server(("localhost", 0)) as taken:
        words = flags.replace("TAKEN", str(taken.getsockname()[1])).split()
        assert main(["serve", str(folder), *words]) == 2
    assert says in capsys.readouterr().err


GENERATE = """
import sys
from benchmarks import results, serve_load
from memory_layers.cli import main
flags = ["--max-tokens", "2"]
codes = [main(["generate", sys.argv[1], "The code", *flags, *more])
         for more in ([], ["--trust-remote-code", "True"])]
print(codes)
"""


def test_a_model_by_the_name_of_its_child_needs_trust(tmp_path: Path) -> None:
    base, _ = write_example(tmp_path, "olmo")
    model = add_memory(
        AutoModelForCausalLM.from_pretrained(base), tiny_memory(), target_module="mlp"
    )
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "model")
    printed = fresh_interpreter(GENERATE, str(tmp_path / "model"), HF_HOME=str(tmp_path / "home"))
    assert printed.splitlines()[-1] == "[2, 0]"
