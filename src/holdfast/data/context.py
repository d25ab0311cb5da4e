"""What a person wants, in words, put before what they ask.

The template belongs to the model that was trained with it: another one is another input.
"""

from holdfast.data.schema import Conversation, Message, Text
from holdfast.errors import UserError

CONTEXT = "[criteria] {context}\n[prompt] {prompt}"
"""The default: the criterion on a line of its own, then the question."""


def with_context(conversation: Conversation, context: str, template: str = CONTEXT) -> Conversation:
    """The conversation whose last user turn carries `context` by `template`; earlier turns and images stay.

    An empty context leaves the conversation as it is. Rows that differ in their context alone have other keys
    afterwards, so split them into pools before. Raises `UserError` for a template that does not hold `{context}`
    and `{prompt}` once each, and for a conversation without a user turn.

    >>> print(with_context(Conversation.ask("How do I plant a tulip?"), "Be brief.").messages[0].text)
    [criteria] Be brief.
    [prompt] How do I plant a tulip?
    """
    before, after = halves(template)
    if not context:
        return conversation
    turns = list(conversation.messages)
    last = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=None)
    if last is None:
        raise UserError("a context belongs before what a user asks, and this conversation has no user turn")
    turns[last] = _framed(turns[last], before.replace("{context}", context), after.replace("{context}", context))
    return conversation.model_copy(update={"messages": tuple(turns)})


def halves(template: str) -> tuple[str, str]:
    """What `template` puts before and after the prompt; `UserError` unless both places occur once.

    >>> halves("{prompt} ({context})")
    ('', ' ({context})')
    """
    if template.count("{context}") != 1 or template.count("{prompt}") != 1:
        raise UserError(
            f"a context template must hold {{context}} and {{prompt}} once each, got {template!r}; "
            f"the default is {CONTEXT!r}"
        )
    before, after = template.split("{prompt}")
    return before, after


def _framed(turn: Message, before: str, after: str) -> Message:
    """The turn with `before` at its first text and `after` at its last, so that images keep their places."""
    parts = list(turn.content)
    texts = [i for i, part in enumerate(parts) if isinstance(part, Text)]
    if not texts:
        return Message(role=turn.role, content=(*parts, Text(text=before + after)))
    for place, head, tail in ((texts[0], before, ""), (texts[-1], "", after)):
        part = parts[place]
        assert isinstance(part, Text)
        parts[place] = Text(text=head + part.text + tail)
    return Message(role=turn.role, content=tuple(parts))
