import math

import pytest
import torch
from torch.testing import assert_close

from holdfast.losses.advantage import leave_one_out
from holdfast.losses.dual import (
    Gains,
    PidState,
    augmented_cost,
    log_step,
    mirror_step,
    pessimistic,
    pid_step,
    projected_step,
    rectified,
    update,
)
from holdfast.losses.surrogate import reinforce

RULES = ["projected", "log", "mirror"]
STEPS = [projected_step, log_step, mirror_step]
COSTS = torch.tensor([-3.0, -1.0, 0.0, 2.0, -2.0], dtype=torch.float64)
MEAN, STD = -0.8, math.sqrt(3.7)


@pytest.mark.parametrize(
    "value, violation, log, projected",
    [(1.0, 0.5, 1.0512710964, 1.05), (1.0, -0.5, 0.9512294245, 0.95), (10.0, 0.5, 16.4872127070, 10.05)],
)
def test_published_steps_by_hand(value, violation, log, projected):
    assert log_step(value, violation, 0.1) == pytest.approx(log, abs=1e-9)
    assert projected_step(value, violation, 0.1) == pytest.approx(projected, abs=1e-12)
    assert mirror_step(value, violation, 0.1) == pytest.approx(value * math.e ** (0.1 * violation), abs=1e-9)


def test_ceiling_cuts_a_step_that_would_leave_it():
    assert log_step(18.0, 0.5, 0.1) == pytest.approx(44.27, abs=5e-3)  # four published digits
    assert update("log", 18.0, 0.5, 0.1, floor=0.0, ceiling=20.0) == 20.0


def test_violation_of_a_window_by_hand():
    window = torch.tensor([1.0, -3.0, 0.5, 2.5])
    threshold = -0.5
    assert window.mean().item() == 0.25
    assert pessimistic(window.mean().item(), window.std().item(), kappa=0.0) - threshold == 0.75


@pytest.mark.parametrize(
    "start, steps, reached, tolerance",
    [(1.0, 200, 0.75, 1e-3), (10.0, 200, 0.75, 1e-3), (0.05, 100, 0.533, 5e-4), (0.05, 200, 0.750, 1e-3)],
)
def test_log_rule_finds_the_fixed_point_of_a_response_model(start, steps, reached, tolerance):
    """The tolerances are those of the published three digits."""
    value = start
    for _ in range(steps):
        cost = 2 - 5 * value / (value + 0.5)
        value = update("log", value, cost - (-1), 0.1, floor=0.0, ceiling=20.0)
    assert value == pytest.approx(reached, abs=tolerance)


def test_two_steps_of_the_log_rule_in_logarithms():
    first = log_step(1.0, 1.0, 0.01)
    assert math.log(first) == pytest.approx(0.01, abs=1e-12)
    assert first == pytest.approx(1.010050, abs=5e-7)
    assert math.log(log_step(first, 1.0, 0.01)) == pytest.approx(0.020101, abs=1e-6)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_the_ascent_direction_of_the_dual(step):
    """Small steps follow rate * violation times the metric of each rule: 1, value^2, value."""
    metric = {projected_step: 1.0, log_step: 9.0, mirror_step: 3.0}[step]
    slope = (step(3.0, 0.7, 1e-6) - 3.0) / 1e-6
    assert slope == pytest.approx(0.7 * metric, rel=1e-5)  # the step has a curvature of order rate


@pytest.mark.parametrize("rule", RULES)
def test_update_is_bounded_monotone_and_still_when_nothing_is_violated(rule):
    for value in (0.05, 0.3, 1.0, 7.77, 20.0):
        violations = [-1e9, -100, -1, -0.01, 0.0, 0.01, 1, 100, 1e9]
        after = [update(rule, value, v, 0.1, floor=0.05, ceiling=20.0) for v in violations]
        assert after == sorted(after)
        assert after[4] == value
        assert after[0] == 0.05
        assert after[-1] == 20.0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("violation", [float("nan"), float("inf"), -float("inf")])
def test_a_violation_that_is_no_number_is_refused(rule, violation):
    with pytest.raises(ValueError, match=f"violation must be a finite number, got {violation}"):
        update(rule, 1.0, violation, 0.1, floor=0.0, ceiling=20.0)
    with pytest.raises(ValueError, match="violation must be a finite number"):
        pid_step(PidState(1.0), violation, Gains(0.1, 0.1, 0.1), floor=0.0, ceiling=20.0)


@pytest.mark.parametrize("rule", ["log", "mirror"])
def test_rules_that_multiply_refuse_zero(rule):
    with pytest.raises(ValueError, match=r"cannot leave 0\.0; start and floor must be above 0"):
        update(rule, 0.0, 1.0, 0.1, floor=0.0, ceiling=20.0)


def test_projected_rule_leaves_zero():
    assert update("projected", 0.0, 1.0, 0.1, floor=0.0, ceiling=20.0) == pytest.approx(0.1)


def test_update_refuses_other_nonsense():
    with pytest.raises(ValueError, match="no multiplier rule 'adam'; known are projected, log, mirror"):
        update("adam", 1.0, 1.0, 0.1, floor=0.0, ceiling=20.0)
    with pytest.raises(ValueError, match="value must be a finite number, got nan"):
        update("projected", float("nan"), 1.0, 0.1, floor=0.0, ceiling=20.0)
    for floor, ceiling in [(-1.0, 20.0), (2.0, 1.0), (0.0, float("inf"))]:
        with pytest.raises(ValueError, match="0 <= floor <= ceiling < infinity"):
            update("projected", 1.0, 1.0, 0.1, floor, ceiling)


def test_pid_with_only_its_integral_is_the_projected_rule():
    value, state = 1.0, PidState(integral=1.0)
    for violation in (3.0, -1.0, -50.0, 2.0, 300.0, -1.0):
        expected = update("projected", value, violation, 0.1, floor=0.0, ceiling=20.0)
        value, state = pid_step(state, violation, Gains(0.0, 0.1, 0.0), floor=0.0, ceiling=20.0)
        assert value == expected


def test_pid_by_hand():
    gains = Gains(proportional=0.5, integral=0.1, derivative=2.0, smoothing=0.5)
    value, state = pid_step(PidState(integral=1.0), 2.0, gains, floor=0.0, ceiling=20.0)
    assert value == pytest.approx(1.2 + 0.5 * 2.0)  # the first violation is no rise
    value, state = pid_step(state, 4.0, gains, floor=0.0, ceiling=20.0)
    assert state == pytest.approx((1.6, 3.0))
    assert value == pytest.approx(1.6 + 0.5 * 3.0 + 2.0 * 1.0)
    value, state = pid_step(state, -5.0, gains, floor=0.0, ceiling=20.0)
    assert state == pytest.approx((1.1, -1.0))
    assert value == pytest.approx(1.1 - 0.5)  # a fall adds nothing: only a rise is answered


def test_pid_neither_winds_up_nor_leaves_its_bounds():
    state = PidState(integral=5.0)
    for _ in range(100):
        value, state = pid_step(state, 10.0, Gains(1.0, 1.0, 0.0), floor=0.5, ceiling=20.0)
        assert value == 20.0
    value, state = pid_step(state, -1.0, Gains(0.0, 1.0, 0.0), floor=0.5, ceiling=20.0)
    assert value == 19.0  # one step back, not a hundred
    value, _ = pid_step(state, -1000.0, Gains(1.0, 1.0, 1.0), floor=0.5, ceiling=20.0)
    assert value == 0.5


def test_pessimistic_mean():
    assert pessimistic(-0.8, 2.0, 1.5) == pytest.approx(2.2)


def test_augmented_cost_by_hand():
    plain = augmented_cost(COSTS, MEAN, STD, 0.5, centred=False)
    expected = torch.tensor([-2.454131, -1.077981, 0.0, 2.935775, -1.896025], dtype=torch.float64)
    assert_close(plain, expected, rtol=0, atol=5e-7)  # six published digits, here and below
    constant = augmented_cost(COSTS, MEAN, STD, 0.5) - plain
    assert_close(constant, torch.full_like(COSTS, 0.083180), rtol=0, atol=5e-7)


@pytest.mark.parametrize("centred", [True, False])
def test_derivatives_of_the_augmented_cost_by_hand(centred):
    costs = COSTS.clone().requires_grad_()
    (slope,) = torch.autograd.grad(augmented_cost(costs, MEAN, STD, 0.5, centred=centred).sum(), costs)
    expected = torch.tensor([0.428137, 0.948012, 1.207950, 1.727825, 0.688075], dtype=torch.float64)
    assert_close(slope, expected, rtol=0, atol=5e-7)


@pytest.mark.parametrize("centred", [True, False])
def test_augmented_cost_gives_the_gradient_of_mean_plus_deviation(centred):
    logits = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64, requires_grad=True)
    costs, kappa = torch.tensor([-2.0, 1.0, 4.0], dtype=torch.float64), 0.5
    p = logits.softmax(-1)
    mean = (p * costs).sum()
    std = ((p * costs.square()).sum() - mean.square()).sqrt()
    assert (mean.item(), std.item()) == pytest.approx((1.22422644, 2.58822787), abs=1e-8)
    (exact,) = torch.autograd.grad(mean + kappa * std, logits, retain_graph=True)
    published = torch.tensor([-0.96790773, -0.21668368, 1.18459141], dtype=torch.float64)
    assert_close(exact, published, rtol=0, atol=1e-8)

    augmented = augmented_cost(costs, mean.item(), std.item(), kappa, centred=centred)
    direction = p * (augmented - (p * augmented).sum())  # sum_a p_a (A_a - E A) e_a
    assert_close(direction.detach(), published, rtol=0, atol=1e-8)
    loss = reinforce(logits.log_softmax(-1), -augmented * p)
    assert_close(torch.autograd.grad(loss.total, logits)[0], published, rtol=0, atol=1e-8)


def test_centring_does_not_change_what_leave_one_out_leaves():
    centred = leave_one_out(augmented_cost(COSTS, MEAN, STD, 1.2), k=5)
    plain = leave_one_out(augmented_cost(COSTS, MEAN, STD, 1.2, centred=False), k=5)
    assert_close(centred, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("centred", [True, False])
def test_only_the_monotone_form_never_rewards_a_higher_cost(centred):
    costs = torch.linspace(-30, 30, 601, dtype=torch.float64)
    plain = augmented_cost(costs, MEAN, STD, 1.2, centred=centred)
    monotone = augmented_cost(costs, MEAN, STD, 1.2, centred=centred, monotone=True)
    assert (plain.diff() < 0).any()
    assert (monotone.diff() >= 0).all()
    agree = costs >= MEAN - STD / 1.2
    assert torch.equal(plain[agree], monotone[agree])
    below = costs[~agree] - monotone[~agree]
    assert_close(below, below[:1].expand_as(below), rtol=0, atol=1e-12)  # slope one, the cost itself


def test_no_pessimism_and_no_spread_leave_the_cost_exactly():
    assert torch.equal(augmented_cost(COSTS, MEAN, STD, kappa=0.0, monotone=True), COSTS)
    assert torch.equal(augmented_cost(COSTS, MEAN, 0.0, kappa=1.0), COSTS)


def test_augmented_cost_refuses_bad_numbers():
    with pytest.raises(ValueError, match="std must be a finite number, got nan"):
        augmented_cost(COSTS, MEAN, float("nan"), 1.0)
    with pytest.raises(ValueError, match="mean must be a finite number, got inf"):
        augmented_cost(COSTS, float("inf"), STD, 1.0)
    with pytest.raises(ValueError, match=r"kappa must not be negative, got -0\.5"):
        augmented_cost(COSTS, MEAN, STD, -0.5)


def test_rectified_keeps_only_the_excess():
    assert rectified(COSTS, -1.5).tolist() == [0.0, 0.5, 1.5, 3.5, 0.0]
