"""A run that was killed or interrupted ends with the same weights as one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

STEPS = 30


def write_config(folder: Path, *, memory: bool) -> Path:
    (folder / "facts").mkdir()
    with (folder / "facts" / "facts.jsonl").open("w") as file:
        for n in range(40):
            fact = {"relation": "code", "subject": f"Place {n}", "answer": f"X{n * 37 % 100}"}
            file.write(json.dumps(fact) + "\n")
    (folder / "facts" / "templates.yaml").write_text(
        'code: {statements: ["{subject} has {answer}."], question: "Q {subject}? A: {answer}"}'
    )
    text = f"""
name: x
model: {{hidden_size: 16, layers: 2, heads: 2, mlp_size: 32}}
data: {{facts: {folder / "facts"}, vocab_size: 300, cache_dir: {folder / "cache"}}}
optim: {{value_lr: 0.02, warmup_steps: 5}}
train: {{steps: {STEPS}, batch_size: 2, seq_len: 32, log_every: 1, eval_every: 10,
  checkpoint_every: 4}}
"""
    if memory:
        text += "memory: {layers: [1], sub_keys: 8, top_k: 4, heads: 2}\n"
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def start(config: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "memory_layers", "train", str(config), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(config: Path, out: Path) -> None:
    process = start(config, out)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def stop_after(process: subprocess.Popen, out: Path, lines: int, number: signal.Signals) -> None:
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.is_file() and len(metrics.read_text().splitlines()) >= lines:
            break
        time.sleep(0.01)
    process.send_signal(number)


def assert_same_run(a: Path, b: Path) -> None:
    one, other = (load_file(out / "model" / "model.safetensors") for out in (a, b))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    histories = []
    for out in (a, b):
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        histories.append([(line["step"], line.get("loss"), line.get("recall")) for line in lines])
    assert histories[0] == histories[1]


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "dense"])
def test_killed_run_resumes_bit_equal(tmp_path: Path, memory: bool) -> None:
    config = write_config(tmp_path, memory=memory)
    finish(config, tmp_path / "whole")
    process = start(config, tmp_path / "killed")
    stop_after(process, tmp_path / "killed", random.Random().randint(5, 25), signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "model").exists()
    finish(config, tmp_path / "killed")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_interrupted_run_saves_and_resumes(tmp_path: Path, number: signal.Signals) -> None:
    config = write_config(tmp_path, memory=True)
    finish(config, tmp_path / "whole")
    process = start(config, tmp_path / "stopped")
    stop_after(process, tmp_path / "stopped", 9, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "run the same command again" in errors
    assert list((tmp_path / "stopped" / "checkpoints").glob("step-*"))
    finish(config, tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, memory=False)
    finish(config, tmp_path / "out")
    config.write_text(config.read_text().replace("value_lr: 0.02", "value_lr: 0.01"))
    process = start(config, tmp_path / "out")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "optim.value_lr" in errors
    assert "Traceback" not in errors
