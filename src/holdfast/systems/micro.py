"""MiCRo: one reward model for people who disagree, from plain pairs and a few labels of each person or context.

Shen et al., "MiCRo: Mixture Modeling and Context-aware Routing for Personalized Preference Learning",
arXiv 2505.24846 (2025). K Bradley-Terry heads on one backbone and a router that weighs them.

Equation map:

* P(a_w > a_l | x) = sum_k P(k | x) sigma(r_k(a_w) - r_k(a_l)) (eq. 1)    `losses.mixture.probability`
* -log sum_k f_k sigma(delta_k) (eq. 2, 3)                              `losses.mixture.mixture_nll`
* the same with a product over the pairs of one person                  `losses.mixture.mixture_nll`
* sum_k f_k log f_k (eq. 4)                                             `losses.mixture.negative_entropy`
* Hedge target softmax(log omega - L / tau) (eq. 5)                     `losses.mixture.hedge_target`
* router fitted to the target (algorithm 1)                             `losses.mixture.router_cross_entropy`
* weights after m labels of a new person                                `losses.mixture.posterior`
* one score per answer, tournament, worst group                         `preference.aggregate.tournament`, `worst_group`

Departures, each with its reason:

1. Pairs of one person share a head (`mixture.session: auto`): single pairs cannot tell people with opposite tastes from
   people without any, several pairs of one person can.
2. alpha, the weight of the entropy, is 0.02 and not 0.5, at which the heads become equal where the signal is weak.
3. tau is 1, which is Bayes' rule; the published 0.001 trusts every label, right or wrong. The prior of the second stage
   stays that of the first: used anew in every epoch the same labels would count ten times.
4. The router reads the last token of the prompt. The published code reads the first token of the chosen answer, which
   is not there when somebody asks.
5. A prompt-conditioned single reward model is always shown beside: without a person's labels or words, a mixture that
   reads the prompt can do no better than that.
6. Heads that prefer harm on safety pairs get no weight, whoever asks (the audit that the paper suggests in section 8).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from holdfast.data.context import CONTEXT, with_context
from holdfast.data.schema import Pair
from holdfast.data.template import Encoded, Template
from holdfast.engine.log import RunFolder
from holdfast.engine.seeds import seed_everything
from holdfast.engine.supervised import FitSettings
from holdfast.errors import UserError
from holdfast.models.heads import from_policy
from holdfast.models.mixture import MixtureRewardModel, merged, mixture_from, save_head_card, with_backbone_adapter
from holdfast.pocket import world
from holdfast.pocket.people import PeopleSettings
from holdfast.preference.adapt import UserStore
from holdfast.preference.features import PairFeatures, answer_features, pair_features, session_numbers
from holdfast.preference.heads import audit as audit_heads
from holdfast.preference.heads import correlation, merge, reward_scale
from holdfast.preference.mixture import LiveMixtureTask, MixtureHeads, MixtureSettings, TokenSession, train_heads
from holdfast.preference.pairs import PairRow, pair_rows
from holdfast.preference.personal import MixtureScorer
from holdfast.preference.router import RouterSettings, fit_router
from holdfast.preference.score import ModelScorer, Scorer
from holdfast.systems import personal_policy, reading, scores, stages, trial
from holdfast.systems.crowd import Crowd, CrowdData, read_crowd
from holdfast.systems.personal_policy import PersonalPolicySettings
from holdfast.systems.trial import TrialSettings
from holdfast.training.lagrangian import Constraint

JUDGED = ("learn", "held_out", "newcomers", "contexts")
"""The folds that are read with and without contexts."""


class Micro(stages.RunSettings):
    """Everything a run of MiCRo can be told."""

    system: Literal["micro"] = "micro"
    """Which system this recipe is for."""
    data: CrowdData | None = None
    """The data; a text alone is the path of the pairs. With `pocket` it is the world."""
    warm_up: scores.RewardStage | None = None
    """Train the network as one reward model for everybody first; its features then know what is compared."""
    context_template: str = CONTEXT
    """How a context is put before a prompt; it is stored with the model."""
    mixture: MixtureSettings = MixtureSettings()
    """The heads, and the first stage."""
    backbone: FitSettings | None = None
    """Train heads, router and network (with `model.adapter`: its adapter) together; null leaves the network as it is,
    and the heads are trained on its features in seconds."""
    merge_above: float = Field(0.95, gt=0, le=1)
    """Heads whose margins correlate more than this on held-out pairs become one; 1 keeps them all."""
    router: RouterSettings | None = RouterSettings()
    """The second stage; null, or data without contexts, leaves the router of the first."""
    labels_per_context: int = Field(50, ge=1)
    """Pairs of each context from which the router learns."""
    leave_out_backbone: bool = False
    """Save heads and router alone, and read the network from where it came; it must not have been trained here."""
    trial: TrialSettings = TrialSettings()
    """How the model is judged on people it has not seen."""
    policy: PersonalPolicySettings | None = None
    """Improve the network by the personal score, so that it answers people as they like it; null trains no policy."""

    @model_validator(mode="after")
    def _untouched(self) -> Self:
        if self.leave_out_backbone and (self.sft or self.warm_up or self.backbone):
            raise ValueError("leave_out_backbone needs a network as it came; set sft, warm_up and backbone to null")
        if self.model is not None and self.model.adapter is not None and self.backbone is None:
            raise ValueError("model.adapter is trained with the heads; say how by a backbone section, or drop it")
        return self


@dataclass(frozen=True)
class Bench:
    """Everything the stages work with; facts: what they found, by name; seen: features by fold."""

    settings: Micro
    run: RunFolder
    crowd: Crowd
    template: Template
    facts: dict[str, Any]
    seen: dict[tuple[str, bool], PairFeatures] = field(default_factory=dict)

    def rows(self, fold: str) -> list[PairRow]:
        """The encoded pairs of a fold, the preferred answer first."""
        return pair_rows(getattr(self.crowd, fold), self.template)

    def personal(self, model: MixtureRewardModel, aggregation: str | None = None) -> MixtureScorer:
        """The model's scores for people; those of whom labels were learned have weights of their own."""
        file = self.run.path / "users.json"
        users = UserStore.load(file, model.names) if file.is_file() else None
        return MixtureScorer(model, self.template, users=users, aggregation=aggregation)

    def features(self, reader: MixtureRewardModel, fold: str, *, in_context: bool = False) -> PairFeatures:
        """The pairs of a fold as the frozen network sees them, once; the router reads prompts or contexts too."""
        key, pairs, pad_id = (fold, in_context), getattr(self.crowd, fold), self.template.pad_id
        if key not in self.seen and in_context:
            _, u = answer_features(reader, self.framed(fold), pad_id)
            self.seen[key] = replace(self.features(reader, fold), router=u)
        elif key not in self.seen:
            people = [pair.user_id for pair in pairs] if any(pair.user_id for pair in pairs) else None
            self.seen[key] = pair_features(reader, self.rows(fold), pad_id, sessions=people)
        return self.seen[key]

    def framed(self, fold: str) -> list[Encoded]:
        """The encoded prompts of a fold in their contexts; `PromptTooLong` names a row without room for its own."""
        frame = self.settings.context_template
        return [
            self.template.prompt(with_context(pair.prompt, pair.context, frame)) for pair in getattr(self.crowd, fold)
        ]


def run(settings: Micro, folder: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Both stages, the audit of the heads and the trial by new people in `folder`; return the summary."""
    began = time.monotonic()
    run_folder = RunFolder(folder, settings, trackers=settings.trackers, overwrite=overwrite)
    seed_everything(settings.seed)
    settings = in_world(settings, run_folder)
    if settings.data is None or settings.model is None:
        raise UserError("give data=PATH and model=NAME (or a pocket section, which brings both)")
    crowd = read_crowd(settings.data, needed(settings), settings.labels_per_context, run_folder)
    texts = [pair.prompt.answer(pair.chosen) for pair in crowd.learn] + crowd.imitate
    network, template = stages.load_base(
        settings.model, settings.tokenizer, settings.text, lambda: stages.texts_of(texts)
    )
    crowd, too_long = reading.within_window(crowd, template, settings.text.on_long_prompt)
    facts = {"rows": {name: len(rows) for name, rows in vars(crowd).items()}, "prompts_too_long": too_long}
    bench = Bench(settings, run_folder, crowd, template, facts)
    for fold in JUDGED:
        bench.framed(fold)  # what is too long is said before anything is trained
    if settings.sft is not None:
        stages.imitate(stages.offset(settings.sft, settings.seed), run_folder, crowd.imitate, network, template)
    known, reader = first_stage(bench, warm_up(bench, network))
    heads = second_stage(bench, known, reader)
    model = assemble(bench, heads, reader)
    summary = {"method": "micro", "seed": settings.seed, "verdict": None, "reason": "no_policy"}
    summary |= trial.hold(settings.trial, trial_of(bench, model, known, heads)) | bench.facts
    scores.inspect(run_folder, bench.personal(model), "micro", [*crowd.held_out, *crowd.safety])
    if settings.policy is not None:
        found = improve_policy(settings.policy, bench, network, model)
        summary |= {
            "policy": found["policy"],
            "comparisons": [*summary["comparisons"], *found["comparisons"]],
            "reason": "not_tested",
        }
    return stages.conclude(run_folder, summary, began)


def needed(settings: Micro) -> set[str]:
    """The sources that must be there beside the pairs."""
    cost = settings.policy is not None and settings.policy.cost is not None
    return {name for name, used in (("sft", settings.sft is not None), ("judged", cost)) if used}


def warm_up(bench: Bench, network: nn.Module) -> nn.Module:
    """The network itself, or as one reward model for everybody has left it: what the published backbone is."""
    stage = bench.settings.warm_up
    if stage is None:
        return network
    pairs, held_out = ([reading.as_dual(pair) for pair in rows] for rows in (bench.crowd.learn, bench.crowd.held_out))
    shop = scores.Shop(bench.run, bench.template, bench.settings.seed, pairs, held_out, facts=bench.facts)
    return scores.train_reward(stage, shop, from_policy(network, ("reward",))).network


def first_stage(bench: Bench, network: nn.Module) -> tuple[MixtureHeads, MixtureRewardModel]:
    """Heads and router from plain pairs, and the network as it then reads answers and prompts."""
    settings = bench.settings
    chosen = settings.mixture.model_copy(update={"fit": stages.offset(settings.mixture.fit, settings.seed)})
    names = [f"head_{k}" for k in range(chosen.heads)]
    known = any(pair.user_id for pair in bench.crowd.learn) and chosen.session == "auto"
    # What is known of a person before their first label is nothing, so everybody starts with the same weights.
    router = "static" if known else chosen.router
    reader = mixture_from(
        network, names, router=router, router_hidden=chosen.hidden, init_std=chosen.init_std, seed=settings.seed
    )
    if settings.backbone is None:
        learn, held_out = (bench.features(reader, fold) for fold in ("learn", "held_out"))
        found = train_heads(learn, chosen, bench.run, held_out=held_out, stage="mixture")
        bench.facts["restarts_nll"] = list(found.nll)
        heads = found.heads
    else:
        reader = train_network(bench, reader, chosen, known)
        held_out, heads = bench.features(reader, "held_out"), MixtureHeads.of(reader)
    different, groups = merge(heads, held_out, settings.merge_above)
    bench.facts["merged"] = [group for group in groups if len(group) > 1]
    stages.say(f"mixture: {len(groups)} of {chosen.heads} heads are different")
    if len(groups) == 1:
        stages.say("warning: all heads agree, so people do not differ here, or not visibly; one reward model would do")
        return heads, reader
    return different, reader


def train_network(bench: Bench, reader: MixtureRewardModel, chosen: MixtureSettings, known: bool) -> MixtureRewardModel:
    """Heads, router and network together on tokens; an adapter is merged into the network afterwards."""
    settings = bench.settings
    assert settings.model is not None
    assert settings.backbone is not None
    adapter = settings.model.adapter
    model = reader if adapter is None else with_backbone_adapter(reader, adapter)
    task = LiveMixtureTask(model, bench.template.pad_id, chosen)

    def sessions(fold: str) -> list[TokenSession]:
        members: dict[str, list[PairRow]] = {}
        for place, (pair, row) in enumerate(zip(getattr(bench.crowd, fold), bench.rows(fold))):
            members.setdefault(pair.user_id if known else str(place), []).append(row)
        return [TokenSession(tuple(rows), known) for rows in members.values()]

    fit = stages.offset(settings.backbone, settings.seed)
    stages.train(task, sessions("learn"), sessions("held_out"), fit, bench.run)
    return model if adapter is None else merged(model)


def second_stage(bench: Bench, heads: MixtureHeads, reader: MixtureRewardModel) -> MixtureHeads:
    """The same heads with a router that reads contexts, from a few labels of each."""
    settings, told = bench.settings, bench.crowd.contexts
    if settings.router is None or not told:
        stages.say("router: no context to read; a person's weights come from their labels, or from the prompt")
        return heads
    chosen = settings.router.model_copy(update={"fit": stages.offset(settings.router.fit, settings.seed)})
    features = replace(bench.features(reader, "contexts", in_context=True), session=session_numbers(_contexts(told)))
    prior = heads.log_weights(bench.features(reader, "contexts").router).detach()
    held_out = bench.features(reader, "held_out", in_context=True) if any(_contexts(bench.crowd.held_out)) else None
    found = fit_router(heads, features, prior, chosen, bench.run, held_out=held_out)
    bench.facts["router"] = {"pairs": len(told), "contexts": len(set(_contexts(told))), "epoch": found.epoch}
    stages.say(f"router: {len(told)} labels under {len(set(_contexts(told)))} contexts, kept after epoch {found.epoch}")
    return found.heads


def _contexts(pairs: Sequence[Pair]) -> list[str]:
    return [pair.context for pair in pairs]


def assemble(bench: Bench, heads: MixtureHeads, reader: MixtureRewardModel) -> MixtureRewardModel:
    """One model of network, heads and router: heads that prefer harm masked, rewards on one scale, saved."""
    settings, names = bench.settings, [f"head_{k}" for k in range(len(heads.weight))]
    margins = heads.delta(bench.features(reader, "held_out").difference).detach()
    card: dict[str, Any] = {"correlation": correlation(margins).tolist()}
    if bench.crowd.safety:
        prompts = [pair.prompt.key for pair in bench.crowd.safety]
        found = audit_heads(heads, bench.features(reader, "safety"), names, prompts)
        heads.masked = torch.tensor([one.mask for one in found])
        card["safety"] = [one.to_dict() for one in found]
        masked = [one.head for one in found if one.mask]
        if len(masked) == len(names):
            seen = ", ".join(str(one.accuracy) for one in found)
            raise UserError(
                f"every head prefers the harmful answer on data.safety (right on {seen}), so none can be used; are "
                "chosen and rejected swapped there? Otherwise learn from people who prefer what is safe"
            )
        stages.say(f"safety: masked for preferring the harmful answer: {', '.join(masked) or 'no head'}")
    model = mixture_from(
        reader,
        names,
        router=heads.router.kind,
        router_hidden=settings.mixture.hidden,
        context_template=settings.context_template,
        share=True,
    )
    heads.install(model)
    rows = bench.rows("learn")
    answers = [row.first for row in rows] + [row.second for row in rows]
    model.set_standardisation(*reward_scale(heads, answer_features(model, answers, bench.template.pad_id)[0]))
    model.config.stage = {"mixture": len(bench.crowd.learn), "router": bench.facts.get("router")}
    if settings.leave_out_backbone:
        assert settings.model is not None
        model.config.backbone_name_or_path = settings.model.name
    probes = [pair.prompt.answer(pair.chosen) for pair in bench.crowd.held_out[:32]]
    folder = stages.keep(bench.run, model, bench.template, probes, "micro")
    stages.on_main(bench.run, lambda: save_head_card(folder, card))
    bench.facts["heads"] = {name: one for name, one in card.items() if name == "safety"}
    return model


def improve_policy(
    settings: PersonalPolicySettings, bench: Bench, network: nn.Module, model: MixtureRewardModel
) -> dict[str, Any]:
    """The network as a policy that reads people's words, paid by the mixture's score for the person who asked."""
    limit: Constraint | None = None
    judges: list[Scorer] = []
    if settings.cost is not None and settings.limit is not None:
        judged, held_out = bench.crowd.judged, bench.crowd.held_out_judged
        shop = scores.Shop(bench.run, bench.template, bench.settings.seed, judged, held_out, facts=bench.facts)
        cost, zero = scores.train_cost(settings.cost, shop, from_policy(network, ("cost",)))
        judges.append(ModelScorer(cost, bench.template))
        limit = stages.limit(settings.limit, zero.value, zero.calibration)
    frame = bench.settings.context_template

    def readers(people: Sequence[personal_policy.Asked], aggregation: str) -> personal_policy.Readers:
        pocket = bench.settings.pocket is not None
        return personal_policy.Readers(bench.personal(model, aggregation), judges, people, pocket)

    return personal_policy.improve(
        settings,
        personal_policy.PolicyBench(
            bench.run,
            bench.template,
            network,
            bench.settings.seed,
            personal_policy.asked(bench.crowd.learn, frame),
            personal_policy.asked(bench.crowd.held_out, frame),
            readers,
            limit,
        ),
    )


def in_world(settings: Micro, run: RunFolder) -> Micro:
    """With a pocket section: write the world, and point data and model at its files unless they are given."""
    if settings.pocket is None:
        return settings
    chosen = stages.offset(settings.pocket, settings.seed)
    if chosen.people is None:
        chosen = chosen.model_copy(update={"people": PeopleSettings()})
    folder = stages.on_main(run, lambda: world.write(run.path / "world", chosen))
    changes: dict[str, Any] = {}
    if settings.data is None:
        sft = str(folder / f"{world.FILES['sft']}.jsonl")
        judged = str(folder / f"{world.FILES['pairs']}.jsonl")
        changes["data"] = CrowdData(pairs=str(folder / world.PEOPLE), sft=sft, judged=judged)
    if settings.model is None:
        changes["model"] = stages.Model(name=str(folder / "policy"))
    return settings.model_copy(update=changes)


def trial_of(bench: Bench, model: MixtureRewardModel, known: MixtureHeads, heads: MixtureHeads) -> trial.Trial:
    """What the trial needs: the same pairs as features, read with and without contexts."""
    crowd = bench.crowd
    folds = {
        fold: trial.Fold(
            getattr(crowd, fold),
            bench.features(model, fold),
            bench.features(model, fold, in_context=True),
        )
        for fold in JUDGED
        if getattr(crowd, fold)
    }
    pocket = bench.settings.pocket is not None
    return trial.Trial(folds, heads, known, model.names, bench.run, bench.settings.seed, pocket)
