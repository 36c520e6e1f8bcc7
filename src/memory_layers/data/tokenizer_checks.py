"""What is checked of a loaded tokenizer: nothing that texts need is missing or wrong."""

import json
from pathlib import Path
from typing import Any

from memory_layers.common.errors import UserError

BACKEND, CONFIG = "tokenizer.json", "tokenizer_config.json"
# Of earlier versions of transformers, which are read too.
MARKS = "special_tokens_map.json"
# Ids without a token, beside as many as there are tokens: some families reserve a few thousand.
MOST_HOLES = 100_000
# Letters. Those in use have some ten thousand.
LONGEST_TEMPLATE = 1_000_000
# How byte-level tokenizers spell what nearly every text has.
_ASCII = {chr(n): chr(n) for n in range(33, 127)} | {" ": "\u0120", "\n": "\u010a"}


def check_tokenizer(tokenizer: Any, used: set[int], backend: dict[str, Any], where: str) -> None:  # noqa: ANN401
    """Refuse a tokenizer that would lose texts, or give them ids that no model knows.

    Args:
        tokenizer: A fast one.
        used: Ids that it gives the text "a", those around it included.
        backend: Its tokenizer.json. Empty: it has none.
        where: Its folder, or its name on the hub.

    Raises:
        UserError: It would.
    """
    for problem in (
        _of_ids(tokenizer, used, backend),
        _of_texts(tokenizer, used, backend),
        _of_templates(tokenizer.chat_template),
    ):
        if problem:
            raise UserError(f"{where}: {problem}")


def _of_ids(tokenizer: Any, used: set[int], backend: dict[str, Any]) -> str:  # noqa: ANN401
    ids = tokenizer.get_vocab()
    tokens = {number: token for token, number in ids.items()}
    if len(tokens) < len(ids):
        token, number = next((t, n) for t, n in ids.items() if tokens[n] != t)
        return (
            f"the tokens {token!r} and {tokens[number]!r} have both the id {number}. "
            f"hint: copy {BACKEND} again"
        )
    last, most = max(tokens), 2 * len(tokens) + MOST_HOLES
    if last >= most:
        return (
            f"ids of tokens reach {last:,}, expected less than {most:,}, as there are "
            f"{len(tokens):,} tokens. hint: copy {BACKEND} again"
        )
    for entry in backend.get("added_tokens", ()):
        # An id that another token has, or beyond the next one, is exchanged when it is read.
        if (found := ids.get(entry["content"])) != entry["id"]:
            return (
                f"{BACKEND} gives the token {entry['content']!r} the id {entry['id']}, which "
                f"becomes {found}: another token has it, or ids before it are missing. hint: save "
                "the tokenizer again with the ids that the model was trained with"
            )
    if unknown := used - tokens.keys():
        return (
            f"the tokenizer gives texts the id {min(unknown)}, which no token has. "
            f"hint: look at post_processor in {BACKEND}"
        )
    return ""


def _of_texts(tokenizer: Any, used: set[int], backend: dict[str, Any]) -> str:  # noqa: ANN401
    from tokenizers.models import BPE, WordLevel, WordPiece

    special = {n for n, token in tokenizer.added_tokens_decoder.items() if token.special}
    if not used and special >= {*tokenizer.get_vocab().values()}:
        return (
            f"the tokenizer has {len(special)} special tokens and no others, so that texts have "
            f"no tokens. hint: copy {BACKEND} again"
        )
    # Added tokens are not in it: only the model's own can stand for unknown words.
    own = tokenizer.backend_tokenizer.model
    if isinstance(own, WordLevel | WordPiece) and own.token_to_id(own.unk_token) is None:
        return (
            f"the token of unknown words, {own.unk_token!r}, is not in the vocabulary. "
            f"hint: add it to the vocabulary of {BACKEND}"
        )
    # Elsewhere what is missing becomes the token of unknown words, or is spelled in bytes.
    loses = isinstance(own, BPE) and own.unk_token is None and not own.byte_fallback
    in_bytes = "ByteLevel" in json.dumps(backend.get("pre_tokenizer"))
    # A normalizer may leave no capitals to be spelled.
    if loses and in_bytes and backend.get("normalizer") is None:
        for letter, spelled in _ASCII.items():
            if own.token_to_id(spelled) is None:
                return (
                    f"no token has {letter!r}, so that texts would lose it. hint: copy {BACKEND} "
                    "again"
                )
    return ""


def _of_templates(given: Any) -> str:  # noqa: ANN401
    """Say what is wrong with chat templates that could not be used, or saved."""
    templates = given if isinstance(given, dict) else {"chat_template": given}
    for name, template in templates.items():
        problem = ""
        if not isinstance(name, str) or Path(name).name != name:
            problem = "must have a name without folders"
        elif not isinstance(template, str | None):
            problem = f"must be text, got {type(template).__name__}"
        elif template is not None and len(template) > LONGEST_TEMPLATE:
            problem = f"has {len(template):,} letters, expected {LONGEST_TEMPLATE:,} at most"
        if problem:
            return (
                f"the chat template {name!r} {problem}. hint: look at chat_template.jinja and "
                f"{CONFIG}"
            )
    return ""
