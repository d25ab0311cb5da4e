"""From the score of an answer to what it is paid: brought to a scale of its own, then clipped (PPO-max).

r~ = clip((r - mu) / sigma, -delta, +delta) (arXiv 2307.04964, eq. 18), with running mu and sigma of the raw scores,
before any KL is added. Whatever meets the score later, such as the weight of the KL, the value clip or a penalty, is
in units of the transformed score.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor

from holdfast.config import Settings
from holdfast.errors import RunError, UserError
from holdfast.losses.moments import Moments
from holdfast.losses.reduce import precise, same_shape
from holdfast.preference.aggregate import rows_of


class ScoreSettings(Settings):
    """What happens to the score before the policy is paid."""

    transform: Literal["none", "scale", "norm"] = "none"
    """`scale` divides by the running spread and keeps the zero; `norm` subtracts the running mean first."""
    clip: float | None = Field(None, gt=0)
    """Delta: transformed scores are clipped to plus and minus this. At 0.8 about 42 % of normal scores are."""
    stats: Literal["cumulative", "ema", "fixed"] = "cumulative"
    """Moments of all scores ever seen (as published), of recent ones, or those given as `mean` and `sd`. As the reward
    rises, cumulative moments let the score run into the clip, which brakes; recent ones follow it and do not."""
    keep: float = Field(0.9, gt=0, le=1)
    """For `ema`: how much of the history survives each iteration."""
    mean: float | None = None
    """For `fixed`: mean of the raw score."""
    sd: float | None = Field(None, gt=0)
    """For `fixed`: standard deviation of the raw score."""
    per_source: bool = False
    """Moments for each source of prompts by itself, so that sources of unequal scale are paid alike."""
    exclude_truncated: bool = True
    """Leave truncated answers, whose scores say little, out of the moments; they are transformed all the same."""

    @model_validator(mode="after")
    def _consistent(self) -> "ScoreSettings":
        given = [name for name in ("mean", "sd") if getattr(self, name) is not None]
        if self.stats == "fixed" and len(given) < 2:
            raise ValueError(f"stats=fixed needs mean and sd of the raw score, given: {', '.join(given) or 'neither'}")
        if self.stats != "fixed" and given:
            raise ValueError(f"{' and '.join(given)} given while stats={self.stats} finds its own; set stats=fixed")
        if self.stats == "fixed" and self.per_source:
            raise ValueError("stats=fixed has one mean and sd for all sources; set per_source=false or another stats")
        return self


class ScoreTransform:
    """Raw scores on the scale that the policy is paid in. An iteration is observed first, then transformed.

    >>> import torch
    >>> transform = ScoreTransform(ScoreSettings(transform="norm", clip=0.8))
    >>> scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
    >>> transform.observe(scores, truncated=torch.zeros(4, dtype=torch.bool))
    >>> transform(scores)
    tensor([-0.8000, -0.3873,  0.3873,  0.8000])
    """

    def __init__(self, settings: ScoreSettings) -> None:
        self.settings = settings
        self._moments: dict[str, Moments] = {}
        self._clipped = 0.0

    def observe(self, scores: Tensor, truncated: Tensor, sources: Sequence[str] = ()) -> None:
        """Add the raw scores (N,) of all processes to the moments; truncated: (N,) bool; sources: (N) names.

        Raises `RunError` for scores that are not finite and `UserError` for prompts without a source when moments
        are `per_source`.
        """
        same_shape(scores=scores, truncated=truncated)
        keep = self.settings.keep if self.settings.stats == "ema" else 1.0
        counted = ~truncated if self.settings.exclude_truncated else truncated.new_ones(truncated.shape)
        for name, rows in self._rows(scores, sources).items():
            self._moments.setdefault(name, Moments()).add(scores[rows][counted[rows]], keep)

    def __call__(self, scores: Tensor, sources: Sequence[str] = ()) -> Tensor:
        """(N,) transformed and clipped scores.

        While fewer than two scores were seen, or only equal ones, there is no spread: `norm` gives zero, `scale` the
        score itself. Raises as `observe` does.
        """
        result = scores.double().clone()
        for name, rows in self._rows(scores, sources).items():
            result[rows] = self._rescaled(result[rows], *self._scale(name))
        delta = self.settings.clip
        bounded = result if delta is None else result.clamp(-delta, delta)
        self._clipped = float((bounded != result).sum()) / max(len(scores), 1)
        return bounded.to(precise(scores).dtype)

    def numbers(self) -> dict[str, float]:
        """Running mean and standard deviation (by source if they are), and the share that the last call clipped."""
        numbers = {"score_clipped": self._clipped}
        for name in [name for name, moments in self._moments.items() if moments.seen]:
            member = f"/{name}" if name else ""
            mean, sd = self._scale(name)
            numbers |= {f"score_running_mean{member}": mean, f"score_running_sd{member}": sd}
        return numbers

    def state_dict(self) -> dict[str, Any]:
        return {name: asdict(moments) for name, moments in self._moments.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._moments = {name: Moments(**moments) for name, moments in state.items()}

    def _rows(self, scores: Tensor, sources: Sequence[str]) -> dict[str, list[int]]:
        """The rows of each source, all under one name when sources are not told apart."""
        if broken := int((~scores.isfinite()).sum()):
            raise RunError(
                f"{broken} of {len(scores)} scores are not finite numbers, so nobody can be paid; check the score "
                "model and its precision (bfloat16 or float32 rather than float16)"
            )
        if not self.settings.per_source:
            return {"": list(range(len(scores)))}
        if sources and len(sources) != len(scores):
            raise ValueError(f"{len(sources)} sources for {len(scores)} scores; give one for each, or none")
        if unnamed := len(scores) - sum(map(bool, sources)):
            raise UserError(
                f"score.per_source tells sources apart, and {unnamed} of {len(scores)} answers belong to prompts "
                "without one; give every prompt a `source`, or set score.per_source=false"
            )
        return rows_of(sources)

    def _scale(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation in force for a source; a deviation of zero when there is none."""
        if self.settings.mean is not None and self.settings.sd is not None:
            return self.settings.mean, self.settings.sd
        moments = self._moments.get(name, Moments())
        return moments.mean, moments.sample_std

    def _rescaled(self, scores: Tensor, mean: float, sd: float) -> Tensor:
        if self.settings.transform == "none":
            return scores
        if self.settings.transform == "scale":
            return scores / (sd or 1.0)
        return (scores - mean) / sd if sd else scores.new_zeros(scores.shape)
