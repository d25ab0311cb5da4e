"""PPO under limits: token rewards, critics, and a policy that learns from the Lagrangian's mixture.

Every stream (the reward, each part of each limited cost) has its own token rewards, values and advantages; the policy
learns from A = (A_r - sum_j lambda_j A_j) / (1 + sum_j lambda_j) (Safe RLHF, arXiv 2310.12773). What stabilises PPO
(PPO-max, arXiv 2307.04964) are settings of this one trainer; `systems/presets.py` has them as tables.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from holdfast.config import Settings
from holdfast.data.collate import micro_batches, pad
from holdfast.data.schema import Conversation
from holdfast.engine.distributed import Processes
from holdfast.engine.step import OptimiserSettings, means
from holdfast.errors import UserError
from holdfast.losses.advantage import token_rewards
from holdfast.losses.logprob import kl_k2
from holdfast.losses.reduce import Sum, explained_variance, masked_mean, over, per_sequence
from holdfast.losses.surrogate import clipped_ratio, clipped_value, ratio_metrics
from holdfast.models.heads import ScoreModel
from holdfast.models.policy import evaluating, hidden_states, logprobs_at, logprobs_entropy_at
from holdfast.models.trunk import HeadsOnPolicy
from holdfast.rollout.experience import Collector, Experience, Stopwatch
from holdfast.training.advantages import AdvantageSettings, Predicted, normalised, with_critic, without_critic
from holdfast.training.kl import KlController, KlSettings
from holdfast.training.lagrangian import Part
from holdfast.training.policy import Learnable, Limits, PolicyBatch, PolicyMethod, Probe
from holdfast.training.ptx import PtxBatch, PtxRows
from holdfast.training.scores import ScoreSettings, ScoreTransform
from holdfast.training.sft import SftTask

Critic = ScoreModel | HeadsOnPolicy
Parts = Mapping[str, Sequence[Part]]


class SurrogateSettings(Settings):
    """The policy's loss."""

    clip: float = Field(0.2, gt=0)
    """How far the ratio of new to old probability may fall below 1 before its gradient is cut."""
    clip_high: float | None = Field(None, gt=0)
    """How far it may rise above 1; null is `clip` (clip-higher of DAPO is 0.28)."""
    dual_clip: float | None = Field(None, gt=1)
    """Most that a token of negative advantage may weigh; null does not bound it (3 is usual)."""
    log_ratio_clamp: float = Field(20.0, gt=0)
    """Log-ratios beyond this are cut before they are exponentiated."""
    entropy: float = Field(0.0, ge=0)
    """Weight of an entropy bonus; PPO-max advises against one."""
    loss_mean: Literal["sequence", "token"] = "sequence"
    """Whether every answer weighs the same (Safe RLHF) or every token does (PPO-max)."""


class ActorCriticSettings(Settings):
    """PPO; the defaults are those of Safe RLHF."""

    reward: str = "reward"
    """The score to maximise; its critic predicts `value`."""
    reward_critic: bool = True
    """A critic predicts the reward; without one an answer is compared with the other answers to its prompt."""
    score: ScoreSettings = ScoreSettings()
    """What is done to the reward before the policy is paid."""
    kl: KlSettings = KlSettings()
    """The penalty for leaving the reference."""
    token_clamp: float | None = Field(50.0, gt=0)
    """Token rewards, score and KL together, are clamped to plus and minus this; null does not."""
    truncation: Literal["score", "penalty", "bootstrap", "drop"] = "score"
    """An answer that did not end by itself gets its score, its score less a penalty, in place of the score what the
    critic still expects, or is not learned from."""
    missing_eos_penalty: float = Field(1.0, ge=0)
    """The penalty of `truncation: penalty`, in units of the transformed score."""
    advantage: AdvantageSettings = AdvantageSettings()
    """How advantages are estimated."""
    surrogate: SurrogateSettings = SurrogateSettings()
    """The policy's loss."""
    value_clip: float | None = Field(5.0, gt=0)
    """How far a value may move from its old one before its error stops to count, in units of the transformed score;
    null does not bound it."""
    ptx: float = Field(0.0, ge=0)
    """Weight of the language-model loss on the imitated conversations, mixed into every step; 0 leaves it out."""
    normalise_mixture: bool = True
    """Divide the mixture by 1 + sum of multipliers, so that the step does not grow with them."""
    steps_per_experience: int = Field(1, ge=1)
    """Optimiser steps in which an experience is learned."""
    seed: int = Field(0, ge=0)
    """Seed of the sampler."""


class Stream(NamedTuple):
    """One thing that answers are paid: its sum (N,) at the end, the weight (N,) of the KL in it, and its name if a
    critic predicts it."""

    score: Tensor
    kl: Tensor
    critic: str | None


class ActorCritic(PolicyMethod):
    """An `Algorithm` of the online loop: the critics and the policy, critics first.

    critics: by part; each predicts the streams that its scores are named after. Together they must predict `value` and
    `value/NAME` for each of `limits.streams`, in one network or in several. ptx: rows to imitate on the side.
    """

    def __init__(
        self,
        collector: Collector,
        critics: Mapping[str, Critic],
        settings: ActorCriticSettings,
        optimisers: Mapping[str, OptimiserSettings],
        limits: Limits,
        probe: Probe | None = None,
        ptx: PtxRows | None = None,
    ) -> None:
        needed = [*(["value"] if settings.reward_critic else []), *(f"value/{name}" for name in limits.streams)]
        found = [name for critic in critics.values() for name in critic.names]
        if sorted(found) != sorted(needed):
            raise ValueError(f"the critics predict {sorted(found)}, and {sorted(needed)} are needed: each once")
        if settings.ptx and ptx is None:
            raise UserError("ppo.ptx mixes in a loss on conversations, and there are none; give data.sft or set ptx=0")
        if settings.truncation == "bootstrap" and not settings.reward_critic:
            raise UserError("truncation=bootstrap asks a critic what a cut answer would still earn; set reward_critic")
        parts = {**critics, "policy": collector.policy}
        if any(isinstance(critic, HeadsOnPolicy) for critic in critics.values()):
            # Their states come from the policy's loss, so that comes first.
            parts = {"policy": collector.policy, **critics}
        super().__init__(collector, limits, parts, settings.reward, KlController(settings.kl), probe)
        self.settings, self.critics = settings, dict(critics)
        self.optimisers = {name: optimisers["policy" if name == "policy" else "critic"] for name in self.parts}
        self.scores, self.ptx = ScoreTransform(settings.score), ptx if settings.ptx else None
        self.apart = {"policy": "ptx"} if self.ptx else {}
        self._imitate = SftTask(collector.policy, collector.template.pad_id)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each loss term; those of weight zero are only to be seen."""
        s = self.settings
        seen = dict.fromkeys(("clip_fraction", "approx_kl", "dual_clip_fraction"), 0.0)
        return {"ptx": s.ptx, "entropy": -s.surrogate.entropy, "kl": s.kl.in_loss * self.kl.factor, **seen}

    def collect(self, prompts: Sequence[Conversation], iteration: int) -> Learnable:
        """Sample, score, move the multipliers, and estimate the advantages of every stream."""
        return self.estimate(*self.sample(prompts, self.settings.seed, iteration))

    def estimate(self, experience: Experience, numbers: dict[str, float], lam_value: float | None = None) -> Learnable:
        """What is learned from the experience. lam_value: another lambda for the critics' targets."""
        s, places = self.settings, experience.places
        watch, mask = Stopwatch(), places.mask
        with watch("values"):
            predicted = dict(self._values(experience))
        advantages, returns = {}, {}
        parts = self.limits.parts(experience)
        for name, stream in self._streams(experience, parts).items():
            shaped, clamped = token_rewards(experience.kl, stream.score, mask, stream.kl[:, None], s.token_clamp)
            numbers |= means([{f"clamped/{name}": clamped}], self.limits.processes)
            if stream.critic is None:
                advantages[name] = without_critic(shaped, mask, experience.per_prompt, self.limits.processes)
                continue
            said = self._at_the_end(name, predicted[name], experience)
            advantages[name], returns[name] = with_critic(shaped, said, mask, s.advantage, lam_value)
            numbers |= _quality(name, returns[name], said.values, mask, self.limits.processes)
        mixed = places.flat(self._mixed(experience, advantages, parts))
        kept = self._kept(experience)
        counted = mixed if kept is None else places.chosen(mixed, kept)
        everyone = torch.cat(self.limits.processes.gather([counted]))
        if len(everyone):
            numbers |= {"advantage_sd": float(everyone.std(correction=0)), "advantage_max": float(everyone.abs().max())}
        if s.advantage.normalise == "batch":
            mixed = normalised(mixed, s.advantage, self.limits.processes, counted)
        numbers |= self.scores.numbers() | {f"seconds/{phase}": spent for phase, spent in watch.seconds.items()}
        old = {name: places.flat(predicted[name].values) for name in returns}
        targets = {name: places.flat(table) for name, table in returns.items()}
        return Learnable(experience, mixed, old, targets, numbers, kept)

    def _streams(self, experience: Experience, parts: Parts) -> dict[str, Stream]:
        """The reward and the parts of the costs, each with its share of the KL.

        Split over all streams (Safe RLHF) the KL keeps its weight in the mixture whatever the multipliers are. A
        stream whose weight moves cannot carry a share, nor can one without critic; the reward carries it for them.
        """
        s, n = self.settings, experience.size
        carried, streams = torch.ones(n), {}
        split = s.kl.mode == "split"
        for constraint in self.limits.patterns:
            own = split and constraint.steady
            if split and not own:
                carried = carried + self.limits.multiplier(experience, constraint.name)
            share = torch.full((n,), self.kl.coef if own else 0.0)
            for name, part in _named(constraint.name, parts):
                streams[name] = Stream(part.values, share, name if constraint.settings.critic else None)
        paid = Stream(self._paid(experience), -self.kl.coef * carried, "value" if s.reward_critic else None)
        return {"value": paid, **streams}

    def _paid(self, experience: Experience) -> Tensor:
        """(N,) the reward as the policy is paid: transformed, and with what truncation makes of it."""
        s, processes, cut = self.settings, self.limits.processes, experience.truncated
        raw = self.limits.reward(experience, s.reward)
        everyone = processes.gather(zip(raw.tolist(), cut.tolist(), experience.groups or [""] * len(cut)))
        scores, truncated, sources = zip(*everyone)
        told = sources if experience.groups else ()
        self.scores.observe(torch.tensor(scores), torch.tensor(truncated), told)
        paid = self.scores(raw, experience.groups)
        if s.truncation == "penalty":
            paid = paid - s.missing_eos_penalty * cut
        return paid.where(~cut, 0.0) if s.truncation == "bootstrap" else paid

    def _at_the_end(self, name: str, predicted: Predicted, experience: Experience) -> Predicted:
        """Nothing is expected behind an answer, unless it was cut and the reward's critic stands in for its score.

        Costs keep their score, so that no answer escapes its cost by being cut.
        """
        asks = self.settings.truncation == "bootstrap" and name == "value"
        return Predicted(predicted.values, predicted.ahead * (experience.truncated if asks else 0.0))

    def _mixed(self, experience: Experience, advantages: Mapping[str, Tensor], parts: Parts) -> Tensor:
        """(N, R) the Lagrangian's advantage."""
        costs = {}
        for constraint in self.limits.patterns:
            weighed = [part.weight[:, None] * advantages[name] for name, part in _named(constraint.name, parts)]
            costs[constraint.name] = torch.stack(weighed).sum(0)
        mixed = self.limits.mix(experience, advantages["value"], costs)
        return mixed if self.settings.normalise_mixture else mixed * self.limits.total(experience)[:, None]

    def _kept(self, experience: Experience) -> tuple[int, ...] | None:
        if self.settings.truncation != "drop":
            return None
        return tuple((~experience.truncated).nonzero()[:, 0].tolist())

    def _values(self, experience: Experience) -> Iterator[tuple[str, Predicted]]:
        """By stream what its critic says of the state before each token (N, R), and after the last (N,)."""
        places = experience.places
        for critic in self.critics.values():
            found: dict[int, Tensor] = {}
            device = next(critic.parameters()).device
            with evaluating(critic):
                budget = self.collector.settings.micro_tokens
                for chosen in micro_batches([row.length for row in experience.rows], budget):
                    batch = pad([experience.rows[i] for i in chosen], pad_id=experience.pad_id).to(device)
                    values = _token_values(critic, batch).cpu()
                    for i, line in zip(chosen, values):
                        row = experience.rows[i]
                        found[i] = line[row.prompt_length - 1 : row.length]
            ordered = [found[i] for i in range(experience.size)]
            before, ahead = torch.cat([one[:-1] for one in ordered]), torch.stack([one[-1] for one in ordered])
            for column, name in enumerate(critic.names):
                yield name, Predicted(places.table(before[:, column]), ahead[:, column])

    def mini_batches(self, experience: Learnable, rng: torch.Generator) -> list[list[Any]]:
        s = self.settings
        portions: list[list[Any]] = [*self.portions(experience, s.steps_per_experience, rng)]
        if s.advantage.normalise == "minibatch":
            portions = [self._normalised(portion) for portion in portions]
        for portion in portions if self.ptx else []:
            rows = sum(batch.tokens.size for batch in portion)
            portion += self.ptx.batches(rows, self.collector.settings.micro_tokens, self.limits.processes)
        return portions

    def _normalised(self, portion: Sequence[PolicyBatch]) -> list[PolicyBatch]:
        """The batches of one optimiser step with their advantages on one scale."""
        columns = [batch.advantages[batch.tokens.response_mask] for batch in portion]
        # Also a process that has no answers for this step takes part.
        whole = normalised(torch.cat([torch.zeros(0), *columns]), self.settings.advantage, self.limits.processes)
        pieces = whole.split([len(column) for column in columns])
        return [batch.with_advantages(piece) for batch, piece in zip(portion, pieces)]

    def counts(self, part: str, batch: PolicyBatch | PtxBatch) -> dict[str, float]:
        if isinstance(batch, PtxBatch):
            return {"ptx": self._imitate.counts(batch.tokens)["nll"]} if part == "policy" else {}
        s, mask = self.settings.surrogate, batch.tokens.response_mask
        items = float(mask.any(-1).sum() if s.loss_mean == "sequence" else mask.sum())
        if part != "policy":
            return dict.fromkeys(self._terms(part), items)
        seen = ("clip_fraction", "approx_kl", *(("dual_clip_fraction",) if s.dual_clip else ()))
        terms = ("policy", *(("entropy",) if s.entropy else ()), *(("kl",) if self.settings.kl.in_loss else ()))
        return dict.fromkeys(terms, items) | dict.fromkeys(seen, float(mask.sum()))

    def loss(self, part: str, batch: PolicyBatch | PtxBatch) -> dict[str, Sum]:
        if isinstance(batch, PtxBatch):
            return {"ptx": self._imitate.loss(batch.tokens)["nll"]} if part == "policy" else {}
        return self._policy_loss(batch) if part == "policy" else self._critic_loss(part, batch)

    def _policy_loss(self, batch: PolicyBatch) -> dict[str, Sum]:
        s, given = self.settings.surrogate, batch
        batch = batch.to(next(self.parts["policy"].parameters()).device)
        mask, reduce = batch.tokens.response_mask, _reducer(s)
        logp, entropy = self._read(batch, given)
        shape = {"clip": s.clip, "clip_high": s.clip_high, "dual_clip": s.dual_clip}
        shape |= {"log_ratio_clamp": s.log_ratio_clamp}
        terms = {"policy": reduce(clipped_ratio(logp, batch.old_logprobs, batch.advantages, **shape), mask)}
        if s.entropy:
            terms["entropy"] = reduce(entropy, mask)
        if self.settings.kl.in_loss:
            terms["kl"] = reduce(kl_k2(logp, batch.ref_logprobs), mask)
        return terms | ratio_metrics(logp, batch.old_logprobs, batch.advantages, mask, **shape)

    def _read(self, batch: PolicyBatch, given: PolicyBatch) -> tuple[Tensor, Tensor]:
        """(B, T) log-probabilities under the policy as it is now, and entropies (zero where nobody wants them).

        Critics that read the policy's states are handed those of `given`, the batch under which they will ask.
        """
        policy, tokens = self.parts["policy"], batch.tokens
        options = {"temperature": self.collector.settings.sampling.temperature}
        states = hidden_states(policy, tokens.input_ids, tokens.attention_mask, tokens.position_ids, **tokens.extra)
        for critic in self.critics.values():
            if isinstance(critic, HeadsOnPolicy):
                critic.remember(given, states)
        if self.settings.surrogate.entropy:
            return logprobs_entropy_at(policy, states, tokens.input_ids, tokens.response_mask, **options)
        logp = logprobs_at(policy, states, tokens.input_ids, tokens.response_mask, **options)
        return logp, torch.zeros_like(logp)

    def _critic_loss(self, part: str, batch: PolicyBatch) -> dict[str, Sum]:
        critic = self.critics[part]
        known = critic.recall(batch) if isinstance(critic, HeadsOnPolicy) else None
        batch = batch.to(next(critic.parameters()).device)
        mask, reduce = batch.tokens.response_mask, _reducer(self.settings.surrogate)
        after = _token_values(critic, batch.tokens) if known is None else known
        values = torch.nn.functional.pad(after[:, :-1], (0, 0, 1, 0))
        return {
            term: reduce(
                clipped_value(
                    values[..., column], batch.old_values[name], batch.returns[name], self.settings.value_clip
                ),
                mask,
            )
            for column, (term, name) in enumerate(zip(self._terms(part), critic.names))
        }

    def _terms(self, part: str) -> tuple[str, ...]:
        """What the loss terms of a critic are called in the log."""
        names = self.critics[part].names
        return ("value",) if len(names) == 1 else tuple(names)

    def state_dict(self) -> dict[str, Any]:
        """Multipliers, windows, moments of the score, the weight of the KL, the place in the imitated rows."""
        ptx = self.ptx.state_dict() if self.ptx else None
        return super().state_dict() | {"scores": self.scores.state_dict(), "ptx": ptx}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.scores.load_state_dict(state["scores"])
        if self.ptx:
            self.ptx.load_state_dict(state["ptx"])


def _named(constraint: str, parts: Parts) -> list[tuple[str, Part]]:
    """The parts of a constraint's cost under the names of their critics."""
    return [(f"value/{constraint}{power}", part) for power, part in zip(("", "^2"), parts[constraint])]


def _reducer(settings: SurrogateSettings) -> Any:
    return per_sequence if settings.loss_mean == "sequence" else over


def _token_values(critic: Critic, tokens: Any) -> Tensor:
    """(B, T, K) what the critic says of the state after each token."""
    return critic.token_values(tokens.input_ids, tokens.attention_mask, tokens.position_ids, **tokens.extra)


def _quality(name: str, returns: Tensor, values: Tensor, mask: Tensor, processes: Processes) -> dict[str, float]:
    """How well a critic predicted, on all processes: everywhere, over the last tenth of each answer, and its mean loss.

    The last tokens must be predictable; a critic that fails there reads the wrong column.
    """
    lengths, places = mask.sum(-1, keepdim=True), torch.arange(mask.shape[1])
    last = mask & (places >= (0.9 * lengths).floor())
    found = processes.gather([(returns[mask], values[mask], last[mask])])
    earned, said, ends = (torch.cat(columns) for columns in zip(*found))
    everywhere = torch.ones_like(ends)
    return {
        f"explained_variance/{name}": explained_variance(earned, said, everywhere),
        f"explained_variance_end/{name}": explained_variance(earned, said, ends),
        f"value_error/{name}": float(0.5 * masked_mean((earned - said).square(), everywhere)),
        f"value_mean/{name}": float(masked_mean(said, everywhere)),
        f"return_mean/{name}": float(masked_mean(earned, everywhere)),
    }
