"""What of a text counts when a reply is compared with an answer: for facts, and as SQuAD has it."""

import re
import string
from unicodedata import decimal
from unicodedata import normalize as unicode_form

_SQUAD_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)

# Soft hyphens, marks of direction and variants of a glyph. The joiners of Indic and Persian words
# are not among them, nor is any combining mark.
_UNSEEN = re.compile(
    r"[\u00ad\u0640\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufe0e\ufe0f\ufeff]"
)
_SAME = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bc\u00b4", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033", '"'),
        **dict.fromkeys("\u00d7\u22c5", "x"),
        "\u2044": "/",
        "\u066b": ".",
        "\u066c": ",",
    }
)
# Scripts without spaces between words: Thai to Tibetan, Burmese, Khmer, kana, Han.
_UNSPACED = (
    r"[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u3400-\u9fff"
    r"\U00020000-\U0003ffff]"
)
_NUMBER = r"(?<![\w.])([+-]?\d+(?:[.,]\d+){0,16})"
_CURRENCY = r"[$\u00a2-\u00a5\u20a0-\u20cf]"
_QUOTES = r"[\"'`\u00ab\u00bb\u300c-\u300f]"
# As x is in x' and x!.
_NAME = r"(?<!\w)[^\W\d]"
_RAISED = "\u00b2\u00b3\u00b9\u2070-\u207f"
_STOPS = r"[.,;:?\u0964\u0965\u060c\u061b\u061f\u06d4\u3001\u3002]"

# Units with the prefixes that they are used with. Of units that only upper and lower case tell
# apart the first one here is also what any other case means: 5 gb is 5 GB, and not 5 Gb.
_SMALL, _LARGE = ("", *"kdcmnp\u03bc"), ("", *"kMGTPE")
_UNITS = (
    (("",), "h d min"),
    ((*_SMALL, *_LARGE[2:]), "Pa eV m g A V W Wh J N Hz \u03a9"),
    (_LARGE, "B b bit Bps bps t"),
    (_SMALL, "s l mol F H S T C K cd M"),
)


def _units() -> dict[str, str]:
    """Return for each symbol of a unit another one that stays itself in lower case."""
    alike: dict[str, list[str]] = {}
    for prefixes, units in _UNITS:
        for symbol in (prefix + unit for unit in units.split() for prefix in prefixes):
            alike.setdefault(symbol.lower(), []).append(symbol)
    named = {
        symbol: lower + "^" * place
        for lower, symbols in alike.items()
        for place, symbol in enumerate(symbols)
    }
    return named | {prefix + "L": named[prefix + "l"] for prefix in _SMALL}


_CASELESS = _units()
_SYMBOL = r"([^\W\d_]+)\^?(-?[1-9])?(?!\w)"


def _quantity(found: re.Match[str]) -> str:
    """Write a number and its unit in one way: 5km as 5 km, and 5 m/s^2 as 5 m/s2."""
    return f"{found[1]} " + re.sub(
        _SYMBOL,
        lambda part: _CASELESS[part[1]] + (part[2] or "") if part[1] in _CASELESS else part[0],
        found[2],
    )


# Before compatible letters become one, which would make 102 of ten squared. A charge is written as
# in Ca2+ by all who have no raised digits.
_EARLY = (
    (rf"(?<=\d)(?=[{_RAISED}])", "^"),
    (rf"(?<![{_RAISED}])(?<=[\w)])(?=[{_RAISED}]{{1,16}}(?<![\u207a\u207b])(?![{_RAISED}]))", "^"),
    (r"(?<=\d)(?=[\u2080-\u208e])", "_"),
    (r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])", " "),
    (r"(?<=\d)[\u00a0\u2009\u202f'\u2019](?=\d{3}(?!\d))", ""),
)
_RULES = (
    (r"\d", lambda digit: str(decimal(digit[0]))),
    (r"\s+", " "),
    # Quotes and brackets around words. Those inside a word stay, as in O'Brien, f(x) and 5'.
    (r"(?<!\w)([\"'`])(.*?)\1(?!\w)", r"\2"),
    (r"(?<!\S)\((?=[^\W\d_]{2})([^()]*)\)", r"\1"),
    (
        rf"(?<!\S){_QUOTES}+|(?!(?<={_NAME})['\"])(?<![\d\s])(?<!{_QUOTES}){_QUOTES}+(?=[.,]?(?!\S))",
        "",
    ),
    # D.C. is DC.
    (r"(?<!\w)(?:[^\W\d_]\.){2,16}(?!\w)", lambda found: found[0].replace(".", "")),
    # What ends a word. Inside one it stays, as in 3.14 and .NET; 5! is 120, and n! not n.
    (rf"(?:{_STOPS}|(?<!\d)(?<!{_NAME})!)+(?!\S)", ""),
    # Numbers: 1,000 is 1000, .5 is 0.5, and what stands beside them.
    (r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?!,?\d)", lambda found: found[0].replace(",", "")),
    (r"(?<![\w.])([+-]?)\.(?=\d)", r"\g<1>0."),
    (r"(?<=\d) ?[xX*] ?10\^(?=[+-]?\d)", "e"),
    (r"(?<=\d) ?(?:%|(?i:per ?cent)(?!\w))", "%"),
    (rf"{_NUMBER} ?({_CURRENCY})", r"\2\1"),
    (rf"({_CURRENCY}) (?=\d)", r"\1"),
    (rf"{_NUMBER} ?(?=\u00b0)", r"\1 "),
    (rf"{_NUMBER} ?({_SYMBOL}(?:/{_SYMBOL})*)", _quantity),
    (r"\u00b0 (?=\w)", "\u00b0"),
    (rf"(?<={_UNSPACED}) (?={_UNSPACED})", ""),
)
# A is a name where it is a capital, as in A minor.
_ARTICLES = re.compile(r"(?<!\S)(?:a|[Aa]n|AN|[Tt]he|THE) (?=\S)")


def normalize(text: str, *, articles: bool = True) -> str:
    """Return a text without what does not tell one fact from another.

    The same are upper and lower case, forms of a letter (Unicode NFKC), digits of all scripts,
    dashes, and white space of any kind and length. Quotes, brackets around words and punctuation at
    the end of a word go. Signs, decimal points, what is inside a word, accents and all combining
    marks stay, so 3.14 is not 314, -2 not +2, C++ not C, and Côte not Cote. 1,000 is 1000, ½ is
    1/2, 6×10⁷ is 6e7, 5km is 5 km, 5 % is 5 percent and 5 € is €5; other units and currencies are
    other facts, as are 5 MB and 5 Mb: the symbol of a unit after a number keeps its case. x² is not
    x2. Nothing is taken for the same that is only worth the same, as 2.5 and 2.50 are: 3.1 and 3.10
    are two versions.

    Args:
        text: Any text. One of which nothing would be left keeps all its signs.
        articles: Keep a, an and the. Else they go before a word, but for a capital A.
    """
    for pattern, replacement in _EARLY:
        text = re.sub(pattern, replacement, text)
    whole = left = unicode_form("NFKC", _UNSEEN.sub("", text)).translate(_SAME)
    for pattern, replacement in _RULES:
        left = re.sub(pattern, replacement, left.strip())
    if not articles:
        left = _ARTICLES.sub("", left)
    return unicode_form("NFKC", (left.strip() or whole.strip()).lower())


def normalize_squad(text: str) -> str:
    """Return a text in lower case without punctuation, articles and repeated spaces.

    The normalisation of Rajpurkar et al., arXiv 1606.05250, by which published numbers are made. It
    takes 3.14 for 314 and C++ for C.
    """
    return " ".join(_SQUAD_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def words(text: str) -> list[str]:
    """Return the words of a text as `normalize` has them, without articles.

    In scripts without spaces between words each letter is one.
    """
    return re.sub(rf"({_UNSPACED})", r" \1 ", normalize(text, articles=False)).split()
