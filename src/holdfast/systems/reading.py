"""From sources to records in folds: what a system reads before anything is trained.

Every source is divided by the same hash of its prompts, so that no two folds share one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import Field, model_validator

from holdfast.config import Settings
from holdfast.data.recast import as_classified, as_dual, as_kind, as_preference, as_ranked, as_scored
from holdfast.data.schema import Classified, Conversation, DualPair, Labelled, Pair, Ranked, Rated, Record, Scored
from holdfast.data.sources import DataSettings, Readable, read
from holdfast.data.split import keys, pools, prompt_of
from holdfast.data.template import PromptTooLong, Template
from holdfast.engine.log import RunFolder
from holdfast.errors import UserError
from holdfast.systems.stages import say

Kind = TypeVar("Kind", bound=Record)
Folds = TypeVar("Folds")


class Shorthand(Settings):
    """A group that may also be given as one text, which stands for its first setting."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {next(iter(cls.model_fields)): value} if isinstance(value, str) else value


class Source(DataSettings):
    """A data set; a text alone is its path."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class PoolSettings(Settings):
    """Shares of the five pools, which share no prompt and no image."""

    sft: float = Field(0.3, gt=0, lt=1)
    """Conversations to imitate."""
    pref: float = Field(0.4, gt=0, lt=1)
    """Pairs for reward and cost, and their calibration."""
    rl: float = Field(0.15, gt=0, lt=1)
    """Prompts to practise on."""
    dev: float = Field(0.05, gt=0, lt=1)
    """Prompts for every number printed before and after."""
    safety: float = Field(0.1, gt=0, lt=1)
    """Prompts of the sealed fold, opened once, for the safety test."""
    held_out: float = Field(0.1, gt=0, lt=1)
    """Part of the preference pool that judges the models which the rest has trained."""
    salt: str = "holdfast"
    """Changes which prompt falls into which pool."""

    @property
    def shares(self) -> dict[str, float]:
        """The share of every pool by its name."""
        return self.model_dump(exclude={"held_out", "salt"})


class DataSection(Shorthand):
    """The data of a run. A text alone is the path of the pairs."""

    pairs: Source | None = None
    """Judged pairs of answers, for reward and cost."""
    sft: Source | None = None
    """Conversations to imitate; null takes the preferred answers of the pairs."""
    prompts: Source | None = None
    """Prompts to practise and to be tested on; null takes those of the pairs, or else of the ratings."""
    labelled: Source | None = None
    """Answers labelled safe or unsafe, to calibrate a cost model that was trained on comparisons alone."""
    ratings: Source | None = None
    """Answers with named ratings, for `attributes`."""
    pools: PoolSettings = PoolSettings()
    """How prompts are divided."""


@dataclass(frozen=True)
class Pools:
    """Records of the five pools."""

    imitate: list[Conversation]
    pairs: list[DualPair]
    held_out_pairs: list[DualPair]
    practise: list[Conversation]
    dev: list[Conversation]
    safety: list[Conversation]
    labelled: list[Labelled]
    ratings: list[Rated] = field(default_factory=list)
    held_out_ratings: list[Rated] = field(default_factory=list)

    @property
    def readable(self) -> list[Conversation]:
        """All answered conversations that a model may learn from, for a tokenizer to read."""
        judged = [pair.prompt.answer(text) for pair in self.pairs for text in pair.responses]
        return [*self.imitate, *judged, *(record.conversation for record in self.ratings)]

    def counts(self) -> dict[str, int]:
        """How many records each pool holds; ratings are mentioned where there are any."""
        return {name: len(value) for name, value in vars(self).items() if value or "ratings" not in name}


def read_pools(data: DataSection, run: RunFolder) -> Pools:
    """Read all sources and divide their prompts, all sources by the same hash, so that no pool shares a prompt."""
    pairs = dual_pairs(data.pairs, run) if data.pairs else []
    judged = labelled(data.labelled, run) if data.labelled else []
    rated_answers = rated(data.ratings, run) if data.ratings else []
    sft = records(data.sft, "sft", run) if data.sft else list(pairs)
    prompts = records(data.prompts, "prompts", run) if data.prompts else list(pairs or rated_answers)
    if not prompts:
        raise UserError("there is no prompt to practise on; give data.prompts, or data.pairs, whose prompts will do")
    everything: list[Readable] = [*pairs, *sft, *prompts, *rated_answers]
    divided = pools(everything, data.pools.shares, data.pools.salt)
    member = {name: {keys(record)[0] for record in records} for name, records in divided.items()}

    def inside(records: Sequence[Any], pool: str) -> list[Any]:
        return [record for record in records if keys(record)[0] in member[pool]]

    held_out = {"train": 1 - data.pools.held_out, "held_out": data.pools.held_out}
    judging = [*inside(pairs, "pref"), *inside(rated_answers, "pref")]
    nobody: dict[str, list[Any]] = {name: [] for name in held_out}
    preferred = pools(judging, held_out, data.pools.salt + "/held-out") if judging else nobody
    found = Pools(
        imitate=_imitated(inside(sft, "sft")),
        pairs=_of(DualPair, preferred["train"]),
        held_out_pairs=_of(DualPair, preferred["held_out"]),
        practise=_distinct(inside(prompts, "rl")),
        dev=_distinct(inside(prompts, "dev")),
        safety=_distinct(inside(prompts, "safety")),
        labelled=judged,
        ratings=_of(Rated, preferred["train"]),
        held_out_ratings=_of(Rated, preferred["held_out"]),
    )
    run.write_json("pools.json", found.counts())
    say("pools: " + listed(found.counts()))
    return found


def within_window(found: Folds, template: Template, on_long_prompt: str) -> tuple[Folds, dict[str, int]]:
    """The folds of records, and how many each lost because their prompt leaves no room for an answer in the window."""
    if on_long_prompt == "error":
        return found, {}
    kept = {name: [one for one in records if fits(one, template)] for name, records in vars(found).items()}
    lost = {name: len(records) - len(kept[name]) for name, records in vars(found).items()}
    lost = {name: count for name, count in lost.items() if count}
    if lost:
        say(f"text.max_length {template.max_length}: prompts too long, left out: {listed(lost)}")
    return type(found)(**kept), lost


def fits(record: Readable, template: Template) -> bool:
    """Whether the record's prompt leaves room for an answer in the window."""
    try:
        template.prompt(prompt_of(record))
    except PromptTooLong:
        return False
    return True


def listed(counts: Mapping[str, int]) -> str:
    """Counts on one line.

    >>> listed({"dev": 3, "safety": 7})
    'dev 3, safety 7'
    """
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def dual_pairs(source: DataSettings, run: RunFolder) -> list[DualPair]:
    """The pairs of `data.pairs`; a pair on one axis says the same of helpfulness."""
    return [as_dual(record) for record in records(source, "pairs", run)]


def labelled(source: DataSettings, run: RunFolder) -> list[Labelled]:
    """The answers of `data.labelled`, each called safe or unsafe."""
    return [
        as_kind(Labelled, record, "labelled", "answers labelled safe or unsafe")
        for record in records(source, "labelled", run)
    ]


def rated(source: DataSettings, run: RunFolder) -> list[Rated]:
    """The answers of `data.ratings`."""
    return [as_kind(Rated, record, "ratings", "rated answers") for record in records(source, "ratings", run)]


def scored(source: DataSettings, run: RunFolder) -> list[Scored]:
    """The answers of `data.answers` with their scores; a ranked row gives one for each of its answers, best first."""
    return [one for record in records(source, "answers", run) for one in as_scored(record, "answers")]


def ranked(source: DataSettings, run: RunFolder) -> list[Ranked]:
    """The answers of `data.ranked`, best first; a pair is a ranking of two."""
    return [as_ranked(record, "ranked") for record in records(source, "ranked", run)]


def classified(source: DataSettings, run: RunFolder) -> list[Classified]:
    """The texts of `data.classified` with their classes; labelled answers are of class unsafe or safe."""
    return [as_classified(record, "classified") for record in records(source, "classified", run)]


def conversations(source: DataSettings, run: RunFolder) -> list[Conversation]:
    """The conversations of `data.sft` that hold an answer to imitate."""
    return _imitated(records(source, "sft", run))


def records(source: DataSettings, name: str, run: RunFolder) -> list[Readable]:
    """The records of one source; rows that cannot be used are set aside in the run folder, and counted."""
    rows = read(source, run.path / f"skipped-{name}.jsonl" if run.processes.is_main else None)
    if rows.bad:
        say(f"data.{name}: {rows.skipped} rows cannot be used; they and the reasons are in skipped-{name}.jsonl")
    return rows.records


def preferences(source: DataSettings, name: str, run: RunFolder) -> list[Pair]:
    """The pairs of a source as one preference each: that of `chosen`, or the more helpful, else the safer answer."""
    return [as_preference(record, name) for record in records(source, name, run)]


def _of(kind: type[Kind], records: Sequence[Readable]) -> list[Kind]:
    """The records of one kind."""
    return [record for record in records if isinstance(record, kind)]


def _imitated(records: Sequence[Readable]) -> list[Conversation]:
    """The conversations to imitate; of a pair that nobody judged neither answer is the better one, so it has none."""
    judged = [one for one in records if not isinstance(one, DualPair) or {one.helpful_id, one.safer_id} != {None}]
    if lost := len(records) - len(judged):
        say(f"sft: {lost} pairs that nobody judged are not imitated")
    return [_answered(record) for record in judged]


def _answered(record: Readable) -> Conversation:
    """The conversation to imitate: the record's own, or the best answer of a ranking, or of a pair the chosen, more
    helpful, else safer one."""
    if isinstance(record, DualPair):
        chosen = record.helpful_id if record.helpful_id is not None else record.safer_id or 0
        return record.prompt.model_copy(update={"id": record.id}).answer(record.responses[chosen])
    if isinstance(record, Ranked):
        return record.prompt.model_copy(update={"id": record.id}).answer(record.responses[0])
    if isinstance(record, Pair):
        return record.prompt.model_copy(update={"id": record.id}).answer(record.chosen)
    if isinstance(record, Conversation):
        return record
    own = getattr(record, "conversation", None)
    return own.model_copy(update={"id": record.id}) if own is not None else prompt_of(record)


def _distinct(records: Sequence[Readable]) -> list[Conversation]:
    """One prompt of each cluster, in the order of the records."""
    found = {keys(record)[0]: _prompt(record) for record in reversed(records)}
    return list(found.values())[::-1]


def _prompt(record: Readable) -> Conversation:
    """The record's prompt under its name, and with its source or else the first harm category it was given."""
    categories = sum(getattr(record, "categories", ()), ()) if isinstance(record, DualPair) else ()
    source = record.source or next(iter(categories), "")
    return prompt_of(record).model_copy(update={"id": record.id, "source": source})
