"""What the documents say is true: code runs, paths exist, tables are in step with results."""

import importlib
import json
import re
import runpy
import shlex
import shutil
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from example_models import write_example
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from tests_support import write_facts
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from benchmarks import results
from memory_layers import cli
from memory_layers.cli.parse import parse as parse_plain
from memory_layers.cli.parse import parse_with_config
from memory_layers.cli.runs import OfConfig
from tools import site, speed

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "experiments").rglob("README.md")),
]


FOLDERS = "src|docs|experiments|tests|benchmarks|tools|examples"


def blocks(document: Path) -> list[tuple[str, str]]:
    """Return language and code of each block."""
    return re.findall(
        r"^```([^\n]*)\n(.*?)^```", document.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )


GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What makes a command of a document short, and what only shows that its words are understood.
SHORT = {
    "train": ("--train.steps", "2", "--train.eval-every", "2", "--train.log-every", "1"),
    "eval": ("--answered", "4"),
}
ONLY_PARSED = ("compare", "fetch", "learn", "scale", "serve")
BUILTIN = ("--data.max-subjects", "20")
TEACHING = {"use_cpu": True, "max_steps": 2, "report_to": "none", "disable_tqdm": True}


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the documents take for granted: models, facts and texts of a user."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(ROOT / "examples")
    for variable, value in (("RANK", 0), ("WORLD_SIZE", 1), ("MASTER_PORT", 29_417)):
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    base, _ = write_example(tmp_path, num_hidden_layers=21)
    for name in ("my_qwen", "HuggingFaceTB/SmolLM2-135M-Instruct"):
        shutil.copytree(base, tmp_path / name)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    other = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, num_hidden_layers=5, vocab_size=64))
    other.save_pretrained(tmp_path / "my_pythia")
    write_facts(tmp_path / "my_facts")
    (tmp_path / "notes.txt").write_text("Water boils at 100 degrees.\n" * 50, "utf-8")
    (tmp_path / "more.jsonl").write_text('{"text": "Ice melts at 0 degrees."}\n' * 50, "utf-8")
    assert cli.main(["train", "tiny", *SHORT["train"], *BUILTIN]) == 0
    return tmp_path


@pytest.mark.parametrize("document", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_in_a_document_runs(document: Path, request: pytest.FixtureRequest) -> None:
    found = blocks(document)
    assert all(language for language, _ in found), "each block names its language"
    if not {"python", "bash"} & {language for language, _ in found}:
        return
    request.getfixturevalue("user_folder")
    names: dict = {}
    for language, code in found:
        if language == "python":
            exec(compile(code, document.name, "exec"), names)
        elif language == "bash":
            for line in re.sub(r"\\\n\s*", " ", code).splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    run_as_a_user(words)
        elif language == "yaml":
            assert yaml.safe_load(code)
        elif language == "json":
            assert [json.loads(line) for line in code.splitlines()]


def run_as_a_user(words: list[str]) -> None:
    program, *rest = words
    if program == "torchrun":
        assert "-m memory_layers" in " ".join(rest)
        program, rest = "memory-layers", rest[rest.index("memory_layers") + 1 :]
        if rest[1] == "CONFIG.yaml":
            return
    if program == "make":
        assert all(f"\n{target}:" in (ROOT / "Makefile").read_text("utf-8") for target in rest)
    elif program == "pip":
        named = {extra for word in rest for extra in re.findall(r"[\[,](\w+)", word)}
        assert named <= set(metadata.metadata("memory-layers").get_all("Provides-Extra") or ())
    elif program == "python" and rest[0] == "-m":
        assert importlib.util.find_spec(rest[1])
    elif program == "python":
        name = Path(rest[0]).stem
        teaching = TEACHING if name == "hf_trainer" else {}
        importlib.import_module(name).main(*rest[1:], **teaching)
    elif program == "memory-layers":
        command, *options = rest
        # The packaged model takes minutes of its own.
        if command in ONLY_PARSED or {"--tasks", "smollm2"} & set(options):
            kind = cli.COMMANDS[command]
            parse = parse_with_config if issubclass(kind, OfConfig) else parse_plain
            parse(command, kind, options)
            return
        short = SHORT.get(command, ())
        if command == "train" and not {"--data.facts", "--data.text"} & set(options):
            short = (*short, *BUILTIN) if "base" not in options[0] else short
        assert cli.main([command, *options, *short]) == 0
    else:
        assert program in ("curl", "hf"), program


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_in_documents_exist(document: Path) -> None:
    text = document.read_text("utf-8")
    links = re.findall(r"\]\((?!http|#)([^)#]+)", text)
    missing = [link for link in links if not (document.parent / link).exists()]
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]+\w)`", text)
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_links_of_the_site_lead_somewhere() -> None:
    def led(text: str) -> str:
        page: Any = SimpleNamespace(file=SimpleNamespace(src_uri="guides/train.md"))
        there = File("scale.md", None, "site", use_directory_urls=True)
        return site.on_page_markdown(text, page, MkDocsConfig(), Files([there]))

    assert led("[a](../scale.md#b) [c](../../examples)") == "[a](../scale.md#b) c"
    code = "```text\n[a](nowhere.md)\n```\n"
    assert led(code) == code
    for broken in ("[a](nowhere.md)", f"{code}[a](nowhere.md)", "![a](../../examples)"):
        with pytest.raises(PluginError, match=r"guides/train\.md: .*(nowhere\.md|examples)"):
            led(broken)


def test_the_tree_in_the_readme_is_that_of_the_package() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    tree = text.split("## The tree")[1].split("```")[1]
    named = set(re.findall(r"(\w+)/ ", tree))
    package = ROOT / "src" / "memory_layers"
    found = {path.parent.name for path in package.glob("*/__init__.py")}
    assert found <= named
    assert all((package / name).is_dir() or (ROOT / name).is_dir() for name in named)
    assert len(text.splitlines()) <= 120


DATED = r"\b(anew|whoever|its like|goes without|papers\.md|design section)\b|:(func|class):"


def test_text_is_english_of_today() -> None:
    """Words that made readers stop, roles of another tool, documents that are not here."""
    files = [path for path in DOCUMENTS if "experiments" not in path.parts]
    for folder in ("src", "benchmarks", "tools", "examples"):
        files += sorted((ROOT / folder).rglob("*.py"))
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in files
        for match in re.finditer(DATED, path.read_text("utf-8"), re.IGNORECASE)
    ]
    assert not found


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
