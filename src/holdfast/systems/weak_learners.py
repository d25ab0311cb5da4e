"""Who supervises and who is supervised: learners from settings, for texts with a class and for pairs of answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from holdfast.config import Settings
from holdfast.data.collate import micro_batches, pad
from holdfast.data.schema import Conversation
from holdfast.data.sources import Readable
from holdfast.data.template import Template
from holdfast.engine.log import RunFolder
from holdfast.engine.supervised import FitSettings
from holdfast.errors import UserError
from holdfast.losses.reduce import precise
from holdfast.models.policy import evaluating, hidden_states
from holdfast.systems import reading, stages
from holdfast.training.learners import BagOfWords, Finetuned, Learner, Network, Predictor, Probe
from holdfast.training.transfer import TransferSettings


class LearnerSettings(Settings):
    """A model, weak or strong."""

    kind: Literal["finetuned", "probe", "words"] = "finetuned"
    """All weights of a network (with `model.adapter`: the adapter), a head on the states of a frozen one, or words
    counted and weighed, a logistic regression."""
    model: stages.Model | None = None
    """The network; a text alone is a hub name or a folder. With `pocket` null is the world's."""
    sft: FitSettings | None = None
    """Imitate the answers first, whatever anybody thinks of them (generative finetuning); null does not."""
    hidden: int = Field(0, ge=0)
    """`probe`: units of a hidden layer; 0 is a linear map."""
    regularisation: float = Field(10.0, gt=0)
    """`words`: the C of the logistic regression; larger is weaker."""

    @model_validator(mode="after")
    def _settings_go_together(self) -> "LearnerSettings":
        fields = type(self).model_fields
        read = {"probe": {"model", "sft", "hidden"}, "words": {"regularisation"}, "finetuned": {"model", "sft"}}
        for name in ("model", "sft", "hidden", "regularisation"):
            if name not in read[self.kind] and getattr(self, name) != fields[name].default:
                raise ValueError(f"{name} has no effect on kind={self.kind}; leave it out")
        if self.kind == "probe" and self.model is not None and self.model.adapter is not None:
            raise ValueError("a probe leaves the network as it is, and model.adapter changes it; choose one")
        return self


@dataclass(frozen=True)
class Workshop:
    """What learners are built from: settings of the run, those of each learner by its name, texts for a tokenizer.

    names: of the outputs, one for each class, or the one score of an answer of a pair.
    """

    settings: stages.RunSettings
    run: RunFolder
    pair: bool
    names: Sequence[str]
    wanted: Mapping[str, LearnerSettings]
    texts: Callable[[], list[str]]

    @cached_property
    def bases(self) -> dict[str, tuple[nn.Module, Template]]:
        """The network that each learner starts from, and the template that feeds it; counted words have none."""
        found = {}
        for name, one in self.wanted.items():
            if one.kind != "words":
                if one.model is None:
                    raise UserError(f"{name}.model is missing: kind={one.kind} needs a network; give {name}.model=NAME")
                found[name] = stages.load_base(one.model, self.settings.tokenizer, self.settings.text, self.texts)
        return found

    def legible(self, records: Sequence[Readable]) -> list[bool]:
        """Whether the prompt of each record leaves all learners room; `UserError` unless it may be skipped."""
        text = self.settings.text
        templates = {name: template for name, (_, template) in self.bases.items()}
        found = [[name for name, template in templates.items() if not reading.fits(one, template)] for one in records]
        lost = [(getattr(one, "id", ""), names[0]) for one, names in zip(records, found) if names]
        if lost and text.on_long_prompt == "error":
            raise UserError(
                f"{len(lost)} of {len(records)} rows, such as {lost[0][0]}, have a prompt that leaves the {lost[0][1]} "
                f"no room in {text.max_length} tokens; raise text.max_length, or set text.on_long_prompt=skip"
            )
        return [not names for names in found]

    def build(self, name: str, answered: Sequence[Conversation]) -> Learner:
        """The learner called `name`; answered: what generative finetuning imitates."""
        wanted = self.wanted[name]
        if wanted.kind == "words":
            return BagOfWords(self._as_texts, pair=self.pair, regularisation=wanted.regularisation)
        policy, template = self.bases[name]
        if wanted.sft is not None:
            fit = stages.offset(wanted.sft, self.settings.seed)
            stages.imitate(fit, self.run, answered, policy, template, stage=f"sft_{name}")
        if wanted.kind == "probe":
            return Probe(States(policy, template), pair=self.pair, hidden=wanted.hidden)
        adapter = wanted.model.adapter if wanted.model else None
        return Finetuned(policy, template, list, pair=self.pair, adapter=adapter, names=self.names)

    def keep(self, name: str, learner: Learner, found: Predictor, shown: Sequence[Conversation]) -> None:
        """Save a finetuned network as `models/NAME`; what other learners learned lies in the folder of their stage."""
        if isinstance(learner, Finetuned) and isinstance(found, Network):
            # A saved model is proven by answers; of texts without any, an empty one behind the text will do.
            probes = [one if one.answered else one.answer(".") for one in shown[:4]]
            stages.keep(self.run, found.network, learner.template, probes, name)

    def _as_texts(self, items: Sequence[Any]) -> list[Any]:
        return [tuple(map(told, one)) if self.pair else told(one) for one in items]


def told(conversation: Conversation) -> str:
    """All that is said, turn by turn, as one text.

    >>> told(Conversation.ask("Tulips?").answer("Dig a hole."))
    'Tulips? Dig a hole.'
    """
    return " ".join(message.text for message in conversation.messages)


@dataclass
class States:
    """Conversations to features (N, h), of pairs (N, 2, h): the mean of a frozen network's last states.

    Each conversation is read once.
    """

    policy: nn.Module
    template: Template
    batch_tokens: int = 16384
    known: dict[Any, Tensor] = field(default_factory=dict)

    def __call__(self, items: Sequence[Any]) -> Tensor:
        """The features of conversations, or of pairs of them."""
        if items and isinstance(items[0], tuple):
            return torch.stack([self._of([one[side] for one in items]) for side in (0, 1)], 1)
        return self._of(items)

    def _of(self, items: Sequence[Conversation]) -> Tensor:
        new = list({one.messages: one for one in items if one.messages not in self.known}.values())
        encode = self.template
        rows = [encode.answered(one) if one.answered else encode.prompt(one) for one in new]
        device = next(self.policy.parameters()).device
        with evaluating(self.policy):
            for chosen in micro_batches([row.length for row in rows], self.batch_tokens) if rows else []:
                batch = pad([rows[i] for i in chosen], pad_id=self.template.pad_id).to(device)
                states = hidden_states(
                    self.policy, batch.input_ids, batch.attention_mask, batch.position_ids, **batch.extra
                )
                mask = batch.attention_mask[..., None]
                means = (precise(states) * mask).sum(1) / mask.sum(1)
                self.known |= {new[i].messages: one for i, one in zip(chosen, means.cpu())}
        return torch.stack([self.known[one.messages] for one in items])


def learning(fit: FitSettings, settings: TransferSettings | None = None) -> TransferSettings:
    """How a model learns gold labels: as they are, in the portions of `fit`."""
    return (settings or TransferSettings()).model_copy(update={"fit": fit})
