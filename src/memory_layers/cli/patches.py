"""`memory-layers patch`: look at what models were taught, add it to them and take it out again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import (
    FlagConversionOff,
    FlagCreatePairsOff,
    OmitArgPrefixes,
    OmitSubcommandPrefixes,
    Positional,
    arg,
    subcommand,
)

from memory_layers.common.errors import UserError
from memory_layers.common.files import new_folder
from memory_layers.common.packages import quiet_transformers
from memory_layers.common.paths import IS_PATH
from memory_layers.common.text import short_bytes
from memory_layers.data.lines import shorten
from memory_layers.evaluate.trained import (
    DESCRIPTION,
    check_model,
    check_patch_out,
    load_trained,
    taken_out,
)
from memory_layers.learn.report import save_patch
from memory_layers.train.folders import check_replaceable

if TYPE_CHECKING:
    from memory_layers.models import Patch

Rule = Literal["refuse", "first", "last", "sum"]
Patches = Positional[Annotated[tuple[Path, ...], arg(metavar="PATCH...")]]
# Where the folder of a model has the patch that it was taught.
_RECORD = "memory_patch"


@dataclass(frozen=True)
class ShowPatches:
    """Say who taught what, when and from which data, and which rows several patches wrote.

    Example: memory-layers patch show airports lakes

    Example: memory-layers patch show my_model --facts
    """

    patches: Patches
    """Folders of patches, or of models that carry some."""
    facts: FlagCreatePairsOff[bool] = False
    """List the facts whose rows are known, with their numbers for `revert --numbers`."""
    json: FlagCreatePairsOff[bool] = False
    """Print JSON, with all rows."""

    def __call__(self) -> str:
        opened = _open_all(self.patches)
        shown = [_described(path, patch) for path, patch in zip(self.patches, opened, strict=True)]
        from memory_layers.models import merge_patches

        conflicts, apart = opened[0].conflicts(), None
        if len(opened) > 1:
            try:
                # Any rule will do: what it makes of the rows is not asked here.
                settled = [patch.rule for patch in opened if patch.rule != "refuse"]
                conflicts = merge_patches(opened, settled[0] if settled else "last").conflicts()
            except UserError as error:
                apart = str(error)
        overlaps = [
            {"first": c.first, "second": c.second, "rows": c.slots.tolist()} for c in conflicts
        ]
        if self.json:
            found: dict[str, Any] = {"patches": shown, "overlaps": overlaps}
            return json.dumps(found | ({"apart": apart} if apart else {}), indent=1)
        lines = [line for patch in shown for line in _lines(patch, facts=self.facts)]
        lines += [
            f"overlap: {o['first']} and {o['second']} both wrote {_count(len(o['rows']), 'row')}"
            for o in overlaps
        ]
        return "\n".join([*lines, *([f"they do not go together: {apart}"] if apart else [])])


@dataclass(frozen=True)
class ApplyPatches:
    """Teach a model what patches know, and write it as a model folder that remembers them.

    Applied to a patch, it gives a patch.

    Example: memory-layers patch apply smollm2 airports lakes --out my_model

    Example: memory-layers patch apply my_model rivers --rule sum --out my_model
    """

    model: Positional[Annotated[str, arg(metavar="MODEL"), IS_PATH]]
    """Folder of a model, a name of the Hugging Face hub, smollm2, or a patch to add to."""
    patches: Patches
    """Folders of patches, or of models that carry some."""
    out: Path
    """Folder to write. An older one of the kind is replaced."""
    rule: Rule = "refuse"
    """For rows that several wrote: refuse them, take the first, the last or the sum."""
    trust_remote_code: FlagConversionOff[bool] = False
    """Run code that lies in the model folder: for models whose memory has a `target_module`."""

    def __call__(self) -> str:
        is_patch = _check_places(self.model, self.out)
        opened = _open_all(self.patches)
        from memory_layers.models import apply_patch, merge_patches

        if is_patch:
            merged = merge_patches([*_open_all([Path(self.model)]), *opened], self.rule)
            return _save(merged, None, self.out)
        model, tokenizer = load_trained(self.model, trust_remote_code=self.trust_remote_code)
        for patch in opened:
            apply_patch(model, patch, self.rule)
        return _save(model, tokenizer, self.out)


@dataclass(frozen=True)
class RevertPatches:
    """Take out of a model what it was taught, as if it had never been: all of a patch, or facts.

    Taken out of a patch, it gives a patch.

    Example: memory-layers patch revert my_model airports --out my_model

    Example: memory-layers patch revert airports c74188eaa499 --facts Ilulissat --out fewer
    """

    model: Positional[Annotated[str, arg(metavar="MODEL"), IS_PATH]]
    """Folder of a model that carries the patches, or of a patch that has them."""
    patches: Positional[Annotated[tuple[str, ...], arg(metavar="PATCH..."), IS_PATH]]
    """Folders of patches, or ids of teachings as `show` prints them."""
    out: Path
    """Folder to write. An older one of the kind is replaced."""
    facts: str | None = None
    """Only facts with this text in their prompt or answer. Rows that others hang on too stay."""
    numbers: tuple[int, ...] = ()
    """Only facts with these numbers, as `show --facts` prints them for a teaching."""
    trust_remote_code: FlagConversionOff[bool] = False
    """Run code that lies in the model folder: for models whose memory has a `target_module`."""

    def __call__(self) -> str:
        if self.facts is not None and self.numbers:
            raise UserError("--facts and --numbers both say which facts. hint: give one of them")
        is_patch = _check_places(self.model, self.out)
        folders = [Path(given) for given in self.patches if "/" in given or Path(given).exists()]
        ids = [given for given in self.patches if Path(given) not in folders]
        # Without any, it says that one is needed.
        if folders or not ids:
            ids += [name for patch in _open_all(folders) for name in patch.ids]
        facts = self.facts if self.facts is not None else self.numbers or None
        from memory_layers.models import patch_of, revert_patch

        tokenizer: Any = None
        if is_patch:
            (patch,) = _open_all([Path(self.model)])
            found = patch.select(ids, facts)
            changed = patch.without(found)
        else:
            changed, tokenizer = load_trained(self.model, trust_remote_code=self.trust_remote_code)
            patch = patch_of(changed)
            found = revert_patch(changed, ids, facts)
        lines = [f"reverted: {_count(len(found.rows), 'row')} of {', '.join(found.teachings)}"]
        return "\n".join([*lines, *taken_out(patch, found), _save(changed, tokenizer, self.out)])


@dataclass(frozen=True)
class MergePatches:
    """Make one patch of several, from which each can be reverted.

    Example: memory-layers patch merge airports lakes --out both

    Example: memory-layers patch merge airports lakes --rule sum --out both
    """

    patches: Patches
    """Folders of patches, or of models that carry some."""
    out: Path
    """Folder to write. An older patch there is replaced."""
    rule: Rule = "refuse"
    """For rows that several wrote: refuse them, take the first, the last or the sum."""

    def __call__(self) -> str:
        check_patch_out(self.out)
        opened = _open_all(self.patches)
        from memory_layers.models import merge_patches

        merged = merge_patches(opened, self.rule)
        lines = [
            f"{c.first} and {c.second} both wrote {_count(len(c.slots), 'row')}: "
            f"settled by {merged.rule}"
            for c in merged.conflicts()
        ]
        return "\n".join([*lines, _save(merged, None, self.out)])


@dataclass(frozen=True)
class PatchCommand:
    """Show, apply, revert and merge patches: what models were taught, as rows of their memory.

    Example: memory-layers patch show airports
    """

    operation: OmitSubcommandPrefixes[
        OmitArgPrefixes[
            Annotated[ShowPatches, subcommand("show")]
            | Annotated[ApplyPatches, subcommand("apply")]
            | Annotated[RevertPatches, subcommand("revert")]
            | Annotated[MergePatches, subcommand("merge")]
        ]
    ]

    def __call__(self) -> str:
        return self.operation()


def _check_places(model: str, out: Path) -> bool:
    """Say whether MODEL is a patch, after a look at what is there and at what would be replaced."""
    if (Path(model) / DESCRIPTION).is_file():
        check_patch_out(out)
        return True
    check_model(model)
    check_replaceable(out)
    return False


def _find(folder: Path) -> Path:
    """Return where a patch is: here, or in the folder of a model that remembers it."""
    for place in (folder, folder / _RECORD):
        if (place / DESCRIPTION).is_file():
            return place
    hint = "give a folder that `learn` or save_memory wrote"
    for inside in ("memory", "patch"):
        if (folder / inside / DESCRIPTION).is_file():
            hint = f"did you mean {folder / inside}?"
    kind = "model carries no patch" if (folder / "config.json").is_file() else "is no patch"
    raise UserError(f"{folder}: {kind}, there is no {DESCRIPTION}. hint: {hint}")


def _open_all(folders: Sequence[Path]) -> "list[Patch]":
    if not folders:
        raise UserError("PATCH: at least one is needed. hint: a folder that `learn` wrote")
    # All of them before torch is loaded, which takes seconds.
    found = [_find(folder) for folder in folders]
    quiet_transformers()
    from memory_layers.models import Patch

    return [Patch.load(folder) for folder in found]


def _save(changed: Any, tokenizer: Any, out: Path) -> str:  # noqa: ANN401
    """Write a patch, or a model with its tokenizer, and say where."""
    if tokenizer is None:
        return "\n".join(save_patch(changed, out))
    with new_folder(out, sum(weight.nbytes for weight in changed.parameters())) as part:
        changed.save_pretrained(part)
        tokenizer.save_pretrained(part)
    return f"model: {out}"


def _described(folder: Path, patch: "Patch") -> dict[str, Any]:
    """Return what a patch is, as plain values."""
    config, place = patch.config, _find(folder)
    tables = 1 if config.share_values else len(config.layers)
    teachings = []
    for teaching in patch.teachings:
        described = teaching.describe()
        for fact, rows in zip(described["facts"], teaching.facts, strict=True):
            fact["rows"] = rows.rows.tolist()
        teachings.append(described | {"slots": teaching.slots.tolist()})
    return {
        "folder": str(folder),
        "bytes": sum(file.stat().st_size for file in place.glob("memory.*")),
        "layers": list(config.layers),
        "rows": len(patch.rows()[0]),
        "slots": tables * config.num_slots,
        "rule": patch.rule,
        "teachings": teachings,
    }


def _lines(patch: Mapping[str, Any], *, facts: bool) -> list[str]:
    """Return what a patch is, for people. The facts of each teaching are numbered."""
    lines = [
        f"{patch['folder']}: {patch['rows']:,} of {_count(patch['slots'], 'row')}, "
        f"{_count(len(patch['teachings']), 'teaching')}, {short_bytes(patch['bytes'])}, "
        f"memory in blocks {', '.join(map(str, patch['layers']))}"
    ]
    for teaching in patch["teachings"]:
        when = teaching["created"].replace("T", " ").replace("Z", " UTC") or "at an unknown time"
        who = f" by {teaching['author']}" if teaching["author"] else ""
        what = [_count(teaching["rows"], "row")]
        if teaching["facts"]:
            what.append(f"rows known of {_count(len(teaching['facts']), 'fact')}")
        if teaching["reverted_facts"]:
            what.append(f"{_count(teaching['reverted_facts'], 'fact')} reverted")
        if teaching["based_on"]:
            what.append(f"trained further from {', '.join(teaching['based_on'])}")
        lines.append(f"  {teaching['id']}  taught {when}{who}: {', '.join(what)}")
        for source in teaching["data"]:
            rest = [f"{name} {value}" for name, value in source.items() if name != "name"]
            lines.append(f"    data: {', '.join([str(source.get('name', '?')), *rest])}")
        if teaching["settings"]:
            pairs = ", ".join(f"{name} {value}" for name, value in teaching["settings"].items())
            lines.append(f"    settings: {pairs}")
        for n, fact in enumerate(teaching["facts"] if facts else ()):
            rows = _count(len(fact["rows"]), "row")
            answer = shorten(fact["answer"])[1:-1]
            lines.append(f"    {n}: {fact['prompt']} {answer}  ({rows})")
    return lines


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
