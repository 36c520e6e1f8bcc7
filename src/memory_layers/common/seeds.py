"""Seeds and hashes that depend on their arguments alone, not on the process or the platform."""

import hashlib


def stable_hash(seed: int, *parts: str) -> bytes:
    """Return eight bytes that depend on a seed and some texts."""
    # The lengths keep ("a", "bc") and ("ab", "c") apart.
    text = "".join(f"{len(part)}:{part}" for part in (str(seed), *parts))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def stable_number(seed: int, *parts: str) -> int:
    """Return stable_hash as a whole number of 64 bits."""
    return int.from_bytes(stable_hash(seed, *parts))


def mixed(*numbers: int) -> int:
    """Spread small numbers over 63 bits, each change over about half of them (splitmix64)."""
    bits = 0
    for number in numbers:
        bits = (bits + number + 0x9E3779B97F4A7C15) % 2**64
        bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % 2**64
        bits ^= bits >> 31
    return bits >> 1
