"""A model card for the folder of a trained model: what it is, what was measured, what was certified."""

from pathlib import Path

from holdfast.report.page import changes, facts, headline
from holdfast.report.read import Run, read


def write_card(run_folder: str | Path, model_folder: str | Path) -> Path:
    """Write `README.md` into `model_folder` from the run in `run_folder`, and return its path.

    It replaces a card that is there: libraries that save models leave an empty form in its place. Raises
    `UserError` when the run folder cannot be read.
    """
    target = Path(model_folder) / "README.md"
    text = card(read(run_folder))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target


def card(run: Run) -> str:
    """Return the model card of `run` as Markdown with the header that model hubs read."""
    told = headline(run)
    parts = [
        "---\nlibrary_name: transformers\ntags: [holdfast, alignment, rlhf]\n---",
        f"# {_plain(run.name)}",
        f"**{told.verdict or 'NOT TESTED'}. {told.title}.** {told.sentence.strip()}",
        _measures(run),
        _limits(run),
        "## Run\n\n" + "\n".join(f"- {name}: {_plain(text)}" for name, text in facts(run)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _measures(run: Run) -> str:
    rows = [
        f"| {_plain(row.name)} | {row.before} ({row.before_range}) | {row.after} ({row.after_range}) |"
        if row.before_range and row.after_range
        else f"| {_plain(row.name)} | {row.before} | {row.after} |"
        for row in changes(run)
    ]
    head = "## Before and after\n\n| measure | before | after |\n|---|---|---|\n"
    return head + "\n".join(rows) if rows else ""


def _limits(run: Run) -> str:
    limits = [f"- {_plain(str(item))}" for item in run.certificate.get("limits", ())]
    return "## What the certificate does not say\n\n" + "\n".join(limits) if limits else ""


def _plain(text: str) -> str:
    """Text from files, made harmless in Markdown: no markup, no cell borders, one line."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in text)
    return " ".join(escaped.split())
