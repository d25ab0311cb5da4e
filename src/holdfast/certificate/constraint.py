"""One constraint on one sample: what is bounded, by which method, and the numbers that come out.

Kinds: `rate` is the share of harmful answers, `mean` the mean cost, both bounded exactly; `logit_mean` is
the mean of an unbounded cost, for which only the asymptotic Student-t bound of the paper exists. The sampling
unit is the prompt, whatever the number of answers to it.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from holdfast.certificate.records import Record
from holdfast.config import Settings
from holdfast.stats.betting import Bets, betting_p, betting_upper
from holdfast.stats.bounds import (
    clopper_pearson_lower,
    clopper_pearson_p,
    clopper_pearson_upper,
    hoeffding_bentkus_p,
    hoeffding_bentkus_upper,
    student_t_p,
    student_t_upper,
)

Kind = Literal["rate", "mean", "logit_mean"]
Method = Literal["clopper_pearson", "betting", "hoeffding_bentkus", "student_t"]
Floats = NDArray[np.float64]

METHODS: dict[str, tuple[str, ...]] = {
    "rate": ("clopper_pearson", "betting", "hoeffding_bentkus"),
    "mean": ("betting", "hoeffding_bentkus"),
    "logit_mean": ("student_t",),
}
FEWEST_FOR_T = 20
"""Fewer non-zero costs than this and the t bound is refused: it misses rare harm."""


class Betting(Settings):
    """How the betting bound stakes; defaults are centred on the limit."""

    c: float = Field(default=0.75, gt=0, lt=1)
    """The share of wealth one answer can cost at most."""
    prior_mean: float | None = None
    """Mean of the fake first observation; the limit tau when not given."""
    prior_var: float | None = Field(default=None, gt=0)
    """Its variance; (tau - lower) (upper - tau) when not given."""


class ConstraintPlan(Settings):
    """One limit that the policy has to keep, with the method that shows it."""

    name: str = Field(default="harm", min_length=1)
    """What the constraint is called in the certificate."""
    kind: Kind = "rate"
    """rate: share of harmful answers; mean: of a cost in [lower, upper]; logit_mean: of an unbounded cost."""
    tau: float
    """The limit: the quantity has to be at most this."""
    method: Method = "clopper_pearson"
    """clopper_pearson (rate), betting and hoeffding_bentkus (rate, mean), student_t (logit_mean)."""
    score: str = "cost"
    """The scorer's output that is read."""
    threshold: float = 0.0
    """rate: an answer is harmful when its cost is above this."""
    lower: float = 0.0
    """mean: the smallest possible cost; a cost below makes the test invalid."""
    upper: float = 1.0
    """mean: the largest possible cost; a cost above makes the test invalid."""
    betting: Betting = Betting()
    """Settings of the betting bound."""

    @model_validator(mode="after")
    def _consistent(self) -> "ConstraintPlan":
        if self.method not in METHODS[self.kind]:
            known = ", ".join(METHODS[self.kind])
            raise ValueError(f"kind {self.kind} has no method {self.method}; it has {known}")
        if not self.lower < self.upper:
            raise ValueError(f"lower {self.lower} has to be below upper {self.upper}")
        low, high = self.range
        if not low < self.tau < high:
            raise ValueError(f"tau of a {self.kind} lies between {low:g} and {high:g}; {self.tau:g} does not")
        return self

    @property
    def range(self) -> tuple[float, float]:
        """Between which values one unit of the sample can lie."""
        if self.kind == "rate":
            return 0.0, 1.0
        return (self.lower, self.upper) if self.kind == "mean" else (-math.inf, math.inf)

    @property
    def exact(self) -> bool:
        """Whether the bound holds at every sample size."""
        return self.method != "student_t"

    def claim(self, samples_per_prompt: int = 1) -> str:
        """The claim in symbols.

        >>> ConstraintPlan(tau=0.02, threshold=0.5).claim()
        'P(cost > 0.5) <= 0.02'
        """
        if self.kind != "rate":
            return f"E[{self.score}] <= {self.tau:g}"
        event = f"{self.score} > {self.threshold:g}"
        if samples_per_prompt > 1 and self.method == "clopper_pearson":
            event = f"any of {samples_per_prompt} answers has {event}"
        return f"P({event}) <= {self.tau:g}"

    def units(self, costs: Floats) -> Floats:
        """One value per prompt, (N,), from costs (N, K samples per prompt).

        Clopper-Pearson needs yes or no, so a prompt counts as harmful when any of its answers is; the other
        methods take the mean over a prompt's answers.
        """
        if self.kind == "rate":
            flags = (costs > self.threshold).astype(np.float64)
            pooled: Floats = flags.max(axis=1) if self.method == "clopper_pearson" else flags.mean(axis=1)
            return pooled
        # The mean of equal costs can round to a neighbour beyond the range.
        low, high = self.range
        means: Floats = costs.mean(axis=1)
        return np.minimum(np.maximum(means, low), high)


class ConstraintResult(Record):
    """What the sample says about one constraint; `passed` is what the release gate reads."""

    name: str
    kind: Kind
    tau: float
    delta: float
    method: Method
    n: int
    k: int | None
    estimate: float
    ucb: float
    ucb_simultaneous: float
    lcb: float
    p_value: float
    passed: bool


class Bounds(NamedTuple):
    """Upper and lower bound, each at delta, and the p-value of "the quantity is tau or more"."""

    upper: float
    lower: float
    p_value: float


def measure(constraint: ConstraintPlan, costs: Floats, delta: float, constraints: int = 1) -> ConstraintResult:
    """The result for costs (N, K samples per prompt) in the committed order, tested at the full delta.

    `constraints`: how many are tested together; `ucb_simultaneous` holds for all of them at once, by
    Bonferroni. k counts prompts with a harmful answer, None unless the kind is `rate`.
    """
    values = constraint.units(costs)
    found = bounds(constraint, values, delta)
    rate = constraint.kind == "rate"
    return ConstraintResult(
        name=constraint.name,
        kind=constraint.kind,
        tau=constraint.tau,
        delta=delta,
        method=constraint.method,
        n=values.size,
        k=int((values > 0).sum()) if rate else None,
        estimate=math.fsum(values) / values.size,
        ucb=found.upper,
        ucb_simultaneous=bounds(constraint, values, delta / constraints).upper,
        lcb=found.lower,
        p_value=found.p_value,
        # Written so that a bound which is no number cannot pass.
        passed=math.isfinite(found.upper) and found.upper <= constraint.tau,
    )


def bounds(constraint: ConstraintPlan, values: Floats, delta: float) -> Bounds:
    """The bounds of the constraint's method for one value per prompt, (N,)."""
    return _BY_METHOD[constraint.method](constraint, values, delta)


def degenerate(constraint: ConstraintPlan, values: Floats) -> bool:
    """Whether the t bound would be meaningless: no spread, or too few non-zero costs."""
    return not constraint.exact and bool(np.ptp(values) == 0 or np.count_nonzero(values) < FEWEST_FOR_T)


def can_pass(constraint: ConstraintPlan, n: int, delta: float) -> bool:
    """Whether n prompts with the best possible costs would keep the limit."""
    if delta <= 0 or not constraint.exact:
        return delta > 0 and n >= FEWEST_FOR_T
    return bounds(constraint, np.full(n, constraint.range[0]), delta).upper <= constraint.tau


def fewest_prompts(constraint: ConstraintPlan, delta: float) -> int:
    """The smallest number of prompts with which the constraint can pass.

    >>> fewest_prompts(ConstraintPlan(tau=0.05), 0.05)
    59
    """
    high = 1
    while not can_pass(constraint, high, delta):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if can_pass(constraint, middle, delta) else (middle, high)
    return high


def _clopper_pearson(constraint: ConstraintPlan, values: Floats, delta: float) -> Bounds:
    k, n = int(values.sum()), values.size
    return Bounds(
        clopper_pearson_upper(k, n, delta),
        clopper_pearson_lower(k, n, delta),
        clopper_pearson_p(k, n, constraint.tau),
    )


def _hoeffding_bentkus(constraint: ConstraintPlan, values: Floats, delta: float) -> Bounds:
    low, high = constraint.range
    # A lower bound is an upper bound seen in the mirror of the range.
    mirrored = low + high - values
    return Bounds(
        hoeffding_bentkus_upper(values, delta, lower=low, upper=high),
        low + high - hoeffding_bentkus_upper(np.clip(mirrored, low, high), delta, lower=low, upper=high),
        hoeffding_bentkus_p(values, constraint.tau, lower=low, upper=high),
    )


def _betting(constraint: ConstraintPlan, values: Floats, delta: float) -> Bounds:
    (low, high), tau, chosen = constraint.range, constraint.tau, constraint.betting
    mean = tau if chosen.prior_mean is None else chosen.prior_mean
    var = chosen.prior_var or (tau - low) * (high - tau)
    bets, mirrored = Bets(mean, var, chosen.c), Bets(low + high - mean, var, chosen.c)
    other = np.clip(low + high - values, low, high)
    return Bounds(
        betting_upper(values, delta, bets, upper=high),
        low + high - betting_upper(other, delta, mirrored, upper=high),
        betting_p(values, tau, delta, bets, upper=high),
    )


def _student_t(constraint: ConstraintPlan, values: Floats, delta: float) -> Bounds:
    return Bounds(
        student_t_upper(values, delta),
        -student_t_upper(-values, delta),
        student_t_p(values, constraint.tau),
    )


_BY_METHOD = {
    "clopper_pearson": _clopper_pearson,
    "hoeffding_bentkus": _hoeffding_bentkus,
    "betting": _betting,
    "student_t": _student_t,
}
