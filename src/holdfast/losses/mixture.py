"""Preferences of people who disagree: a mixture of Bradley-Terry heads, and the weights that mix them.

P(chosen over rejected) = sum_k f_k sigmoid(delta_k), delta_k = r_k(chosen) - r_k(rejected) (MiCRo, arXiv
2505.24846, eq. 1). B pairs, S sessions (a person, or a context), K heads. Weights travel as logarithms, in
which a masked head is exactly minus infinity and nothing underflows.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from holdfast.losses.reduce import Sum, over, precise, same_shape


def log_weights(logits: Tensor, masked: Tensor | None = None) -> Tensor:
    """(B, K) logarithms of the weights softmax(logits); a masked head gets minus infinity, the others share.

    logits: (B, K); masked: (K,) true where a head may not speak. Raises `ValueError` when every head is masked.

    >>> log_weights(torch.zeros(1, 3), torch.tensor([False, True, False])).exp()
    tensor([[0.5000, 0.0000, 0.5000]])
    """
    logits = precise(logits)
    if masked is not None:
        if masked.shape != logits.shape[-1:]:
            raise ValueError(f"{logits.shape[-1]} heads need as many entries in masked, got {tuple(masked.shape)}")
        if masked.all():
            raise ValueError(f"all {len(masked)} heads are masked, so none is left to weigh; keep at least one")
        logits = logits.masked_fill(masked, -torch.inf)
    return logits.log_softmax(-1)


def mixture_nll(delta: Tensor, log_weights: Tensor, session: Tensor | None = None) -> Sum:
    """-log sum_k f_k sigmoid(delta_k), summed over pairs; with `session` the pairs of one session share a head.

    delta: (B, K) reward of the chosen minus the rejected answer under each head; log_weights: (B, K), or (S, K)
    with session (B,) in 0..S-1, when a session's likelihood is sum_k f_k prod_i sigmoid(delta_ik). Both count
    pairs (MiCRo, arXiv 2505.24846, eq. 3). Single pairs cannot tell mirror-image groups of equal size from
    indifference; several pairs of one person can (EM-DPO, arXiv 2510.15716), so a session must not be cut in two.

    >>> likes_and_dislikes = torch.tensor([[2.0, -2.0], [2.0, -2.0]])
    >>> even = torch.full((2, 2), 0.5).log()
    >>> mixture_nll(likes_and_dislikes, even).mean  # each pair alone is a coin flip: log 2
    tensor(0.6931)
    >>> mixture_nll(likes_and_dislikes, even[:1], session=torch.tensor([0, 0])).mean
    tensor(0.4644)
    """
    total = -_joint(delta, log_weights, session).logsumexp(-1).sum()
    return Sum(total, torch.tensor(len(delta), device=delta.device))


def responsibilities(delta: Tensor, log_weights: Tensor, session: Tensor | None = None) -> Tensor:
    """(B, K), or (S, K) with `session`: how probable each head is once the labels are known.

    gamma_k = f_k p_k / sum_j f_j p_j with p = sigmoid(delta), products of p over a session. The gradient of
    the pairwise loss is gamma_k (p_k - 1) in delta_k and f_k - gamma_k in the logit of f_k.

    >>> responsibilities(torch.tensor([[2.0, -2.0]]), torch.full((1, 2), 0.5).log())
    tensor([[0.8808, 0.1192]])
    """
    return _joint(delta, log_weights, session).softmax(-1)


def probability(delta: Tensor, log_weights: Tensor) -> Tensor:
    """(B,) the probability sum_k f_k sigmoid(delta_k) that the first answer is preferred.

    delta, log_weights: (B, K). The relation need not be transitive (Condorcet), so it ranks pairs, not lists.

    >>> probability(torch.tensor([[2.0, -2.0]]), torch.tensor([[0.6, 0.4]]).log())
    tensor([0.5762])
    """
    same_shape(delta=delta, log_weights=log_weights)
    return (precise(log_weights).exp() * precise(delta).sigmoid()).sum(-1)


def negative_entropy(log_weights: Tensor) -> Sum:
    """sum_k f_k log f_k, summed over rows: added to a loss it spreads each row's weights.

    log_weights: (B, K); 0 log 0 is 0, in the gradient too (MiCRo, arXiv 2505.24846, eq. 4). It acts on each row;
    `balance` acts on their average.

    >>> negative_entropy(torch.tensor([[0.5, 0.5, 0.0]]).log()).mean
    tensor(-0.6931)
    """
    log_weights = precise(log_weights)
    # exp(-inf) * -inf is not a number; a zero in its place gives the limit, and no gradient.
    finite = log_weights.masked_fill(log_weights.isneginf(), 0.0)
    return over((finite.exp() * finite).sum(-1))


def balance(log_weights: Tensor) -> Sum:
    """Rows times KL(mean weights of the batch || uniform over K): added to a loss it keeps every head in use.

    log_weights: (B, K). Each row may still be certain of one head. As it looks at the batch's average it depends
    on how the batch is cut.

    >>> balance(torch.tensor([[1.0, 0.0], [0.0, 1.0]]).log()).mean, balance(torch.tensor([[1.0, 0.0]]).log()).mean
    (tensor(0.), tensor(0.6931))
    """
    rows, heads = log_weights.shape
    share = precise(log_weights).exp().mean(0)
    # The clamp only keeps the logarithm of an unused head finite: its share of 0 multiplies it.
    divergence = (share * (share.clamp(min=torch.finfo(share.dtype).tiny) * heads).log()).sum()
    return Sum(rows * divergence, torch.tensor(rows, device=log_weights.device))


def hedge_target(log_prior: Tensor, losses: Tensor, tau: float) -> Tensor:
    """(B, K) the weights softmax(log_prior - losses / tau), which minimise sum_k f_k L_k + tau KL(f || prior).

    log_prior, losses: (B, K) (MiCRo, arXiv 2505.24846, eq. 5). At tau = 1, with L = -log sigmoid(delta), this is
    Bayes' rule; as tau falls to 0 it becomes the one head with the smallest loss. Raises `ValueError` unless tau > 0.

    >>> hedge_target(torch.full((1, 2), 0.5).log(), torch.tensor([[0.0, 1.0]]), tau=1.0)
    tensor([[0.7311, 0.2689]])
    """
    return _tilted(log_prior, losses, tau).softmax(-1)


def hedge_value(log_prior: Tensor, losses: Tensor, tau: float) -> Tensor:
    """(B,) the least value of sum_k f_k L_k + tau KL(f || prior): -tau log sum_k prior_k exp(-L_k / tau).

    At tau = 1 it is the negative log-likelihood of the mixture. Raises `ValueError` unless tau > 0.

    >>> hedge_value(torch.full((1, 2), 0.5).log(), torch.tensor([[0.0, 1.0]]), tau=1.0)
    tensor([0.3799])
    """
    return -tau * _tilted(log_prior, losses, tau).logsumexp(-1)


def router_cross_entropy(target: Tensor, log_weights: Tensor) -> Sum:
    """-sum_k target_k log f_k, summed over rows: fits a router to soft labels, which are constants here.

    target, log_weights: (B, K). A head masked in both costs nothing; one that the target asks for and the router
    has masked costs infinity.

    >>> router_cross_entropy(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.25, 0.75]]).log()).mean
    tensor(1.3863)
    """
    same_shape(target=target, log_weights=log_weights)
    target = precise(target).detach()
    return over(-(target * precise(log_weights).masked_fill(target == 0, 0.0)).sum(-1))


def posterior(log_prior: Tensor, losses: Tensor, tau: float = 1.0) -> Tensor:
    """(K,) log weights of one person after m labels: log prior_k - sum_j L_jk / tau, normalised.

    log_prior: (K,); losses: (m, K), head k's -log sigmoid(delta) on label j; without labels the prior comes back.
    At tau = 1 predicting with these weights label after label loses at most -log prior_k more than head k does,
    whatever the labels (HyRe, arXiv 2412.08812, is the uniform prior). Raises `ValueError` unless tau > 0.

    >>> posterior(torch.full((2,), 0.5).log(), torch.tensor([[0.0, 1.0], [0.0, 1.0]])).exp()
    tensor([0.8808, 0.1192])
    """
    tilted = _tilted(log_prior, precise(losses).sum(0), tau)
    return tilted.log_softmax(-1) if len(losses) else precise(log_prior)


def _joint(delta: Tensor, log_weights: Tensor, session: Tensor | None) -> Tensor:
    """log f_k plus the log-likelihood of the labels under head k, for each pair or each session."""
    evidence = logsigmoid(precise(delta))
    if session is not None:
        evidence = _per_session(evidence, session, len(log_weights))
    same_shape(evidence=evidence, log_weights=log_weights)
    return precise(log_weights) + evidence


def _per_session(evidence: Tensor, session: Tensor, sessions: int) -> Tensor:
    """(S, K) sums of the rows of `evidence` (B, K) that belong together."""
    if session.shape != evidence.shape[:1]:
        raise ValueError(f"{len(evidence)} pairs need a session each, got {tuple(session.shape)}")
    if len(session) and not 0 <= int(session.min()) <= int(session.max()) < sessions:
        raise ValueError(
            f"sessions must lie in 0..{sessions - 1}, one row of log_weights each; "
            f"got {int(session.min())}..{int(session.max())}"
        )
    return evidence.new_zeros(sessions, evidence.shape[1]).index_add(0, session, evidence)


def _tilted(log_prior: Tensor, losses: Tensor, tau: float) -> Tensor:
    if not tau > 0:
        raise ValueError(f"tau must be above 0, got {tau}; 1 is Bayes' rule, smaller trusts single labels more")
    same_shape(log_prior=log_prior, losses=losses)
    return precise(log_prior) - precise(losses) / tau
