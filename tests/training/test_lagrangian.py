"""Constraints: what they count, the bound, and how the multiplier moves."""

import itertools
import json
import math
import statistics

import pytest
import torch

from holdfast.config import build
from holdfast.errors import RunError, UserError
from holdfast.training.lagrangian import Constraint, ConstraintSettings

COSTS = torch.tensor([-3.0, -1.0, 0.0, 2.0, -2.0])


def constraint(zero=0.0, probability=None, **settings):
    base = {"measure": "logit", "threshold": 0.0, "bound": "mean"}
    return Constraint(ConstraintSettings(**(base | settings)), zero, probability)


def filled(values, **settings):
    """A constraint whose window holds `values`, repeated until the multiplier may move."""
    found = constraint(**settings)
    found.observe(torch.tensor(list(itertools.islice(itertools.cycle(values), 32))))
    return found


@pytest.mark.parametrize(
    "c1, c2, prompts, n_safety, expected",
    [
        (4, 2, 32, 100, 1.183963),
        (4, 2, 256, 100, 0.579252),
        (4, 2, 32, 1000, 1.007037),
        (1, 1, 256, 1000, 0.120858),
        (0, 2, 32, 100, 0.258032),
    ],
)
def test_kappa_is_the_published_number(c1, c2, prompts, n_safety, expected):
    one = constraint(bound="student_t", delta=0.1, c1=c1, c2=c2, n_safety=n_safety)
    one.observe(torch.zeros(prompts))
    # The table gives six digits.
    assert one.kappa() == pytest.approx(expected, abs=5e-7)


def test_kappa_counts_prompts_and_not_answers():
    settings = {"bound": "student_t", "delta": 0.1, "c1": 4, "c2": 2, "n_safety": 100}
    one, four = constraint(**settings), constraint(**settings)
    one.observe(torch.zeros(32), per_prompt=1)
    four.observe(torch.zeros(128), per_prompt=4)
    assert four.kappa() == one.kappa()
    for bound in ("mean", "rectified"):
        assert constraint(**(settings | {"bound": bound})).kappa() == 0


def test_the_bound_is_the_mean_plus_kappa_deviations():
    settings = {"bound": "student_t", "delta": 0.05, "c1": 1.0, "c2": 2.0, "n_safety": 50}
    one = constraint(**settings)
    one.observe(COSTS)
    mean, deviation = statistics.mean(COSTS.tolist()), statistics.stdev(COSTS.tolist())
    assert one.moments() == pytest.approx((mean, deviation), abs=1e-12)
    # t(0.95, 4) = 2.131847 and t(0.95, 49) = 1.676551, from tables of six digits.
    kappa = 2.131847 / math.sqrt(5) + 2 * 1.676551 / math.sqrt(50)
    assert one.upper() == pytest.approx(mean + kappa * deviation, abs=5e-6)
    plain = constraint()
    plain.observe(COSTS)
    assert plain.upper() == pytest.approx(-0.8, abs=1e-12)


def test_the_policy_and_the_multiplier_share_one_kappa():
    one = constraint(bound="student_t", delta=0.1, c1=4, c2=2, n_safety=100, monotone=False)
    one.observe(COSTS.repeat(8), per_prompt=4)
    mean, deviation = one.moments()
    dual = (one.upper() - mean) / deviation
    moved = one.augmented(COSTS)
    primal = [float(a - c) * 2 * deviation / (float(c) - mean) ** 2 for a, c in zip(moved, COSTS)]
    assert dual == pytest.approx(one.kappa(), abs=1e-12)
    # augmented costs are float32
    assert primal == pytest.approx([one.kappa()] * 5, rel=1e-5)


def test_the_augmented_cost_has_the_gradient_of_the_bound():
    """Three answers with exact probabilities: the score-function gradient is that of mean + kappa sd."""
    logits = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    costs = torch.tensor([-2.0, 1.0, 4.0], dtype=torch.float64)

    class Exact(Constraint):
        """Moments of the policy itself, and kappa as given."""

        def moments(self):
            return 1.22422644, 2.58822787

        def kappa(self):
            return 0.5

    augmented = Exact(ConstraintSettings(measure="logit", threshold=0.0, monotone=False)).augmented(costs)
    p = logits.softmax(0)
    gradient = p * (augmented - (p * augmented).sum())
    # The specification of the gradient has eight digits.
    expected = torch.tensor([-0.96790773, -0.21668368, 1.18459141], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-7)


def test_monotone_never_pays_for_less_safety():
    line = torch.linspace(-20, 20, 200)
    pays = constraint(bound="student_t", c2=20, n_safety=10, monotone=False)
    never = constraint(bound="student_t", c2=20, n_safety=10, monotone=True)
    for one in (pays, never):
        one.observe(COSTS)
    assert (pays.augmented(line).diff() < 0).any()
    assert (never.augmented(line).diff() >= 0).all()


def test_rectified_counts_what_each_answer_alone_is_over():
    one = constraint(bound="rectified", threshold=-1.0)
    one.observe(COSTS)
    # Above -1: 0 by 1, 2 by 3.
    assert one.upper() - one.limit == pytest.approx((1 + 3) / 5)
    assert one.augmented(COSTS).tolist() == [0.0, 0.0, 1.0, 3.0, 0.0]


def test_the_window_forgets():
    one = constraint(window=32)
    one.observe(torch.full((32,), 7.0))
    one.observe(torch.arange(8.0))
    assert one.moments()[0] == pytest.approx((24 * 7 + 28) / 32)


def test_nothing_moves_before_the_window_says_enough():
    one = constraint(initial=1.0)
    one.observe(torch.ones(31))
    assert one.step()["multiplier/harm"] == 1.0
    one.observe(torch.ones(1))
    assert one.step()["multiplier/harm"] > 1.0


@pytest.mark.parametrize(
    "rule, expected",
    [("projected", 1.05), ("log", math.exp(0.1 * 1.0 * 0.5)), ("mirror", math.exp(0.05)), ("pid", 1 + 0.05 + 0.05)],
)
def test_each_rule_moves_as_published(rule, expected):
    one = filled([0.75], rule=rule, threshold=0.25, rate=0.1, floor=0.01, initial=1.0)
    assert one.step()["multiplier/harm"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("rule", ["projected", "log", "mirror", "pid"])
def test_multipliers_rise_when_violated_fall_when_not_and_stay_in_bounds(rule):
    settings = {"rule": rule, "floor": 0.1, "initial": 1.0, "ceiling": 2.0, "rate": 0.5}
    over, under, met = filled([1.0], **settings), filled([-1.0], **settings), filled([1.0, -1.0], **settings)
    for one in (over, under, met):
        one.step()
    assert over.multiplier > 1 > under.multiplier
    assert met.multiplier == 1
    for _ in range(60):
        over.step()
        under.step()
    assert (over.multiplier, under.multiplier) == (2.0, 0.1)


def test_flags_probabilities_and_raw_scores():
    raw = torch.tensor([-1.0, 0.2, 0.3, 5.0])
    assert constraint(zero=0.2, measure="flag").measure(raw).tolist() == [0.0, 0.0, 1.0, 1.0]
    assert constraint(measure="logit").measure(raw).tolist() == raw.tolist()
    probability = constraint(probability=torch.sigmoid, measure="probability")
    assert torch.equal(probability.measure(raw), torch.sigmoid(raw))
    with pytest.raises(UserError, match="harm limits a probability, but the score cost is not calibrated"):
        constraint(measure="probability")


def test_at_least_is_at_most_of_the_negative():
    settings = {"bound": "student_t", "c1": 1.0, "rate": 0.3}
    least = filled(COSTS.tolist(), direction="at_least", threshold=1.0, **settings)
    most = filled((-COSTS).tolist(), threshold=-1.0, **settings)
    seen, mirrored = least.step(), most.step()
    assert least.multiplier == most.multiplier > 1, "a mean of -0.8 violates at least 1"
    torch.testing.assert_close(least.augmented(COSTS), most.augmented(-COSTS))
    assert seen["cost/harm"] == -mirrored["cost/harm"] == pytest.approx(least.moments()[0] * -1)
    assert seen["cost_ucb/harm"] == -mirrored["cost_ucb/harm"] < seen["cost/harm"]
    assert seen["threshold/harm"] == 1.0


def test_costs_that_are_no_numbers_stop_the_run():
    with pytest.raises(RunError, match="constraint harm: 2 costs are not finite"):
        constraint().observe(torch.tensor([1.0, math.nan, math.inf]))


def test_resting_at_the_ceiling_is_reported_and_forgiven():
    one = filled([1.0], ceiling=1.0)
    for number in range(1, 11):
        assert one.warning() is None
        assert one.step()["at_ceiling/harm"] == number
    assert "limit cannot be met so far: the multiplier has been at its ceiling 1 for 10 iterations" in one.warning()
    one.observe(torch.full((512,), -1.0))
    assert one.step()["at_ceiling/harm"] == 0
    assert one.warning() is None


def test_a_satisfied_limit_at_the_ceiling_is_no_trouble():
    one = filled([-1.0], ceiling=1.0, floor=1.0)
    assert one.step()["at_ceiling/harm"] == 0


@pytest.mark.parametrize("rule", ["projected", "log", "mirror", "pid"])
def test_the_state_is_everything(rule):
    """Through JSON, since a checkpoint holds plain data: what follows is what would have followed."""
    settings = {"rule": rule, "floor": 0.01, "bound": "student_t", "c1": 2.0, "window": 48, "ceiling": 1.05}
    rng = torch.Generator().manual_seed(5)
    costs = [torch.randn(20, generator=rng) + 0.4 for _ in range(8)]
    one = constraint(**settings)
    for batch in costs[:4]:
        one.observe(batch, per_prompt=2)
        one.step()
    other = constraint(**settings)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert other.state_dict() == one.state_dict()
    for batch in costs[4:]:
        for each in (one, other):
            each.observe(batch, per_prompt=2)
        assert other.step() == one.step()
    assert other.state_dict() == one.state_dict()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"floor": 3.0, "ceiling": 2.0, "initial": 2.5}, "floor 3.0 is above ceiling 2.0"),
        ({"initial": 30.0}, "initial 30.0 lies outside floor 0.0 .. ceiling 20.0"),
        ({"rule": "log"}, "the log rule multiplies and cannot leave zero"),
        ({"rule": "mirror", "initial": 0.0}, "the mirror rule multiplies and cannot leave zero"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        build(ConstraintSettings, settings)


def test_a_limit_that_is_not_met_is_said_at_the_end():
    one = Constraint(ConstraintSettings(measure="logit", bound="mean", threshold=-1.0))
    assert one.shortfall() is None
    one.observe(torch.full((32,), -0.5))
    assert "the limit is not met: the bound on recent answers is -0.5, the threshold -1" in one.shortfall()
    one.observe(torch.full((512,), -1.5))
    assert one.shortfall() is None
