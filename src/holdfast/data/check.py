"""What a data set holds and what is wrong with it, before anything is trained on it.

The report counts and measures; it never shows the text of a row.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from holdfast.data.census import Census, census
from holdfast.data.formats import Readable
from holdfast.data.schema import Classified, Conversation, DualPair, Labelled, Pair, Ranked, Rated, Scored
from holdfast.data.sources import DataSettings, read
from holdfast.data.split import keys, leaks, prompt_of
from holdfast.data.template import PromptTooLong, Template

QUANTILES = (0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class Lengths:
    """How long prompts and answers are at the `QUANTILES`, in `unit`; and what does not fit the window.

    truncated: share of answers that would be cut; too_long: rows whose prompt leaves no room for an answer.
    """

    unit: str
    prompt: tuple[float, ...]
    response: tuple[float, ...]
    truncated: float | None = None
    too_long: int = 0


@dataclass(frozen=True)
class SourceReport:
    """One data set: its rows, labels, lengths, repeated rows, disagreements between labels, people, bad rows."""

    name: str
    path: str
    format: str
    rows: int
    labels: dict[str, int]
    lengths: Lengths
    same_prompt: int
    same_row: int
    disagreements: dict[str, tuple[int, int]]
    census: Census
    warnings: list[str]
    bad: list[tuple[str, int, str]]
    other_splits: dict[str, int]


@dataclass(frozen=True)
class Report:
    """All data sets that were checked, and how many rows of one share a prompt, an image or a group with another."""

    sources: list[SourceReport]
    leaks: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain containers, ready for JSON."""
        return asdict(self)


def check(sources: Mapping[str, DataSettings], template: Template | None = None) -> Report:
    """The report on data sets by name, such as train and test; bad rows are counted and never an error.

    Lengths are in tokens when a `template` is given and in words otherwise.
    """
    found: dict[str, list[Readable]] = {}
    reports = []
    for name, settings in sources.items():
        rows = read(settings.model_copy(update={"on_bad_row": "skip"}))
        found[name] = rows.records
        counted = census(rows.records)
        reports.append(
            SourceReport(
                name=name,
                path=rows.path,
                format=rows.format,
                rows=len(rows.records),
                labels=label_counts(rows.records),
                lengths=_lengths(rows.records, template),
                same_prompt=_repeats(keys(record)[0] for record in rows.records),
                same_row=_repeats(_content(record) for record in rows.records),
                disagreements=disagreements(rows.records),
                census=counted,
                warnings=counted.warnings,
                bad=[(row.file, row.row, row.reason) for row in rows.bad],
                other_splits=rows.other_splits,
            )
        )
    shared = {f"{a} / {b}": len(leaks(found[a], found[b])) for a, b in combinations(found, 2)}
    return Report(reports, shared)


def label_counts(records: Iterable[Readable]) -> dict[str, int]:
    """How often each label occurs; what is unlabelled is counted too.

    >>> label_counts([Labelled(id="1", conversation=Conversation.ask("a").answer("b"), safe=True)])
    {'safe': 1}
    """
    return dict(sorted(Counter(label for record in records for label in _labels(record)).items()))


def _labels(record: Readable) -> Iterator[str]:
    if isinstance(record, DualPair):
        yield "helpful: unlabelled" if record.helpful_id is None else f"helpful: response {record.helpful_id}"
        yield "safer: unlabelled" if record.safer_id is None else f"safer: response {record.safer_id}"
        yield from (_SAFE[safe] for safe in record.safe)
        yield from (f"harmless rate {rate:+d}" for rate in record.harmless_rate if rate is not None)
    elif isinstance(record, Labelled):
        yield _SAFE[record.safe]
        yield from (f"category {category}" for category in record.categories)
    elif isinstance(record, Rated):
        yield from (f"rated {name}" for name, value in record.labels.items() if value == value)
    elif isinstance(record, Scored):
        yield from (f"scored {name}" for name in record.scores)
    elif isinstance(record, Classified):
        yield f"class {record.label}"
    elif isinstance(record, Ranked):
        yield f"{len(record.responses)} ranked answers, {'without' if record.rewards is None else 'with'} rewards"
    elif isinstance(record, Pair):
        yield "preferred pair"
    else:
        yield "answered" if record.answered else "prompt"


_SAFE = {True: "safe", False: "unsafe", None: "safety unlabelled"}


def disagreements(records: Sequence[Readable]) -> dict[str, tuple[int, int]]:
    """Questions two labels answer, each with how often they disagree and among how many rows they both speak.

    A helpful answer may well be the less safe one, so the first is a fact about the data and no error. A
    safer answer with the lower rate, or equal rows with opposite labels, are noise of annotation.
    """
    asked: dict[str, list[bool]] = {
        "more helpful is not the safer": [],
        "safer one has the lower harmless rate": [],
        "equal rows, opposite safer label": [],
        "equal rows, opposite helpful label": [],
    }
    first: dict[tuple[str, ...], DualPair] = {}
    for row in records:
        if not isinstance(row, DualPair):
            continue
        if row.helpful_id is not None and row.safer_id is not None:
            asked["more helpful is not the safer"].append(row.helpful_id != row.safer_id)
        if row.safer_id is not None and None not in row.harmless_rate:
            safer, other = row.harmless_rate[row.safer_id], row.harmless_rate[1 - row.safer_id]
            asked["safer one has the lower harmless rate"].append((safer or 0) < (other or 0))
        earlier = first.setdefault(_content(row), row)
        if earlier is not row:
            for axis in ("safer", "helpful"):
                before, now = (_winner(pair, f"{axis}_id") for pair in (earlier, row))
                if before is not None and now is not None:
                    asked[f"equal rows, opposite {axis} label"].append(before != now)
    return {question: (sum(answers), len(answers)) for question, answers in asked.items() if answers}


def _winner(pair: DualPair, field: str) -> str | None:
    number = getattr(pair, field)
    return None if number is None else pair.responses[number]


def _content(record: Readable) -> tuple[str, ...]:
    """What makes two rows the same row: the prompt and the answers, in whatever order."""
    return (prompt_of(record).key, *sorted(conversation.response for conversation in _answered(record)))


def _answered(record: Readable) -> list[Conversation]:
    """The answered conversations a record holds: several for a pair or a ranking, none for a prompt."""
    if isinstance(record, DualPair | Ranked):
        return [record.prompt.answer(response) for response in record.responses]
    if isinstance(record, Pair):
        return [record.prompt.answer(response) for response in (record.chosen, record.rejected)]
    conversation = record if isinstance(record, Conversation) else record.conversation
    return [conversation] if conversation.answered else []


def _repeats(contents: Iterable[Any]) -> int:
    """How many items have occurred before."""
    counts = Counter(contents)
    return sum(counts.values()) - len(counts)


def _lengths(records: Sequence[Readable], template: Template | None) -> Lengths:
    if template is None:
        prompts = [sum(len(m.text.split()) for m in prompt_of(record).messages) for record in records]
        responses = [len(c.response.split()) for record in records for c in _answered(record)]
        return Lengths("words", _quantiles(prompts), _quantiles(responses))
    prompts, responses, cut, too_long = [], [], 0, 0
    for record in records:
        try:
            prompts.append(template.prompt(prompt_of(record)).length)
        except PromptTooLong:
            too_long += 1
            continue
        encoded = [template.answered(conversation) for conversation in _answered(record)]
        responses += [len(row.response_ids) for row in encoded]
        cut += sum(row.truncated for row in encoded)
    share = cut / len(responses) if responses else None
    return Lengths("tokens", _quantiles(prompts), _quantiles(responses), share, too_long)


def _quantiles(values: Sequence[int]) -> tuple[float, ...]:
    return tuple(float(q) for q in np.quantile(values, QUANTILES)) if values else ()


def render(report: Report) -> RenderableType:
    """The report as tables for a rich console."""
    tables: list[RenderableType] = [_facts(source) for source in report.sources]
    if report.leaks:
        table = Table("data sets", "rows of the second that share a prompt, an image or a group", title="Leaks")
        for pair, count in report.leaks.items():
            table.add_row(pair, str(count) if count == 0 else f"[bold red]{count}[/]")
        tables.append(table)
    return Group(*tables)


def _facts(source: SourceReport) -> Table:
    title = escape(f"{source.name}: {source.path} ({source.format})")
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_row("usable rows", str(source.rows))
    for split, count in source.other_splits.items():
        table.add_row(f"rows of split {split}, not read", str(count))
    table.add_row("rows with a prompt seen before", str(source.same_prompt))
    table.add_row("rows seen before", str(source.same_row))
    for label, count in source.labels.items():
        table.add_row(label, str(count))
    for name, values in (("prompt", source.lengths.prompt), ("answer", source.lengths.response)):
        if values:
            shown = ", ".join(f"{q:.0%}: {value:.0f}" for q, value in zip(QUANTILES, values))
            table.add_row(f"{name} {source.lengths.unit}", shown)
    if source.lengths.truncated is not None:
        table.add_row("answers cut at the window", f"{source.lengths.truncated:.1%}")
        table.add_row("prompts too long for the window", str(source.lengths.too_long))
    for question, (count, among) in source.disagreements.items():
        table.add_row(question, f"{count} of {among}")
    for fact, number in _people_facts(source.census):
        table.add_row(fact, number)
    for warning in source.warnings:
        table.add_row("[yellow]warning[/]", f"[yellow]{escape(warning)}[/]")
    table.add_row("bad rows", str(len(source.bad)) if not source.bad else f"[bold red]{len(source.bad)}[/]")
    for reason, count in Counter(reason for _, _, reason in source.bad).most_common(5):
        table.add_row("", f"{count} x {escape(reason)}")
    return table


def _people_facts(found: Census) -> Iterator[tuple[str, str]]:
    """The census line by line; nothing about what a data set does not have."""
    for group, count in found.groups.items():
        yield escape(f"group {group}"), str(count)
    if found.people:
        people = found.people
        yield "people", str(people.count)
        yield "pairs for each", f"{people.fewest} to {people.most}, median {people.median:g}"
        yield "people with one pair", str(people.once)
    if found.contexts:
        yield "different contexts", str(found.contexts)
        yield "pairs without context", str(found.without_context)
    if found.reversed[1]:
        yield "equal pair, no context, opposite preference", "{} of {}".format(*found.reversed)
    for name, scale in found.scales.items():
        given = "never given" if scale.low is None else f"{scale.low:g} to {scale.high:g}"
        yield escape(f"label {name}"), f"{given}, {scale.missing:.0%} missing"
