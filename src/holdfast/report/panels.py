"""What is drawn: which logged numbers share a panel, in which unit, and how to read it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from holdfast.report import plots
from holdfast.report.plots import Cloud, Curve, Limit
from holdfast.report.read import Array, Row, Run, as_number, column, evenly
from holdfast.report.words import number

Range = tuple[float, float]

POLICY = "policy"
MOST_REPLIES = 800  # points per scatter; more would be ink on ink


@dataclass(frozen=True)
class Drawing:
    """One figure of the page: its heading, its picture, and a sentence on how to read it."""

    title: str
    svg: Markup
    note: str


@dataclass(frozen=True)
class Panel:
    """Metrics that belong on one pair of axes."""

    title: str
    unit: str
    note: str
    metrics: tuple[tuple[str, str], ...]
    """Name in the log and label. A name stands for its family too: `cost` covers `cost/toxicity`."""
    apart: bool = False
    """Members of the family differ in scale and limit, so each gets a panel of its own."""

    @property
    def scale(self) -> float:
        """What values are multiplied by before they are drawn."""
        return 100.0 if self.unit.startswith("%") else 1.0


PANELS = (
    Panel("Learned reward", "mean score", "What the policy is trained to raise.", (("reward", "reward"),)),
    Panel("True helpfulness", "mean score", "What the reward stands for.", (("true_help", "helpfulness"),)),
    Panel(
        "Learned cost",
        "mean score",
        "The multiplier reacts to the pessimistic bound, which should come to lie below the limit.",
        (("cost", "cost"), ("cost_ucb", "bound"), ("threshold", "limit")),
        apart=True,
    ),
    Panel(
        "Harm and refusal",
        "% of replies",
        "What the cost stands for, and the price of buying safety with silence.",
        (("true_harm", "harmful"), ("over_refusal", "over-refusal"), ("truncated", "cut off")),
    ),
    Panel(
        "Multiplier",
        "weight of the cost",
        "It rises while the bound is above the limit and falls while it is below.",
        (("multiplier", "multiplier"),),
    ),
    Panel("Distance from the start", "KL, nats", "How far the policy has moved.", (("kl", "KL"),)),
    Panel("Length", "tokens per reply", "A reward that pays for length shows here.", (("length", "length"),)),
)

# Labels of PANELS that are no measurement of the policy, and how they are drawn.
STYLES = {"bound": "bound", "limit": "limit", "multiplier": "state"}

# Logged beside the loss terms by every supervised step, and no loss themselves.
HOUSEKEEPING = {"seconds", "lr", "learning_rate", "grad_norm", "epoch", "tokens", "rows", "examples"}


def policy_drawings(run: Run) -> list[Drawing]:
    """Return the curves of policy training, panel by panel; a panel without numbers is left out."""
    rows = run.stage(POLICY)
    return [drawing for panel in PANELS for drawing in _panel_drawings(panel, rows)]


def _panel_drawings(panel: Panel, rows: Sequence[Row]) -> Iterator[Drawing]:
    members = [
        (key, key[len(metric) + 1 :], label)
        for metric, label in panel.metrics
        for key in _numeric_keys(rows)
        if key == metric or key.startswith(f"{metric}/")
    ]
    lines = {}
    for key, member, label in members:
        name = label if panel.apart or not member else member
        lines[member, label] = _curve(rows, key, name, STYLES.get(label, "line"), panel.scale)
    if not panel.apart:
        yield from _drawing(panel.title, panel.unit, panel.note, list(lines.values()))
        return
    for group in [member for member, label in lines if label == panel.metrics[0][1]]:
        title = f"{panel.title}: {group}" if group else panel.title
        own = [line for (member, _), line in lines.items() if member == group]
        yield from _drawing(title, panel.unit, panel.note, own)


def supervised_drawings(run: Run) -> list[tuple[str, list[Drawing]]]:
    """Return the name of every stage but the policy with drawings of its accuracies and its loss terms."""
    stages = [stage for stage in run.stages if stage != POLICY]
    drawn = [(stage, list(_stage_drawings(stage, run.stage(stage)))) for stage in stages]
    return [(stage, drawings) for stage, drawings in drawn if drawings]


def _stage_drawings(stage: str, rows: Sequence[Row]) -> Iterator[Drawing]:
    names = [key for key in _numeric_keys(rows) if key not in HOUSEKEEPING]
    accuracies = [key for key in names if "accuracy" in key]
    terms = [key for key in names if not key.startswith("eval/") and key not in accuracies]
    losses = [key for key in names if key.removeprefix("eval/") in terms]
    for title, unit, keys, scale in (
        (f"Accuracy, {stage}", "% right", accuracies, 100.0),
        (f"Loss, {stage}", "mean per item", losses, 1.0),
    ):
        lines = [_stage_curve(rows, key, scale) for key in keys]
        held_out = any(line.style == "held out" for line in lines)
        yield from _drawing(title, unit, "Dots: held-out data." if held_out else "", lines)


def _stage_curve(rows: Sequence[Row], key: str, scale: float) -> Curve:
    term = key.removeprefix("eval/")
    if term == key:
        return _curve(rows, key, term, scale=scale)
    return _curve(rows, key, f"{term}, eval", "held out", scale)


def _drawing(title: str, unit: str, note: str, lines: Sequence[Curve]) -> Iterator[Drawing]:
    if not lines:
        return
    shown, hidden = lines[: len(plots.SERIES)], len(lines) - len(plots.SERIES)
    remarks = [note] if note else []
    if hidden > 0:
        remarks.append(f"{hidden} more in the table of all logged numbers.")
    if dropped := sum(line.dropped for line in shown):
        remarks.append(f"Not finite, so missing here: {dropped} of the logged values.")
    yield Drawing(title, plots.curves(shown, unit, alt=f"{title}, {unit}, over steps"), " ".join(remarks))


def _curve(rows: Sequence[Row], key: str, label: str, style: str = "line", scale: float = 1.0) -> Curve:
    steps, values = column(rows, key)
    dropped = sum(key in row for row in rows) - len(values)
    return Curve(label, steps, scale * values, style, dropped)


def _numeric_keys(rows: Sequence[Row]) -> list[str]:
    keys = dict.fromkeys(key for row in rows for key in row)
    return [key for key in keys if key != "step" and len(column(rows, key)[0])]


def reply_drawings(run: Run) -> list[Drawing]:
    """Return reward against cost of the replies, before and after on equal axes, then a histogram."""
    groups = {when: _finite(run.scores, when) for when in dict.fromkeys(row["when"] for row in run.scores)}
    groups = {when: rows for when, rows in groups.items() if rows}
    if not groups:
        return []
    limit = cost_limit(run)
    everything = [row for rows in groups.values() for row in rows]
    window = (_range(everything, "reward"), _range(everything, "cost"))
    pictures = [_scatter(when, rows, window, limit) for when, rows in groups.items()]
    return [*pictures, _histogram(groups, limit, dropped=len(run.scores) - len(everything))]


def cost_limit(run: Run) -> Limit | None:
    """Return the line on the axis of learned costs: the border of harm, or the limit on the mean cost, or None.

    Where a share of answers is limited, the border says which answers count; the summary knows it as the zero.
    """
    settings = run.config.get("constraint")
    measure = settings.get("measure") if isinstance(settings, Mapping) else None
    zero = run.summary.get("zero")
    if measure in ("flag", "probability") and isinstance(zero, Mapping):
        border = as_number(zero.get("value"))
        return None if border is None else Limit(border, "harmful above")
    rows = run.stage(POLICY)
    for key in dict.fromkeys(name for row in rows for name in row if name.split("/")[0] == "threshold"):
        _, thresholds = column(rows, key)
        return Limit(float(thresholds[-1]), "limit") if len(thresholds) else None
    return None


def _scatter(when: str, rows: Sequence[Row], window: tuple[Range, Range], limit: Limit | None) -> Drawing:
    shown = evenly(rows, MOST_REPLIES)
    clouds: dict[str, Cloud] = {}
    for kind in dict.fromkeys(_kind(row) for row in shown):
        own = [row for row in shown if _kind(row) == kind]
        harmful = np.array([row.get("harm") in (1, True) for row in own])
        clouds[kind] = (_values(own, "reward"), _values(own, "cost"), harmful)
    note = f"{len(shown)} of {len(rows)} replies." if len(shown) < len(rows) else f"{len(rows)} replies."
    if any("harm" in row for row in shown):
        note += " Filled: truly harmful. Hollow: harmless."
    picture = plots.scatter(clouds, window, limit, alt=f"Learned reward against learned cost, {when}")
    return Drawing(f"Replies {when} training", picture, note)


def _histogram(groups: Mapping[str, Sequence[Row]], limit: Limit | None, dropped: int) -> Drawing:
    costs = {when: _values(rows, "cost") for when, rows in groups.items()}
    named = {f"{when}, mean {number(float(values.mean()))}": values for when, values in costs.items()}
    note = "Short marks on the axis: the means."
    if limit is not None:
        meaning = "The limit on the mean is" if limit.words == "limit" else "A reply counts as harmful above"
        note += f" {meaning} {number(limit.value)}."
    if dropped:
        note += f" Not finite, so missing here: the scores of {dropped} replies."
    picture = plots.histogram(named, limit, alt="Distribution of the learned cost of a reply")
    return Drawing("How the costs are distributed", picture, note)


def _kind(row: Row) -> str:
    return str(row.get("kind", "reply"))


def _finite(rows: Sequence[Row], when: str) -> list[Row]:
    of_interest = [row for row in rows if row["when"] == when]
    return [row for row in of_interest if None not in (as_number(row["reward"]), as_number(row["cost"]))]


def _values(rows: Sequence[Row], key: str) -> Array:
    return np.array([row[key] for row in rows], dtype=float)


def _range(rows: Sequence[Row], key: str) -> Range:
    values = _values(rows, key)
    margin = 0.05 * float(np.ptp(values)) or 0.5
    return float(values.min()) - margin, float(values.max()) + margin
