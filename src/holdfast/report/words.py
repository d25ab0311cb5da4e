"""Numbers and verdicts in words, the same on the page and on the model card."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any

from holdfast.report.read import Run, as_number

MINUS = "\u2212"
NARROW = "\u202f"  # a space at which no line breaks

REASONS = {
    "ucb_above_tau": "the upper bound lies above the limit",
    "shown_unsafe": "the sample shows more harm than the limit allows",
    "insufficient_n": "there were too few prompts to show a limit this low",
    "degenerate_sample": "the sample does not vary, so its bound means nothing",
    "budget_exhausted": "the permitted error was spent by earlier attempts",
    "protocol_violation": "the protocol was not followed",
    "no_zero": "the cost model ranks answers and nothing says at which score harm begins, so no test was made",
    "nonfinite": "a score was not a finite number",
    "duplicate_prompts": "prompts occurred more than once",
    "n_mismatch": "the number of answers differs from the plan",
    "hash_mismatch": "the data or the model differ from those that were planned",
}


# Who judged, by the tier of the certificate: a bound on a model's judgement must name the model.
JUDGES = {"model_cost": " by the learned cost model", "human": " by people"}


def number(value: float) -> str:
    """Return `value` with three significant digits, whole numbers in full.

    >>> number(0.01234), number(0.5), number(12345.6), number(313), number(-0.00001234), number(99.96)
    ('0.0123', '0.500', '12,346', '313', '\u22121.23e-05', '100')
    """
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if isinstance(value, int):
        text = f"{size:,}"
    elif size >= 1e6 or 0 < size < 1e-3:
        text = f"{size:.2e}"
    else:
        text = f"{size:,.0f}" if size >= 100 or size == 0 else f"{size:#.3g}".rstrip(".")
    return MINUS + text if value < 0 else text


def percent(value: float) -> str:
    """Return a share as per cent: one decimal, or two significant digits below one per cent.

    >>> percent(0.0312), percent(0.00042), percent(0.0), percent(1.0), percent(-0.25)
    ('3.1%', '0.042%', '0%', '100%', '\u221225.0%')
    """
    size = 100 * abs(value)
    text = f"{size:.1f}" if size >= 1 else f"{size:.2g}"
    return f"{MINUS if value < 0 else ''}{text.removesuffix('.0') if size in (0, 100) else text}%"


def hundredths(value: float) -> str:
    """Return a correlation or a ratio with two decimals, whatever its size.

    >>> hundredths(0.2379), hundredths(-0.001)
    ('0.24', '0.00')
    """
    return f"{round(value, 2) + 0.0:.2f}".replace("-", MINUS)


def points(value: float) -> str:
    """Return a difference of shares in points, with its sign.

    >>> points(0.013), points(-0.2)
    ('+1.3', '\u221220.0')
    """
    return f"{'+' if value > 0 else ''}{percent(value).removesuffix('%')}"


def interval_in_words(estimate: Mapping[str, float | None], show: Callable[[float], str]) -> str:
    """Return the interval and the sample size of an estimate, as far as they are known.

    >>> interval_in_words({"value": 0.5, "low": 0.4, "high": 0.6, "n": None}, percent)
    '40.0% to 60.0%'
    """
    low, high, n = estimate["low"], estimate["high"], estimate["n"]
    known = [f"{show(low)} to {show(high)}"] if low is not None and high is not None else []
    return ", ".join(known + ([f"n{NARROW}={NARROW}{n:,.0f}"] if n is not None else []))


def limit_percent(tau: float) -> str:
    """Return a limit as per cent without rounding it.

    >>> limit_percent(0.05), limit_percent(0.0525), limit_percent(0.1)
    ('5%', '5.25%', '10%')
    """
    return f"{(Decimal(str(tau)) * 100).normalize():f}%"


def bound_percent(upper: float, tau: float) -> str:
    """Return an upper bound as per cent, rounded up, with at least the decimals of the limit `tau`.

    Rounded so, the printed bound lies on the same side of the printed limit as the bound itself does.

    >>> bound_percent(0.0499, 0.05), bound_percent(0.0501, 0.05), bound_percent(0.0521, 0.0525)
    ('5.0%', '5.1%', '5.21%')
    """
    decimals = max(1, len(limit_percent(tau).rstrip("%").partition(".")[2]))
    step = Decimal(1).scaleb(-decimals)
    return f"{(Decimal(str(upper)) * 100).quantize(step, rounding=ROUND_CEILING)}%"


def duration(seconds: float) -> str:
    """Return a time span in the two units that matter.

    >>> duration(0.42), duration(75), duration(3 * 3600 + 65)
    ('0.4 s', '1 min 15 s', '3 h 1 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@dataclass(frozen=True)
class Finding:
    """What a page found, in one line, and the sentence behind it.

    verdict: of the safety test, or what stands in its place; tone: the colour class of the verdict, where that is
    not the verdict itself.
    """

    verdict: str
    title: str
    sentence: str
    tone: str = ""


@dataclass(frozen=True)
class Tested:
    """A constraint and what its test saw; None where the files are silent."""

    kind: str
    tau: float
    delta: float | None
    n: float
    k: float | None
    ucb: float | None
    judge: str = ""

    @property
    def limit(self) -> str:
        """The limit as text: a share for a rate, a plain number for anything else."""
        return limit_percent(self.tau) if self.kind == "rate" else f"{self.tau:.6g}"

    @property
    def bound(self) -> str:
        """The upper bound as text, on the same side of the limit as the bound itself."""
        if self.ucb is None:
            return "none"
        return bound_percent(self.ucb, self.tau) if self.kind == "rate" else f"{self.ucb:.6g}"

    @property
    def confidence(self) -> str:
        """One minus delta as text; empty when delta is not known."""
        return "" if self.delta is None else limit_percent(round(1 - self.delta, 12))


def described(told: Mapping[str, Any], judge: str = "") -> Tested | None:
    """Return the constraint that `told` describes, or None when it names no limit or no number of prompts."""
    tau, delta, n, k, ucb = (as_number(told.get(key)) for key in ("tau", "delta", "n", "k", "ucb"))
    if tau is None or n is None:
        return None
    return Tested(str(told.get("kind", "rate")), tau, delta, n, k, ucb, judge)


def leading(run: Run) -> Tested | None:
    """Return the constraint behind the verdict, or None when the run has no test to show.

    The summary speaks first. What it leaves out comes from the certificate: from the first constraint that
    failed, or the first of all when none did.
    """
    constraints = sorted(run.certificate.get("constraints", ()), key=lambda item: bool(item.get("passed")))
    lead: Mapping[str, Any] = constraints[0] if constraints else {}
    summary = {key: value for key, value in run.summary.items() if value is not None}
    return described({**lead, **summary}, JUDGES.get(str(run.certificate.get("tier")), ""))


def finding(run: Run) -> Finding:
    """Return the verdict of the run in words, with counts, bound, limit and confidence where known."""
    verdict = run.certificate.get("verdict") or run.summary.get("verdict")
    test = leading(run)
    reason = reason_in_words(run.certificate.get("reason") or run.summary.get("reason"))
    if verdict == "CERTIFIED":
        return Finding(verdict, _held_title(test), _observed(test) + _promise(test) + _others(run))
    if verdict == "NSF":
        title = "No solution found" + (f": a limit of {test.limit} could not be shown" if test else "")
        close = "Treat the policy as not shown to be safe."
        return Finding(verdict, title, f"{_observed(test)}{_promise(test)}Reason: {reason}. {close}")
    if verdict == "INVALID":
        close = "Nothing follows from it, neither for the policy nor against it."
        return Finding(verdict, "The safety test is void", f"Reason: {reason}. {close}")
    if run.summary.get("reason") == "no_policy":
        told = "This run made scores and no policy, so there was nothing to test for safety. What the scores are worth:"
        return Finding("SCORES", "Score models", told)
    silent = "This run holds no safety test, so this page claims nothing about the harm of its policy."
    return Finding("", "Not tested", silent)


def reason_in_words(code: str | None) -> str:
    """Return the reason behind a verdict as a clause; a reason unknown here keeps its own name."""
    return REASONS.get(code or "", (code or "none was given").replace("_", " "))


def _held_title(test: Tested | None) -> str:
    if test is None or test.ucb is None:
        return "The limit holds"
    if test.kind == "rate":
        return f"At most {test.bound} of replies are judged harmful; the limit was {test.limit}"
    return f"The mean cost is at most {test.bound}; the limit was {test.limit}"


def _observed(test: Tested | None) -> str:
    if test is None:
        return ""
    if test.kind != "rate" or test.k is None:
        return f"The test used {test.n:,.0f} held-out prompts. "
    share = f" ({percent(test.k / test.n)})" if test.n else ""
    judged = f"judged harmful{test.judge}{share}"
    return f"On {test.n:,.0f} held-out prompts, {test.k:,.0f} replies were {judged}. "


def _promise(test: Tested | None) -> str:
    if test is None or test.ucb is None or test.delta is None:
        return ""
    what = "the share of such replies" if test.kind == "rate" else "the mean cost"
    return (
        f"With {test.confidence} confidence {what} is at most {test.bound} on prompts of this kind; "
        f"the limit was {test.limit}. "
    )


def _others(run: Run) -> str:
    count = len(run.certificate.get("constraints", ()))
    return f"All {count} constraints hold." if count > 1 else ""
