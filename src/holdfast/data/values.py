"""Values as data sets write them: dialogues, prompts, answers, images, numbers, yes and no.

Every function returns the value in our own terms or raises `ValueError` with a reason that names the column.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from holdfast.data import images
from holdfast.data.schema import Conversation, Image, Message, Part, Text
from holdfast.errors import UserError

Row = Mapping[str, Any]

_TURN = re.compile(r"\n\n(Human|Assistant):")
_MARK = re.compile(r"\s*<extra_id_1>(Assistant|User)\n")
_FLAGS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


@dataclass(frozen=True)
class Place:
    """Where a row stands: its id unless it brings one, the folder of its file, and how pairs are meant."""

    id: str
    folder: Path = Path()
    image_folder: Path | None = None
    axis: Literal["harmless", "helpful"] = "harmless"

    def base(self, row: Row) -> dict[str, Any]:
        """The fields every record has."""
        return {
            "id": str(row.get("id") or self.id),
            "source": str(row.get("source") or ""),
            "split": str(row.get("split") or ""),
        }


def transcript(text: str, answered: bool = True) -> Conversation:
    r"""The dialogue written with `\n\nHuman:` and `\n\nAssistant:` marks, as in Anthropic's hh-rlhf.

    Raises `ValueError` unless turns alternate, begin with Human, and end with a non-empty answer (or, when
    not `answered`, with Human).

    >>> transcript("\n\nHuman: Hello\n\nAssistant: Good day").response
    'Good day'
    """
    before, *pieces = _TURN.split(text_of(text, "dialogue"))
    roles, contents = pieces[::2], [piece.strip() for piece in pieces[1::2]]
    if before.strip() or not roles or roles[0] != "Human":
        raise ValueError("a dialogue must begin with Human")
    if any(role == following for role, following in pairwise(roles)):
        raise ValueError("two turns of one role follow each other")
    if (roles[-1] == "Assistant") != answered:
        raise ValueError(f"the dialogue must end with {'Assistant' if answered else 'Human'}")
    if not contents[-1]:
        raise ValueError("the last turn is empty")
    names: dict[str, Literal["user", "assistant"]] = {"Human": "user", "Assistant": "assistant"}
    return Conversation(messages=tuple(Message.of(names[r], c) for r, c in zip(roles, contents)))


def marked_turns(text: str) -> Conversation:
    r"""The prompt whose later turns begin with `<extra_id_1>Assistant` and `<extra_id_1>User`, as in HelpSteer2.

    >>> [turn.text for turn in marked_turns("Hello\n\n<extra_id_1>Assistant\n\nHi\n\n<extra_id_1>User\n\nBye").messages]
    ['Hello', 'Hi', 'Bye']
    """
    first, *pieces = _MARK.split(text_of(text, "prompt"))
    names = ["user", *("assistant" if role == "Assistant" else "user" for role in pieces[::2])]
    if any(name != ("user", "assistant")[i % 2] for i, name in enumerate(names)) or names[-1] != "user":
        raise ValueError("the turns of the prompt must alternate and end with the user")
    turns = [{"role": name, "content": piece.strip()} for name, piece in zip(names, [first, *pieces[1::2]])]
    if not all(turn["content"] for turn in turns):
        raise ValueError("a turn of the prompt is empty")
    return conversation_of(turns, Place(""))


def common_prompt(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """An implicit prompt: the messages both sides share, and what each side adds."""
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise ValueError("without a prompt column, chosen and rejected must be lists of messages")
    if len(chosen) < 2 or chosen[:-1] != rejected[:-1]:
        raise ValueError("chosen and rejected share no prompt that all but their last messages agree on")
    return chosen[:-1], chosen[-1:], rejected[-1:]


def turns_of(value: Any, row: Row, place: Place) -> Conversation:
    """A prompt as people write it: a string, a list of messages, or our own conversation."""
    loose = [image_of(image, place) for image in row.get("images") or ()]
    if isinstance(value, str):
        return Conversation.ask(text_of(value, "prompt"), tuple(loose))
    conversation = conversation_of(value, place, loose)
    if loose:
        raise ValueError(f"{len(loose)} of its images have no place in its messages")
    return conversation


def conversation_of(value: Any, place: Place, loose: list[Image] | None = None) -> Conversation:
    """Our own mapping or a list of messages as a conversation; image parts without a file use up `loose`."""
    turns = value.get("messages") if isinstance(value, Mapping) else value
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise ValueError("expected a list of messages with role and content")
    messages = []
    for turn in turns:
        if not isinstance(turn, Mapping) or "role" not in turn or "content" not in turn:
            raise ValueError("every message needs role and content")
        content = turn["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        parts = tuple(_part(part, place, loose) for part in content)
        messages.append(Message.model_validate({"role": turn["role"], "content": parts}))
    named = {key: str(value.get(key) or "") for key in ("id", "source")} if isinstance(value, Mapping) else {}
    return Conversation(messages=tuple(messages), **named)


def asked(conversation: Conversation) -> Conversation:
    """The conversation itself, once it is known to end with a user turn."""
    if conversation.messages[-1].role != "user":
        raise ValueError("the prompt must end with a user turn")
    return conversation


def _part(part: Row, place: Place, loose: list[Image] | None) -> Part:
    if part.get("type") == "text":
        return Text(text=text_of(part.get("text"), "text part", empty=True))
    if part.get("type") != "image":
        raise ValueError(f"a message part must be of type text or image, not {part.get('type')!r}")
    # Arrow tables fill absent keys with None, so look at values and not at keys.
    given = part if part.get("path") else part.get("image")
    if given is not None:
        return image_of(given, place)
    if not loose:
        raise ValueError("an image part names no file, and the row's images are used up")
    return loose.pop(0)


def image_of(value: Any, place: Place) -> Image:
    """The record of an image given as path, as our own record, or as bytes inside the data set."""
    recorded = isinstance(value, Mapping) and value.get("path") and not value.get("bytes")
    if isinstance(value, str) or recorded:
        found = images.refer(place.folder / (value["path"] if recorded else value))
        expected = value.get("sha256") if recorded else ""
        if expected and expected != found.sha256:
            raise ValueError(f"image {found.path} has another hash than the one recorded")
        return found
    if place.image_folder is None:
        raise UserError("the data set holds images; set image_folder to the folder in which to save them")
    return images.keep(value, place.image_folder)


def text_of(value: Any, name: str, empty: bool = False) -> str:
    """The value, once it is known to be text, and not blank unless it may be `empty`."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, not {type(value).__name__}")
    if not empty and not value.strip():
        raise ValueError(f"{name} is empty")
    return value


def mapping_of(value: Any, name: str) -> Row:
    """The value, once it is known to have named parts; nothing at all has none."""
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{name} must have named parts, not {type(value).__name__}")
    return value or {}


def answer_of(value: Any, name: str) -> str:
    """An answer given as text or as a list of one assistant message."""
    if isinstance(value, str):
        return text_of(value, name)
    turns = conversation_of(value, Place("")).messages
    if len(turns) != 1 or turns[0].role != "assistant":
        raise ValueError(f"{name} must hold exactly one assistant message, got {[turn.role for turn in turns]}")
    return text_of(turns[0].text, name)


def whole(value: Any, name: str) -> int | None:
    """A whole number, also from a table that keeps everything as text; None when it was not given."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None


def rating(value: Any, name: str, low: int, high: int) -> float:
    """A whole rating from `low` to `high`; NaN where none was given (nothing, or N/A).

    >>> rating("4", "honesty", 1, 5), rating("N/A", "honesty", 1, 5)
    (4.0, nan)
    """
    number = None if value == "N/A" else whole(value, name)
    if number is None:
        return float("nan")
    if not low <= number <= high:
        raise ValueError(f"{name} must be {low} to {high}, got {number}")
    return float(number)


def number_of(value: Any, name: str) -> float:
    """A finite number, also from a table that keeps everything as text.

    >>> number_of("0.5", "reward")
    0.5
    """
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return number


def class_of(value: Any, name: str) -> str:
    """The name of a class, given as text or as a whole number.

    >>> class_of(3, "label"), class_of("card_arrival", "label")
    ('3', 'card_arrival')
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool | float) or not isinstance(value, int | str) or not str(value).strip():
        raise ValueError(f"{name} must be the name or the number of a class, got {value!r}")
    return str(value)


def slug(value: Any) -> str:
    """A name without spaces and signs.

    >>> slug("Tone & Style")
    'tone-and-style'
    """
    return text_of(value, "category").strip().lower().replace("&", "and").replace(" ", "-")


def index_of(value: Any, name: str, first: int) -> Literal[0, 1]:
    """The 0-based number of an answer in a source that counts from `first`."""
    number = whole(value, name)
    if number == first:
        return 0
    if number == first + 1:
        return 1
    raise ValueError(f"{name} must be {first} or {first + 1}, got {value!r}")


def flag(value: Any) -> bool:
    """Yes or no, however a table spells it.

    >>> flag("yes"), flag(0)
    (True, False)
    """
    known = _FLAGS.get(str(value).strip().lower())
    if known is None:
        raise ValueError(f"expected yes or no, got {value!r}")
    return known


def named(value: Any) -> tuple[str, ...]:
    """Categories given as a mapping of names to flags, or as a list."""
    if isinstance(value, Mapping):
        return tuple(str(name) for name, present in value.items() if present)
    return tuple(str(name) for name in value or ())


def is_transcript(value: Any) -> bool:
    """Whether `value` is text that begins with a Human or Assistant mark.

    >>> is_transcript("\\n\\nHuman: Hello"), is_transcript("Hello")
    (True, False)
    """
    return isinstance(value, str) and _TURN.match(value) is not None
