"""Each field of a request is honoured, or refused by its name and never with a traceback."""

import asyncio
import json
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient
from tiny_served import CONTEXT, write_served

from memory_layers.evaluate.trained import load_trained
from memory_layers.integrations.serving import app, prompts, protocol, respond
from memory_layers.integrations.serving.app import Served, make_app
from memory_layers.integrations.serving.engine import Engine, Limits

LIMITS = Limits(batch=4, queue=8, cache_tokens=3000)
MESSAGES = [{"role": "user", "content": "The code"}]
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    model, tokenizer = load_trained(write_served(tmp_path_factory.mktemp("refusals")))
    engine = Engine(model, LIMITS)
    engine.start()
    # An error that is not answered is raised here.
    yield TestClient(make_app(engine, Served("tiny", tokenizer, CONTEXT, 2500)))
    engine.stop()


def refused(client: TestClient, path: str, body: bytes, **headers: str) -> tuple[int, dict]:
    headers = {"Content-Type": "application/json", **headers}
    answer = client.post(path, content=body, headers=headers)
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    return answer.status_code, error


BODIES = {
    "empty": b"",
    "not JSON": b"prompt=hello",
    "cut off": b'{"model": "tiny", "prompt": "a',
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "nan": b'{"model": "tiny", "prompt": "a", "temperature": NaN}',
    "infinity": b'{"model": "tiny", "prompt": "a", "temperature": -Infinity}',
    "beyond floats": b'{"model": "tiny", "prompt": "a", "temperature": 1e999}',
    "many digits": b'{"model": "tiny", "prompt": "a", "seed": ' + b"9" * 5000 + b"}",
    "a large integer": b'{"model": "tiny", "prompt": "a", "temperature": ' + b"9" * 400 + b"}",
    "a large token": b'{"model": "tiny", "prompt": [' + b"9" * 400 + b"]}",
    "a large bias": b'{"model": "tiny", "prompt": "a", "logit_bias": {"1": ' + b"9" * 400 + b"}}",
    "deep lists": b'{"model": "tiny", "prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "half a pair": rb'{"model": "tiny", "prompt": "\ud800"}',
    "half a pair as a name": rb'{"model": "tiny", "prompt": "a", "\udfff": 1}',
    "half a pair twice": rb'{"\ud800": 1, "\ud800": 1}',
    "not UTF-8": b'{"model": "tiny", "prompt": "\xff"}',
    "UTF-16": '{"model": "tiny", "prompt": "a"}'.encode("utf-16"),
    "a name twice": b'{"model": "tiny", "prompt": "a", "prompt": "b"}',
    "zeros": b"\0" * 100,
}


@pytest.mark.parametrize("body", BODIES.values(), ids=list(BODIES))
def test_a_body_that_is_no_request(client: TestClient, body: bytes) -> None:
    assert refused(client, TEXT, body)[0] == 400


# What is sent beside a model and a prompt, and the field that is named.
FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": [[1], "a"]}, "prompt"),
    ({"prompt": 1}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": {"text": "a"}}, "prompt"),
    ({"prompt": [True, False]}, "prompt"),
    ({"prompt": [1.5]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [300_000]}, "prompt"),
    ({"prompt": [[1], [2**70]]}, "prompt"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": 5.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 2501}, "max_tokens"),
    ({"max_tokens": 2**80}, "max_tokens"),
    ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "0"}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": 5}, "top_k"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": 9}, "n"),
    ({"n": 3, "prompt": ["a", "b", "c"]}, "n"),
    ({"best_of": 0}, "best_of"),
    ({"n": 2, "best_of": 1}, "best_of"),
    ({"best_of": 2, "stream": True}, "best_of"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": "a" * 257}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}},
     "stream_options.include_obfuscation"),
    ({"stream": True, "stream_options": []}, "stream_options"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"echo": 1}, "echo"),
    ({"seed": 2**63}, "seed"),
    ({"seed": "1"}, "seed"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -2.5}, "frequency_penalty"),
    ({"logit_bias": []}, "logit_bias"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"²": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"1": 1, "01": -1}}, "logit_bias"),
    ({"logit_bias": {"1": "1"}}, "logit_bias"),
    ({"logit_bias": {"300000": 1}}, "logit_bias"),
    ({"suffix": "b"}, "suffix"),
    ({"user": 1}, "user"),
    ({"messages": MESSAGES}, "messages"),
    ({"num_beams": 5}, "num_beams"),
    ({"num_beams": None}, "num_beams"),
    ({"generation_config": "{}"}, "generation_config"),
    ({"model": "other"}, "model"),
    ({"model": None}, "model"),
    ({"model": 1}, "model"),
    ({"model": ["tiny"]}, "model"),
]  # fmt: skip

CHAT_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": {}}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [None]}, "messages[0]"),
    ({"messages": [{}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
     "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": {"a": 1}}]}]}, "messages[0].content"),
    ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "tool", "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "hi", "name": "x"}]}, "messages[0].name"),
    ({"messages": [{"role": "assistant", "content": "a", "tool_calls": []}]},
     "messages[0].tool_calls"),
    ({"messages": [*MESSAGES, {"role": "system", "content": "late"}]}, "messages"),
    ({"prompt": "a"}, "prompt"),
    ({"tools": []}, "tools"),
    ({"functions": []}, "functions"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"response_format": {"type": "json_object"}}, "response_format.type"),
    ({"response_format": "text"}, "response_format"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"echo": True}, "echo"),
    ({"best_of": 2}, "best_of"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
    ({"max_completion_tokens": 2501}, "max_completion_tokens"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [(TEXT, *case) for case in FIELDS] + [(CHAT, *case) for case in CHAT_FIELDS],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_a_field_is_refused_by_its_name(
    client: TestClient, path: str, fields: dict[str, Any], named: str
) -> None:
    needed = {"prompt": "The code"} if path == TEXT else {"messages": MESSAGES}
    body = json.dumps({"model": "tiny", **needed, **fields}).encode()
    status, error = refused(client, path, body)
    assert status == (404 if fields.get("model") == "other" else 400)
    assert error["param"] == named
    assert f"`{named}" in error["message"] or named in ("model", "messages")


def test_what_is_too_long_is_told_with_its_numbers(client: TestClient) -> None:
    body = {"model": "tiny", "prompt": [5] * CONTEXT, "max_tokens": 6}
    status, error = refused(client, TEXT, json.dumps(body).encode())
    assert (status, error["code"]) == (400, "context_length_exceeded")
    assert f"{CONTEXT} tokens and `max_tokens` is 6" in error["message"]
    body["prompt"] = [5] * 2996
    assert (
        "3002 tokens, this server holds at most 3000"
        in (refused(client, TEXT, json.dumps(body).encode())[1]["message"])
    )
    # Without encoding all of it.
    body = {"model": "tiny", "prompt": "town " * 350_000}
    began = time.monotonic()
    status, error = refused(client, TEXT, json.dumps(body).encode())
    assert (status, error["code"]) == (400, "context_length_exceeded")
    assert "`prompt` has more than" in error["message"]
    assert "this server takes at most 3000" in error["message"]
    del body["prompt"]
    for content in ("town " * 350_000, "<|endoftext|>" * 120_000):
        body["messages"] = [{"role": "user", "content": content}]
        assert "at most 3000" in refused(client, CHAT, json.dumps(body).encode())[1]["message"]
    body["messages"] = [{"role": "user", "content": ""}] * 4000
    assert "at most 3000" in refused(client, CHAT, json.dumps(body).encode())[1]["message"]
    assert time.monotonic() - began < 5
    large = json.dumps({"model": "tiny", "prompt": "a" * 5_000_000}).encode()
    assert refused(client, TEXT, large)[0] == 413


MANY = {
    "messages": (CHAT, {"messages": [{}] * 300_000}, "messages[0].role"),
    "names of a message": (
        CHAT,
        {"messages": [{"role": "user", "content": "a", **{f"f{n}": 1 for n in range(100_000)}}]},
        "messages[0].f0",
    ),
    "names of a format": (
        CHAT,
        {"messages": MESSAGES, "response_format": {f"f{n}": 1 for n in range(100_000)}},
        "response_format.type",
    ),
    "names": (TEXT, {"prompt": "a", **{f"f{n}": 1 for n in range(100_000)}}, "f0"),
    "ids": (TEXT, {"prompt": [5] * 500_000}, None),
    "prompts": (TEXT, {"prompt": [[1]] * 300_000}, "n"),
    "half of the prompts": (TEXT, {"prompt": [1] * 300_000 + ["a"]}, "prompt"),
}


@pytest.mark.parametrize("case", MANY.values(), ids=list(MANY))
def test_many_faults_take_no_more_than_one(
    case: tuple[str, dict[str, Any], str | None], client: TestClient
) -> None:
    path, fields, named = case
    body = json.dumps({"model": "tiny", **fields}).encode()
    tracemalloc.start()
    try:
        assert refused(client, path, body)[1]["param"] == named
        # Python's objects for 2 MB of JSON come to some 30 MB.
        assert tracemalloc.get_traced_memory()[1] < 80 * 2**20
    finally:
        tracemalloc.stop()


def test_a_name_that_is_twice_among_many_is_told_soon(client: TestClient) -> None:
    body = "{" + ",\n".join(f'"f{n}": 1' for n in [*range(120_000), 119_999]) + "}"
    began = time.monotonic()
    error = refused(client, TEXT, body.encode())[1]
    assert time.monotonic() - began < 5
    assert "the body:120001: 'f119999' is already there, in line 120000" in error["message"]


def test_bodies_are_parsed_one_at_a_time_and_count_until_then(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most = [], []

    def slow(kind: Any, body: bytes) -> Any:
        running.append(kind)
        most.append(len(running))
        time.sleep(0.1)
        running.remove(kind)
        return protocol.parse(kind, body)

    monkeypatch.setattr(app, "parse", slow)
    monkeypatch.setattr(respond, "MOST_BYTES_HELD", 1000)
    body = {"model": "tiny", "prompt": "a" * 300, "max_tokens": 1}
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: client.post(TEXT, json=body).status_code, range(6)))
    assert set(most) == {1}
    assert set(answers) == {200, 503}


def test_a_body_needs_its_type(client: TestClient) -> None:
    body = b'{"model": "tiny", "prompt": "a"}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"):
        assert refused(client, TEXT, body, **{"Content-Type": kind})[0] == 415
    kind = "Application/JSON; charset=utf-8"
    assert client.post(TEXT, content=body, headers={"Content-Type": kind}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/load_model", 404), ("POST", "/reset", 404), ("GET", "/", 404),
        ("GET", "/docs", 404), ("GET", "/openapi.json", 404), ("POST", "/v1/responses", 404),
        ("GET", TEXT, 405), ("OPTIONS", TEXT, 405), ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/other", 404), ("GET", "/v1/models/a/b", 404), ("GET", "/v1/%ff", 404),
    ],
)  # fmt: skip
def test_no_other_routes(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_what_is_null_is_not_given(client: TestClient) -> None:
    names = ("max_tokens", "temperature", "stop", "seed", "logprobs", "logit_bias", "best_of")
    body = {"model": "tiny", "prompt": "The code", **dict.fromkeys(names)}
    answer = client.post(TEXT, json=body).json()
    assert answer["usage"]["completion_tokens"] <= 16


def test_bodies_that_do_not_arrive(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(respond, "MOST_SECONDS", 0.1)
    monkeypatch.setattr(respond, "MOST_BYTES_HELD", 1000)
    scope = {
        "type": "http", "method": "POST", "path": TEXT, "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json")], "http_version": "1.1",
    }  # fmt: skip

    async def answered(begin: bytes) -> int:
        parts = [{"type": "http.request", "body": begin, "more_body": True}]
        sent = []

        async def receive() -> dict[str, Any]:
            if not parts:
                await asyncio.sleep(60)
            return parts.pop()

        async def send(message: Any) -> None:
            sent.append(message)

        await client.app(scope, receive, send)
        return sent[0]["status"]

    async def together() -> list[int]:
        return await asyncio.gather(*(answered(b" " * 400) for _ in range(4)))

    assert sorted(asyncio.run(together())) == [408, 408, 503, 503]
    # What they held is given back.
    body = {"model": "tiny", "prompt": "a" * 600, "max_tokens": 1}
    assert client.post(TEXT, json=body).status_code == 200


def test_an_error_of_the_server_itself_is_told_as_one(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("a fault")

    monkeypatch.setattr(prompts.Encoder, "prompt", fail)
    outside = TestClient(client.app, raise_server_exceptions=False)
    answer = outside.post(TEXT, json={"model": "tiny", "prompt": "a"})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
