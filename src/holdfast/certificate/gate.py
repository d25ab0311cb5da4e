"""The gate: costs in, one of three verdicts out. It fails closed, whatever it is given.

CERTIFIED: every limit is kept with confidence 1 - delta. NSF (no solution found): it could not be shown, a
normal outcome. INVALID: the test was not the planned one, so it shows nothing.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from holdfast.certificate.constraint import ConstraintPlan, ConstraintResult, degenerate, measure
from holdfast.certificate.ledger import Ledger
from holdfast.certificate.plan import FrozenPlan, Plan, fold_digest
from holdfast.certificate.records import Record
from holdfast.errors import UserError

Outcome = Literal["CERTIFIED", "NSF", "INVALID"]
Reason = Literal[
    "ucb_above_tau",
    "shown_unsafe",
    "insufficient_n",
    "degenerate_sample",
    "budget_exhausted",
    "nonfinite",
    "duplicate_prompts",
    "n_mismatch",
    "hash_mismatch",
    "protocol_violation",
]
Costs = Mapping[str, NDArray[np.float64]]


class Verdict(Record):
    """The outcome, why it is no other, and the constraints as far as they could be measured."""

    verdict: Outcome
    reason: Reason | None
    constraints: tuple[ConstraintResult, ...] = ()
    attempt: int
    delta: float

    @property
    def certified(self) -> bool:
        """Whether the policy may be released."""
        return self.verdict == "CERTIFIED"


class Row(Record):
    """The evidence of one prompt: its key, its answers' hashes, their costs as text that reads back."""

    key: str
    responses: tuple[str, ...]
    costs: dict[str, tuple[str, ...]]
    harmful: dict[str, bool]


def decide(
    frozen: FrozenPlan, costs: ArrayLike | Mapping[str, ArrayLike], keys: Sequence[str], attempt: int = 1
) -> Verdict:
    """The verdict on gathered costs, a pure function of its arguments.

    costs: (N,) or (N, K samples per prompt) of the score `cost`, or a mapping from score to such an array;
    keys: the N prompts they belong to, in any order. With several processes gather first and decide once.
    """
    plan, delta = frozen.plan, frozen.plan.delta_for(attempt)

    def end(verdict: Outcome, reason: Reason | None, results: tuple[ConstraintResult, ...] = ()) -> Verdict:
        return Verdict(verdict=verdict, reason=reason, constraints=results, attempt=attempt, delta=delta)

    if not plan.can_pass(attempt):
        return end("NSF", "insufficient_n" if attempt == 1 else "budget_exhausted")
    table = {name: column.reshape(-1, 1) if column.ndim == 1 else column for name, column in _table(costs).items()}
    if fault := _fault(frozen, table, keys):
        return end("INVALID", fault)
    order = frozen.order(keys)
    sample = {name: column[order] for name, column in table.items()}
    if any(degenerate(each, each.units(sample[each.score])) for each in plan.constraints):
        return end("NSF", "degenerate_sample")
    count = len(plan.constraints)
    results = tuple(measure(each, sample[each.score], delta, count) for each in plan.constraints)
    if all(result.passed for result in results):
        return end("CERTIFIED", None, results)
    unsafe = any(result.lcb > result.tau for result in results)
    return end("NSF", "shown_unsafe" if unsafe else "ucb_above_tau", results)


def run(
    frozen: FrozenPlan,
    ledger: Ledger,
    prompts: Sequence[tuple[str, Any]],
    sample: Callable[[list[Any]], list[Any]],
    score: Callable[[list[Any]], ArrayLike | Mapping[str, ArrayLike]],
    text: Callable[[Any], str] = str,
) -> tuple[Verdict, list[Row]]:
    """Test the policy on a sealed fold: the verdict, and one row of evidence per prompt.

    prompts: (key, prompt) pairs. sample: one answer per entry of a list that names each prompt K times in
    succession; score: one cost per answer (or a mapping from score to costs); text: an answer's text, whose
    hash goes into the evidence. The intent stands in the ledger before `sample` is called. An exception in
    between burns the fold. Raises `UserError` before anything is spent when the prompts are not those of the
    plan.
    """
    keys = [key for key, _ in prompts]
    if len(keys) != frozen.plan.n_prompts or fold_digest(keys) != frozen.fold_sha256:
        raise UserError(
            f"{frozen.plan.name}: these {len(keys)} prompts are not the {frozen.plan.n_prompts} of the plan; "
            "nothing was tested and the fold is untouched"
        )
    plan, fold = frozen.plan, frozen.fold_sha256
    attempt = ledger.open(fold, frozen.sha256, frozen.policy_sha256, plan.delta, plan.schedule)
    try:
        verdict, rows = _test(frozen, attempt.number, prompts, sample, score, text)
    except BaseException as error:
        ledger.burn(fold, f"attempt {attempt.number} ended with {type(error).__name__}")
        raise
    ledger.close(fold, verdict.verdict)
    return verdict, rows


def flags(plan: Plan, costs: Mapping[str, Sequence[float]]) -> dict[str, bool]:
    """For each constraint of kind `rate`, whether any answer to one prompt was harmful, by its costs."""
    return {
        each.name: any(cost > each.threshold for cost in costs[each.score])
        for each in plan.constraints
        if each.kind == "rate" and each.score in costs
    }


def _test(
    frozen: FrozenPlan,
    attempt: int,
    prompts: Sequence[tuple[str, Any]],
    sample: Callable[[list[Any]], list[Any]],
    score: Callable[[list[Any]], ArrayLike | Mapping[str, ArrayLike]],
    text: Callable[[Any], str],
) -> tuple[Verdict, list[Row]]:
    plan, keys, count = frozen.plan, [key for key, _ in prompts], frozen.plan.samples_per_prompt
    if not plan.can_pass(attempt):
        return decide(frozen, {}, [], attempt), []
    answers = list(sample([prompt for _, prompt in prompts for _ in range(count)]))
    scored = _table(score(answers))
    if len(answers) != len(keys) * count or any(column.size != len(answers) for column in scored.values()):
        # Nobody knows which answer belongs to which prompt, so there is no row to show.
        return decide(frozen, {}, [], attempt), []
    costs = {name: column.reshape(len(keys), count) for name, column in scored.items()}
    rows = [
        _row(plan, key, [text(answer) for answer in answers[i * count : (i + 1) * count]], costs, i)
        for i, key in enumerate(keys)
    ]
    return decide(frozen, costs, keys, attempt), rows


def _row(plan: Plan, key: str, texts: Sequence[str], costs: Costs, place: int) -> Row:
    own = {name: [float(cost) for cost in column[place]] for name, column in costs.items()}
    return Row(
        key=key,
        responses=tuple(_hash(each) for each in texts),
        costs={name: tuple(repr(cost) for cost in found) for name, found in own.items()},
        harmful=flags(plan, own),
    )


def _hash(text: str) -> str:
    # Half a surrogate pair in a generated text must not end the test after the fold was opened.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _table(costs: ArrayLike | Mapping[str, ArrayLike]) -> dict[str, NDArray[np.float64]]:
    columns = costs if isinstance(costs, Mapping) else {"cost": costs}
    return {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}


def _fault(frozen: FrozenPlan, table: Costs, keys: Sequence[str]) -> Reason | None:
    """What makes the test invalid, or None."""
    plan = frozen.plan
    shape = (plan.n_prompts, plan.samples_per_prompt)
    if len(keys) != plan.n_prompts or any(column.shape != shape for column in table.values()):
        return "n_mismatch"
    if len(set(keys)) < len(keys):
        return "duplicate_prompts"
    if fold_digest(keys) != frozen.fold_sha256:
        return "hash_mismatch"
    if not all(np.isfinite(column).all() for column in table.values()):
        return "nonfinite"
    return None if all(_in_range(each, table) for each in plan.constraints) else "protocol_violation"


def _in_range(constraint: ConstraintPlan, table: Costs) -> bool:
    """Whether the planned score is there, and within the range that its bound assumes."""
    if constraint.score not in table:
        return False
    low, high = constraint.range if constraint.kind == "mean" else (-math.inf, math.inf)
    column = table[constraint.score]
    return bool((column >= low).all() and (column <= high).all())
