"""What the server generates: the text of the model alone, whatever else is asked at a time."""

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from tiny_served import CONTEXT, write_served
from transformers import Mamba2Config, Mamba2ForCausalLM, RwkvConfig, RwkvForCausalLM

from memory_layers.common.errors import UserError
from memory_layers.evaluate.trained import load_trained
from memory_layers.integrations.serving import caches, engine, group
from memory_layers.integrations.serving.app import Served, make_app
from memory_layers.integrations.serving.engine import Engine, Limits
from memory_layers.integrations.serving.errors import RequestError
from memory_layers.integrations.serving.row import Row
from memory_layers.integrations.serving.sampling import Sampling, choose
from memory_layers.integrations.serving.tokens import Tokens

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPTS = [
    "The code of town 3 is", "The", "The code of town 31 is 12 and that of town 7", "town " * 40,
    "a b c d e f g", "é", "code",
]  # fmt: skip


class Tiny:
    """A model, its server in this process, and what it generates alone."""

    def __init__(self, model: Any, tokenizer: Any, limits: Limits) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.engine = Engine(model, limits)
        self.app = make_app(self.engine, Served("tiny", tokenizer, CONTEXT, CONTEXT))
        self.client = TestClient(self.app)

    def post(self, path: str = TEXT, **fields: Any) -> dict[str, Any]:
        answer = self.client.post(path, json={"model": "tiny", "temperature": 0, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def texts(self, **fields: Any) -> list[str]:
        return [choice["text"] for choice in self.post(**fields)["choices"]]

    def events(self, path: str = TEXT, **fields: Any) -> list[dict[str, Any]]:
        body = {"model": "tiny", "temperature": 0, "stream": True, **fields}
        lines = self.client.post(path, json=body).text.splitlines()
        *events, end = [line.removeprefix("data: ") for line in lines if line]
        assert end == "[DONE]"
        return [json.loads(event) for event in events]

    def alone(self, prompt: str, count: int) -> str:
        ids = self.tokenizer(prompt, return_tensors="pt").input_ids
        made = self.model.generate(ids, max_new_tokens=count, do_sample=False)[0, ids.shape[1] :]
        return self.tokenizer.decode(made, skip_special_tokens=True)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Tiny]]:
    started: list[Tiny] = []

    def begin(name: str = "llama", limits: Limits | None = None, **changes: Any) -> Tiny:
        folder = write_served(tmp_path_factory.mktemp("tiny"), name, **changes)
        tiny = Tiny(*load_trained(folder), limits or Limits(batch=8, queue=64, cache_tokens=9000))
        started.append(tiny)
        tiny.engine.start()
        return tiny

    yield begin
    for tiny in started:
        tiny.engine.stop()


@pytest.fixture(scope="module")
def tiny(start: Callable[..., Tiny]) -> Tiny:
    return start()


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "gpt2", "gpt_neox"])
def test_a_batch_has_the_texts_of_each_prompt_alone(name: str, start: Callable[..., Tiny]) -> None:
    """With padding, rows that leave and rows that join, and windows that texts go beyond."""
    windows = {"sliding_window": 9} if name.startswith(("gemma", "mistral")) else {}
    tiny = start(name, **windows)
    asked = [(PROMPTS[:4], 4), (PROMPTS[3:], 20), (PROMPTS[:2], 12)]
    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(lambda one: tiny.texts(prompt=one[0], max_tokens=one[1]), asked))
    for (prompts, most), texts in zip(asked, found, strict=True):
        assert texts == [tiny.alone(prompt, most) for prompt in prompts]


def test_texts_of_a_prompt_read_in_parts(tiny: Tiny) -> None:
    prompts = ["town " * 700, "The code of town 3 is", "town 7 " * 900]
    assert tiny.texts(prompt=prompts, max_tokens=8) == [tiny.alone(one, 8) for one in prompts]


def test_prompts_as_token_ids(tiny: Tiny) -> None:
    ids = [tiny.tokenizer(prompt).input_ids for prompt in PROMPTS]
    assert tiny.texts(prompt=ids) == tiny.texts(prompt=PROMPTS)
    assert tiny.texts(prompt=ids[0]) == tiny.texts(prompt=PROMPTS[0])
    whole = tiny.post(prompt=ids[:2], echo=True, n=2, max_tokens=2)
    assert [one["text"][:12] for one in whole["choices"]] == [PROMPTS[0][:12]] * 2 + [
        one["text"] for one in whole["choices"][2:]
    ]
    assert whole["usage"]["prompt_tokens"] == len(ids[0]) + len(ids[1])
    assert whole["usage"]["completion_tokens"] == 8


def test_a_stop_string_ends_a_text_and_is_not_in_it(tiny: Tiny) -> None:
    text = tiny.alone(PROMPTS[0], 30)
    # Across tokens, and not at the first place where its first letter is.
    for begin, end in ((3, 6), (5, 9), (1, 2), (8, 14)):
        stop = text[begin:end]
        cut = text[: text.index(stop)]
        for stops in (stop, ["nowhere", stop], [stop, text[begin + 1 : end + 4]]):
            (choice,) = tiny.post(prompt=PROMPTS[0], max_tokens=30, stop=stops)["choices"]
            assert (choice["text"], choice["finish_reason"]) == (cut, "stop")
            parts = [
                event["choices"][0]
                for event in tiny.events(prompt=PROMPTS[0], max_tokens=30, stop=stops)
            ]
            assert "".join(part["text"] for part in parts) == cut
            assert parts[-1]["finish_reason"] == "stop"
    # The start of a stop string that does not come is not lost.
    (choice,) = tiny.post(prompt=PROMPTS[0], max_tokens=30, stop=f"{text[-3:]}!")["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text, "length")


def test_the_end_of_a_text_is_not_in_it(tiny: Tiny) -> None:
    end = tiny.tokenizer.eos_token_id
    fields = {"prompt": PROMPTS[0], "logit_bias": {str(end): 100}, "logprobs": 0}
    answer = tiny.post(**fields)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")
    assert choice["logprobs"]["tokens"] == ["<|endoftext|>"]
    assert answer["usage"]["completion_tokens"] == 1


def test_what_users_write_is_text(tiny: Tiny) -> None:
    def chat_tokens(content: str) -> int:
        messages = [{"role": "user", "content": content}]
        return tiny.post(CHAT, messages=messages, max_tokens=1)["usage"]["prompt_tokens"]

    mark = "<|endoftext|>"
    letters = len(tiny.tokenizer(mark, split_special_tokens=True).input_ids)
    assert letters > 5
    assert tiny.post(prompt=mark, max_tokens=1)["usage"]["prompt_tokens"] == letters
    assert chat_tokens(f"a{mark}") - chat_tokens("a") == letters
    shown = f"{mark}user hi{mark}assistant "
    assert chat_tokens("hi") == len(tiny.tokenizer(shown).input_ids)
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    assert chat_tokens(parts) == chat_tokens("hi")
    assert tiny.texts(prompt=mark, echo=True, max_tokens=1)[0].startswith(mark)


def test_logprobs_are_those_of_the_model(tiny: Tiny) -> None:
    text = "The code of town 3 is 111. é"
    ids = tiny.tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        exact = tiny.model(ids).logits[0].log_softmax(-1)
    asked = {"prompt": text, "echo": True, "logprobs": 3, "max_tokens": 0, "temperature": 1.5}
    (choice,) = tiny.post(**asked)["choices"]
    found = choice["logprobs"]
    assert choice["text"] == text
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    for place, (token, logprob) in enumerate(
        zip(ids[0, 1:].tolist(), found["token_logprobs"][1:], strict=True)
    ):
        assert logprob == pytest.approx(float(exact[place, token]), abs=1e-4)
        best = sorted(found["top_logprobs"][place + 1].values())[-3:]
        assert best == pytest.approx(exact[place].topk(3).values.flip(0).tolist(), abs=1e-4)
    for token, place in zip(found["tokens"], found["text_offset"], strict=True):
        assert token.startswith("bytes:") or text[place:].startswith(token)
    # In a stream, and of the tokens that are generated, the same.
    asked = {"prompt": text, "echo": True, "logprobs": 1, "max_tokens": 9}
    (whole,) = tiny.post(**asked)["choices"]
    parts = [event["choices"][0] for event in tiny.events(**asked)]
    for name, items in whole["logprobs"].items():
        assert [item for part in parts for item in part["logprobs"][name]] == items
    assert len(whole["logprobs"]["tokens"]) == ids.shape[1] + 9
    messages = [{"role": "user", "content": "hi"}]
    chat = {"messages": messages, "logprobs": True, "top_logprobs": 2, "max_tokens": 4}
    (choice,) = tiny.post(CHAT, **chat)["choices"]
    content = choice["logprobs"]["content"]
    assert (
        b"".join(bytes(one["bytes"]) for one in content).decode("utf-8", "replace")
        == (choice["message"]["content"])
    )
    assert all(one["top_logprobs"][0]["logprob"] == one["logprob"] for one in content)


def test_a_prompt_that_is_read_whole_is_scored_in_parts(
    start: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with recurrent states.
    monkeypatch.setattr(engine, "can_batch", lambda _: False)
    monkeypatch.setattr(group, "STEP_LOGITS", 2100)
    tiny = start()
    ids = tiny.tokenizer("town " * 30, return_tensors="pt").input_ids
    with torch.no_grad():
        exact = tiny.model(ids).logits[0].log_softmax(-1)
    sizes: list[int] = []
    head = tiny.model.get_output_embeddings()
    head.register_forward_hook(lambda *seen: sizes.append(seen[2].numel()))
    asked = {"prompt": ids[0].tolist(), "echo": True, "logprobs": 0, "max_tokens": 2}
    (choice,) = tiny.post(**asked)["choices"]
    found = choice["logprobs"]["token_logprobs"][1 : ids.shape[1]]
    expected = exact[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist()
    assert found == pytest.approx(expected, abs=1e-3)
    assert max(sizes) <= 2100
    assert tiny.texts(prompt="town " * 30, max_tokens=4) == [tiny.alone("town " * 30, 4)]


def test_recurrent_models_have_the_texts_that_they_have_alone(tiny: Tiny) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tiny.tokenizer), "hidden_size": 32, "num_hidden_layers": 2}
    recurrent = Mamba2ForCausalLM(
        Mamba2Config(**sizes, state_size=4, num_heads=8, head_dim=8, n_groups=1, eos_token_id=0)
    )
    served = Tiny(recurrent.eval(), tiny.tokenizer, Limits())
    served.engine.start()
    expected = [served.alone(prompt, 9) for prompt in PROMPTS]
    assert served.texts(prompt=PROMPTS, max_tokens=9) == expected
    served.engine.stop()
    rwkv = RwkvForCausalLM(RwkvConfig(**sizes, attention_hidden_size=32))
    with pytest.raises(UserError, match="rwkv models cannot be served"):
        Engine(rwkv, Limits())


def test_of_tokens_of_one_name_the_likelier_is_shown(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokens, "name", lambda *_: "same")
    (choice,) = tiny.post(prompt=PROMPTS[0], echo=True, logprobs=1, max_tokens=0)["choices"]
    found = choice["logprobs"]
    best = [top["same"] for top in found["top_logprobs"][1:]]
    own = found["token_logprobs"][1:]
    assert all(high >= low for high, low in zip(best, own, strict=True))
    assert best != own


def test_a_seed_has_the_same_text_whatever_is_asked_beside_it(tiny: Tiny) -> None:
    fields = {"max_tokens": 20, "temperature": 1.0, "seed": 7}
    three = {"prompt": PROMPTS[0], "n": 3}
    (alone,) = tiny.texts(prompt=PROMPTS[0], **fields)
    assert tiny.texts(prompt=PROMPTS, **fields)[0] == alone
    assert tiny.texts(prompt=PROMPTS[0], n=3, **fields)[0] == alone
    assert alone not in tiny.texts(prompt=PROMPTS[0], n=3, **fields)[1:]
    assert tiny.texts(prompt=PROMPTS[0], **{**fields, "seed": 8}) != [alone]
    # None is that of another seed, or of another sample of one.
    many = [
        text for seed in (-1, 0, 1, 2) for text in tiny.texts(**{**fields, "seed": seed}, **three)
    ]
    assert len({*many}) == len(many)
    # Without a seed, another text each time.
    del fields["seed"]
    assert len({*tiny.texts(prompt=PROMPTS[0], n=4, **fields)}) == 4


def test_what_is_drawn_follows_temperature_and_top_p(tiny: Tiny) -> None:
    """Shares of 512 draws, against those of the model."""
    ids = tiny.tokenizer("The", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = tiny.model(ids).logits[0, -1]
    likeliest = int(logits.argmax())

    def share(**fields: Any) -> float:
        answers = [
            tiny.post(prompt="The", max_tokens=1, n=64, seed=64 * n, logprobs=0, **fields)
            for n in range(8)
        ]
        name = tiny.post(prompt="The", max_tokens=1, logprobs=0)["choices"][0]["logprobs"]["tokens"]
        made = [one["logprobs"]["tokens"] for answer in answers for one in answer["choices"]]
        return sum(one == name for one in made) / len(made)

    # Enough that the likeliest token is drawn about every other time.
    bias = float(torch.logsumexp(logits, 0) - logits[likeliest])
    biased = {"logit_bias": {str(likeliest): bias}}
    changed = logits.clone()
    changed[likeliest] += bias
    for temperature in (1.0, 2.0, 0.5):
        expected = float((changed / temperature).softmax(-1)[likeliest])
        assert share(temperature=temperature, **biased) == pytest.approx(expected, abs=0.1)
    assert share(temperature=1.0, top_p=0.3, **biased) == 1.0
    assert share(temperature=1.0, top_p=0.0) == 1.0


@pytest.mark.parametrize(("spread", "top_p"), [(0.1, 0.9), (4.0, 0.9), (4.0, 0.5), (4.0, 1.0)])
def test_a_large_vocabulary_is_drawn_from_without_being_sorted(
    spread: float, top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens are those of a sort, which is made where the likeliest ones do not suffice."""
    logits = spread * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    # Many are alike, as in bf16.
    logits = logits.bfloat16().float()
    chances, tokens = logits.double().softmax(-1).sort(descending=True, stable=True)
    count = int((chances.cumsum(-1) < top_p).sum()) + 1
    allowed = set(tokens[:count].tolist())
    sizes, sort = [], torch.Tensor.sort
    monkeypatch.setattr(
        torch.Tensor, "sort", lambda self, *a, **k: sizes.append(len(self)) or sort(self, *a, **k)
    )
    sampling, source = Sampling(temperature=1.0, top_p=top_p), random.Random(0)
    drawn = [choose(logits, sampling, Counter(), source) for _ in range(400)]
    assert set(drawn) <= allowed
    assert max(sizes, default=0) <= 1024 or spread == 0.1
    share = sum(one in tokens[: count // 3].tolist() for one in drawn) / 400
    expected = float(chances[: count // 3].sum() / chances[:count].sum())
    assert share == pytest.approx(expected, abs=0.1)


def test_penalties_count_what_was_generated(tiny: Tiny) -> None:
    token = 40
    most = {"logit_bias": {str(token): 3.0}, "prompt": "The", "max_tokens": 8}
    name = tiny.tokenizer.decode([token])

    def tokens(**fields: Any) -> list[str]:
        return tiny.post(**most, logprobs=0, **fields)["choices"][0]["logprobs"]["tokens"]

    assert tokens() == [name] * 8
    assert tokens(presence_penalty=2.0).count(name) == 8
    # After the second time, 3 - 2 * 2 is less than others have.
    assert tokens(frequency_penalty=2.0).count(name) == 2
    assert tokens(frequency_penalty=-2.0).count(name) == 8
    assert tokens(presence_penalty=2.0, frequency_penalty=2.0).count(name) == 1


def test_best_of_shows_the_likeliest_texts(tiny: Tiny) -> None:
    endless = {str(tiny.tokenizer.eos_token_id): -100}
    fields = {"prompt": ["The", "code"], "max_tokens": 5, "temperature": 1.5, "seed": 3}
    fields["logit_bias"] = endless
    every = tiny.post(n=6, logprobs=0, **fields)["choices"]
    best = tiny.post(n=2, best_of=6, logprobs=0, **fields)
    for prompt in (0, 1):
        alike = every[6 * prompt : 6 * prompt + 6]
        alike.sort(key=lambda one: -sum(one["logprobs"]["token_logprobs"]))
        shown = best["choices"][2 * prompt : 2 * prompt + 2]
        assert [one["text"] for one in shown] == [one["text"] for one in alike[:2]]
    assert best["usage"]["completion_tokens"] == 60
    assert tiny.texts(n=2, best_of=6, **fields) == [one["text"] for one in best["choices"]]


def test_an_answer_ends_with_the_context_where_the_client_does_not_say(tiny: Tiny) -> None:
    endless = {"logit_bias": {str(tiny.tokenizer.eos_token_id): -100}}
    ids = [5] * (CONTEXT - 3)
    answer = tiny.post(prompt=ids, **endless)
    assert answer["usage"]["completion_tokens"] == 3
    assert tiny.post(prompt=ids[:9], **endless)["usage"]["completion_tokens"] == 16
    messages = [{"role": "user", "content": "town " * (CONTEXT - 60)}]
    answer = tiny.post(CHAT, messages=messages, **endless)
    assert answer["usage"]["completion_tokens"] > 16
    assert answer["usage"]["total_tokens"] == CONTEXT
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_long_text_does_not_hold_back_others(tiny: Tiny) -> None:
    endless = {"logit_bias": {str(tiny.tokenizer.eos_token_id): -100}}
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(tiny.post, prompt="The", max_tokens=600, **endless)
        while not tiny.engine.groups:
            time.sleep(0.01)
        for prompt in PROMPTS:
            assert tiny.texts(prompt=prompt, max_tokens=4) == [tiny.alone(prompt, 4)]
        assert not long.done()
        assert long.result()["usage"]["completion_tokens"] == 600


def test_rows_are_dropped_when_their_client_is_gone(tiny: Tiny) -> None:
    body = {"model": "tiny", "prompt": "The", "max_tokens": 3900, "logit_bias": {"0": -100}}

    async def ask(*, stream: bool) -> None:
        scope = {
            "type": "http", "method": "POST", "path": TEXT, "raw_path": TEXT.encode(),
            "headers": [(b"content-type", b"application/json")], "query_string": b"",
            "http_version": "1.1", "root_path": "", "scheme": "http",
        }  # fmt: skip
        content = json.dumps({**body, "stream": stream}).encode()
        sent = [{"type": "http.request", "body": content, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if sent:
                return sent.pop()
            while not tiny.engine.groups:
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        await tiny.app(scope, receive, send)

    for stream in (False, True):
        began = time.monotonic()
        asyncio.run(ask(stream=stream))
        while tiny.engine.groups:
            time.sleep(0.01)
            assert time.monotonic() - began < 2
        assert not tiny.engine.open


def test_more_than_may_wait_is_told_to_come_back(start: Callable[..., Tiny]) -> None:
    tiny = start(limits=Limits(batch=2, queue=3, cache_tokens=2100))
    endless = {"logit_bias": {str(tiny.tokenizer.eos_token_id): -100}}
    long = {"model": "tiny", "prompt": "The", "max_tokens": 2000, **endless}
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(tiny.client.post, TEXT, json=long)
        while not tiny.engine.groups:
            time.sleep(0.01)
        # There is no room in the cache beside it.
        others = [pool.submit(tiny.client.post, TEXT, json=long) for _ in range(3)]
        while len(tiny.engine.waiting) < 3:
            time.sleep(0.01)
        answer = tiny.client.post(TEXT, json=long)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "1"
        assert answer.json()["error"]["code"] == "overloaded"
        tiny.engine.stop()
        assert {one.result().status_code for one in (first, *others)} == {503}
    assert tiny.client.get("/health").status_code == 503
    assert tiny.client.post(TEXT, json=long).status_code == 503


def row_of(tiny: Tiny, prompt: int, most: int, told: list[Any]) -> Row:
    return Row(
        [5] * prompt, most, sampling=Sampling(bias={tiny.tokenizer.eos_token_id: -100}), seed="0",
        stops=(), top=None, score_prompt=False, tokenizer=tiny.tokenizer, of_prompt=False,
        send=told.append,
    )  # fmt: skip


def test_those_who_have_left_do_not_fill_the_queue(tiny: Tiny) -> None:
    served = Engine(tiny.model, Limits(batch=2, queue=3, cache_tokens=2100))
    told: list[Any] = []
    served.start()
    served.submit([row_of(tiny, 5, 2000, told)])
    while not served.groups:
        time.sleep(0.01)
    # There is no room in the cache beside it.
    waiting = [row_of(tiny, 5, 2000, told) for _ in range(3)]
    served.submit(waiting)
    served.leave(waiting[1:])
    served.submit([row_of(tiny, 5, 2000, told) for _ in range(2)])
    with pytest.raises(RequestError, match="3 texts wait already"):
        served.submit([row_of(tiny, 5, 2000, told)])
    served.stop()


def test_what_has_room_overtakes_what_has_none_but_not_for_ever(tiny: Tiny) -> None:
    served = Engine(tiny.model, Limits(batch=1, queue=200, cache_tokens=2100))
    first, large, small = [], [], []
    began: list[int] = []
    blocker, waits = row_of(tiny, 5, 1000, first), row_of(tiny, 5, 2000, large)
    rows = [row_of(tiny, 5, 1, small) for _ in range(100)]
    waits.send = lambda _: began or began.append(len(small))
    served.start()
    served.submit([blocker, waits, *rows])
    while len(small) < 60:
        time.sleep(0.01)
    assert not began
    time.sleep(0.3)
    assert len(small) < 80
    served.leave([blocker])
    while len(small) < 100:
        time.sleep(0.01)
    assert 60 <= began[0] < 80
    served.stop()


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("forward", torch.OutOfMemoryError("out of memory")),
        ("forward", IndexError("index out of range")),
        ("forward", RuntimeError("CUDA error: out of memory")),
        ("cache", MemoryError("none left")),
    ],
)
def test_a_model_that_fails_is_told_and_serves_on(
    place: str, error: Exception, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        if place == "forward":
            patched.setattr(tiny.model, "forward", fail)
        else:
            patched.setattr(caches, "new_cache", fail)
        answer = tiny.client.post(TEXT, json={"model": "tiny", "prompt": "The"})
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == f"the model failed: {error}"
    assert tiny.texts(prompt="The", max_tokens=4) == [tiny.alone("The", 4)]


def test_batches_that_cannot_join_are_told(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    endless = {"logit_bias": {str(tiny.tokenizer.eos_token_id): -100}}
    body = {"model": "tiny", "prompt": "The code", "max_tokens": 3000, **endless}
    with monkeypatch.context() as patched, ThreadPoolExecutor(2) as pool:
        patched.setattr(caches, "join", fail)
        first = pool.submit(tiny.client.post, TEXT, json=body)
        while not tiny.engine.groups:
            time.sleep(0.01)
        second = pool.submit(tiny.client.post, TEXT, json=body)
        assert [one.result().status_code for one in (first, second)] == [500, 500]
    assert tiny.texts(prompt="The", max_tokens=4) == [tiny.alone("The", 4)]


def test_a_device_that_is_lost_ends_the_server(
    start: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    tiny = start()
    monkeypatch.setattr(tiny.model, "forward", fail)
    assert tiny.client.post(TEXT, json={"model": "tiny", "prompt": "The"}).status_code == 500
    tiny.engine.thread.join(5)
    assert tiny.client.get("/health").status_code == 503


def test_numbers_that_are_not_finite_are_told(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        head = tiny.model.get_output_embeddings()
        patched.setattr(head, "forward", lambda hidden: hidden.new_full((1, 1, 300), torch.nan))
        answer = tiny.client.post(TEXT, json={"model": "tiny", "prompt": "The"})
    assert "not finite" in answer.json()["error"]["message"]
    assert tiny.texts(prompt="The", max_tokens=4) == [tiny.alone("The", 4)]


def test_many_clients_of_all_kinds_at_a_time(tiny: Tiny) -> None:
    def ask(n: int) -> None:
        prompt, most = PROMPTS[n % len(PROMPTS)], 3 + n % 11
        if n % 3:
            assert tiny.texts(prompt=prompt, max_tokens=most) == [expected[prompt, most]]
        else:
            events = tiny.events(prompt=prompt, max_tokens=most)
            text = "".join(event["choices"][0]["text"] for event in events)
            assert text == expected[prompt, most]

    cases = {(PROMPTS[n % len(PROMPTS)], 3 + n % 11) for n in range(60)}
    expected = {case: tiny.alone(*case) for case in cases}
    before = threading.active_count()
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(ask, range(60)))
    assert threading.active_count() <= before
