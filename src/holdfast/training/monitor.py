"""The collapse detector: families of signs, each compared with the start of the run, decide; the reward does not.

When PPO exploits its reward model, the reward only rises. What gives it away are length, the tail of the scores,
certainty, repetition and distance to the reference (Secrets of RLHF, arXiv 2307.04964, figures 4, 9 and 13). One family
may move in a healthy run; two at once have been a collapse.
"""

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from itertools import chain
from statistics import median
from typing import Any, Literal

from pydantic import Field, model_validator

from holdfast.config import Settings
from holdfast.errors import UserError
from holdfast.training.kl import KlController
from holdfast.training.signs import Seen, Thresholds, means, slope, value_losses

LEVELS = ("OK", "WATCH", "WARN", "COLLAPSE")
OK, WATCH, WARN, COLLAPSE = range(4)
COUNTED = ("length", "tail", "certainty", "repetition", "divergence")
"""Families of which two are a WARN; a poor critic or a limit out of reach is no collapse and at most a WATCH."""
FAMILIES = (*COUNTED, "critic", "constraint")

_READ = ("length", "truncated", "score/sd", "score/tail", "nll", "entropy", "distinct2", "repeat_run")
_READ += ("kl", "kl_se", "kl_token_k3")
_SLOPE_OVER = 5  # iterations behind a slope
_LOSSES, _FEWEST_LOSSES = 50, 5  # iterations behind a median
_HEALTHY_AFTER = 3  # iterations at OK in a row


class MonitorSettings(Settings):
    """What is watched, and what happens when it comes apart."""

    on_warn: Literal["log", "raise_kl", "rollback", "stop"] = "log"
    """At WARN or COLLAPSE: say so; double the weight of the KL, at most fourfold; go back to the last healthy snapshot
    and double it; or end the stage."""
    reward: str = "reward"
    """The mean score that is said to have risen meanwhile; it never decides."""
    judge_by: str | None = None
    """A logged number, larger being better, by which the best healthy snapshot is chosen: the truth or an independent
    judge, never the reward. Then every healthy iteration writes a snapshot. Null keeps no best."""
    keep_every: int = Field(5, ge=0)
    """Fewest iterations between two healthy snapshots (1 keeps every healthy one in turn); 0 keeps none."""
    max_rollbacks: int = Field(3, ge=0)
    """Times a run goes back; the next warning ends the stage."""
    smoothing: float = Field(0.7, gt=0, le=1)
    """Weight of the new value in the running mean that is judged."""
    patience: int = Field(2, ge=1)
    """Iterations in a row after which one family alone is a WATCH."""
    baseline: int = Field(3, ge=1)
    """Iterations judged first that are the start when no critic was pretrained."""
    thresholds: Thresholds = Thresholds()
    """Where each sign begins."""

    @model_validator(mode="after")
    def _consistent(self) -> "MonitorSettings":
        if self.judge_by is not None and (self.judge_by == self.reward or self.judge_by.startswith("score")):
            raise ValueError(
                f"judge_by {self.judge_by} is the reward, which a collapsing policy raises too; name the truth or an "
                "independent judge"
            )
        if (self.on_warn == "rollback" or self.judge_by is not None) and self.keep_every == 0:
            raise ValueError("rollback and judge_by need healthy snapshots and keep_every 0 keeps none; set keep_every")
        return self


@dataclass(frozen=True)
class Verdict:
    """What the monitor says of one iteration: the level, the families that are on, and what follows."""

    level: str
    families: tuple[str, ...]
    numbers: dict[str, float]
    action: str | None = None
    healthy: bool = False
    best: bool = False
    words: str = ""

    @property
    def aloud(self) -> bool:
        """One sign alone comes and goes in healthy runs too; it is for the report."""
        return LEVELS.index(self.level) >= WARN or self.action is not None


@dataclass
class _Memory:
    """What is smoothed, counted in a row or looked back at; a rollback begins it anew."""

    now: dict[str, float] = field(default_factory=dict)
    on: dict[str, int] = field(default_factory=dict)
    poor: dict[str, int] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    kl: list[float] = field(default_factory=list)
    level: int = OK
    calm: int = 0


class Monitor:
    """A guard of the online loop (`engine.guard.Guard`). kl: the controller whose weight it may raise.

    A number that is missing or not finite switches its sign off, so methods without a critic or a reference are watched
    by what they have. The state is part of every checkpoint; a rollback leaves it alone but for the smoothing.
    """

    MOST = 4.0  # the weight of the KL is never raised beyond this factor

    def __init__(self, settings: MonitorSettings, kl: KlController | None = None) -> None:
        if settings.on_warn == "raise_kl" and (kl is None or not kl.coef):
            raise UserError(
                "on_warn raise_kl multiplies the weight of the KL, which is 0; set kl.coef or another on_warn"
            )
        self.settings, self.kl = settings, kl
        self._start: list[dict[str, float]] = []
        self._wanted = settings.baseline
        self._factor, self._rollbacks = 1.0, 0
        self._best: dict[str, float] | None = None
        self._memory = _Memory()

    @property
    def keep_every(self) -> int:
        """Fewest iterations between two healthy snapshots; 0 keeps none."""
        return self.settings.keep_every

    @property
    def wants_best(self) -> bool:
        """Whether a judge chooses among all healthy iterations."""
        return self.settings.judge_by is not None

    @property
    def promising(self) -> bool:
        """Whether the next iteration is healthy if it is OK."""
        return self._memory.calm >= _HEALTHY_AFTER - 1

    def observe_baseline(self, numbers: Mapping[str, float]) -> None:
        """Take a row in which the policy was still the reference as part of the start."""
        self._wanted = 0
        self._start.append(self._read(numbers))

    def judge(self, iteration: int, numbers: Mapping[str, float]) -> Verdict:
        """The verdict on a row; the first rows are the start, and OK, where no baseline was observed.

        Raises `UserError` when the row lacks the number to judge by.
        """
        memory, wanted = self._memory, self.settings.judge_by
        signs: dict[str, list[str]] = {}
        if wanted is not None and wanted not in numbers:
            raise UserError(
                f"monitor.judge_by is {wanted}, which is not logged; there are {', '.join(sorted(numbers))}"
            )
        if self._wanted:
            self._wanted -= 1
            self._start.append(self._read(numbers))
        else:
            signs = self._signs(numbers)
        level = self._level(signs)
        memory.calm = memory.calm + 1 if level == OK else 0
        healthy = memory.calm >= _HEALTHY_AFTER
        best = healthy and self._is_best(iteration, numbers)
        rose, memory.level = level > memory.level, level
        action, deed = self._act(level)
        words = self._words(iteration, level, signs) + deed if rose or action or deed else ""
        told = {"alarm/level": float(level)} | {f"alarm/{name}": float(bool(signs.get(name))) for name in FAMILIES}
        families = tuple(name for name in FAMILIES if signs.get(name))
        return Verdict(LEVELS[level], families, told, action, healthy, best, words)

    def rolled_back(self) -> None:
        """Begin the smoothing anew and raise the weight of the KL, which went back with the rest."""
        self._rollbacks += 1
        self._memory = _Memory()
        self._raise_kl()

    def state_dict(self) -> dict[str, Any]:
        return {
            "start": self._start,
            "wanted": self._wanted,
            "factor": self._factor,
            "rollbacks": self._rollbacks,
            "best": self._best,
            "memory": asdict(self._memory),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._start, self._wanted, self._best = list(state["start"]), state["wanted"], state["best"]
        self._factor, self._rollbacks = state["factor"], state["rollbacks"]
        self._memory = _Memory(**deepcopy(state["memory"]))

    def _read(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """The finite numbers of a row that are compared with the start."""
        row = dict(numbers)
        if {"score/q95", "score/q50"} <= row.keys():
            row["score/tail"] = row["score/q95"] - row["score/q50"]
        return {name: row[name] for name in (*_READ, self.settings.reward) if math.isfinite(row.get(name, math.nan))}

    def _signs(self, numbers: Mapping[str, float]) -> dict[str, list[str]]:
        """Per family what speaks for it; every family that says something is on."""
        memory, start, row = self._memory, means(self._start), self._read(numbers)
        new, before = self.settings.smoothing, start | memory.now
        memory.now = {name: new * value + (1 - new) * before.get(name, value) for name, value in row.items()}
        seen = Seen(memory.now, start, self.settings.thresholds)
        signs = {
            "length": [*seen.length()],
            "tail": [*seen.tail()],
            "certainty": [*seen.certainty()],
            "repetition": [*seen.repetition()],
            "divergence": [*self._divergence(seen)],
            "critic": [*self._poor(numbers), *self._spikes(numbers)],
            "constraint": [*self._blocked(numbers)],
        }
        memory.on = {name: memory.on.get(name, 0) + 1 if found else 0 for name, found in signs.items()}
        return signs

    def _divergence(self, seen: Seen) -> Iterator[str]:
        """Level alone does not tell: a healthy run comes to rest far from the reference. So growth is asked for."""
        memory, now, t = self._memory, seen.now, self.settings.thresholds
        if "kl_token_k3" in now:
            memory.kl = [*memory.kl, now["kl_token_k3"]][-_SLOPE_OVER:]
            far = self.kl is not None and now["kl_token_k3"] > t.kl_times * self.kl.settings.target
            if far and len(memory.kl) == _SLOPE_OVER and slope(memory.kl) > 0:
                yield f"KL {now['kl_token_k3']:.2g} per token and growing"
        if {"kl", "kl_se"} <= now.keys() and now["kl"] < -t.kl_errors * now["kl_se"]:
            yield f"KL {now['kl']:.2g} below zero: answers are sampled otherwise than scored"

    def _poor(self, numbers: Mapping[str, float]) -> Iterator[str]:
        memory, t = self._memory, self.settings.thresholds
        for name, value in numbers.items():
            stream = name.removeprefix("explained_variance/")
            if stream == name or not math.isfinite(value):
                continue
            memory.poor[stream] = memory.poor.get(stream, 0) + 1 if value < t.explained_low else 0
            if memory.poor[stream] >= t.explained_for:
                yield f"the critic of {stream} explains {value:.2g} of the variance"

    def _spikes(self, numbers: Mapping[str, float]) -> Iterator[str]:
        for name in value_losses(numbers):
            before = self._memory.losses.get(name, [])
            if len(before) >= _FEWEST_LOSSES and numbers[name] > self.settings.thresholds.loss_spike * median(before):
                yield f"the loss {name} {numbers[name] / median(before):.2g}x its median"
            self._memory.losses[name] = [*before, numbers[name]][-_LOSSES:]

    def _blocked(self, numbers: Mapping[str, float]) -> Iterator[str]:
        """`at_ceiling/NAME` counts the iterations in which the limit was missed with the multiplier at its ceiling."""
        for name, count in numbers.items():
            constraint = name.removeprefix("at_ceiling/")
            if constraint != name and count >= self.settings.thresholds.ceiling_for:
                yield f"the limit on {constraint} missed for {count:.0f} iterations with its multiplier at the ceiling"

    def _level(self, signs: Mapping[str, list[str]]) -> int:
        counted = sum(bool(signs.get(name)) for name in COUNTED)
        t, cut = self.settings.thresholds, self._memory.now.get("truncated", 0.0)
        if counted >= t.collapse_families or cut > t.collapse_truncated:
            return COLLAPSE
        if counted > 1:
            return WARN
        return WATCH if max(self._memory.on.values(), default=0) >= self.settings.patience else OK

    def _act(self, level: int) -> tuple[str | None, str]:
        """What the loop is to do, and what was done here in words."""
        wish = self.settings.on_warn
        if level < WARN or wish == "log":
            return None, ""
        if wish == "raise_kl":
            raised = self._raise_kl()
            return None, f"; weight of the KL x{self._factor:g}" if raised else ""
        if wish == "rollback" and self._rollbacks >= self.settings.max_rollbacks:
            return "stop", f"; it went back {self._rollbacks} times before"
        return wish, ""

    def _raise_kl(self) -> bool:
        before, self._factor = self._factor, min(2 * self._factor, self.MOST)
        if self.kl is not None:
            self.kl.raise_to(self._factor)
        return self._factor > before

    def _is_best(self, iteration: int, numbers: Mapping[str, float]) -> bool:
        value = math.nan if self.settings.judge_by is None else numbers[self.settings.judge_by]
        if not math.isfinite(value) or (self._best is not None and value <= self._best["value"]):
            return False
        self._best = {"step": iteration - 1, "value": value}  # the policy judged is what the iteration before left
        return True

    def _words(self, iteration: int, level: int, signs: Mapping[str, list[str]]) -> str:
        reward, now, start = self.settings.reward, self._memory.now, means(self._start)
        rose = any(signs.get(name) for name in COUNTED) and now.get(reward, 0.0) > start.get(reward, math.inf)
        hint = "; the reward rose meanwhile: likely reward hacking" if rose else ""
        return f"{LEVELS[level]} at iteration {iteration}: {', '.join(chain(*signs.values()))}{hint}"
