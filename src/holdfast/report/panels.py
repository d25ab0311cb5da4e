"""What is drawn: which logged numbers share a panel, in which unit, and how to read it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup

from holdfast.report import plots
from holdfast.report.plots import Cloud, Curve, Limit
from holdfast.report.read import Array, Row, Run, as_number, column, evenly, numeric_keys
from holdfast.report.words import MINUS, number

Range = tuple[float, float]

POLICY, CRITICS = "policy", "critics"
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
    """Name in the log and label. A name stands for its family too: `cost` covers `cost/toxicity`, and `source/*/nll`
    what stands under any name between."""
    apart: bool = False
    """Members of the family differ in scale and limit, so each gets a panel of its own."""
    floor: float | None = None
    """Values below are drawn at it, and the note says so."""

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
    Panel(
        "Length",
        "tokens per reply",
        "A reward that pays for length shows here.",
        (("length", "mean"), ("length_p95", "95% are below")),
    ),
)

HEALTH_PANELS = (
    Panel(
        "Spread of the score",
        "score before any scaling",
        "When the fan opens while the mean rises, a few odd replies win.",
        (("score/q95", "95%"), ("score/q50", "median"), ("score/q05", "5%"), ("score/sd", "deviation")),
    ),
    Panel("Certainty", "nats per token", "Toward zero the policy says always the same.", (("nll", "surprise"),)),
    Panel("Repetition", "tokens", "The longest run of one token in a reply, on average.", (("repeat_run", "run"),)),
    Panel(
        "Variety",
        "% of pairs of tokens",
        "How many neighbouring pairs in a reply differ.",
        (("distinct2", "distinct"),),
    ),
)

SOURCE_PANELS = (
    Panel("Score by source", "mean score", "", (("source/*/score", "score"),)),
    Panel("Length by source", "tokens per reply", "", (("source/*/length", "length"),)),
    Panel("Cut off by source", "% of replies", "", (("source/*/truncated", "cut off"),)),
    Panel("Certainty by source", "nats per token", "", (("source/*/nll", "surprise"),)),
    Panel("Distance by source", "KL (k3), nats per token", "", (("source/*/kl_token_k3", "KL"),)),
)

OBJECTIVE_PANELS = (
    Panel(
        "Objectives",
        "mean score",
        "As the scorers gave them, and their weighted sum.",
        (("objective", "weighted sum"),),
    ),
    Panel(
        "What the objectives really weighed",
        "w sd(R) / sd of the sum",
        "One that varies little among the answers to a prompt is not heard, whatever its weight.",
        (("effective_weight", "weight"),),
    ),
    Panel(
        "What an answer was paid",
        "mean of the batch",
        "The weighted sum, less the KL and the penalty for length.",
        (("objective_paid", "paid"),),
    ),
    Panel("Groups without a difference", "% of prompts", "Nothing can be learned from them.", (("dead", "all"),)),
    Panel(
        "Price of a cost",
        "objective per unit of cost",
        "What the multiplier comes to in units of the scores.",
        (("price", "price"),),
    ),
)

CRITIC_PANELS = (
    Panel(
        "Explained variance",
        "share of the returns' variance",
        "1 is a perfect critic, 0 one that knows the mean alone.",
        (("explained_variance", "value"),),
        floor=-1.0,
    ),
    Panel("Error of the critics", "half the squared error", "", (("value_error", "value"),)),
)

MACHINE_PANELS = (
    Panel("Weight of the KL", "coefficient", "", (("kl_coef", "coefficient"),)),
    Panel(
        "Moments of the score",
        "score before any scaling",
        "What scores are scaled by.",
        (("score_running_mean", "mean"), ("score_running_sd", "deviation")),
    ),
    Panel("Scores cut by the clip", "% of replies", "", (("score_clipped", "cut"),)),
    Panel(
        "Pull of the language-model term",
        "its gradient over that of the rest",
        "Far above 1 the policy learns from its instruction data and little else.",
        (("grad_ratio", "ratio"),),
    ),
    *CRITIC_PANELS,
)

# Labels of PANELS that are no measurement of the policy, and how they are drawn.
STYLES = {"bound": "bound", "limit": "limit", "multiplier": "state", "coefficient": "state"}
STYLES |= dict.fromkeys(("held out", "above, held out", "below, held out"), "held out")

# Logged beside the loss terms by every supervised step, and no loss themselves.
HOUSEKEEPING = {"seconds", "lr", "learning_rate", "grad_norm", "epoch", "tokens", "rows", "examples"}


def policy_drawings(run: Run) -> list[Drawing]:
    """Return the curves of policy training, panel by panel; a panel without numbers is left out."""
    return panel_drawings(PANELS, run.stage(POLICY))


def panel_drawings(panels: Sequence[Panel], rows: Sequence[Row]) -> list[Drawing]:
    """Return the curves of the rows, panel by panel; a panel without numbers is left out."""
    return [drawing for panel in panels for drawing in _panel_drawings(panel, rows)]


def _panel_drawings(panel: Panel, rows: Sequence[Row]) -> Iterator[Drawing]:
    lines = {}
    keys = numeric_keys(rows)
    for metric, label in panel.metrics:
        for key in keys:
            member = _member(key, metric)
            if member is not None:
                name = _name(panel, member, label)
                lines[member, label] = _curve(rows, key, name, STYLES.get(label, "line"), panel.scale)
    if not panel.apart:
        yield from _drawing(panel.title, panel.unit, *_above(panel, list(lines.values())))
        return
    for group in [member for member, label in lines if label == panel.metrics[0][1]]:
        title = f"{panel.title}: {group}" if group else panel.title
        own = [line for (member, _), line in lines.items() if member == group]
        yield from _drawing(title, panel.unit, panel.note, own)


def _member(key: str, metric: str) -> str | None:
    """The member of the family `metric` that `key` is, empty for the metric itself, None for a stranger."""
    before, star, after = metric.partition("*")
    if star:
        inside = key.startswith(before) and key.endswith(after) and len(key) > len(before) + len(after)
        return key[len(before) : len(key) - len(after)] if inside else None
    if key == metric:
        return ""
    return key[len(metric) + 1 :] if key.startswith(f"{metric}/") else None


def _name(panel: Panel, member: str, label: str) -> str:
    """What a line is called: as little as tells it from the others of its panel."""
    if panel.apart or not member:
        return label
    return member if len(panel.metrics) == 1 else f"{member}, {label}"


def _above(panel: Panel, lines: list[Curve]) -> tuple[str, list[Curve]]:
    """The panel's note and lines, with the values below its floor lifted to it."""
    if panel.floor is None or not any((line.values < panel.floor).any() for line in lines):
        return panel.note, lines
    floor = f"{panel.floor:g}".replace("-", MINUS)
    lifted = [replace(line, values=np.maximum(line.values, panel.floor)) for line in lines]
    return f"{panel.note} Values below {floor} are drawn there.".lstrip(), lifted


def supervised_drawings(run: Run) -> list[tuple[str, list[Drawing]]]:
    """Return the name of every supervised stage with drawings of its accuracies and its loss terms."""
    stages = [stage for stage in run.stages if stage not in (POLICY, CRITICS)]
    drawn = [(stage, list(_stage_drawings(stage, run.stage(stage)))) for stage in stages]
    return [(stage, drawings) for stage, drawings in drawn if drawings]


def _stage_drawings(stage: str, rows: Sequence[Row]) -> Iterator[Drawing]:
    names = [key for key in numeric_keys(rows) if key not in HOUSEKEEPING]
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
