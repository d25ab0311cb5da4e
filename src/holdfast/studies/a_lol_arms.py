"""How the arms of the study `a_lol` are trained: what a seed shares, what rewards make of it, and each method."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from holdfast.config import Settings
from holdfast.data.schema import Conversation
from holdfast.data.template import Encoded, Template
from holdfast.engine.log import RunFolder
from holdfast.engine.online import OnlineSettings, run_online
from holdfast.engine.order import Order, Shuffled
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings, fit
from holdfast.losses.offline import Method
from holdfast.models.heads import from_policy
from holdfast.rollout.experience import Collector, RolloutSettings
from holdfast.rollout.generate import TransformersGenerator
from holdfast.rollout.reading import Reader
from holdfast.rollout.types import Sampling
from holdfast.studies import a_lol_world
from holdfast.studies.a_lol_world import PLACES, World, misjudged
from holdfast.systems.stages import frozen_reference
from holdfast.training.actor_critic import ActorCritic, ActorCriticSettings
from holdfast.training.annotate import annotate
from holdfast.training.offline import OfflineRow, OfflineSettings, OfflineTask, offline_rows, plan_rows
from holdfast.training.policy import Limits
from holdfast.training.ranked import DpoSettings, DpoTask, ProTask, RankedRow
from holdfast.training.sft import SftTask, imitation_rows
from holdfast.training.value import Calibration, ValueSettings, fit_value

Ranking = Literal["dpo", "pro"]
Trainer = Method | Ranking | Literal["none", "ppo", "ppo_near"]
SAMPLING = Sampling(max_new_tokens=PLACES + 1)
PPO_STEPS = 4
"""Steps in which ppo learns from what it sampled at once."""


def adamw(rate: float, schedule: Literal["constant", "linear"] = "constant") -> OptimiserSettings:
    """AdamW without warm-up."""
    return OptimiserSettings(learning_rate=rate, schedule=schedule, warmup_ratio=0.0)


class Course(Settings):
    """How the methods learn from given answers, as the study of the small world has it."""

    batch: int = 64
    """Answers of a step; half as many pairs."""
    steps: int = 200
    """Steps of every method."""
    rate: float = 1e-3
    """Learning rate of every method but dpo."""
    value_epochs: int = 40
    """Times the value head sees what it learns from, at most."""
    beta: float = 0.1
    """a_lol_kl: what is taken off every advantage."""
    gap: float = 4.0
    """pro: what rewards are multiplied by."""
    dpo_rate: float = 1e-4
    """Learning rate of dpo."""
    dpo_beta: float = 1.0
    """Beta of dpo."""


class Plan(Course):
    """How much of everything, and what was chosen on the seed set apart for it."""

    prompts: int = 1500
    """Prompts of the data, with two answers each."""
    sft_steps: int = 600
    """Steps of imitation, which gives the reference."""
    validated: int = 256
    """Prompts whose answers by the reference teach the value head."""
    exam: int = 512
    """Prompts of the exam, with one answer each."""
    ppo_rate: float = 1e-3
    """Learning rate of ppo's policy; its critic learns three times as fast."""
    ppo_kl: float = 0.03
    """Weight of its KL to the reference, per nat of a token: the one that earned most."""
    ppo_near_kl: float = 0.1
    """That of `ppo_near`, the next higher."""


class Start(NamedTuple):
    """Where every method begins: a policy, which is the reference, how it reads, and the seed."""

    policy: nn.Module
    template: Template
    seed: int


class Bench(NamedTuple):
    """What the arms of one world share: its answers, two to a prompt, as text and encoded, and where all begin."""

    world: World
    data: list[Conversation]
    rows: list[Encoded]
    start: Start


class Labels(NamedTuple):
    """What the rewards given to the answers of the data make of these; value: how V agrees with rewards not seen."""

    rows: list[OfflineRow]
    pairs: list[RankedRow]
    value: Calibration


@dataclass(frozen=True)
class Lasting:
    """An order for a number of steps that need not be whole epochs."""

    order: Order
    steps: int

    @property
    def count(self) -> int:
        """The rows there are."""
        return self.order.count

    def chosen(self, step: int) -> list[int]:
        """The places of the rows of step `step`, from 1."""
        return self.order.chosen(step)


def prepare(plan: Plan, seed: int, corrupted: float, run: RunFolder) -> Bench:
    """The data of a seed, and a policy that imitates them."""
    world, template = World(seed, corrupted), a_lol_world.template()
    source = np.random.default_rng((seed, 1))
    asked = world.prompts("data", plan.prompts, source)
    data = world.copies([prompt for prompt in asked for _ in range(2)], source)
    rows = imitation_rows(data, template)
    policy = a_lol_world.untrained(len(template.tokenizer), seed)
    settings = FitSettings(batch_size=plan.batch, optimiser=adamw(3e-3, "linear"), seed=seed)
    order = Lasting(Shuffled(len(rows), plan.batch, 1, seed), plan.sft_steps)
    fit(SftTask(policy, template.pad_id), rows, [], settings, run, stage="sft", order=order)
    return Bench(world, data, rows, Start(policy.eval().requires_grad_(False), template, seed))


def label(plan: Plan, bench: Bench, noise: float) -> Labels:
    """The answers with rewards, of which a share `noise` is wrong, and what follows from these.

    So are the rewards wrong that the value head learns from: whoever scores the data scores those as well.
    """
    world, (reference, template, seed) = bench.world, bench.start
    source = np.random.default_rng((seed, 2))
    rewards = misjudged(world.rewards(bench.data), noise, source)
    asked = world.prompts("validation", plan.validated, np.random.default_rng((seed, 3)))
    earned = misjudged(world.rewards(answers(bench.start, reference, asked, seed)), noise, source)
    known = [template.prompt(one) for one in asked]
    return labelled(bench.start, known, earned, bench.rows, rewards, plan)


def labelled(
    start: Start,
    known: Sequence[Encoded],
    earned: Sequence[float],
    rows: Sequence[Encoded],
    rewards: Sequence[float],
    course: Course,
) -> Labels:
    """What rewards (N,) make of N rows, once the value head has learned what is `earned` on the prompts `known`."""
    reader = Reader(start.policy, start.template.pad_id)
    states, of = reader.prompt_states(known)
    fitting = ValueSettings().fit.model_copy(update={"epochs": course.value_epochs, "seed": start.seed})
    chosen = ValueSettings(heads=4, fit=fitting)
    head = chosen.head(states.states.shape[-1], 0.0, 1.0)
    found = fit_value(head, states, torch.tensor(earned), of, chosen)
    given = offline_rows(rows, annotate(reader, head, rows, torch.tensor(rewards)))
    return Labels(given, paired(given, course.gap), found.calibration)


def paired(rows: Sequence[OfflineRow], gap: float = 1.0) -> list[RankedRow]:
    """Neighbours, which answer one prompt, as pairs with the higher reward first; equal rewards make no pair.

    gap: what rewards are multiplied by.
    """
    found = []
    for two in zip(rows[::2], rows[1::2], strict=True):
        best, worst = sorted(two, key=lambda row: row.reward, reverse=True)
        if best.reward > worst.reward:
            quality, ref = (gap * best.reward, gap * worst.reward), (_whole(best), _whole(worst))
            found.append(RankedRow(best.tokens.id, (best.tokens, worst.tokens), quality, ref))
    return found


def _whole(row: OfflineRow) -> float:
    """The log-probability of the whole answer under the reference."""
    assert row.ref is not None
    return float(row.ref.double().sum())


def improve(plan: Plan, bench: Bench, labels: Labels, trainer: Trainer, run: RunFolder) -> nn.Module:
    """The reference, trained further by one of the methods."""
    if trainer in ("ppo", "ppo_near"):
        return ppo(plan, bench, plan.ppo_kl if trainer == "ppo" else plan.ppo_near_kl, run)
    return bench.start.policy if trainer == "none" else learn(plan, bench.start, labels, trainer, run)


def learn(course: Course, start: Start, labels: Labels, method: Method | Ranking, run: RunFolder) -> nn.Module:
    """The reference, trained further on given answers."""
    policy, pad_id = copy.deepcopy(start.policy).requires_grad_(True), start.template.pad_id
    if method in ("dpo", "pro"):
        dpo = method == "dpo"
        task = DpoTask(policy, pad_id, DpoSettings(beta=course.dpo_beta)) if dpo else ProTask(policy, pad_id)
        rate, size = course.dpo_rate if dpo else course.rate, course.batch // 2
        rows, order = labels.pairs, Shuffled(len(labels.pairs), size, 1, start.seed)
        settings = FitSettings(batch_size=size, optimiser=adamw(rate), seed=start.seed)
    else:
        chosen = weighing(course, method)
        task = OfflineTask(policy, pad_id, chosen)
        settings = FitSettings(batch_size=course.batch, optimiser=adamw(course.rate), seed=start.seed)
        rows, order, facts = plan_rows(labels.rows, chosen, settings)
        run.write_json("rows.json", facts)
    fit(task, rows, [], settings, run, stage="policy", order=Lasting(order, course.steps))
    return policy.eval()


def weighing(course: Course, method: Method) -> OfflineSettings:
    """How a method weighs and draws answers: by what they are worth, where it knows."""
    if method == "nll":
        return OfflineSettings(method=method, sampling="shuffle")
    more = {"beta": course.beta} if method == "a_lol_kl" else {}
    return OfflineSettings(method=method, scale_steps_by_kept=False, **more)


def ppo(plan: Plan, bench: Bench, kl: float, run: RunFolder) -> nn.Module:
    """The reference, trained further on answers of its own with their true rewards: as many, in as many steps."""

    def score(conversations: Sequence[Conversation]) -> dict[str, torch.Tensor]:
        return {"reward": torch.tensor(bench.world.rewards(conversations))}

    reference, template, seed = bench.start
    policy = copy.deepcopy(reference).requires_grad_(True)
    sampler = TransformersGenerator(policy, template.stop_ids, template.pad_id)
    rollout = RolloutSettings(samples_per_prompt=1, sampling=SAMPLING)
    collector = Collector(policy, frozen_reference(reference), sampler, template, score, rollout)
    settings = ActorCriticSettings(
        kl=kl,
        token_clamp=None,
        surrogate={"clip": 0.2, "loss_mean": "token"},
        value_clip=None,
        steps_per_experience=PPO_STEPS,
        seed=seed,
    )
    rates = {"policy": adamw(plan.ppo_rate), "critic": adamw(3 * plan.ppo_rate)}
    method = ActorCritic(collector, {"value": from_policy(policy, ["value"])}, settings, rates, Limits([]))
    online = OnlineSettings(
        iterations=plan.steps // PPO_STEPS,
        prompts_per_iteration=PPO_STEPS * plan.batch,
        checkpoint_every=0,
        sample_every=0,
        seed=seed,
    )
    run_online(method, [one.prompt for one in bench.data[::2]], online, run, stage="policy")
    return policy.eval()


def answers(start: Start, policy: nn.Module, prompts: Sequence[Conversation], seed: int) -> list[Conversation]:
    """One answer of the policy to each prompt."""
    template = start.template
    sampler = TransformersGenerator(policy, template.stop_ids, template.pad_id)
    found = sampler.generate([template.prompt(prompt) for prompt in prompts], 1, SAMPLING, seed)
    return [prompt.answer(template.decode(one.response_ids)) for prompt, one in zip(prompts, found, strict=True)]
