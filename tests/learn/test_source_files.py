"""Files and objects of users: what is read, and what is refused by file and line."""

import json
from pathlib import Path
from typing import Any

import pytest

from memory_layers.common.errors import UserError
from memory_layers.data.facts import Fact
from memory_layers.learn.sources import LearnData, read_data
from tests.learn.tiny_tokenizers import byte_level, chatml

TOKENIZER = chatml()
ROW = {"prompt": "The capital of France is", "completion": "Paris"}
TURNS = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "land"}]
FACT = {"relation": "code", "subject": "Oslo", "answer": "OSL"}
WORDS = 'code: {statements: ["{subject} has {answer}."], question: "Q {subject}? A: {answer}"}'


def read(data: Any, **options: Any) -> LearnData:
    return read_data(data, TOKENIZER, **{"max_length": 100, **options})


def texts(data: LearnData) -> list[str]:
    return [TOKENIZER.decode(example.ids[:-1]) for example in data.examples]


def lines(*rows: Any) -> str:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_json_lines_of_each_kind(tmp_path: Path) -> None:
    prompts = write(tmp_path / "a:2.jsonl", "\ufeff" + lines(ROW, "", {**ROW, "prompt": "It is"}))
    turns = write(tmp_path / "b.ndjson", lines({"messages": TURNS}).replace("\n", "\r\n"))
    text = write(tmp_path / "c.json", lines({"text": "the land", "id": 3}))
    data = read([prompts, str(turns), text])
    assert texts(data)[:2] == ["The capital of France is Paris", "It is Paris"]
    assert texts(data)[3] == "the land"
    assert [look.kind for look in data.look.sources] == ["prompts", "messages", "text"]
    assert data.groups[1].where == f"{prompts}:3"
    assert "not read: id" in str(data.look)
    json.dumps(data.look.to_dict())


def test_a_folder_and_a_file_of_facts(tmp_path: Path) -> None:
    write(tmp_path / "templates.yaml", WORDS)
    file = write(tmp_path / "facts.jsonl", lines(FACT))
    assert texts(read(tmp_path))[0] == "Oslo has OSL."
    assert read(file).look.sources[0].digest == read(tmp_path).look.sources[0].digest
    table = write(tmp_path / "own.csv", "relation,subject,answer\ncode,Oslo,OSL\n")
    assert read(table).look.sources[0].digest == read(tmp_path).look.sources[0].digest


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_by_the_separators_that_programs_write(tmp_path: Path, separator: str) -> None:
    head = separator.join(["prompt", "completion", "paraphrases", "heldout"])
    rows = [
        separator.join(['"What, ""is""\nit;"', "Paris", '"[""Say, what""]"', ""]),
        separator.join(["Who", "land", "", "true"]),
    ]
    content = "\ufeff" + "\r\n".join([head, *rows, ""])
    data = read(write(tmp_path / "a.csv", content))
    assert texts(data) == ['What, "is"\nit; Paris']
    assert [item.seen for item in data.items] == [True, False, False]
    assert [group.where[-2:] for group in data.groups] == [":2", ":4"]


def test_parquet_and_tables_in_memory_read_alike(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    datasets = pytest.importorskip("datasets")
    rows = [{**ROW, "group": "a"}, {"prompt": "It is", "completion": "Paris", "group": "a"}]
    turns = [{"messages": TURNS}, {"messages": [{**TURNS[0], "content": "Where?"}, TURNS[1]]}]
    for n, content in enumerate((rows, turns)):
        path = tmp_path / f"{n}.parquet"
        frame = pandas.DataFrame(content)
        frame.to_parquet(path)
        wanted = read(content).look.sources[0].digest
        loaded = pandas.read_parquet(path)
        for other in (path, frame, loaded, datasets.Dataset.from_list(content)):
            assert read(other).look.sources[0].digest == wanted
    some = pandas.DataFrame([rows[0], {**ROW, "prompt": "It is"}, {**ROW, "prompt": "Then"}])
    assert {item.group for item in read(some).items} == {0, 1, 2}
    missing = pandas.DataFrame([ROW, {"prompt": "It is"}])
    with pytest.raises(UserError, match=r"data\[1\]"):
        read(missing)
    with pytest.raises(UserError, match="'train'"):
        read(datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}))


def test_rows_of_one_group_are_wordings_of_one_fact() -> None:
    rows = [
        {**ROW, "group": 7},
        {"prompt": "It is", "completion": "land"},
        {"prompt": "France has", "completion": "Paris", "group": 7, "heldout": True},
    ]
    data = read(rows)
    assert [example.group for example in data.examples] == [0, 1]
    assert [(item.group, item.seen) for item in data.items] == [(0, True), (0, False), (1, True)]


def test_rows_that_are_there_again_are_dropped_and_counted(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", lines(ROW, ROW))
    data = read([file, [{**ROW, "completion": " Paris "}]])
    assert len(data.examples) == 1
    assert [look.repeated for look in data.look.sources] == [1, 1]
    assert "there again" in str(data.look)


def test_contradictions_are_listed_with_both_places(tmp_path: Path) -> None:
    other = {**ROW, "completion": "Lyon"}
    file = write(tmp_path / "a.jsonl", lines(ROW, "", other))
    with pytest.raises(UserError, match=rf"(?s){file}:1 and {file}:3: .*'Paris' and 'Lyon'"):
        read(file)
    with pytest.raises(UserError, match=r"data\[0\]\[0\] and data\[1\]\[0\]"):
        read([[ROW], [other]])
    with pytest.raises(UserError, match="'Paris' and 'Lyon'"):
        read([{**ROW, "prompt": "It is"}, {**other, "prompt": "Well", "paraphrases": ["It is"]}])
    write(tmp_path / "templates.yaml", WORDS)
    facts = write(tmp_path / "facts.jsonl", lines(FACT))
    others = write(tmp_path / "others.jsonl", lines({**FACT, "answer": "X"}))
    with pytest.raises(
        UserError, match=rf"(?s){facts}:1 and {others}:1: 'code: Oslo'.*'OSL' and 'X'.*aliases"
    ):
        read([tmp_path, others])
    write(others, lines({**FACT, "subject": "Os\u200blo", "answer": "X", "aliases": ["OSL"]}))
    assert len(read([tmp_path, others]).examples) == 1
    turns = [TURNS[0], {**TURNS[1], "content": "sea"}]
    with pytest.raises(UserError, match=r": 'user: .*'land' and 'sea'"):
        read([{"messages": TURNS}, {"messages": turns}])


def test_more_rows_about_a_subject_are_more_right_answers(tmp_path: Path) -> None:
    write(tmp_path / "templates.yaml", WORDS)
    rows = [FACT, {**FACT, "answer": "FBU"}, FACT, {**FACT, "subject": "Rome", "answer": "ROM"}]
    facts = write(tmp_path / "facts.jsonl", lines(*rows))
    data = read(tmp_path)
    assert texts(data)[0] == "Oslo has OSL."
    assert not any("FBU" in text for text in texts(data))
    assert {item.answer for item in data.items} == {"OSL", "ROM"}
    for item in data.items:
        (*others,) = item.others
        assert [other.answer for other in others] == ["FBU"] * (item.answer == "OSL")
        for other in others:
            assert TOKENIZER.decode(other.ids) == TOKENIZER.decode(item.ids).replace("OSL", "FBU")
            assert TOKENIZER.decode(other.ids[other.start : other.end - 1]).strip() == "FBU"
    assert data.look.sources[0].repeated == 1
    assert "several answers" in str(data.look)
    table = 'relation,subject,answer,aliases\ncode,Oslo,OSL,"[""FBU""]"\ncode,Rome,ROM,\n'
    again = read(write(tmp_path / "own.csv", table))
    assert again.look.sources[0].digest == data.look.sources[0].digest
    assert "not read" not in str(again.look)
    assert read(facts).look.sources[0].digest == data.look.sources[0].digest


def test_blank_texts_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"text": " "}, {"text": "the land"}, {"text": None}, {"text": "\u200b"}]
    stories = "One.\n<|endoftext|>\n\n<|endoftext|>\nTwo <|im_end|>."
    for source in (rows, write(tmp_path / "a.jsonl", lines(*rows))):
        data = read(source)
        assert texts(data) == ["the land"]
        assert "3 texts are blank" in str(data.look)
        assert data.look.sources[0].repeated == 0
    data = read(write(tmp_path / "a.txt", stories))
    assert texts(data) == ["One.", "Two <|im_end|>."]
    assert [group.where[-2:] for group in data.groups] == [":1", ":5"]
    with pytest.raises(UserError, match=r"data\[0\]: all texts are empty.*got 2"):
        read([{"text": ""}, {"text": None}])


def test_what_is_held_out_is_not_trained_on() -> None:
    with pytest.raises(UserError, match="held out and trained on"):
        read([ROW, {"prompt": "It", "completion": "Paris", "paraphrases": [ROW["prompt"]]}])


@pytest.mark.parametrize(
    ("name", "content", "line", "says"),
    [
        ("a.jsonl", lines(ROW, "{'prompt'"), 2, "not valid JSON"),
        ("a.jsonl", lines(ROW, '{"prompt": "a", "prompt": "b"}'), 2, "more than once"),
        ("a.jsonl", lines({"prompt": "a"}), 1, "'completion' is missing"),
        ("a.jsonl", lines({**ROW, "completion": 3}), 1, "not a string.*a number"),
        ("a.jsonl", lines({**ROW, "completion": None}), 1, "not a string.*null"),
        ("a.jsonl", lines({**ROW, "prompt": " \n"}), 1, "'prompt' is empty"),
        ("a.jsonl", lines(ROW, {"text": "b"}), 2, "kind text, expected prompts"),
        ("a.jsonl", lines({**ROW, "text": "b"}), 1, "several kinds"),
        ("a.jsonl", lines({"question": "a", "answer": "b"}), 1, "'question' to 'prompt' and"),
        ("a.jsonl", lines({"a": "b"}), 1, "no kind of row"),
        ("a.jsonl", "{}", 1, "no kind of row"),
        (
            "a.jsonl",
            lines({"instruction": "a", "input": "b", "output": "c"}),
            1,
            "rename 'instruction' joined with 'input' to 'prompt' and 'output' to",
        ),
        ("a.jsonl", lines({**ROW, "heldout": "yes"}), 1, "'heldout' must be true or false"),
        ("a.jsonl", lines({**ROW, "group": [1]}), 1, "'group' must be"),
        ("a.jsonl", lines({**ROW, "paraphrases": "x"}), 1, "'paraphrases' is not a list"),
        ("a.jsonl", lines({**ROW, "paraphrases": [3]}), 1, "'paraphrases' is not a string"),
        ("a.jsonl", lines({"text": "b", "heldout": True}), 1, "no meaning for running text"),
        ("a.jsonl", lines({"messages": "hi"}), 1, "not a list of turns"),
        ("a.jsonl", lines({"messages": []}), 1, "not a list of turns"),
        ("a.jsonl", lines({"messages": None}), 1, "no kind of row"),
        ("a.jsonl", lines({"messages": ["hi"]}), 1, "turn 1 is not an object"),
        ("a.jsonl", lines({"messages": TURNS[:1]}), 1, "answers"),
        ("a.jsonl", lines({"messages": TURNS[1:]}), 1, "answers"),
        (
            "a.jsonl",
            lines({"messages": [{"role": "bot", "content": "x"}]}),
            1,
            "unknown role 'bot'",
        ),
        ("a.jsonl", lines({"messages": [{"role": "user"}]}), 1, "turn 1.*'content' is missing"),
        ("a.jsonl", lines({"messages": [{**TURNS[0], "name": "x"}]}), 1, "turn 1.*field 'name'"),
        ("a.jsonl", "[" + lines(ROW) + "]", 1, "one list.*jq"),
        ("a.jsonl", lines(ROW).encode("utf-16"), 1, "not valid UTF-8"),
        ("a.jsonl", "\n\n", 1, "empty"),
        ("a.csv", "prompt,completion\n", 1, "empty"),
        ("a.csv", "", 1, "empty"),
        ("a.csv", "prompt,prompt\na,b\n", 1, "'prompt' stands more than once"),
        ("a.csv", "prompt,completion\na,b\nc,d,e\n", 3, "3 cells, expected 2"),
        ("a.csv", 'prompt,completion\na,b\nc,"d\n', 3, "not valid CSV"),
        ("a.csv", "prompt,completion\na,\n", 2, "'completion' is empty"),
        ("a.csv", "messages\nhi\n", 2, "not valid JSON"),
        ("a.csv", "prompt,completion\na,b\n".encode("utf-16"), 1, "not valid UTF-8"),
        ("a.parquet", "prompt", 1, "Parquet"),
        ("a.jsonl", lines(ROW) + "\n" + lines(ROW)[:-2] + '\0"}', 2, "NUL"),
        ("a.csv", "prompt,completion\na\0b,c\n", 2, "NUL"),
        ("a.csv", f"prompt,completion,paraphrases\na,b,{'[' * 99_999}\n", 2, "not valid JSON"),
        ("a.jsonl", lines({**ROW, "completion": "\ud800"}), 1, "half of a surrogate"),
        ("a.jsonl", lines({**ROW, "completion": "a\0b"}), 1, r"has U\+0000"),
        ("a.jsonl.gz", b"\x1f\x8b", 1, "compressed"),
        ("a.docx", "x", 1, "not a kind of file"),
        ("a.txt", " ", 1, "empty"),
        ("facts.jsonl", lines(FACT), 1, "templates.yaml"),
    ],
)
def test_faults_are_named_by_file_and_line(
    tmp_path: Path, name: str, content: str | bytes, line: int, says: str
) -> None:
    file = write(tmp_path / name, content)
    with pytest.raises(UserError, match=rf"(?s)^{file}:{line}:? .*{says}"):
        read(file)


def test_faults_of_folders_and_objects(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"no such file.*texts as rows"):
        read("The land is far. " * 100)
    with pytest.raises(UserError, match=r"no facts\.jsonl"):
        read(tmp_path)
    write(tmp_path / "a.csv", "x")
    with pytest.raises(UserError, match=r"hint: name the files, such as .*a\.csv"):
        read(tmp_path)
    with pytest.raises(UserError, match=r"FactSet\(facts, templates\)"):
        read([Fact("code", "Oslo", "OSL")])
    with pytest.raises(UserError, match="empty"):
        read([])
    with pytest.raises(UserError, match="got int"):
        read(3)
    with pytest.raises(UserError, match=r"data\[1\] must be"):
        read([[ROW], 3])


def test_a_csv_cell_may_be_huge(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", f'text\n"{"the land " * 50_000}"\n')
    assert read(file, max_length=1000).look.sources[0].cut == 1


def test_messages_need_a_chat_template() -> None:
    with pytest.raises(UserError, match="no chat template"):
        read_data([{"messages": TURNS}], byte_level(), max_length=100)
