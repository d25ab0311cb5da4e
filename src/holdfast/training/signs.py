"""The signs by which the collapse detector tells a run that comes apart, each against the run's own start."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from holdfast.config import Settings


class Thresholds(Settings):
    """Where each sign begins; `x` is a multiple of the start's value."""

    length_high: float = Field(1.6, gt=1)
    """Length: longer than this x."""
    length_low: float = Field(0.5, ge=0, lt=1)
    """Length: shorter than this x, the other way to fail."""
    truncated_rise: float = Field(0.1, gt=0, le=1)
    """Length: more truncated answers than at the start by this share."""
    spread_high: float = Field(1.8, gt=1)
    """Tail: standard deviation of the scores above this x."""
    tail_high: float = Field(2.0, gt=1)
    """Tail: distance from the median to the 95 % quantile of the scores above this x."""
    nll_low: float = Field(0.55, ge=0, lt=1)
    """Certainty: negative log-likelihood per token below this x."""
    nll_high: float = Field(1.8, gt=1)
    """Certainty: negative log-likelihood per token above this x."""
    entropy_low: float = Field(0.5, ge=0, lt=1)
    """Certainty: entropy below this x."""
    distinct_low: float = Field(0.6, ge=0, lt=1)
    """Repetition: share of distinct bigrams below this x."""
    run_rise: float = Field(8.0, gt=0)
    """Repetition: longest run of one token above that of the start by this many tokens."""
    kl_times: float = Field(3.0, gt=0)
    """Divergence: KL per token (k3) above this many times the target of the KL settings, and growing."""
    kl_errors: float = Field(2.0, gt=0)
    """Divergence: KL per answer below zero by this many standard errors, as no true KL is."""
    explained_low: float = Field(-0.5, lt=1)
    """Critic: explained variance below this ..."""
    explained_for: int = Field(3, ge=1)
    """... for this many iterations."""
    loss_spike: float = Field(10.0, gt=1)
    """Critic: a value loss above this many times its median."""
    ceiling_for: int = Field(10, ge=1)
    """Constraint: violated for this many iterations with the multiplier at its ceiling."""
    collapse_truncated: float = Field(0.5, gt=0, lt=1)
    """Collapse: more answers truncated than this share."""
    collapse_families: int = Field(4, ge=2)
    """Collapse: this many families at once."""


@dataclass(frozen=True)
class Seen:
    """Smoothed numbers of one iteration beside those of the start; each family yields what speaks for it.

    >>> [*Seen({"length": 90.0}, {"length": 50.0}, Thresholds()).length()]
    ["length 1.8x the start's"]
    """

    now: Mapping[str, float]
    start: Mapping[str, float]
    thresholds: Thresholds

    def length(self) -> Iterator[str]:
        """Answers grow, shrink, or no longer end."""
        t, cut = self.thresholds, self.now.get("truncated", 0.0)
        yield from self._outside("length", "length", t.length_low, t.length_high)
        if cut > t.collapse_truncated or cut > self.start.get("truncated", math.inf) + t.truncated_rise:
            yield f"{cut:.0%} truncated"

    def tail(self) -> Iterator[str]:
        """Scores spread, upwards above all."""
        yield from self._outside("score/sd", "score spread", 0.0, self.thresholds.spread_high)
        yield from self._outside("score/tail", "upper tail of the scores", 0.0, self.thresholds.tail_high)

    def certainty(self) -> Iterator[str]:
        """The policy is surer of its answers than at the start, or much less sure."""
        t = self.thresholds
        yield from self._outside("nll", "negative log-likelihood", t.nll_low, t.nll_high)
        yield from self._outside("entropy", "entropy", t.entropy_low)

    def repetition(self) -> Iterator[str]:
        """Answers say the same again."""
        t = self.thresholds
        yield from self._outside("distinct2", "distinct bigrams", t.distinct_low)
        run = self.now.get("repeat_run", 0.0)
        if run > self.start.get("repeat_run", math.inf) + t.run_rise:
            yield f"one token {run:.0f} times in a row"

    def _outside(self, name: str, label: str, low: float, high: float = math.inf) -> Iterator[str]:
        """A sign when the number is not between `low` and `high` times that of the start, which must be positive."""
        if name in self.now and self.start.get(name, 0.0) > 0:
            times = self.now[name] / self.start[name]
            if not low <= times <= high:
                yield f"{label} {times:.2g}x the start's"


def value_losses(numbers: Mapping[str, float]) -> list[str]:
    """The names of the critics' finite losses in a row, `PART/value` or `PART/STREAM` of parts that learned.

    >>> value_losses({"value/harm/value": 0.1, "value/harm/grad_norm": 2.0, "value_mean/value": 1.0})
    ['value/harm/value']
    """
    parts = [name.removesuffix("grad_norm") for name in numbers if name.endswith("/grad_norm")]
    streams = {name.removeprefix("explained_variance/") for name in numbers if name.startswith("explained_variance/")}
    named = {part + stream for part in parts for stream in {"value", *streams}}
    return [name for name, value in numbers.items() if name in named and math.isfinite(value)]


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each number over the rows that hold it.

    >>> means([{"nll": 1.0}, {"nll": 3.0, "kl": 0.5}])
    {'nll': 2.0, 'kl': 0.5}
    """
    names = dict.fromkeys(name for row in rows for name in row)
    found = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}


def slope(values: Sequence[float]) -> float:
    """The slope per place of the least-squares line through two values or more.

    >>> slope([1.0, 3.0, 5.0])
    2.0
    """
    middle = (len(values) - 1) / 2
    rise = sum((place - middle) * value for place, value in enumerate(values))
    return rise / sum((place - middle) ** 2 for place in range(len(values)))
