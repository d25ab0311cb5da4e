"""Learning from answers that lie there already, each with a reward: weighted log-likelihood, DPO and PRO.

Every method of one answer per row is the negative log-likelihood under weights that carry no gradient (A-LoL, arXiv
2305.14718): L = mean over rows of sum_t -sg(w_t) log pi(y_t). The methods differ in w alone, which is how good the
answer is, R or its advantage A = R - V(x), times how much the policy itself still makes of it:

    nll             1
    wbc             R                      weighted behaviour cloning
    r_gold          R max(floor, pi_t)     GOLD (arXiv 2009.07839) with the reward in place of its return
    r_lol           R clip(r)              r = pi(y|x) / pi_ref(y|x), or its geometric mean over the tokens
    a_lol           A clip(r)
    a_lol_ref_free  A
    a_lol_seq       A clip(rho_t)          rho_t = pi_t / pi_ref,t of each token
    a_lol_kl        A - beta               no pull to the reference, whatever its name says: see `Plan.beta`

The clip binds on both sides and cuts no gradient, unlike that of PPO: outside the interval the weight stays at its
border and learning goes on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from holdfast.losses.preference import bradley_terry
from holdfast.losses.ratio import LARGEST_LOG_RATIO
from holdfast.losses.reduce import Sum, over, precise, same_shape

Method = Literal["nll", "wbc", "r_gold", "r_lol", "a_lol", "a_lol_ref_free", "a_lol_seq", "a_lol_kl"]
Level = Literal["sequence", "geometric"]

NEEDS: Mapping[Method, frozenset[str]] = {
    "nll": frozenset(),
    "wbc": frozenset({"reward"}),
    "r_gold": frozenset({"reward"}),
    "r_lol": frozenset({"reward", "ref"}),
    "a_lol": frozenset({"advantage", "ref"}),
    "a_lol_ref_free": frozenset({"advantage"}),
    "a_lol_seq": frozenset({"advantage", "ref"}),
    "a_lol_kl": frozenset({"advantage", "ref"}),
}
"""What each method reads beside the log-probabilities of the policy; the rest may be given and is ignored."""

CLIPPED: frozenset[Method] = frozenset({"r_lol", "a_lol", "a_lol_seq"})
"""The methods whose weight holds a clipped ratio to the reference."""


@dataclass(frozen=True)
class Plan:
    """Which weights: the method and the numbers that it reads; it ignores those of the others.

    Raises `ValueError` for an unknown name and for a `clip` that is not above 0: None, not 0, takes the clip away.
    """

    method: Method
    clip: float | None = 0.9
    """r_lol, a_lol, a_lol_seq: the ratio is held between 1 - clip and 1 + clip."""
    floor: float = 0.1
    """r_gold: least weight of an improbable token."""
    beta: float = 0.0
    """a_lol_kl: what is taken off every advantage; an answer with less is *unlearned*.

    The gradient of beta (log pi - log pi_ref) on given answers is that of a shifted advantage, and on answers of the
    reference it leads away from it (arXiv 2506.09477).
    """
    level: Level = "sequence"
    """r_lol, a_lol: the ratio of whole answers, or `geometric`, its mean per token, which long answers do not saturate
    (GSPO, arXiv 2507.18071)."""

    def __post_init__(self) -> None:
        if self.method not in NEEDS or self.level not in get_args(Level):
            known = f"{', '.join(NEEDS)} at level {' or '.join(get_args(Level))}"
            raise ValueError(f"no method {self.method!r} at level {self.level!r}; there are {known}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be above 0, got {self.clip}; give None to leave the ratio as it is")


def token_weights(
    plan: Plan,
    logprobs: Tensor,
    mask: Tensor,
    *,
    reward: Tensor | None = None,
    advantage: Tensor | None = None,
    ref: Tensor | None = None,
) -> Tensor:
    """(B, T) the weight of each token's -log pi, without gradient, in at least float32; zero outside the mask.

    logprobs: (B, T) of the policy; mask: (B, T) true on the answer and its end token; reward, advantage: (B,), taken
    as they are: an answer below zero is pushed down without bound, so clamp or drop it first; ref: (B, T) of the
    reference. Raises `ValueError` when one of `NEEDS` is missing or shapes differ from these.

    >>> half, mask = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[True, True]])
    >>> token_weights(Plan("a_lol"), half, mask, advantage=torch.tensor([2.0]), ref=half + 1)  # r = exp(-2)
    tensor([[0.2707, 0.2707]])
    >>> token_weights(Plan("a_lol"), half, mask, advantage=torch.tensor([2.0]), ref=half - 1)  # r = exp(2), over 1.9
    tensor([[3.8000, 3.8000]])
    """
    read = _read(plan, logprobs, mask, {"reward": reward, "advantage": advantage, "ref": ref})
    return _weights(plan, logprobs, mask, read)


def weighted_nll(
    plan: Plan,
    logprobs: Tensor,
    mask: Tensor,
    *,
    reward: Tensor | None = None,
    advantage: Tensor | None = None,
    ref: Tensor | None = None,
    row_weight: Tensor | None = None,
) -> Sum:
    """sum_t -w_t log pi_t, summed over the rows: a sum over each answer's tokens, a mean over answers.

    Arguments and errors are those of `token_weights`; row_weight: (B,) what each row counts besides. Only `logprobs`
    carries gradient, and none of it reaches what the mask hides. `a_lol_kl` keeps its constant, -beta log pi_ref, so
    that its value is -A S + beta (S - S_ref).

    >>> logprobs, mask = torch.tensor([[-1.0, -2.0], [-3.0, -9.0]]), torch.tensor([[True, True], [True, False]])
    >>> weighted_nll(Plan("wbc"), logprobs, mask, reward=torch.tensor([0.5, 1.0]))
    Sum(total=tensor(4.5000), count=tensor(2))
    """
    read = _read(plan, logprobs, mask, {"reward": reward, "advantage": advantage, "ref": ref})
    weights = _weights(plan, logprobs, mask, read)
    rows = (-weights * precise(logprobs).where(mask, 0.0)).sum(-1)
    if plan.method == "a_lol_kl":
        rows = rows - plan.beta * read["ref"].where(mask, 0.0).sum(-1)
    if row_weight is not None:
        same_shape(rows=rows, row_weight=row_weight)
        rows = rows * precise(row_weight)
    return over(rows)


@torch.no_grad()
def weight_metrics(plan: Plan, logprobs: Tensor, mask: Tensor, ref: Tensor) -> dict[str, Sum]:
    """`log_ratio` to the reference; where the plan clips it, `clip_low` and `clip_high`, the shares beyond each border.

    Of answers, or of tokens for `a_lol_seq`. A ratio of whole answers leaves the interval soon: once most rows are
    clipped, `a_lol` is `a_lol_ref_free` with a weight of two levels. Arguments as those of `token_weights`.

    >>> logprobs, mask = torch.tensor([[-1.0, -2.0], [-3.0, -9.0]]), torch.tensor([[True, True], [True, False]])
    >>> metrics = weight_metrics(Plan("a_lol"), logprobs, mask, ref=logprobs - 0.5)  # r = exp(1), exp(0.5)
    >>> metrics["clip_high"].mean, metrics["log_ratio"].mean
    (tensor(0.5000), tensor(0.7500))
    """
    same_shape(logprobs=logprobs, mask=mask, ref=ref)
    log_ratio = _log_ratio(plan, logprobs, mask, ref)
    counted = mask if plan.method == "a_lol_seq" else torch.ones_like(log_ratio, dtype=torch.bool)
    metrics = {"log_ratio": over(log_ratio, counted)}
    if plan.method in CLIPPED and plan.clip is not None:
        ratio = log_ratio.exp()
        metrics["clip_low"] = over(ratio < 1 - plan.clip, counted)
        metrics["clip_high"] = over(ratio > 1 + plan.clip, counted)
    return metrics


def advantages(reward: Tensor, value: Tensor, margin: float = 0.0) -> Tensor:
    """(B,) A = R - V + margin, positive where an answer is worth learning from and not clamped elsewhere.

    reward: (B,) R of each answer; value: (B,) V, what the reference gets on its prompt. A margin above zero keeps
    answers a little worse than that, a baseline below the value of the data (arXiv 2506.20520).

    >>> advantages(torch.tensor([0.75, 0.5]), torch.tensor([0.5, 0.75]))
    tensor([ 0.2500, -0.2500])
    """
    same_shape(reward=reward, value=value)
    return precise(reward) - precise(value) + margin


def dpo(chosen: Tensor, rejected: Tensor, beta: float = 0.1, lead: Tensor | None = None) -> Sum:
    """-log sigmoid(beta [(S_w - S_l) - lead]), summed over the pairs (DPO, arXiv 2305.18290, eq. 7).

    chosen, rejected: (B,) S_w and S_l, log-probabilities of the preferred and of the other answer, summed over their
    tokens; lead: (B,) S_w - S_l of the reference, or none, which is DPO without a reference.

    >>> chosen, rejected = torch.tensor([-2.0]), torch.tensor([-3.0])
    >>> dpo(chosen, rejected, lead=torch.tensor([1.0])).mean  # as far apart as in the reference: log 2
    tensor(0.6931)
    """
    margin = None if lead is None else beta * precise(lead.detach())
    return bradley_terry(beta * precise(chosen), beta * precise(rejected), margin)


def pro(scores: Tensor, quality: Tensor) -> Sum:
    """The ranking loss of PRO (arXiv 2306.17492), summed over the rows: each candidate against all that come after it.

    scores: (B, n) p_k, log-probability per token of each candidate, best first; quality: (B, n) q_k, its raw reward:

        sum_{k<n} [log(exp(p_k g_k) + sum_{i>k} exp(p_i (q_k - q_i))) - p_k g_k],   g_k = max_{i>k} (q_k - q_i)

    With two candidates it is softplus((p_2 - p_1) (q_1 - q_2)). Beside it stands the likelihood of the best one, which
    the paper's code weighs by 0.05 (n - 1)^2. Raises `ValueError` when there is nothing to rank.

    >>> pro(torch.tensor([[-1.0, -2.0]]), torch.tensor([[3.0, 1.0]])).total  # softplus(-2)
    tensor(0.1269)
    """
    same_shape(scores=scores, quality=quality)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"a ranking needs rows of two candidates or more, got shape {tuple(scores.shape)}")
    scores, quality = precise(scores), precise(quality)
    terms = []
    for k in range(scores.shape[1] - 1):
        gaps = quality[:, k, None] - quality[:, k + 1 :]
        own = scores[:, k] * gaps.amax(-1)
        rivals = scores[:, k + 1 :] * gaps
        terms.append(torch.cat([own[:, None], rivals], -1).logsumexp(-1) - own)
    return over(torch.stack(terms).sum(0))


def probabilities(weights: Tensor) -> Tensor:
    """(N,) float64 p_i = w_i / sum w: how often each row is drawn.

    Raises `ValueError` unless weights are finite, none is negative and one is positive.

    >>> probabilities(torch.tensor([3.0, 0.0, 1.0])).tolist()
    [0.75, 0.0, 0.25]
    """
    if weights.ndim != 1:
        raise ValueError(f"expected one weight per row, got shape {tuple(weights.shape)}")
    weights = weights.double()
    if strange := int((~weights.isfinite() | (weights < 0)).sum()):
        raise ValueError(f"{strange} of {len(weights)} weights are negative or no finite numbers; clamp or drop them")
    total = weights.sum()
    if not total > 0:
        raise ValueError(f"all {len(weights)} weights are zero: no row can be drawn; is any advantage positive?")
    return weights / total


def effective_size(weights: Tensor) -> float:
    """1 / sum p^2: as many equally likely rows vary as much as draws by these weights do; errors of `probabilities`.

    weights: (N,). From 1, one row is drawn all the time, to N, all are alike.

    >>> effective_size(torch.tensor([1.0, 1.0, 0.0]))
    2.0
    """
    return 1 / float(probabilities(weights).square().sum())


def _read(plan: Plan, logprobs: Tensor, mask: Tensor, given: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """What the method needs of `given`, as constants; `ValueError` for what is missing or has another shape."""
    needs = NEEDS[plan.method]
    read = {name: precise(each.detach()) for name, each in given.items() if name in needs and each is not None}
    if missing := sorted(needs - read.keys()):
        raise ValueError(f"{plan.method} reads {', '.join(missing)}, which was not given")
    same_shape(logprobs=logprobs, mask=mask, ref=read.get("ref", logprobs))
    for name in sorted(read.keys() - {"ref"}):
        if read[name].shape != logprobs.shape[:1]:
            raise ValueError(f"{name} must be ({len(logprobs)},), one per row, got {tuple(read[name].shape)}")
    return read


@torch.no_grad()
def _weights(plan: Plan, logprobs: Tensor, mask: Tensor, read: Mapping[str, Tensor]) -> Tensor:
    worth = read.get("reward", read.get("advantage", precise(logprobs.new_ones(len(logprobs)))))[:, None]
    if plan.method == "a_lol_kl":
        worth = worth - plan.beta
    elif plan.method == "r_gold":
        worth = worth * precise(logprobs).exp().clamp(min=plan.floor)
    elif plan.method in CLIPPED:
        worth = worth * _clip(plan, _log_ratio(plan, logprobs, mask, read["ref"]))
    return worth.expand(logprobs.shape).where(mask, 0.0)


def _log_ratio(plan: Plan, logprobs: Tensor, mask: Tensor, ref: Tensor) -> Tensor:
    """(B, T) of the tokens for a_lol_seq, else (B, 1) of the answers, at the level of the plan."""
    tokens = (precise(logprobs) - precise(ref)).where(mask, 0.0)
    if plan.method == "a_lol_seq":
        return tokens
    answer = tokens.sum(-1, keepdim=True)
    return answer if plan.level == "sequence" else answer / mask.sum(-1, keepdim=True).clamp(min=1)


def _clip(plan: Plan, log_ratio: Tensor) -> Tensor:
    ratio = log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
    return ratio if plan.clip is None else ratio.clamp(1 - plan.clip, 1 + plan.clip)
