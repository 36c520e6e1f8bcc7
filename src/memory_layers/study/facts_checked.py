"""What results.json says of each fact, checked: its form, and that all of it is of the same facts.

Next: facts_asked.py, which writes it.
"""

import re
from collections.abc import Mapping
from typing import Any

from memory_layers.common.errors import UserError
from memory_layers.data.lines import shorten

_SPACED = "{0}( {0})*"
_NUMBERS = _SPACED.format("[0-9]{1,9}"), "whole numbers, a space between them"
_SHARES = _SPACED.format("(10000|[0-9]{1,4})"), "whole numbers up to 10000, a space between them"
_DIGITS = "[01]+", "digits 0 and 1"
_FORMS = {
    "subjects": _NUMBERS, "statements": _NUMBERS,
    "seen": _DIGITS, "unseen": _DIGITS, "p_seen": _SHARES, "p_unseen": _SHARES,
}  # fmt: skip


def check_facts(results: Mapping[str, Any], where: str) -> None:
    """Refuse fields `exposure` and `facts` that do not hold one thing for each fact.

    Args:
        results: The content of results.json, of the right types.
        where: Its path, for errors.

    Raises:
        UserError: A text is of another form or length, or a run has other relations.
    """
    exposure = results.get("exposure")
    counts: dict[str, int] = {}
    for relation, about in (exposure or {}).items():
        place = f"{where}: exposure.{relation}"
        counts[relation] = _count(about, place, None)
        if about["candidates"] > (answers := about["answers"]):
            raise UserError(
                f"{place}.candidates must be at most answers = {answers}, got {about['candidates']}"
            )
    for number, run in enumerate(results["runs"]):
        place = f"{where}: runs[{number}].facts"
        facts = run.get("facts")
        if facts is None:
            continue
        if exposure is not None and facts.keys() != counts.keys():
            raise UserError(
                f"{place} must have the relations of exposure, {', '.join(counts)}, got "
                f"{', '.join(facts) or 'none'}"
            )
        for relation, found in facts.items():
            _count(found, f"{place}.{relation}", counts.get(relation))


def _count(values: Mapping[str, Any], where: str, count: int | None) -> int:
    """Return of how many facts texts are, each of `count` if that is known."""
    own = 0
    for name, (form, expected) in _FORMS.items():
        if (text := values.get(name)) is None:
            continue
        if not re.fullmatch(form, text):
            raise UserError(f"{where}.{name} must be {expected}, got {shorten(text)}")
        own = len(text) if form == _DIGITS[0] else len(text.split(" "))
        if count not in (None, own):
            raise UserError(f"{where}.{name} must be of {count} facts, got {own}")
        count = own
    return own
