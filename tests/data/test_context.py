"""A context stands before the last question, and everything else stays where it was."""

import pytest

from holdfast.data.context import CONTEXT, halves, with_context
from holdfast.data.schema import Conversation, Image, Message, Text
from holdfast.data.split import keys
from holdfast.errors import UserError

PICTURE, OTHER = Image(path="a.png", sha256="a"), Image(path="b.png", sha256="b")


def turn(role: str, *parts) -> Message:
    return Message(role=role, content=tuple(Text(text=part) if isinstance(part, str) else part for part in parts))


TALK = Conversation(
    messages=(
        turn("system", "s"),
        turn("user", "first"),
        turn("assistant", "yes"),
        turn("user", "second"),
        turn("assistant", "no"),
    ),
    id="t",
)


def test_only_the_last_user_turn_is_framed() -> None:
    framed = with_context(TALK, "be brief")
    assert [one.text for one in framed.messages] == ["s", "first", "yes", "[criteria] be brief\n[prompt] second", "no"]
    assert (framed.id, framed.response) == ("t", "no")
    assert with_context(TALK.prompt, "be brief") == framed.prompt
    assert TALK.messages[3].text == "second"


def test_another_template() -> None:
    assert with_context(Conversation.ask("q"), "c", "{prompt} ({context})").messages[0].text == "q (c)"
    assert halves(CONTEXT) == ("[criteria] {context}\n[prompt] ", "")


def test_braces_are_text() -> None:
    """What people write is never taken for a place of the template."""
    framed = with_context(Conversation.ask("{context} {x}"), "{prompt}", "{context}: {prompt}.")
    assert framed.messages[0].text == "{prompt}: {context} {x}."


def test_images_keep_their_places() -> None:
    asked = Conversation(messages=(turn("user", PICTURE, "left", OTHER, "right"),))
    framed = with_context(asked, "c", "<{context}> {prompt} !").messages[0]
    assert framed.content == (PICTURE, Text(text="<c> left"), OTHER, Text(text="right !"))
    silent = with_context(Conversation(messages=(turn("user", PICTURE),)), "c", "<{context}>{prompt}").messages[0]
    assert silent.content == (PICTURE, Text(text="<c>"))


def test_no_context_changes_nothing() -> None:
    assert with_context(TALK, "") is TALK


@pytest.mark.parametrize("template", ["", "{prompt}", "{context}", "{context} {prompt} {prompt}", "{context}{prompts}"])
@pytest.mark.parametrize("context", ["c", ""])
def test_a_template_needs_both_places_once(template, context) -> None:
    with pytest.raises(UserError, match=r"must hold \{context\} and \{prompt\} once each, got "):
        with_context(TALK, context, template)


def test_a_conversation_without_a_question() -> None:
    with pytest.raises(UserError, match="no user turn"):
        with_context(Conversation(messages=(turn("system", "s"),)), "c")


def test_contexts_make_other_prompts_so_pools_come_first() -> None:
    one, two = (with_context(TALK, context) for context in ("a", "b"))
    assert keys(one) != keys(two)
