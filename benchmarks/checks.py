"""Right or no numbers: results against fp64, within the budget that their arithmetic allows.

Each check takes the name of what is checked, for its error, and raises WrongResultError.
"""

import torch
from torch import Tensor

from memory_layers.ops.find import reference as find_reference

FP32_EPS = torch.finfo(torch.float32).eps
# Tokens and rows compared with fp64. All of them would need an fp64 copy of the table.
SAMPLE = 48


class WrongResultError(RuntimeError):
    """A variant whose result is wrong: its time is worth nothing, so none is reported."""


def sample_of(count: int, device: torch.device, size: int = SAMPLE) -> Tensor:
    """Return at most `size` indices in [0, count): the first, the last, and evenly spread ones."""
    return torch.linspace(0, count - 1, min(size, count), dtype=torch.float64).long().to(device)


def exact_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return a @ b in fp64, and |a| @ |b|, the magnitude that rounding errors are relative to."""
    a, b = a.double(), b.double()
    return a @ b, a.abs() @ b.abs()


def check_sum(
    name: str,
    actual: Tensor,
    exact: Tensor,
    magnitude: Tensor,
    *,
    terms: int,
    sum_eps: float = FP32_EPS,
) -> None:
    """Hold a sum of products to one rounding of the result and the rounding of its additions.

    Errors of n additions add up like a random walk, so to about the root of n.

    Args:
        name: What is checked.
        actual: The result.
        exact: The fp64 answer.
        magnitude: The fp64 answer for absolute values: what rounding errors are relative to.
        terms: Numbers added up.
        sum_eps: Precision of the additions.
    """
    eps = torch.finfo(actual.dtype).eps
    limit = eps / 2 * exact.abs() + terms**0.5 * sum_eps * magnitude
    check_close(name, actual, exact, limit)


def check_greedy(name: str, logits: Tensor, tokens: Tensor) -> None:
    """Hold tokens, [B, L], to being the most likely ones. A tie may fall either way."""
    best = logits.amax(-1)
    taken = logits.gather(-1, tokens[..., None])[..., 0]
    if not (taken >= best - 1e-4 * best.abs()).all():
        text, place = divmod(int((best - taken).argmax()), tokens.shape[1])
        raise WrongResultError(f"{name} text {text}, token {place} is not the likeliest")


def check_close(name: str, actual: Tensor, exact: Tensor, limit: Tensor) -> None:
    """Compare with an fp64 answer, within the largest error allowed for each number."""
    if actual.shape != exact.shape:
        raise WrongResultError(
            f"{name} is wrong: shape {list(actual.shape)} instead of {list(exact.shape)}"
        )
    error = (actual.double() - exact).abs()
    wrong = ~(error <= limit)
    if wrong.any():
        excess = (error / limit.clamp(min=torch.finfo(torch.float64).tiny)).nan_to_num(torch.inf)
        raise WrongResultError(
            f"{name} is wrong: {int(wrong.sum())} of {wrong.numel()} numbers checked are further "
            f"from the fp64 reference than rounding explains, the worst by {excess.max():.3g} "
            "times. No time is reported for a wrong result"
        )


def check_norm(name: str, actual: Tensor, exact: Tensor, tolerance: float) -> None:
    """Compare with an fp64 answer as a whole: |actual - exact| / |exact|."""
    share = float((actual.double() - exact).norm() / exact.norm())
    if not share <= tolerance:
        raise WrongResultError(
            f"{name} is wrong: it differs from the fp64 reference by {share:.3g} of its norm, "
            f"allowed {tolerance:.3g}. No time is reported for a wrong result"
        )


def check_selection(
    name: str,
    found: tuple[Tensor, Tensor],
    query: Tensor,
    sub_keys: Tensor,
    *,
    eps: float = FP32_EPS,
) -> None:
    """Check slots by what they are worth, never by their numbers: ties may fall either way.

    Args:
        name: What is checked.
        found: Scores and slots, [T, H, K].
        query: [T, H, 2, C].
        sub_keys: [H, 2, M, C].
        eps: Precision of the scores.
    """
    query, sub_keys = query.double(), sub_keys.double()
    halves = torch.einsum("thpc,hpmc->thpm", query, sub_keys)
    magnitude = torch.einsum("thpc,hpmc->thpm", query.abs(), sub_keys.abs()).amax((2, 3))
    best, _ = find_reference.product_key_topk(query, sub_keys, found[0].shape[2])
    check_selected(name, found, halves, best, 4 * eps * magnitude[..., None])


def check_selected(
    name: str, found: tuple[Tensor, Tensor], halves: Tensor, best: Tensor, limit: Tensor
) -> None:
    """Check a selection against the exact scores of the halves.

    Args:
        name: What is checked.
        found: Scores and slots, [T, H, K].
        halves: [T, H, 2, M] exact scores in fp64.
        best: [T, H, K] exact scores of the best slots in fp64, in falling order.
        limit: Largest error of a score, of a shape that broadcasts to [T, H, K].
    """
    scores, slots = found
    num_sub_keys = halves.shape[3]
    if not ((slots >= 0) & (slots < num_sub_keys**2)).all():
        raise WrongResultError(f"{name} is wrong: a slot is out of range")
    if not (slots.sort(dim=-1).values.diff(dim=-1) > 0).all():
        raise WrongResultError(f"{name} is wrong: a slot was selected twice")
    first = halves[:, :, 0].gather(-1, slots // num_sub_keys)
    second = halves[:, :, 1].gather(-1, slots % num_sub_keys)
    chosen = first + second
    check_close(f"{name}, score of a slot,", scores, chosen, limit)
    left_out = best - chosen.sort(dim=-1, descending=True).values
    check_close(f"{name}, choice of slots,", left_out, torch.zeros_like(left_out), 2 * limit)
