"""What the documents say is true: code runs, paths exist, tables are in step with results."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from tiny_families import tiny_model

from benchmarks import results
from memory_layers.models import memory_layers_of
from tools import speed

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "experiments").rglob("README.md")),
]


def python_blocks(document: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", document.read_text("utf-8"), re.DOTALL)


def test_readme_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train, adapt = python_blocks(ROOT / "README.md")
    names: dict = {}
    exec(compile(train, "README.md", "exec"), names)
    assert names["loss"].isfinite()
    assert (tmp_path / "my_model" / "model.safetensors").is_file()
    tiny_model("qwen3", num_hidden_layers=21).save_pretrained("my_qwen")
    exec(compile(adapt, "README.md", "exec"), {})
    assert (tmp_path / "my_memory" / "memory.safetensors").is_file()


def test_guide_to_add_memory_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    add, by_name, keep = python_blocks(ROOT / "docs" / "guides" / "add_memory.md")
    tiny_model("qwen3", num_hidden_layers=21).save_pretrained("my_qwen")
    names: dict = {}
    exec(compile(add, "add_memory.md", "exec"), names)
    exec(compile(keep, "add_memory.md", "exec"), names)
    assert len(memory_layers_of(names["model"])) == 3
    names["model"] = tiny_model("olmo", num_hidden_layers=5)
    exec(compile(by_name.replace("feed_forward", "mlp"), "add_memory.md", "exec"), names)
    assert len(memory_layers_of(names["model"])) == 1


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_in_documents_exist(document: Path) -> None:
    text = document.read_text("utf-8")
    links = re.findall(r"\]\((?!http|#)([^)#]+)", text)
    missing = [link for link in links if not (document.parent / link).exists()]
    named = re.findall(r"`((?:src|docs|configs|experiments|tests)/[\w./-]+\w)`", text)
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_reading_order_exists() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    section = text.split("## Reading the code")[1].split("## ")[0]
    names = re.findall(r"`([\w/]+\.py)`", section)
    package = ROOT / "src" / "memory_layers"
    assert len(names) > 10
    for name in names:
        short = name.removeprefix("src/memory_layers/")
        assert (package / short).is_file() or list(package.rglob(short)), name


def test_generated_tables_are_in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["update_docs.py", "--check"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "tools" / "update_docs.py"), run_name="__main__")
    assert end.value.code == 0, "run: python -m tools.update_docs"


def test_speed_tables_are_written_from_result_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update_docs = runpy.run_path(str(ROOT / "tools" / "update_docs.py"))
    text = "before <!-- bench-find-cuda:begin -->\nold\n<!-- bench-find-cuda:end --> after"
    monkeypatch.setattr(results, "ROOT", tmp_path)
    assert "Not measured yet: `python -m benchmarks find --device cuda`" in (
        update_docs["updated"](text)
    )
    variant = {"name": "x", "median_ms": 2.0, "p20_ms": 1.5, "p80_ms": 2.5, "speedup": 3.0}
    variant |= {"bytes": 10**9, "gbs": 500.0, "share_of_copy": 0.5, "peak_extra_bytes": 2**20}
    record = results.make_record("find", torch.device("cpu"), "c", {"variants": [variant]})
    record |= {"device_type": "cuda", "device": "a GPU", "sizes": {"tokens": 7}, "slots": "uniform"}
    results.write_result(record, tmp_path / "benchmarks" / "results" / "gpu" / "a.json")
    monkeypatch.setattr(speed, "ROOT", tmp_path)
    after = update_docs["updated"](text)
    assert "| x | 2.00 (1.50 to 2.50) | 3.00 × | 1.000 | 500.0 | 50% | 1.0 MiB |" in after
    assert "tokens = 7" in after
    assert "Result file: `benchmarks/results/gpu/a.json`." in after
    assert after.startswith("before <!--")
    assert after.endswith("--> after")
    assert "old" not in after
