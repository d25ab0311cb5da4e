"""One answer, many readers: a mixture model behind the `Scorer` contract, with a person beside each conversation.

Heads say what the answer is like, weights say what the reader cares about. The weights come from the reader's own
labels where a `UserStore` has any, else from the router, which reads the last token of the prompt with the reader's
context. So an answer is encoded once however many people read it, and a prompt once however many answers it has.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from holdfast.data.context import with_context
from holdfast.data.schema import Conversation, Message
from holdfast.data.template import Encoded, Template
from holdfast.errors import UserError
from holdfast.losses import mixture
from holdfast.models.mixture import MixtureRewardModel
from holdfast.models.policy import evaluating
from holdfast.preference.adapt import UserStore
from holdfast.preference.aggregate import rows_of, tournament
from holdfast.preference.features import answer_features
from holdfast.preference.score import finite

Aggregation = Literal["linear", "tournament"]
Turns = tuple[Message, ...]


@dataclass(frozen=True)
class Person:
    """Who reads an answer: what they say they want, who they are, and the group they are counted in.

    >>> Person(context="Be brief.") == Person(context="Be brief.")
    True
    """

    context: str = ""
    user_id: str = ""
    group: str = ""


ANYONE = Person()


class MixtureScorer:
    """Scores of answers for people: `score`, then one raw reward per head.

    users: weights of known people; those without labels get the router's. context_template, heads_see_context,
    aggregation: the model's own when not given. `linear` is the weighted sum of standardised rewards; `tournament` the
    probability of winning against another answer to the same prompt for the same person in the same call.
    batch_tokens: padded tokens of one forward pass.
    """

    def __init__(
        self,
        model: MixtureRewardModel,
        template: Template,
        *,
        context_template: str | None = None,
        users: UserStore | None = None,
        heads_see_context: bool | None = None,
        aggregation: str | None = None,
        batch_tokens: int = 16384,
    ) -> None:
        config = model.config
        self.model, self.template, self.users, self.batch_tokens = model, template, users, batch_tokens
        self.context_template = config.context_template if context_template is None else context_template
        self.heads_see_context = config.heads_see_context if heads_see_context is None else heads_see_context
        self.aggregation = config.aggregation if aggregation is None else aggregation
        if self.aggregation not in get_args(Aggregation):
            raise UserError(
                f"answers are scored by {' or '.join(get_args(Aggregation))}, not {self.aggregation!r}; set aggregation"
            )
        if "score" in model.names:
            raise UserError("a head is called score, which is the name of the personal score; rename the head")
        if users is not None and users.names != model.names:
            raise UserError(
                f"the users have weights over the heads {', '.join(users.names)}, and the model has "
                f"{', '.join(model.names)}; load the users of this model"
            )
        self.names = ("score", *model.names)

    def score(self, conversations: Sequence[Conversation]) -> Tensor:
        """Scores (B, 1 + K) for nobody in particular: the router weighs by the prompt alone."""
        return self.score_for(conversations, [ANYONE] * len(conversations))

    def score_for(self, conversations: Sequence[Conversation], people: Sequence[Person]) -> Tensor:
        """Scores (B, 1 + K), each answer as its reader sees it; equal pairs of both are scored once.

        Raises `PromptTooLong` naming the row whose prompt with its context leaves no room for an answer, `UserError`
        for an answer without an opponent in a tournament and for a user whose heads are all masked, and `RunError`
        for scores that are not finite.
        """
        rewards, log_weights = self.rewards_and_weights(conversations, people)
        if self.aggregation == "linear":
            scores = self.model.personal_score(rewards, log_weights.to(rewards))
        else:
            scores = self._tournament(rewards, log_weights.exp(), conversations, people)
        return finite(torch.cat([scores[:, None], rewards], dim=1), conversations)

    def tournament_scores(
        self, conversations: Sequence[Conversation], answers: int, people: Sequence[Person] | None = None
    ) -> Tensor:
        """(B,) the probability of winning against the other answers to the prompt, `answers` of which stand together.

        people: one for each answer, the same for all answers to a prompt; nobody in particular by default. Raises
        `UserError` unless neighbours share prompt and person.
        """
        people = [ANYONE] * len(conversations) if people is None else people
        keys = [(one.prompt.messages, person) for one, person in zip(conversations, people, strict=True)]
        if answers < 2 or len(keys) % answers or any(key != keys[i - i % answers] for i, key in enumerate(keys)):
            raise UserError(
                f"{len(keys)} answers do not stand in groups of {answers} to one prompt for one person; sort them"
            )
        rewards, log_weights = self.rewards_and_weights(conversations, people)
        table = rewards.unflatten(0, (len(rewards) // answers, answers))
        return tournament(table, log_weights[::answers].exp()).flatten()

    def rewards_and_weights(
        self, conversations: Sequence[Conversation], people: Sequence[Person]
    ) -> tuple[Tensor, Tensor]:
        """(B, K) raw rewards and (B, K) log weights, masked heads at minus infinity, on the CPU."""
        asked = [self._in_context(one, person) for one, person in zip(conversations, people, strict=True)]
        seen = asked if self.heads_see_context else conversations
        answers = {one.messages: self.template.answered(one) for one in seen}
        phi, u = self._features(answers.values())
        with evaluating(self.model):
            rewards = self.model.rewards(phi).cpu()
        # The prompt's last token cannot see the answer, so where heads and router read the same prompt it is known.
        prompts = dict(zip((key[:-1] for key in answers), u))
        log_weights = self._log_weights([one.prompt for one in asked], people, prompts)
        place = {key: i for i, key in enumerate(answers)}
        return rewards[[place[one.messages] for one in seen]], log_weights

    def _in_context(self, conversation: Conversation, person: Person) -> Conversation:
        return with_context(conversation, person.context, self.context_template)

    def _log_weights(
        self, prompts: Sequence[Conversation], people: Sequence[Person], known: Mapping[Turns, Tensor]
    ) -> Tensor:
        """(B, K): a person's own weights where there are labels, else the router's reading of the prompt."""
        labelled = [self.users is not None and self.users.n_labels(person.user_id) > 0 for person in people]
        unread = {
            one.messages: self.template.prompt(one)
            for one, own in zip(prompts, labelled)
            if not own and one.messages not in known
        }
        _, u = self._features(unread.values())
        known = {**known, **dict(zip(unread, u))}
        table = torch.empty(len(prompts), len(self.model.names))
        routed = [i for i, own in enumerate(labelled) if not own]
        if routed:
            with evaluating(self.model):
                table[routed] = self.model.log_weights(torch.stack([known[prompts[i].messages] for i in routed])).cpu()
        for i, own in enumerate(labelled):
            if own:
                assert self.users is not None
                table[i] = self.users.log_weights(people[i].user_id)
        return self._masked(table, people)

    def _masked(self, table: Tensor, people: Sequence[Person]) -> Tensor:
        masked = self.model.masked.cpu()
        lost = (table.masked_fill(masked, -torch.inf).isneginf().all(-1)).nonzero()[:, 0].tolist()
        if lost:
            raise UserError(
                f"all weight of user {people[lost[0]].user_id!r} lies on masked heads; forget the user's labels, or "
                "learn them again with the mask in place"
            )
        return mixture.log_weights(table, masked)

    def _features(self, rows: Iterable[Encoded]) -> tuple[Tensor, Tensor]:
        """phi and u, (N, h) each, of encoded rows, on the model's device."""
        phi, u = answer_features(self.model, list(rows), self.template.pad_id, self.batch_tokens)
        device = next(self.model.parameters()).device
        return phi.to(device), u.to(device)

    def _tournament(
        self, rewards: Tensor, weights: Tensor, conversations: Sequence[Conversation], people: Sequence[Person]
    ) -> Tensor:
        scores = torch.empty(len(rewards))
        groups = rows_of((one.prompt.messages, person) for one, person in zip(conversations, people))
        for rows in groups.values():
            if len(rows) < 2:
                name = conversations[rows[0]].id or "(no id)"
                raise UserError(
                    f"row {name}: a tournament needs a second answer to the prompt for the same person; "
                    "score the answers to a prompt in one call, or set aggregation to linear"
                )
            scores[rows] = tournament(rewards[rows][None], weights[rows[:1]])[0]
        return scores
