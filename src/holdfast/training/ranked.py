"""Several answers to one prompt, ordered best first, learned from directly: DPO on pairs, PRO on longer rankings.

The prompt is read once for all its answers. What the reference says of the answers is data in the rows, so that a
second model is needed only to fill it in.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.config import Settings
from holdfast.data.grouped import Grouped, cut, group
from holdfast.data.schema import Ranked
from holdfast.data.template import Encoded, Template
from holdfast.errors import UserError
from holdfast.losses import offline
from holdfast.losses.reduce import Sum, over
from holdfast.models.grouped import Sharing
from holdfast.preference.tasks import wins
from holdfast.rollout.reading import Reader


@dataclass(frozen=True)
class RankedRow:
    """n encoded answers to one prompt, best first.

    quality: a raw reward of each, for PRO; ref: the log-probability of each whole answer under the reference, for DPO
    (`reference_of` fills it in). Both may be empty where nobody reads them.
    """

    id: str
    answers: tuple[Encoded, ...]
    quality: tuple[float, ...] = ()
    ref: tuple[float, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of the row with every answer padded to the longest."""
        return len(self.answers) * max(answer.length for answer in self.answers)


@dataclass(frozen=True)
class RankedBatch:
    """N answers of B rows, row after row, each row's best first.

    sizes: (B,) how many answers a row has; quality, ref: (N,) as in the rows, empty where they have none.
    """

    tokens: Grouped
    sizes: Tensor
    quality: Tensor
    ref: Tensor
    ids: tuple[str, ...]

    @property
    def size(self) -> int:
        """The number of rows."""
        return len(self.sizes)


class DpoSettings(Settings):
    """How pairs are learned from."""

    beta: float = Field(0.1, gt=0)
    """How strongly the policy is held to the reference; the smaller, the further it goes."""
    reference_free: bool = False
    """Compare the policy's log-probabilities with each other and not with the reference's."""
    share_prompt: Literal["auto", "off"] = "auto"
    """Read a prompt once for both answers, where that pays and gives the same numbers."""


class ProSettings(Settings):
    """How rankings are learned from."""

    sft_weight: float = Field(0.05, ge=0)
    """Weight of the best answer's negative log-likelihood; rows of n answers multiply it by (n - 1)^2."""
    share_prompt: Literal["auto", "off"] = "auto"
    """Read a prompt once for all its answers, where that pays and gives the same numbers."""


def reference_of(rows: Iterable[RankedRow], reader: Reader) -> list[RankedRow]:
    """The rows with what the reader's policy, the reference, says of their answers; without gradient or dropout."""
    rows = list(rows)
    table = reader.logprobs([answer for row in rows for answer in row.answers]).double().sum(-1)
    values = iter(table.tolist())
    return [replace(row, ref=tuple(next(values) for _ in row.answers)) for row in rows]


def ranked_rows(records: Iterable[Ranked], template: Template) -> list[RankedRow]:
    """Encoded rows of rankings, with their rewards where these are known."""
    rows = []
    for record in records:
        prompt = record.prompt.model_copy(update={"id": record.id})
        answers = tuple(template.answered(prompt.answer(text)) for text in record.responses)
        rows.append(RankedRow(record.id, answers, record.rewards or ()))
    return rows


class _RankedTask:
    """What both methods have in common: whole rows read together, prompts once, without dropout."""

    name: str

    def __init__(self, model: nn.Module, pad_id: int, share_prompt: Literal["auto", "off"]) -> None:
        self.model, self.pad_id = model, pad_id
        self.reader = Reader(model, pad_id, share=share_prompt)
        self._shares = partial(Sharing(share_prompt).worthwhile, model)

    def portions(self, rows: Sequence[RankedRow], micro_tokens: int) -> list[list[RankedRow]]:
        """The rows in micro-batches within `micro_tokens` as they are read, the longest first."""
        found = cut([row.answers for row in rows], micro_tokens, self._shares)
        return [[rows[i] for i in chosen] for chosen in reversed(found)]

    def collate(self, rows: Sequence[RankedRow]) -> RankedBatch:
        for row in rows:
            self._check(row)
        return RankedBatch(
            tokens=group([answer for row in rows for answer in row.answers], self.pad_id),
            sizes=torch.tensor([len(row.answers) for row in rows]),
            quality=torch.tensor([value for row in rows for value in row.quality]),
            ref=torch.tensor([value for row in rows for value in row.ref], dtype=torch.float64),
            ids=tuple(row.id for row in rows),
        )

    def sequences(self, batch: RankedBatch) -> Tensor:
        """(N,) log-probabilities of all answers, summed over their tokens, with gradient."""
        self.model.eval()  # `fit` has turned dropout on
        return self.reader.read(batch.tokens)[0].sum(-1)

    def _check(self, row: RankedRow) -> None:
        """None, or `UserError` for a row from which this method cannot learn."""
        if len(row.answers) < 2:
            raise UserError(
                f"row {row.id}: {self.name} compares answers, and there is {len(row.answers)}; leave it out"
            )


class DpoTask(_RankedTask):
    """Direct preference optimisation: -log sigmoid(beta (lead of the policy - lead of the reference)).

    The lead is log p(better) - log p(worse) (arXiv 2305.18290, eq. 7). Terms beside `preference`, the loss, only watch:
    `accuracy`, how often the policy's lead is the greater; `lead`, by how much, and `better`, how much likelier than
    under the reference the better answers are, both times beta. A `better` that falls says that both answers are being
    unlearned, the worse one faster.
    """

    name = "dpo"

    def __init__(self, model: nn.Module, pad_id: int, settings: DpoSettings | None = None) -> None:
        self.settings = settings or DpoSettings()
        super().__init__(model, pad_id, self.settings.share_prompt)
        self.weights = dict.fromkeys(("accuracy", "lead", "better"), 0.0)

    def counts(self, batch: RankedBatch) -> dict[str, float]:
        return dict.fromkeys(("preference", "accuracy", "lead", "better"), float(batch.size))

    def loss(self, batch: RankedBatch) -> dict[str, Sum]:
        said = self.sequences(batch)
        known = torch.zeros(batch.size, 2) if self.settings.reference_free else batch.ref.view(-1, 2)
        beta, (better, worse) = self.settings.beta, said.view(-1, 2).unbind(1)
        ahead = beta * (said.detach().cpu().double().view(-1, 2) - known)
        lead = ahead[:, 0] - ahead[:, 1]
        return {
            "preference": offline.dpo(better, worse, beta, (known[:, 0] - known[:, 1]).to(better)),
            "accuracy": over(wins(lead)),
            "lead": over(lead),
            "better": over(ahead[:, 0]),
        }

    def metrics(self, batch: RankedBatch) -> dict[str, Sum]:
        return self.loss(batch)

    def _check(self, row: RankedRow) -> None:
        if len(row.answers) != 2:
            raise UserError(
                f"row {row.id}: dpo compares two answers, and there are {len(row.answers)}; make pairs, or use pro"
            )
        if not self.settings.reference_free and len(row.ref) != 2:
            raise UserError(
                f"row {row.id}: dpo needs both answers' log-probabilities under the reference, and the row has "
                f"{len(row.ref)}; fill them in with reference_of, or set reference_free"
            )


class ProTask(_RankedTask):
    """Preference ranking optimisation (arXiv 2306.17492): each answer against all that come after it, see `pro`.

    An answer's score is its log-probability per token, of exactly its own tokens and the one that ends it. Terms:
    `rank`, `sft` (the best answer's negative log-likelihood times (n - 1)^2, as the authors' code has it), and to watch
    `accuracy`, how often the best answer has the highest score.
    """

    name = "pro"

    def __init__(self, model: nn.Module, pad_id: int, settings: ProSettings | None = None) -> None:
        self.settings = settings or ProSettings()
        super().__init__(model, pad_id, self.settings.share_prompt)
        self.weights = {"sft": self.settings.sft_weight, "accuracy": 0.0}

    def counts(self, batch: RankedBatch) -> dict[str, float]:
        return dict.fromkeys(("rank", "sft", "accuracy"), float(batch.size))

    def loss(self, batch: RankedBatch) -> dict[str, Sum]:
        said = self.sequences(batch)
        scores = said / batch.tokens.mask.sum(-1).to(said)
        rows: list[dict[str, Tensor]] = []
        for n in batch.sizes.unique().tolist():
            chosen = (batch.sizes == n).repeat_interleave(batch.sizes).to(said.device)
            ranked = scores[chosen].view(-1, n)
            rows.append(
                {
                    "rank": offline.pro(ranked, batch.quality.to(said)[chosen].view(-1, n)).total,
                    "sft": -((n - 1) ** 2) * said[chosen].view(-1, n)[:, 0].sum(),
                    "accuracy": (ranked.argmax(-1) == 0).sum(),
                }
            )
        count = torch.tensor(batch.size)
        return {name: Sum(torch.stack([part[name] for part in rows]).sum(), count) for name in rows[0]}

    def metrics(self, batch: RankedBatch) -> dict[str, Sum]:
        return self.loss(batch)

    def _check(self, row: RankedRow) -> None:
        super()._check(row)
        if len(row.quality) != len(row.answers) or not all(map(math.isfinite, row.quality)):
            raise UserError(
                f"row {row.id}: pro weighs answers by the gaps between their rewards, and they are "
                f"{row.quality} for {len(row.answers)} answers; give the rewards of all of them"
            )
        if list(row.quality) != sorted(row.quality, reverse=True):
            raise UserError(f"row {row.id}: answers must stand best first, and their rewards are {row.quality}")
