"""The user format of facts, its errors, and the corpus that is built from facts."""

import gc
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from memory_layers.common.errors import UserError
from memory_layers.common.seeds import stable_hash
from memory_layers.data.builtin import builtin_facts
from memory_layers.data.fact_files import load_facts, save_facts
from memory_layers.data.facts import Fact, FactSet, RelationTemplates, build_corpus, probes_of

TEMPLATES = """\
capital:
  statements:
    - "The capital of {subject} is {answer}."
    - "{answer} is the capital of {subject}."
  question: "Q: What is the capital of {subject}? A: {answer}"
river:
  statements: ["{answer} flows through {subject}"]
  question: "River of {subject}: {answer}"
"""
FRANCE = '{"relation": "capital", "subject": "France", "answer": "Paris"}'


def write(folder: Path, facts: str | bytes = FRANCE, templates: str | bytes = TEMPLATES) -> Path:
    for name, content in (("facts.jsonl", facts), ("templates.yaml", templates)):
        raw = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(raw)
    return folder


def line_of(relation: object = "capital", subject: object = "France", answer: object = "x") -> str:
    return json.dumps({"relation": relation, "subject": subject, "answer": answer})


def with_aliases(aliases: object) -> str:
    return json.dumps({**json.loads(FRANCE), "aliases": aliases})


def many(count: int, relations: tuple[str, ...] = ("capital", "river")) -> FactSet:
    templates = {
        "capital": RelationTemplates(
            ("The capital of {subject} is {answer}.", "{answer}: capital of {subject}"),
            "Capital of {subject}? {answer}",
        ),
        "river": RelationTemplates(("{answer} flows through {subject}",), "{subject}? {answer}"),
    }
    facts = tuple(
        Fact(relation, f"land {i}", f"{relation} {i}")
        for relation in relations
        for i in range(count)
    )
    return FactSet(facts, templates)


def test_load_reads_facts_in_order(tmp_path: Path) -> None:
    lines = ["", FRANCE, "  ", line_of("river", " Ägypten ", "Nil\u2028x"), ""]
    facts = load_facts(write(tmp_path, "\r\n".join(lines)))
    assert facts.facts == (
        Fact("capital", "France", "Paris"),
        Fact("river", "Ägypten", "Nil\u2028x"),
    )
    assert set(facts.templates) == {"capital", "river"}
    assert facts.templates["capital"].statements[1] == "{answer} is the capital of {subject}."


def test_load_accepts_a_byte_order_mark(tmp_path: Path) -> None:
    bom = b"\xef\xbb\xbf"
    facts = load_facts(write(tmp_path, bom + FRANCE.encode(), bom + TEMPLATES.encode()))
    assert len(facts.facts) == 1


@pytest.mark.parametrize(
    ("facts", "line", "says"),
    [
        pytest.param(FRANCE + "\n\n{'relation'", 3, "not valid JSON", id="malformed"),
        pytest.param("[" * 100_000, 1, "not valid JSON", id="deep"),
        pytest.param('{"relation": ' + "1" * 5000 + "}", 1, "too large", id="huge number"),
        pytest.param("[1]", 1, "not an object.*a list", id="list"),
        pytest.param("null", 1, "not an object.*null", id="null"),
        pytest.param("{}", 1, "'relation' is missing.*empty object", id="no fields"),
        pytest.param('{"relation": "capital"}', 1, "'subject' is missing", id="missing"),
        pytest.param(line_of(subject=""), 1, "'subject' is empty", id="empty"),
        pytest.param(line_of(answer=" \t"), 1, "'answer' is empty", id="blank"),
        pytest.param(line_of(answer=7), 1, "'answer' is not a string.*a number '7'", id="number"),
        pytest.param(line_of(answer=None), 1, "'answer' is not a string.*null", id="null field"),
        pytest.param(line_of(answer=["a"]), 1, "'answer' is not a string.*a list", id="list field"),
        pytest.param(line_of(answer="\ud800"), 1, "'answer' has half of a surrogate", id="half"),
        pytest.param(line_of(subject="a\0b"), 1, "'subject' has U\\+0000.*hint", id="NUL"),
        pytest.param(
            '{"relation": "a", "relation": "b"}', 1, "'relation' stands more than once", id="twice"
        ),
        pytest.param(
            FRANCE[:-1] + ', "anser": "x"}', 1, "unknown field 'anser'.*remove", id="unknown field"
        ),
        pytest.param(
            FRANCE + "\n" + line_of("capitol"),
            2,
            "relation 'capitol' has no templates.*capital, river",
            id="unknown relation",
        ),
        pytest.param(line_of(subject="\u200b"), 1, "'subject' is empty", id="no width"),
        pytest.param(FRANCE.replace("Paris", "a\0b"), 1, "is NUL", id="NUL"),
        pytest.param(
            "{" + ", ".join(f'"{n % 30_000}": 1' for n in range(60_000)) + "}",
            1,
            "stands more than once",
            id="many fields",
        ),
        pytest.param(with_aliases("La Paz"), 1, "'aliases' is not a list", id="one alias"),
        pytest.param(with_aliases(["a", 1]), 1, "'aliases' is not a string", id="number as alias"),
        pytest.param(with_aliases([" "]), 1, "'aliases' is empty", id="blank alias"),
        pytest.param(
            FRANCE[:-1] + ', "alias": ["x"]}', 1, "'alias'.*mean 'aliases'", id="closest field"
        ),
        pytest.param(b"\n\xff\xfe{}", 2, "not valid UTF-8.*at byte 1", id="encoding"),
        pytest.param("", 1, "the file is empty", id="empty file"),
        pytest.param(" \n\n", 1, "the file is empty", id="blank file"),
    ],
)
def test_load_refuses_bad_facts(tmp_path: Path, facts: str | bytes, line: int, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        load_facts(write(tmp_path, facts))
    assert_form(caught.value, tmp_path / "facts.jsonl", line)


def statement(text: str) -> str:
    good = "{subject} {answer}"
    return f"capital:\n  question: '{good}'\n  statements:\n    - '{good}'\n    - {text}\n"


def question(text: str) -> str:
    return f"capital:\n  statements: ['{{subject}} {{answer}}']\n\n  question: {text}\n"


@pytest.mark.parametrize(
    ("templates", "line", "says"),
    [
        pytest.param(statement('"{subject} {anser}"'), 5, "placeholder '{anser}'", id="unknown"),
        pytest.param(statement('"{subject!r} {answer}"'), 5, "placeholder", id="conversion"),
        pytest.param(statement('"{} {subject} {answer}"'), 5, "placeholder '{}'", id="nameless"),
        pytest.param(statement('"{subject} {answer"'), 5, "stray brace", id="open brace"),
        pytest.param(
            statement('"{{subject}} {answer}"'),
            5,
            "lacks {subject}.*{subject} with single braces",
            id="double brace",
        ),
        pytest.param(
            statement("""'{"{subject}": "{answer}"}'"""),
            5,
            """stray brace.*'{{"{subject}": "{answer}"}}'""",
            id="JSON",
        ),
        pytest.param(
            statement("'{subject} \\frac{a}{answer}'"),
            5,
            "unknown placeholder '{a}'.*frac{{a}}{answer}",
            id="LaTeX",
        ),
        pytest.param(
            statement('"{subjct} {answer}"'), 5, "did you mean '{subject}'", id="closest name"
        ),
        pytest.param(statement('"\\ud800 {subject} {answer}"'), 5, "U\\+D800, exp", id="surrogate"),
        pytest.param(statement('"of {answer}"'), 5, "lacks {subject}", id="no subject"),
        pytest.param(statement('"of {subject}"'), 5, "lacks {answer}", id="no answer"),
        pytest.param(statement('"{subject} {answer} {answer}"'), 5, "more than once", id="twice"),
        pytest.param(statement("12"), 5, "a statement.*not a string.*int .12", id="number"),
        pytest.param(statement("[a]"), 5, "a statement.*not a string.*a list", id="list"),
        pytest.param(question('"{subject}? {answer}."'), 4, "does not end with", id="goes on"),
        pytest.param(question('"{answer}: {subject}"'), 4, "does not end with", id="answer first"),
        pytest.param(question('"{subject} {x} {answer}"'), 4, "placeholder '{x}'", id="question"),
        pytest.param(question(""), 4, "the question.*not a string.*nothing", id="no question text"),
        pytest.param(question("[a"), 5, "not valid YAML", id="syntax"),
        pytest.param(question("a\x07"), 4, "U\\+0007 is not allowed", id="control character"),
        pytest.param(
            "\ncapital:\n  question: '{subject}{answer}'", 2, "no `statements:`", id="half"
        ),
        pytest.param(
            "capital:\n  statements: ['{subject}{answer}']", 1, "no `question:`", id="other"
        ),
        pytest.param("capital:", 1, "'capital' has no templates", id="no templates"),
        pytest.param("capital: text", 1, "'capital' has no templates", id="text"),
        pytest.param(
            "capital:\n  question: x\n  statements: []", 3, "at least one template", id="empty list"
        ),
        pytest.param(
            "capital:\n  question: x\n  statements: x", 3, "at least one template", id="not a list"
        ),
        pytest.param(
            question("'{subject}{answer}'") + "  x: 1", 5, "entry 'x'", id="unknown entry"
        ),
        pytest.param(
            "capital:\n  question: x\n  statments: [x]",
            3,
            "did you mean 'statements'",
            id="misspelt",
        ),
        pytest.param("capital: {<<: {question: x}}", 1, "merge key. hint: write out", id="merge"),
        pytest.param(
            question("'{subject}{answer}'") * 2, 5, "already there, in line 1", id="again"
        ),
        pytest.param("true:\n  question: x", 1, "a name is not a string.*bool", id="boolean name"),
        pytest.param("[capital]", 1, "not a mapping", id="not a mapping"),
        pytest.param("a: &x\n  b: c\n---\nd: e", 3, "not valid YAML", id="two documents"),
        pytest.param("", 1, "the file is empty", id="empty"),
        pytest.param("# only a comment\n", 1, "the file is empty", id="comment"),
        pytest.param("{}", 1, "the file is empty", id="empty mapping"),
        pytest.param(b"a:\n  \xe4", 2, "not valid UTF-8", id="encoding"),
    ],
)
def test_load_refuses_bad_templates(
    tmp_path: Path, templates: str | bytes, line: int, says: str
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        load_facts(write(tmp_path, templates=templates))
    assert_form(caught.value, tmp_path / "templates.yaml", line)


@pytest.mark.parametrize("missing", ["facts.jsonl", "templates.yaml"])
def test_load_names_a_missing_file(tmp_path: Path, missing: str) -> None:
    (write(tmp_path) / missing).unlink()
    with pytest.raises(UserError, match="there is no such file") as caught:
        load_facts(tmp_path)
    assert_form(caught.value, tmp_path / missing, 1)


def test_load_names_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no such folder.*got nothing"):
        load_facts(tmp_path / "absent")
    with pytest.raises(UserError, match=r"there is no such folder.*got a file"):
        load_facts(write(tmp_path) / "facts.jsonl")


def assert_form(error: UserError, path: Path, line: int) -> None:
    message = str(error)
    assert message.startswith(f"{path}:{line}: ")
    assert re.search(r", expected .+, got .+\. hint: .+", message, re.DOTALL)


def test_save_then_load_is_the_same(tmp_path: Path) -> None:
    templates = {
        "no": RelationTemplates(('a "b": {subject} # {answer}',), "- {subject}\n: {answer}"),
        "ünknown: x": RelationTemplates(("{answer} ← {subject} 语",), "  {subject} {answer} "),
    }
    subjects = (
        '"quoted" \\ {answer}',
        "}{",
        "two\nlines",
        "sep\u2028\x85arate",
        "语言😀",
        "x: y # z",
    )
    facts = tuple(Fact(name, subject, subject[::-1]) for name in templates for subject in subjects)
    saved = FactSet(facts, templates)
    folder = tmp_path / "a" / "b"
    for _ in range(2):
        save_facts(saved, folder)
        assert load_facts(folder) == saved
    assert sorted(file.name for file in folder.iterdir()) == ["facts.jsonl", "templates.yaml"]


def test_save_that_fails_leaves_the_old_files(tmp_path: Path) -> None:
    old = many(3)
    save_facts(old, tmp_path)
    for bad in ("", " x"):
        with pytest.raises(ValueError, match="white space"):
            save_facts(FactSet((Fact("river", "a", bad),), old.templates), tmp_path)
    with pytest.raises(ValueError, match="empty fact set"):
        save_facts(FactSet((), old.templates), tmp_path)
    with pytest.raises(UnicodeEncodeError):
        save_facts(FactSet((Fact("river", "a", "\ud800"),), old.templates), tmp_path)
    assert load_facts(tmp_path) == old
    assert len(list(tmp_path.iterdir())) == 2


def test_fact_set_checks_itself() -> None:
    templates = many(1).templates
    with pytest.raises(ValueError, match=r"no templates for the relations \['x'\].*capital"):
        FactSet((Fact("x", "a", "b"),), templates)
    with pytest.raises(ValueError, match="two facts for subject 'a'"):
        FactSet((Fact("river", "a", "b"), Fact("river", "a", "c")), templates)
    with pytest.raises(ValueError, match="at least one statement"):
        RelationTemplates((), "{subject} {answer}")
    with pytest.raises(ValueError, match="does not end with"):
        RelationTemplates(("{subject} {answer}",), "{answer} {subject}")


@pytest.mark.parametrize(
    ("fraction", "count", "shown"), [(0.5, 10, 5), (0.3, 11, 3), (0.98, 50, 49)]
)
def test_split_is_exact_and_by_subject(fraction: float, count: int, shown: int) -> None:
    facts = many(count)
    corpus = build_corpus(facts, shown_fraction=fraction, seed=3)
    kinds: dict[str, set[str]] = {}
    for probe in corpus.probes:
        if probe.kind != "statement":
            kinds.setdefault(probe.subject, set()).add(probe.kind)
    assert len(kinds) == count
    # A subject with both kinds would be shown in one relation and held out in another.
    assert Counter(map(tuple, kinds.values())) == {
        ("question_shown",): shown,
        ("question_heldout",): count - shown,
    }


def test_split_does_not_follow_the_choice_of_subjects() -> None:
    relations = ["capital", "airport_iata"]
    corpus = build_corpus(builtin_facts(relations, max_subjects=200, seed=0), seed=0)
    shown = Counter(p.relation for p in corpus.probes if p.kind == "question_shown")
    assert shown.total() == 200
    assert min(shown[name] for name in relations) > 70


def test_documents_are_all_statements_and_the_shown_questions() -> None:
    facts = many(40)
    corpus = build_corpus(facts)
    documents = Counter(corpus.documents)
    expected = Counter()
    for fact in facts.facts:
        for template in facts.templates[fact.relation].statements:
            expected[template.format(subject=fact.subject, answer=fact.answer)] += 1
    questions = {kind: set() for kind in ("statement", "question_shown", "question_heldout")}
    for probe in corpus.probes:
        questions[probe.kind].add(probe.text)
    assert documents == expected + Counter(questions["question_shown"])
    assert questions["statement"] <= documents.keys()
    assert not questions["question_heldout"] & documents.keys()
    assert len(questions["question_heldout"]) == 40


def test_probe_spans_are_the_answers() -> None:
    facts = many(20)
    answers = {(fact.relation, fact.subject): fact.answer for fact in facts.facts}
    corpus = build_corpus(facts)
    for probe in corpus.probes:
        answer = answers[probe.relation, probe.subject]
        assert probe.text[probe.answer_start : probe.answer_end] == answer
        assert probe.subject in probe.text[: probe.answer_start]
    # "river" has no statement with the answer after the subject.
    assert Counter((p.kind == "statement", p.relation) for p in corpus.probes) == {
        (True, "capital"): 20,
        (False, "capital"): 20,
        (False, "river"): 20,
    }


def test_doubled_braces_are_text() -> None:
    wordings = (
        '{{"{subject}": "{answer}"}}',
        "\\frac{{{subject}}}{{2}} = {answer}}}",
        "}}{{{answer} of {subject}",
    )
    facts = (Fact("r", "{a}", "{{b}}"), Fact("r", "s", "}"))
    templates = {"r": RelationTemplates(wordings, "{{}} {subject}? {answer}")}
    corpus = build_corpus(FactSet(facts, templates))
    assert {'{"{a}": "{{b}}"}', "\\frac{{a}}{2} = {{b}}}", "}{{{b}} of {a}"} < set(corpus.documents)
    for text, (start, end) in zip(corpus.documents, corpus.answers, strict=True):
        assert text[start:end] in ("{{b}}", "}")
    assert {p.text for p in corpus.probes if p.subject == "s"} > {"{} s? }"}


def test_white_space_behind_a_wording_is_that_of_its_block(tmp_path: Path) -> None:
    blocks = """\
capital:
  statements:
    - |
      In {subject}
      they say {answer}.
    - "{subject}: {answer}  "
  question: |
    Q: What is the capital of {subject}?
    A: {answer}
  heldout:
    - >
      {subject}, governed from
      {answer}

"""
    facts = load_facts(write(tmp_path, templates=blocks))
    assert facts.templates["capital"] == RelationTemplates(
        ("In {subject}\nthey say {answer}.", "{subject}: {answer}"),
        "Q: What is the capital of {subject}?\nA: {answer}",
        ("{subject}, governed from {answer}",),
    )
    asked = [probe for probe in probes_of(facts) if probe.kind != "statement"]
    assert all(probe.answer_end == len(probe.text) for probe in asked)
    save_facts(facts, tmp_path / "saved")
    assert load_facts(tmp_path / "saved") == facts


def test_rows_about_one_subject_are_one_fact(tmp_path: Path) -> None:
    rows = [
        FRANCE,
        line_of(subject="Bolivia", answer="Sucre")[:-1] + ', "aliases": ["La Paz", "Sucre"]}',
        FRANCE,
        line_of("river", "France", "Seine"),
        line_of("river", "France", "Loire"),
        line_of("river", "France", "Seine"),
        line_of(subject="Bolivia", answer="La Paz"),
        line_of("river", "France", "Rhône"),
    ]
    facts = load_facts(write(tmp_path, "\n".join(rows)))
    assert facts.facts == (
        Fact("capital", "France", "Paris"),
        Fact("capital", "Bolivia", "Sucre", ("La Paz",)),
        Fact("river", "France", "Seine", ("Loire", "Rhône")),
    )
    again, several = facts.notes
    assert re.search(r"facts\.jsonl: .*there again.*: 3, such as lines 1 and 3$", again)
    assert re.search(r"several answers.*: 1, such as lines 4 and 5: 'river: France'$", several)
    # The first answer is what is stated, and all of them count.
    corpus = build_corpus(FactSet((*facts.facts, Fact("river", "b", "c")), facts.templates))
    assert not any(name in text for text in corpus.documents for name in ("La Paz", "Loire"))
    for probe in (*corpus.probes, *probes_of(facts)):
        if (probe.relation, probe.subject) == ("river", "France"):
            assert probe.answers == ("Seine", "Loire", "Rhône")
            assert probe.with_answer("Loire").text == probe.text.replace("Seine", "Loire")
    save_facts(facts, tmp_path / "saved")
    assert load_facts(tmp_path / "saved") == facts


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Pérou", "Pe\u0301rou"),
        ("New York", "New\u00a0York"),
        ("New York", "New\u2009 York"),
        ("Oslo", "Os\u200blo"),
        ("Oslo", "\ufeffOslo\u2060"),
    ],
)
def test_subjects_that_look_alike_are_one_and_told(tmp_path: Path, one: str, other: str) -> None:
    rows = [FRANCE, line_of(subject=one, answer="a"), line_of(subject=other, answer="b")]
    facts = load_facts(write(tmp_path, "\n".join(rows)))
    assert facts.facts[1:] == (Fact("capital", one, "a", ("b",)),)
    (note,) = [note for note in facts.notes if "look alike" in note]
    # Both would look alike in the note as well.
    assert f"lines 2 and 3: {one!a} and {other!a}" in note


def test_subjects_that_differ_in_case_are_two_and_told(tmp_path: Path) -> None:
    rows = [line_of(subject="CO"), FRANCE, line_of(subject="Co")]
    facts = load_facts(write(tmp_path, "\n".join(rows)))
    assert [fact.subject for fact in facts.facts] == ["CO", "France", "Co"]
    (note,) = facts.notes
    assert "case" in note
    assert "lines 1 and 3: 'CO' and 'Co'" in note


def test_names_of_relations_that_look_alike_are_one(tmp_path: Path) -> None:
    templates = TEMPLATES.replace("capital", "préfecture")
    facts = load_facts(write(tmp_path, line_of("pre\u0301fecture"), templates))
    assert facts.facts[0].relation == "préfecture"


def test_braces_and_repeats_in_values_do_no_harm() -> None:
    templates = {
        "r": RelationTemplates(("{subject}, {subject}: {answer}!",), "{subject}? {answer}")
    }
    subjects = ("{answer}", "{subject}", "{0}", "}{", "%s", "\\1", "same")
    facts = tuple(Fact("r", subject, "same") for subject in subjects)
    corpus = build_corpus(FactSet(facts, templates))
    for probe in corpus.probes:
        form = "{0}? same" if probe.kind != "statement" else "{0}, {0}: same!"
        assert probe.text == form.replace("{0}", probe.subject)
        assert probe.text[probe.answer_start : probe.answer_end] == "same"
        assert probe.answer_start > probe.text.rindex(probe.subject, 0, probe.answer_start)


def test_statement_probes_use_every_fitting_template() -> None:
    templates = {
        "r": RelationTemplates(
            ("1 {subject} {answer}", "2 {answer} {subject}", "3 {subject} {answer} end"),
            "{subject} {answer}",
        )
    }
    facts = FactSet(tuple(Fact("r", f"s{i}", "a") for i in range(100)), templates)
    used = Counter(p.text[0] for p in build_corpus(facts).probes if p.kind == "statement")
    assert used.keys() == {"1", "3"}
    assert min(used.values()) > 25


def test_corpus_depends_on_the_seed_only() -> None:
    facts = many(30)
    assert build_corpus(facts, seed=1) == build_corpus(facts, seed=1)
    assert build_corpus(facts, seed=1) != build_corpus(facts, seed=2)
    backwards = FactSet(facts.facts[::-1], facts.templates)
    assert set(build_corpus(backwards).probes) == set(build_corpus(facts).probes)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(enabled: bool) -> None:
    assert gc.isenabled()
    try:
        if not enabled:
            gc.disable()
        build_corpus(many(4))
        assert gc.isenabled() == enabled
        with pytest.raises(ValueError, match="between 0 and 1"):
            build_corpus(many(4), shown_fraction=2)
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_stable_hash_never_changes() -> None:
    assert stable_hash(0, "a", "bc") != stable_hash(0, "ab", "c")
    assert stable_hash(5, "é").hex() == "aef0f20e0f82d636"


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5, float("nan")])
def test_shown_fraction_must_be_a_fraction(fraction: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        build_corpus(many(4), shown_fraction=fraction)


@pytest.mark.parametrize(
    ("count", "fraction", "says"),
    [
        (4, 0.01, "4 distinct subjects leaves no shown subject"),
        (4, 0.99, "4 distinct subjects leaves no held-out subject"),
        (1, 0.6, "1 distinct subjects leaves no held-out subject"),
        (0, 0.5, "0 distinct subjects leaves no shown subject"),
    ],
)
def test_both_sides_of_the_split_need_a_subject(count: int, fraction: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build_corpus(many(count), shown_fraction=fraction)


@pytest.mark.parametrize("seed", [0, 1])
def test_exposures_are_the_number_of_statements(seed: int) -> None:
    facts = many(200, ("capital",))
    corpus = build_corpus(facts, exposures=(1, 1, 2, 5, 0), seed=seed)
    stated = Counter(
        document for document in corpus.documents if not document.startswith("Capital of")
    )
    probes = {probe.subject: probe for probe in corpus.probes if probe.kind != "statement"}
    for fact in facts.facts:
        wordings = (f"The capital of {fact.subject} is {fact.answer}.",
                    f"{fact.answer}: capital of {fact.subject}")  # fmt: skip
        counts = sorted(stated[wording] for wording in wordings)
        exposures = probes[fact.subject].exposures
        # Every wording before one repeats.
        assert counts == {0: [0, 0], 1: [0, 1], 2: [1, 1], 5: [2, 3]}[exposures]
        # Questions of shown subjects as often as a wording, rounded up.
        probe = probes[fact.subject]
        asked = corpus.documents.count(probe.text)
        shown = probe.kind == "question_shown"
        assert asked == (-(-exposures // 2) if shown else 0)
    for kind in ("question_shown", "question_heldout"):
        given = Counter(p.exposures for p in probes.values() if p.kind == kind)
        assert given == {0: 20, 1: 40, 2: 20, 5: 20}


def test_subjects_of_each_kind_share_the_exposures_evenly() -> None:
    facts = many(160, ("capital",))
    templates = {"capital": facts.templates["capital"], "river": many(1).templates["river"]}
    rivers = [replace(fact, relation="river") for fact in facts.facts[:80]]
    corpus = build_corpus(FactSet((*facts.facts, *rivers), templates), exposures=(0, 1, 4, 16))
    given = Counter(
        (probe.relation, probe.kind, probe.exposures)
        for probe in corpus.probes if probe.kind != "statement"
    )  # fmt: skip
    assert len(given) == 16
    assert all(abs(n - (10 if key[0] == "river" else 20)) <= 2 for key, n in given.items())


def test_a_fact_that_is_stated_never_is_in_no_document_and_asked_all_the_same() -> None:
    corpus = build_corpus(many(40, ("capital",)), exposures=(0, 3))
    read = "\n".join(corpus.documents)
    never = {probe.subject for probe in corpus.probes if not probe.exposures}
    assert len(never) == 20
    assert not [subject for subject in never if f"{subject} " in read or f"{subject}." in read]
    kinds = Counter(probe.kind for probe in corpus.probes if probe.subject in never)
    assert kinds["question_shown"] + kinds["question_heldout"] == 20
    assert kinds["statement"] == 20


def test_statement_probes_are_in_the_documents() -> None:
    corpus = build_corpus(many(200), exposures=(1, 2))
    documents = set(corpus.documents)
    probed = [probe for probe in corpus.probes if probe.kind == "statement"]
    assert all(probe.text in documents for probe in probed)
    # Facts that are stated only with the answer first cannot be probed so.
    assert 80 <= sum(probe.relation == "capital" for probe in probed) < 200


def test_without_exposures_each_wording_counts() -> None:
    assert {probe.exposures for probe in build_corpus(many(9, ("capital",))).probes} == {2}


def test_a_model_that_was_taught_elsewhere_is_asked_all_kinds_of_wordings() -> None:
    templates = RelationTemplates(
        ("{subject} has {answer}.", "{answer} is of {subject}."),
        "Q: What has {subject}? A: {answer}",
        ("Of {subject} we say {answer}.",),
    )
    facts = FactSet((Fact("code", "Oslo", "OSL"),), {"code": templates})
    asked = {(p.kind, p.text, p.text[p.answer_start : p.answer_end]) for p in probes_of(facts)}
    assert asked == {
        ("statement", "Oslo has OSL.", "OSL"),
        ("question", "Q: What has Oslo? A: OSL", "OSL"),
        ("heldout", "Of Oslo we say OSL.", "OSL"),
    }
