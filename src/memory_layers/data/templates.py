"""The wordings of facts: texts with the placeholders `{subject}` and `{answer}`.

Braces that are text are doubled, `{{` and `}}`, as in Python.
"""

import re

from memory_layers.common.text import did_you_mean
from memory_layers.data.lines import shorten

_PLACEHOLDERS = ("{subject}", "{answer}")
_BRACES = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]")

# What stands before and after {answer}, each cut at {subject}. Values are put between, not replaced
# in, so that braces in subjects mean nothing and the place of the answer is known.
Halves = tuple[tuple[str, ...], tuple[str, ...]]


def template_fault(
    text: str, *, answer_last: bool, subject_first: bool = False
) -> tuple[str, str, str] | None:
    """Find what is wrong with a template.

    Args:
        text: The template.
        answer_last: It is a question, which must end with the answer.
        subject_first: It is asked, so the subject must stand before the answer.

    Returns:
        The problem, what is expected and what to do. None: nothing is wrong.
    """
    both = "{subject} at least once and {answer} once"
    found = [match[0] for match in _BRACES.finditer(text)]
    for piece in found:
        if piece not in (*_PLACEHOLDERS, "{{", "}}", "{", "}"):
            problem = f"has the unknown placeholder {shorten(piece)}"
            hint = f"{did_you_mean(piece, _PLACEHOLDERS)}, or for text in braces: {_doubled(text)}"
            return problem, "only {subject} and {answer}", hint
    if "{" in found or "}" in found:
        hint = f"double the braces that are text: {_doubled(text)}"
        return "has a stray brace", "only {subject} and {answer} in single braces", hint
    for placeholder in _PLACEHOLDERS:
        if placeholder not in found:
            hint = f"put {placeholder} where it belongs"
            if placeholder in text:
                hint = f"write {placeholder} with single braces: doubled ones are text"
            return f"lacks {placeholder}", both, hint
    if found.count("{answer}") > 1:
        return "has {answer} more than once", both, "keep one {answer}"
    if answer_last and not ends_with_answer(text):
        problem = "does not end with {answer}"
        return problem, "nothing after {answer}", "remove what stands after {answer}"
    if subject_first and not has_subject_first(text):
        problem = "has {answer} before {subject}, so that it cannot be asked"
        return problem, "{subject} before {answer}", "word it with {subject} first"
    return None


def cut_template(template: str) -> Halves:
    """Return what stands before and after {answer}, cut at {subject}.

    Args:
        template: One without a fault.
    """
    halves = [[""]]
    at = 0
    for match in _BRACES.finditer(template):
        halves[-1][-1] += template[at : match.start()]
        at = match.end()
        if match[0] == "{subject}":
            halves[-1].append("")
        elif match[0] == "{answer}":
            halves.append([""])
        else:
            halves[-1][-1] += match[0][0]
    halves[-1][-1] += template[at:]
    before, after = halves
    return tuple(before), tuple(after)


def fill_template(halves: Halves, subject: str, answer: str) -> tuple[str, int]:
    """Return the text of a template for a fact, and where in it the answer begins."""
    before, after = map(subject.join, halves)
    return before + answer + after, len(before)


def has_subject_first(template: str) -> bool:
    """Tell whether a template can be asked: the subject stands before the answer."""
    return len(cut_template(template)[0]) > 1


def ends_with_answer(template: str) -> bool:
    """Tell whether nothing stands after the answer."""
    return cut_template(template)[1] == ("",)


def _doubled(text: str) -> str:
    """Double the braces of a template that are no placeholder's."""

    def double(match: re.Match[str]) -> str:
        piece = match[0]
        if piece in _PLACEHOLDERS or piece in ("{{", "}}"):
            return piece
        return re.sub(r"[{}]", lambda brace: brace[0] * 2, piece)

    return shorten(_BRACES.sub(double, text), 100)
