"""A strong student learns from a weak supervisor's labels (arXiv 2312.09390).

Everything is N items with K-way soft labels. A pair of answers is K = 2 with logits (0, margin); a chess move is
K = 4096. What the student is told moves while it learns, and follows its own predictions; where these are ranked,
they are ranked over the whole optimiser step, however it was cut.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.config import Settings
from holdfast.data.schema import Conversation
from holdfast.engine.best import Contest
from holdfast.engine.distributed import Processes
from holdfast.engine.log import RunFolder
from holdfast.engine.order import Order, Shuffled
from holdfast.engine.supervised import FitSettings, cut, fit, share
from holdfast.errors import UserError
from holdfast.losses import transfer as losses
from holdfast.losses.reduce import Sum, over
from holdfast.models.policy import evaluating

Forward = Callable[[Sequence[Any]], Tensor]
"""Inputs of B rows to logits (B, K), differentiable."""

Share = Annotated[float, Field(ge=0, le=1)]
BALANCED_WITHIN = 0.05


class TransferSettings(Settings):
    """What a student learns from weak labels, and how."""

    kind: losses.Kind = "soft"
    """`soft`: the labels as they are; `hard`: their most likely class; `logconf`: mixed with the student's own
    hardened prediction; `entropy`, `product`, `window`, `adaptconf`: see `losses.transfer`."""
    most: float = Field(0.5, ge=0, le=1)
    """Largest weight of the student's own prediction. The paper takes .75 for its largest student, else .5."""
    warm_up: float = Field(0.2, ge=0, le=1)
    """Share of the training in which that weight rises from zero."""
    prior: Literal["auto", "half", "weak", "none"] | Share = "auto"
    """Shares of the classes among hardened predictions: equal (`half`), those of the labels (`weak`), the share of
    class 1 of two, or free (`none`). `auto`: those of the labels where they are more than .05 from equal, else equal;
    free for pairs, whose order is drawn."""
    min_pool: int = Field(8, ge=1)
    """Fewer predictions than these are not ranked; each is hardened by itself."""
    student_power: float = Field(1.0, ge=0)
    """Exponent of the student's probability in the product."""
    weak_power: float = Field(1.0, ge=0)
    """Exponent of the label in the product."""
    radius: float = Field(0.15, gt=0, le=0.5)
    """`window` learns only where the student's highest probability is below .5 plus this."""
    temperature: float = Field(0.5, gt=0)
    """Of the weights of `adaptconf`."""
    fit: FitSettings = FitSettings(epochs=2, batch_size=32)
    """How long, and in what portions."""


def offset(settings: TransferSettings, seed: int) -> TransferSettings:
    """The settings with the seed of the training moved by `seed`."""
    return settings.model_copy(update={"fit": settings.fit.model_copy(update={"seed": settings.fit.seed + seed})})


class Card(Settings):
    """What a stage was learned from; the folder of a stage holds one card and refuses another."""

    learner: str
    """Kind of learner, and what it was built with."""
    transfer: TransferSettings
    """How it learned."""
    seed: int
    """Of the run."""
    sha256: str
    """Of everything it saw: items, targets, held-out items and targets."""


def open_stage(
    run: RunFolder, stage: str, learner: str, settings: TransferSettings, seed: int, seen: Iterable[Any]
) -> RunFolder:
    """The folder of a stage; `UserError` when it holds one that was learned from something else."""
    digest = hashlib.sha256()
    for part in seen:
        digest.update(_bytes(part) + b"\x1e")
    card = Card(learner=learner, transfer=settings, seed=seed, sha256=digest.hexdigest())
    return RunFolder(run.path / stage, card, processes=run.processes)


def _bytes(part: Any) -> bytes:
    if isinstance(part, Tensor):
        return str(tuple(part.shape)).encode() + part.contiguous().cpu().numpy().tobytes()
    if isinstance(part, Conversation):
        return part.model_dump_json().encode()
    if isinstance(part, list | tuple):
        return b"\x1d".join(map(_bytes, part))
    return str(part).encode()


@dataclass(frozen=True)
class TransferRow:
    """An item as the student reads it, what it is told of it (K,), and its place among the items."""

    input: Any
    weak: Tensor
    place: int = 0
    length: int = 1


class TransferBatch(NamedTuple):
    """B rows: their inputs, their labels (B, K), and `ids`, their places among the items."""

    inputs: list[Any]
    weak: Tensor
    ids: list[int]


def rows_of(inputs: Sequence[Any], weak: Tensor) -> list[TransferRow]:
    """One row per item; an input that knows its `length` in tokens brings it along."""
    return [
        TransferRow(one, label, place, getattr(one, "length", 1))
        for place, (one, label) in enumerate(zip(inputs, weak, strict=True))
    ]


def class_prior(prior: str | float, weak: Tensor) -> Tensor | None:
    """The shares (K,) that hardened predictions keep, from labels (N, K); None leaves them free.

    >>> class_prior("auto", torch.tensor([[0.6, 0.4], [0.42, 0.58]])).tolist()
    [0.5, 0.5]
    """
    classes = weak.shape[1]
    if isinstance(prior, float | int):
        if classes != 2:
            raise UserError(f"prior: {prior} is the share of class 1 of two, not of {classes}; take half or weak")
        return torch.tensor([1.0 - prior, float(prior)])
    if prior == "none":
        return None
    equal, found = torch.full((classes,), 1.0 / classes), weak.float().mean(0)
    near = bool(((found - equal).abs() <= BALANCED_WITHIN).all())
    return equal if prior == "half" or (prior == "auto" and near) else found


class TransferTask:
    """Cross-entropy against targets that mix the weak label with the student's own prediction, without gradient.

    forward: inputs of rows to logits (B, K) of `model`. order: where a step is cut into micro-batches or shared among
    processes, its predictions are collected in a first pass without gradient, so that the threshold is that of the
    whole step. A first pass costs a third of a step and has no state; a buffer of earlier predictions would be older
    than the weights and would have to be part of every checkpoint. watch: called with the number of every epoch, from
    1, at its end.
    """

    name = "transfer"
    weights: dict[str, float] = {}

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        rows: Sequence[TransferRow],
        settings: TransferSettings,
        prior: Tensor | None = None,
        *,
        order: Order | None = None,
        processes: Processes | None = None,
        watch: Callable[[int], None] | None = None,
    ) -> None:
        self.model, self.forward, self.rows, self.settings, self.prior = model, forward, rows, settings, prior
        self.order, self.processes, self.watch = order, processes or Processes(), watch
        self.weight = 0.0
        self._surveyed: dict[int, Tensor] = {}

    def begin(self, step: int, total: int) -> None:
        """Set the weight of the student's own prediction, and harden the predictions of a step that is cut."""
        settings = self.settings
        self.weight = losses.warm_up((step - 1) / total, settings.warm_up, settings.most)
        self._surveyed = self._survey(step) if self._is_cut else {}

    def end(self, step: int, total: int) -> None:
        """Let whoever watches see the model at the end of each epoch."""
        epoch, begun = divmod(step * self.settings.fit.epochs, total)
        if self.watch is not None and not begun:
            self.watch(epoch)

    def collate(self, rows: Sequence[TransferRow]) -> TransferBatch:
        """The rows side by side; their labels on the model's device."""
        device = next(self.model.parameters()).device
        weak = torch.stack([row.weak for row in rows]).to(device)
        return TransferBatch([row.input for row in rows], weak, [row.place for row in rows])

    def counts(self, batch: TransferBatch) -> dict[str, float]:
        return {"transfer": float(len(batch.weak))}

    def loss(self, batch: TransferBatch) -> dict[str, Sum]:
        logits = self.forward(batch.inputs)
        return {"transfer": losses.cross_entropy(logits, self._target(batch, logits))}

    def metrics(self, batch: TransferBatch) -> dict[str, Sum]:
        """Cross-entropy against the labels, and how often their most likely class is the student's."""
        logits = self.forward(batch.inputs)
        agree = (logits.argmax(-1) == batch.weak.argmax(-1)).float()
        return {"transfer": losses.cross_entropy(logits, batch.weak), "agreement": over(agree)}

    @property
    def _is_cut(self) -> bool:
        ranked = self.settings.kind == "logconf" and self.prior is not None and self.order is not None
        return ranked and (self.processes.size > 1 or self.settings.fit.micro_tokens is not None)

    def _target(self, batch: TransferBatch, logits: Tensor) -> Tensor:
        if self._surveyed:
            return torch.stack([self._surveyed[place] for place in batch.ids]).to(logits)
        return self._towards(logits.softmax(-1), batch.weak)

    def _towards(self, p: Tensor, weak: Tensor) -> Tensor:
        if not bool(torch.isfinite(p).all()):
            return weak  # the loss will not be finite either, and the step says so with its rows
        settings = self.settings
        options = losses.Options(settings.student_power, settings.weak_power, settings.radius, settings.temperature)
        moving = {"weight": self.weight, "prior": self.prior, "min_pool": settings.min_pool}
        return losses.target(settings.kind, p, weak, **moving, options=options)

    def _survey(self, step: int) -> dict[int, Tensor]:
        """The targets (K,) of all rows of this step, by place, hardened over all micro-batches of all processes."""
        assert self.order is not None, "a step that is cut is known by its order"
        chosen = self.order.chosen(step)
        own = share([self.rows[i] for i in chosen], self.processes)
        seen: list[tuple[int, Tensor]] = []
        with evaluating(self.model):
            for part in cut(own, self.settings.fit.micro_tokens):
                p = self.forward([row.input for row in part]).softmax(-1).cpu()
                seen += [(row.place, line) for row, line in zip(part, p)]
        # Ties are broken by position, so the positions are those of the undivided step.
        position = {place: i for i, place in enumerate(chosen)}
        seen = sorted(self.processes.gather(seen), key=lambda one: position[one[0]])
        weak = torch.stack([self.rows[place].weak for place, _ in seen]).cpu()
        targets = self._towards(torch.stack([p for _, p in seen]), weak)
        return {place: target for (place, _), target in zip(seen, targets)}


def train(
    network: nn.Module,
    forward: Forward,
    rows: Sequence[TransferRow],
    settings: TransferSettings,
    run: RunFolder,
    *,
    prior: Tensor | None,
    held_out: Sequence[TransferRow] = (),
    watch: Callable[[int], None] | None = None,
) -> None:
    """Train `network` in place; with `held_out` rows it ends as it was when it agreed best with their labels.

    Of equals the earlier is taken; `selection.json` says how each epoch agreed. watch: called with the number of the
    epoch, from 1, at its end, while the network is what it is then. The run's stage `transfer` is resumed, and only
    loaded when it is finished.
    """
    epochs = settings.fit.epochs
    order = Shuffled(len(rows), settings.fit.batch_size, epochs, settings.fit.seed)
    task = TransferTask(network, forward, rows, settings, prior, order=order, processes=run.processes, watch=watch)

    def agreement() -> float:
        # The first process judges alone: it may not ask the others for their share, as `evaluate` would.
        told = torch.stack([row.weak for row in held_out]).argmax(-1)
        found = predicted(network, forward, [row.input for row in held_out], settings.fit.micro_tokens or 16384)
        return float((found.argmax(-1) == told).double().mean())

    contest = Contest(lambda step: agreement(), epochs, "agreement") if held_out else None
    found = fit(task, rows, (), settings.fit, run, stage=task.name, order=order, contest=contest)
    if held_out:
        run.write_json("selection.json", {"agreement": [one.value for one in found.judged]})


def predicted(network: nn.Module, forward: Forward, inputs: Sequence[Any], tokens: int = 16384) -> Tensor:
    """Logits (N, K) in float32 on the CPU for the inputs in their order, at most `tokens` padded tokens at once."""
    rows = rows_of(inputs, torch.empty(len(inputs), 0))
    parts, places = [], []
    with evaluating(network):
        for part in cut(rows, tokens):
            parts.append(forward([row.input for row in part]).float().cpu())
            places += [row.place for row in part]
    return torch.cat(parts)[torch.tensor(places).argsort()]
