"""From a DataConfig to a folder of tokens, tokenizer and recall probes, built once and cached."""

import hashlib
import json
import platform
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_layers.common.checksums import (
    check_files,
    checksums_of,
    read_checksums,
    write_checksums,
)
from memory_layers.common.errors import UserError
from memory_layers.common.files import (
    cache_folder,
    check_writable,
    new_part,
    publish,
    remove_left,
)
from memory_layers.common.progress import Report, counted, counter, tell
from memory_layers.data.builtin import RELATIONS, SOURCES, builtin_facts, builtin_templates
from memory_layers.data.config import BUILTIN, DataConfig
from memory_layers.data.encode import encode_texts
from memory_layers.data.fact_files import FACTS_FILE, TEMPLATES_FILE, load_facts, load_templates
from memory_layers.data.facts import FactCorpus, FactSet, Probe, build_corpus
from memory_layers.data.invented import check_unread
from memory_layers.data.text import builtin_text, iter_text
from memory_layers.data.tokenizer import (
    load_tokenizer,
    save_tokenizer,
    slices,
    train_tokenizer,
    vocabulary_size,
)
from memory_layers.data.tokens import (
    Document,
    answer_tokens,
    damaged,
    most_token,
    write_tokens,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Raised whenever the same config would be prepared into other files.
LAYOUT_VERSION = 8

# What a model is trained on and asked. The other files describe these.
_CONTENT = (".bin", ".npy", "probes.jsonl", "tokenizer/tokenizer.json")
_COUNTS = ("documents", "tokens", "heldout_tokens", "facts", "shown", "heldout")


@dataclass(frozen=True)
class PreparedData:
    """Data that is ready to train on.

    Attributes:
        folder: Holds tokens.bin and its index.
        tokenizer: Fast tokenizer with an end-of-text token.
        probes: Recall items, empty without facts.
        summary: Counts for reports: documents, tokens, facts, relations; and `notes`, what was
            left out or taken together.
        sources: What the content was made of, by name: digests of files, versions of packages. It
            explains what differs.
        content: CRC-32 of tokens, probes and tokenizer, by their paths in `folder`. It decides what
            differs.
    """

    folder: Path
    tokenizer: "PreTrainedTokenizerBase"
    probes: tuple[Probe, ...]
    summary: dict[str, Any]
    sources: Mapping[str, str] = field(default_factory=dict)
    content: Mapping[str, str] = field(default_factory=dict)


def prepare_data(
    config: DataConfig, progress: Report | None = None, *, check: bool = True
) -> PreparedData:
    """Build the data of a config, or find it in the cache.

    The files appear under their final name only when all are written. What is damaged in the
    cache is built again.

    Args:
        config: What to prepare.
        progress: Called with what is done, how much there is, and the name of the work, for one
            piece of work after another. Not called for data in the cache.
        check: Look for damage in the cache. False where another process has just done so.

    Raises:
        UserError: A file is malformed, with its line number, or changed while it was read, or the
            cache cannot be written.
    """
    fingerprint, sources = _fingerprint(config)
    cache = cache_folder() / "data" if config.cache_dir is None else Path(config.cache_dir)
    found = _find(folder := cache / fingerprint, check=check)
    if found is None:
        # Tells what it leaves out as it finds it.
        _build(config, folder, progress)
        found = read_prepared(folder, check=False)
    else:
        tell(found.summary.get("notes", ()), progress)
    sources["end-of-text token"] = str(found.tokenizer.eos_token)
    return replace(found, sources=sources)


def read_prepared(folder: Path, *, check: bool = True) -> PreparedData:
    """Read data that `prepare_data` has built, and check that they are what was written.

    Args:
        folder: Holds them.
        check: Compare all files with their checksums.

    Raises:
        UserError: They are not there, or damaged.
    """
    try:
        known = check_files(folder) if check else read_checksums(folder)
        content = checksums_of(folder, _files(folder)) if known is None else known
        summary = json.loads((folder / "summary.json").read_text("utf-8"))
        if not all(type(summary[name]) is int for name in _COUNTS):
            raise ValueError("summary.json has other counts than are written there")
        lines = (folder / "probes.jsonl").read_text("utf-8").splitlines()
        probes = tuple(Probe(**json.loads(line)) for line in lines)
        if not all(0 <= p.answer_start < p.answer_end <= len(p.text) for p in probes):
            raise ValueError("probes.jsonl has an answer that is not in its text")
        if summary["facts"] != sum(probe.kind != "statement" for probe in probes):
            raise ValueError(f"probes.jsonl does not ask for {summary['facts']} facts")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise damaged(folder, error) from error
    tokenizer = load_tokenizer(folder / "tokenizer")
    # The second folder holds the text that is kept out. Without checksums no file is believed.
    most = max(most_token(place, scan=known is None) for place in (folder, folder / "heldout"))
    if most >= (size := vocabulary_size(tokenizer)):
        raise damaged(folder, f"it has token {most}, its tokenizer has {size} tokens")
    content = {name: crc for name, crc in content.items() if name.endswith(_CONTENT)}
    return PreparedData(folder, tokenizer, probes, summary, content=content)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _find(folder: Path, *, check: bool = True) -> PreparedData | None:
    """Return data that are there and whole."""
    try:
        return read_prepared(folder, check=check)
    except UserError:
        return None


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
    check_writable(folder.parent, "data.cache_dir")
    texts: list[str] = []
    notes: list[str] = []
    for source in config.text:
        texts += builtin_text() if source == BUILTIN else iter_text(Path(source), notes)
    tell(notes, progress)
    corpus = FactCorpus((), (), ()) if config.facts is None else corpus_of(config, progress)
    probes = corpus.probes
    if config.facts == BUILTIN:
        check_unread({p.subject for p in probes if RELATIONS[p.relation].invented}, texts)
    relations = Counter(probe.relation for probe in probes if probe.kind != "statement")
    # Also of other data, whose preparation nobody may ever repeat.
    remove_left(folder.parent)
    with new_part(folder) as part:
        if config.tokenizer is None:
            read = [*slices(chain(texts, corpus.documents))]
            read = counted(read, len(read), "reading for the tokenizer", progress)
            tokenizer = train_tokenizer(read, config.vocab_size)
        else:
            tokenizer = load_tokenizer(Path(config.tokenizer))
        save_tokenizer(tokenizer, part / "tokenizer")
        count = counter(sum(map(len, texts)), "encoding text", progress)
        count(0)
        text, kept_out = hold_out(
            list(_encode(tokenizer, texts, progress=count)), config.text_heldout
        )
        spans = corpus.answers if config.loss_on == "answers" else ()
        encoded = _encode(tokenizer, corpus.documents, spans)
        encoded = counted(encoded, len(corpus.documents), "encoding facts", progress)
        write_tokens(part, chain(text, encoded), vocabulary_size(tokenizer))
        (part / "heldout").mkdir()
        write_tokens(part / "heldout", kept_out, vocabulary_size(tokenizer))
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
        write_checksums(part, _files(part))
        if _fingerprint(config)[0] != folder.name:
            changed = "a file of the data changed while it was read, expected none to"
            raise UserError(f"{changed}. hint: run the same command again")
        # Another process may have been faster: its files are the same.
        if _find(folder) is None:
            publish(part, folder)


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


def _fingerprint(config: DataConfig) -> tuple[str, dict[str, str]]:
    """Name the prepared data after everything that decides its content, and list the sources."""
    values = asdict(config)
    del values["cache_dir"]
    files = _digests(config)
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
        "files": list(files.values()),
    }
    sources = {name: digest for name, digest in files.items() if "data.tokenizer" not in name}
    sources |= {f"version of {name}": version for name, version in versions.items()}
    if wordings:
        sources["wordings of built-in facts"] = _digest_of(wordings)
    sources["format of prepared data"] = str(LAYOUT_VERSION)
    return _digest_of(values)[:20], sources


def facts_changed(config: DataConfig, sources: Mapping[str, Any]) -> list[str]:
    """Return what of the facts of a config is not as in the `sources` of PreparedData."""
    now = {name: digest for name, digest in _digests(config).items() if "facts" in name}
    return [name for name, digest in now.items() if sources.get(name, digest) != digest]


def _digest_of(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _digests(config: DataConfig) -> dict[str, str]:
    """Return the digest of each file that a config names, by its field and, in a folder, its name.

    What a file is called elsewhere decides nothing, but for its suffix.
    """
    named = [(f"data.text[{n}]", Path(source)) for n, source in enumerate(config.text)
             if source != BUILTIN]  # fmt: skip
    if config.facts not in (None, BUILTIN):
        folder = Path(config.facts)
        named += [(f"data.facts: {name}", folder / name) for name in (FACTS_FILE, TEMPLATES_FILE)]
    named += [("data.templates", config.templates_file)] if config.templates_file else []
    named += [("data.tokenizer", Path(config.tokenizer))] if config.tokenizer else []
    digests = {}
    for of, path in named:
        if path.is_dir():
            inside = {p.relative_to(path): p for p in sorted(path.rglob("*")) if p.is_file()}
            digests |= {
                f"{of}: {name.as_posix()}": _digest(file)
                for name, file in inside.items()
                if not name.parts[0].startswith(".")
            }
        elif path.is_file():
            kind = path.suffix if of.startswith("data.text") else ""
            digests[f"{of}{kind and f': *{kind}'}"] = _digest(path)
    return digests


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
