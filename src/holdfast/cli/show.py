"""What the terminal shows before and after a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.syntax import Syntax
from rich.table import Column, Table

ROWS = {
    "true_harm": ("true harm rate", "%"),
    "true_help": ("true helpfulness (benign)", ""),
    "over_refusal": ("over-refusal (benign)", "%"),
    "learned_reward": ("learned reward", ""),
    "learned_cost": ("learned cost", ""),
    "kl": ("KL to the reference (nats)", ""),
    "length": ("length (tokens)", ""),
}

JUDGES = {
    "reward_accuracy": "reward model, held-out pairs",
    "cost_accuracy": "cost model, held-out pairs",
    "shorter_is_safer_accuracy": "calling the shorter answer safer",
    "cost_over_shorter": "cost model beyond length",
    "calibration_auc": "cost model, AUC on labelled answers",
}


def renderable(thing: RenderableType) -> None:
    """Print a table or text."""
    Console().print(thing)


def configuration(text: str, fingerprint: str) -> None:
    """Print the resolved settings, defaults included."""
    console = Console(stderr=True)
    console.print(f"[bold]resolved configuration[/] (fingerprint {fingerprint[:12]})")
    console.print(Syntax(text.rstrip(), "yaml", background_color="default"))


def outcome(summary: Mapping[str, Any], page: Path, audits: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Print before and after, three examples, the verdict in words, and where the report lies.

    audits: by name; they are printed where scores are all that the run made, and stand in the report otherwise.
    """
    console = Console()
    console.print()
    if summary.get("reason") == "no_policy":
        for name, found in (audits or {}).items():
            _audited(console, f"{name}, on {found['n']['answers']} answers held out", found)
        if "weak_to_strong" in summary:
            _recovered(console, summary)
    elif any(summary.get(name) for name in JUDGES):
        console.print(_judges(summary))
    if any(f"{name}_after" in summary for name in ROWS):
        console.print(_before_after(summary))
    for found in summary.get("comparisons", ()):
        console.print(_comparison(found))
    for example in summary.get("examples", ()):
        console.print(f"[bold]{example['kind']}[/]  {example['prompt']}", highlight=False)
        console.print(f"  before  {example['before']}", highlight=False)
        console.print(f"  after   {example['after']}", highlight=False)
    console.print()
    console.print(verdict(summary), style="bold", highlight=False)
    console.print(f"{summary['seconds']:.0f} s, {summary['peak_rss_mib']:.0f} MiB   report: {page}", highlight=False)


def _before_after(summary: Mapping[str, Any]) -> Table:
    table = Table("", "before", "after", title=f"{summary['method']}, seed {summary['seed']}", title_justify="left")
    for name, (words, unit) in ROWS.items():
        before, after = summary.get(f"{name}_before"), summary.get(f"{name}_after")
        if before and after:
            table.add_row(words, _estimate(before, unit), _estimate(after, unit))
    return table


def _recovered(console: Console, summary: Mapping[str, Any]) -> None:
    """Print how right supervisor, students and ceiling are, what of the gap each student recovers."""
    report = summary["weak_to_strong"]
    found = {name: one["recovery"] for name, one in report["students"].items()}
    first = next(iter(found.values()))
    seeds = ", ".join(map(str, report["seeds"]))
    title = f"{summary['method']}, {summary['task']}, seeds {seeds}, {report['items']['test']:,} test items"
    table = Table("", "% right", "above supervisor", "% of the gap", title=title, title_justify="left")
    table.add_row("supervisor", _brief(first["weak"]))
    for name, one in found.items():
        table.add_row(name, _brief(one["student"]), _brief(one["gain"]), _brief(one["value"]))
    table.add_row("ceiling", _brief(first["ceiling"]))
    console.print(table)


def _brief(found: Mapping[str, Any] | None) -> str:
    """A share in per cent with its interval, unless it was withheld."""
    return (
        "n/a" if found is None else f"{100 * found['value']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
    )


def _comparison(found: Mapping[str, Any]) -> Table:
    heads = [Column(str(name), no_wrap=True) for name in (found["what"], *found["columns"])]
    table = Table(*heads, title=found["title"], title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    for name, *cells in found["rows"]:
        table.add_row(name, *(f"{one['value']:.3f} \u00b1 {(one['high'] - one['low']) / 2:.3f}" for one in cells))
    return table


def _judges(summary: Mapping[str, Any]) -> Table:
    table = Table("", "accuracy", title="the learned scores", title_justify="left")
    for name, words in JUDGES.items():
        if summary.get(name):
            table.add_row(words, _estimate(summary[name], ""))
    return table


def _estimate(found: Mapping[str, Any], unit: str) -> str:
    scale, digits = (100, 1) if unit == "%" else (1, 3)
    low, high = found["low"] * scale, found["high"] * scale
    return f"{found['value'] * scale:.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}] n={found['n']}"


MEASURES = (
    ("pairs", "accuracy", "pairs in the right order", "%"),
    ("pairs", "length_accuracy", "by length alone", "%"),
    ("pairs", "gain", "gain over length", "%"),
    ("harm", "sign_accuracy", "right side of zero", "%"),
    ("harm", "majority", "majority", "%"),
    ("harm", "balanced_accuracy", "balanced accuracy", "%"),
    ("harm", "auc", "AUC", ""),
    ("rating", "r2", "R2", ""),
    ("rating", "mae", "mean absolute error", ""),
    ("rating", "spearman", "rank correlation", ""),
    ("rating", "within_prompt", "rank correlation within prompts", ""),
    ("ece", "raw", "calibration error", "%"),
    ("ece", "temperature", "after temperature", "%"),
    ("ece", "platt", "after Platt scaling", "%"),
    ("length", "spearman", "rank correlation with length", ""),
)


def audit(found: Mapping[str, Any], page: Path) -> None:
    """Print what an audit found, and where its page lies."""
    console = Console()
    _audited(console, f"audit of {found['n']['answers']} answers", found)
    console.print(f"audit: {page}", highlight=False, markup=False)


def _audited(console: Console, title: str, found: Mapping[str, Any]) -> None:
    """Print a table with a column for each score, and the warnings."""
    scores = {name: one | {"ece": (one["calibration"] or {}).get("ece")} for name, one in found["scores"].items()}
    table = Table("", *scores, title=title, title_justify="left")
    for part, key, words, unit in MEASURES:
        values = [(one[part] or {}).get(key) for one in scores.values()]
        if any(values):
            table.add_row(words, *(_estimate(value, unit) if value else "" for value in values))
    console.print(table)
    for line in found["warnings"]:
        console.print(f"warning: {line}", style="yellow", highlight=False, markup=False)


def verdict(summary: Mapping[str, Any]) -> str:
    """One sentence: what was shown, on how many prompts, by which bound, at which confidence."""
    name, reason = summary.get("verdict"), summary.get("reason")
    if reason == "no_policy":
        return "No policy was trained, so there is nothing to test."
    if name is None:
        return "Not tested: this system makes no claim. Use `holdfast certify run` for a certificate."
    if reason == "no_zero":
        return f"{name} ({reason}): cost {summary['zero']['words']}. No policy is released."
    if summary.get("ucb") is None:
        return f"{name} ({reason}): no policy is released."
    found = (
        f"{summary['k']} of {summary['n']} sealed prompts" if summary["k"] is not None else f"{summary['n']} prompts"
    )
    bound = f"upper bound {summary['ucb']:.4f}, limit {summary['tau']:g}, confidence {1 - summary['delta']:.0%}"
    if name == "CERTIFIED":
        return f"CERTIFIED: harmful answers on {found}; {bound}. The policy is released."
    return f"{name} ({reason}): harmful answers on {found}; {bound}. No policy is released."
