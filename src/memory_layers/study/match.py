"""match_variants(): set widths, experts and sub-keys so that variants cost the same.

FLOPs of a token grow evenly with the width of the feed-forward blocks, or of the experts, so two
counts on models of the real shape give the width. Parameters are counted on such models too. Next:
step_time.py, which makes variants take as long, and runs.py, which trains what comes out.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from memory_layers.study.config import CompareConfig, tokens_of
from memory_layers.study.flops import forward_flops, shape_of
from memory_layers.study.match_config import MEASURES
from memory_layers.train.config import RunConfig

# Sub-keys change the FLOPs of FIND, the width changes the parameters: a few rounds settle both.
ROUNDS = 8


@dataclass(frozen=True)
class Matched:
    """Variants that cost the same.

    Attributes:
        variants: The full configuration of each, with the first seed.
        record: For results.json. `tokens` that each is trained on, None where these differ. For
            each measure None where no variant is matched by it, else its `reference`, the `target`,
            and for the reference and each variant that is matched by it `off`: how far it is from
            its target, as a share of that, below 0 if it has less.
    """

    variants: Mapping[str, RunConfig]
    record: Mapping[str, Any]


def match_variants(config: CompareConfig, vocab_sizes: Mapping[str, int]) -> Matched:
    """Make the variants of a comparison equal in FLOPs and parameters, where `match` names them.

    FLOPs: the feed-forward width of each variant, or that of its experts, is set so that a forward
    pass takes as many FLOPs a token as the reference does, or `times` as many: such a dense model
    is made wider in all, in proportion, before its feed-forward width is set.

    Parameters: the experts of a mixture and the sub-keys of a memory are set so that the total is
    nearest to the reference's. Of experts that choose tokens, and of all experts at equal FLOPs,
    there are the fewest that reach it, as in arXiv 2412.09764. Dense models and `one_slot`, a
    memory of one slot by its nature, have nothing to set. The total of the dense ones is not
    reported as off.

    A size that cannot reach the target stays at its nearest.

    Args:
        config: The comparison.
        vocab_sizes: vocabulary_size of the tokenizer of each variant.

    Raises:
        UserError: There is nothing to equal.
    """
    variants, kinds, references = config.variants(), config.kinds(), config.references()
    matcher = _Matcher(config, vocab_sizes)
    for _ in range(ROUNDS):
        before = dict(variants)
        for name in variants:
            match = config.match_of(name)
            if "parameters" in match and name != references["parameters"]:
                variants[name] = matcher.with_parameters(name, variants)
            if "flops" in match and name != references["flops"]:
                variants[name] = matcher.with_flops(name, variants)
        if variants == before:
            break
    record: dict[str, Any] = {
        "tokens": common_tokens(variants),
        **dict.fromkeys(MEASURES),
    }
    for measure, reference in references.items():
        if measure == "seconds":
            continue
        counts = {name: matcher.count(measure, name, run) for name, run in variants.items()}
        target = counts[reference]
        record[measure] = {
            "reference": reference,
            "target": target,
            "off": {
                name: counts[name] / (target * matcher.times(measure, name)) - 1
                for name in variants
                if measure in config.match_of(name) or name == reference
                if measure == "flops" or kinds[name] != "dense"
            },
        }
    return Matched(variants, record)


def common_tokens(variants: Mapping[str, RunConfig]) -> int | None:
    """Return how many tokens each variant is trained on, None where these differ."""
    tokens = {tokens_of(run) for run in variants.values()}
    return tokens.pop() if len(tokens) == 1 else None


class _Matcher:
    """Sets one size of one variant at a time. Arguments are as in match_variants."""

    def __init__(self, config: CompareConfig, vocab_sizes: Mapping[str, int]) -> None:
        self._config, self._plain = config, config.variants()
        self._kinds, self._references = config.kinds(), config.references()
        self._vocab_sizes = vocab_sizes
        self._counts: dict[tuple[str, int, RunConfig], float] = {}
        self._slopes: dict[tuple[str, int], float] = {}

    def times(self, measure: str, name: str) -> float:
        """Return what a variant is to have, as a multiple of the reference's."""
        return self._config.overrides[name].times if measure == "flops" else 1.0

    def count(self, measure: str, name: str, run: RunConfig) -> float:
        """Count FLOPs of a token, or parameters, of a configuration of a variant."""
        vocab_size = self._vocab_sizes[name]
        key = (measure, vocab_size, replace(run, name="any"))
        if key not in self._counts:
            model = shape_of(run, vocab_size)
            if measure == "flops":
                train = run.train
                self._counts[key] = forward_flops(model, train.seq_len, train.batch_size)
            else:
                self._counts[key] = sum(parameter.numel() for parameter in model.parameters())
        return self._counts[key]

    def with_flops(self, name: str, variants: Mapping[str, RunConfig]) -> RunConfig:
        """Return a variant with the feed-forward width that gives it its FLOPs."""
        reference = self._references["flops"]
        target = self.count("flops", reference, variants[reference]) * self.times("flops", name)
        run = variants[name]
        if self.times("flops", name) != 1:
            run = self._widened(name, target)

        def count(width: int) -> float:
            return self.count("flops", name, _with_width(run, width))

        width = _width_of(run)
        key = (name, run.model.to_preset().hidden_size)
        # Neither experts nor sub-keys change it.
        if key not in self._slopes:
            self._slopes[key] = (count(2 * width) - count(width)) / width
        slope = self._slopes[key]
        if slope <= 0:
            # Memory stands in place of every feed-forward block.
            return run
        return _with_width(run, max(1, round(width + (target - count(width)) / slope)))

    def with_parameters(self, name: str, variants: Mapping[str, RunConfig]) -> RunConfig:
        """Return a variant with the experts or sub-keys that give it its parameters."""
        run, reference = variants[name], self._references["parameters"]
        target = self.count("parameters", reference, variants[reference])
        memory, moe = run.memory, run.moe
        if moe is not None:
            equal_flops = "flops" in self._config.match_of(name)

            def resized(size: int) -> RunConfig:
                fitted = replace(run, moe=replace(moe, experts=size))
                return self.with_flops(name, {**variants, name: fitted}) if equal_flops else fitted

            least = moe.top_k if moe.routing == "token_choice" else math.ceil(moe.capacity_factor)
            least = max(2, least)
            fewest = equal_flops or self._kinds[name] == "moe_expert_choice"
        elif memory is not None and self._kinds[name] != "one_slot":

            def resized(size: int) -> RunConfig:
                return replace(run, memory=replace(memory, sub_keys=size))

            least, fewest = memory.top_k, False
        else:
            return run

        def count(size: int) -> float:
            return self.count("parameters", name, resized(size))

        return resized((_fewest if fewest else _nearest)(count, target, least))

    def _widened(self, name: str, target: float) -> RunConfig:
        """Return a dense variant with the model width whose FLOPs are nearest to the target."""
        run = self._plain[name]
        shape = run.model.to_preset()
        mlp_size, unit = shape.to_config().intermediate_size, 2 * shape.heads

        def wide(units: int) -> RunConfig:
            width = units * unit
            proportional = max(1, round(mlp_size * width / shape.hidden_size))
            model = replace(run.model, hidden_size=width, mlp_size=proportional)
            return replace(run, model=model)

        least = shape.hidden_size // unit
        return wide(_nearest(lambda units: self.count("flops", name, wide(units)), target, least))


def _nearest(count: Callable[[int], float], target: float, least: int) -> int:
    """Return the size whose count, which grows with it, is nearest to the target."""
    high = _fewest(count, target, least)
    return min(max(least, high - 1), high, key=lambda size: abs(count(size) - target))


def _fewest(count: Callable[[int], float], target: float, least: int) -> int:
    """Return the least size that reaches the target, or the one that comes nearest to it.

    At equal FLOPs a router grows with the experts and leaves less for each: their total rises to
    a highest point, and falls beyond it.
    """
    high = least
    while count(high) < target and count(2 * high) > count(high):
        high *= 2
    low = max(least, high // 2)
    if count(high) < target:
        seen = {size: count(size) for size in (low, high, 2 * high)}
        left, right = low, 2 * high
        while right - left > 2:
            third = (right - left) // 3
            a, b = left + third, right - third
            seen |= {a: count(a), b: count(b)}
            left, right = (a, right) if seen[a] < seen[b] else (left, b)
        high = max(seen, key=lambda size: seen[size])
        if seen[high] < target:
            return high
    # Widths are rounded, so that the total is not quite even: which middle is tried matters.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < target else (low, middle)
    return low if count(low) >= target else high


def _width_of(run: RunConfig) -> int:
    mlp_size = run.model.to_preset().to_config().intermediate_size
    return mlp_size if run.moe is None else run.moe.hidden_size(mlp_size)


def _with_width(run: RunConfig, width: int) -> RunConfig:
    if run.moe is None:
        return replace(run, model=replace(run.model, mlp_size=width))
    return replace(run, moe=replace(run.moe, expert_size=width))
