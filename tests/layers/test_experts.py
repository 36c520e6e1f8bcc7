"""Experts against the same in a few plain lines: outputs, gradients, the balance loss, the work."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from memory_layers.common.errors import UserError
from memory_layers.config import MoeConfig
from memory_layers.layers.experts import (
    ExpertChoice,
    Experts,
    TokenChoice,
    balance_loss,
    scale_balance,
)

D, MLP, T = 6, 10, 13


def token_choice(**changes: Any) -> TokenChoice:
    config = MoeConfig(**{"routing": "token_choice", "experts": 5, "top_k": 2, **changes})
    return TokenChoice(config, D, MLP, 0.5)


def expert_choice(**changes: Any) -> ExpertChoice:
    config = MoeConfig(**{"routing": "expert_choice", "experts": 4, **changes})
    return ExpertChoice(config, D, MLP, 0.5)


def plain(layer: nn.Module, x: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """The sum over pairs of token and expert, one after the other."""
    probabilities = (x @ layer.router.weight.T).softmax(-1)
    own = layer.experts
    rows = [torch.zeros(D) for _ in x]
    for token, expert in pairs:
        hidden = F.silu(x[token] @ own.gate[expert]) * (x[token] @ own.up[expert])
        rows[token] = rows[token] + probabilities[token, expert] * (hidden @ own.down[expert])
    return torch.stack(rows)


def plain_balance(layer: TokenChoice, x: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    probabilities = (x @ layer.router.weight.T).softmax(-1)
    counts = torch.tensor([sum(e == expert for _, e in pairs) for expert in range(5)])
    return layer.config.balance_weight * 5 * (counts / len(pairs) @ probabilities.mean(0))


def best_experts(layer: nn.Module, x: Tensor, k: int) -> list[tuple[int, int]]:
    scores = x @ layer.router.weight.T
    return [(t, int(e)) for t in range(len(x)) for e in scores[t].argsort(descending=True)[:k]]


def best_tokens(layer: nn.Module, x: Tensor, share: int) -> list[tuple[int, int]]:
    scores = (x @ layer.router.weight.T).softmax(-1)
    experts = range(scores.shape[1])
    return [(int(t), e) for e in experts for t in scores[:, e].argsort(descending=True)[:share]]


def gradients(layer: nn.Module, x: Tensor, loss: Tensor) -> dict[str, Tensor]:
    tensors = {"x": x, **dict(layer.named_parameters())}
    return dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True))


def assert_same(layer: nn.Module, pairs: list[tuple[int, int]], x: Tensor, extra: Any = 0) -> None:
    weights = torch.randn(T, D)
    out, expected = layer(x), plain(layer, x, pairs)
    torch.testing.assert_close(out, expected)
    actual = gradients(layer, x, (out * weights).sum())
    for name, gradient in gradients(layer, x, (expected * weights).sum() + extra).items():
        torch.testing.assert_close(actual[name], gradient, msg=name)


def test_token_choice_and_its_gradients() -> None:
    layer, x = token_choice(), torch.randn(T, D, requires_grad=True)
    pairs = best_experts(layer, x, 2)
    assert_same(layer, pairs, x, plain_balance(layer, x, pairs))
    assert_same(layer.eval(), pairs, x)


def test_expert_that_no_token_chooses() -> None:
    layer, x = token_choice(), torch.randn(T, D).abs().requires_grad_()
    with torch.no_grad():
        layer.router.weight[3] = -100.0
    pairs = best_experts(layer, x, 2)
    assert all(expert != 3 for _, expert in pairs)
    assert_same(layer, pairs, x, plain_balance(layer, x, pairs))


def test_the_other_routing_is_refused() -> None:
    config = MoeConfig(routing="token_choice", experts=4, top_k=2)
    with pytest.raises(ValueError, match="needs routing 'expert_choice', got 'token_choice'"):
        ExpertChoice(config, D, 8)


@pytest.mark.parametrize(("factor", "share"), [(1.0, 4), (2.0, 7), (4.0, 13), (0.01, 1)])
def test_expert_choice_in_training(factor: float, share: int) -> None:
    layer, x = expert_choice(capacity_factor=factor), torch.randn(T, D, requires_grad=True)
    assert layer.capacity(T) == share  # 13 tokens, 4 experts
    assert_same(layer, best_tokens(layer, x, share), x)


def test_expert_choice_sends_each_token_to_its_best_expert_in_evaluation() -> None:
    layer, x = expert_choice(capacity_factor=2.0).eval(), torch.randn(T, D, requires_grad=True)
    assert_same(layer, best_experts(layer, x, 1), x)
    alone = torch.cat([layer(token[None]) for token in x])
    torch.testing.assert_close(layer(x), alone)


@pytest.mark.parametrize("tokens", [1, 2, 12, 100, 4096])
def test_whole_shares_are_not_rounded_up(tokens: int) -> None:
    layer = expert_choice(experts=3, capacity_factor=0.3)  # 0.3 / 3 * 4096 is 409.6
    assert layer.capacity(tokens) == max(1, -(-tokens // 10))


@pytest.mark.parametrize("make", [token_choice, expert_choice])
def test_any_leading_axes(make: Any) -> None:
    layer, x = make(), torch.randn(2, 3, 4, D)
    assert torch.equal(layer(x), layer(x.flatten(0, 2)).view(x.shape))


def test_balance_loss_is_one_where_experts_get_alike() -> None:
    layer = token_choice(top_k=5, balance_weight=0.25)
    layer(torch.randn(T, D))
    assert float(layer.balance) == pytest.approx(0.25)
    layer = token_choice(top_k=1, balance_weight=0.25)
    with torch.no_grad():
        layer.router.weight[2] = 100.0
    layer(torch.randn(T, D).abs())
    assert float(layer.balance) == pytest.approx(0.25 * 5)


def test_balance_loss_of_a_model() -> None:
    model = nn.Sequential(token_choice(), expert_choice(), token_choice())
    assert balance_loss(model) is None
    model.eval()(torch.randn(T, D))
    assert balance_loss(model) is None
    model.train()(torch.randn(T, D))
    total = balance_loss(model)
    assert not total.requires_grad
    assert total == model[0].balance + model[2].balance
    assert balance_loss(nn.Sequential(expert_choice())) is None


def test_balance_loss_joins_with_its_scale() -> None:
    layer, x = token_choice(balance_weight=1.0), torch.randn(T, D)

    def of_router(scale: float) -> Tensor:
        scale_balance(nn.Sequential(layer), scale)
        layer.zero_grad()
        (layer(x) * 0).sum().backward()
        return layer.router.weight.grad.clone()

    whole = of_router(1.0)
    assert float(whole.norm()) > 1e-4
    torch.testing.assert_close(of_router(0.25), whole / 4)
    assert float(of_router(0.0).norm()) == 0


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("make", [token_choice, expert_choice])
def test_blocks_that_are_computed_again(make: Any, reentrant: bool) -> None:
    layer, x = make(), torch.randn(T, D, requires_grad=True)
    again = copy.deepcopy(layer)
    layer(x).square().sum().backward()
    checkpoint(again, x, use_reentrant=reentrant).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert torch.equal(again.get_parameter(name).grad, parameter.grad), name
    assert balance_loss(again) == balance_loss(layer)


@pytest.mark.parametrize("make", [token_choice, expert_choice])
@pytest.mark.parametrize("training", [False, True])
def test_bf16_autocast(make: Any, training: bool) -> None:
    layer, x = make().train(training), torch.randn(T, D, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
        assert layer.probabilities(x).dtype == torch.float32
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.dtype == torch.float32, name
    with torch.autocast("cpu", torch.bfloat16):
        chosen = best_experts(layer, x, 2)
    if not training and isinstance(layer, TokenChoice):
        torch.testing.assert_close(out.float(), plain(layer, x, chosen), atol=0.05, rtol=0.05)


def flops(layer: nn.Module, x: Tensor) -> tuple[int, int]:
    counts = []
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter:
            out = layer(x)
            if backward:
                out.sum().backward()
        counts.append(counter.get_total_flops())
    return counts[0], counts[1]


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_work_is_that_of_the_chosen_experts(training: bool, alike: bool) -> None:
    """Also where all tokens choose the same: no padding is computed or counted."""
    x = torch.randn(T, D).mul_(not alike).requires_grad_()
    for layer, pairs, hidden in (
        (token_choice(experts=5), 2 * T, MLP // 2),
        (expert_choice(), 4 * 4 if training else T, MLP),
    ):
        experts = layer.router.out_features
        work = 2 * T * D * experts + 3 * 2 * pairs * D * hidden
        assert flops(layer.train(training), x) == (work, 3 * work)


def test_experts_on_the_meta_device() -> None:
    experts = Experts(3, D, MLP, 0.1).to("meta")
    x, scale = torch.empty(T, D, device="meta"), torch.empty(T, 1, device="meta")
    assert experts(x, scale, [T, 0, 0]).shape == (T, D)


def test_initial_weights() -> None:
    experts = Experts(4, 50, 40, 0.3)
    for weight in experts.parameters():
        for matrix in weight.detach():
            assert float(matrix.std()) == pytest.approx(0.3, rel=0.1)
    before = experts.gate.detach().clone()
    experts.reset_parameters()
    assert not torch.equal(experts.gate, before)


@pytest.mark.parametrize(
    ("changes", "hidden"),
    [
        ({"routing": "token_choice"}, 22),
        ({"routing": "token_choice", "top_k": 4}, 43),
        ({"routing": "expert_choice"}, 172),
        ({"routing": "expert_choice", "expert_size": 7}, 7),
    ],
)
def test_hidden_size(changes: dict[str, Any], hidden: int) -> None:
    config = MoeConfig(experts=16, **changes)
    assert config.hidden_size(172) == hidden
    assert MoeConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"routing": "hash"}, "routing must be one of"),
        ({"experts": 1}, "experts must be a whole number >= 2, got 1"),
        ({"experts": True}, "experts must be a whole number >= 2, got True"),
        ({"top_k": 17}, "top_k must be at most experts = 16, got 17"),
        ({"top_k": 0}, "top_k must be a whole number >= 1"),
        ({"expert_size": 0}, "expert_size must be a whole number >= 1"),
        ({"balance_weight": -1.0}, "balance_weight must be a finite number >= 0"),
        ({"capacity_factor": 2.0}, "capacity_factor has no effect with routing 'token_choice'"),
        ({"routing": "expert_choice", "top_k": 2}, "top_k has no effect with routing 'expert_cho"),
        ({"routing": "expert_choice", "balance_weight": 0.1}, "balance_weight has no effect"),
        ({"routing": "expert_choice", "normalize_top_k": True}, "normalize_top_k has no effect"),
        ({"top_k": 1, "normalize_top_k": True}, "normalize_top_k must be false with top_k 1"),
        ({"routing": "expert_choice", "capacity_factor": 0.0}, "capacity_factor must be above 0"),
        ({"routing": "expert_choice", "capacity_factor": 17.0}, "at most experts = 16, got 17"),
        ({"layers": 3}, "layers must be a list of block indices, got 3"),
        ({"layers": ()}, "layers must name at least one block"),
        ({"layers": (1, 1)}, "layers must not name a block twice"),
        ({"layers": (-1,)}, "layers must be block indices counted from 0, got -1"),
    ],
)
def test_mistakes_in_the_config_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MoeConfig(**{"routing": "token_choice", "experts": 16, **changes})


def test_mistakes_in_plain_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"no field 'expert'\. hint: did you mean 'experts'"):
        MoeConfig.from_dict({"routing": "token_choice", "expert": 4})
    with pytest.raises(ValueError, match="needs `experts`"):
        MoeConfig.from_dict({"routing": "token_choice"})
    config = MoeConfig(routing="token_choice", experts=8)
    assert config.chosen_layers(3) == (0, 1, 2)
    with pytest.raises(UserError, match=r"below the number of blocks, 3, got \[3\]"):
        MoeConfig(routing="token_choice", experts=8, layers=(1, 3)).chosen_layers(3)
