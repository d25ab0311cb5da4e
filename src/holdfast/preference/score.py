"""One contract for everything that gives numbers to conversations: a model, or any Python function."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from holdfast.data.collate import micro_batches, pad
from holdfast.data.schema import Conversation
from holdfast.data.template import Template
from holdfast.errors import RunError
from holdfast.models.heads import ScoreModel
from holdfast.models.policy import evaluating


class Scorer(Protocol):
    """Conversations in, named scores out."""

    names: tuple[str, ...]

    def score(self, conversations: Sequence[Conversation]) -> Tensor:
        """Scores (B, K) in float32 on the CPU, column j being `names[j]`."""


class ModelScorer:
    """A score model behind the `Scorer` contract; equal conversations are scored once.

    batch_tokens: padded tokens of one forward pass.
    """

    def __init__(self, model: ScoreModel, template: Template, batch_tokens: int = 16384) -> None:
        self.model, self.template, self.batch_tokens = model, template, batch_tokens
        self.names = model.names

    def score(self, conversations: Sequence[Conversation]) -> Tensor:
        """Scores (B, K); raises `RunError` that names the rows whose score is not finite."""
        distinct = {_identity(one): one for one in conversations}
        rows = [self.template.answered(one) for one in distinct.values()]
        table = torch.empty(len(rows), len(self.names))
        device = next(self.model.parameters()).device
        with evaluating(self.model):
            for chosen in micro_batches([row.length for row in rows], self.batch_tokens) if rows else []:
                batch = pad([rows[i] for i in chosen], pad_id=self.template.pad_id).to(device)
                table[chosen] = self.model.scores(
                    batch.input_ids,
                    batch.attention_mask,
                    batch.position_ids,
                    batch.score_index,
                    **batch.extra,
                ).cpu()
        place = {key: i for i, key in enumerate(distinct)}
        return finite(table[[place[_identity(one)] for one in conversations]], conversations)


class FunctionScorer:
    """A Python function as a scorer: conversations to a table of B rows and K columns.

    >>> length = FunctionScorer(("words",), lambda rows: [[len(row.response.split())] for row in rows])
    >>> length.score([Conversation.ask("Hello?").answer("Good morning to you.")]).tolist()
    [[4.0]]
    """

    def __init__(
        self, names: tuple[str, ...], function: Callable[[Sequence[Conversation]], Sequence[Sequence[float]]]
    ) -> None:
        self.names, self.function = names, function

    def score(self, conversations: Sequence[Conversation]) -> Tensor:
        """Scores (B, K); raises `RunError` when the function returns another shape or numbers that are not finite."""
        expected = (len(conversations), len(self.names))
        if not conversations:
            return torch.empty(expected)
        table = torch.tensor(self.function(conversations), dtype=torch.float32)
        if table.shape != expected:
            raise RunError(
                f"the scoring function returned a table of shape {tuple(table.shape)} where {expected} is needed: "
                f"a row for each conversation with a column for each of {', '.join(self.names)}"
            )
        return finite(table, conversations)


class JointScorer:
    """Several scorers as one: their columns side by side. Two columns of one name are an error."""

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        self.scorers = tuple(scorers)
        self.names = tuple(name for scorer in scorers for name in scorer.names)
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"two scorers share a name: {self.names}")

    def score(self, conversations: Sequence[Conversation]) -> Tensor:
        """Scores (B, K) of all scorers, in their order."""
        return torch.cat([scorer.score(conversations) for scorer in self.scorers], dim=1)


def _identity(conversation: Conversation) -> tuple[object, ...]:
    return conversation.messages


def finite(table: Tensor, conversations: Sequence[Conversation]) -> Tensor:
    """`table` (B, K) itself; `RunError` that names the rows with a score that is not finite."""
    bad = (~torch.isfinite(table)).any(-1).nonzero()[:, 0].tolist() if len(table) else []
    if bad:
        names = ", ".join(conversations[i].id or f"number {i}" for i in bad[:5])
        raise RunError(
            f"{len(bad)} of {len(table)} conversations got scores that are not finite (rows {names}); "
            "the score model has diverged or was loaded wrongly"
        )
    return table
