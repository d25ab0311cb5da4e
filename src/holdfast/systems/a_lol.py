"""A-LoL: a better policy from a fixed set of answers with rewards, and its relatives.

Baheti et al., "Leftover Lunch: Advantage-based Offline Reinforcement Learning for Language Models", arXiv 2305.14718
(ICLR 2024). What could be read: the abstract, the main equation, the reviews of it, and the authors' code, which the
equations below follow.

Equation map:

* policy gradient of one-step episodes, moved to data of pi_ref   `losses.offline.weighted_nll`
* importance weight pi / pi_ref, clipped on both sides, detached  `losses.offline.token_weights`
* variants: per token (seq), without (ref-free), KL               `losses.offline.Plan`
* V(x): attention over the reference's states of the prompt       `models.value.ValueHead`
* V fitted to rewards                                             `training.value.fit_value`
* A = R - V                                                       `training.annotate.annotate`
* answers with A > 0 kept                                         `training.offline.plan_rows`
* draws in proportion to the advantage                            `engine.order.Drawn`
* the policy of the step that answers best goes on                `engine.best.Best`
* R-LoL, weighted cloning, R-GOLD (arXiv 2009.07839)              `losses.offline.Plan`
* DPO (arXiv 2305.18290)                                          `training.ranked.DpoTask`
* PRO (arXiv 2306.17492)                                          `training.ranked.ProTask`

Departures, each with its reason:

1. Reference and value head are read without dropout and with a mask over padding, once, and what they say is kept in
   files. The released code reads both at every step, the head with dropout on and without a mask.
2. Held-out prompts choose the head's epoch; the released code takes the lowest training error.
3. Multi-paragraph answers stay whole. The data of the released runs lost everything behind the first blank line.
4. Draws follow from the seed and the step alone, so that runs can be repeated and resumed.
5. Limits on further scores: answers beyond them are left out or weigh less. The paper has one reward.
6. The KL variant is here to be compared with: its term shifts every advantage and holds to no reference.
7. The last policy goes on unless `best` is given, which asks for models of the rewards. The prompts that choose are
   not the exam's; those of the released HH runs stand in its test files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, model_validator

from holdfast.config import Settings
from holdfast.data.schema import Conversation, Record
from holdfast.data.split import keys, leaks, share_of
from holdfast.engine.best import Contest, Judged
from holdfast.engine.order import Order
from holdfast.engine.supervised import FitResult, FitSettings, Task, fit
from holdfast.errors import UserError
from holdfast.evaluate.policy import Outcome
from holdfast.stats.diversity import distinct_n
from holdfast.systems import dual, exam, given, reading, stages, valued
from holdfast.systems.scores import CostStage, RewardStage
from holdfast.training.offline import OfflineRow, OfflineSettings, OfflineTask, offline_rows, plan_rows
from holdfast.training.ranked import DpoSettings, DpoTask, ProSettings, ProTask, RankedRow, ranked_rows, reference_of
from holdfast.training.selection import OfflineLimit, RewardTerm, reward_of

Row = TypeVar("Row")
STAGE = "policy"
# What a policy that learns from fixed answers has no use for.
ONLINE = ("constraint", "constraints", "limit_by_source", "monitor", "look_ahead")


class BestSettings(Settings):
    """Which step's policy goes on: the one whose own answers earn most, `rewards` by the models of this run."""

    evaluations: int = Field(8, ge=1)
    """Times the policy is judged while it learns, spread evenly, the last step among them. The published runs did so 2
    to 16 times an epoch."""
    prompts: int = Field(256, ge=1)
    """Prompts that it answers each time, once and sampled as in the exam: of those to practise on, answers to which
    nobody learns from and which the exam does not ask. V may have been fitted to the reference's answers to them."""


class ALol(dual.DualSettings):
    """Everything a run that learns from given answers can be told."""

    always_rewarded: ClassVar[bool] = False
    section: ClassVar[type[given.OfflineData]] = given.OfflineData

    system: Literal["a_lol"] = "a_lol"
    """Which system this recipe is for."""
    data: given.OfflineData | None = None
    """The data; a text alone is the path of the pairs. With `pocket` it is the world."""
    reward: RewardStage | None = None
    """A reward model from comparisons; null trains none."""
    cost: CostStage | None = None
    """A cost model, for limits; null needs no safety labels."""
    rewards: dict[str, RewardTerm] = given.REWARD
    """What an answer is worth: scores with their weights."""
    limits: tuple[OfflineLimit, ...] = ()
    """Limits that every answer to learn from has to keep."""
    value: valued.ValueStage = valued.ValueStage()
    """What the reference earns on a prompt."""
    offline: OfflineSettings | None = OfflineSettings()
    """Learning from single answers; null where `dpo` or `pro` is given."""
    dpo: DpoSettings | None = None
    """Learning from pairs, in place of `offline`."""
    pro: ProSettings | None = None
    """Learning from rankings, in place of `offline`."""
    fit: FitSettings = FitSettings()
    """How long the policy learns; the steps shrink by the share of answers that is kept."""
    held_out: float = Field(0.05, gt=0, lt=0.5)
    """Share of the answers that only watch the policy's training."""
    best: BestSettings | None = None
    """Judge the policy by its own answers while it learns and keep the best step; null keeps the last."""

    @model_validator(mode="before")
    @classmethod
    def _one_method(cls, values: Any) -> Any:
        """Naming DPO or PRO leaves out what stands there by default."""
        if isinstance(values, Mapping) and "offline" not in values and ({"dpo", "pro"} & values.keys()):
            return {**values, "offline": None}
        return values

    @model_validator(mode="after")
    def _settings_go_together(self) -> "ALol":
        chosen = [name for name in ("offline", "dpo", "pro") if getattr(self, name) is not None]
        if len(chosen) != 1:
            named = ", ".join(chosen) or "none"
            raise ValueError(f"give one of offline, dpo, pro; given: {named} (offline=null leaves out a recipe's)")
        fields = type(self).model_fields
        if moved := [name for name in ONLINE if getattr(self, name) != fields[name].default]:
            raise ValueError(f"{', '.join(moved)}: for policies that sample what they learn from; here use limits")
        if self.offline is None and any(limit.how == "weight" for limit in self.limits):
            raise ValueError("limits weigh single answers; with dpo and pro set how to drop or report")
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "ALol":
        data = self.data or given.OfflineData()
        needs = frozenset[str]() if self.offline is None else self.offline.needs
        rewarded = self.pro is not None or self.best is not None or bool(needs & {"reward", "advantage"})
        unread = {
            "data.ranked": self.offline is not None and data.ranked is not None,
            "data.answers": self.offline is None and data.answers is not None,
            "value": "advantage" not in needs and self.value != valued.ValueStage(),
            "rewards": not rewarded and self.rewards != given.REWARD,
        }
        if ignored := [name for name, moved in unread.items() if moved]:
            method = self.offline.method if self.offline else "dpo" if self.dpo else "pro"
            raise ValueError(
                f"{', '.join(ignored)}: not read by {method}; leave out what is given there (a recipe's by "
                "'value={}' and 'rewards={reward: {}}')"
            )
        return self

    @model_validator(mode="after")
    def _best_can_be_judged(self) -> "ALol":
        known = {*self.given_scores, *(name for one in (*self.functions, *self.endpoints) for name in one.names)}
        # What a folder of `scorers` gives is known when it is opened.
        if self.best is not None and not self.scorers and (missing := [n for n in self.rewards if n not in known]):
            raise ValueError(
                f"best judges the policy's own answers, and no model gives their {', '.join(missing)}; there are "
                f"{', '.join(sorted(known)) or 'none'}. Add a section (reward, cost, attributes), scorers, functions "
                "or endpoints, name other scores under rewards, or set best=null"
            )
        return self


def run(settings: ALol, folder: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Run all stages in `folder`, resuming what is finished there; return the summary.

    Imitation, which makes the reference; the models of scores; the reference examined; V and the annotations; the
    policy learned from the annotated answers; the policy examined.
    """
    settings = settings.model_copy(update={"data": given.with_answers(settings.data)})
    return exam.run(settings, folder, "a_lol", improve, further=diversity, overwrite=overwrite)


def improve(settings: ALol, bench: dual.Bench, reference: exam.Reference) -> dict[str, Any]:
    """Improve the policy in place and save it as `models/policy`; return what is to be told of it."""
    data = bench.settings.data
    assert isinstance(data, given.OfflineData)
    if settings.best is not None:
        given.scored_by(bench, list(settings.rewards), ", or set best=null")
    if settings.offline is not None:
        facts = from_answers(settings, settings.offline, bench, data, reference)
    else:
        facts = from_rankings(settings, bench, data, reference)
    stages.keep(bench.run, bench.policy, bench.template, dual.probe_answers(bench.pools), "policy")
    return facts


def from_answers(
    settings: ALol, method: OfflineSettings, bench: dual.Bench, data: given.OfflineData, reference: exam.Reference
) -> dict[str, Any]:
    """Learn from single answers: gather, hold to the limits, annotate, draw, fit."""
    limited = [limit.score for limit in settings.limits]
    answers = given.gather(bench, data, settings.rewards if method.needs else {}, limited)
    answers, weight = given.within(answers, settings.limits, bench)
    if "advantage" in method.needs:
        margin = method.value_margin
        rows, known = valued.annotated(bench, answers, settings.rewards, settings.value, reference, margin)
        ready = offline_rows(rows, known, weight)
    else:
        ready = given.rewarded_rows(bench, answers, weight)
        if "ref" in method.needs:
            ready = referred(reference, ready, bench)
    ready, watching = divided(ready, answers.conversations, settings.held_out)
    planned = plan_rows(ready, method, stages.offset(settings.fit, settings.seed))
    stages.say(
        f"policy: {planned.facts['kept']:.0f} of {planned.facts['rows']:.0f} answers, {planned.facts['steps']:.0f} "
        f"steps, drawn as from {planned.facts['effective_size']:.0f} equal ones"
    )
    task = OfflineTask(bench.policy, bench.template.pad_id, method)
    learned = learn(task, planned.rows, watching, settings, bench, planned.order)
    return {"method_of": method.method, "offline": planned.facts, **learned}


def from_rankings(
    settings: ALol, bench: dual.Bench, data: given.OfflineData, reference: exam.Reference
) -> dict[str, Any]:
    """Learn from pairs by DPO or from rankings by PRO."""
    scored, judged = settings.pro is not None, settings.best is not None
    found = given.rankings(bench, data, settings.rewards, settings.limits, scored, judged)
    rows = ranked_rows(found, bench.template)
    task: Task
    if settings.pro is not None:
        task = ProTask(bench.policy, bench.template.pad_id, settings.pro)
    else:
        assert settings.dpo is not None
        task = DpoTask(bench.policy, bench.template.pad_id, settings.dpo)
        if not settings.dpo.reference_free:
            rows = known_to(reference, rows, bench)
    rows, watching = divided(rows, found, settings.held_out)
    learned = learn(task, rows, watching, settings, bench, None)
    return {"method_of": task.name, "rankings": len(found), "watching": len(watching), **learned}


def divided(rows: Sequence[Row], prompts: Sequence[Record], share: float) -> tuple[list[Row], list[Row]]:
    """The rows to learn from, and those that only watch: the answers to `share` of the prompts, to one at least.

    prompts: a record with the prompt of each row. No prompt stands on both sides, whatever the order of the rows.
    """
    places = [share_of(f"watch/{keys(one)[0]}") for one in prompts]
    known = sorted(set(places))
    if len(known) < 2:
        raise UserError("all answers are to one prompt, and another must watch the training; give more prompts")
    border = known[max(1, round(share * len(known))) - 1]
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row, place in zip(rows, places, strict=True):
        sides[place <= border].append(row)
    return sides


def referred(reference: exam.Reference, rows: list[OfflineRow], bench: dual.Bench) -> list[OfflineRow]:
    """The rows with the reference's log-probabilities of their answers' tokens."""
    with reference() as frozen:
        table = valued.reader(bench, frozen).logprobs([row.tokens for row in rows])
    return [replace(row, ref=own[: len(row.tokens.response_ids)]) for row, own in zip(rows, table, strict=True)]


def known_to(reference: exam.Reference, rows: list[RankedRow], bench: dual.Bench) -> list[RankedRow]:
    """The rows with what the reference says of their answers."""
    with reference() as frozen:
        return reference_of(rows, valued.reader(bench, frozen))


def learn(
    task: Task, rows: list[Any], held_out: list[Any], settings: ALol, bench: dual.Bench, order: Order | None
) -> dict[str, Any]:
    """Fit the policy, and leave it at its best step where that is wanted; return what is to be told.

    That is the numbers of what was held out, and of the best step what it earned beside all others that were judged.
    """
    own = stages.offset(settings.fit, settings.seed)
    asked = [] if settings.best is None else judging_prompts(bench.pools, settings.best.prompts)
    contest = None if settings.best is None else contest_of(settings, settings.best.evaluations, asked, bench)
    result = fit(task, rows, held_out, own, bench.run, stage=STAGE, order=order, contest=contest)
    stages.say(f"policy: {result.steps} steps, held out {stages.numbers(result.metrics)}")
    return {"learned": result.metrics, **best_of(result, len(asked))}


def judging_prompts(pools: reading.Pools, most: int) -> list[Conversation]:
    """At most `most` of the prompts to practise on, by a hash of each, so that fewer are the first of more.

    No fold of answers to learn from holds one of them, nor does the exam; `given.in_no_other_fold` sees to answers that
    come from elsewhere.
    """
    found = sorted(pools.practise, key=lambda one: share_of(f"best/{keys(one)[0]}"))[:most]
    if not found:
        raise UserError("best asks for prompts to practise on and there are none; give data.prompts, or best=null")
    if len(found) < most:
        stages.say(f"best: {len(found)} prompts to practise on, which is all there are, and {most} were asked for")
    assert not leaks([*pools.imitate, *pools.pairs, *pools.dev], found), "folds share no prompt"
    return found


def contest_of(settings: ALol, times: int, asked: Sequence[Conversation], bench: dual.Bench) -> Contest:
    """How the policy is judged: the mean reward of its answers, one to each prompt, equal draws at each step."""
    starts = [bench.template.prompt(one) for one in asked]
    score, sampling = stages.scores_by_name(bench.scorer), settings.rollout.sampling

    def judge(_: int) -> float:
        samples = bench.generator.generate(starts, 1, sampling, settings.seed)
        told = [bench.template.decode(one.response_ids) for one in samples]
        answered = [prompt.answer(text) for prompt, text in zip(asked, told, strict=True)]
        return float(reward_of(score(answered), settings.rewards).mean())

    return Contest(judge, times, "reward")


def best_of(result: FitResult, prompts: int) -> dict[str, Any]:
    """The best step and what else was judged on how many prompts, for the summary; nothing where nobody judged."""
    if result.best is None:
        return {}
    stages.say(f"policy: step {result.best.step} is the best, reward {result.best.value:.3f}, and goes on")
    return {"best": {**_plain(result.best), "of": [_plain(one) for one in result.judged], "prompts": prompts}}


def _plain(one: Judged) -> dict[str, float | None]:
    return {"step": one.step, "value": one.value if math.isfinite(one.value) else None}


def diversity(outcome: Outcome) -> dict[str, Any]:
    """What the summary says of answers beside scores: shares of different words, pairs and triples of words.

    Where no answer has as many words there is nothing to count, and no number.
    """
    texts = [one.response for one in outcome.conversations]
    found = {f"distinct_{n}": distinct_n(texts, n) for n in (1, 2, 3)}
    return {name: share for name, share in found.items() if not math.isnan(share)}
