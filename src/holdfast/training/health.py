"""The numbers by which a person or a guard sees that a policy comes apart, which its reward does not show.

All of them are of response tokens alone. A metric that counts prompts, or divides by lengths twice, falls by itself as
answers grow longer; these do not.
"""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from holdfast.losses.logprob import kl_k3
from holdfast.losses.reduce import masked_mean
from holdfast.rollout.experience import Experience


def measure(experience: Experience, reward: str) -> dict[str, float]:
    """Spread and tail of the score `reward`, lengths, repetition, certainty and distance to the reference.

    `nll` is the mean over response tokens and `perplexity` its exponential; `kl` the mean over answers of their summed
    k1 with its standard error `kl_se` (prompts being the sampling unit), `kl_token` and `kl_token_k3` means over tokens
    (Secrets of RLHF, arXiv 2307.04964, which recommends perplexity, length and KL as the signs to watch). With groups
    there is a family `source/NAME/...`, because the mean of a mixture hides one source's collapse. A number that too
    few answers leave undefined is left out. Raises `UserError` when there is no score `reward`.
    """
    score, mask = experience.score(reward).double(), experience.response_mask
    scored = score[~score.isnan()]
    lengths = mask.sum(-1).double()
    answers = [row.response_ids for row in experience.rows]
    numbers = _distribution(scored) if len(scored) else {}
    numbers["length"] = float(lengths.mean())
    numbers["length_p95"] = float(lengths.quantile(0.95))
    numbers["length_max"] = float(lengths.max())
    numbers["truncated"] = float(experience.truncated.double().mean())
    if varied := [distinct_bigrams(ids) for ids in answers if len(ids) > 1]:
        numbers["distinct2"] = sum(varied) / len(varied)
    numbers["repeat_run"] = sum(longest_run(ids) for ids in answers) / len(answers)
    numbers["nll"] = float(-masked_mean(experience.old_logprobs.double(), mask))
    numbers["perplexity"] = float(torch.tensor(numbers["nll"], dtype=torch.float64).exp())
    return numbers | _divergence(experience, mask) | dict(_by_source(experience, score, mask))


def distinct_bigrams(ids: Sequence[int]) -> float:
    """The share of an answer's bigrams that differ from each other; low where it repeats itself. Two tokens or more.

    >>> distinct_bigrams([1, 2, 1, 2, 1])  # 12, 21, 12, 21
    0.5
    """
    bigrams = list(itertools.pairwise(ids))
    return len(set(bigrams)) / len(bigrams)


def longest_run(ids: Sequence[int]) -> int:
    """How often in a row an answer says one token at most.

    >>> longest_run([7, 3, 3, 3, 7])
    3
    """
    return max((len(list(run)) for _, run in itertools.groupby(ids)), default=0)


def _distribution(score: Tensor) -> dict[str, float]:
    centred = score - score.mean()
    sd = float(centred.square().mean().sqrt())
    low, middle, high = score.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=score.dtype)).tolist()
    skew = float((centred / sd).pow(3).mean()) if sd > 0 else 0.0
    return {"score/sd": sd, "score/q05": low, "score/q50": middle, "score/q95": high, "score/skew": skew}


def _divergence(experience: Experience, mask: Tensor) -> dict[str, float]:
    old, ref = experience.old_logprobs.double(), experience.ref_logprobs.double()
    k1 = old - ref
    prompts = k1.where(mask, 0.0).sum(-1).view(-1, experience.per_prompt).mean(-1)
    numbers = {"kl": float(prompts.mean())}
    if len(prompts) > 1:
        numbers["kl_se"] = float(prompts.std() / len(prompts) ** 0.5)
    numbers["kl_token"] = float(masked_mean(k1, mask))
    numbers["kl_token_k3"] = float(masked_mean(kl_k3(old, ref), mask))
    return numbers


def _by_source(experience: Experience, score: Tensor, mask: Tensor) -> Iterator[tuple[str, float]]:
    k3 = kl_k3(experience.old_logprobs.double(), experience.ref_logprobs.double())
    for name in sorted(set(experience.groups)):
        rows = [i for i, group in enumerate(experience.groups) if group == name]
        own = mask[rows]
        if not score[rows].isnan().all():
            yield f"source/{name}/score", float(score[rows].nanmean())
        yield f"source/{name}/length", float(own.sum(-1).double().mean())
        yield f"source/{name}/truncated", float(experience.truncated[rows].double().mean())
        yield f"source/{name}/nll", float(-masked_mean(experience.old_logprobs[rows].double(), own))
        yield f"source/{name}/kl_token_k3", float(masked_mean(k3[rows], own))
