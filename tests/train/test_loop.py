"""train(): it learns, counts what it saw, and comes out the same however it was cut up."""

import os
import signal
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import metrics_of, tiny_run
from transformers import AutoModelForCausalLM, PreTrainedModel

from memory_layers.common import progress
from memory_layers.common.errors import UserError
from memory_layers.evaluate.recall import recall_items, summarize_recall
from memory_layers.models import memory_layers_of
from memory_layers.train import loop, step
from memory_layers.train.config import RunConfig
from memory_layers.train.export import export_checkpoint
from memory_layers.train.folders import list_checkpoints
from memory_layers.train.interrupt import StopSignal
from memory_layers.train.loop import TrainedModel, train


def run(config: RunConfig, out: Path) -> TrainedModel:
    return train(config, out, show=False)


def losses_of(history: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in history if "loss" in line]


def weights_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(one: PreTrainedModel, other: PreTrainedModel) -> None:
    expected = weights_of(other)
    for name, tensor in weights_of(one).items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "dense"])
def test_loss_falls(tmp_path: Path, memory: bool) -> None:
    config = tiny_run(
        tmp_path,
        memory=memory,
        optim={"lr": 1e-2},
        train={"steps": 60, "batch_size": 4, "log_every": 5, "eval_every": 20},
    )
    trained = run(config, tmp_path / "out")
    losses = losses_of(trained.history)
    assert len(losses) == 12
    assert losses[-1] < losses[0] / 2
    nll = [line["answer_nll"]["statement"] for line in trained.history if "answer_nll" in line]
    assert len(nll) == 3
    assert nll[-1] < nll[0]
    last = trained.history[-1]
    assert len(last["correct"]) == len(trained.data.probes)
    assert "asked" not in last
    assert ("slot_usage" in last) == memory


def test_accumulated_batches_are_one_batch(tmp_path: Path) -> None:
    whole = tiny_run(tmp_path, train={"batch_size": 4})
    parts = replace(whole, train=replace(whole.train, batch_size=2, accumulate=2))
    one, other = run(whole, tmp_path / "whole"), run(parts, tmp_path / "parts")
    expected = weights_of(one.model)
    for name, tensor in weights_of(other.model).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=2e-4, msg=name)
    assert losses_of(one.history) == pytest.approx(losses_of(other.history), rel=1e-5)
    for name in ("step", "tokens", "epoch"):
        values = [[line.get(name) for line in trained.history] for trained in (one, other)]
        assert values[0] == values[1], name


def test_tokens_and_epochs_are_those_of_the_data(tmp_path: Path) -> None:
    """After each epoch every token but the first of each document was predicted once."""
    config = tiny_run(tmp_path, train={"steps": 12, "batch_size": 4})
    trained = run(config, tmp_path / "out")
    summary = trained.data.summary
    in_epoch = summary["tokens"] - summary["documents"]
    for line in metrics_of(tmp_path / "out"):
        if "epoch" in line:
            assert line["tokens"] / in_epoch == pytest.approx(line["epoch"], abs=0.08)
    assert trained.tokens / in_epoch > 1


def test_bf16_autocast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_run(tmp_path)
    bf16 = replace(config, train=replace(config.train, precision="bf16"))
    inside = []
    original = step.summed_loss

    def watched(model: PreTrainedModel, *args: object, **kwargs: bool) -> torch.Tensor:
        handle = model.lm_head.register_forward_hook(
            lambda _module, _inputs, output: inside.append(output.dtype)
        )
        loss = original(model, *args, **kwargs)
        handle.remove()
        assert loss.dtype == torch.float32
        return loss

    monkeypatch.setattr(step, "summed_loss", watched)
    one = run(config, tmp_path / "fp32").history
    assert set(inside) == {torch.float32}
    inside.clear()
    other = run(bf16, tmp_path / "bf16").history
    assert set(inside) == {torch.bfloat16}
    assert losses_of(one) == pytest.approx(losses_of(other), rel=0.02)
    assert losses_of(one) != losses_of(other)


@pytest.mark.parametrize(
    ("memory", "number"),
    [(True, signal.SIGTERM), (False, signal.SIGINT)],
    ids=["memory-sigterm", "dense-ctrl-c"],
)
def test_stopped_between_two_lines_of_metrics(
    tmp_path: Path, memory: bool, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, tokens and slot counts since the last line are in the checkpoint too."""
    config = tiny_run(
        tmp_path,
        memory=memory,
        train={"steps": 11, "log_every": 4, "eval_every": 5, "eval_items": 7},
    )
    whole = run(config, tmp_path / "whole")
    step = loop._Run._step

    def stop_in_step_six(self: loop._Run, number_of_step: int, stop: StopSignal) -> bool:
        if number_of_step == 6:
            os.kill(os.getpid(), number)
        return step(self, number_of_step, stop)

    monkeypatch.setattr(loop._Run, "_step", stop_in_step_six)
    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt, match="stopped after step 7"):
        run(config, out)
    assert [path.name for path in list_checkpoints(out)] == ["step-00000007"]
    assert not (out / "model").exists()
    monkeypatch.setattr(loop._Run, "_step", step)
    resumed = run(config, out)
    assert_same_weights(resumed.model, whole.model)
    assert metrics_of(out) == metrics_of(tmp_path / "whole")
    assert resumed.tokens == whole.tokens
    assert resumed.seconds > 0


def test_finished_run_trains_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_run(tmp_path)
    first = run(config, tmp_path / "out")
    lines = (tmp_path / "out" / "metrics.jsonl").read_text()
    monkeypatch.setattr(loop._Run, "_step", lambda *_: pytest.fail("trained again"))
    again = run(config, tmp_path / "out")
    assert_same_weights(again.model, first.model)
    assert (again.tokens, again.seconds) == (first.tokens, first.history[-1]["seconds"])
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == lines


def test_same_seed_same_run_and_other_seed_not(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    one, other = run(config, tmp_path / "a"), run(config, tmp_path / "b")
    assert_same_weights(one.model, other.model)
    reseeded = run(replace(config, train=replace(config.train, seed=1)), tmp_path / "c")
    assert not torch.equal(
        reseeded.model.get_input_embeddings().weight, one.model.get_input_embeddings().weight
    )


def test_another_configuration_is_refused_with_its_fields(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    run(config, tmp_path / "out")
    for other, named in (
        (replace(config, optim=replace(config.optim, lr=0.5)), r"optim\.lr was 0\.003, is 0\.5"),
        # A rate that is left out is held to what it means.
        (
            replace(config, optim=replace(config.optim, value_lr=None)),
            r"optim\.value_lr was 0\.02, is 0\.006",
        ),
        (replace(config, memory=None), "memory was .*, is None"),
        (replace(config, train=replace(config.train, steps=3)), r"train\.steps was 4, is 3"),
        # Longer, but not only that.
        (
            replace(config, train=replace(config.train, steps=9, seed=1)),
            r"configuration: train\.seed was 0, is 1\.",
        ),
    ):
        with pytest.raises(UserError, match=named):
            run(other, tmp_path / "out")


def test_another_configuration_is_refused_before_its_data_are_prepared(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    run(config, tmp_path / "out")
    prepared = sorted((tmp_path / "cache").iterdir())
    with pytest.raises(UserError, match=r"data\.seed was 0, is 1"):
        run(replace(config, data=replace(config.data, seed=1)), tmp_path / "out")
    assert sorted((tmp_path / "cache").iterdir()) == prepared


@pytest.mark.parametrize(
    ("section", "wrong"),
    [("data", {"shown_fraction": 0.001}), ("parallel", {"shard": 2}), ("train", {"batch_size": 1})],
)
def test_a_start_that_fails_leaves_its_folder_alone(
    tmp_path: Path, section: str, wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the corrected command works, with another configuration in the same folder."""
    config = tiny_run(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2" if section == "train" else "1")
    mistaken = replace(config, **{section: replace(getattr(config, section), **wrong)})
    with pytest.raises(UserError):
        run(mistaken, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    run(config, tmp_path / "out")


@pytest.mark.parametrize("stopped", [False, True], ids=["finished", "unfinished"])
def test_a_longer_run_goes_on_from_the_last_checkpoint(
    tmp_path: Path, stopped: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """With a constant rate, the weights are those of a run that was as long from the start."""
    config = tiny_run(tmp_path, optim={"schedule": "constant"}, train={"steps": 5})
    longer = replace(config, train=replace(config.train, steps=9))
    whole = run(longer, tmp_path / "whole")
    step, taken = loop._Run._step, []

    def counted(self: loop._Run, number: int, stop: StopSignal) -> bool:
        taken.append(number)
        if stopped and number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, number, stop)

    monkeypatch.setattr(loop._Run, "_step", counted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt) if stopped else nullcontext():
        run(config, out)
    capsys.readouterr()
    trained = train(longer, out)
    said = capsys.readouterr().err.splitlines()
    assert sum("train.steps was 5, is 9: learning rates" in line for line in said) == 1
    assert taken == list(range(9))
    assert_same_weights(trained.model, whole.model)
    assert losses_of(metrics_of(out)) == losses_of(metrics_of(tmp_path / "whole"))
    # It is the longer run from now on.
    train(longer, out)
    assert "train.steps was" not in capsys.readouterr().err
    with pytest.raises(UserError, match=r"train\.steps was 9, is 5"):
        run(config, out)


def test_the_start_says_how_many_facts_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As soon as it takes longer than a moment."""
    monkeypatch.setattr(progress, "FIRST_LINE", -1.0)
    train(tiny_run(tmp_path, train={"steps": 1}), tmp_path / "out")
    assert "stating facts 0/30\n" in capsys.readouterr().err


def test_a_longer_run_follows_the_longer_schedule(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, train={"steps": 4})
    longer = replace(config, train=replace(config.train, steps=8))
    whole, out = run(longer, tmp_path / "whole"), tmp_path / "out"
    rates = [line["lr"] for line in whole.history if "lr" in line]
    before = [line["lr"] for line in run(config, out).history if "lr" in line]
    assert before[3] < rates[3]
    after = [line["lr"] for line in run(longer, out).history if "lr" in line]
    assert after == [*before, *rates[4:]]


def test_signals_of_a_terminal_and_of_a_parent_are_one_request() -> None:
    """Also where the second one comes when what is inside has ended already."""
    with StopSignal(show=False) as outer:
        with StopSignal(show=False) as inner:
            signal.raise_signal(signal.SIGINT)
            assert inner.requested
        signal.raise_signal(signal.SIGTERM)
        assert outer.requested
        # What begins then stops after its first step.
        with StopSignal(show=False) as later:
            assert later.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_divergence_stops_with_the_checkpoint_intact(tmp_path: Path) -> None:
    config = tiny_run(
        tmp_path,
        optim={"lr": 1e30, "warmup_steps": 0},
        train={"steps": 50, "checkpoint_every": 1, "keep_checkpoints": 50},
    )
    out = tmp_path / "out"
    for _ in range(2):
        with pytest.raises(
            FloatingPointError, match=r"the loss became nan at step \d+.*hint: lower"
        ):
            run(config, out)
        checkpoints = list_checkpoints(out)
        assert 1 <= len(checkpoints) < 50
        export_checkpoint(checkpoints[-1], tmp_path / "exported")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
        assert len(memory_layers_of(model)) == 1
        assert len(metrics_of(out)) == len(checkpoints)
    assert not (out / "model").exists()


def test_a_last_step_that_overflows_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No loss shows it any more."""
    config = tiny_run(
        tmp_path,
        optim={"lr": 1e30, "weight_decay": 1e30, "warmup_steps": 0},
        train={"steps": 1},
    )
    out = tmp_path / "out"
    message = r"\d+ numbers of weights .* NaN or infinite by step 1\. No checkpoint was saved"
    with pytest.raises(FloatingPointError, match=message):
        run(config, out)
    assert not list_checkpoints(out)
    assert not (out / "model").exists()


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "dense"])
def test_model_folder_is_the_model_that_was_measured(tmp_path: Path, memory: bool) -> None:
    config = tiny_run(tmp_path, memory=memory, optim={"lr": 1e-2}, train={"steps": 12})
    trained = run(config, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert_same_weights(model, trained.model)
    found = summarize_recall(
        trained.data.probes, recall_items(model, trained.data.tokenizer, trained.data.probes)
    )
    last = trained.history[-1]
    assert (found["recall"], found["answer_nll"]) == (last["recall"], last["answer_nll"])


def test_evaluations_on_the_way_ask_a_part(tmp_path: Path) -> None:
    settings = {"steps": 6, "eval_every": 2, "eval_items": 3, "final_items": 5}
    config = tiny_run(tmp_path, train=settings)
    asked = []
    original = loop.recall_share

    def watched(model: object, tokenizer: object, items: list, share: tuple) -> dict:
        asked.append([item.kind for item in items])
        return original(model, tokenizer, items, share)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "recall_share", watched)
        trained = run(config, tmp_path / "out")
    kinds = ["question_heldout"] * 3 + ["question_shown"] * 3 + ["statement"] * 3
    assert asked[:2] == [kinds, kinds]
    last = trained.history[-1]
    assert len(trained.data.probes) == 60
    assert asked[2] == [trained.data.probes[index].kind for index in last["asked"]]
    assert Counter(asked[2]) == {"question_heldout": 5, "question_shown": 5, "statement": 5}
    assert len(last["correct"]) == 15
