"""What an offline run learned from, for the page: which given answers were left, how far to trust V, and its curves."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from holdfast.report import offline_plots
from holdfast.report.panels import Drawing, Panel
from holdfast.report.read import Array, Row, Run, as_estimate, as_number, column
from holdfast.report.words import MINUS, Finding, interval_in_words, number, percent

# Loss terms of which a policy that learns from given answers logs one; no policy that samples its own does.
LOSSES = ("offline", "preference", "rank")

GIVEN_PANELS = (
    Panel(
        "Loss as it is weighed",
        "mean per answer",
        "Held-out answers that would be left out count here, and weigh nothing.",
        (("offline", "loss"), ("eval/offline", "held out")),
    ),
    Panel(
        "Loss",
        "mean per ranking",
        "",
        (("preference", "loss"), ("rank", "loss"), ("eval/preference", "held out"), ("eval/rank", "held out")),
    ),
    Panel(
        "Surprise at the given answers",
        "nats per token, without weights",
        "Held-out answers are of every worth; where draws go by worth, the two part.",
        (("nll", "drawn"), ("eval/nll", "held out")),
    ),
    Panel(
        "Ratio to the reference",
        "mean log(policy / reference)",
        "Above zero answers have become likelier than they were, below zero less likely.",
        (("log_ratio", "drawn"), ("eval/log_ratio", "held out")),
    ),
    Panel(
        "Ratios held by the clip",
        "% of ratios",
        "Beyond its borders learning goes on, with the weight of the border.",
        (
            ("clip_high", "above"),
            ("clip_low", "below"),
            ("eval/clip_high", "above, held out"),
            ("eval/clip_low", "below, held out"),
        ),
    ),
    Panel("Answers unlearned", "% of answers", "Their advantage is below beta.", (("below_beta", "below"),)),
    Panel("In the right order", "% of rankings", "", (("accuracy", "drawn"), ("eval/accuracy", "held out"))),
    Panel(
        "Lead of the better answer",
        "beta log-odds over the reference's",
        "Where the better answer itself falls, both are being unlearned.",
        (("lead", "lead"), ("better", "the better itself"), ("eval/lead", "held out")),
    ),
)

FATES = {"drop": "left out", "weight": "weighed less", "report": "only counted"}


@dataclass(frozen=True)
class Learned:
    """What the page shows of the answers behind a policy.

    drawings: how many were left, their advantages, and where one was chosen the step that earned most; limits: a row of
    text for each limit; value: sentences on V.
    """

    drawings: list[Drawing]
    limits: list[tuple[str, ...]]
    value: list[str]


def learned_from(run: Run) -> Learned | None:
    """Return what the run learned from; None for a run that did not learn from given answers."""
    if not counts(run.summary):
        return None
    return Learned(
        drawings=[*_counted(run), *_advantages(run), *_best(run)],
        limits=[_limit(one) for one in run.summary.get("offline_limits", ())],
        value=list(value_in_words(run.summary)),
    )


def from_given(rows: Sequence[Row]) -> bool:
    """Return whether rows of the policy stage are of learning from given answers.

    >>> from_given([{"step": 1, "offline": 0.7, "nll": 2.0}]), from_given([{"step": 1, "reward": 0.1, "nll": 2.0}])
    (True, False)
    """
    return any(name in row for row in rows for name in LOSSES)


def headline(run: Run, untested: Finding) -> Finding | None:
    """Return how much of the data an offline run learned from, followed by what is said of a run without a test."""
    left = counts(run.summary)
    if not left:
        return None
    (_, given), (_, rows) = left[0], left[-1]
    found = run.summary.get("offline")
    if found is None:
        title = f"Learned from {rows:,.0f} of {given:,.0f} rankings"
        return Finding("", title, f"{_left_out(run.summary)}{untested.sentence}")
    kept = found["kept"]
    title = f"Learned from {kept:,.0f} of {given:,.0f} given answers"
    return Finding("", title, f"{_left_out(run.summary)}{untested.sentence}")


def _left_out(summary: Mapping[str, Any]) -> str:
    """Why answers were not learned from, as sentences."""
    found = summary.get("offline")
    worse = found["rows"] - found["kept"] if found else 0
    watching = _watching(summary)
    told = (
        (_given(summary) - _within(summary), f"lie beyond a limit{'' if watching else ' or only watch the training'}"),
        (watching, "only watch the training"),
        (worse, "are worth no more than V, what is to be expected on their prompt"),
    )
    return "".join(f"{count:,.0f} {words}. " for count, words in told if count)


def _watching(summary: Mapping[str, Any]) -> float:
    """How many answers were held out; 0 where nothing says so."""
    return _within(summary) - summary["offline"]["rows"] if "offline" in summary else summary.get("watching", 0)


def counts(summary: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return how many answers, or rankings, were left after each step; empty for a run without them.

    The last is the effective size: of how many equal ones as uneven draws would be.

    >>> counts({"offline": {"rows": 90.0, "kept": 60.0, "effective_size": 41.2}, "annotations": {"answers": 100}})
    [('given', 100), ('to learn from', 90.0), ('better than V', 60.0), ('as many equal ones', 41.2)]
    """
    found = summary.get("offline")
    if found is None and "rankings" in summary:
        found = {"rows": summary["rankings"] - _watching(summary)}
    if found is None:
        return []
    left = [("given", _given(summary))]
    left += [(_kept_by(one), one["answers"] - one["beyond"]) for one in _dropping(summary)]
    left.append(("to learn from", found["rows"]))
    if found.get("kept", found["rows"]) < found["rows"]:
        left.append(("better than V", found["kept"]))
    if _uneven(found):
        left.append(("as many equal ones", found["effective_size"]))
    return left


def _given(summary: Mapping[str, Any]) -> float:
    """How many answers or rankings there were before any limit, as far as something says so."""
    limits = summary.get("offline_limits", ())
    return limits[0]["answers"] if limits else _within(summary)


def _within(summary: Mapping[str, Any]) -> float:
    """How many keep all limits. Where they were not annotated and limits may overlap, those to learn from."""
    if "annotations" in summary:
        return summary["annotations"]["answers"]
    if len(summary.get("offline_limits", ())) == 1 == len(_dropping(summary)):
        (limit,) = _dropping(summary)
        return limit["answers"] - limit["beyond"]
    return summary["offline"]["rows"] if "offline" in summary else summary["rankings"]


def _uneven(found: Row) -> bool:
    """Whether draws favour some answers, by more than rounding."""
    return "effective_size" in found and found["effective_size"] < 0.995 * found["kept"]


def _dropping(summary: Mapping[str, Any]) -> list[Row]:
    return [one for one in summary.get("offline_limits", ()) if one["how"] == "drop"]


def _kept_by(limit: Row) -> str:
    return f"{limit['score']} at most {limit['most']:g}".replace("-", MINUS)


def _counted(run: Run) -> Iterator[Drawing]:
    unit = "answers" if "offline" in run.summary else "rankings"
    title = f"How many {unit} were left"
    yield Drawing(title, offline_plots.bars(counts(run.summary), alt=title), " ".join(_use(run)))


def _use(run: Run) -> Iterator[str]:
    """How often answers were drawn, and what those that were not learned from are for."""
    if watching := _watching(run.summary):
        yield f"{watching:,.0f} more only watch the training."
    found = run.summary.get("offline")
    if found is None:
        return
    batch = as_number((run.config.get("fit") or {}).get("batch_size"))
    if batch is not None:
        draws = found["steps"] * batch
        yield f"{draws:,.0f} draws in {found['steps']:,.0f} steps, {number(draws / found['kept'])} of each on average."
    if _uneven(found):
        yield f"Draws are as uneven as if {found['effective_size']:,.0f} equal answers had been drawn alike."


def _advantages(run: Run) -> Iterator[Drawing]:
    values = np.array([row["advantage"] for row in run.annotations], dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return
    drawn = _drawn(run, values)
    better = float((values > 0).mean())
    note = f"R {MINUS} V of {len(values):,} answers: what each earns beyond what is to be expected on its prompt."
    if drawn is not None:
        note += " Training sees the second outline: draws go by the advantage."
    yield Drawing("Advantages", offline_plots.advantages(values, drawn, better, alt="Advantages of the answers"), note)


def _drawn(run: Run, values: Array) -> Array | None:
    """How often each answer is drawn, up to a factor; None where draws do not go by the advantage."""
    settings = run.config.get("offline") or {}
    if settings.get("sampling") != "priority" or not str(settings.get("method", "")).startswith("a_lol"):
        return None
    weights = np.maximum(values, 0.0) ** (as_number(settings.get("priority_exponent")) or 1.0)
    return weights if weights.any() else None


def _best(run: Run) -> Iterator[Drawing]:
    """What the policy earned while it learned, and which step goes on; nothing where the last one simply did."""
    found = run.summary.get("best")
    if found is None:
        return
    steps, values = column(found["of"], "value")
    end = found["of"][-1]
    last = as_number(end["value"]) if end["step"] > found["step"] else None
    ended = "" if last is None else f"; after the last, {end['step']:,}, it earned {number(last)}"
    note = (
        f"The policy of step {found['step']:,} goes on: its answers to {found['prompts']:,} prompts earned "
        f"{number(found['value'])} on average, the most of {len(found['of'])} steps{ended}. "
        "Answers to these prompts were not learned from, and none of them is in the exam."
    )
    title = "What the policy earned while it learned"
    yield Drawing(title, offline_plots.best(steps, values, float(found["step"]), alt=title), note)


def _limit(told: Row) -> tuple[str, ...]:
    inside, outside = as_number(told["reward_within"]), as_number(told["reward_beyond"])
    share = percent(told["beyond"] / told["answers"])
    unknown = f"{told['without_score']:,}" if told["without_score"] else ""
    known = ["" if one is None else number(one) for one in (inside, outside)]
    apart = "" if inside is None or outside is None else number(outside - inside)
    return _kept_by(told), f"{told['beyond']:,}", share, unknown, *known, apart, FATES[told["how"]]


def value_in_words(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield sentences on how far to trust V; none where no V was fitted."""
    told, known, limits = (summary.get(key) for key in ("value", "annotations", "offline_limits"))
    if known:
        whose = "Answers within the limits" if limits else "The answers"
        reward, value = number(known["mean_reward"]), number(known["mean_value"])
        yield f"{whose} earn {reward} on average; V of their prompts is {value}."
    if told:
        bias = as_estimate(told["bias"])
        beside = interval_in_words({**bias, "n": None}, number)
        yield (
            f"Held against {told['answers']:,} rewards on {bias['n'] or 0:,.0f} prompts that it had not learned from, "
            f"R {MINUS} V is {number(bias['value'] or 0.0)} on average ({beside}): {_leaning(bias)}."
        )
        yield f"{_slope(told['slope'])} {_explained(told['error'], told['spread'])}"


def _leaning(bias: Mapping[str, float | None]) -> str:
    if (bias["low"] or 0.0) > 0:
        return "V is too low, so some answers count as better that are not"
    if (bias["high"] or 0.0) < 0:
        return "V is too high, so some answers worth learning are missed"
    return "neither too high nor too low, as far as this can tell"


def _slope(slope: float | None) -> str:
    if slope is None:
        return "It says nearly the same of all prompts."
    return f"Where V differs by 1 between prompts, R differs by {number(slope)}."


def _explained(error: float, spread: float) -> str:
    if error >= spread:
        return "It misses R by no less than the best constant would, so it tells nothing about a prompt."
    return f"Of the variance of R, between prompts and among answers to one, it explains {percent(1 - error / spread)}."
