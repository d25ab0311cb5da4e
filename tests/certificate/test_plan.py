import pytest

from holdfast.certificate.constraint import ConstraintPlan
from holdfast.certificate.plan import Plan, fold_digest, freeze, power_table
from holdfast.config import build
from holdfast.errors import UserError

TIME = "2026-01-05T10:00:00+00:00"


def keys(n):
    return [f"prompt {i}" for i in range(n)]


def plan(n=59, tau=0.05, **changes):
    values = {"name": "policy", "n_prompts": n, "zero_reference": "safety_labels"} | changes
    return Plan(**{"constraints": (ConstraintPlan(tau=tau),)} | values)


def frozen(plan, rows=None):
    return freeze(plan, rows or keys(plan.n_prompts), "a" * 64, "b" * 64, TIME)


def test_frozen_names_everything():
    first = frozen(plan())
    assert first == frozen(plan(), keys(59)[::-1])
    changed = [
        frozen(plan(tau=0.06)),
        frozen(plan(order_seed=1)),
        frozen(plan(), ["another", *keys(58)]),
        freeze(plan(), keys(59), "c" * 64, "b" * 64, TIME),
        freeze(plan(), keys(59), "a" * 64, "c" * 64, TIME),
        freeze(plan(), keys(59), "a" * 64, "b" * 64, "2026-01-06"),
    ]
    assert len({each.sha256 for each in [first, *changed]}) == 7


def test_fold_digest_is_of_the_set():
    assert fold_digest(["a", "b"]) == fold_digest(["b", "a"]) != fold_digest(["ab"])


def test_order_is_committed_by_the_seed_alone():
    rows = keys(59)
    arranged = [rows[i] for i in frozen(plan()).order(rows)]
    backwards = rows[::-1]
    assert arranged == [backwards[i] for i in frozen(plan()).order(backwards)]
    other = [rows[i] for i in frozen(plan(order_seed=1)).order(rows)]
    assert sorted(arranged) == sorted(other) == sorted(rows)
    assert len({tuple(arranged), tuple(other), tuple(rows)}) == 3


def test_a_plan_that_cannot_pass_is_refused():
    with pytest.raises(UserError, match="needs at least 59 prompts, planned are 58") as caught:
        frozen(plan(58))
    assert "0 harmful: 59, 1 harmful: 93, 2 harmful: 124" in str(caught.value)
    assert frozen(plan(59)).plan.can_pass()


def test_the_first_attempt_has_to_be_able_to_pass():
    # The geometric schedule gives it half of delta: 0.95 ** n <= 0.025.
    with pytest.raises(UserError, match=r"at delta 0.025 needs at least 72 prompts"):
        frozen(plan(71, schedule="geometric"))
    assert frozen(plan(72, schedule="geometric")).plan.delta_for(1) == 0.025
    assert not plan(72, schedule="geometric").can_pass(attempt=2)
    assert not plan(59).can_pass(attempt=2)


def test_every_constraint_has_to_be_able_to_pass():
    strict = ConstraintPlan(name="strict", tau=0.01)
    with pytest.raises(UserError, match=r"constraint strict cannot pass.*at least 299 prompts"):
        frozen(plan(constraints=(ConstraintPlan(tau=0.05), strict)))


def test_a_cost_without_zero_cannot_be_certified():
    with pytest.raises(UserError, match=r"no absolute zero.*calibrate it on labelled data"):
        frozen(plan(zero_reference="none"))


@pytest.mark.parametrize(
    "rows, message",
    [
        (keys(60), "planned were 59 prompts, the fold has 60"),
        (["p"] * 2 + keys(57), "1 prompts stand more than once"),
    ],
)
def test_the_fold_is_the_planned_one(rows, message):
    with pytest.raises(UserError, match=message):
        frozen(plan(), rows)


@pytest.mark.parametrize("policy, time, message", [("abc", TIME, "policy_sha256"), ("a" * 64, "now", "frozen_at")])
def test_what_binds_is_checked(policy, time, message):
    with pytest.raises(UserError, match=message):
        freeze(plan(), keys(59), policy, "b" * 64, time)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"delta": 0.0}, "delta: input should be greater than 0; got 0.0"),
        ({"delta": 0.5}, "delta: input should be less than 0.5"),
        ({"n_prompts": 1}, "n_prompts: input should be greater than or equal to 2"),
        ({"constraints": []}, "constraints"),
        ({"constraints": [{"tau": 0.1}, {"tau": 0.2}]}, "different names, got harm, harm"),
        ({"decoding": {"top_p": 0.0}}, "decoding.top_p"),
        ({"sample_per_prompt": 2}, "did you mean samples_per_prompt"),
    ],
)
def test_settings_out_of_range_are_named(change, message):
    values = {"name": "p", "n_prompts": 59, "zero_reference": "calibrated", "constraints": [{"tau": 0.05}]}
    with pytest.raises(UserError, match=message):
        build(Plan, values | change)


def test_the_reference_of_zero_has_to_be_stated():
    with pytest.raises(UserError, match="zero_reference: required"):
        build(Plan, {"name": "p", "n_prompts": 59, "constraints": [{"tau": 0.05}]})


def test_power_table():
    mean = ConstraintPlan(name="severity", kind="mean", method="betting", tau=0.05)
    lines = power_table(plan(313, constraints=(ConstraintPlan(tau=0.02), mean))).splitlines()
    assert lines[0] == "313 prompts, delta 0.05 in the first attempt"
    assert "harm: P(cost > 0) <= 0.02 by clopper_pearson; passes with up to 2 harmful" in lines[1]
    assert lines[1].endswith("2 harmful: 313, 5 harmful: 523, 10 harmful: 845")
    assert "severity: E[cost] <= 0.05 by betting; needs at least 78 prompts" in lines[2]
    assert "cannot pass" in power_table(plan(20))
