"""Who learns what in the weak-to-strong pipeline, and what comes of one seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from torch import Tensor

from holdfast.evaluate.vault import Vault
from holdfast.preference.weak_labels import Method, WeakLabels
from holdfast.training.learners import Learner, Predictor
from holdfast.training.transfer import TransferSettings


@dataclass(frozen=True)
class Pool:
    """Items of one split, with their ids."""

    ids: tuple[str, ...] = ()
    items: Sequence[Any] = ()

    def take(self, places: Sequence[int]) -> "Pool":
        """The items at these places."""
        return Pool(tuple(self.ids[i] for i in places), [self.items[i] for i in places])


@dataclass(frozen=True)
class Pools:
    """What a seed learns from and is judged on; no group stands in two of them.

    fresh: what each intermediate learner learns from. audit: a few items on whose gold labels an intermediate learner
    must not fall below its own supervisor.
    """

    weak_train: Pool
    transfer: Pool
    validation: Pool
    test: Pool
    fresh: tuple[Pool, ...] = ()
    audit: Pool = Pool()

    def named(self) -> dict[str, Pool]:
        """All pools by name, without the empty ones."""
        fresh = {f"fresh {i}": pool for i, pool in enumerate(self.fresh, start=1)}
        single = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "fresh"}
        return {name: pool for name, pool in (single | fresh).items() if pool.ids}


@dataclass(frozen=True)
class Plan:
    """Who learns what.

    pools: those of a seed; the test items are the same for all seeds. supervised, ceiling: how the models on gold
    labels learn; students: how each student does, by the name of its loss, the naive one being `soft`. select: choose
    each student's epoch by its agreement with the weak labels of `validation` (the ceiling's by gold ones). calibrate:
    share of the groups of `weak_train` that choose the supervisor's epoch and temperature instead of teaching it.
    cross_fit: with two folds or more the items of `weak_train` are labelled too, each by a supervisor that did not see
    its group, and students and ceiling learn them. intermediate: learners between supervisor and student, with their
    settings. unsafe: a class whose recall counts.
    facts: said in the report as they are. keep: saves the first seed's supervisor and students for others to use.
    """

    pools: Callable[[int], Pools]
    vault: Vault
    supervisor: Learner
    student: Learner
    supervised: TransferSettings
    ceiling: TransferSettings
    students: Mapping[str, TransferSettings]
    seeds: tuple[int, ...] = (0,)
    select: bool = True
    calibrate: float = 0.0
    calibration: Method = "temperature"
    cross_fit: int = 0
    intermediate: tuple[tuple[Learner, TransferSettings], ...] = ()
    unsafe: int | None = None
    data_sha256: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    keep: Callable[[str, Learner, Predictor], object] = lambda name, learner, found: None


class Curve(NamedTuple):
    """Answers (E, N) to the test items after every epoch, and its agreement with held-out weak labels, if looked at."""

    answers: Tensor
    agreed: list[float]


@dataclass(frozen=True)
class Outcome:
    """What the models of one seed say of the test items, as probabilities (N, K).

    ended: why bootstrapping went no further; empty when it did.
    """

    weak: Tensor
    ceiling: Tensor
    students: dict[str, Tensor]
    curves: dict[str, Curve | None]
    labels: WeakLabels
    ended: str = ""
