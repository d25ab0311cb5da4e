"""Stage two of MiCRo (arXiv 2505.24846, section 4.2): the router learns to read contexts from a few labels.

Heads and backbone stay as they are. For each labelled pair the weights softmax(log prior - L / tau) say which heads
explain the label (eq. 5); the router is fitted to them by cross-entropy.
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from holdfast.config import Settings
from holdfast.engine.log import RunFolder
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings
from holdfast.errors import UserError
from holdfast.losses import mixture as losses
from holdfast.losses.reduce import Sum
from holdfast.models.router import Router, RouterKind
from holdfast.preference.features import FeatureBatch, FeatureTask, PairFeatures, fit_or_scratch
from holdfast.preference.mixture import MixtureHeads


class RouterSettings(Settings):
    """What the router is told, and how it is trained."""

    router: RouterKind = "mlp"
    """The kind of router, where stage one's cannot be continued."""
    hidden: int = Field(128, ge=1)
    """Units of the hidden layer of an `mlp` router."""
    tau: float = Field(1.0, gt=0)
    """1 is Bayes' rule. The published 0.001 trusts every single label, right or wrong."""
    prior: Literal["anchored", "current"] = "anchored"
    """What a label corrects: stage one's weights, or the router as it stands, which sharpens with every epoch."""
    accumulate: Literal["pair", "context"] = "pair"
    """Evidence of a pair alone, or of all pairs of its context together."""
    fit: FitSettings = FitSettings(
        epochs=10, batch_size=32, optimiser=OptimiserSettings(learning_rate=1e-3, warmup_ratio=0.05)
    )
    """How long, in what portions; targets are computed anew once per epoch."""


class _Learner(nn.Module):
    """The router with what must be in a checkpoint beside it: the epoch's targets, and the best router so far."""

    best: Tensor
    target: Tensor
    lowest: Tensor
    epoch: Tensor

    def __init__(self, router: Router, target: Tensor) -> None:
        super().__init__()
        self.router = router
        # A buffer, because checkpoints leave out parameters that do not learn.
        self.register_buffer("best", parameters_to_vector(router.parameters()).detach().clone())
        self.register_buffer("target", target.clone())
        self.register_buffer("lowest", torch.tensor(torch.inf, device=target.device))
        self.register_buffer("epoch", torch.tensor(-1, device=target.device))


class RouterTask(FeatureTask):
    """Fits a router over contexts to the heads that explain the labels; rows are single pairs.

    features: pairs whose router features hold the context, and whose `session`, with `accumulate="context"`, numbers
    the contexts. log_prior: (N, K) stage one's log weights, from the prompts alone. held_out: the router with the
    lowest nll there is kept, the one before any training included; without it, the last.
    """

    name = "router"
    model: _Learner

    def __init__(
        self,
        heads: MixtureHeads,
        router: Router,
        features: PairFeatures,
        log_prior: Tensor,
        settings: RouterSettings,
        held_out: PairFeatures | None = None,
    ) -> None:
        device = next(router.parameters()).device
        self.evidence = _evidence(heads, features, settings.accumulate).to(device)
        self.log_prior, self.settings = log_prior.detach().to(device), settings
        self.masked = heads.masked.to(device)
        self.held_out = None if held_out is None else held_out.to(device)
        with torch.no_grad():
            self.held_delta = None if held_out is None else heads.delta(held_out.difference).to(device)
        self.weights: dict[str, float] = {}
        super().__init__(_Learner(router, torch.zeros_like(self.evidence)), features)

    def begin(self, step: int, total: int) -> None:
        """At the first step of an epoch: look at the held-out pairs, and compute the targets anew."""
        per_epoch = total // self.settings.fit.epochs
        if (step - 1) % per_epoch == 0:
            self.look((step - 1) // per_epoch)
            self.model.target.copy_(losses.hedge_target(self._base(), self.evidence, self.settings.tau))

    @torch.no_grad()
    def look(self, epoch: int) -> None:
        """Keep the router as it stands after `epoch` epochs, unless an earlier one was better on held-out pairs."""
        learner = self.model
        nll = learner.lowest.new_zeros(()) if self.held_out is None else self._held_nll()
        if self.held_out is None or nll < learner.lowest:
            learner.best.copy_(parameters_to_vector(learner.router.parameters()))
            learner.lowest.copy_(nll)
            learner.epoch.fill_(epoch)

    def counts(self, batch: FeatureBatch) -> dict[str, float]:
        return {"cross_entropy": batch.pairs}

    def loss(self, batch: FeatureBatch) -> dict[str, Sum]:
        target = self.model.target[batch.index]
        return {"cross_entropy": losses.router_cross_entropy(target, self._log_weights(batch.router))}

    def metrics(self, batch: FeatureBatch) -> dict[str, Sum]:
        return self.loss(batch)

    def _log_weights(self, u: Tensor) -> Tensor:
        return losses.log_weights(self.model.router(u), self.masked)

    @torch.no_grad()
    def _base(self) -> Tensor:
        anchored = self.settings.prior == "anchored"
        return self.log_prior if anchored else self._log_weights(self.features.router)

    def _held_nll(self) -> Tensor:
        return losses.mixture_nll(self.held_delta, self._log_weights(self.held_out.router)).mean


@torch.no_grad()
def _evidence(heads: MixtureHeads, features: PairFeatures, accumulate: str) -> Tensor:
    """(N, K) the loss of each head on each label, or on all labels of its context together."""
    own = -logsigmoid(heads.delta(features.difference))
    if accumulate == "pair":
        return own
    if features.session is None:
        raise UserError('accumulate="context" needs the context of each pair; number them as sessions, or use "pair"')
    sums = own.new_zeros(int(features.session.max()) + 1, own.shape[1]).index_add(0, features.session, own)
    return sums[features.session]


@dataclass(frozen=True)
class RouterFit:
    """Heads with their new router, the epoch it was kept at, and its held-out nll (None without held-out pairs)."""

    heads: MixtureHeads
    epoch: int
    nll: float | None


def fit_router(
    heads: MixtureHeads,
    features: PairFeatures,
    log_prior: Tensor,
    settings: RouterSettings | None = None,
    run: RunFolder | None = None,
    *,
    held_out: PairFeatures | None = None,
    stage: str = "router",
) -> RouterFit:
    """The same heads with a router that reads contexts; `heads` is left as it was.

    features, log_prior, held_out: as in `RouterTask`. Stage one's router is continued where it reads features of the
    same width; otherwise a new one starts from the average of the prior.
    """
    settings = settings or RouterSettings()
    if log_prior.shape != (len(features), len(heads.weight)):
        raise ValueError(f"log_prior needs {(len(features), len(heads.weight))} entries, got {tuple(log_prior.shape)}")
    router = _start(heads, features.router.shape[1], log_prior, settings)
    task = RouterTask(heads, router, features, log_prior, settings, held_out)
    fit_or_scratch(task, features.rows("pair"), settings.fit, run, stage=stage)
    task.look(settings.fit.epochs)
    learner = task.model
    nll = None if held_out is None else float(learner.lowest)
    best = copy.deepcopy(learner.router)
    vector_to_parameters(learner.best, best.parameters())
    return RouterFit(MixtureHeads(heads.weight, best, heads.masked), int(learner.epoch), nll)


def _start(heads: MixtureHeads, width: int, log_prior: Tensor, settings: RouterSettings) -> Router:
    if heads.router.kind != "static" and heads.router.features == width:
        return copy.deepcopy(heads.router)
    router = Router(settings.router, width, len(heads.weight), settings.hidden, settings.fit.seed)
    with torch.no_grad():
        bias = router.logits if router.kind == "static" else router.last.bias
        # A masked head's prior is zero; the mask is applied again when the router is read.
        bias.copy_(log_prior.exp().mean(0).clamp(min=1e-6).log())
    return router
