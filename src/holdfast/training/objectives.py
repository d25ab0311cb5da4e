"""Several objectives, one advantage: which scores are maximised, what each weighs, and how they are brought together.

The formulas stand in `losses/scalarise.py`. Here are their settings, the scores they are applied to, and the numbers
that say what the policy was really paid for.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from holdfast.config import Settings
from holdfast.engine.distributed import Processes
from holdfast.engine.step import column_means
from holdfast.errors import RunError, UserError
from holdfast.losses import scalarise
from holdfast.rollout.experience import Experience

# Modes that divide by what each objective varies, before the sum.
_EACH_ALONE = ("normalise_then_sum", "variance_weighted", "mgda")


class ObjectiveSettings(Settings):
    """One score that the policy is paid for."""

    score: str = ""
    """The column of the scorer; empty: that of the objective's own name."""
    weight: float = Field(1.0, ge=0)
    """Its weight among the objectives; 0 only watches it."""
    direction: Literal["higher", "lower"] = "higher"
    """Whether a higher or a lower score is better."""
    std_floor: float | None = Field(None, ge=0)
    """Its own standard deviation below which a group's differences are noise, such as the scorer's error on held-out
    data; null takes the common one."""
    when: dict[str, float] = {}
    """It counts only where these other objectives reach these values, on the scale of their scores; elsewhere it is 0,
    or the lowest of the group if that is less."""
    enough: float | None = None
    """With `lexicographic`: more than this is not paid, and only from here on do the objectives behind it count."""


class ScalariserSettings(Settings):
    """How the rewards of the objectives become one advantage."""

    mode: Literal[
        "sum_then_normalise",
        "normalise_then_sum",
        "variance_weighted",
        "center",
        "batch",
        "leave_one_out",
        "max_rl",
        "mgda",
    ] = "sum_then_normalise"
    """What the group's differences are divided by: the spread of the weighted sum, of each objective (GDPO), the
    weighted sum of spreads (DVAO), nothing (Dr.GRPO), the spread over the batch, nothing with a leave-one-out baseline
    (RLOO), the mean (MaxRL); `mgda` is that of each objective, its weights those of the shortest common gradient."""
    std_floor: float = Field(0.05, ge=0)
    """Differences within a group are divided by no less than this: below it they are taken for the scorer's noise."""
    eps: float = Field(1e-4, gt=0)
    """Added to whatever is divided by."""
    batch_normalise: bool = False
    """Bring the advantages of all groups that have some to a standard deviation of 1; where every group lies below its
    floor, that makes noise large again."""
    clip: float | None = Field(5.0, gt=0)
    """Advantages are clipped to plus and minus this."""
    conflict: Literal["none", "signs", "threshold"] = "none"
    """Learn nothing from answers on which the objectives disagree: in sign, or below `conflict_threshold` (GD2PO)."""
    conflict_threshold: float = Field(0.8, gt=0, le=1)
    """Least |sum of advantages| / sum of |advantages| of an answer that is learned from."""
    lexicographic: bool = False
    """The order of the objectives is their rank: each counts only where all before it have `enough`."""
    dead_below: float = Field(1e-6, ge=0)
    """A group is dead when no objective's standard deviation reaches this: nothing can be learned from it."""


class Advantages(NamedTuple):
    """values: (N,) advantages, zero where nothing is learned; keep: (N,) whether to learn from the row at all.

    dead: (N,) rows that were scored like all others of their group, so that there is nothing to learn from them.

    numbers, for the log: by objective its mean score `objective/NAME` on the scorer's scale, the mean standard
    deviation `objective_sd/NAME` of a group, the `effective_weight/NAME` by which its standardised differences enter
    groups that are alive, the shares `dead/NAME` of groups and `unscored/NAME` of answers; the shares `dead` of groups
    and `conflicts` of answers, and `advantage_abs`, the mean size of what is learned. What nobody scored is left out.
    """

    values: Tensor
    keep: Tensor
    dead: Tensor
    numbers: dict[str, float]


def check_objectives(objectives: Mapping[str, ObjectiveSettings], settings: ScalariserSettings) -> None:
    """None, or `ValueError` that says which settings of the objectives do not go together.

    >>> check_objectives({"reward": ObjectiveSettings(when={"safety": 0.5})}, ScalariserSettings())
    Traceback (most recent call last):
    ValueError: objective reward counts when safety reaches 0.5, and there is no other objective safety; ...
    """
    names = tuple(objectives)
    if not names:
        raise ValueError("there is no objective; give at least one, such as objectives: {reward: {}}")
    if not any(one.weight for one in objectives.values()):
        raise ValueError(f"all weights are zero ({', '.join(names)}); give one objective a weight above zero")
    for name, one in objectives.items():
        for other, value in one.when.items():
            if other == name or other not in objectives:
                raise ValueError(
                    f"objective {name} counts when {other} reaches {value:g}, and there is no other objective {other}; "
                    f"the objectives are {', '.join(names)}"
                )
    given = [name for name, one in objectives.items() if one.enough is not None]
    if given and not settings.lexicographic:
        raise ValueError(f"enough is set for {', '.join(given)} but serves a lexicographic order; set lexicographic")
    if settings.lexicographic and (lacking := [name for name in names[:-1] if name not in given]):
        raise ValueError(
            f"a lexicographic order needs enough for all objectives but the last; set {', '.join(lacking)}"
        )


class Scalariser:
    """One advantage for each answer from its rewards under several objectives."""

    def __init__(
        self,
        objectives: Mapping[str, ObjectiveSettings],
        settings: ScalariserSettings,
        processes: Processes | None = None,
    ) -> None:
        try:
            check_objectives(objectives, settings)
        except ValueError as error:
            raise UserError(str(error)) from error
        self.objectives, self.settings, self.processes = dict(objectives), settings, processes or Processes()
        self.names, every = tuple(objectives), list(objectives.values())
        self.weights = _row(one.weight for one in every)
        self._floors = _row(settings.std_floor if one.std_floor is None else one.std_floor for one in every)
        self._signs = _row(1 if one.direction == "higher" else -1 for one in every)
        self._enough = _row(
            torch.inf if one.enough is None else sign * one.enough for one, sign in zip(every, self._signs.tolist())
        )
        self._needs = self._thresholds()
        self._main = next(k for k, one in enumerate(every) if one.weight)
        # By signs, nothing may be taken off; rounding does not count.
        self._least_agreement = settings.conflict_threshold if settings.conflict == "threshold" else 1 - 1e-9

    def _thresholds(self) -> Tensor:
        """(K, K) what objective k needs of objective l, both turned so that more is better; minus infinity: nothing."""
        size = len(self.names)
        needs = torch.full((size, size), -torch.inf, dtype=torch.float64)
        if self.settings.lexicographic:
            needs = self._enough.expand(size, size).where(torch.ones(size, size).tril(-1) > 0, needs)
        for k, one in enumerate(self.objectives.values()):
            for other, value in one.when.items():
                place = self.names.index(other)
                needs[k, place] = torch.maximum(needs[k, place], self._signs[place] * value)
        return needs

    @property
    def floor(self) -> float:
        """The least spread by which the weighted sum is divided: that of objectives that vary together."""
        return float((self.weights * self._floors).sum())

    def rewards(self, experience: Experience) -> Tensor:
        """(N, K) the objectives' scores, turned so that more is better; NaN where an answer was not scored.

        Raises `UserError` for a score that the scorer does not give and `RunError` for infinite ones.
        """
        return self._table(experience.scores)

    def _table(self, scores: Mapping[str, Tensor]) -> Tensor:
        columns = []
        for name, one in self.objectives.items():
            score = one.score or name
            if score not in scores:
                raise UserError(
                    f"objective {name} maximises the score {score!r}, and the scorer gives "
                    f"{', '.join(scores) or 'none'}; correct the name, or add what gives that score"
                )
            if scores[score].isinf().any():
                raise RunError(f"objective {name}: {int(scores[score].isinf().sum())} scores are infinite")
            columns.append(scores[score])
        return torch.stack([sign * column for sign, column in zip(self._signs, columns)], dim=-1)

    def total(self, scores: Mapping[str, Tensor]) -> Tensor:
        """(N,) the weighted sum of each answer's raw scores, turned so that more is better; for logs alone.

        What an answer was not scored for is left out; without any score it is not-a-number. `UserError` for a score
        that is not there.
        """
        table = self._table(scores)
        known = ~table.isnan() & (self.weights > 0)
        summed = (self.weights * table.double()).where(known, 0.0).sum(-1)
        return summed.where(known.any(-1), torch.nan).to(table)

    def per_objective(self, rewards: Tensor, per_prompt: int) -> Tensor:
        """(N, K) the standardised advantage of each objective alone, zero where it has nothing to compare."""
        groups = scalarise.moments(self._counted(_grouped(rewards, per_prompt)))
        return self._alone(groups).flatten(0, 1).to(rewards)

    def __call__(
        self,
        rewards: Tensor,
        per_prompt: int,
        extra: Tensor | None = None,
        live: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Advantages:
        """One advantage for each of N rewarded answers, the `per_prompt` answers to a prompt standing together.

        rewards: (N, K) as `rewards` gives them; extra: (N,) a further reward of weight 1 that is no objective, such as
        the KL penalty; live: (P,) groups to learn from even if no reward differs there; weights: (K,) in place of the
        settings'. A row is learned from if an objective of positive weight compares it with others, its group is alive
        and, where conflicts are filtered, its objectives agree. Every process calls this together. Raises `UserError`
        for groups of one, and for negative rewards under `max_rl`.

        Where each objective is normalised alone, the first of positive weight takes `extra` along, divided by that
        weight, and under `mgda` every objective; an answer that it did not score goes without.
        """
        s, raw = self.settings, _grouped(rewards, per_prompt)
        if s.mode == "max_rl":
            self._refuse_negative(raw)
        table = self._counted(raw)
        groups = scalarise.moments(table)
        scored = (groups.compared & (self.weights > 0)).any(-1)
        still = groups.sd[:, 0] < s.dead_below
        alive = (~still & (self.weights > 0)).any(-1)
        chosen = self.weights if weights is None else weights.to(self.weights)
        paid, *scale = self._penalised(table, scored, extra, chosen)
        coefficients = self._coefficients(scored & alive[:, None], paid, *scale)
        apart = scored & (scalarise.agreement(chosen * self._alone(groups)) < self._least_agreement)
        heeded = (alive if live is None else alive | live)[:, None]
        keep, dead = scored & heeded, scored & ~heeded
        keep = keep if s.conflict == "none" else keep & ~apart
        # Rows are left out last: to centre the others anew would turn signs.
        values = scalarise.combined(paid, coefficients).where(keep, 0.0)
        values = values if s.clip is None else values.clamp(-s.clip, s.clip)
        heard = scalarise.effective_weights(paid, coefficients)[alive, : len(self.names)]
        columns = self._by_name(raw, groups, heard, still) | {
            "dead": ~alive,
            "conflicts": apart[scored],
            "advantage_abs": values[keep].abs(),
        }
        told = column_means(columns, self.processes)
        return Advantages(values.flatten().to(rewards), keep.flatten(), dead.flatten(), told)

    def _refuse_negative(self, raw: Tensor) -> None:
        lowest = dict(zip(self.names, raw.where(self.weights > 0, 0.0).nan_to_num().flatten(0, 1).amin(0).tolist()))
        if negative := [f"{name} ({value:.3g})" for name, value in lowest.items() if value < 0]:
            raise UserError(
                f"max_rl divides by the mean reward, and there are negative rewards of {', '.join(negative)}; maximise "
                "scores that are never negative, or choose another mode"
            )

    def _counted(self, raw: Tensor) -> Tensor:
        """(P, G, K) what counts of raw rewards, in double precision: where conditions hold, and no more than enough."""
        # Thresholds in the precision of the scores: 0.7 reaches 0.7.
        return torch.minimum(scalarise.conditioned(raw, self._needs.to(raw)), self._enough.to(raw)).double()

    def _alone(self, groups: scalarise.GroupMoments) -> Tensor:
        return scalarise.standardised(groups, self._floors, self.settings.eps)

    def _penalised(
        self, table: Tensor, scored: Tensor, extra: Tensor | None, weights: Tensor
    ) -> tuple[scalarise.GroupMoments, Tensor, Tensor]:
        """Rewards with the penalty in them, or beside them as a column more; their weights, and their floors."""
        if extra is None:
            return scalarise.moments(table), weights, self._floors
        if not extra.isfinite().all():
            raise RunError(f"{int((~extra.isfinite()).sum())} answers have a penalty that is not finite")
        penalty = extra.to(table).view_as(scored)
        if self.settings.mode in _EACH_ALONE:
            within = torch.zeros_like(table)
            within[..., self._main] = penalty / self.weights[self._main]
            if self.settings.mode == "mgda":
                # Any of its weights may be zero, and their sum is one: all objectives take the penalty along.
                within = penalty[..., None].expand_as(table)
            return scalarise.moments(table + within), weights, self._floors
        beside = scalarise.moments(penalty.where(scored, torch.nan)[..., None])
        # It is no reward whose mean `max_rl` should divide by, nor is there noise in it that a floor should cover.
        beside = beside._replace(mean=torch.zeros_like(beside.mean))
        joined = scalarise.GroupMoments(*(torch.cat(pair, -1) for pair in zip(scalarise.moments(table), beside)))
        return joined, torch.cat([weights, _row([1])]), torch.cat([self._floors, _row([0])])

    def _coefficients(self, counted: Tensor, paid: scalarise.GroupMoments, weights: Tensor, floors: Tensor) -> Tensor:
        """The mode's coefficients, brought to one scale over the `counted` rows of all processes if that is asked."""
        s = self.settings
        found = scalarise.MODES[s.mode](paid, weights, floors, s.eps)
        if not s.batch_normalise and s.mode != "batch":
            return found
        among = self.processes.gather(scalarise.combined(paid, found)[counted].tolist())
        floor = float((weights * floors).sum()) if s.mode == "batch" else 0.0
        return scalarise.rescaled(found, torch.tensor(among, dtype=torch.float64), floor, s.eps)

    def _by_name(self, raw: Tensor, groups: scalarise.GroupMoments, heard: Tensor, still: Tensor) -> dict[str, Tensor]:
        """The columns whose means are the numbers of each objective."""
        columns: dict[str, Tensor] = {}
        for k, name in enumerate(self.names):
            scores, compared = raw[..., k], groups.count[:, 0, k] > 1
            columns |= {
                f"objective/{name}": self._signs[k] * scores,
                f"objective_sd/{name}": groups.sd[compared, 0, k],
                f"effective_weight/{name}": heard[:, k],
                f"dead/{name}": still[:, k],
                f"unscored/{name}": scores.isnan(),
            }
        return columns

    def state_dict(self) -> dict[str, Any]:
        return {"weights": dict(zip(self.names, self.weights.tolist()))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """None; raises `UserError` when the state is that of other objectives or of other weights."""
        own = self.state_dict()["weights"]
        if state["weights"] != own:
            raise UserError(
                f"the checkpoint was made with the objectives and weights {state['weights']}, and these are {own}; "
                "go on with the objectives it was made with, or start a new run"
            )


def _row(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def _grouped(rewards: Tensor, per_prompt: int) -> Tensor:
    """(P, G, K) of rewards (N, K)."""
    if per_prompt < 2:
        raise UserError(
            "objectives compare the answers to one prompt with each other, and samples_per_prompt is "
            f"{per_prompt}; set it to 2 or more"
        )
    assert len(rewards) % per_prompt == 0, f"{len(rewards)} answers are no whole groups of {per_prompt}"
    return rewards.reshape(len(rewards) // per_prompt, per_prompt, rewards.shape[1])
