"""One page per run: self-contained, readable on paper and on a phone, in light and in dark.

The page needs no network, no script and no font of its own. Whatever a model, a prompt or a settings file
says is escaped by the template; only our own drawings are markup.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from holdfast.report import offline, plots, recovery
from holdfast.report.audit import audited
from holdfast.report.compare import comparisons
from holdfast.report.document import document
from holdfast.report.panels import reply_drawings, supervised_drawings
from holdfast.report.read import Row, Run, as_estimate, as_number, column, evenly, read
from holdfast.report.training import training
from holdfast.report.words import (
    MINUS,
    Finding,
    described,
    duration,
    finding,
    interval_in_words,
    number,
    percent,
    reason_in_words,
)

MOST_SAMPLES = 60
MOST_LETTERS = 2000

# Name in the summary, name for people, and whether the number is a share.
CHANGES = (
    ("true_harm", "True harm", True),
    ("true_help", "True helpfulness", False),
    ("over_refusal", "Over-refusal", True),
    ("learned_reward", "Learned reward", False),
    ("learned_cost", "Learned cost", False),
    ("kl", "KL from the start (nats)", False),
    ("distinct_1", "Different words", True),
    ("distinct_2", "Different pairs of words", True),
    ("distinct_3", "Different triples of words", True),
)

# What the learned scores are worth on data they were not trained on.
JUDGES = (
    ("reward_accuracy", "Reward model, held-out pairs", True),
    ("cost_accuracy", "Cost model, held-out pairs", True),
    ("shorter_is_safer_accuracy", "Calling the shorter answer safer", True),
    ("cost_over_shorter", "Cost model beyond length", True),
    ("calibration_auc", "Cost model, AUC on labelled answers", False),
)


def render(run_folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of the run in `run_folder` and return its path: `out`, or `report.html` in the folder.

    Raises `UserError` when the folder is no run folder or one of its files is broken.
    """
    target = Path(out) if out is not None else Path(run_folder) / "report.html"
    text = page(read(run_folder))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target


def page(run: Run) -> str:
    """Return the report of `run` as one HTML document."""
    sections = [(key, title, build(run), needs) for key, title, build, needs in SECTIONS]
    return document(
        house="Holdfast run report",
        name=run.name,
        finding=headline(run),
        facts=facts(run),
        sections=[(key, title, data) for key, title, data, _ in sections if data],
        left_out=[f"{title} ({needs})" for _, title, data, needs in sections if not data],
    )


def headline(run: Run) -> Finding:
    """Return what the run found: the verdict of its test, or what stands in its place where it made none."""
    found = finding(run)
    if run.summary.get("verdict") or run.certificate:
        return found
    return recovery.headline(run) or offline.headline(run, found) or found


def facts(run: Run) -> list[tuple[str, str]]:
    """Return the few facts that identify a run, as name and text."""
    method = run.summary.get("method") or run.config.get("system")
    seconds, memory = as_number(run.summary.get("seconds")), as_number(run.summary.get("peak_rss_mib"))
    found = [
        ("Run", run.name),
        ("Method", method and str(method)),
        ("Seed", str(run.summary.get("seed", run.config.get("seed", "")))),
        ("Time", seconds is not None and duration(seconds)),
        ("Peak memory", memory is not None and f"{memory:,.0f} MiB"),
        ("Configuration", str(run.fingerprint.get("fingerprint", ""))[:12]),
        *judges(run),
        *recovery.facts(run),
        ("Cost", str(run.summary.get("zero", {}).get("words", ""))),
        *((f"Limit on {name}, before training", str(one.get("words", ""))) for name, one in reach(run).items()),
    ]
    return [(name, text) for name, text in found if text]


def reach(run: Run) -> Mapping[str, Any]:
    """Return by name what each limit was said to take before training."""
    return run.summary.get("reach") or {}


def judges(run: Run) -> list[tuple[str, str]]:
    """Return how well the learned scores did on held-out data, as name and text with interval and n."""
    found = []
    for key, name, share in JUDGES:
        estimate = as_estimate(run.summary.get(key))
        if estimate["value"] is not None:
            show: Callable[[float], str] = percent if share else number
            found.append((name, f"{show(estimate['value'])} ({interval_in_words(estimate, show)})"))
    return found


@dataclass(frozen=True)
class Change:
    """One row of the table of changes, in words, with its drawing."""

    name: str
    before: str
    before_range: str
    after: str
    after_range: str
    difference: str
    remark: str
    drawing: Markup


def changes(run: Run) -> list[Change]:
    """Return the rows before and after for every metric of which the summary holds both."""
    named = {key for key, _, _ in CHANGES}
    keys = [key.removesuffix("_before") for key in run.summary if key.endswith("_before")]
    others = [(key, key.replace("_", " ").capitalize(), False) for key in keys if key not in named]
    found = []
    for key, name, share in (*CHANGES, *others):
        before, after = (
            as_estimate(run.summary.get(f"{key}_before")),
            as_estimate(run.summary.get(f"{key}_after")),
        )
        if before["value"] is not None and after["value"] is not None:
            found.append(_change(name, before, after, share))
    return found


def _change(name: str, before: Mapping[str, Any], after: Mapping[str, Any], share: bool) -> Change:
    show: Callable[[float], str] = percent if share else number
    difference = after["value"] - before["value"]
    size = f"{100 * abs(difference):.1f} points" if share else number(abs(difference))
    remark = ""
    if None not in (before["low"], before["high"], after["low"], after["high"]):
        apart = before["high"] < after["low"] or after["high"] < before["low"]
        remark = "intervals apart" if apart else "intervals overlap"
    return Change(
        name=name,
        before=show(before["value"]),
        before_range=interval_in_words(before, show),
        after=show(after["value"]),
        after_range=interval_in_words(after, show),
        difference=f"{MINUS if difference < 0 else '+'}{size}",
        remark=remark,
        drawing=plots.interval(before, after, from_zero=share),
    )


def examples(run: Run) -> list[dict[str, str]]:
    """Return the prompts of the summary with the reply before and after training, as text."""
    keys = ("kind", "prompt", "before", "after")
    return [{key: _text(row.get(key, "")) for key in keys} for row in run.summary.get("examples", ())]


def certificate(run: Run) -> dict[str, Any]:
    """Return what the certificate says, in words; empty when there is none."""
    told = run.certificate
    if not told:
        return {}
    return {
        "verdict": told["verdict"],
        "reason": reason_in_words(told.get("reason")) if told.get("reason") else "",
        "claim": told.get("claim") or "",
        "constraints": [_constraint(item) for item in told.get("constraints", ())],
        "assumptions": [_text(item).replace("_", " ") for item in told.get("assumptions", ())],
        "limits": [_text(item) for item in told.get("limits", ())],
        "whole": json.dumps(told, indent=2, ensure_ascii=False),
    }


def _constraint(item: Row) -> dict[str, str]:
    test, estimate = described(item), as_number(item.get("estimate"))
    counts = [as_number(item.get(key)) for key in ("k", "n")]
    return {
        "name": str(item.get("name", "")),
        "seen": "" if estimate is None else (percent if item.get("kind", "rate") == "rate" else number)(estimate),
        "counts": " of ".join(f"{count:,.0f}" for count in counts if count is not None),
        "bound": test.bound if test else "",
        "limit": test.limit if test else "",
        "confidence": test.confidence if test else "",
        "method": str(item.get("method", "")).replace("_", " "),
        "passed": "holds" if item.get("passed") else "does not hold",
    }


def numbers(run: Run) -> list[dict[str, Any]]:
    """Return for each stage every number it logged: name, count, first, lowest, highest and last value."""
    return [{"stage": stage, "rows": _stage_numbers(run.stage(stage))} for stage in run.stages]


def _stage_numbers(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    names = dict.fromkeys(key for row in rows for key in row if key not in ("stage", "step"))
    table = []
    for name in names:
        _, values = column(rows, name)
        if len(values):
            told = (values[0], values.min(), values.max(), values[-1])
            table.append((name, str(len(values)), *(number(float(value)) for value in told)))
    return table


def samples(run: Run) -> dict[str, Any]:
    """Return logged replies spread evenly over the run, with their numbers, and how many there are in all."""
    rows = [
        {
            "where": " ".join(str(row[key]) for key in ("stage", "step") if key in row),
            "prompt": _text(row["prompt"]),
            "response": _text(row["response"]),
            "numbers": [
                (key, number(value))
                for key, value in row.items()
                if key != "step" and isinstance(value, int | float) and not isinstance(value, bool)
            ],
        }
        for row in evenly(run.samples, MOST_SAMPLES)
    ]
    return {"shown": rows, "total": len(run.samples)} if rows else {}


def _text(value: Any) -> str:
    """Text as it is, anything else as JSON, cut where it would fill the page, saying so."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) <= MOST_LETTERS:
        return text
    return f"{text[:MOST_LETTERS]} [... {len(text) - MOST_LETTERS:,} more characters in the run folder]"


def flat(tree: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Return the leaves of nested dictionaries as dotted name and text.

    >>> flat({"versions": {"torch": "2.13"}, "seed": 1})
    [('versions.torch', '2.13'), ('seed', '1')]
    """
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = f"{above}{key}"
        rows += flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, _text(value))]
    return rows


# In the order of the page: id, title, what fills it (empty leaves it out), and where that comes from.
SECTIONS: tuple[tuple[str, str, Callable[[Run], Any], str], ...] = (
    ("recovery", "From weak labels to strong", recovery.recovery, "weak_to_strong in summary.json"),
    ("changes", "Before and after", changes, "summary.json"),
    ("comparisons", "Comparisons", comparisons, "comparisons in summary.json"),
    ("examples", "The same prompts, before and after", examples, "examples in summary.json"),
    ("offline", "What was learned from", offline.learned_from, "offline in summary.json"),
    ("policy", "Policy training", training, "policy rows in metrics.jsonl"),
    ("replies", "Reward and cost of each reply", reply_drawings, "scores.jsonl"),
    ("scores", "Score models", audited, "audit-NAME.json"),
    ("models", "Supervised training", supervised_drawings, "other stages in metrics.jsonl"),
    ("certificate", "Certificate", certificate, "certificate.json"),
    ("samples", "More replies", samples, "samples.jsonl"),
    ("numbers", "All logged numbers", numbers, "metrics.jsonl"),
    ("configuration", "Resolved configuration", lambda run: run.config_text, "config.yaml"),
    ("environment", "Environment", lambda run: flat(run.fingerprint), "fingerprint.json"),
)
