"""Pairs as numbers: what a frozen backbone says of them, cached once, and tasks that learn from the cache.

Heads, routers and baselines are small; on cached features they train in seconds, full batches included, through
the loop that trains everything else.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from holdfast.data.collate import micro_batches, pad
from holdfast.data.template import Encoded
from holdfast.engine.log import Advance, RunFolder
from holdfast.engine.supervised import FitResult, FitSettings, Task, fit
from holdfast.errors import UserError
from holdfast.losses.reduce import precise
from holdfast.models.mixture import MixtureRewardModel
from holdfast.models.policy import evaluating
from holdfast.preference.pairs import PairRow


@dataclass(frozen=True)
class PairFeatures:
    """N labelled pairs as a frozen backbone sees them.

    difference: (N, h) features of the chosen minus those of the rejected answer. router: (N, d) what a router may
    know of each pair: its prompt, or its prompt and context; never an answer. session: (N,) in 0..S-1, which pairs
    come from one person (or context). context: (S, d) what a router may know of each session; without it nothing.
    ids: of the pairs, for errors and reports.
    """

    difference: Tensor
    router: Tensor
    session: Tensor | None = None
    ids: tuple[str, ...] = ()
    context: Tensor | None = None

    def __post_init__(self) -> None:
        rows = len(self.difference)
        if self.difference.ndim != 2 or self.router.ndim != 2 or len(self.router) != rows:
            shapes = f"{tuple(self.difference.shape)} and {tuple(self.router.shape)}"
            raise ValueError(f"difference (N, h) and router (N, d) need a row per pair each, got {shapes}")
        if self.session is not None and self.session.shape != (rows,):
            raise ValueError(f"{rows} pairs need a session each, got {tuple(self.session.shape)}")
        if self.ids and len(self.ids) != rows:
            raise ValueError(f"{rows} pairs need an id each, got {len(self.ids)}")
        if self.context is not None and (self.session is None or len(self.context) <= int(self.session.max())):
            raise ValueError(f"context needs a row per session, got {tuple(self.context.shape)}")

    def __len__(self) -> int:
        return len(self.difference)

    def to(self, device: torch.device | str) -> "PairFeatures":
        """The same pairs on `device`."""
        tables = (self.difference.to(device), self.router.to(device))
        session, context = (None if one is None else one.to(device) for one in (self.session, self.context))
        return PairFeatures(*tables, session, self.ids, context)

    def take(self, index: Tensor | Sequence[int]) -> "PairFeatures":
        """The pairs at `index` (places, or a boolean mask (N,)), with their sessions numbered anew from 0.

        >>> some = PairFeatures(torch.eye(3), torch.eye(3), torch.tensor([0, 2, 2])).take([1, 2])
        >>> len(some), some.session.tolist()
        (2, [0, 0])
        """
        index = torch.as_tensor(index, device=self.difference.device)
        index = index.nonzero()[:, 0] if index.dtype == torch.bool else index.long()
        session, context = self.session, self.context
        if session is not None:
            kept, session = session[index].unique(return_inverse=True)
            context = None if context is None else context[kept]
        ids = tuple(self.ids[i] for i in index.tolist()) if self.ids else ()
        return PairFeatures(self.difference[index], self.router[index], session, ids, context)

    def joined(self, other: "PairFeatures") -> "PairFeatures":
        """These pairs and then those of `other`, whose sessions are other sessions; both have the same tables."""
        tables = [torch.cat(two) for two in ((self.difference, other.difference), (self.router, other.router))]
        session, context = self.session, self.context
        if session is not None and other.session is not None:
            first = int(session.max()) + 1 if context is None else len(context)
            session = torch.cat([session, other.session + first])
        if context is not None and other.context is not None:
            context = torch.cat([context, other.context])
        return PairFeatures(*tables, session, self.ids + other.ids, context)

    def rows(self, by: Literal["auto", "pair"] = "auto") -> list["SessionRow"]:
        """One row per session, or with `by="pair"` (or without sessions) one row per pair."""
        if by == "pair" or self.session is None:
            return [SessionRow((i,)) for i in range(len(self))]
        members: dict[int, list[int]] = {}
        for place, session in enumerate(self.session.tolist()):
            members.setdefault(session, []).append(place)
        return [SessionRow(tuple(places), session) for session, places in sorted(members.items())]


@dataclass(frozen=True)
class SessionRow:
    """The places of the pairs that share one head; `session` is None for a pair by itself."""

    pairs: tuple[int, ...]
    session: int | None = None

    @property
    def length(self) -> int:
        """How many pairs the row brings."""
        return len(self.pairs)


@dataclass(frozen=True)
class FeatureBatch:
    """B pairs in S rows: difference (B, h); router (S, d); session (B,) in 0..S-1, None when every pair is a row."""

    difference: Tensor
    router: Tensor
    session: Tensor | None
    index: Tensor

    @property
    def pairs(self) -> int:
        """How many pairs the batch holds."""
        return len(self.difference)


class FeatureTask:
    """What all tasks on cached features share: the tables on the model's device, and batches cut out of them."""

    def __init__(self, model: nn.Module, features: PairFeatures) -> None:
        self.model = model
        self.features = features.to(next(model.parameters()).device)

    def collate(self, rows: Sequence[SessionRow]) -> FeatureBatch:
        """The pairs of the rows; a session's router features are its context's, or zeros, never its prompts'."""
        tables, device = self.features, self.features.difference.device
        index = torch.tensor(list(chain.from_iterable(row.pairs for row in rows)), device=device)
        difference = tables.difference[index]
        if rows[0].session is None:
            return FeatureBatch(difference, tables.router[index], None, index)
        counts = torch.tensor([len(row.pairs) for row in rows], device=device)
        session = torch.arange(len(rows), device=device).repeat_interleave(counts)
        if tables.context is None:
            return FeatureBatch(difference, tables.router.new_zeros(len(rows), tables.router.shape[1]), session, index)
        context = tables.context[torch.tensor([row.session for row in rows], device=device)]
        return FeatureBatch(difference, context, session, index)


class _Scratch(RunFolder):
    """A run that nobody is going to read: nothing is logged and nothing is shown."""

    def log(self, *_: Any) -> None:
        """Nothing."""

    @contextmanager
    def progress(self, *_: Any) -> Iterator[Advance]:
        """Yields a function that shows nothing."""
        yield lambda numbers: None


def fit_or_scratch(
    task: Task,
    rows: Sequence[Any],
    settings: FitSettings,
    run: RunFolder | None,
    *,
    stage: str,
    held_out: Sequence[Any] = (),
) -> FitResult:
    """`engine.supervised.fit` into `run`; without one into a folder that is deleted afterwards, without a word."""
    if run is not None:
        return fit(task, rows, held_out, settings, run, stage=stage)
    with tempfile.TemporaryDirectory(prefix="holdfast-") as folder:
        return fit(task, rows, held_out, settings, _Scratch(folder), stage=stage)


def answer_features(
    model: MixtureRewardModel, rows: Sequence[Encoded], pad_id: int, batch_tokens: int = 16384
) -> tuple[Tensor, Tensor]:
    """phi (N, h) at the end of each answer and u (N, h) at the last token of its prompt, in float32 on the CPU.

    A bare prompt has no answer: its u is what is wanted, and its phi is u. In evaluation mode, without gradient.
    """
    width = model.score.weight.shape[1]
    phi, u = torch.empty(len(rows), width), torch.empty(len(rows), width)
    device = model.score.weight.device
    with evaluating(model):
        for chosen in micro_batches([row.length for row in rows], batch_tokens) if rows else []:
            batch = pad([rows[i] for i in chosen], pad_id=pad_id).to(device)
            # Padded on the right, a prompt begins in the first column.
            where = (batch.score_index, batch.prompt_lengths - 1)
            one, two = model.features(batch.input_ids, batch.attention_mask, batch.position_ids, *where, **batch.extra)
            phi[chosen], u[chosen] = precise(one).cpu(), precise(two).cpu()
    return phi, u


def pair_features(
    model: MixtureRewardModel,
    rows: Sequence[PairRow],
    pad_id: int,
    *,
    prompts: Sequence[Encoded] | None = None,
    sessions: Sequence[str] | None = None,
    batch_tokens: int = 16384,
) -> PairFeatures:
    """The features of N encoded pairs: phi of both answers, u at the last token of the prompt.

    prompts: N encoded prompts with their contexts, when the router reads another prompt than the heads. sessions:
    N names of people (or contexts); equal names are one session, an empty name is a session by itself.
    """
    for name, given in (("prompts", prompts), ("sessions", sessions)):
        if given is not None and len(given) != len(rows):
            raise ValueError(f"{name} needs one entry for each of the {len(rows)} pairs, got {len(given)}")
    if not rows:
        raise UserError("there are no pairs to read features of; check the data")
    first, u = answer_features(model, [row.first for row in rows], pad_id, batch_tokens)
    second, _ = answer_features(model, [row.second for row in rows], pad_id, batch_tokens)
    if prompts is not None:
        _, u = answer_features(model, prompts, pad_id, batch_tokens)
    session = None if sessions is None else session_numbers(sessions)
    return PairFeatures(first - second, u, session, tuple(row.id for row in rows))


def session_numbers(names: Sequence[str]) -> Tensor:
    """(N,) numbers from 0 in order of appearance, equal for equal names; an empty name gets its own.

    >>> session_numbers(["ann", "", "bob", "ann", ""]).tolist()
    [0, 1, 2, 0, 3]
    """
    known: dict[object, int] = {}
    keys = [name or place for place, name in enumerate(names)]
    return torch.tensor([known.setdefault(key, len(known)) for key in keys])
