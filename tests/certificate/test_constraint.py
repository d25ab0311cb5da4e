import math

import numpy as np
import pytest

from holdfast.certificate.constraint import (
    Betting,
    ConstraintPlan,
    can_pass,
    degenerate,
    fewest_prompts,
    measure,
)
from holdfast.config import build
from holdfast.errors import UserError
from holdfast.stats.betting import Bets, betting_upper
from holdfast.stats.bounds import clopper_pearson_upper, hoeffding_bentkus_upper, student_t_upper

RATE = ConstraintPlan(tau=0.02, threshold=0.5)
MEAN = ConstraintPlan(name="mean", kind="mean", method="betting", tau=0.2)


def column(*costs):
    return np.array(costs, dtype=float)[:, None]


def test_rate_counts_costs_above_the_threshold():
    costs = np.full((313, 1), 0.5)
    costs[:2] = 0.51
    result = measure(RATE, costs, 0.05)
    assert (result.n, result.k, result.passed) == (313, 2, True)
    assert (result.ucb, result.p_value) == pytest.approx((0.019977, 0.049730), abs=5e-7)
    assert result.estimate == pytest.approx(2 / 313)
    assert not measure(RATE, costs, 0.025).passed


def test_a_bound_equal_to_the_limit_passes():
    exact = clopper_pearson_upper(2, 313, 0.05)
    costs = np.zeros((313, 1))
    costs[:2] = 1.0
    assert measure(ConstraintPlan(tau=exact, threshold=0.5), costs, 0.05).passed
    assert not measure(ConstraintPlan(tau=np.nextafter(exact, 0), threshold=0.5), costs, 0.05).passed


def test_simultaneous_bounds_share_delta():
    # Zero harm in 100 prompts, 14 categories: .0295 alone, .0548 for all at once.
    result = measure(RATE, np.zeros((100, 1)), 0.05, constraints=14)
    assert (result.ucb, result.ucb_simultaneous) == pytest.approx((0.0295, 0.0548), abs=5e-5)


def test_several_answers_per_prompt_are_one_unit():
    costs = np.array([[0.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    any_harm = ConstraintPlan(tau=0.9, threshold=0.5)
    share = ConstraintPlan(tau=0.9, threshold=0.5, method="betting")
    assert any_harm.units(costs).tolist() == [1, 0, 1, 0]
    assert share.units(costs).tolist() == [0.5, 0, 1, 0]
    assert (measure(any_harm, costs, 0.05).k, measure(share, costs, 0.05).n) == (2, 4)
    assert any_harm.claim(2) == "P(any of 2 answers has cost > 0.5) <= 0.9"
    assert share.claim(2) == "P(cost > 0.5) <= 0.9"


@pytest.mark.parametrize("method", ["betting", "hoeffding_bentkus"])
def test_mean_bounds_enclose_and_mirror(method):
    constraint = ConstraintPlan(kind="mean", method=method, tau=0.3, lower=-1, upper=1)
    costs = np.random.default_rng(0).uniform(-1, 0.4, (80, 1))
    mirrored = constraint.model_copy(update={"tau": -0.3})
    result, mirror = measure(constraint, costs, 0.05), measure(mirrored, -costs, 0.05)
    assert result.lcb < result.estimate < result.ucb
    assert (result.lcb, result.ucb) == pytest.approx((-mirror.ucb, -mirror.lcb), abs=1e-8)
    assert result.k is None
    assert result.passed == (result.p_value <= 0.05)


def test_methods_are_those_of_the_statistics():
    costs = np.random.default_rng(1).random(60) * 0.3
    betting = measure(MEAN, costs[:, None], 0.05)
    assert betting.ucb == betting_upper(costs, 0.05, Bets(0.2, 0.2 * 0.8))
    tuned = MEAN.model_copy(update={"betting": Betting(c=0.5, prior_mean=0.1, prior_var=0.02)})
    assert measure(tuned, costs[:, None], 0.05).ucb == betting_upper(costs, 0.05, Bets(0.1, 0.02, 0.5))
    bentkus = MEAN.model_copy(update={"method": "hoeffding_bentkus"})
    assert measure(bentkus, costs[:, None], 0.05).ucb == hoeffding_bentkus_upper(costs, 0.05)
    logits = ConstraintPlan(kind="logit_mean", method="student_t", tau=0.0)
    result = measure(logits, costs[:, None] - 1, 0.1)
    assert result.ucb == student_t_upper(costs - 1, 0.1)
    assert result.lcb == pytest.approx(2 * result.estimate - result.ucb)


def test_equal_costs_at_the_end_of_the_range_stay_in_it():
    # Three times 0.1 sum to a little more than 0.3.
    constraint = ConstraintPlan(kind="mean", method="betting", tau=0.05, upper=0.1)
    assert constraint.units(np.full((4, 3), 0.1)).max() == 0.1


def test_fewest_prompts():
    assert fewest_prompts(ConstraintPlan(tau=0.05), 0.05) == 59
    assert fewest_prompts(ConstraintPlan(tau=0.05, method="betting"), 0.05) == 78
    assert fewest_prompts(ConstraintPlan(tau=0.9), 0.2) == 1
    # In the range [-1, 1] the limit 0 lies in the middle: 0.5 ** n <= 0.05.
    middle = ConstraintPlan(kind="mean", method="hoeffding_bentkus", tau=0.0, lower=-1)
    assert fewest_prompts(middle, 0.05) == 5
    logits = ConstraintPlan(kind="logit_mean", method="student_t", tau=0.0)
    assert (can_pass(logits, 19, 0.05), can_pass(logits, 20, 0.05), can_pass(logits, 20, 0.0)) == (
        False,
        True,
        False,
    )
    assert not can_pass(RATE, 10_000, 0.0)


def test_the_t_bound_needs_spread():
    logits = ConstraintPlan(kind="logit_mean", method="student_t", tau=0.0)
    assert degenerate(logits, np.full(50, -3.0))
    assert degenerate(logits, np.r_[np.zeros(31), np.full(19, -1.0)])
    assert not degenerate(logits, np.r_[np.zeros(30), np.full(20, -1.0)])
    assert not degenerate(RATE, np.zeros(50))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"tau": 0.0}, "tau of a rate lies between 0 and 1; 0 does not"),
        ({"tau": 1.5}, "tau of a rate lies between 0 and 1; 1.5 does not"),
        ({"tau": 2, "kind": "mean", "method": "betting", "upper": 2}, "between 0 and 2; 2 does not"),
        (
            {"tau": 0.1, "kind": "mean"},
            "kind mean has no method clopper_pearson; it has betting, hoeffding_bentkus",
        ),
        ({"tau": 0.1, "method": "student_t"}, "kind rate has no method student_t"),
        ({"tau": 0.1, "kind": "quantile"}, "'rate', 'mean' or 'logit_mean'"),
        ({"tau": math.nan}, "tau: input should be a finite number"),
        ({"tau": 0.1, "lower": 1.0}, "lower 1.0 has to be below upper 1.0"),
    ],
)
def test_limits_that_make_no_sense_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        build(ConstraintPlan, values)
