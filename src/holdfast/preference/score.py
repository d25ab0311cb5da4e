"""One contract for everything that gives numbers to conversations: a model, or any Python function.

A score may be NaN where it does not exist: a function, and whatever answers for one, says so by `None`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from holdfast.data.grouped import Grouped, group, portions
from holdfast.data.schema import Conversation
from holdfast.data.template import Template
from holdfast.errors import RunError
from holdfast.losses.reduce import precise
from holdfast.models.grouped import Sharing, last_states
from holdfast.models.heads import ScoreModel
from holdfast.models.policy import evaluating, hidden_states


class Scorer(Protocol):
    """Conversations in, named scores out."""

    names: tuple[str, ...]

    def score(self, conversations: Sequence[Conversation]) -> Tensor:
        """Scores (B, K) in float32 on the CPU, column j being `names[j]`."""


class ModelScorer:
    """A score model behind the `Scorer` contract; equal conversations are scored once.

    A prompt with several answers is read once for all of them where that pays and gives the same states.
    batch_tokens: tokens of one forward pass, padding included.
    """

    def __init__(
        self,
        model: ScoreModel,
        template: Template,
        batch_tokens: int = 16384,
        share_prompt: Literal["auto", "off"] = "auto",
    ) -> None:
        self.model, self.template, self.batch_tokens = model, template, batch_tokens
        self.names, self._sharing = model.names, Sharing(share_prompt)

    def score(self, conversations: Sequence[Conversation]) -> Tensor:
        """Scores (B, K); raises `RunError` that names the rows whose score is not finite."""
        distinct = {_identity(one): one for one in conversations}
        rows = [self.template.answered(one) for one in distinct.values()]
        table = torch.empty(len(rows), len(self.names))
        with evaluating(self.model):
            for chosen in portions(rows, self.batch_tokens, self._shares):
                table[chosen] = self._scores(group([rows[i] for i in chosen], self.template.pad_id)).cpu()
        place = {key: i for i, key in enumerate(distinct)}
        return finite(table[[place[_identity(one)] for one in conversations]], conversations)

    def _shares(self, saving: float, longest: int) -> bool:
        return self._sharing.worthwhile(self.model.network, saving, longest)

    def _scores(self, grouped: Grouped) -> Tensor:
        """Scores (B, K) of the rows of one pass."""
        grouped = grouped.to(next(self.model.parameters()).device)
        network, prompts, answers = self.model.network, grouped.prompts, grouped.answers

        def shared() -> Tensor:
            return last_states(
                network,
                prompts.input_ids,
                prompts.lengths,
                answers.input_ids,
                answers.score_index + 1,
                grouped.of,
                **prompts.extra,
            )

        def plain() -> Tensor:
            batch = grouped.plain()
            states = hidden_states(network, batch.input_ids, batch.attention_mask, batch.position_ids, **batch.extra)
            return states[torch.arange(batch.size, device=states.device), batch.score_index]

        shares = self._shares(grouped.saving, grouped.longest)
        return self.model.head(precise(self._sharing.states(network, shared, plain) if shares else plain()))


class FunctionScorer:
    """A Python function as a scorer: conversations to a table of B rows and K columns.

    `None` in place of a number says that this conversation has no such score, and becomes NaN.

    >>> length = FunctionScorer(("words",), lambda rows: [[len(row.response.split())] for row in rows])
    >>> length.score([Conversation.ask("Hello?").answer("Good morning to you.")]).tolist()
    [[4.0]]
    """

    def __init__(
        self, names: tuple[str, ...], function: Callable[[Sequence[Conversation]], Sequence[Sequence[float | None]]]
    ) -> None:
        self.names, self.function = names, function

    def score(self, conversations: Sequence[Conversation]) -> Tensor:
        """Scores (B, K); raises `RunError` when the function returns another shape or numbers that are not finite."""
        expected = (len(conversations), len(self.names))
        if not conversations:
            return torch.empty(expected)
        cells = np.array(self.function(conversations), dtype=object)
        if cells.shape != expected:
            raise RunError(
                f"the scoring function returned a table of shape {cells.shape} where {expected} is needed: "
                f"a row for each conversation with a column for each of {', '.join(self.names)}"
            )
        absent = torch.tensor([[cell is None for cell in row] for row in cells])
        try:
            table = torch.from_numpy(cells.astype(np.float64)).float()
        except (TypeError, ValueError) as error:
            raise RunError(
                f"the scoring function for {', '.join(self.names)} returned what is no number: {error}"
            ) from error
        finite(table.masked_fill(absent, 0.0), conversations, "a scoring function returns None where it has no score")
        return table


class JointScorer:
    """Several scorers as one: their columns side by side. Two columns of one name are an error."""

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        self.scorers = tuple(scorers)
        self.names = tuple(name for scorer in scorers for name in scorer.names)
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"two scorers share a name: {self.names}")

    def score(self, conversations: Sequence[Conversation]) -> Tensor:
        """Scores (B, K) of all scorers, in their order; without any, K is 0."""
        nothing = torch.empty(len(conversations), 0)
        return torch.cat([nothing, *(scorer.score(conversations) for scorer in self.scorers)], dim=1)


def _identity(conversation: Conversation) -> tuple[object, ...]:
    return conversation.messages


def finite(
    table: Tensor,
    conversations: Sequence[Conversation],
    advice: str = "the score model has diverged or was loaded wrongly",
) -> Tensor:
    """`table` (B, K) itself; `RunError` that names the rows with a score that is not finite, and gives `advice`."""
    bad = (~torch.isfinite(table)).any(-1).nonzero()[:, 0].tolist() if len(table) else []
    if bad:
        raise RunError(
            f"{len(bad)} of {len(table)} conversations got scores that are not finite "
            f"(rows {called(conversations, bad)}); {advice}"
        )
    return table


def called(conversations: Sequence[Conversation], rows: Iterable[int]) -> str:
    """The names of the first five of the rows, or their numbers where they have none.

    >>> called([Conversation.ask("What?", id="a"), Conversation.ask("Who?")], [0, 1])
    'a, number 1'
    """
    return ", ".join(conversations[i].id or f"number {i}" for i in list(rows)[:5])
