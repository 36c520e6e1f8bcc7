"""A variant is one way to do the same work. A suite is the variants that are timed together."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to do the work.

    Attributes:
        name: In tables and result files.
        run: What is timed.
        check: Runs it once and raises WrongResultError unless the result is right.
        checked: What `check` compares, for the result file.
        bytes: Bytes that must move, whatever the implementation: each row that is needed once a
            read, each row that is written read and written with its state.
        prepare: Called before every run, not timed.
        against: Variants to state the speed-up over: the fastest of these.
        ours: Implemented here, not a baseline.
        tokens: Tokens of a run, for tokens a second.
        most_rounds: Not timed more often: for a baseline that is slow by an order of magnitude.
    """

    name: str
    run: Callable[[], object]
    check: Callable[[], None]
    checked: str
    bytes: int
    prepare: Callable[[], object] | None = None
    against: tuple[str, ...] = ()
    ours: bool = False
    tokens: int | None = None
    most_rounds: int | None = None


@dataclass(frozen=True)
class Suite:
    """Variants timed together.

    Attributes:
        variants: At least one.
        facts: What of the inputs explains the numbers, such as the distinct rows.
    """

    variants: tuple[Variant, ...]
    facts: dict[str, object] = field(default_factory=dict)
