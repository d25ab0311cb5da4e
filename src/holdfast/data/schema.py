"""The records every stage reads: frozen, validated, with images from the first day.

A message's content is a tuple of text and image parts. A label that was not given is `None`, never a tie.
"""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Role = Literal["system", "user", "assistant"]
Severity = Annotated[int, Field(ge=0, le=3)]
Rate = Annotated[int, Field(ge=-3, le=3)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


def _optional(default: Any, **bounds: Any) -> Any:
    """A field that files mention only where it says something, so that older files keep their bytes."""
    return Field(default, exclude_if=lambda value: value == default, **bounds)


class Record(BaseModel):
    """Base of all records: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Text(Record):
    """A stretch of text inside a message."""

    type: Literal["text"] = "text"
    text: str


class Image(Record):
    """An image inside a message: where its file lies, and the hash of its bytes."""

    type: Literal["image"] = "image"
    path: str
    sha256: str = ""


Part = Annotated[Text | Image, Field(discriminator="type")]


class Message(Record):
    """One turn of a conversation.

    >>> Message.of("user", "How do I plant a tulip?").text
    'How do I plant a tulip?'
    """

    role: Role
    content: tuple[Part, ...]

    @classmethod
    def of(cls, role: Role, text: str, images: tuple[Image, ...] = ()) -> "Message":
        """A turn with `text` after its `images` (the order vision-language templates expect)."""
        return cls(role=role, content=(*images, Text(text=text)))

    @property
    def text(self) -> str:
        """The text of the turn, without its images."""
        return "".join(part.text for part in self.content if isinstance(part, Text))

    @property
    def images(self) -> tuple[Image, ...]:
        """The images of the turn, in order."""
        return tuple(part for part in self.content if isinstance(part, Image))


class Conversation(Record):
    """Turns in order. It is a prompt when it ends with the user, answered when it ends with the assistant.

    source: where its prompt is from, or its kind; limits and numbers can be told apart by it.

    >>> prompt = Conversation.ask("How do I plant a tulip?")
    >>> prompt.answered, prompt.answer("Dig a hole.").answered
    (False, True)
    """

    messages: tuple[Message, ...] = Field(min_length=1)
    id: str = ""
    source: str = _optional("")

    @classmethod
    def ask(cls, text: str, images: tuple[Image, ...] = (), id: str = "") -> "Conversation":
        """A prompt of one user turn."""
        return cls(messages=(Message.of("user", text, images),), id=id)

    def answer(self, text: str) -> "Conversation":
        """This prompt with an assistant's answer behind it."""
        return self.model_copy(update={"messages": (*self.messages, Message.of("assistant", text))})

    @property
    def answered(self) -> bool:
        """Whether the assistant spoke last."""
        return self.messages[-1].role == "assistant"

    @property
    def prompt(self) -> "Conversation":
        """The conversation without its last answer."""
        return self.model_copy(update={"messages": self.messages[:-1]}) if self.answered else self

    @property
    def response(self) -> str:
        """The text of the last answer; empty for a prompt."""
        return self.messages[-1].text if self.answered else ""

    @property
    def images(self) -> tuple[Image, ...]:
        """The images of all turns, in order."""
        return tuple(image for message in self.messages for image in message.images)

    @property
    def key(self) -> str:
        """A hash of the *prompt*: roles, normalised text and image hashes. Equal prompts share a fold."""
        digest = hashlib.sha256()
        for message in self.prompt.messages:
            images = ",".join(image.sha256 or image.path for image in message.images)
            text = " ".join(message.text.lower().split())
            digest.update(f"{message.role}\x1f{images}\x1f{text}\x1e".encode())
        return digest.hexdigest()


class Pair(Record):
    """Two answers to one prompt, the first preferred on one axis or by one person.

    context: what the person wants, in words; user_id: who judged; group: the taste or attribute the label stands
    for, known in evaluation only; pair_id: the unordered pair, whoever judged it; weight: of this label; margin: by
    how much the first is better, on the scale of the scores.

    >>> Pair(id="1", prompt=Conversation.ask("Tulips?"), chosen="Dig.", rejected="No.", user_id="ann").weight
    1.0
    """

    id: str
    prompt: Conversation
    chosen: str
    rejected: str
    source: str = ""
    split: str = ""
    context: str = _optional("")
    user_id: str = _optional("")
    group: str = _optional("")
    pair_id: str = _optional("")
    weight: float = _optional(1.0, gt=0, allow_inf_nan=False)
    margin: float | None = _optional(None, allow_inf_nan=False)

    @property
    def unordered(self) -> str:
        """What this pair shares with every judgement of the same two answers: `pair_id`, else a hash of them."""
        if self.pair_id:
            return self.pair_id
        answers = sorted((self.chosen.strip(), self.rejected.strip()))
        return hashlib.sha256("\x1f".join((self.prompt.key, *answers)).encode()).hexdigest()


class DualPair(Record):
    """Two answers judged twice, for help and for harm; indices are 0-based.

    `helpful_id`, `safer_id`: which answer won, `None` when unlabelled. `safe`: whether each answer is safe in
    itself. `harmless_rate`: -3 extremely harmful .. 3 thoroughly reasoned refusal, 0 a bare refusal.
    `margin`: by how much the winner is better, on the scale of the scores.
    """

    id: str
    prompt: Conversation
    responses: tuple[str, str]
    helpful_id: Literal[0, 1] | None = None
    safer_id: Literal[0, 1] | None = None
    safe: tuple[bool | None, bool | None] = (None, None)
    harmless_rate: tuple[Rate | None, Rate | None] = (None, None)
    severity: tuple[Severity | None, Severity | None] = (None, None)
    categories: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    image_severity: int | None = None
    source: str = ""
    split: str = ""
    licence: str = ""
    margin: float | None = _optional(None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _consistent(self) -> "DualPair":
        if self.responses[0].strip() == self.responses[1].strip():
            raise ValueError("the two responses are equal, so nothing can be learned from preferring one")
        if self.safer_id is not None and self.safe[self.safer_id] is False and self.safe[1 - self.safer_id] is True:
            raise ValueError(
                f"labels contradict: response {self.safer_id} is called the safer one and unsafe, "
                f"while response {1 - self.safer_id} is called safe"
            )
        for i in (0, 1):
            safe, rate = self.safe[i], self.harmless_rate[i]
            if safe is not None and rate is not None and safe != (rate >= 0):
                raise ValueError(f"labels contradict: response {i} has safe={safe} and harmless_rate={rate}")
        return self


class Rated(Record):
    """One answered conversation with named ratings; a missing rating is NaN."""

    id: str
    conversation: Conversation
    labels: dict[str, float]
    source: str = ""
    split: str = ""


class Labelled(Record):
    """One answered conversation (or prompt) that a person called safe or unsafe."""

    id: str
    conversation: Conversation
    safe: bool
    severity: Severity | None = None
    categories: tuple[str, ...] = ()
    source: str = ""
    split: str = ""


class Scored(Record):
    """One answered conversation with the scores a scorer gave it; at least one, all of them finite."""

    id: str
    conversation: Conversation
    scores: dict[str, Finite] = Field(min_length=1)
    source: str = ""
    split: str = ""


class Ranked(Record):
    """Several different answers to one prompt, best first, with their rewards where those are known.

    Rewards never rise from one answer to the next; `Ranked.by_reward` orders answers that come in another order.
    preferred: the answer a person chose, for answers that rewards have ordered; None where the order says it.

    >>> Ranked(id="1", prompt=Conversation.ask("Tulips?"), responses=("Dig a hole.", "No.")).rewards is None
    True
    """

    id: str
    prompt: Conversation
    responses: tuple[str, ...]
    rewards: tuple[Finite, ...] | None = None
    source: str = ""
    split: str = ""
    preferred: int | None = _optional(None, ge=0)

    @classmethod
    def by_reward(
        cls, responses: Sequence[str], rewards: Sequence[float], preferred: int | None = None, **fields: Any
    ) -> "Ranked":
        """The ranking of `responses` by their `rewards`, highest first; equal rewards keep the order given.

        preferred: index of the answer a person chose, in the order given. Raises `ValueError` as the class does.

        >>> row = Ranked.by_reward(["No.", "Dig."], [0.1, 0.7], preferred=0, id="1", prompt=Conversation.ask("Tulips?"))
        >>> row.responses, row.rewards, row.preferred
        (('Dig.', 'No.'), (0.7, 0.1), 1)
        """
        if len(rewards) != len(responses):
            raise ValueError(f"{len(rewards)} rewards were given for {len(responses)} responses")
        order = sorted(range(len(responses)), key=lambda i: -rewards[i])
        return cls(
            responses=tuple(responses[i] for i in order),
            rewards=tuple(rewards[i] for i in order),
            preferred=order.index(preferred) if preferred in order else preferred,
            **fields,
        )

    @model_validator(mode="after")
    def _consistent(self) -> "Ranked":
        count, stripped = len(self.responses), [response.strip() for response in self.responses]
        if count < 2:
            raise ValueError(f"a ranking needs at least 2 responses, got {count}")
        for i, text in enumerate(stripped):
            if (first := stripped.index(text)) < i:
                raise ValueError(f"responses {first} and {i} are equal, so nothing can be learned from their order")
        if self.rewards is not None and len(self.rewards) != count:
            raise ValueError(f"{len(self.rewards)} rewards were given for {count} responses")
        for i, (better, worse) in enumerate(pairwise(self.rewards or ())):
            if better < worse:
                raise ValueError(f"response {i + 1} has a higher reward than response {i}; the best must stand first")
        if self.preferred is not None and self.preferred >= count:
            raise ValueError(f"preferred is {self.preferred}; it must be below {count}, the number of responses")
        return self


class Classified(Record):
    """One text, as a prompt or an answered conversation, with the class it belongs to.

    group: what it shares with related texts (an entity, a question), which must not be torn apart by a split.
    """

    id: str
    conversation: Conversation
    label: str = Field(min_length=1)
    group: str = ""
    source: str = ""
    split: str = ""
