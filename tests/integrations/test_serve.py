"""A client of the OpenAI protocol talks to a model with memory."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
import torch
from example_models import write_example
from helpers import fresh_interpreter
from tiny_models import tiny_memory
from transformers import AutoModelForCausalLM, AutoTokenizer

from memory_layers.cli import main
from memory_layers.models import add_memory, load_memory, memory_layers_of, save_memory

TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    base, _ = write_example(folder)
    model = add_memory(AutoModelForCausalLM.from_pretrained(base), tiny_memory())
    model.save_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


@contextmanager
def serving(home: Path, *arguments: str) -> Iterator[openai.OpenAI]:
    """Run `memory-layers serve` and give a client of it."""
    port = free_port()
    command = [sys.executable, "-m", "memory_layers", "serve", *arguments, "--port", str(port)]
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    log = home / "log.txt"
    with log.open("w") as out:
        server = subprocess.Popen(
            [*command, "--device", "cpu"], stdout=out, stderr=out, env=environment
        )
    try:
        for _ in range(240):
            assert server.poll() is None, log.read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("localhost", port)) == 0:
                    break
            time.sleep(0.5)
        yield openai.OpenAI(base_url=f"http://localhost:{port}/v1", api_key="none")
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.mark.parametrize("batching", ["False", "True"])
def test_openai_client(folder: Path, batching: str, tmp_path: Path) -> None:
    with serving(tmp_path, str(folder), "--continuous-batching", batching) as client:
        # HF_HOME has no cache of models.
        assert [model.id for model in client.models.list()] == [str(folder)]
        asked = {"model": str(folder), "max_tokens": 6, "temperature": 0}
        prompt = "The code of town 3 is"
        whole = client.completions.create(prompt=prompt, **asked).choices[0].text
        model, tokenizer = (
            cls.from_pretrained(folder) for cls in (AutoModelForCausalLM, AutoTokenizer)
        )
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            expected = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        assert whole == tokenizer.decode(expected, skip_special_tokens=True)
        pieces = client.completions.create(prompt=prompt, stream=True, **asked)
        assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == whole
        messages = [{"role": "user", "content": prompt}]
        answer = client.chat.completions.create(messages=messages, **asked).choices[0].message
        assert isinstance(answer.content, str)
        chunks = client.chat.completions.create(messages=messages, stream=True, **asked)
        texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(texts) == answer.content


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base that can chat, and a memory that turns its answers into others."""
    folder = tmp_path_factory.mktemp("taught")
    base = Path(write_example(folder)[0])
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
    model, tokenizer = (cls.from_pretrained(base) for cls in (AutoModelForCausalLM, AutoTokenizer))
    model = model if memory is None else load_memory(model, memory)
    found = []
    for text in (prompt, f"{prompt} "):
        ids = tokenizer(text, return_tensors="pt").input_ids
        made = model.eval().generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        found.append(tokenizer.decode(made, skip_special_tokens=True))
    return found[0], found[1]


def test_a_memory_is_served_with_its_base(taught: tuple[Path, Path], tmp_path: Path) -> None:
    base, memory = taught
    prompt = "The code of town 3 is"
    expected = answers(base, memory, prompt)
    assert all(a != b for a, b in zip(expected, answers(base, None, prompt), strict=True))
    with serving(tmp_path, str(base), "--memory", str(memory)) as client:
        asked = {"model": str(base), "max_tokens": 6, "temperature": 0}
        assert client.completions.create(prompt=prompt, **asked).choices[0].text == expected[0]
        messages = [{"role": "user", "content": prompt}]
        answer = client.chat.completions.create(messages=messages, **asked).choices[0].message
        assert answer.content == expected[1]


def test_a_memory_answers_on_its_base(
    taught: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    base, memory = taught
    prompt = "The code of town 3 is"
    command = ["generate", str(base), prompt, "--max-tokens", "6"]
    for flags, folder in (([], None), (["--memory", str(memory)], memory)):
        goes_on, answered = answers(base, folder, prompt)
        assert main([*command, *flags]) == 0
        assert capsys.readouterr().out == f"{prompt}{goes_on}\n"
        assert main([*command, *flags, "--chat"]) == 0
        assert capsys.readouterr().out == f"{answered.strip()}\n"


def test_mistakes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["serve", str(tmp_path)]) == 2
    assert "it has no config.json" in capsys.readouterr().err
    (tmp_path / "model").mkdir()
    for path in folder.iterdir():
        if "token" not in path.name:
            (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    assert main(["serve", str(tmp_path / "model")]) == 2
    assert "no tokenizer" in capsys.readouterr().err


GENERATE = """
import sys
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
