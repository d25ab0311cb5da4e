"""The weight of the KL to the reference: fixed, or steered towards a distance.

All distances here are in nats per token, and the weight is in units of the score that it meets, after its
transformation: 0.05 holds a normalised score and not a raw one ten times as large.
"""

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from holdfast.config import Settings
from holdfast.errors import RunError, UserError


class KlSettings(Settings):
    """How strongly the policy is held to the reference. A plain number means `coef`."""

    coef: float = Field(0.02, ge=0)
    """Weight of the k1 penalty in the rewards of tokens, in units of the transformed score per nat."""
    mode: Literal["split", "reward_only"] = "split"
    """`split` adds the penalty to every cost too, so that its weight in the mixture does not depend on lambda."""
    control: Literal["fixed", "adaptive"] = "fixed"
    """`adaptive` raises `coef` while the KL is above `target` and lowers it below."""
    target: float = Field(0.05, gt=0)
    """For `adaptive`: nats per token to aim at, not per answer."""
    horizon: float = Field(10000.0, gt=0)
    """For `adaptive`: answers over which `coef` moves by at most 20 %."""
    in_loss: float = Field(0.0, ge=0)
    """Weight of a KL term in the loss itself, beside the penalty in the rewards; 0 leaves it out."""
    estimator: Literal["k2"] = "k2"
    """Of the term in the loss. On the policy's own samples the gradient of k2 is that of KL(policy || reference). That
    of k3, good as it is for watching, is the gradient of KL(reference || policy), and that of k1 is zero."""

    @model_validator(mode="before")
    @classmethod
    def _number(cls, given: Any) -> Any:
        return {"coef": given} if isinstance(given, (int, float)) and not isinstance(given, bool) else given

    @model_validator(mode="after")
    def _movable(self) -> "KlSettings":
        if self.control == "adaptive" and not self.coef:
            raise ValueError("control=adaptive multiplies coef and cannot leave zero; set coef above 0")
        return self


class KlController:
    """The present weight of the KL in the rewards; its state is part of every checkpoint.

    >>> controller = KlController(KlSettings(coef=0.05, control="adaptive", target=0.06))
    >>> controller.observe(0.12, samples=128)
    >>> round(controller.coef, 6)
    0.050128
    """

    FASTEST = 0.2
    """Largest relative error that counts, so that one wild iteration does not throw the weight."""

    def __init__(self, settings: KlSettings) -> None:
        self.settings = settings
        self.factor = 1.0
        self._steered = settings.coef

    @property
    def coef(self) -> float:
        """The weight in force: the steered one times the factor of `raise_to`."""
        return self._steered * self.factor

    def observe(self, kl_per_token: float, samples: int) -> None:
        """Move the weight once for an iteration of `samples` answers of all processes, if it is adaptive.

        coef <- coef (1 + clip(kl / target - 1, -0.2, 0.2) samples / horizon) (arXiv 1909.08593, section 2.2; there
        per answer). Raises `RunError` for a KL that is not finite, and `UserError` when the weight would reach zero.
        """
        s = self.settings
        if s.control == "fixed":
            return
        if not math.isfinite(kl_per_token):
            raise RunError(f"the KL per token is {kl_per_token}, which cannot steer kl.coef; look at the policy's loss")
        if self.FASTEST * samples >= s.horizon:
            raise UserError(
                f"kl.horizon is {s.horizon:g} answers, too few for iterations of {samples}: kl.coef could fall to zero "
                f"in one of them; set kl.horizon above {samples}"
            )
        error = min(max(kl_per_token / s.target - 1, -self.FASTEST), self.FASTEST)
        self._steered *= 1 + error * samples / s.horizon

    def raise_to(self, factor: float) -> None:
        """Hold the policy `factor` times as tight as the settings and the control say; it is never loosened.

        Raises `ValueError` for a factor below 1.
        """
        if not 1 <= factor < math.inf:
            raise ValueError(f"a factor that raises the KL is at least 1 and finite, got {factor}")
        self.factor = max(self.factor, factor)

    def state_dict(self) -> dict[str, Any]:
        return {"steered": self._steered, "factor": self.factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steered, self.factor = state["steered"], state["factor"]
