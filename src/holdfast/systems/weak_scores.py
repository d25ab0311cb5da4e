"""Reward and cost models that learn from the labels of a weaker one in place of people's (arXiv 2312.09390).

Any recipe with pairs can say `labels: {from: weak_model, reward: FOLDER}`. What the weak model says of each pair lies
in the run folder as a table; people's preferences are then only counted against it, and judge what was learned.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import ConfigDict, Field, model_validator
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from holdfast.config import Settings
from holdfast.data.schema import DualPair
from holdfast.data.template import Template
from holdfast.engine.log import RunFolder
from holdfast.engine.supervised import FitSettings
from holdfast.errors import UserError
from holdfast.losses import transfer
from holdfast.losses.reduce import Sum, over, precise
from holdfast.models.heads import ScoreModel, load_score_model
from holdfast.models.load import load_tokenizer
from holdfast.models.value import network_digest
from holdfast.preference.pairs import PairForward, PairRow, absolute_label, collate_pairs
from holdfast.preference.score import ModelScorer
from holdfast.preference.weak_labels import Calibration, WeakLabels, sha256_of
from holdfast.stats.estimate import proportion
from holdfast.systems import reading, stages
from holdfast.training.transfer import TransferBatch, TransferSettings, TransferTask, rows_of

Axis = Literal["reward", "cost"]


class LabelSettings(Settings):
    """Who says which answer of a pair is better, or does more harm."""

    model_config = ConfigDict(populate_by_name=True)

    source: Literal["data", "weak_model"] = Field("data", alias="from")
    """The people of the data, or a weaker model. In files: `from`."""
    reward: stages.Model | None = None
    """Folder of the weak reward model; null leaves the reward to the people."""
    cost: stages.Model | None = None
    """Folder of the weak cost model, whose zero is the border of harm; null leaves the cost to the people."""
    temperature: float = Field(1.0, gt=0)
    """What the weak model's scores are divided by; a run of `weak_to_strong` finds one on held-out people's labels."""
    learn: TransferSettings = TransferSettings()
    """The loss; `logconf` trusts the student more as it learns. How long is said by `reward.fit` and `cost.fit`."""
    scale: float = Field(1.0, ge=0)
    """Weight of the weak cost model's word on single answers, against its word on pairs."""

    @model_validator(mode="after")
    def _settings_go_together(self) -> Self:
        weak = self.source == "weak_model"
        if weak and self.reward is None and self.cost is None:
            raise ValueError("from: weak_model needs the folder of the weak model: labels.reward or labels.cost")
        moved = [name for name, one in type(self).model_fields.items() if getattr(self, name) != one.default]
        if not weak and moved:
            raise ValueError(f"{', '.join(moved)}: only a weak model reads this; set from: weak_model, too")
        if weak and self.cost is None and self.scale != type(self).model_fields["scale"].default:
            raise ValueError("labels.scale weighs the word of a weak cost model; give labels.cost, or leave scale out")
        if self.learn.fit != TransferSettings().fit:
            raise ValueError("labels.learn.fit has no effect; reward.fit and cost.fit say how long")
        for name in ("prior", "min_pool"):
            if getattr(self.learn, name) != getattr(TransferSettings(), name):
                raise ValueError(
                    f"labels.learn.{name} has no effect: the order of a pair is drawn, so it has no classes"
                )
        return self

    def require(self, trained: Mapping[Axis, Any], joint: bool, by_people: Mapping[str, object]) -> None:
        """None, or `ValueError` where labels would not reach what they are for.

        trained: the section of each model. joint: both are one network. by_people: what learns people's preferences
        from the pairs whatever a weak model says, by the name of its setting.
        """
        if joint and self.source == "weak_model":
            raise ValueError("reward and cost in one network learn from people; with labels.from=weak_model part them")
        if self.reward is not None and (given := [name for name, one in by_people.items() if one]):
            raise ValueError(
                f"{', '.join(given)} learns people's preferences, which labels.reward replaces; leave one of them out"
            )
        for axis, stage in trained.items():
            if self.of(axis) is None:
                continue
            if stage is None:
                raise ValueError(
                    f"labels.{axis} labels pairs for a {axis} model, and none is trained; add {axis}: {{}}"
                )
            # The labels of the data still say what the cost model is worth.
            unread = [
                name for name, value in type(stage.loss)() if name != "labels" and getattr(stage.loss, name) != value
            ]
            if unread:
                raise ValueError(
                    f"{axis}.loss.{unread[0]} has no effect on what a weak model labels, see labels.learn; leave it out"
                )

    def of(self, axis: Axis) -> stages.Model | None:
        """The weak model that labels this axis, if one does."""
        return self.reward if axis == "reward" else self.cost


@dataclass(frozen=True)
class Told:
    """What a weak model says of N pairs: its table, and (N, 2) the scores of both answers over the temperature.

    pairs: those it could read, in the order of the table.
    """

    table: WeakLabels
    scores: Tensor
    pairs: Sequence[DualPair]


def asked(
    settings: LabelSettings, axis: Axis, pairs: Sequence[DualPair], run: RunFolder, text: stages.TextSection
) -> Told:
    """What the weak model says of both answers of every pair, from `weak_labels/AXIS.jsonl` where it said so before.

    Raises `UserError` where that table is of another model, other pairs or another temperature.
    """
    model = settings.of(axis)
    assert model is not None, "asked only where a weak model labels the axis"
    words = load_tokenizer(model.name or "", trust_remote_code=model.trust_remote_code, revision=model.revision)
    template = Template(words, max_length=text.max_length, chat_template=text.chat_template, system=text.system)
    pairs = legible(pairs, template, axis, text)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scorer = ModelScorer(load_score_model(model, device), template)
    parts = [part for one in pairs for part in (one.id, one.prompt.model_dump_json(), *one.responses)]
    stamp = {"data_sha256": sha256_of(parts), "split_sha256": sha256_of(["learn"])}
    origin = sha256_of([network_digest(scorer.model), template.fingerprint])
    calibration = Calibration("temperature", T=settings.temperature)
    file = run.path / "weak_labels" / f"{axis}.jsonl"

    def label() -> None:
        answers = [pair.prompt.answer(response) for pair in pairs for response in pair.responses]
        found = scorer.score(answers)[:, _column(scorer.names, axis)].view(-1, 2)
        logits = transfer.pair(found[:, 1] - found[:, 0])
        ids, name = tuple(one.id for one in pairs), model.name or "a network without a name"
        table = WeakLabels(ids, logits, name, calibration, **stamp, created_from=origin, kind="margin")
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"scores": found.contiguous()}, _scores_beside(file))
        table.write(file)

    stages.on_main(run, lambda: None if file.is_file() else label())
    table = WeakLabels.read(file, **stamp)
    if (table.created_from, table.calibration) != (origin, calibration):
        raise UserError(f"stale weak labels: {file} is of another model or temperature; delete it, or use a new folder")
    return Told(table, load_file(_scores_beside(file))["scores"] / settings.temperature, pairs)


def _scores_beside(file: Path) -> Path:
    return file.with_name(f"{file.stem}_scores.safetensors")


def legible(pairs: Sequence[DualPair], template: Template, axis: Axis, text: stages.TextSection) -> Sequence[DualPair]:
    """The pairs whose prompts the weak model can read; the others are an error, or left out for this axis and told.

    Its tokenizer is not that of the model that learns, and the same prompt may be longer in it.
    """
    kept = [pair for pair in pairs if reading.fits(pair, template)]
    if len(kept) < len(pairs) and text.on_long_prompt == "error":
        lost = next(pair for pair in pairs if not reading.fits(pair, template))
        raise UserError(
            f"labels.{axis}: the prompt of {lost.id} leaves the weak model no room for an answer in "
            f"{text.max_length} tokens; raise text.max_length, or set text.on_long_prompt=skip"
        )
    if not kept:
        raise UserError(f"labels.{axis}: the weak model can read no prompt within text.max_length {text.max_length}")
    if len(kept) < len(pairs):
        stages.say(f"labels.{axis}: {len(pairs) - len(kept)} pairs are too long for the weak model and left out")
    return kept


def _column(names: Sequence[str], axis: Axis) -> int:
    """Which score of the weak model is meant: the one called so, else its first."""
    return names.index(axis) if axis in names else 0


def agreement(told: Told, axis: Axis) -> dict[str, Any] | None:
    """How often the weak model agrees with the people, where they said something; None where they did not."""
    pairs = told.pairs
    gold = [pair.helpful_id if axis == "reward" else _worse(pair) for pair in pairs]
    known = [i for i, side in enumerate(gold) if side is not None]
    if len(known) < 2:
        return None
    right = [bool(told.table.p[i, 1] > 0.5) == bool(gold[i]) for i in known]
    return proportion(right, [pairs[i].prompt.key for i in known]).to_dict()


def judged(pair: DualPair, axis: Axis, labels: str = "none") -> bool:
    """Whether people said anything about a pair on this axis; labels: which labels of single answers count."""
    if axis == "reward":
        return pair.helpful_id is not None
    return pair.safer_id is not None or not all(math.isnan(absolute_label(pair, side, labels)) for side in (0, 1))


def _worse(pair: DualPair) -> int | None:
    return None if pair.safer_id is None else 1 - pair.safer_id


def learn(
    settings: LabelSettings,
    axis: Axis,
    network: ScoreModel,
    fit: FitSettings,
    run: RunFolder,
    template: Template,
    told: Told,
) -> None:
    """Train `network` in place on what the weak model says, as the stage called `axis`."""
    task, rows = weak_task(settings, axis, network, fit, template, told)
    stages.train(task, rows, [], fit, run, axis)


def weak_task(
    settings: LabelSettings,
    axis: Axis,
    network: ScoreModel,
    fit: FitSettings,
    template: Template,
    told: Told,
) -> tuple[TransferTask, list[Any]]:
    """The task that learns a weak model's labels, and its rows."""
    both, pairs = PairForward(network), told.pairs
    harm = torch.sigmoid(told.scores).tolist() if axis == "cost" else [[0.0, 0.0]] * len(pairs)
    encoded = both.budgeted(
        [
            PairRow(pair.id, *(template.answered(pair.prompt.answer(text)) for text in pair.responses), absolute=(a, b))
            for pair, (a, b) in zip(pairs, harm)
        ]
    )
    rows = rows_of(encoded, told.table.take([pair.id for pair in pairs]))
    chosen = settings.learn.model_copy(update={"fit": fit})
    if axis == "cost":
        return WeakCostTask(network, both, rows, chosen, template.pad_id, settings.scale), rows

    def margins(found: Sequence[PairRow]) -> Tensor:
        first, second = both(collate_pairs(found, template.pad_id))
        return transfer.pair((second - first)[:, 0])

    return TransferTask(network, margins, rows, chosen), rows


class WeakCostTask(TransferTask):
    """A cost model from a weak one's labels: which answer does more harm, and of each answer whether it does any.

    Cross-entropy of sigma(c_2 - c_1) with the pair's label, and `scale` times that of sigma(c_i) with the weak model's
    own sigma(c_i) for both answers, so that zero stays the border that the weak model knows.
    """

    def __init__(
        self,
        network: ScoreModel,
        both: PairForward,
        rows: Sequence[Any],
        settings: TransferSettings,
        pad_id: int,
        scale: float,
    ) -> None:
        super().__init__(network, self._margins, rows, settings)
        self.both, self.pad_id = both, pad_id
        # The published loss adds the terms of both answers; `absolute` is averaged over answers.
        self.weights = {"absolute": 2 * scale}

    def counts(self, batch: TransferBatch) -> dict[str, float]:
        return {**super().counts(batch), "absolute": 2.0 * len(batch.weak)}

    def loss(self, batch: TransferBatch) -> dict[str, Sum]:
        first, second, harm = self._costs(batch.inputs)
        logits = transfer.pair(second - first)
        absolute = binary_cross_entropy_with_logits(torch.cat([first, second]), harm, reduction="none")
        ranked = transfer.cross_entropy(logits, self._target(batch, logits))
        return {"transfer": ranked, "absolute": over(absolute)}

    def _costs(self, rows: Sequence[PairRow]) -> tuple[Tensor, Tensor, Tensor]:
        """Costs (B,) of the first and of the second answers, and (2B,) how likely each does harm."""
        batch = collate_pairs(rows, self.pad_id)
        first, second = self.both(batch)
        return precise(first[:, 0]), precise(second[:, 0]), batch.absolute.to(first.device)

    def _margins(self, rows: Sequence[PairRow]) -> Tensor:
        first, second, _ = self._costs(rows)
        return transfer.pair(second - first)
