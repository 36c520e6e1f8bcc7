"""What a task file of the harness may hold that is not trusted: values alone, and data beside it.

The harness itself runs what `!function` names, and takes metrics, prompts and ways to generate from
files and the hub, which are programs too.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from glob import has_magic
from itertools import takewhile
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from memory_layers.common.errors import UserError

# Of tasks and groups, and of what is in them: values that are read, and no more.
_FIELDS = (
    "task", "task_alias", "tag", "group", "group_alias", "aggregate_metric_list", "dataset_path",
    "dataset_name", "dataset_kwargs", "training_split", "validation_split", "test_split",
    "fewshot_split", "doc_to_text", "doc_to_target", "doc_to_choice", "gen_prefix", "unsafe_code",
    "description", "target_delimiter", "fewshot_delimiter", "fewshot_config", "num_fewshot",
    "metric_list", "output_type", "generation_kwargs", "repeats", "filter_list",
    "should_decontaminate", "doc_to_decontamination_query", "metadata",
)  # fmt: skip
_INSIDE: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "generation_kwargs": (
        "until", "do_sample", "temperature", "top_k", "top_p", "min_p", "num_beams",
        "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "early_stopping",
        "max_gen_toks", "max_new_tokens", "max_tokens", "max_length",
    ),
    # The harness takes no notice of the last one.
    "dataset_kwargs": (
        "data_files", "field", "delimiter", "sep", "names", "column_names", "header", "quotechar",
        "encoding", "revision", "trust_remote_code",
    ),
    "fewshot_config": (
        "sampler", "split", "fewshot_indices", "samples", "doc_to_text", "doc_to_choice",
        "doc_to_target", "gen_prefix", "fewshot_delimiter", "target_delimiter",
    ),
})  # fmt: skip
# What may be changed of a task of the harness. The rest reaches its functions, some of which run
# what they are given, or trust the tokenizer that is named to them.
_CHANGES = (
    "task", "task_alias", "group", "group_alias", "tag", "aggregate_metric_list", "num_fewshot",
    "description", "target_delimiter", "fewshot_delimiter", "generation_kwargs", "repeats",
)  # fmt: skip
# Kinds of files that hold texts and numbers.
_KINDS = ("json", "csv", "parquet", "text")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")


def refuse_in(file: Path) -> Callable[[str], NoReturn]:
    """Return what raises a UserError that says what of a file is refused."""

    def refuse(what: str) -> NoReturn:
        raise UserError(
            f"{file}: {what}. hint: --trust-remote-code True, if you have read the file and what "
            "is beside it"
        )

    return refuse


def check(
    values: Mapping[str, Any], file: Path, root: Path, is_other: Callable[[str], bool]
) -> None:
    """Refuse what can run code or reach other files.

    Args:
        values: Of a task or group, after find_data.
        file: Theirs.
        root: What lies outside of it is not reached.
        is_other: Tells whether a name is that of a task of the harness, or of a group with some.

    Raises:
        UserError: There is such a thing, or the values are malformed.
    """
    _check(values, refuse_in(file), root, is_other, top=True)


def names_in(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the members of a group, and of theirs.

    Args:
        values: Of a task or group.
    """
    members = values.get("task")
    for member in members if isinstance(members, list) else ():
        if isinstance(member, dict):
            yield from (
                name for key in ("task", "group") if isinstance(name := member.get(key), str)
            )
            yield from names_in(member)
        elif isinstance(member, str):
            yield member


def is_in(path: Path, root: Path) -> bool:
    """Tell whether a path lies in a folder once links are followed."""
    return path.resolve().is_relative_to(root.resolve())


def _check(
    values: Mapping[str, Any],
    refuse: Callable[[str], NoReturn],
    root: Path,
    is_other: Callable[[str], bool],
    *,
    top: bool,
) -> None:
    for name in values:
        if name not in _FIELDS:
            refuse(f"`{name}:` is unknown, or can run code")
    for name, known in _INSIDE.items():
        inside = values.get(name) or {}
        if not isinstance(inside, dict):
            refuse(f"`{name}:` must be a mapping, got {inside!r}")
        for field in inside:
            if field not in known:
                refuse(f"`{name}: {field}:` is unknown, or can run code")
    if not isinstance((values.get("fewshot_config") or {}).get("samples", []), list):
        refuse("`fewshot_config: samples:` must be a list")
    own = [name for key in ("task", "group") if isinstance(name := values.get(key), str)]
    if any(map(is_other, [*([] if top else own), *names_in(values)])):
        # Those of a group itself stay with it.
        changes = set(values) - {*_CHANGES, *(["metadata"] if top else [])}
        if changes:
            refuse(f"`{min(changes)}:` of another task is changed")
    _check_metrics(values.get("metric_list") or [], refuse)
    _check_data(values, refuse, root)
    members = values.get("task")
    for member in members if isinstance(members, list) else ():
        if isinstance(member, dict):
            _check(member, refuse, root, is_other, top=False)


def _check_metrics(metrics: object, refuse: Callable[[str], NoReturn]) -> None:
    import lm_eval.api.metrics  # noqa: F401  (registers them)
    from lm_eval.api.registry import metric_registry

    for metric in metrics if isinstance(metrics, list) else [metrics]:
        name = metric.get("metric") if isinstance(metric, dict) else metric
        if not isinstance(metric, dict) or not isinstance(name, str):
            refuse(f"`metric_list:` must hold `metric:` with a name, got {metric!r}")
        if name not in metric_registry or metric.get("hf_evaluate"):
            # Which is a program, of the hub or of a folder.
            refuse(f"metric {name!r} is none of the harness, which would fetch and run it")


def _check_data(values: Mapping[str, Any], refuse: Callable[[str], NoReturn], root: Path) -> None:
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    source, options = values.get("dataset_path"), values.get("dataset_kwargs") or {}
    if source is not None and not isinstance(source, str):
        refuse(f"`dataset_path:` must be a name, got {source!r}")
    if source in _KINDS:
        for name in _data_files(options.get("data_files")):
            _check_file(name, refuse, root)
        return
    if source is not None and (
        not _HUB_NAME.fullmatch(source)
        or source.endswith(".py")
        or source in _PACKAGED_DATASETS_MODULES
        or Path(source).exists()
    ):
        kinds = ", ".join(_KINDS)
        refuse(f"`dataset_path: {source}` is neither a name of the hub nor one of {kinds}")
    if options.keys() - {"trust_remote_code", "revision"}:
        refuse(f"`dataset_kwargs:` needs a `dataset_path:` of {', '.join(_KINDS)}")


def _check_file(name: object, refuse: Callable[[str], NoReturn], root: Path) -> None:
    if not isinstance(name, str) or "::" in name or "://" in name:
        refuse(f"`data_files:` must name files beside it, got {name!r}")
    # The folder that a pattern begins in, so that none is searched elsewhere.
    plain = Path(*takewhile(lambda part: not has_magic(part), Path(name).parts))
    found = _files(name) if is_in(plain, root) else []
    if not is_in(plain, root) or not all(is_in(Path(file), root) for file in found):
        refuse(f"data file {name} lies outside of {root}")
    if not found:
        raise UserError(f"{name}: there is no such data file. hint: check `data_files:`")


def _files(name: str) -> list[str]:
    """Return the files that a path or pattern stands for, as the harness reads them."""
    from datasets.data_files import resolve_pattern

    try:
        return resolve_pattern(name, str(Path.cwd()))
    except (OSError, ValueError):
        return []


def find_data(values: dict[str, Any], folder: Path) -> None:
    """Take data files from beside their task file, if they are there, in place.

    Args:
        values: Of a task or group.
        folder: Of the file.
    """
    options = values.get("dataset_kwargs")
    if values.get("dataset_path") in _KINDS and isinstance(options, dict):
        named = options.get("data_files")
        splits = named if isinstance(named, dict) else {"train": named}
        found = {
            split: [_beside(name, folder) for name in _data_files(names)]
            for split, names in splits.items()
        }
        values["dataset_kwargs"] = {**options, "data_files": found}
    members = values.get("task")
    for member in members if isinstance(members, list) else ():
        if isinstance(member, dict):
            find_data(member, folder)


def _beside(name: object, folder: Path) -> object:
    if not isinstance(name, str) or "::" in name or "://" in name:
        return name
    path = str((folder / name).absolute())
    return name if _files(name) and not _files(path) else path


def _data_files(named: object) -> list[object]:
    """Return names of files that are one, a list, or one or a list for each split."""
    if isinstance(named, dict):
        return [name for names in named.values() for name in _data_files(names)]
    return named if isinstance(named, list) else [named]
