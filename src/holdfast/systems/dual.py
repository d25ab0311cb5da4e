"""What Safe RLHF and its descendants share: a reward model, a cost model, a policy under a limit, an exam.

Each function is one stage; the systems put them in order.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import model_validator
from torch import nn

from holdfast.data.schema import Conversation
from holdfast.data.template import Template
from holdfast.engine.guard import restore_best
from holdfast.engine.log import RunFolder
from holdfast.engine.online import OnlineResult
from holdfast.engine.seeds import seed_everything
from holdfast.errors import UserError
from holdfast.models.adapters import AdapterSettings, with_adapter
from holdfast.models.heads import ScoreModel, from_policy, with_score_adapter
from holdfast.pocket import world
from holdfast.preference.score import FunctionScorer, JointScorer, ModelScorer, Scorer
from holdfast.rollout.experience import Collector
from holdfast.rollout.generate import TransformersGenerator
from holdfast.systems import reading, stages
from holdfast.systems.outlook import LookAhead, look_ahead, suggestion
from holdfast.systems.scorers import ScoredRun
from holdfast.systems.scores import (
    AttributeStage,
    CostStage,
    RewardStage,
    Shop,
    Zero,
    train_attributes,
    train_both,
    train_cost,
    train_reward,
)
from holdfast.systems.weak_scores import LabelSettings
from holdfast.training.groups import GroupLimits
from holdfast.training.kl import KlSettings
from holdfast.training.lagrangian import Constraint, ConstraintSettings
from holdfast.training.monitor import LEVELS, MonitorSettings
from holdfast.training.policy import Limits
from holdfast.training.scores import ScoreSettings


class DualSettings(ScoredRun):
    """Settings that every system with a reward and a cost model has."""

    always_rewarded: ClassVar[bool] = True
    """Whether there is a score `reward` even without a model of it: zero everywhere."""
    section: ClassVar[type[reading.DataSection]] = reading.DataSection
    """The class of `data`."""

    data: reading.DataSection | None = None
    """The data; a text alone is the path of the pairs. With `pocket` it is the world."""
    reward: RewardStage | None = RewardStage()
    """The reward model; null when no pair says what is helpful: the policy then only keeps the limit and stays
    as close to its start as it can."""
    cost: CostStage | None = CostStage()
    """The cost model."""
    joint_scores: bool = False
    """Learn reward and cost as two scores of one network, read in one pass, by the training of the reward section."""
    constraint: ConstraintSettings = ConstraintSettings()
    """The limit the policy has to keep."""
    constraints: tuple[ConstraintSettings, ...] = ()
    """Further limits, on the reward, on the cost or on a score of `scorers`, each with a name of its own."""
    attributes: AttributeStage | None = None
    """A model of several named scores, learned from `data.ratings`; null trains none."""
    labels: LabelSettings = LabelSettings()
    """Who judged the pairs: the people of the data, or a weaker model."""
    limit_by_source: bool = False
    """Hold every limit for each source of prompts by itself (`source` in their file, or else their harm category)."""
    monitor: MonitorSettings = MonitorSettings()
    """The collapse detector."""
    look_ahead: LookAhead | None = LookAhead()
    """Say before training whether the limits are within reach; null does not."""

    @model_validator(mode="after")
    def _both_to_join(self) -> "DualSettings":
        if self.joint_scores and (self.reward is None or self.cost is None):
            raise ValueError("joint_scores learns reward and cost together; give both sections")
        by_people = {name: getattr(self, name, None) for name in ("dpo", "pro")}
        by_people["attributes.preference"] = self.attributes and self.attributes.preference
        self.labels.require({"reward": self.reward, "cost": self.cost}, self.joint_scores, by_people)
        if self.joint_scores and self.cost is not None and self.cost.loss.labels == "none":
            raise ValueError("joint_scores needs safety labels, and cost.loss.labels is none; set joint_scores=false")
        return self

    @property
    def networks(self) -> tuple[tuple[str, ...], ...]:
        """The names of the scores that each network learns; none for a score that is not wanted."""
        wanted = [name for name, stage in (("reward", self.reward), ("cost", self.cost)) if stage is not None]
        apart = [tuple(wanted)] if self.joint_scores else [(name,) for name in wanted]
        return (*apart, *([self.attributes.names] if self.attributes else []))

    @property
    def given_scores(self) -> tuple[str, ...]:
        """The names of the scores that this run's own models give."""
        needed = ("reward",) if self.reward or self.always_rewarded else ()
        return (*needed, *(("cost",) if self.cost else ()), *(self.attributes.names if self.attributes else ()))


@dataclass(frozen=True)
class Bench:
    """Everything a system's later stages work with."""

    settings: DualSettings
    run: RunFolder
    pools: reading.Pools
    policy: nn.Module
    template: Template
    reward: ScoreModel | None
    cost: ScoreModel | None
    zero: Zero | None
    attributes: ScoreModel | None
    others: tuple[Scorer, ...]
    facts: dict[str, Any]
    models: Path
    """Folder that holds the saved reward and cost models."""

    @property
    def cost_folder(self) -> Path:
        """Where the cost model was saved."""
        return self.models / ("dual" if self.settings.joint_scores else "cost")

    @property
    def scorer(self) -> Scorer:
        """All scores side by side; one pass gives those of one network."""
        own: dict[int, Scorer] = {}
        tokens = self.settings.rollout.micro_tokens
        if self.reward is None and self.settings.always_rewarded:
            own[0] = FunctionScorer(("reward",), lambda rows: [[0.0] for _ in rows])
        for model in (self.reward, self.cost, self.attributes):
            if model is not None:
                own[id(model)] = ModelScorer(model, self.template, tokens)
        return JointScorer([*own.values(), *self.others])

    @property
    def generator(self) -> TransformersGenerator:
        """A sampler over the policy as it is now."""
        return TransformersGenerator(self.policy, self.template.stop_ids, self.template.pad_id)

    def constraints(self, **changes: Any) -> list[Constraint]:
        """Every limit with its calibration, the one on the cost first; `changes` to its settings."""
        every = (
            *([self.settings.constraint.model_copy(update=changes)] if self.zero else []),
            *self.settings.constraints,
        )
        found = []
        for one in every:
            known = self.zero if self.zero and one.score == "cost" else None
            found.append(stages.limit(one, known.value if known else 0.0, known.calibration if known else None))
        return found

    def limits(self, **changes: Any) -> Limits:
        """The limits of the policy, for each source of prompts by itself where that is asked for."""
        if not self.settings.limit_by_source:
            return Limits(self.constraints(**changes))
        sources = sorted({prompt.source for prompt in self.pools.practise})
        if "" in sources:
            raise UserError("limit_by_source needs a source for every prompt; give `source` in the prompts' rows")
        return GroupLimits(self.constraints(**changes), sources)

    def collector(self, reference: Callable[[], AbstractContextManager[nn.Module]]) -> Collector:
        """Prompts in, scored answers of the policy out."""
        sourced = any(prompt.source for prompt in self.pools.practise)
        return Collector(
            self.policy,
            reference,
            self.generator,
            self.template,
            stages.scores_by_name(self.scorer),
            self.settings.rollout,
            (lambda prompt: prompt.source) if sourced else None,
        )


def prepare(settings: DualSettings, run: RunFolder, check: Callable[[reading.Pools], object] | None = None) -> Bench:
    """Data, policy, reward model and cost model: everything before the policy is improved.

    check: looks at the pools before anything is trained, and raises when what follows could not succeed.
    """
    seed_everything(settings.seed)
    settings.rollout.sampling.require_unbiased()
    settings = in_world(settings, run)
    if settings.data is None or settings.model is None:
        raise UserError("give data=PATH and model=NAME (or a pocket section, which brings both)")
    _require_sources(settings, settings.data)
    pools = reading.read_pools(settings.data, run)
    policy, template = stages.load_base(
        settings.model, settings.tokenizer, settings.text, lambda: stages.texts_of(pools.readable)
    )
    pools, too_long = reading.within_window(pools, template, settings.text.on_long_prompt)
    if check is not None:
        check(pools)
    others = further_scorers(settings, str(policy.device))
    stages.announce_memory(policy, settings.rollout.micro_tokens, settings.model.adapter is not None)
    if settings.model.adapter is not None:
        if settings.sft is not None:
            raise UserError(
                "sft and model.adapter together would make the model before SFT the reference; run SFT without an "
                "adapter first and give its folder as model, or set sft=null"
            )
        shared = {names: _adapted(policy, names, settings.model.adapter) for names in settings.networks}
        policy = with_adapter(policy, settings.model.adapter)
    else:
        if settings.sft is not None:
            fit = stages.offset(settings.sft, settings.seed)
            stages.imitate(fit, run, pools.imitate, policy, template)
        shared = {names: from_policy(policy, names) for names in settings.networks}
    facts: dict[str, Any] = {"pools": pools.counts(), "prompts_too_long": too_long}
    shop = Shop(
        run,
        template,
        settings.seed,
        pools.pairs,
        pools.held_out_pairs,
        pools.labelled,
        pools.ratings,
        pools.held_out_ratings,
        facts,
        settings.labels,
        settings.text,
    )
    reward, cost, zero = _train_scores(settings, shop, shared)
    named = settings.attributes
    rated = train_attributes(named, shop, shared[named.names]) if named else None
    models = run.path / "models"
    return Bench(settings, run, pools, policy, template, reward, cost, zero, rated, others, facts, models)


def _require_sources(settings: DualSettings, data: reading.DataSection) -> None:
    """None, or `UserError` that names the data without which a section cannot be trained."""
    pairs = [name for name, stage in (("reward", settings.reward), ("cost", settings.cost)) if stage is not None]
    pairs += ["attributes.preference"] if settings.attributes and settings.attributes.preference else []
    pairs += ["sft"] if settings.sft and not data.sft else []
    if pairs and data.pairs is None:
        raise UserError(f"data.pairs is missing: {', '.join(pairs)} cannot be trained without; give it, or set null")
    if settings.attributes and data.ratings is None:
        raise UserError(
            "data.ratings is missing: attributes cannot be trained without; give it, or set attributes=null"
        )


def _train_scores(
    settings: DualSettings, shop: Shop, networks: Mapping[tuple[str, ...], ScoreModel]
) -> tuple[ScoreModel | None, ScoreModel | None, Zero | None]:
    """Reward and cost model, which may be one network, and what the cost's zero means."""
    if settings.joint_scores and settings.reward and settings.cost:
        network, zero = train_both(settings.reward, settings.cost, shop, networks["reward", "cost"])
        return network, network, zero
    reward = train_reward(settings.reward, shop, networks[("reward",)]) if settings.reward else None
    if reward is None and settings.always_rewarded:
        stages.say("reward: none; the policy stays as close to its start as the limit allows")
    cost, zero = train_cost(settings.cost, shop, networks[("cost",)]) if settings.cost else (None, None)
    return reward, cost, zero


def further_scorers(settings: DualSettings, device: str) -> tuple[Scorer, ...]:
    """The scorers that are not learned here; every limited score must be given once."""
    found = settings.further_scorers(device)
    names = [*settings.given_scores, *(name for scorer in found for name in scorer.names)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two scorers give a score called {', '.join(twice)}; leave one of them out of `scorers`")
    for one in (*([settings.constraint] if settings.cost else []), *settings.constraints):
        if one.score not in names:
            raise UserError(
                f"constraint {one.name} limits the score {one.score}, and there are {', '.join(names) or 'none'}; "
                "correct the name, or add the folder of a model that gives it to `scorers`"
            )
    return found


def _adapted(policy: nn.Module, names: tuple[str, ...], adapter: AdapterSettings) -> ScoreModel:
    """A score model over the policy's own frozen weights; it must be made before the policy gets its adapter."""
    return with_score_adapter(from_policy(policy, names, share=True), adapter)


def in_world(settings: DualSettings, run: RunFolder) -> DualSettings:
    """With a pocket section: write the world, and point data and model at its files unless they are given."""
    if settings.pocket is None:
        return settings
    folder = stages.pocket_world(settings.pocket, settings.seed, run, rated=settings.attributes is not None)
    data = {name: str(folder / f"{file}.jsonl") for name, file in world.FILES.items()}
    data |= {"ratings": str(folder / world.RATINGS)} if settings.attributes else {}
    pools = reading.PoolSettings(sft=0.36, pref=0.36, rl=0.1, dev=0.06, safety=0.12)
    changes: dict[str, Any] = {}
    if settings.data is None:
        changes["data"] = settings.section(**data, pools=pools)
    if settings.model is None:
        changes["model"] = stages.Model(name=str(folder / "policy"))
    return settings.model_copy(update=changes)


def probe_answers(pools: reading.Pools) -> list[Conversation]:
    """Answered conversations that saved policies are checked by."""
    judged = [pair.prompt.answer(pair.responses[0]) for pair in (pools.held_out_pairs or pools.pairs)[:32]]
    return judged or [record.conversation for record in pools.ratings[:32]] or pools.imitate[:32]


def outlook_of(
    bench: Bench, collector: Collector, limits: Limits, reward: str, kl: KlSettings, score: ScoreSettings | None = None
) -> dict[str, Any]:
    """What can be said of the limits before the policy moves; the arguments are those of `look_ahead`."""
    if not limits.patterns or bench.settings.look_ahead is None:
        return {}
    facts: dict[str, Any] = {
        "reach": look_ahead(bench.settings.look_ahead, collector, bench.pools.practise, limits, reward, kl, score)
    }
    main = limits.patterns[0]
    if bench.zero and main.settings.measure == "logit" and facts["reach"]:
        now = main.sign * facts["reach"][main.name]["cost_now"]
        pairs = bench.pools.held_out_pairs
        facts["suggested_threshold"] = stages.on_main(bench.run, lambda: suggestion(bench.scorer, pairs, main, now))
    return facts


def told(bench: Bench, limits: Limits, result: OnlineResult) -> dict[str, Any]:
    """Say what the limits and the monitor have to say at the end; return it for the summary.

    Where a judge was named, the policy that goes on is the healthy one it found best, and never that of most reward.
    """
    judge = bench.settings.monitor.judge_by
    best = restore_best(bench.run, "policy", {"policy": bench.policy}) if judge else None
    if best is not None:
        stages.say(f"policy: the best healthy one by {judge} is kept, that of iteration {best}")
    for warning in limits.warnings():
        stages.say(warning)
    watched = ("reward", *(f"{kind}/{name}" for name in limits.multipliers for kind in ("cost", "multiplier")), "kl")
    numbers = {name: result.metrics[name] for name in watched if name in result.metrics}
    stages.say(f"policy: {result.iterations} iterations, last {stages.numbers(numbers)}")
    level = LEVELS[int(result.metrics["alarm/level"])]
    return {"limits": {"warnings": limits.warnings(), "multipliers": limits.multipliers}, "alarm": level, "best": best}
