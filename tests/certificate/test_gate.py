import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.certificate.constraint import ConstraintPlan
from holdfast.certificate.gate import decide, run
from holdfast.certificate.ledger import Ledger
from holdfast.certificate.plan import Plan, freeze
from holdfast.errors import UserError
from holdfast.stats.bounds import clopper_pearson_upper

KEYS = [f"prompt {i}" for i in range(100)]
HARM = ConstraintPlan(tau=0.05)
LOGITS = ConstraintPlan(name="logits", kind="logit_mean", method="student_t", tau=0.0)
SEVERITY = ConstraintPlan(name="severity", kind="mean", method="betting", tau=0.2, score="severity")


def frozen(*constraints, **changes):
    values = {"name": "policy", "n_prompts": 100, "zero_reference": "calibrated"} | changes
    plan = Plan(constraints=constraints or (HARM,), **values)
    return freeze(plan, KEYS[: plan.n_prompts], "a" * 64, "b" * 64, "2026-01-05")


def costs(harmful, n=100):
    return np.where(np.arange(n) < harmful, 1.0, -1.0)


@pytest.mark.parametrize(
    "harmful, verdict, reason",
    [
        (0, "CERTIFIED", None),
        (1, "CERTIFIED", None),
        (2, "NSF", "ucb_above_tau"),
        (12, "NSF", "shown_unsafe"),
    ],
)
def test_verdicts_on_a_rate(harmful, verdict, reason):
    found = decide(frozen(), costs(harmful), KEYS)
    assert (found.verdict, found.reason, found.certified) == (verdict, reason, verdict == "CERTIFIED")
    assert (found.constraints[0].k, found.constraints[0].delta) == (harmful, 0.05)
    assert found.constraints[0].ucb == clopper_pearson_upper(harmful, 100, 0.05)


def test_all_constraints_have_to_hold_each_at_the_full_delta():
    gate = frozen(HARM, SEVERITY)
    low, high = np.full(100, 0.1), np.full(100, 0.5)
    good = decide(gate, {"cost": costs(0), "severity": low}, KEYS)
    assert good.certified
    assert {result.delta for result in good.constraints} == {0.05}
    assert good.constraints[0].ucb_simultaneous == clopper_pearson_upper(0, 100, 0.025)
    for harmful, severity in [(12, low), (0, high), (12, high)]:
        assert not decide(gate, {"cost": costs(harmful), "severity": severity}, KEYS).certified


def test_later_attempts_have_less_delta():
    gate = frozen(schedule="geometric")
    assert decide(gate, costs(0), KEYS, attempt=1).constraints[0].delta == 0.025
    assert not decide(gate, costs(1), KEYS, attempt=1).certified
    spent = decide(gate, costs(0), KEYS, attempt=5)
    assert (spent.verdict, spent.reason) == ("NSF", "budget_exhausted")
    assert decide(frozen(), costs(0), KEYS, attempt=2).reason == "budget_exhausted"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("constraint", [HARM, LOGITS])
def test_one_cost_that_is_no_number_invalidates(bad, constraint):
    values = np.random.default_rng(0).normal(-5, 1, 100)
    values[17] = bad
    found = decide(frozen(constraint), values, KEYS)
    assert (found.verdict, found.reason) == ("INVALID", "nonfinite")


@pytest.mark.parametrize(
    "values, keys, reason",
    [
        (costs(0)[:99], KEYS[:99], "n_mismatch"),
        (costs(0)[:99], KEYS, "n_mismatch"),
        (costs(0), KEYS[:99], "n_mismatch"),
        (costs(0)[:1], KEYS[:1], "n_mismatch"),
        (np.zeros((100, 2)), KEYS, "n_mismatch"),
        ([], [], "n_mismatch"),
        (costs(0), [KEYS[0], *KEYS[:99]], "duplicate_prompts"),
        (costs(0), ["stranger", *KEYS[1:]], "hash_mismatch"),
        ({"price": costs(0)}, KEYS, "protocol_violation"),
    ],
)
def test_another_test_than_planned_is_invalid(values, keys, reason):
    found = decide(frozen(), values, keys)
    assert (found.verdict, found.reason, found.constraints) == ("INVALID", reason, ())


@pytest.mark.parametrize("cost, reason", [(1.2, "protocol_violation"), (-0.2, "protocol_violation"), (1.0, None)])
def test_a_cost_outside_its_declared_range_is_invalid(cost, reason):
    found = decide(frozen(SEVERITY), {"severity": np.r_[cost, np.zeros(99)]}, KEYS)
    assert found.reason == reason


def test_a_sample_without_spread_is_degenerate():
    assert decide(frozen(LOGITS), np.full(100, -9.0), KEYS).reason == "degenerate_sample"
    assert decide(frozen(LOGITS), np.r_[np.zeros(81), np.full(19, -9.0)], KEYS).reason == "degenerate_sample"
    assert decide(frozen(LOGITS), np.random.default_rng(0).normal(-9, 1, 100), KEYS).certified


def test_too_few_prompts_are_named():
    gate = frozen()
    small = gate.model_copy(update={"plan": gate.plan.model_copy(update={"n_prompts": 20})})
    found = decide(small, costs(0, 20), KEYS[:20])
    assert (found.verdict, found.reason) == ("NSF", "insufficient_n")


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_order_of_arrival_does_not_matter(seed):
    generator = np.random.default_rng(seed)
    values = generator.random(100) * 0.4
    arrived = generator.permutation(100)
    gate = frozen(SEVERITY)
    first = decide(gate, {"severity": values}, KEYS)
    assert decide(gate, {"severity": values[arrived]}, [KEYS[i] for i in arrived]) == first


@settings(max_examples=30, deadline=None)
@given(
    damage=st.sampled_from(["nan", "inf", "lost rank", "padded rank", "swapped key"]),
    place=st.integers(0, 99),
    constraint=st.sampled_from([HARM, LOGITS]),
)
def test_damage_is_never_certified(damage, place, constraint):
    values, keys = np.random.default_rng(place).normal(-5, 1, 100), list(KEYS)
    if damage in ("nan", "inf"):
        values[place] = float(damage)
    elif damage == "lost rank":
        values, keys = values[:50], keys[:50]
    elif damage == "padded rank":
        values, keys = np.r_[values, values[:4]], keys + keys[:4]
    else:
        keys[place] = "another"
    assert decide(frozen(constraint), values, keys).verdict == "INVALID"


class Policy:
    """Answers with the prompt's name and remembers what the ledger said while it was asked."""

    def __init__(self, ledger, fold):
        self.ledger, self.fold, self.seen = ledger, fold, []

    def sample(self, prompts):
        self.seen.append((self.ledger.state(self.fold), list(prompts)))
        return [f"answer to {prompt}" for prompt in prompts]


@pytest.fixture
def bench(tmp_path):
    def build(*constraints, **changes):
        gate = frozen(*constraints, **changes)
        ledger = Ledger(tmp_path / "ledger.jsonl")
        ledger.seal(gate.fold_sha256, gate.plan.n_prompts)
        prompts = [(key, key.upper()) for key in KEYS[: gate.plan.n_prompts]]
        return gate, ledger, prompts, Policy(ledger, gate.fold_sha256)

    return build


def test_run_writes_the_intent_first_and_closes_after(bench):
    gate, ledger, prompts, policy = bench()
    verdict, rows = run(gate, ledger, prompts, policy.sample, lambda answers: costs(1))
    assert policy.seen == [("open", [prompt for _, prompt in prompts])]
    assert verdict.certified
    assert ledger.state(gate.fold_sha256) == "burned"
    assert ledger.entries()[-1]["verdict"] == "CERTIFIED"
    assert [row.key for row in rows] == KEYS
    assert rows[0].responses == (hashlib.sha256(b"answer to PROMPT 0").hexdigest(),)
    assert (rows[0].costs, rows[0].harmful) == ({"cost": ("1.0",)}, {"harm": True})
    assert (rows[1].costs, rows[1].harmful) == ({"cost": ("-1.0",)}, {"harm": False})


def test_run_with_several_answers_per_prompt(bench):
    gate, ledger, prompts, policy = bench(samples_per_prompt=2)

    def score(answers):
        assert answers[:3] == ["answer to PROMPT 0", "answer to PROMPT 0", "answer to PROMPT 1"]
        return np.r_[-1.0, 1.0, np.full(198, -1.0)]

    verdict, rows = run(gate, ledger, prompts, policy.sample, score)
    assert verdict.constraints[0].k == 1
    assert (rows[0].costs["cost"], len(rows[0].responses)) == (("-1.0", "1.0"), 2)


def test_run_on_a_used_fold_is_refused_before_sampling(bench):
    gate, ledger, prompts, policy = bench()
    run(gate, ledger, prompts, policy.sample, lambda answers: costs(9))
    with pytest.raises(UserError, match="is burned"):
        run(gate, ledger, prompts, policy.sample, lambda answers: costs(0))
    assert len(policy.seen) == 1


def test_run_stops_when_the_budget_cannot_certify_any_more(bench):
    gate, ledger, prompts, policy = bench(schedule="geometric")
    reasons = [run(gate, ledger, prompts, policy.sample, lambda a: costs(9))[0].reason for _ in range(4)]
    # 100 clean prompts certify 5 % at delta 0.05 / 2 ** 3, not at 0.05 / 2 ** 4: 0.95 ** 100 = 0.0059.
    assert reasons == ["ucb_above_tau"] * 3 + ["budget_exhausted"]
    assert len(policy.seen) == 3


def test_an_exception_burns_the_fold(bench):
    gate, ledger, prompts, policy = bench(schedule="geometric")

    def broken(answers):
        raise RuntimeError("scorer is down")

    with pytest.raises(RuntimeError, match="scorer is down"):
        run(gate, ledger, prompts, policy.sample, broken)
    assert ledger.state(gate.fold_sha256) == "burned"
    assert ledger.entries()[-1]["reason"] == "attempt 1 ended with RuntimeError"
    with pytest.raises(UserError, match="is burned"):
        run(gate, ledger, prompts, policy.sample, lambda answers: costs(0))


def test_foreign_prompts_cost_nothing(bench):
    gate, ledger, prompts, policy = bench()
    for wrong in (prompts[:99], [("stranger", "x"), *prompts[1:]], [prompts[0], *prompts[:99]]):
        with pytest.raises(UserError, match="nothing was tested"):
            run(gate, ledger, wrong, policy.sample, lambda answers: costs(0))
    assert (ledger.state(gate.fold_sha256), policy.seen) == ("sealed", [])


@pytest.mark.parametrize("answers, scores", [(99, 99), (100, 99), (99, 100), (101, 101)])
def test_missing_answers_or_costs_are_invalid(bench, answers, scores):
    gate, ledger, prompts, _ = bench()
    verdict, rows = run(gate, ledger, prompts, lambda p: ["x"] * answers, lambda a: np.full(scores, -1.0))
    assert (verdict.verdict, verdict.reason, rows) == ("INVALID", "n_mismatch", [])
    assert ledger.entries()[-1]["verdict"] == "INVALID"


def test_costs_survive_as_text(bench):
    gate, ledger, prompts, policy = bench(SEVERITY)
    values = np.random.default_rng(0).random(100)
    _, rows = run(gate, ledger, prompts, policy.sample, lambda answers: {"severity": values})
    assert [float(row.costs["severity"][0]) for row in rows] == values.tolist()


def test_half_a_surrogate_pair_does_not_cost_the_fold(bench):
    gate, ledger, prompts, _ = bench()
    verdict, rows = run(gate, ledger, prompts, lambda p: ["\ud83d"] * 100, lambda answers: costs(0))
    assert verdict.certified
    assert len(rows[0].responses[0]) == 64
