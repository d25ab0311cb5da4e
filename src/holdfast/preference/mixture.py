"""Stage one of MiCRo (arXiv 2505.24846): K reward heads and a router, learned from plain pairs.

The marginal likelihood -log sum_k f_k sigmoid(delta_k) by gradient descent, with heads that start apart and a
router that starts uniform. `MixtureTask` learns on cached features of a frozen backbone, `LiveMixtureTask` on
tokens through a backbone that learns too; the loss is one function.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from holdfast.config import Settings
from holdfast.data.collate import Batch, pad
from holdfast.data.template import Encoded
from holdfast.engine.log import RunFolder
from holdfast.engine.seeds import generator
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings, evaluate
from holdfast.errors import UserError
from holdfast.losses import mixture as losses
from holdfast.losses.reduce import Sum, over
from holdfast.models.mixture import MixtureRewardModel
from holdfast.models.router import Router, RouterKind
from holdfast.preference.features import FeatureBatch, FeatureTask, PairFeatures, fit_or_scratch
from holdfast.preference.pairs import PairBatch, PairRow, collate_pairs

SMALL_FIT = FitSettings(
    epochs=20, batch_size=128, optimiser=OptimiserSettings(learning_rate=2e-3, warmup_ratio=0.05, schedule="cosine")
)
"""AdamW at 2e-3 as published; heads are small, so twenty passes over cached features cost seconds."""


class MixtureSettings(Settings):
    """How many heads, what weighs them, and what their loss consists of."""

    heads: int = 4
    """How many heads; too many cost little, too few hide groups."""
    router: RouterKind = "mlp"
    """What turns a prompt into weights: one layer, one hidden layer, or the same weights for everybody."""
    hidden: int = Field(128, ge=1)
    """Units of the hidden layer of an `mlp` router."""
    alpha: float = Field(0.02, ge=0)
    """Weight of the negative entropy of each row's weights. 0 to 0.05 is sane. Above 0.1 it caps how sure the router
    may be and can make all heads equal; the published 0.5 does so where the signal is weak."""
    balance: float = Field(0.0, ge=0)
    """Weight of KL(average weights of the batch || uniform), which keeps heads in use without capping certainty."""
    l2: float = Field(1e-3, ge=0)
    """Weight of the summed squares of the heads."""
    init_std: float = Field(0.1, gt=0)
    """Spread of the heads at the start; equal heads would stay equal."""
    restarts: int = Field(1, ge=1)
    """Trainings from different starts, of which the one with the lowest training loss is kept."""
    session: Literal["auto", "pair"] = "auto"
    """`auto`: pairs of one person share a head, where pairs say whose they are; `pair`: every pair by itself."""
    fit: FitSettings = SMALL_FIT
    """How long, in what portions."""

    @field_validator("heads")
    @classmethod
    def _several(cls, heads: int) -> int:
        if heads < 2:
            raise ValueError("a mixture needs at least two heads; for one head use a reward model")
        return heads

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each loss term."""
        return {"entropy": self.alpha, "balance": self.balance, "l2": self.l2}


class MixtureHeads(nn.Module):
    """K linear heads (K, h) and the router that weighs them: all that is learned on a frozen backbone.

    Heads have no bias, which would cancel in every difference. masked: (K,) true for heads that get no weight.
    """

    masked: Tensor

    def __init__(self, weight: Tensor, router: Router, masked: Tensor | None = None) -> None:
        super().__init__()
        if router.heads != len(weight):
            raise ValueError(f"{len(weight)} heads need a router for as many, got one for {router.heads}")
        self.weight = nn.Parameter(weight.detach().clone())
        self.router = router
        self.register_buffer("masked", torch.zeros(len(weight), dtype=torch.bool) if masked is None else masked.clone())

    @classmethod
    def new(cls, settings: MixtureSettings, width: int, features: int, seed: int = 0) -> "MixtureHeads":
        """Heads at random over `width` features, and a router that starts uniform over `features`."""
        weight = settings.init_std * torch.randn(settings.heads, width, generator=generator(seed))
        return cls(weight, Router(settings.router, features, settings.heads, settings.hidden, seed))

    @classmethod
    def of(cls, model: MixtureRewardModel) -> "MixtureHeads":
        """A copy of the heads, the router and the mask of `model`, to be trained on its cached features."""
        return cls(model.score.weight, copy.deepcopy(model.router), model.masked)

    def install(self, model: MixtureRewardModel) -> None:
        """Write heads, router and mask into `model`, which must have as many heads and the same kind of router."""
        if model.score.weight.shape != self.weight.shape or model.router.kind != self.router.kind:
            raise UserError(
                f"{self.weight.shape[0]} heads over {self.weight.shape[1]} features with a {self.router.kind} router "
                f"do not fit a mixture of {tuple(model.score.weight.shape)} with a {model.router.kind} router; "
                "build it with mixture_from for these"
            )
        with torch.no_grad():
            model.score.weight.copy_(self.weight)
        model.router.load_state_dict(self.router.state_dict())
        model.mask([name for name, out in zip(model.names, self.masked.tolist()) if out])

    def delta(self, difference: Tensor) -> Tensor:
        """(B, K) reward of the chosen minus the rejected answer under each head."""
        return difference @ self.weight.T

    def log_weights(self, u: Tensor) -> Tensor:
        """(B, K) log weights for router features u (B, d)."""
        return losses.log_weights(self.router(u), self.masked)

    @torch.no_grad()
    def probability(self, features: PairFeatures) -> Tensor:
        """(N,) probability of each pair's label, weighed by the pair's router features."""
        return losses.probability(self.delta(features.difference), self.log_weights(features.router))


def mixture_terms(delta: Tensor, log_weights: Tensor, session: Tensor | None, weight: Tensor) -> dict[str, Sum]:
    """The loss terms of B pairs in S rows: `nll` per pair, `entropy` and `balance` per row, `l2` of the heads.

    delta: (B, K); log_weights: (S, K), with S = B and no session when every pair is a row; weight: (K, h).
    """
    return {
        "nll": losses.mixture_nll(delta, log_weights, session),
        "entropy": losses.negative_entropy(log_weights),
        "balance": losses.balance(log_weights),
        "l2": Sum(weight.square().sum(), torch.ones((), device=weight.device)),
    }


def mixture_metrics(delta: Tensor, log_weights: Tensor, session: Tensor | None) -> dict[str, Sum]:
    """`nll` and `accuracy` per pair, and `spread`, the entropy of the weights per row as a share of log K."""
    own = log_weights if session is None else log_weights[session]
    likely = losses.probability(delta, own)
    entropy = torch.special.entr(log_weights.exp()).sum(-1)
    return {
        "nll": losses.mixture_nll(delta, log_weights, session),
        "accuracy": over((likely > 0.5).float() + 0.5 * (likely == 0.5).float()),
        # One head alone has no entropy, and log 1 is no scale.
        "spread": over(entropy / math.log(max(delta.shape[1], 2))),
    }


def _counts(pairs: int, rows: int) -> dict[str, float]:
    return {"nll": pairs, "entropy": rows, "balance": rows, "l2": 1}


class MixtureTask(FeatureTask):
    """Heads and router on cached features; rows are the sessions of `features.rows()`.

    With sessions the router sees a session's context or, without one, nothing: a person's taste is not to be read
    off one of their prompts.
    """

    name = "mixture"
    model: MixtureHeads

    def __init__(self, heads: MixtureHeads, features: PairFeatures, settings: MixtureSettings) -> None:
        super().__init__(heads, features)
        self.weights = settings.weights

    def counts(self, batch: FeatureBatch) -> dict[str, float]:
        return _counts(batch.pairs, len(batch.router))

    def loss(self, batch: FeatureBatch) -> dict[str, Sum]:
        return mixture_terms(*self._seen(batch), self.model.weight)

    def metrics(self, batch: FeatureBatch) -> dict[str, Sum]:
        return mixture_metrics(*self._seen(batch))

    def _seen(self, batch: FeatureBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.model.delta(batch.difference), self.model.log_weights(batch.router), batch.session


class HeadsFit(NamedTuple):
    """The heads of the best restart, on the CPU, and the training loss per pair of every restart."""

    heads: MixtureHeads
    nll: tuple[float, ...]


def train_heads(
    features: PairFeatures,
    settings: MixtureSettings,
    run: RunFolder | None = None,
    *,
    held_out: PairFeatures | None = None,
    stage: str = "heads",
    device: torch.device | str = "cpu",
) -> HeadsFit:
    """Train heads and router on `features` from each start, and keep those with the lowest training nll.

    run: the folder for metrics and checkpoints (a restart is a stage of its own); nothing is kept without one. The
    training is that of `settings.fit`, whose seed also draws the starts.
    """
    tables = features if held_out is None else features.joined(held_out)
    rows = tables.rows(settings.session)
    learned, seen = ([row for row in rows if (row.pairs[0] < len(features)) == own] for own in (True, False))
    grouped = bool(rows) and rows[0].session is not None
    width = features.context.shape[1] if grouped and features.context is not None else features.router.shape[1]
    if grouped and features.context is None:
        # What is known of a session is nothing, so everybody gets the same weights.
        settings = settings.model_copy(update={"router": "static"})
    tried: list[tuple[float, MixtureHeads]] = []
    for restart in range(settings.restarts):
        seed = settings.fit.seed + 1000 * restart
        heads = MixtureHeads.new(settings, features.difference.shape[1], width, seed).to(device)
        task = MixtureTask(heads, tables, settings)
        name = stage if settings.restarts == 1 else f"{stage}-{restart}"
        fit_or_scratch(task, learned, settings.fit, run, stage=name, held_out=seen)
        tried.append((evaluate(task, learned, settings.fit.micro_tokens)["nll"], heads.cpu()))
    return HeadsFit(min(tried, key=lambda one: one[0])[1], tuple(nll for nll, _ in tried))


@dataclass(frozen=True)
class TokenSession:
    """Encoded pairs that share one head; `context` is what the router reads of a session, as an encoded prompt.

    grouped: false for a pair by itself, whose router reads its own prompt.
    """

    pairs: tuple[PairRow, ...]
    grouped: bool = False
    context: Encoded | None = None

    @property
    def length(self) -> int:
        """Padded tokens of the row."""
        return len(self.pairs) * max(pair.length for pair in self.pairs)


@dataclass(frozen=True)
class TokenBatch:
    """B pairs in S rows as tokens: `session` (B,) is None for pairs by themselves, `context` has S prompts."""

    pairs: PairBatch
    session: Tensor | None
    rows: int
    context: Batch | None


class LiveMixtureTask:
    """Heads, router and backbone together on tokens: the loss of `MixtureTask`, its gradient reaching the backbone.

    model: with trainable parameters or an adapter in its backbone. Rows are `TokenSession`s, all grouped or none.
    """

    name = "mixture"

    def __init__(self, model: MixtureRewardModel, pad_id: int, settings: MixtureSettings) -> None:
        self.model, self.pad_id, self.weights = model, pad_id, settings.weights

    def collate(self, rows: Sequence[TokenSession]) -> TokenBatch:
        """Stack the pairs of the rows, on the model's device when they are read."""
        pairs = collate_pairs([pair for row in rows for pair in row.pairs], self.pad_id)
        contexts = [row.context for row in rows if row.context is not None]
        if contexts and len(contexts) != len(rows):
            raise UserError(f"{len(rows) - len(contexts)} of {len(rows)} sessions lack the context that others have")
        if not rows[0].grouped:
            return TokenBatch(pairs, None, len(rows), None)
        place = torch.tensor([number for number, row in enumerate(rows) for _ in row.pairs])
        return TokenBatch(pairs, place, len(rows), pad(contexts, pad_id=self.pad_id) if contexts else None)

    def counts(self, batch: TokenBatch) -> dict[str, float]:
        return _counts(batch.pairs.size, batch.rows)

    def loss(self, batch: TokenBatch) -> dict[str, Sum]:
        return mixture_terms(*self._seen(batch), self.model.score.weight)

    def metrics(self, batch: TokenBatch) -> dict[str, Sum]:
        return mixture_metrics(*self._seen(batch))

    def _seen(self, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """delta (B, K), log weights (S, K) and the session (B,) of each pair."""
        phi, u = self._features(batch.pairs.tokens)
        first, second = self.model.rewards(phi).chunk(2)
        if batch.session is None:
            u = u[: len(first)]
        elif batch.context is not None:
            _, u = self._features(batch.context)
        else:
            u = u.new_zeros(batch.rows, u.shape[1])
        session = None if batch.session is None else batch.session.to(phi.device)
        return first - second, self.model.log_weights(u), session

    def _features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        tokens = batch.to(self.model.score.weight.device)
        # Padded on the right, a prompt begins in the first column.
        where = (tokens.score_index, tokens.prompt_lengths - 1)
        return self.model.features(tokens.input_ids, tokens.attention_mask, tokens.position_ids, *where, **tokens.extra)
