"""What the study `mo_grpo` compares GRPO with, on equal samples: PPO with a critic, and DPO on pairs of answers."""

from collections.abc import Sequence

from torch import Tensor, nn

from holdfast.data.schema import Conversation
from holdfast.engine.log import RunFolder
from holdfast.engine.supervised import FitSettings, fit
from holdfast.losses.preference import bradley_terry
from holdfast.losses.reduce import Sum
from holdfast.models.heads import from_policy
from holdfast.preference.pairs import PairBatch, PairRow, collate_pairs
from holdfast.rollout.experience import Collector, Experience
from holdfast.studies.mo_grpo_world import optimiser
from holdfast.training.actor_critic import ActorCritic, ActorCriticSettings
from holdfast.training.policy import Limits, current_logprobs


def ppo(collector: Collector, learning_rate: float, kl: float, seed: int) -> ActorCritic:
    """PPO on the score `reward`; its critic starts from the policy with a head of zeros and learns three times as fast.

    One step on each experience, as GRPO has, with its clip, its mean over tokens and its largest advantage.
    """
    settings = ActorCriticSettings(
        kl=kl,
        token_clamp=None,
        advantage={"normalise": "batch", "clip": 5.0},
        surrogate={"clip": 0.2, "clip_high": 0.28, "loss_mean": "token"},
        seed=seed,
    )
    critics = {"value": from_policy(collector.policy, ("value",))}
    rates = {"policy": optimiser(learning_rate), "critic": optimiser(3 * learning_rate)}
    return ActorCritic(collector, critics, settings, rates, Limits([]))


def dpo(
    collector: Collector, prompts: Sequence[Conversation], steps: int, learning_rate: float, seed: int, out: RunFolder
) -> int:
    """Train the collector's policy on pairs of its own first answers; return how many tokens were sampled for them.

    As many answers as an online method sees, in as many steps.
    """
    experience = collector.collect(prompts, seed)
    rows = compared(experience, DpoTask.beta)
    settings = FitSettings(batch_size=-(-len(rows) // steps), optimiser=optimiser(learning_rate), seed=seed)
    fit(DpoTask(collector.policy, experience.pad_id), rows, [], settings, out, stage="policy")
    return int(experience.response_mask.sum())


def compared(experience: Experience, beta: float) -> list[PairRow]:
    """Neighbouring answers to one prompt as pairs, the one with the higher `reward` first; equal scores make no pair.

    The margin is beta times the first answer's lead in log-probability under the reference.
    """
    scores, reference = experience.score("reward").tolist(), experience.ref_logprobs.double().sum(-1).tolist()
    pairs = []
    for i in range(0, experience.size, 2):
        better, worse = sorted((i, i + 1), key=scores.__getitem__, reverse=True)
        if scores[better] > scores[worse]:
            margin = beta * (reference[better] - reference[worse])
            pairs.append(PairRow(f"pair-{i}", experience.rows[better], experience.rows[worse], margin=margin))
    return pairs


class DpoTask:
    """Direct preference optimisation: -log sigmoid(beta (lead of the policy - lead of the reference)).

    arXiv 2305.18290, eq. 7. The lead is log p(better) - log p(worse); the reference's never changes and stands in the
    margin of each row.
    """

    name, beta = "dpo", 0.1
    weights: dict[str, float] = {}

    def __init__(self, model: nn.Module, pad_id: int) -> None:
        self.model, self.pad_id = model, pad_id

    def collate(self, rows: Sequence[PairRow]) -> PairBatch:
        return collate_pairs(rows, self.pad_id)

    def counts(self, batch: PairBatch) -> dict[str, float]:
        return {"preference": float(batch.size)}

    def loss(self, batch: PairBatch) -> dict[str, Sum]:
        better, worse = self._sides(batch)
        return {"preference": bradley_terry(better, worse, margin=batch.margin.to(better))}

    def metrics(self, batch: PairBatch) -> dict[str, Sum]:
        return self.loss(batch)

    def _sides(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """(B,) each: beta times the log-probability of the better and of the other answers."""
        tokens = batch.tokens.to(next(self.model.parameters()).device)
        better, worse = (self.beta * current_logprobs(self.model, tokens, 1.0).sum(-1)).chunk(2)
        return better, worse
