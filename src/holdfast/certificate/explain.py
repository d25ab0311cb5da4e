"""A certificate in plain words: what was tested, what came out, what it does not say."""

from collections.abc import Mapping
from typing import Any

from holdfast.certificate.constraint import ConstraintPlan, ConstraintResult
from holdfast.certificate.document import Predicate
from holdfast.certificate.plan import Plan

REASONS = {
    "ucb_above_tau": "The limit may be kept, but these prompts do not show it.",
    "shown_unsafe": "A limit is broken: even the lower bound lies above it.",
    "insufficient_n": "Too few prompts: even a policy without any harmful answer would not have passed.",
    "degenerate_sample": "The costs hardly vary, so the t bound would mean nothing; use an exact method.",
    "budget_exhausted": "Earlier attempts used up the probability of error; take a fresh fold of prompts.",
    "nonfinite": "At least one cost is not a number.",
    "duplicate_prompts": "A prompt occurs more than once.",
    "n_mismatch": "The number of prompts or answers is not the planned one.",
    "hash_mismatch": "The prompts are not those of the plan.",
    "protocol_violation": "A score is missing, or a cost lies outside its declared range.",
}
HEADLINES = {
    "CERTIFIED": "CERTIFIED: every limit is kept, with {confidence} confidence.",
    "NSF": "NSF (no solution found): it could not be shown that every limit is kept. No policy is released.",
    "INVALID": "INVALID: the test was not the planned one, so it shows nothing. No policy is released.",
}


def explain(document: Mapping[str, Any]) -> str:
    """The certificate, as read from `certificate.json`, in about fifteen lines of text."""
    predicate = Predicate.model_validate(document["predicate"])
    plan = predicate.plan.plan
    lines = [HEADLINES[predicate.verdict].format(confidence=_percent(1 - predicate.budget.delta_used))]
    if predicate.reason:
        lines.append(f"Why: {REASONS[predicate.reason]}")
    lines += ["", f"Tested: {plan.name} (policy {predicate.plan.policy_sha256[:12]}), {_sampling(plan)}"]
    lines.append(f"Judged by: scorer {predicate.plan.scorer_sha256[:12]}; {_zero(plan)}")
    lines.append(f"Spent: {_budget(predicate)}")
    for constraint, result in zip(plan.constraints, predicate.constraints):
        lines.append(f"- {_finding(constraint, result, plan.samples_per_prompt)}")
    if predicate.guarantee == "asymptotic":
        lines.append("The t bound is asymptotic: with rare, severe harm it errs more often than stated.")
    lines += ["", "It assumes:", *(f"- {each}" for each in predicate.assumptions)]
    lines += ["It does not say more:", *(f"- {each}" for each in predicate.limits)]
    return "\n".join(lines)


def _sampling(plan: Plan) -> str:
    answers = "one answer" if plan.samples_per_prompt == 1 else f"{plan.samples_per_prompt} answers"
    return f"{answers} to each of {plan.n_prompts} held-out prompts, temperature {plan.decoding.temperature:g}."


def _zero(plan: Plan) -> str:
    source = {"safety_labels": "labels of safety", "calibrated": "a calibration"}.get(plan.zero_reference, "nothing")
    return f"{source} gave its costs an absolute zero."


def _budget(predicate: Predicate) -> str:
    budget = predicate.budget
    return (
        f"delta {budget.delta_used:g} of {budget.delta_total:g} in attempt {budget.attempt} "
        f"({budget.schedule.replace('_', ' ')})."
    )


def _finding(constraint: ConstraintPlan, result: ConstraintResult, samples: int) -> str:
    number = _percent if constraint.kind == "rate" else "{:.4g}".format
    if constraint.kind == "rate":
        event = f"{constraint.score} > {constraint.threshold:g}"
        seen = f"{result.k} of {result.n} prompts got a harmful answer ({event})"
    else:
        seen = f"mean {constraint.score} {number(result.estimate)} over {result.n} prompts"
    relation = "within" if result.passed else "above"
    return (
        f"{result.name}: {seen}; upper bound {number(result.ucb)} ({result.method}), "
        f"{relation} the limit {number(result.tau)}."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
