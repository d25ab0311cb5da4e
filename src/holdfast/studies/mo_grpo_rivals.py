"""What the study `mo_grpo` compares GRPO with, on equal samples: PPO with a critic, and DPO on pairs of answers."""

from collections.abc import Sequence

from holdfast.data.schema import Conversation
from holdfast.engine.log import RunFolder
from holdfast.engine.supervised import FitSettings, fit
from holdfast.models.heads import from_policy
from holdfast.rollout.experience import Collector, Experience
from holdfast.studies.mo_grpo_world import optimiser
from holdfast.training.actor_critic import ActorCritic, ActorCriticSettings
from holdfast.training.policy import Limits
from holdfast.training.ranked import DpoSettings, DpoTask, RankedRow


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
    rows = compared(experience)
    settings = FitSettings(batch_size=-(-len(rows) // steps), optimiser=optimiser(learning_rate), seed=seed)
    fit(DpoTask(collector.policy, experience.pad_id, DpoSettings(beta=0.1)), rows, [], settings, out, stage="policy")
    return int(experience.response_mask.sum())


def compared(experience: Experience) -> list[RankedRow]:
    """Neighbouring answers to one prompt, the one with the higher `reward` first; equal scores make no pair."""
    scores, reference = experience.score("reward").tolist(), experience.ref_logprobs.double().sum(-1).tolist()
    pairs = []
    for i in range(0, experience.size, 2):
        better, worse = sorted((i, i + 1), key=scores.__getitem__, reverse=True)
        if scores[better] > scores[worse]:
            rows = experience.rows[better], experience.rows[worse]
            pairs.append(RankedRow(f"pair-{i}", rows, ref=(reference[better], reference[worse])))
    return pairs
