"""Several named ratings of one answer, learned together: masked regression, ridge on frozen features, a joint ranking.

Each label is brought to [0, 1] by its own scale, which is stored in the model. Labels that a row lacks are NaN and
teach nothing; taken for zeros they would pull every score down. A loss over all labels of all rows divides by the
variance of each label, so that none is drowned by another's spread (methods as in ArmoRM, arXiv 2406.12845, and
the joint training of attributes and comparisons, arXiv 2507.07375).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from holdfast.config import Settings
from holdfast.data.collate import Batch, micro_batches, pad
from holdfast.data.schema import Rated
from holdfast.data.template import Encoded, Template
from holdfast.errors import UserError
from holdfast.losses.preference import bradley_terry
from holdfast.losses.reduce import Sum, over
from holdfast.losses.regression import Kind, masked_regression, regression_weight
from holdfast.models.heads import ScoreModel
from holdfast.models.policy import evaluating, hidden_states
from holdfast.models.scales import LabelScale, Link, write_scales
from holdfast.preference.pairs import UNKNOWN, PairBatch, PairForward, PairRow, collate_pairs
from holdfast.preference.tasks import wins

PREFERENCE = "preference"
ALPHAS = tuple(10.0**power for power in range(-4, 5))


class AttributeSettings(Settings):
    """What the attribute model's loss consists of."""

    kind: Kind = "squared"
    """`squared`; `huber`: ratings far off pull no harder than `delta`; `bce`: scores are logits of the ratings."""
    delta: float = Field(0.1, gt=0)
    """Where huber turns from a parabola into a line, on the scale from 0 to 1."""
    preference: float = Field(1.0, ge=0)
    """Weight of the comparisons, in a model with a score called `preference`, against the ratings. The squared error of
    ratings on [0, 1] is some ten times smaller than the loss of comparisons; 0.1 makes them equals."""

    @property
    def link(self) -> Link:
        """How a score becomes a rating."""
        return "logit" if self.kind == "bce" else "identity"


@dataclass(frozen=True)
class RatedRow:
    """An encoded answer with its labels on [0, 1], `UNKNOWN` where missing, in the order of `names`."""

    id: str
    encoded: Encoded
    labels: tuple[float, ...]
    names: tuple[str, ...]

    @property
    def length(self) -> int:
        """The number of tokens."""
        return self.encoded.length

    @property
    def prompt(self) -> tuple[int, ...]:
        """The prompt's token ids: rows of one prompt belong together."""
        return tuple(self.encoded.ids[: self.encoded.prompt_length])


def rated_rows(
    rated: Iterable[Rated], names: Sequence[str], scales: Mapping[str, LabelScale], template: Template
) -> list[RatedRow]:
    """Rows with the labels `names`, each brought to [0, 1] by its scale; other labels of the records are left aside.

    Raises `UserError` for a name without a scale, a rating outside its scale, and a label that no record carries.
    """
    records = list(rated)
    if without := [name for name in names if name not in scales]:
        raise UserError(
            f"no scale for {', '.join(without)}; known are {', '.join(scales) or 'none'}: give low and high"
        )
    rows = [
        RatedRow(
            record.id,
            template.answered(record.conversation.model_copy(update={"id": record.id})),
            tuple(_share(record, name, scales[name]) for name in names),
            tuple(names),
        )
        for record in records
    ]
    for column, name in enumerate(names):
        if all(math.isnan(row.labels[column]) for row in rows):
            given = sorted({label for record in records for label in record.labels})
            raise UserError(f"no row carries the label {name!r}; the data have {', '.join(given) or 'no labels'}")
    return rows


def _share(record: Rated, name: str, scale: LabelScale) -> float:
    raw = record.labels.get(name, UNKNOWN)
    if not math.isnan(raw) and not scale.low <= raw <= scale.high:
        raise UserError(
            f"row {record.id}: {name} is {raw:g}, outside its scale from {scale.low:g} to {scale.high:g}; "
            "correct the rating or the scale"
        )
    return scale.share(raw)


class Moments(NamedTuple):
    """Mean and variance of each label (K,) over the rows that carry it."""

    mean: Tensor
    variance: Tensor


def moments(rows: Sequence[RatedRow]) -> Moments:
    """What the training rows say of each label: the rating to guess without reading, and how far ratings spread.

    Raises `UserError` for a label that has the same value in every row: nothing can be learned from it.
    """
    table = torch.tensor([row.labels for row in rows], dtype=torch.float64)
    known = ~table.isnan()
    count = known.sum(0)
    mean = table.nansum(0) / count
    variance = (table - mean).square().nansum(0) / count
    for column, name in enumerate(rows[0].names):
        # Not zero exactly: the mean of equal numbers is rounded.
        if not variance[column] > 1e-12:
            raise UserError(
                f"the label {name!r} is {float(mean[column]):g} in all {int(count[column])} rows that carry it, so "
                "nothing can be learned from it; leave it out"
            )
    return Moments(mean.float(), variance.float())


@dataclass(frozen=True)
class AttributeBatch:
    """B rated answers (tokens (B, T), labels (B, K)) and P pairs to compare; one of the two may be absent."""

    tokens: Batch | None
    labels: Tensor
    pairs: PairBatch | None
    ids: tuple[str, ...]


class AttributeTask:
    """Masked regression of all labels and, where rows are pairs, Bradley-Terry on the score called `preference`.

    L = sum m a l(score, label) / sum m a + eta mean(-log sigmoid(better - worse)), a = 1 / variance of the label.

    scales: of the labels, in the order of the model's scores; they are written into the model. found: the moments of
    the training rows. Raises `UserError` when the model holds other labels, scales or another order.
    """

    name = "attributes"

    def __init__(
        self,
        model: ScoreModel,
        pad_id: int,
        scales: Mapping[str, LabelScale],
        found: Moments,
        settings: AttributeSettings | None = None,
    ) -> None:
        self.model, self.pad_id, self.moments = model, pad_id, found
        self.settings = settings or AttributeSettings()
        self.forward = PairForward(model)
        write_scales(model.config, model.names, scales, self.settings.link)
        self.names = tuple(scales)
        self.columns = [model.names.index(name) for name in self.names]
        self.label_weight = 1 / found.variance
        self.weights = {PREFERENCE: self.settings.preference}

    def collate(self, rows: Sequence[RatedRow | PairRow]) -> AttributeBatch:
        rated = [row for row in rows if isinstance(row, RatedRow)]
        pairs = [row for row in rows if isinstance(row, PairRow)]
        for row in rated:
            if row.names != self.names:
                raise UserError(
                    f"row {row.id} has the labels {', '.join(row.names)}, and the model was made for "
                    f"{', '.join(self.names)}, in this order; name them alike when rows are made"
                )
        if pairs and PREFERENCE not in self.model.names:
            raise UserError(f"pairs need a score called {PREFERENCE}; the model has {', '.join(self.model.names)}")
        return AttributeBatch(
            tokens=pad([row.encoded for row in rated], pad_id=self.pad_id) if rated else None,
            labels=torch.tensor([row.labels for row in rated]).reshape(len(rated), len(self.names)),
            pairs=collate_pairs(pairs, self.pad_id) if pairs else None,
            ids=tuple(row.id for row in rows),
        )

    def counts(self, batch: AttributeBatch) -> dict[str, float]:
        counts = {"regression": float(regression_weight(batch.labels, self.label_weight))} if batch.tokens else {}
        return counts | ({PREFERENCE: float(batch.pairs.size)} if batch.pairs else {})

    def loss(self, batch: AttributeBatch) -> dict[str, Sum]:
        terms: dict[str, Sum] = {}
        if batch.tokens is not None:
            scores = self._scores(batch.tokens)
            labels, chosen = batch.labels.to(scores.device), self.settings
            terms["regression"] = masked_regression(scores, labels, self.label_weight, chosen.kind, chosen.delta)
        if batch.pairs is not None:
            better, worse = self._sides(batch.pairs)
            terms[PREFERENCE] = bradley_terry(better, worse, margin=batch.pairs.margin.to(better))
        return terms

    def metrics(self, batch: AttributeBatch) -> dict[str, Sum]:
        """Per label: `r2`, one minus the squared error over that of always guessing the training mean, and `mae`."""
        numbers: dict[str, Sum] = {}
        if batch.tokens is not None:
            scores = self._scores(batch.tokens).cpu()
            guesses = scores.sigmoid() if self.settings.link == "logit" else scores
            for column, name in enumerate(self.names):
                numbers |= self._fit_of(name, guesses[:, column], batch.labels[:, column], column)
        if batch.pairs is not None:
            better, worse = self._sides(batch.pairs)
            numbers["accuracy"] = over(wins(better - worse))
        return numbers

    def _fit_of(self, name: str, guess: Tensor, label: Tensor, column: int) -> dict[str, Sum]:
        known = ~label.isnan()
        error = (guess - label)[known]
        # In units of the variance a row counts about one; a mean takes any count below one for one.
        scale = self.label_weight[column]
        spread = scale * (label[known] - self.moments.mean[column]).square().sum()
        return {
            f"r2/{name}": Sum(spread - scale * error.square().sum(), spread),
            f"mae/{name}": over(error.abs()),
        }

    def _scores(self, tokens: Batch) -> Tensor:
        own = tokens.to(next(self.model.parameters()).device)
        scores = self.model.scores(own.input_ids, own.attention_mask, own.position_ids, own.score_index, **own.extra)
        return scores[:, self.columns]

    def _sides(self, pairs: PairBatch) -> tuple[Tensor, Tensor]:
        column = self.model.names.index(PREFERENCE)
        better, worse = self.forward(pairs)
        return better[:, column], worse[:, column]


def features(model: ScoreModel, rows: Sequence[RatedRow], pad_id: int, batch_tokens: int = 16384) -> Tensor:
    """The hidden states (N, h) that the head reads, in float32 on the CPU, without gradient."""
    device = next(model.parameters()).device
    table = torch.empty(len(rows), model.head.weight.shape[1])
    with evaluating(model):
        for chosen in micro_batches([row.length for row in rows], batch_tokens):
            own = pad([rows[i].encoded for i in chosen], pad_id=pad_id).to(device)
            hidden = hidden_states(model.network, own.input_ids, own.attention_mask, own.position_ids, **own.extra)
            table[chosen] = hidden[torch.arange(len(chosen), device=device), own.score_index].float().cpu()
    return table


def ridge(features: Tensor, labels: Tensor, alphas: Sequence[float] = ALPHAS) -> Tensor:
    """(A, h) float64 weights w that make |X w - y|^2 + alpha |w|^2 least, without intercept, one row per alpha.

    features: X (N, h); labels: y (N,); w = (X'X + alpha)^-1 X'y, all alphas from one decomposition of X'X.

    >>> ridge(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 2.0]), alphas=[0.0, 5.0]).tolist()
    [[1.0], [0.5]]
    """
    x, y = features.double(), labels.double()
    values, vectors = torch.linalg.eigh(x.T @ x)
    rotated = vectors.T @ (x.T @ y)
    shrunk = rotated / (values.clamp(min=0) + torch.tensor(alphas, dtype=x.dtype)[:, None])
    return shrunk @ vectors.T


class RidgeFit(NamedTuple):
    """How a label's row of the head was found: the penalty chosen, and r2 on the fifth of the prompts that chose it."""

    alpha: float
    r2: float


def fit_heads(
    model: ScoreModel,
    rows: Sequence[RatedRow],
    pad_id: int,
    *,
    link: Link = "identity",
    seed: int = 42,
    batch_tokens: int = 16384,
) -> dict[str, RidgeFit]:
    """Put each label's ridge solution on the frozen network's features into the head, in closed form.

    The penalty is chosen from `ALPHAS` on a fifth of the prompts; the weights are then found on all rows that carry
    the label (stage one of ArmoRM, arXiv 2406.12845). By itself it is a model; before training it is a head
    that already knows the level of the labels, for which a head without bias would search long.
    """
    table = features(model, rows, pad_id, batch_tokens)
    labels = torch.tensor([row.labels for row in rows], dtype=torch.float64)
    if link == "logit":
        # Ratings at the ends have no finite logit.
        labels = labels.clamp(0.05, 0.95).logit()
    held_out = _fifth([row.prompt for row in rows], seed)
    found = {}
    for column, name in enumerate(rows[0].names):
        known = ~labels[:, column].isnan()
        if not bool((known & held_out).any()) or int((known & ~held_out).sum()) < 2:
            raise UserError(
                f"too few rows carry the label {name!r} to choose a penalty on other prompts; give more rows"
            )
        found[name] = _choose(table, labels[:, column], known & ~held_out, known & held_out)
        weight = ridge(table[known], labels[known, column], [found[name].alpha])[0]
        with torch.no_grad():
            model.head.weight[model.names.index(name)] = weight.to(model.head.weight)
    return found


def _choose(table: Tensor, labels: Tensor, learned: Tensor, held_out: Tensor) -> RidgeFit:
    weights = ridge(table[learned], labels[learned])
    errors = (table[held_out].double() @ weights.T - labels[held_out, None]).square().sum(0)
    spread = (labels[held_out] - labels[learned].mean()).square().sum()
    best = int(errors.argmin())
    return RidgeFit(ALPHAS[best], float(1 - errors[best] / spread))


def _fifth(prompts: Sequence[tuple[int, ...]], seed: int) -> Tensor:
    """(N,) true for the rows of a random fifth of the prompts, whatever the order of the rows."""
    distinct = sorted(set(prompts))
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = {distinct[i] for i in order[: max(1, len(distinct) // 5)]}
    return torch.tensor([prompt in chosen for prompt in prompts])
