"""Rows of tokens that share a pass: those of one length, which need no padding."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

# Logits of a pass: 2 GiB in fp32.
MOST_LOGITS = 2**29
MOST_TOKENS = 8192


def by_length(
    rows: Sequence[Sequence[int]], vocab_size: int, *, extra: int = 0, times: int = 1
) -> Iterator[list[int]]:
    """Yield the numbers of rows that go together, so many that their logits fit in memory.

    Args:
        rows: Token ids.
        vocab_size: Logits of a token.
        extra: Tokens that are still to come.
        times: Take so many times as many: for readers who share them.
    """
    lengths = defaultdict(list)
    for number, row in enumerate(rows):
        lengths[len(row)].append(number)
    tokens = min(MOST_TOKENS, MOST_LOGITS // vocab_size)
    for length, members in lengths.items():
        step = max(1, tokens // (length + extra)) * times
        for low in range(0, len(members), step):
            yield members[low : low + step]
