"""From a DataConfig to a folder of tokens, tokenizer and recall probes, built once and cached."""

import hashlib
import json
import os
import platform
import shutil
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_layers.common.errors import UserError
from memory_layers.common.files import cache_folder
from memory_layers.common.progress import Report, counted, counter, tell
from memory_layers.data.builtin import SOURCES, builtin_facts, builtin_templates
from memory_layers.data.config import BUILTIN, DataConfig
from memory_layers.data.encode import encode_texts
from memory_layers.data.fact_files import FACTS_FILE, TEMPLATES_FILE, load_facts, load_templates
from memory_layers.data.facts import FactCorpus, FactSet, Probe, build_corpus
from memory_layers.data.text import builtin_text, iter_text
from memory_layers.data.tokenizer import load_tokenizer, slices, train_tokenizer
from memory_layers.data.tokens import Document, answer_tokens, write_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Raised whenever the same config would be prepared into other files.
LAYOUT_VERSION = 7


@dataclass(frozen=True)
class PreparedData:
    """Data that is ready to train on.

    Attributes:
        folder: Holds tokens.bin and its index.
        tokenizer: Fast tokenizer with an end-of-text token.
        probes: Recall items, empty without facts.
        summary: Counts for reports: documents, tokens, facts, relations; and `notes`, what was
            left out or taken together.
    """

    folder: Path
    tokenizer: "PreTrainedTokenizerBase"
    probes: tuple[Probe, ...]
    summary: dict[str, Any]


def prepare_data(config: DataConfig, progress: Report | None = None) -> PreparedData:
    """Build the data of a config, or find it in the cache.

    The files appear under their final name only when all are written.

    Args:
        config: What to prepare.
        progress: Called with what is done, how much there is, and the name of the work, for one
            piece of work after another. Not called for data in the cache.

    Raises:
        UserError: A file is malformed, with its line number.
    """
    folder = _cache_dir(config) / _fingerprint(config)
    is_there = (folder / "summary.json").is_file()
    if not is_there:
        _build(config, folder, progress)
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    # Who builds tells them as they are found.
    tell(summary.get("notes", ()) if is_there else (), progress)
    lines = (folder / "probes.jsonl").read_text("utf-8").splitlines()
    return PreparedData(
        folder=folder,
        tokenizer=load_tokenizer(folder / "tokenizer"),
        probes=tuple(Probe(**json.loads(line)) for line in lines),
        summary=summary,
    )


def read_facts(config: DataConfig, progress: Report | None = None) -> FactSet:
    """Load the facts a config names.

    Args:
        config: Names them.
        progress: As for `prepare_data`. With it, what was made of repeated rows is printed.

    Raises:
        ValueError: The config names none.
        UserError: A file is malformed, or has no templates for a relation.
    """
    if config.facts is None:
        raise ValueError("data.facts is not set")
    if config.facts != BUILTIN:
        found = load_facts(Path(config.facts))
        tell(found.notes, progress)
        return found
    facts = builtin_facts(config.relations, config.max_subjects, config.seed, progress=progress)
    if config.templates_file is None:
        return facts
    own = load_templates(config.templates_file)
    if missing := sorted(facts.templates.keys() - own.keys()):
        raise UserError(
            f"{config.templates}: no templates for the relations {', '.join(missing)}. "
            "hint: add them, or leave these out with data.relations"
        )
    return replace(facts, templates={name: own[name] for name in facts.templates})


def corpus_of(config: DataConfig, progress: Report | None = None) -> FactCorpus:
    """Turn the facts a config names into documents and recall probes.

    Args:
        config: Names them.
        progress: As for `prepare_data`.

    Raises:
        ValueError: The config names none.
        UserError: A file is malformed, or has no templates for a relation.
    """
    return build_corpus(
        read_facts(config, progress),
        shown_fraction=config.shown_fraction,
        exposures=config.exposures,
        seed=config.seed,
        progress=progress,
    )


def _build(config: DataConfig, folder: Path, progress: Report | None) -> None:
    texts: list[str] = []
    notes: list[str] = []
    for source in config.text:
        texts += builtin_text() if source == BUILTIN else iter_text(Path(source), notes)
    tell(notes, progress)
    corpus = FactCorpus((), (), ()) if config.facts is None else corpus_of(config, progress)
    probes = corpus.probes
    relations = Counter(probe.relation for probe in probes if probe.kind != "statement")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Not by new_folder: of two processes that build the same data, the first one's stay.
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
    try:
        if config.tokenizer is None:
            read = [*slices(chain(texts, corpus.documents))]
            read = counted(read, len(read), "reading for the tokenizer", progress)
            tokenizer = train_tokenizer(read, config.vocab_size)
        else:
            tokenizer = load_tokenizer(Path(config.tokenizer))
        tokenizer.save_pretrained(part / "tokenizer")
        characters = sum(map(len, texts))
        count = counter(characters, "encoding text", progress)
        count(0)
        text, kept_out = hold_out(
            list(_encode(tokenizer, texts, progress=count)), config.text_heldout
        )
        spans = corpus.answers if config.loss_on == "answers" else ()
        encoded = _encode(tokenizer, corpus.documents, spans)
        encoded = counted(encoded, len(corpus.documents), "encoding facts", progress)
        write_tokens(part, chain(text, encoded), len(tokenizer))
        (part / "heldout").mkdir()
        write_tokens(part / "heldout", kept_out, len(tokenizer))
        with (part / "probes.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(probe)) + "\n" for probe in probes)
        written = json.loads((part / "tokens.json").read_text("utf-8"))
        if written["tokens"] <= written["documents"]:
            raise UserError(
                f"{', '.join(config.text)}: too little text to train on and to keep "
                f"text_heldout = {config.text_heldout} out. hint: data.text_heldout: 0"
            )
        summary = {
            "source": None if config.facts is None else Path(config.facts).name,
            "documents": written["documents"],
            "tokens": written["tokens"],
            "heldout_tokens": sum(len(document.ids) for document in kept_out),
            "facts": sum(relations.values()),
            "relations": dict(relations),
            "shown": len({p.subject for p in probes if p.kind == "question_shown"}),
            "heldout": len({p.subject for p in probes if p.kind == "question_heldout"}),
            "notes": [*notes, *corpus.notes],
        }
        (part / "summary.json").write_text(json.dumps(summary, indent=2), "utf-8")
        try:
            os.replace(part, folder)
        except OSError:
            # Another process was faster: its files are the same.
            if not (folder / "summary.json").is_file():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _encode(
    tokenizer: "PreTrainedTokenizerBase",
    documents: Sequence[str],
    answers: Sequence[tuple[int, int]] = (),
    progress: Callable[[int], object] = lambda done: None,
) -> Iterator[Document]:
    """Yield the token ids of each document, the end-of-text token included.

    Args:
        tokenizer: A fast one.
        documents: Texts.
        answers: Characters of each text to be predicted, and the token after them. Empty: all.
        progress: Called with a number of characters that are encoded.
    """
    encoded = encode_texts(tokenizer, documents, offsets=len(answers) > 0, progress=progress)
    for n, (ids, offsets) in enumerate(encoded):
        predicted = answer_tokens(documents[n], offsets, *answers[n]) if answers else None
        # Lists would take nine times the memory, for all documents together.
        ended = array("i", ids)
        ended.append(tokenizer.eos_token_id)
        yield Document(ended, predicted)


def hold_out(documents: list[Document], share: float) -> tuple[list[Document], list[Document]]:
    """Split running text into what is trained on and what is kept out.

    Of many documents whole ones are kept out, evenly spread. Of a few, the end of each is.

    Args:
        documents: Of running text, predicted whole.
        share: Of the text to keep out.
    """
    if not documents or share == 0:
        return documents, []
    if len(documents) * share >= 1:
        picked = {int((n + 0.5) / share) for n in range(int(len(documents) * share))}
        kept = [document for n, document in enumerate(documents) if n not in picked]
        return kept, [documents[n] for n in sorted(picked)]
    cuts = [len(doc.ids) - max(1, int(len(doc.ids) * share + 0.5)) for doc in documents]
    pairs = list(zip(documents, cuts, strict=True))
    heldout = [Document(doc.ids[cut:]) for doc, cut in pairs]
    return [Document(doc.ids[:cut]) for doc, cut in pairs], [d for d in heldout if len(d.ids) > 1]


def _cache_dir(config: DataConfig) -> Path:
    if config.cache_dir is not None:
        return Path(config.cache_dir)
    return cache_folder() / "data"


def _fingerprint(config: DataConfig) -> str:
    """Name the prepared data after everything that decides its content."""
    values = asdict(config)
    del values["cache_dir"]
    files = [Path(source) for source in config.text if source != BUILTIN]
    if config.facts not in (None, BUILTIN):
        files += [Path(config.facts) / name for name in (FACTS_FILE, TEMPLATES_FILE)]
    files += [config.templates_file] if config.templates_file else []
    files += [Path(config.tokenizer)] if config.tokenizer else []
    versions, wordings = {}, {}
    if config.facts == BUILTIN:
        packages = sorted({name for source in SOURCES for name in source.packages})
        try:
            versions = {name: metadata.version(name) for name in packages}
        except metadata.PackageNotFoundError as error:
            raise ImportError(
                f"the package {error.name!r} is not installed, it holds built-in facts. "
                'hint: pip install "memory-layers[data]"'
            ) from error
        wordings = {name: asdict(templates) for name, templates in builtin_templates().items()}
    if BUILTIN in config.text:
        versions["python"] = platform.python_version()
    values |= {
        "layout": LAYOUT_VERSION,
        "versions": versions,
        "wordings": wordings,
        "files": _digests(files),
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:20]


def _digests(paths: list[Path]) -> list[str]:
    digests = []
    for path in paths:
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in inside:
            if file.is_file():
                with file.open("rb") as opened:
                    digests.append(hashlib.file_digest(opened, "sha256").hexdigest())
    return digests
