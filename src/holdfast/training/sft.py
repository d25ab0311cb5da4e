"""Supervised fine-tuning: imitate the assistant's turns of conversations."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from holdfast.data.collate import Batch, pad
from holdfast.data.schema import Conversation
from holdfast.data.template import Encoded, Template
from holdfast.errors import UserError
from holdfast.losses.reduce import Sum, over
from holdfast.models.policy import response_logprobs


def imitation_rows(conversations: Iterable[Conversation], template: Template) -> list[Encoded]:
    """Encoded rows of the conversations that hold an answer; `UserError` when none does."""
    rows = [template.answered(one) for one in conversations if one.answered]
    if not rows:
        raise UserError("no conversation ends with an answer, so there is nothing to imitate; check data.sft")
    return rows


class SftTask:
    """Mean negative log-likelihood per token of every assistant turn, end tokens included."""

    name = "sft"
    weights: dict[str, float] = {}

    def __init__(self, model: nn.Module, pad_id: int) -> None:
        self.model, self.pad_id = model, pad_id

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        return pad(rows, pad_id=self.pad_id)

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"nll": float(batch.turn_mask.sum())}

    def loss(self, batch: Batch) -> dict[str, Sum]:
        batch = batch.to(next(self.model.parameters()).device)
        return {"nll": over(-self._logprobs(batch), batch.turn_mask)}

    def metrics(self, batch: Batch) -> dict[str, Sum]:
        return self.loss(batch)

    def _logprobs(self, batch: Batch) -> Tensor:
        return response_logprobs(
            self.model,
            batch.input_ids,
            batch.attention_mask,
            batch.position_ids,
            batch.turn_mask,
            **batch.extra,
        )
