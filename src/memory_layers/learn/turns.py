"""What a chat template writes around the turns of a conversation."""

from typing import TYPE_CHECKING, NamedTuple

from memory_layers.common.errors import UserError
from memory_layers.data.tokenizer import write_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A character for private use, in the place of what is said.
_SAID = "\ue0f2"


class Frame(NamedTuple):
    """Token ids of what is around turns.

    Attributes:
        opening: Before the first turn of a user.
        asked: Between that and the answer.
        answered: Between the answer and the next turn of a user.
        asked_last: As `asked`, where the answer is still to come.
    """

    opening: list[int]
    asked: list[int]
    answered: list[int]
    asked_last: list[int]


def frame_of_turns(tokenizer: "PreTrainedTokenizerBase") -> Frame | None:
    """Return what is around turns. None: there is no chat template, or it writes them otherwise."""
    if tokenizer.chat_template is None:
        return None
    # Some templates take one turn alone.
    for roles in (("user", "assistant", "user"), ("user",)):
        turns = [{"role": role, "content": _SAID} for role in roles]
        try:
            text = write_chat(tokenizer, turns, tokenize=False, add_generation_prompt=True)
        except UserError:
            continue
        # A space before what is said is a part of its first word.
        parts = [part.rstrip(" ") for part in str(text).split(_SAID)]
        if len(parts) == len(roles) + 1:
            first, *between, last = tokenizer(parts, add_special_tokens=False)["input_ids"]
            return Frame(first, *(between or ([], [])), last)
    return None
