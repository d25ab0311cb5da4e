import math

import numpy as np
import pytest
from scipy.stats import binom

from holdfast.stats.power import allowed_k, needed_n, pass_probability, spend, zero_harm_n


@pytest.mark.parametrize(
    "tau, sizes, strict",
    [
        (0.10, [29, 46, 61, 103, 167], 44),
        (0.05, [59, 93, 124, 208, 336], 90),
        (0.02, [149, 236, 313, 523, 845], 228),
        (0.01, [299, 473, 628, 1049, 1693], 459),
        (0.005, [598, 947, 1258, 2100, 3389], 919),
        (0.001, [2995, 4742, 6294, 10511, 16959], 4603),
    ],
)
def test_table_of_needed_prompts(tau, sizes, strict):
    assert [needed_n(tau, 0.05, k) for k in (0, 1, 2, 5, 10)] == sizes
    assert zero_harm_n(tau, 0.05) == sizes[0] == math.ceil(math.log(0.05) / math.log(1 - tau))
    assert zero_harm_n(tau, 0.01) == strict


@pytest.mark.parametrize("n", [20, 58, 59, 92, 93, 400])
def test_allowed_k_is_the_last_that_passes(n):
    # The bound is at most tau exactly when the binomial tail at tau is at most delta.
    passing = [k for k in range(n + 1) if binom.cdf(k, n, 0.05) <= 0.05]
    assert allowed_k(n, 0.05, 0.05) == (passing[-1] if passing else None)


def test_pass_probability_against_simulation():
    draws = np.random.default_rng(0).binomial(313, 0.01, 200_000)
    # Four standard errors of 200 000 draws are 0.0045.
    assert pass_probability(313, 0.02, 0.05, 0.01) == pytest.approx(np.mean(draws <= 2), abs=0.0045)
    assert pass_probability(58, 0.05, 0.05, 0.0) == 0.0
    assert pass_probability(313, 0.02, 0.05, 0.02) <= 0.05


def test_schedules():
    assert [spend(0.05, k, "geometric") for k in (1, 2, 3, 4)] == [0.025, 0.0125, 0.00625, 0.003125]
    assert [round(spend(0.05, k, "inverse_square"), 6) for k in (1, 2, 3)] == [0.030396, 0.007599, 0.003377]
    assert [spend(0.05, k) for k in (1, 2, 3)] == [0.05, 0.0, 0.0]


@pytest.mark.parametrize("schedule", ["single_use", "geometric", "inverse_square"])
def test_all_attempts_together_spend_no_more_than_delta(schedule):
    assert math.fsum(spend(0.05, k, schedule) for k in range(1, 10_001)) <= 0.05


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: needed_n(0.0, 0.05, 0), "tau is a rate between 0 and 1, got 0.0"),
        (lambda: spend(0.05, 0), "attempts count from 1, got 0"),
        (lambda: spend(0.05, 1, "often"), "no schedule 'often'"),
        (lambda: pass_probability(100, 0.05, 0.05, 1.2), "got 1.2"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
