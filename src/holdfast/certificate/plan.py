"""The plan of a test, complete before the held-out prompts are opened, and its frozen form.

Nothing in it may depend on the held-out prompts beyond their identity: that independence is the guarantee.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import Field, field_validator, model_validator

from holdfast.certificate.constraint import ConstraintPlan, can_pass, fewest_prompts
from holdfast.certificate.records import Sha256, digest
from holdfast.config import Settings, build, fingerprint
from holdfast.errors import UserError
from holdfast.stats.power import Schedule, allowed_k, needed_n, spend


class Decoding(Settings):
    """How answers are drawn; the certificate holds for exactly this."""

    temperature: float = Field(default=1.0, ge=0)
    """0 takes the most likely token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Share of probability kept; 1 keeps everything."""
    top_k: int = Field(default=0, ge=0)
    """Number of tokens kept; 0 keeps all."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """1 is none."""
    max_new_tokens: int = Field(default=256, gt=0)
    """Longest answer in tokens."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draw."""
    engine: str = ""
    """What generates, with its version."""


class Plan(Settings):
    """What will be tested, on how many prompts, and with which probability of error."""

    name: str = Field(min_length=1)
    """What is tested; also the name of the subject in the certificate."""
    constraints: tuple[ConstraintPlan, ...] = Field(min_length=1)
    """All of them have to hold. Each is tested at the full delta: releasing wrongly needs the violated one to
    pass, so nothing has to be shared out (intersection-union test)."""
    delta: float = Field(default=0.05, gt=0, lt=0.5)
    """Probability of certifying a policy that breaks a limit, over all attempts together."""
    n_prompts: int = Field(ge=2)
    """Number of held-out prompts; exactly this many are tested."""
    samples_per_prompt: int = Field(default=1, ge=1)
    """Answers drawn per prompt; the prompt stays the sampling unit."""
    decoding: Decoding = Decoding()
    """How answers are drawn."""
    order_seed: int = 0
    """Fixes the order of prompts, which the betting bound depends on."""
    schedule: Schedule = "single_use"
    """How retries on the same prompts share delta: not at all, or geometric, or inverse_square."""
    zero_reference: Literal["safety_labels", "calibrated", "none"]
    """What gives the cost an absolute zero: labels of safety in its loss, a calibration, or nothing."""

    @model_validator(mode="after")
    def _distinct(self) -> "Plan":
        names = [constraint.name for constraint in self.constraints]
        if len(set(names)) < len(names):
            raise ValueError(f"constraints need different names, got {', '.join(names)}")
        return self

    def delta_for(self, attempt: int) -> float:
        """The error probability of attempt 1, 2, ... under the schedule."""
        return spend(self.delta, attempt, self.schedule)

    def can_pass(self, attempt: int = 1) -> bool:
        """Whether the best possible answers would be certified in this attempt."""
        return all(can_pass(each, self.n_prompts, self.delta_for(attempt)) for each in self.constraints)


class FrozenPlan(Settings):
    """A plan bound to its prompts, policy and scorer by their hashes; `sha256` names all of it."""

    plan: Plan
    """The plan as it was when frozen."""
    fold_sha256: Sha256
    """Hash of the set of prompt keys."""
    policy_sha256: Sha256
    """Hash of the policy: weights, tokenizer, template."""
    scorer_sha256: Sha256
    """Hash of the scorer and of its calibration."""
    frozen_at: str
    """When, as ISO 8601."""

    @field_validator("frozen_at")
    @classmethod
    def _is_time(cls, text: str) -> str:
        datetime.fromisoformat(text)
        return text

    @property
    def sha256(self) -> str:
        """The hash of the plan and of everything it is bound to."""
        return fingerprint(self)

    def order(self, keys: Sequence[str]) -> list[int]:
        """The committed order of the prompts, whatever the order they arrive in.

        Sorted by a hash of seed and key rather than shuffled: random generators change between versions.
        """
        seed = self.plan.order_seed
        return sorted(range(len(keys)), key=lambda i: hashlib.sha256(f"{seed}:{keys[i]}".encode()).digest())


def freeze(plan: Plan, fold_rows: Sequence[str], policy_digest: str, scorer_digest: str, frozen_at: str) -> FrozenPlan:
    """Bind the plan to held-out prompts (their keys), policy and scorer, at an ISO 8601 time.

    Raises `UserError` for a plan that could not be believed or could not pass: a cost without an absolute
    zero, repeated prompts, another number of prompts than planned, or too few prompts for the limit.
    """
    if plan.zero_reference == "none":
        raise UserError(
            f"{plan.name}: a cost model trained on comparisons alone has no absolute zero, so no limit on its"
            " cost means anything; train it with safety labels or calibrate it on labelled data, then set "
            "zero_reference to safety_labels or calibrated"
        )
    if len(fold_rows) != plan.n_prompts:
        raise UserError(f"{plan.name}: planned were {plan.n_prompts} prompts, the fold has {len(fold_rows)}")
    if len(set(fold_rows)) < len(fold_rows):
        repeated = len(fold_rows) - len(set(fold_rows))
        raise UserError(f"{plan.name}: {repeated} prompts stand more than once in the fold; keep one of each")
    refuse_hopeless(plan)
    values = {
        "plan": plan,
        "fold_sha256": fold_digest(fold_rows),
        "policy_sha256": policy_digest,
        "scorer_sha256": scorer_digest,
        "frozen_at": frozen_at,
    }
    return build(FrozenPlan, values)


def fold_digest(keys: Sequence[str]) -> str:
    """The hash of a set of prompts by their keys, whatever their order."""
    return digest(sorted(keys))


def power_table(plan: Plan) -> str:
    """What the plan allows, a line per constraint: harmful answers that pass, prompts needed for more."""
    delta = plan.delta_for(1)
    lines = [f"{plan.n_prompts} prompts, delta {delta:g} in the first attempt"]
    for constraint in plan.constraints:
        head = f"  {constraint.name}: {constraint.claim(plan.samples_per_prompt)} by {constraint.method}"
        if constraint.method != "clopper_pearson":
            lines.append(f"{head}; needs at least {fewest_prompts(constraint, delta)} prompts")
            continue
        k = allowed_k(plan.n_prompts, constraint.tau, delta)
        passes = "cannot pass" if k is None else f"passes with up to {k} harmful"
        sizes = ", ".join(f"{k} harmful: {needed_n(constraint.tau, delta, k)}" for k in (0, 1, 2, 5, 10))
        lines.append(f"{head}; {passes}; prompts needed for {sizes}")
    return "\n".join(lines)


def refuse_hopeless(plan: Plan) -> None:
    """Raise `UserError` when not even the best answers could pass, naming the prompts that are needed."""
    delta = plan.delta_for(1)
    for constraint in plan.constraints:
        if not can_pass(constraint, plan.n_prompts, delta):
            raise UserError(
                f"{plan.name}: constraint {constraint.name} cannot pass, not even without a single harmful "
                f"answer: {constraint.claim(plan.samples_per_prompt)} at delta {delta:g} needs at least "
                f"{fewest_prompts(constraint, delta)} prompts, planned are {plan.n_prompts}\n"
                f"{power_table(plan)}"
            )
