"""Each suite at small sizes: right variants are timed, deliberately wrong ones are caught."""

from collections.abc import Callable

import pytest
import torch

from benchmarks.cases import SUITES, find, layer, model, read, step
from benchmarks.checks import WrongResultError, check_greedy
from benchmarks.harness import Suite, find_variant, measure
from benchmarks.inputs import READS, Request, Sizes
from memory_layers.common.errors import UserError
from memory_layers.layers import MemoryLayer
from memory_layers.optim import MemoryAdamW

CPU = torch.device("cpu")
SMALL = {"tokens": 40, "value_dim": 32, "heads": 2, "top_k": 8, "sub_keys": 24}
TABLE = {**SMALL, "slots": 3000}


@pytest.fixture(autouse=True)
def small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.harness.SMALLEST_COPY", 2**20)


def request(op: str, **changes: object) -> Request:
    sizes = TABLE if op in READS else SMALL
    dtype = {"dtype": "both"} if op in ("read", "find") else {}
    return Request(op=op, sizes=Sizes(**{**sizes, **dtype, **changes}))


@pytest.mark.parametrize("op", ["find", "read", "write", "step", "layer"])
def test_suite_checks_and_times_every_variant(op: str) -> None:
    suite = SUITES[op](request(op))
    results = measure(suite, CPU, repeats=1, seconds=0.0, report=lambda _: None)
    ours = [v for v in results["variants"] if v["ours"]]
    assert ours
    for result in ours:
        assert result["speedup"] > 0
        assert set(result["against"]) <= {v["name"] for v in results["variants"]}
        assert result["checked"]


def test_rows_in_huge_pages() -> None:
    with pytest.raises(UserError, match="tables of 4 MiB"):
        SUITES["huge-pages"](request("huge-pages", slots=3000))
    suite = SUITES["huge-pages"](request("huge-pages", slots=40_000))
    results = measure(suite, CPU, repeats=1, seconds=0.0, report=lambda _: None)
    huge = find_variant(results, "gather_sum float32, huge pages")
    small = find_variant(results, "gather_sum float32, small pages")
    assert huge["speedup"] == pytest.approx(small["median_ms"] / huge["median_ms"])


def test_reads_of_many_sizes_are_of_other_rows_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "GRID", ((50, 900), (8,), (1, 3), (4, 8)))
    suite = SUITES["embedding-bag"](Request(op="embedding-bag", sizes=Sizes()))
    check_all(suite)
    assert len(suite.variants) == 2 * 2 * 1 * 2 * 2
    ours, bag = suite.variants[-2:]
    assert ours.name == "gather_sum float32, N = 900, V = 8, T = 3, J = 8"
    assert ours.against == (bag.name,)
    torch.manual_seed(1)
    for variant in (ours, bag):
        assert variant.prepare is not None
        before = ours.run()
        torch.testing.assert_close(bag.run(), before)
        variant.prepare()
        assert not torch.equal(variant.run(), before)
    check_all(suite)


def test_training_step() -> None:
    small = Sizes(tokens=16, sub_keys=32, top_k=4)
    suite = SUITES["train"](Request(op="train", sizes=small))
    results = measure(suite, CPU, repeats=1, seconds=0.0, report=lambda _: None)
    ours = find_variant(results, "small with memory")
    assert ours["tokens_per_second"] == pytest.approx(16 / ours["median_ms"] * 1e3)


def test_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WRITER", "small"), ("BATCHES", (1, 3)), ("NEW", 4)):
        monkeypatch.setattr(model, name, value)
    suite = SUITES["generate"](Request(op="generate", sizes=Sizes(sub_keys=32, top_k=4)))
    results = measure(suite, CPU, repeats=1, seconds=0.0, report=lambda _: None)
    ours = find_variant(results, "small with memory, 3 texts")
    dense = find_variant(results, "small dense, 3 texts")
    assert ours["speedup"] == pytest.approx(dense["median_ms"] / ours["median_ms"])
    assert ours["tokens_per_second"] == pytest.approx(12 / ours["median_ms"] * 1e3)
    parts = suite.facts["ms_by_part"]
    assert set(parts["small dense, 1 text"]) < set(parts["small with memory, 1 text"])
    assert all(spent > 0 for times in parts.values() for spent in times.values())


def test_a_token_that_is_not_the_likeliest() -> None:
    logits = torch.tensor([[[1.0, 2.0, 0.0], [0.0, 3.0, 3.0 - 1e-6]]])
    check_greedy("text", logits, torch.tensor([[1, 2]]))
    with pytest.raises(WrongResultError, match="text 0, token 1 is not the likeliest"):
        check_greedy("text", logits, torch.tensor([[1, 0]]))


@pytest.mark.parametrize("op", ["write", "step"])
def test_bf16_tables(op: str) -> None:
    check_all(SUITES[op](request(op, dtype="bfloat16")))


def test_rows_that_are_read_many_times() -> None:
    """The sums of the check are then of many terms."""
    sizes = Sizes(**{**TABLE, "slots": 50})
    check_all(SUITES["step"](Request(op="step", sizes=sizes, slots="zipf")))


def test_bytes_that_must_move() -> None:
    """Written out once more, from the sizes alone."""
    tokens, reads, width = 40, 16, 32
    by_name = {variant.name: variant for variant in SUITES["read"](request("read")).variants}
    factors = tokens * reads * (8 + 4)
    expected = tokens * reads * width * 2 + factors + tokens * width * 4
    assert by_name["gather_sum bfloat16"].bytes == expected
    suite = SUITES["write"](request("write"))
    touched = suite.facts["distinct_rows"]
    assert 0 < touched < tokens * reads
    # The row and both moments, read and written, and the gradient of the read.
    expected = touched * width * 4 * 3 * 2 + factors + tokens * width * 4
    assert suite.variants[0].bytes == expected


def check_all(suite: Suite) -> None:
    for variant in suite.variants:
        variant.check()


def slightly_off(function: Callable) -> Callable:
    def wrong(*args: object, **kwargs: object) -> torch.Tensor:
        return function(*args, **kwargs) * 1.001

    return wrong


def off_by_a_tenth(function: Callable) -> Callable:
    def wrong(*args: object, **kwargs: object) -> torch.Tensor:
        return function(*args, **kwargs) * 1.1

    return wrong


def shifted_slots(function: Callable) -> Callable:
    def wrong(*args: object, **kwargs: object) -> tuple:
        scores, slots = function(*args, **kwargs)
        return scores, (slots + 1) % SMALL["sub_keys"] ** 2

    return wrong


def one_left_out(function: Callable) -> Callable:
    """The k-th is missing and the one after it is there: right scores, one wrong choice."""

    def wrong(query: torch.Tensor, sub_keys: torch.Tensor, k: int, **kwargs: object) -> tuple:
        scores, slots = function(query, sub_keys, k + 1, **kwargs)
        keep = [*range(k - 1), k]
        return scores[..., keep], slots[..., keep]

    return wrong


@pytest.mark.parametrize(
    ("op", "module", "name", "break_it"),
    [
        ("read", read, "gather_sum", slightly_off),
        ("read", read, "gather_dot", slightly_off),
        ("read", read, "bag", slightly_off),
        ("find", find, "product_key_topk", shifted_slots),
        ("find", find, "product_key_topk", one_left_out),
        ("find", find, "three_topk", shifted_slots),
        ("step", step, "bag", off_by_a_tenth),
        ("write", step, "bag", off_by_a_tenth),
    ],
)
def test_a_wrong_variant_is_caught(
    op: str, module: object, name: str, break_it: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, break_it(getattr(module, name)))
    suite = SUITES[op](request(op))
    with pytest.raises(WrongResultError, match="wrong"):
        check_all(suite)


@pytest.mark.parametrize("op", ["write", "step"])
def test_a_step_that_forgets_rows_is_caught(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = MemoryAdamW.step

    def wrong(self: MemoryAdamW, closure: None = None) -> None:
        (table,) = self.memory_group["params"]
        before = table.detach().clone()
        right(self, closure)
        table.data[::2] = before[::2]

    monkeypatch.setattr(MemoryAdamW, "step", wrong)
    with pytest.raises(WrongResultError, match="row, is wrong"):
        SUITES[op](request(op)).variants[0].check()


def test_a_step_of_rows_that_were_not_read_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = MemoryAdamW.step

    def wrong(self: MemoryAdamW, closure: None = None) -> None:
        right(self, closure)
        (table,) = self.memory_group["params"]
        table.data.mul_(0.99)

    monkeypatch.setattr(MemoryAdamW, "step", wrong)
    with pytest.raises(WrongResultError, match="row, is wrong"):
        SUITES["write"](request("write")).variants[0].check()


def test_a_wrong_layer_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = SUITES["layer"](request("layer"))
    names = [variant.name for variant in suite.variants]
    assert names == [layer.OURS, layer.EAGER, layer.FEED_FORWARD]
    monkeypatch.setattr(MemoryLayer, "weigh", lambda _self, scores: scores.softmax(-1) * 1.01)
    with pytest.raises(WrongResultError, match="MemoryLayer, output, is wrong"):
        suite.variants[0].check()
    suite.variants[1].check()
