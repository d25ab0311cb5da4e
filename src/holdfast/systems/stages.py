"""The stages that systems are made of: each reads settings and files, trains or tests, and writes to the run folder.

A finished stage is only loaded when a run is resumed.
"""

import copy
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from holdfast.config import Settings
from holdfast.data.collate import pad
from holdfast.data.schema import Conversation, DualPair, Labelled, Pair
from holdfast.data.sources import DataSettings, Readable, read
from holdfast.data.split import keys, pools, prompt_of
from holdfast.data.template import PromptTooLong, Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.engine.budget import Part, available_bytes, estimate
from holdfast.engine.log import RunFolder
from holdfast.engine.supervised import FitSettings, Task, fit
from holdfast.errors import UserError
from holdfast.models.adapters import reference as adapters_off
from holdfast.models.load import ModelSettings, load_policy, load_tokenizer
from holdfast.models.save import save
from holdfast.preference.score import Scorer
from holdfast.rollout.experience import Score
from holdfast.training.sft import SftTask, imitation_rows

Result = TypeVar("Result")


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


class Model(ModelSettings):
    """A model; a text alone is its name or folder."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class TokenizerSettings(Settings):
    """Where the tokenizer comes from when the model does not bring one."""

    kind: Literal["bytes", "word"] = "bytes"
    """Byte-level BPE, or whole words."""
    vocab_size: int = Field(4096, ge=64)
    """Entries to learn."""


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

    pairs: Source
    """Judged pairs of answers."""
    sft: Source | None = None
    """Conversations to imitate; null takes the preferred answers of the pairs."""
    prompts: Source | None = None
    """Prompts to practise and to be tested on; null takes those of the pairs."""
    labelled: Source | None = None
    """Answers labelled safe or unsafe, to calibrate a cost model that was trained on comparisons alone."""
    pools: PoolSettings = PoolSettings()
    """How prompts are divided."""


class TextSection(Settings):
    """How text becomes tokens."""

    max_length: int = Field(512, ge=8)
    """Longest row in tokens; a longer answer is cut and marked."""
    on_long_prompt: Literal["error", "skip"] = "error"
    """Whether a prompt that leaves no room for an answer stops the run, or is left out and counted."""
    chat_template: str = "auto"
    """`auto` (the tokenizer's own), `plain`, `chatml`, or the path of a Jinja file."""
    system: str | None = None
    """System message for conversations without one."""


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

    @property
    def readable(self) -> list[Conversation]:
        """All answered conversations that a model may learn from, for a tokenizer to read."""
        judged = [pair.prompt.answer(text) for pair in self.pairs for text in pair.responses]
        return [*self.imitate, *judged]

    def counts(self) -> dict[str, int]:
        """How many records each pool holds."""
        return {name: len(value) for name, value in vars(self).items()}


def say(text: str) -> None:
    """One line for the person, on the same stream as progress; only the first process speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


def read_pools(data: DataSection, run: RunFolder) -> Pools:
    """Read all sources and divide their prompts, all sources by the same hash, so that no pool shares a prompt."""
    pairs = [_as_dual(record) for record in _records(data.pairs, "pairs", run)]
    sft = _records(data.sft, "sft", run) if data.sft else list(pairs)
    prompts = _records(data.prompts, "prompts", run) if data.prompts else list(pairs)
    labelled = [_as_labelled(record) for record in _records(data.labelled, "labelled", run)] if data.labelled else []
    everything: list[Readable] = [*pairs, *sft, *prompts]
    divided = pools(everything, data.pools.shares, data.pools.salt)
    member = {name: {keys(record)[0] for record in records} for name, records in divided.items()}

    def inside(records: Sequence[Any], pool: str) -> list[Any]:
        return [record for record in records if keys(record)[0] in member[pool]]

    held_out = {"train": 1 - data.pools.held_out, "held_out": data.pools.held_out}
    preferred = pools(inside(pairs, "pref"), held_out, data.pools.salt + "/held-out")
    found = Pools(
        imitate=[_answered(record) for record in inside(sft, "sft")],
        pairs=preferred["train"],
        held_out_pairs=preferred["held_out"],
        practise=_distinct(inside(prompts, "rl")),
        dev=_distinct(inside(prompts, "dev")),
        safety=_distinct(inside(prompts, "safety")),
        labelled=labelled,
    )
    run.write_json("pools.json", found.counts())
    say("pools: " + listed(found.counts()))
    return found


def within_window(found: Pools, template: Template, on_long_prompt: str) -> tuple[Pools, dict[str, int]]:
    """The pools, and how many records each lost because their prompt leaves no room for an answer in the window."""
    if on_long_prompt == "error":
        return found, {}
    kept = {name: [one for one in records if fits(one, template)] for name, records in vars(found).items()}
    lost = {name: len(records) - len(kept[name]) for name, records in vars(found).items()}
    lost = {name: count for name, count in lost.items() if count}
    if lost:
        say(f"text.max_length {template.max_length}: prompts too long, left out: {listed(lost)}")
    return Pools(**kept), lost


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


def _records(source: DataSettings, name: str, run: RunFolder) -> list[Readable]:
    rows = read(source, run.path / f"skipped-{name}.jsonl")
    if rows.bad:
        say(f"data.{name}: {rows.skipped} rows cannot be used; they and the reasons are in skipped-{name}.jsonl")
    return rows.records


def _as_dual(record: Readable) -> DualPair:
    """A pair on one axis says the same of helpfulness; TRL's formats do not name the axis."""
    if isinstance(record, DualPair):
        return record
    if isinstance(record, Pair):
        fields = record.model_dump(include={"id", "source", "split"})
        return DualPair(**fields, prompt=record.prompt, responses=(record.chosen, record.rejected), helpful_id=0)
    raise UserError(f"data.pairs holds {type(record).__name__} rows; pairs of answers are needed")


def _as_labelled(record: Readable) -> Labelled:
    if isinstance(record, Labelled):
        return record
    raise UserError(f"data.labelled holds {type(record).__name__} rows; answers labelled safe or unsafe are needed")


def _answered(record: Readable) -> Conversation:
    """The conversation to imitate: the record itself, or the pair's more helpful (else safer) answer."""
    if isinstance(record, DualPair):
        chosen = record.helpful_id if record.helpful_id is not None else record.safer_id or 0
        return record.prompt.model_copy(update={"id": record.id}).answer(record.responses[chosen])
    return record if isinstance(record, Conversation) else prompt_of(record)


def _distinct(records: Sequence[Readable]) -> list[Conversation]:
    """One prompt of each cluster, in the order of the records."""
    found = {keys(record)[0]: prompt_of(record).model_copy(update={"id": record.id}) for record in reversed(records)}
    return list(found.values())[::-1]


def load_base(
    model: Model, tokenizer: TokenizerSettings | None, text: TextSection, texts: Callable[[], list[str]]
) -> tuple[nn.Module, Template]:
    """The policy to start from, still without adapter, and the template that feeds it.

    A model from a hub or a folder brings its tokenizer; for one that is built from a configuration it is trained.
    """
    if model.name is not None:
        words: Any = load_tokenizer(model.name, trust_remote_code=model.trust_remote_code, revision=model.revision)
        if tokenizer is not None:
            say(f"tokenizer: that of {model.name}; the tokenizer section is for models built from a configuration")
    elif tokenizer is not None:
        words = train_tokenizer(texts(), tokenizer.vocab_size, tokenizer.kind)
    else:
        raise UserError("model.config builds a network but no tokenizer; add a tokenizer section to train one")
    template = Template(words, max_length=text.max_length, chat_template=text.chat_template, system=text.system)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for note in template.notes:
        say(f"tokenizer: {note}")
    bare = model.model_copy(update={"adapter": None})
    return load_policy(bare, vocab_size=len(template.tokenizer), device=device), template


def announce_memory(policy: nn.Module, micro_tokens: int, shared: bool) -> None:
    """Say how much memory training takes, before hours have gone by, and warn when it is not there."""
    device = next(policy.parameters()).device
    vocabulary = policy.config.get_text_config().vocab_size
    found = estimate(
        {"policy": Part(policy, True, True)}, tokens=micro_tokens, vocabulary=vocabulary, logit_tokens=1024
    )
    if shared:
        found = found._replace(gradients=0, optimiser=0)
    else:
        # Reference, reward and cost model are of the policy's size.
        found = found._replace(weights=4 * found.weights)
    say(f"memory: about {found.total / 2**30:.2f} GiB in the largest step (an estimate)")
    if warning := found.warning(available_bytes(device)):
        say(f"warning: {warning}")


def train(task: Task, rows: Sequence[Any], eval_rows: Sequence[Any], settings: FitSettings, run: RunFolder) -> None:
    """Train one supervised part; the stage is called by the task's name."""
    result = fit(task, rows, eval_rows, settings, run, stage=task.name)
    numbers = "  ".join(f"{name} {value:.3f}" for name, value in result.metrics.items() if name != "lr")
    say(f"{task.name}: {len(rows)} rows, {result.steps} steps, held out {numbers}")


def imitate(
    settings: FitSettings, run: RunFolder, conversations: Sequence[Conversation], policy: nn.Module, template: Template
) -> None:
    """Fine-tune `policy` on the conversations, one in twenty held out, and save it as `models/sft`."""
    rows = imitation_rows(conversations, template)
    held_out = max(1, len(rows) // 20)
    train(SftTask(policy, template.pad_id), rows[held_out:], rows[:held_out], settings, run)
    keep(run, policy, template, conversations, "sft")


def on_main(run: RunFolder, work: Callable[[], Result]) -> Result:
    """The result of `work`, done once, by the first process, while the others wait for it."""
    return run.processes.gather([work() if run.processes.is_main else None])[0]  # type: ignore[return-value]


def keep(run: RunFolder, model: nn.Module, template: Template, answered: Sequence[Conversation], name: str) -> Path:
    """Save a model as `models/NAME` so that loading proves it is the same, with four answers as probes."""
    rows = [template.answered(one) for one in answered if one.answered and one.response][:4]
    probes = pad(rows, pad_id=template.pad_id)
    tokenizer = template.processor or template.tokenizer
    return on_main(run, lambda: save(model, tokenizer, run.path / "models" / name, probes=probes))


def frozen_reference(policy: nn.Module) -> Callable[[], AbstractContextManager[nn.Module]]:
    """Opens the policy as it is now: its base with the adapters off, or a frozen copy."""
    if hasattr(policy, "disable_adapter"):
        return lambda: adapters_off(policy)
    copied = copy.deepcopy(policy).requires_grad_(False).eval()
    return lambda: nullcontext(copied)


def scores_by_name(scorer: Scorer) -> Score:
    """The scorer as a function from conversations to one (N,) tensor per name."""

    def score(conversations: Sequence[Conversation]) -> dict[str, Tensor]:
        table = scorer.score(conversations)
        return {name: table[:, j] for j, name in enumerate(scorer.names)}

    return score


def offset(settings: Any, seed: int) -> Any:
    """Stage settings whose seed is moved by the run's, so that one number changes every stage."""
    return settings.model_copy(update={"seed": settings.seed + seed})


def texts_of(conversations: Sequence[Conversation]) -> list[str]:
    """All text of the conversations, for a tokenizer to learn from."""
    return [message.text for one in conversations for message in one.messages]


def numbers(mapping: Mapping[str, float]) -> str:
    """Numbers on one line.

    >>> numbers({"kl": 1.23456})
    'kl 1.235'
    """
    return "  ".join(f"{name} {value:.3f}" for name, value in mapping.items())
