"""A client of the OpenAI protocol talks to a model with memory."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest
import torch
from example_models import write_example
from helpers import fresh_interpreter
from tiny_models import tiny_memory
from transformers import AutoModelForCausalLM, AutoTokenizer

from memory_layers.cli import main
from memory_layers.models import add_memory

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


@pytest.mark.parametrize("batching", ["False", "True"])
def test_openai_client(folder: Path, batching: str, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "memory_layers", "serve", str(folder), "--port", str(port)]
    options = ["--device", "cpu", "--continuous-batching", batching]
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    log = tmp_path / "log.txt"
    with log.open("w") as out:
        server = subprocess.Popen([*command, *options], stdout=out, stderr=out, env=environment)
    try:
        client = openai.OpenAI(base_url=f"http://localhost:{port}/v1", api_key="none")
        for _ in range(240):
            assert server.poll() is None, log.read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("localhost", port)) == 0:
                    break
            time.sleep(0.5)
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
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


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
