"""Stages A and B of the study `hc_stages`: a bandit whose truth is known, in a hundred copies at once.

Prompts x are in R^8, actions are twelve; reward and cost are linear in x for each action, and what helps more costs
more. The policy is a linear softmax that starts uniform. Candidate selection is leave-one-out on the Lagrangian's
return with the augmented cost; the safety test is the certificate's own gate with the Student-t bound. One world of
forty draws serves all: the one whose reward-optimal policy costs +3.7 on average, as in the reference.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from holdfast.certificate import gate
from holdfast.certificate.constraint import ConstraintPlan
from holdfast.certificate.plan import FrozenPlan, Plan, freeze
from holdfast.config import Settings
from holdfast.losses import dual
from holdfast.losses.advantage import leave_one_out
from holdfast.stats import bounds
from holdfast.stats.betting import Bets, betting_upper
from holdfast.stats.estimate import mean, rate
from holdfast.stats.power import Schedule, spend

PROMPT, ACTIONS, WORLD = 8, 12, 35
TAU = 0.0
NOISE = {"reward": 0.3, "cost": 1.0}
CEILING = 1e6


class BanditPlan(Settings):
    """How much of everything in stages A and B."""

    copies: int = 100
    """Runs of every arm of stage A, in one batch."""
    steps: int = 1200
    """Batches of prompts."""
    prompts: int = 500
    """Candidate prompts of a run."""
    batch: int = 32
    """Prompts of a batch."""
    samples: int = 4
    """Answers to each prompt."""
    window: int = 256
    """Recent costs behind the bound; also n_b, counted in answers as in the official code."""
    rate: float = 0.15
    """Step size of the policy, plain gradient ascent."""
    rate_multiplier: float = 0.01
    """Step size of the multiplier's logarithm."""
    kl: float = 0.1
    """Weight of the KL to the uniform reference in the reward."""
    delta: float = Field(0.1, gt=0, lt=0.5)
    """Failure probability of the safety test."""
    fresh: int = 20_000
    """Prompts on which the truth is read, with exact expectations over actions."""
    tests: int = 5000
    """Repetitions of every test in stage B."""
    n_boundary: int = 100
    """Prompts of a test in stage B."""
    attempts: int = 5
    """Attempts in stage B, on the same prompts."""


@dataclass(frozen=True)
class Arm:
    """One way of candidate selection, and the size of the safety test it looks forward to.

    limited: false maximises the reward alone. n_primal: the n_b in the policy's kappa where it differs from the
    multiplier's, a slip of the official code.
    """

    c1: float = 0.0
    c2: float = 0.0
    n_safety: int = 100
    limited: bool = True
    monotone: bool = False
    n_primal: int | None = None

    def kappa(self, delta: float, n_batch: int) -> float:
        """C1 t / sqrt(n_b) + C2 t / sqrt(n_s)."""
        return bounds.kappa(delta, n_batch, self.n_safety, self.c1, self.c2)


ARMS = {
    "reward only": Arm(limited=False),
    "mean": Arm(),
    "C=(0,1)": Arm(c2=1),
    "C=(0,2)": Arm(c2=2),
    "C=(0,3)": Arm(c2=3),
    "C=(4,2)": Arm(c1=4, c2=2),
    "mean, n_s=1000": Arm(n_safety=1000),
    "C=(0,1), n_s=1000": Arm(c2=1, n_safety=1000),
    "C=(0,2), n_s=1000": Arm(c2=2, n_safety=1000),
    "C=(1,1), n_s=1000": Arm(c1=1, c2=1, n_safety=1000),
    "C=(4,2), n_s=1000": Arm(c1=4, c2=2, n_safety=1000),
    "C=(4,2), n_s=1000, monotone": Arm(c1=4, c2=2, n_safety=1000, monotone=True),
    "C=(4,2), n_s=1000, two kappas": Arm(c1=4, c2=2, n_safety=1000, n_primal=32),
}


@dataclass(frozen=True)
class World:
    """Weights (9, 12) of mean reward and mean cost, the last row being the constant of each action."""

    reward: Tensor
    cost: Tensor

    @classmethod
    def draw(cls, seed: int = WORLD) -> "World":
        """A world in which helpful actions tend to be costly."""
        source = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=source, dtype=torch.float64)

        slope, level = 0.5 * normal(PROMPT, ACTIONS), normal(ACTIONS)
        cost_slope = 0.7 * normal(PROMPT, ACTIONS) + 0.5 * slope
        cost_level = 1.5 * level + 0.7 * normal(ACTIONS) + 0.8
        return cls(torch.cat([slope, level[None]]), 1.5 * torch.cat([cost_slope, cost_level[None]]))


@dataclass(frozen=True)
class Draw:
    """Answers to prompts: x (..., P, 9), probabilities (..., P, 12), and per answer (..., P, K) what it brought."""

    x: Tensor
    odds: Tensor
    action: Tensor
    reward: Tensor
    cost: Tensor


def some_prompts(shape: tuple[int, ...], source: torch.Generator) -> Tensor:
    """Standard normal prompts (*shape, 9), the last entry being 1."""
    x = torch.randn(*shape, PROMPT, generator=source, dtype=torch.float64)
    return torch.cat([x, torch.ones(*shape, 1, dtype=torch.float64)], -1)


def answer(world: World, policy: Tensor, x: Tensor, samples: int, source: torch.Generator) -> Draw:
    """`samples` answers of each of S policies (S, 9, 12) to its own prompts (S, P, 9), with noisy reward and cost."""
    odds = (x @ policy).softmax(-1)
    uniform = torch.rand(*odds.shape[:-1], samples, generator=source, dtype=torch.float64)
    action = torch.searchsorted(odds.cumsum(-1), uniform, right=True).clamp(max=ACTIONS - 1)
    seen = {}
    for name, weights in (("reward", world.reward), ("cost", world.cost)):
        noise = torch.randn(action.shape, generator=source, dtype=torch.float64)
        seen[name] = (x @ weights).gather(-1, action) + NOISE[name] * noise
    return Draw(x, odds, action, **seen)


def train(plan: BanditPlan, arm: Arm, seed: int = 0) -> Tensor:
    """The candidates (S, 9, 12): S runs that differ in their prompts and their luck."""
    source, world = torch.Generator().manual_seed(seed), World.draw()
    x = some_prompts((plan.copies, plan.prompts), source)
    policy = torch.zeros(plan.copies, PROMPT + 1, ACTIONS, dtype=torch.float64)
    multiplier = torch.full((plan.copies,), float(arm.limited), dtype=torch.float64)
    window = torch.empty(plan.copies, 0, dtype=torch.float64)
    for _ in range(plan.steps):
        chosen = torch.randint(plan.prompts, (plan.copies, plan.batch, 1), generator=source)
        draw = answer(world, policy, x.gather(1, chosen.expand(-1, -1, PROMPT + 1)), plan.samples, source)
        gain = returns(draw, plan.kl)
        if arm.limited:
            window = torch.cat([window, draw.cost.flatten(1)], 1)[:, -plan.window :]
            centre, spread = window.mean(1), window.std(1)
            upper = dual.pessimistic(centre, spread, arm.kappa(plan.delta, window.shape[1]))
            multiplier = moved(multiplier, upper - TAU, plan.rate_multiplier)
            kappa = arm.kappa(plan.delta, arm.n_primal or window.shape[1])
            cost = augmented(draw.cost, centre[:, None, None], spread[:, None, None], kappa, arm.monotone)
            share = multiplier[:, None, None]
            gain = (gain - share * cost) / (1 + share)
        policy = policy + plan.rate * ascent(draw, gain)
    return policy


def returns(draw: Draw, kl: float) -> Tensor:
    """(S, P, K) reward minus kl times the log-ratio to the uniform reference, clipped at 50."""
    log_ratio = (ACTIONS * draw.odds).log().gather(-1, draw.action)
    return (draw.reward - kl * log_ratio).clamp(-50, 50)


def moved(multiplier: Tensor, violation: Tensor, rate: float) -> Tensor:
    """(S,) every multiplier after one step of the log rule (Safe RLHF, arXiv 2310.12773, eq. 31)."""
    pairs = zip(multiplier.tolist(), violation.tolist(), strict=True)
    steps = [dual.update("log", value, over, rate, floor=0.0, ceiling=CEILING) for value, over in pairs]
    return torch.tensor(steps, dtype=torch.float64)


def augmented(cost: Tensor, centre: Tensor, spread: Tensor, kappa: float, monotone: bool) -> Tensor:
    """The augmented cost of many runs at once; cost, centre and spread of any shapes that go together.

    The formula is that of one run in units of its own spread, where the mean is 0 and the deviation 1.
    """
    unit = dual.augmented_cost((cost - centre) / spread, 0.0, 1.0, kappa, monotone=monotone)
    return centre + spread * unit


def ascent(draw: Draw, gain: Tensor) -> Tensor:
    """(S, 9, 12) the gradient of RLOO: mean over answers of advantage times d log pi / d weights."""
    advantage = leave_one_out(gain.flatten(), gain.shape[-1]).view_as(gain)
    # d log pi / d logits is one-hot minus odds; the advantages of a prompt sum to zero, so the odds drop out.
    pull = torch.zeros_like(draw.odds).scatter_add(-1, draw.action, advantage)
    return draw.x.transpose(-1, -2) @ pull / advantage[0].numel()


def truth(plan: BanditPlan, policy: Tensor) -> dict[str, Tensor]:
    """Per run (S,) the mean cost and reward on fresh prompts, exact over actions and noise."""
    world, x = World.draw(), some_prompts((plan.fresh,), torch.Generator().manual_seed(10**6))
    odds = [(x @ each).softmax(-1) for each in policy]
    means = {"cost": x @ world.cost, "reward": x @ world.reward}
    return {name: torch.stack([(p * table).sum(-1).mean() for p in odds]) for name, table in means.items()}


def frozen_plan(delta: float, n: int) -> FrozenPlan:
    """The safety test of the official code: mean cost at most 0 by Student-t, on n prompts."""
    limit = ConstraintPlan(kind="logit_mean", method="student_t", tau=TAU)
    # The cost is the true one, so its zero means what it says.
    plan = Plan(name="bandit", constraints=(limit,), delta=delta, n_prompts=n, zero_reference="calibrated")
    return freeze(plan, [str(i) for i in range(n)], "0" * 64, "0" * 64, "2026-01-01T00:00:00")


def stage_a(plan: BanditPlan, name: str) -> dict[str, Any]:
    """One arm: how often a policy is returned, is unsafe, and both; its true cost and the reward that is left."""
    arm = ARMS[name]
    policy = train(plan, arm)
    true = truth(plan, policy)
    source = torch.Generator().manual_seed(10**6 + 1)
    tested = answer(World.draw(), policy, some_prompts((plan.copies, arm.n_safety), source), 1, source).cost
    frozen = frozen_plan(plan.delta, arm.n_safety)
    keys = [str(i) for i in range(arm.n_safety)]
    returned = np.array([gate.decide(frozen, costs.numpy(), keys).certified for costs in tested[..., 0]])
    unsafe = (true["cost"] > TAU).numpy()
    counts = {"returned": returned, "unsafe": unsafe, "returned_unsafe": returned & unsafe}
    found = {key: rate(int(flags.sum()), plan.copies).to_dict() for key, flags in counts.items()}
    found |= {key: mean(values.numpy()).to_dict() for key, values in true.items()}
    kappa = arm.kappa(plan.delta, plan.window) if arm.limited else None
    return found | {"cost_sd": float(true["cost"].std()), "n_safety": arm.n_safety, "kappa": kappa}


Values = NDArray[np.float64]

LAWS: dict[str, Callable[[Values], Values]] = {
    "cost": lambda cost: cost,
    "excess": lambda cost: np.clip(cost / 8, 0, 1),
    "rare harm": lambda cost: (cost > 4).astype(np.float64),
}
"""What is tested in stage B: nearly normal; in [0, 1] and skewed, mostly zero; yes or no, and seldom yes."""


def cvar(values: Values, alpha: float = 0.25) -> float:
    """The mean of the worst share `alpha` of values that are all there is."""
    return float(np.sort(values)[-round(alpha * values.size) :].mean())


def quantile(values: Values, q: float = 0.9) -> float:
    """The smallest value that a share `q` of all there is does not exceed."""
    return float(np.quantile(values, q, method="inverted_cdf"))


@dataclass(frozen=True)
class Boundary:
    """One bound at the border: `upper` (of values, delta and the limit) for the `quantity` of a law."""

    law: str
    upper: Callable[[Values, float, float], float]
    quantity: Callable[[Values], float] = lambda values: float(np.mean(values))
    exact: bool = True


def _betting(sequential: bool) -> Callable[[Values, float, float], float]:
    def upper(values: Values, delta: float, tau: float) -> float:
        return betting_upper(values, delta, Bets(tau, tau * (1 - tau), sequential=sequential))

    return upper


BOUNDARIES = {
    "student_t, cost": Boundary("cost", lambda v, d, _: bounds.student_t_upper(v, d), exact=False),
    "student_t, excess": Boundary("excess", lambda v, d, _: bounds.student_t_upper(v, d), exact=False),
    "student_t, rare harm": Boundary("rare harm", lambda v, d, _: bounds.student_t_upper(v, d), exact=False),
    "clopper_pearson, rare harm": Boundary(
        "rare harm", lambda v, d, _: bounds.clopper_pearson_upper(int(v.sum()), v.size, d)
    ),
    "hoeffding, excess": Boundary("excess", lambda v, d, _: bounds.hoeffding_upper(v, d)),
    "maurer_pontil, excess": Boundary("excess", lambda v, d, _: bounds.maurer_pontil_upper(v, d)),
    "hoeffding_bentkus, excess": Boundary("excess", lambda v, d, _: bounds.hoeffding_bentkus_upper(v, d)),
    "hoeffding_bentkus, rare harm": Boundary("rare harm", lambda v, d, _: bounds.hoeffding_bentkus_upper(v, d)),
    "dkw, excess": Boundary("excess", lambda v, d, _: bounds.dkw_upper(v, d)),
    "cvar 0.25, excess": Boundary("excess", lambda v, d, _: bounds.cvar_upper(v, d, 0.25), cvar),
    "quantile 0.9, cost": Boundary("cost", lambda v, d, _: bounds.quantile_upper(v, d, 0.9), quantile),
    "betting, excess": Boundary("excess", _betting(sequential=False)),
    "betting, rare harm": Boundary("rare harm", _betting(sequential=False)),
    "betting sequential, excess": Boundary("excess", _betting(sequential=True)),
}


@lru_cache(maxsize=1)
def bank(plan: BanditPlan) -> Values:
    """(prompts, 16) costs of a policy trained as `C=(0,3)`: from now on all that can happen, each equally often.

    A law with finitely many costs, so that what is true of it is known exactly. Attempts with new answers to the same
    prompts hang together, as retries do.
    """
    policy = train(plan.model_copy(update={"copies": 1}), ARMS["C=(0,3)"])
    source = torch.Generator().manual_seed(10**6 + 2)
    return answer(World.draw(), policy, some_prompts((1, plan.fresh), source), 16, source).cost[0].numpy()


def stage_b(plan: BanditPlan, name: str) -> dict[str, Any]:
    """How often a policy that is just unsafe passes: tested once; in any attempt; in any attempt, delta shared out."""
    test, rng = BOUNDARIES[name], np.random.default_rng(0)
    law = LAWS[test.law](bank(plan))
    # The largest limit that is still below the truth.
    tau = float(np.nextafter(test.quantity(law.ravel()), -np.inf))
    passed = {"once": 0, "retries": 0, "retries, spending": 0}
    for _ in range(plan.tests):
        asked = rng.integers(len(law), size=plan.n_boundary)
        samples = law[asked, rng.integers(law.shape[1], size=(plan.attempts, plan.n_boundary))]
        full = attempts(test, samples, plan.delta, tau, None)
        passed["once"] += full[0]
        passed["retries"] += any(full)
        passed["retries, spending"] += any(attempts(test, samples, plan.delta, tau, "geometric"))
    rates = {how: rate(count, plan.tests).to_dict() for how, count in passed.items()}
    return rates | {"tau": tau, "exact": test.exact, "delta": plan.delta}


def attempts(test: Boundary, samples: Values, delta: float, tau: float, schedule: Schedule | None) -> list[bool]:
    """Whether each attempt (a row of samples) passes, at the full delta or at its share of it."""
    deltas = [spend(delta, k, schedule) if schedule else delta for k in range(1, len(samples) + 1)]
    return [test.upper(sample, own, tau) <= tau for sample, own in zip(samples, deltas, strict=True)]
