"""The stages that systems are made of: each reads settings and files, trains or tests, and writes to the run folder.

A finished stage is only loaded when a run is resumed.
"""

import copy
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from holdfast.config import Settings
from holdfast.data.collate import pad
from holdfast.data.schema import Conversation
from holdfast.data.template import Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.engine.budget import Part, available_bytes, estimate, peak_rss_mib
from holdfast.engine.log import RunFolder
from holdfast.engine.supervised import FitSettings, Task, fit
from holdfast.errors import UserError
from holdfast.models.adapters import reference as adapters_off
from holdfast.models.load import ModelSettings, load_policy, load_tokenizer
from holdfast.models.save import save
from holdfast.pocket import world
from holdfast.pocket.ratings import RatingsSettings
from holdfast.preference.score import Scorer
from holdfast.rollout.experience import Score
from holdfast.stats.calibration import Platt
from holdfast.stats.estimate import Estimate
from holdfast.training.lagrangian import Constraint, ConstraintSettings
from holdfast.training.sft import SftTask, imitation_rows

Result = TypeVar("Result")


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


class RunSettings(Settings):
    """What every system that trains something can be told."""

    seed: int = Field(0, ge=0)
    """Moves the seed of every stage."""
    pocket: world.WorldSettings | None = None
    """Make a pocket world and learn in it; where the truth is of use it is reported beside what was learned."""
    model: Model | None = None
    """The network to start from; a text alone is a hub name or a folder. With `pocket` it is the world's."""
    tokenizer: TokenizerSettings | None = None
    """Train a tokenizer on the data, for a model that is built from a configuration."""
    text: TextSection = TextSection()
    """How text becomes tokens."""
    sft: FitSettings | None = None
    """Imitate conversations first; null starts from the network as it is."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers beside metrics.jsonl: wandb, tensorboard, trackio, ..."""


def say(text: str) -> None:
    """One line for the person, on the same stream as progress; only the first process speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


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


def train(
    task: Task,
    rows: Sequence[Any],
    eval_rows: Sequence[Any],
    settings: FitSettings,
    run: RunFolder,
    stage: str | None = None,
) -> None:
    """Train one supervised part; the stage is called by the task's name unless another is given."""
    stage = stage or task.name
    result = fit(task, rows, eval_rows, settings, run, stage=stage)
    numbers = "  ".join(f"{name} {value:.3f}" for name, value in result.metrics.items() if name != "lr")
    say(f"{stage}: {len(rows)} rows, {result.steps} steps, held out {numbers}")


def imitate(
    settings: FitSettings,
    run: RunFolder,
    conversations: Sequence[Conversation],
    policy: nn.Module,
    template: Template,
    stage: str = "sft",
) -> None:
    """Fine-tune `policy` on the conversations, one in twenty held out, and save it as `models/STAGE`."""
    rows = imitation_rows(conversations, template)
    held_out = max(1, len(rows) // 20)
    train(SftTask(policy, template.pad_id), rows[held_out:], rows[:held_out], settings, run, stage)
    keep(run, policy, template, conversations, stage)


def on_main(run: RunFolder, work: Callable[[], Result]) -> Result:
    """The result of `work`, done once, by the first process, while the others wait for it."""
    return run.processes.on_first(work)


def pocket_world(settings: world.WorldSettings, seed: int, run: RunFolder, *, rated: bool) -> Path:
    """The pocket world of a run, written once; with answers rated on several scales where they are wanted."""
    chosen = offset(settings, seed)
    if rated and chosen.ratings is None:
        chosen = chosen.model_copy(update={"ratings": RatingsSettings()})
    return on_main(run, lambda: world.write(run.path / "world", chosen))


def keep(run: RunFolder, model: nn.Module, template: Template, answered: Sequence[Conversation], name: str) -> Path:
    """Save a model as `models/NAME` so that loading proves it is the same, with four answers as probes."""
    rows = [template.answered(one) for one in answered if one.answered and one.response][:4]
    probes = pad(rows, pad_id=template.pad_id)
    tokenizer = template.processor or template.tokenizer
    return on_main(run, lambda: save(model, tokenizer, run.path / "models" / name, probes=probes))


def conclude(run: RunFolder, summary: Mapping[str, Any], began: float) -> dict[str, Any]:
    """Write `summary.json`, estimates spelled out, with the time and memory the run took; return it."""
    whole = {name: value.to_dict() if isinstance(value, Estimate) else value for name, value in summary.items()}
    whole |= {"seconds": round(time.monotonic() - began, 1), "peak_rss_mib": round(peak_rss_mib())}
    run.write_json("summary.json", whole)
    return whole


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


def limit(settings: ConstraintSettings, zero: float, calibration: Platt | None) -> Constraint:
    """The limit on a cost whose border of harm and calibration are known."""

    def probability(costs: Tensor) -> Tensor:
        assert calibration is not None
        return torch.from_numpy(calibration.probability(costs.numpy())).float()

    return Constraint(settings, zero, probability if calibration else None)


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
