"""Offline policy gradients: answers that lie there already, each with what it is worth, learned like imitation.

A-LoL (arXiv 2305.14718) and its relatives. The mathematics is in `losses.offline`; here is which rows are learned from,
how often each is drawn, and the task that reads them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from holdfast.config import Settings
from holdfast.data.grouped import Grouped, group, portions
from holdfast.data.template import Encoded
from holdfast.engine.order import Drawn, Order, Shuffled
from holdfast.engine.supervised import FitSettings
from holdfast.errors import UserError
from holdfast.losses.offline import (
    CLIPPED,
    NEEDS,
    Level,
    Method,
    Plan,
    effective_size,
    weight_metrics,
    weighted_nll,
)
from holdfast.losses.reduce import Sum, over
from holdfast.models.grouped import Sharing
from holdfast.rollout.reading import Reader
from holdfast.training.annotate import Annotations

UNKNOWN = math.nan


class OfflineSettings(Settings):
    """How answers are weighed and drawn."""

    method: Method = "a_lol"
    """What weighs an answer's log-likelihood: nothing (`nll`), its reward (`wbc`, `r_gold`, `r_lol`) or its advantage
    over the reference (`a_lol` and what begins like it)."""
    clip: float | None = Field(0.9, gt=0)
    """r_lol, a_lol, a_lol_seq: the ratio to the reference is held between 1 - clip and 1 + clip; null leaves it."""
    floor: float = Field(0.1, ge=0, le=1)
    """r_gold: least weight of an improbable token."""
    beta: float = Field(0.0, ge=0)
    """a_lol_kl: what is taken off every advantage. No pull to the reference: answers below it are unlearned."""
    level: Level = "sequence"
    """r_lol, a_lol: the ratio of whole answers, or `geometric`, its mean per token, which long ones do not saturate."""
    normalise: Literal["sum", "token_mean"] = "sum"
    """The mean over answers of sums over their tokens, or the mean over all tokens of a step."""
    filter_nonpositive: bool = True
    """Leave out answers that are no better than what the reference gets on their prompt."""
    sampling: Literal["priority", "uniform", "shuffle"] = "priority"
    """Draw answers in proportion to what they are worth, or alike, with replacement; `shuffle` sees each in turn."""
    priority_exponent: float = Field(1.0, gt=0)
    """For `priority`: the power of an answer's worth in proportion to which it is drawn."""
    loss_exponent: float = Field(1.0, ge=0)
    """The power of an answer's worth in the loss. Drawn by its worth as well, an answer weighs the sum of both powers:
    with 1 and 1, the published setting, its square."""
    value_margin: float = 0.0
    """Added to every advantage when answers are annotated: above zero, answers a little worse than the reference's are
    learned too."""
    scale_steps_by_kept: bool = True
    """Draw as many times fewer answers as there are fewer left."""
    share_prompt: Literal["auto", "off"] = "auto"
    """Read a prompt once for all its answers in a batch, where that pays and gives the same numbers."""

    @property
    def plan(self) -> Plan:
        """The weights of the loss."""
        return Plan(self.method, self.clip, self.floor, self.beta, self.level)

    @property
    def needs(self) -> frozenset[str]:
        """What a row must bring: reward, advantage, ref."""
        return NEEDS[self.method]

    @property
    def filters(self) -> bool:
        """Whether rows without a positive advantage are left out."""
        return self.filter_nonpositive and "advantage" in self.needs

    @model_validator(mode="after")
    def _settings_go_together(self) -> "OfflineSettings":
        advantage, priority = "advantage" in self.needs, self.sampling == "priority"
        read = {
            "clip": self.method in CLIPPED,
            "floor": self.method == "r_gold",
            "beta": self.method == "a_lol_kl",
            "level": self.method in ("r_lol", "a_lol"),
            "filter_nonpositive": advantage,
            "value_margin": advantage,
            "loss_exponent": bool(self.needs),
            "priority_exponent": priority,
            "scale_steps_by_kept": self.sampling != "shuffle",
        }
        moved = {name: getattr(self, name) for name in read if not read[name]}
        for name, value in moved.items():
            if value not in (None, type(self).model_fields[name].default):
                raise ValueError(
                    f"{name}={value} has no effect with method={self.method} and sampling={self.sampling}; leave it out"
                )
        if priority and not self.needs:
            raise ValueError(f"{self.method} knows no reward to draw by; set sampling to shuffle or uniform")
        if priority and advantage and not self.filter_nonpositive:
            raise ValueError(
                "priority sampling never draws an answer without a positive advantage, and filter_nonpositive=false "
                "asks to learn from them; set sampling to shuffle or uniform"
            )
        if self.method == "a_lol_kl" and self.beta == 0:
            raise ValueError("a_lol_kl with beta=0 is a_lol_ref_free; give beta (0.1, say) or name that method")
        return self


@dataclass(frozen=True)
class OfflineRow:
    """An encoded answer with what is known of it.

    advantage: R - V + margin, of any sign; ref: (T,) the reference's log-probabilities of its T response tokens;
    weight: what its loss is multiplied by besides, as limits on other scores may ask.
    """

    tokens: Encoded
    reward: float = UNKNOWN
    advantage: float = UNKNOWN
    ref: Tensor | None = None
    weight: float = 1.0

    @property
    def length(self) -> int:
        """The number of tokens."""
        return self.tokens.length


@dataclass(frozen=True)
class OfflineBatch:
    """B answers, their prompts once: reward, advantage, weight (B,), and ref (B, T) where every row brings it."""

    tokens: Grouped
    reward: Tensor
    advantage: Tensor
    ref: Tensor | None
    weight: Tensor

    @property
    def ids(self) -> tuple[str, ...]:
        """The names of the rows."""
        return self.tokens.ids

    def to(self, device: torch.device | str) -> "OfflineBatch":
        """The same batch on `device`."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            reward=self.reward.to(device),
            advantage=self.advantage.to(device),
            ref=None if self.ref is None else self.ref.to(device),
            weight=self.weight.to(device),
        )


def offline_rows(
    encoded: Sequence[Encoded], annotations: Annotations, weight: Tensor | None = None
) -> list[OfflineRow]:
    """Rows of annotated answers, which stand in the order of their annotations.

    weight: (N,) what each one's loss is multiplied by besides.
    """
    assert tuple(row.id for row in encoded) == annotations.ids, "annotations of other answers"
    rewards, advantage = annotations.rewards.tolist(), annotations.advantage.tolist()
    weights = [1.0] * len(encoded) if weight is None else weight.tolist()
    return [
        OfflineRow(row, rewards[i], advantage[i], annotations.ref_of(i), weights[i]) for i, row in enumerate(encoded)
    ]


class Planned(NamedTuple):
    """The rows to learn from, the order that `engine.supervised.fit` takes them in, and numbers about the choice."""

    rows: list[OfflineRow]
    order: Order
    facts: dict[str, float]


def plan_rows(rows: Sequence[OfflineRow], settings: OfflineSettings, fit: FitSettings) -> Planned:
    """The rows that are left by the filter, how often each is drawn, and in how many steps.

    Steps: those that `fit` asks for with all rows, times the share that is left, rounded down. facts: `rows`, `kept`,
    `kept_share`, `steps`, and `effective_size`, the number of equally likely rows that would vary as much. Raises
    `UserError` for rows that lack what the method reads, for negative rewards, and when nothing is left.
    """
    worth = _worth(rows, settings)
    left = ((worth > 0) | (not settings.filters)).nonzero()[:, 0].tolist()
    if not left or (settings.needs and not bool((worth > 0).any())):
        raise UserError(
            f"none of {len(rows)} answers is worth learning from with {settings.method}: the largest "
            f"{_named(settings)} is {float(worth.max()) if rows else math.nan:g}; look at how rewards and values are "
            "scaled, or raise value_margin"
        )
    kept = [rows[i] for i in left]
    priority = settings.sampling == "priority"
    weights = worth[left] ** settings.priority_exponent if priority else torch.ones(len(kept))
    order: Order = Shuffled(len(kept), fit.batch_size, fit.epochs, fit.seed)
    if settings.sampling != "shuffle":
        steps = math.ceil(len(rows) / fit.batch_size) * fit.epochs
        if settings.scale_steps_by_kept:
            steps = max(steps * len(kept) // len(rows), 1)
        order = Drawn(weights, fit.batch_size, steps, fit.seed)
    facts = {
        "rows": float(len(rows)),
        "kept": float(len(kept)),
        "kept_share": len(kept) / len(rows),
        "steps": float(order.steps),
        "effective_size": effective_size(weights),
    }
    return Planned(kept, order, facts)


class OfflineTask:
    """A policy learns the log-likelihood of given answers, each weighed as the settings say.

    Terms beside `offline`, the loss, only watch: `nll` per token without weights, `log_ratio`, `clip_low` and
    `clip_high` of the ratio to the reference, and `below_beta`, the share of answers that a_lol_kl unlearns. The policy
    is read without dropout, so that its ratio to the reference begins at one.
    """

    name = "offline"

    def __init__(self, model: nn.Module, pad_id: int, settings: OfflineSettings | None = None) -> None:
        self.model, self.pad_id, self.settings = model, pad_id, settings or OfflineSettings()
        self.plan = self.settings.plan
        self.reader = Reader(model, pad_id, share=self.settings.share_prompt)
        self.weights = dict.fromkeys(("nll", "log_ratio", "clip_low", "clip_high", "below_beta"), 0.0)

    def portions(self, rows: Sequence[OfflineRow], micro_tokens: int) -> list[list[OfflineRow]]:
        """The rows in micro-batches within `micro_tokens` as they are read, the longest first."""
        shares = partial(Sharing(self.settings.share_prompt).worthwhile, self.model)
        found = portions([row.tokens for row in rows], micro_tokens, shares)
        return [[rows[i] for i in chosen] for chosen in reversed(found)]

    def collate(self, rows: Sequence[OfflineRow]) -> OfflineBatch:
        tokens = group([row.tokens for row in rows], self.pad_id)
        return OfflineBatch(
            tokens=tokens,
            reward=torch.tensor([row.reward for row in rows]),
            advantage=torch.tensor([row.advantage for row in rows]),
            ref=_references(rows, tokens.mask) if "ref" in self.settings.needs else None,
            weight=torch.tensor([row.weight for row in rows]),
        )

    def counts(self, batch: OfflineBatch) -> dict[str, float]:
        rows, tokens = float(len(batch.ids)), float(batch.tokens.mask.sum())
        counts = {"offline": rows if self.settings.normalise == "sum" else tokens, "nll": tokens}
        if batch.ref is not None:
            counts["log_ratio"] = tokens if self.plan.method == "a_lol_seq" else rows
            if self.plan.method in CLIPPED and self.plan.clip is not None:
                counts |= {"clip_low": counts["log_ratio"], "clip_high": counts["log_ratio"]}
        return counts | ({"below_beta": rows} if self.plan.method == "a_lol_kl" else {})

    def loss(self, batch: OfflineBatch) -> dict[str, Sum]:
        self.model.eval()  # `fit` has turned dropout on
        batch = batch.to(next(self.model.parameters()).device)
        logprobs, _ = self.reader.read(batch.tokens)
        mask = batch.tokens.mask
        known = {"reward": self._power(batch.reward), "advantage": self._power(batch.advantage), "ref": batch.ref}
        term = weighted_nll(self.plan, logprobs, mask, **known, row_weight=batch.weight)
        if self.settings.normalise == "token_mean":
            term = Sum(term.total, mask.sum())
        terms = {"offline": term, "nll": over(-logprobs.detach(), mask)}
        if batch.ref is not None:
            terms |= weight_metrics(self.plan, logprobs, mask, batch.ref)
        if self.plan.method == "a_lol_kl":
            terms["below_beta"] = over(batch.advantage < self.plan.beta)
        return terms

    def metrics(self, batch: OfflineBatch) -> dict[str, Sum]:
        return self.loss(batch)

    def _power(self, worth: Tensor) -> Tensor:
        """(B,) what the loss multiplies by; rows to evaluate on have not been through the filter."""
        if self.settings.filters:
            worth = worth.clamp(min=0)
        return worth.sign() * worth.abs() ** self.settings.loss_exponent


def _named(settings: OfflineSettings) -> str:
    return next(iter(settings.needs & {"reward", "advantage"}), "weight")


def _worth(rows: Sequence[OfflineRow], settings: OfflineSettings) -> Tensor:
    """(N,) float64 the reward or advantage by which the method weighs rows, one without either."""
    if settings.needs & {"reward", "advantage"} == frozenset():
        return torch.ones(len(rows), dtype=torch.float64)
    name = _named(settings)
    worth = torch.tensor([getattr(row, name) for row in rows], dtype=torch.float64)
    if strange := [row.tokens.id for row, known in zip(rows, worth.isfinite().tolist()) if not known]:
        raise UserError(
            f"{settings.method} weighs answers by their {name}, and {len(strange)} of {len(rows)} have none "
            f"({', '.join(strange[:5])}); score them, or leave them out"
        )
    if name == "reward" and bool((worth < 0).any()):
        raise UserError(
            f"{settings.method} would push answers of negative reward down without bound, and {int((worth < 0).sum())} "
            f"of {len(rows)} have one (the least is {float(worth.min()):g}); map rewards into 0..1 (link: sigmoid), or "
            "use a_lol_ref_free, which leaves such answers out"
        )
    return worth


def _references(rows: Sequence[OfflineRow], mask: Tensor) -> Tensor:
    """(B, T) the rows' reference log-probabilities, zero behind their ends."""
    table = torch.zeros(mask.shape)
    for line, row in zip(table, rows):
        tokens = row.length - row.tokens.prompt_length
        if row.ref is None or len(row.ref) != tokens:
            given = "none" if row.ref is None else f"those of {len(row.ref)}"
            raise UserError(
                f"row {row.tokens.id}: the method needs the reference's log-probabilities of {tokens} response tokens, "
                f"and there are {given}; annotate the answers with the reference, as they are encoded now"
            )
        line[:tokens] = row.ref
    return table
