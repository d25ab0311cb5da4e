"""One optimiser step whose gradient does not depend on how the batch was cut.

The items of every loss term are counted over all micro-batches of all processes before the first backward
pass; each micro-batch then contributes its sums over those counts, and gradients are added, never averaged.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from holdfast.config import Settings
from holdfast.engine.distributed import Processes
from holdfast.errors import RunError
from holdfast.losses.reduce import Sum, objective

Batch = TypeVar("Batch")


class OptimiserSettings(Settings):
    """AdamW and its schedule."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Highest rate, reached after the warm-up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay of matrices; biases and norms never decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the running mean and of the running square of the gradient."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the running square."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Longer gradients are scaled down to this global norm."""
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "cosine"
    """How the rate falls after the warm-up: not at all, along a line, along half a cosine, or as one over the
    root of the step, which knows no last step."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of all steps in which the rate rises to its highest."""


def rate(settings: OptimiserSettings, position: int, total: int) -> float:
    """The learning rate of step `position` (from 0) of `total`; no step has rate zero.

    >>> line = OptimiserSettings(learning_rate=1.0, schedule="linear", warmup_ratio=0.5)
    >>> [rate(line, position, 4) for position in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup = math.ceil(settings.warmup_ratio * total)
    if settings.schedule == "inverse_sqrt":
        return settings.learning_rate * _inverse_sqrt(position, warmup)
    if position < warmup:
        return settings.learning_rate * (position + 1) / warmup
    progress = min((position - warmup) / max(total - warmup, 1), 1.0)
    falls = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}
    return settings.learning_rate * falls[settings.schedule]


def _inverse_sqrt(position: int, warmup: int) -> float:
    """The schedule that PPO-max was released with (arXiv 2307.04964): its warm-up begins at a tenth."""
    if position < warmup:
        return max(position / warmup, 0.1)
    highest = max(warmup, 1)
    return math.sqrt(highest / max(position, highest))


def means(sums: Iterable[Mapping[str, Sum]], processes: Processes) -> dict[str, float]:
    """The mean of every term over all its items in all batches of all processes."""
    own = list(sums)
    totals = processes.add_up({name: float(term.total) for name, term in one.items()} for one in own)
    counts = processes.add_up({name: float(term.count) for name, term in one.items()} for one in own)
    # In float64: these are sums over a whole data set.
    number = torch.float64
    return {
        name: Sum(torch.tensor(totals[name], dtype=number), torch.tensor(counts[name], dtype=number)).mean.item()
        for name in totals
    }


def column_means(columns: Mapping[str, Tensor], processes: Processes) -> dict[str, float]:
    """The mean of each column (N,) over all processes, not-a-number left out; none of a column that knows nothing.

    >>> column_means({"a": torch.tensor([1.0, torch.nan, 4.0]), "b": torch.tensor([torch.nan])}, Processes())
    {'a': 2.5}
    """
    known = {name: values[~values.isnan()].double() for name, values in columns.items()}
    totals = processes.add_up([{name: float(values.sum()) for name, values in known.items()}])
    counts = processes.add_up([{name: float(values.numel()) for name, values in known.items()}])
    return {name: totals[name] / counts[name] for name in columns if counts[name]}


class Step:
    """One AdamW over the trainable parameters of `module`, stepped `total_steps` times.

    stage: named in errors. Every process begins with the parameters of the first.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: OptimiserSettings,
        total_steps: int,
        processes: Processes | None = None,
        *,
        stage: str = "training",
    ) -> None:
        self.settings, self.total_steps, self.stage = settings, total_steps, stage
        self.processes = processes or Processes()
        self.done = 0
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        if not named:
            raise RunError(f"{stage}: nothing to train, every parameter of {type(module).__name__} is frozen")
        self.parameters = [p for _, p in named]
        self.processes.spread(self.parameters)
        groups = [
            {"params": [p for p in self.parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
            # Biases and norm scales are vectors.
            {"params": [p for p in self.parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        # Fused: one pass over the weights instead of ten, which a small model's step on a CPU feels.
        self.optimiser = torch.optim.AdamW(
            groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, fused=True
        )

    def step(
        self,
        micro_batches: Sequence[Batch],
        loss: Callable[[Batch], Mapping[str, Sum]],
        counts: Callable[[Batch], Mapping[str, float]],
        weights: Mapping[str, float],
        position: int | None = None,
        *,
        apart: str | None = None,
    ) -> dict[str, float]:
        """Learn from the micro-batches of all processes at once; return the mean of each term, grad_norm and
        lr.

        counts: the items of each loss term in a micro-batch, announced before the loss is computed. A process
        may bring any number of micro-batches, also none. position: where the schedule stands, the number of
        steps done when not given. When no term counts anything, nothing is learned and `empty` is 1.

        apart: a loss term whose weighted gradient is measured against that of all others. `grad_ratio/APART`
        is the quotient of their norms, left out where the others have no gradient. Its micro-batches hold no
        other term and come first; the gradients are then added and one optimiser step is made on the sum.

        Raises `RunError` and leaves the weights alone when the loss or the gradient is not finite, or when a
        term covers another number of items than announced.
        """
        lr = rate(self.settings, self.done if position is None else position, self.total_steps)
        announced = [dict(counts(batch)) for batch in micro_batches]
        total = self.processes.add_up(announced)
        if not any(total.values()):
            self.done += 1
            return {"empty": 1.0, "lr": lr}
        self.optimiser.zero_grad()  # another part's loss may have reached these parameters
        micro_batches, announced, alone = self._apart_first(micro_batches, announced, apart)
        terms = [self._backward(batch, loss, total, weights) for batch in micro_batches[:alone]]
        aside = self._set_aside() if apart is not None else []
        terms += [self._backward(batch, loss, total, weights) for batch in micro_batches[alone:]]
        self._check(micro_batches, terms, announced)
        numbers = means(terms, self.processes)
        self._refuse_non_finite(numbers, micro_batches, terms)
        self.processes.sum_gradients(self.parameters)
        if apart is not None:
            numbers |= self._add_back(apart, aside)
        numbers["grad_norm"] = self._clip()
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.done += 1
        return {**numbers, "lr": lr}

    def state_dict(self) -> dict[str, Any]:
        """What must be kept so that the next step is the one that would have followed."""
        return {"optimiser": self.optimiser.state_dict(), "done": self.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state that `state_dict` gave."""
        self.optimiser.load_state_dict(state["optimiser"])
        self.done = state["done"]

    def _backward(
        self,
        batch: Batch,
        loss: Callable[[Batch], Mapping[str, Sum]],
        total: Mapping[str, float],
        weights: Mapping[str, float],
    ) -> dict[str, Sum]:
        terms = loss(batch)
        missing = sorted(terms.keys() - total.keys())
        if missing:
            raise self._error(f"the loss terms {missing} were not announced by counts()")
        value = objective(terms, total, weights) if terms else None
        # A micro-batch in which nothing counts may be a constant.
        if value is not None and value.requires_grad:
            value.backward()
        return {name: Sum(term.total.detach(), term.count) for name, term in terms.items()}

    def _apart_first(
        self, batches: Sequence[Batch], announced: Sequence[dict[str, float]], apart: str | None
    ) -> tuple[list[Batch], list[dict[str, float]], int]:
        """The micro-batches and their counts, those of the term `apart` before the others, and how many it has."""
        order = sorted(range(len(batches)), key=lambda place: apart not in announced[place])
        alone = sum(apart in names for names in announced)
        for place in order[:alone]:
            if others := sorted(announced[place].keys() - {apart}):
                raise self._error(
                    f"a micro-batch of {apart!r}, whose gradient is measured apart, also holds {others}"
                    f"{_rows(batches[place])}"
                )
        return [batches[place] for place in order], [announced[place] for place in order], alone

    def _set_aside(self) -> list[Tensor | None]:
        """The gradients so far, summed over the processes; the next backward pass begins at none."""
        self.processes.sum_gradients(self.parameters)
        aside = [p.grad for p in self.parameters]
        self.optimiser.zero_grad()
        return aside

    def _add_back(self, apart: str, aside: Sequence[Tensor | None]) -> dict[str, float]:
        """Add what was set aside to the gradients; the quotient of the two norms before that."""
        own = get_total_norm([gradient for gradient in aside if gradient is not None])
        rest = get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        for p, gradient in zip(self.parameters, aside):
            if gradient is not None:
                p.grad = gradient if p.grad is None else p.grad.add_(gradient)
        return {f"grad_ratio/{apart}": float(own / rest)} if rest > 0 else {}

    def _check(
        self,
        batches: Sequence[Batch],
        terms: Sequence[Mapping[str, Sum]],
        announced: Sequence[Mapping[str, float]],
    ) -> None:
        for batch, found, expected in zip(batches, terms, announced):
            for name in sorted(found.keys() | expected.keys()):
                count = float(found[name].count) if name in found else 0.0
                if count != float(expected.get(name, 0.0)):
                    raise self._error(
                        f"the loss term {name!r} covers {count:g} items where counts() announced "
                        f"{float(expected.get(name, 0.0)):g}{_rows(batch)}"
                    )

    def _refuse_non_finite(
        self, numbers: Mapping[str, float], batches: Sequence[Batch], terms: Sequence[Mapping[str, Sum]]
    ) -> None:
        for name, value in numbers.items():
            if not math.isfinite(value):
                bad = [b for b, t in zip(batches, terms) if name in t and not torch.isfinite(t[name].total)]
                where = "".join(_rows(batch) for batch in bad) or " on another process"
                raise self._error(f"the loss term {name!r} is {value}{where}")

    def _clip(self) -> float:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not gradients:
            raise self._error("the loss reaches no trainable parameter")
        norm = get_total_norm(gradients)
        if not torch.isfinite(norm):
            raise self._error(f"the gradient norm is {float(norm)} although the loss is finite")
        clip_grads_with_norm_(self.parameters, self.settings.max_grad_norm, norm)
        return float(norm)

    def _error(self, problem: str) -> RunError:
        self.optimiser.zero_grad()
        return RunError(
            f"{self.stage}, step {self.done + 1}: {problem}; the weights are those of step {self.done}. "
            "Look at those rows, or lower the learning rate"
        )


def _rows(batch: Any) -> str:
    ids = getattr(batch, "ids", None)
    return f" (rows {', '.join(map(str, ids))})" if ids else ""
