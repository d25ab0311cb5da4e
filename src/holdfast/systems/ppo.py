"""A policy improved by PPO, with limits or without: what `ppo_max` and `safe_rlhf_v` share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator
from torch import nn

from holdfast.engine.online import OnlineSettings, run_online
from holdfast.engine.step import OptimiserSettings
from holdfast.errors import UserError
from holdfast.models.heads import ScoreModel, critic_from, from_policy, load_score_model
from holdfast.models.load import load_tokenizer
from holdfast.models.trunk import HeadsOnPolicy
from holdfast.systems import dual, exam, stages
from holdfast.systems.presets import PRESETS, Preset, over
from holdfast.training.actor_critic import ActorCritic, ActorCriticSettings
from holdfast.training.monitor import Monitor
from holdfast.training.policy import Limits
from holdfast.training.pretraining import PretrainSettings, pretrain_critics
from holdfast.training.ptx import PtxRows
from holdfast.training.sft import imitation_rows


class PpoRun(dual.DualSettings):
    """Settings of a run that improves its policy by PPO."""

    preset: Preset | None = None
    """A table of settings as published, over which everything else that is given goes."""
    ppo: ActorCriticSettings = ActorCriticSettings()
    """How the policy learns."""
    critics: Literal["apart", "together", "on_policy"] = "apart"
    """A network for each thing to predict, started from the model that scores it; one network with several heads; or
    heads on the policy's own hidden states, which costs least and predicts worst."""
    critic: stages.Model | None = None
    """Folder of a saved critic or score model that the critics start from instead; it must share the tokenizer."""
    pretrain: PretrainSettings | None = None
    """Train the critics before the policy moves; null does not."""
    optimiser: OptimiserSettings = OptimiserSettings(learning_rate=1e-6)
    """The policy's optimiser."""
    critic_optimiser: OptimiserSettings = OptimiserSettings(learning_rate=5e-6, schedule="constant")
    """The optimiser of each critic."""
    online: OnlineSettings = OnlineSettings()
    """How long the policy is improved."""

    @model_validator(mode="before")
    @classmethod
    def _over_the_preset(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        name = given.get("preset", cls.model_fields["preset"].default)
        return over(PRESETS[name], given) if name in PRESETS else given

    @model_validator(mode="after")
    def _one_start(self) -> "PpoRun":
        if self.critics == "on_policy" and self.critic is not None:
            raise ValueError("critics on the policy's hidden states have no network to load; set critic=null")
        return self


def run(settings: PpoRun, folder: str | Path, method: str, *, overwrite: bool = False) -> dict[str, Any]:
    """Run all stages in `folder`, resuming what is finished there; return the summary."""
    return exam.run(settings, folder, method, improve, overwrite=overwrite)


def improve(settings: PpoRun, bench: dual.Bench, reference: exam.Reference) -> dict[str, Any]:
    """Improve the policy in place and save it as `models/policy`; return what is to be told of it."""
    limits, collector = bench.limits(), bench.collector(reference)
    facts = dual.outlook_of(bench, collector, limits, settings.ppo.reward, settings.ppo.kl, settings.ppo.score)
    ppo = stages.offset(settings.ppo, settings.seed)
    ptx = None
    if ppo.ptx:
        rows = imitation_rows(bench.pools.imitate, bench.template)
        ptx = PtxRows(rows, bench.template.pad_id, ppo.seed)
    method = ActorCritic(
        collector,
        make_critics(settings, bench, limits),
        ppo,
        {"policy": settings.optimiser, "critic": settings.critic_optimiser},
        limits,
        exam.probe if settings.pocket else None,
        ptx,
    )
    online, prompts = stages.offset(settings.online, settings.seed), bench.pools.practise
    monitor = Monitor(settings.monitor, method.kl)
    if settings.pretrain:
        done = pretrain_critics(method, prompts, settings.pretrain, online, bench.run, monitor)
        stages.say(f"critics: {done} iterations before the policy moves")
    result = run_online(method, prompts, online, bench.run, stage="policy", guard=monitor)
    facts |= dual.told(bench, limits, result)
    stages.keep(bench.run, bench.policy, bench.template, dual.probe_answers(bench.pools), "policy")
    return facts


def make_critics(settings: PpoRun, bench: dual.Bench, limits: Limits) -> dict[str, nn.Module]:
    """The critics by part. Each starts from the model whose score it predicts, or from the saved one."""
    names = [*(["value"] if settings.ppo.reward_critic else []), *(f"value/{name}" for name in limits.streams)]
    if not names:
        return {}
    if settings.critics == "on_policy":
        return {"value": HeadsOnPolicy(bench.policy, names)}
    saved = _saved(settings, bench)
    if settings.critics == "together":
        start = saved or bench.reward or bench.cost
        return {"value": critic_from(start, names) if start else from_policy(bench.policy, names)}
    made: dict[str, nn.Module] = {}
    for name, of in {"value": bench.reward, **_scored_by(bench, limits)}.items():
        own = [one for one in names if one == name or one == f"{name}^2"]
        start = saved or of
        if own:
            made[name] = critic_from(start, own, _row(start, name)) if start else from_policy(bench.policy, own)
    return made


def _row(model: ScoreModel, stream: str) -> str | None:
    """The score of a network with several that a critic of `stream` starts as."""
    wanted = "reward" if stream == "value" else "cost"
    return wanted if len(model.names) > 1 and wanted in model.names else None


def _scored_by(bench: dual.Bench, limits: Limits) -> dict[str, ScoreModel | None]:
    """The model behind each limited cost; None for scores of other networks, whose weights are not the policy's."""
    own = {"reward": bench.reward, "cost": bench.cost}
    return {f"value/{one.name}": own.get(one.settings.score) for one in limits.patterns}


def _saved(settings: PpoRun, bench: dual.Bench) -> ScoreModel | None:
    """The critic to start from, if one is given; a critic reads the policy's tokens, so it must know them all."""
    if settings.critic is None:
        return None
    words, own = load_tokenizer(settings.critic.name or "").get_vocab(), bench.template.tokenizer.get_vocab()
    if words != own:
        strange = len(words.items() ^ own.items())
        raise UserError(
            f"the critic {settings.critic.name} was trained on another tokenizer ({strange} entries differ), and a "
            "critic reads the policy's own tokens; give one of the same tokenizer, or critic=null to start from the "
            "score models"
        )
    return load_score_model(settings.critic, str(bench.policy.device))
