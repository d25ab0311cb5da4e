"""Messages become token ids, masks and positions here, once for everything.

The chat template is rendered as text. The stretches before, inside and after each answer are tokenised by
themselves, so a training example begins with exactly the ids from which a rollout starts, and masks come from
where a stretch stands, never from looking for special ids. Many answers are encoded behind one prompt, so what a
prompt gives is kept.
"""

import hashlib
import json
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError

from holdfast.data.images import ImageSettings, Pixels, open_image
from holdfast.data.schema import Conversation, Image, Message
from holdfast.errors import RunError, UserError

_WORDS = (
    "{%- macro words(content) -%}{%- if content is string -%}{{ content }}{%- else -%}"
    "{%- for part in content -%}{{ image_token if part.type == 'image' else part.text }}{%- endfor -%}"
    "{%- endif -%}{%- endmacro -%}"
)
CHATML = _WORDS + (
    "{%- for m in messages -%}"
    "{{ '<|im_start|>' + m.role + '\n' + words(m.content) + '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
PLAIN = _WORDS + (
    "{%- for m in messages -%}"
    "{{ m.role | capitalize + ':\n' + words(m.content) }}"
    "{{ eos_token or '' if m.role == 'assistant' }}{{ '\n\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'Assistant:\n' }}{%- endif -%}"
)
BUILT_IN = {"chatml": CHATML, "plain": PLAIN}

# Private-use characters that no tokenizer or template gives a meaning: they stand for an answer.
_MARK = "\ue000answer\ue001"
# Prompts that are remembered: those of an iteration with room to spare, at some twelve bytes for a token.
_KEPT = 4096
_ADVICE = "set chat_template to plain, chatml, or the path of a Jinja file"


class PromptTooLong(UserError):
    """A prompt leaves no room for an answer in the window."""


@dataclass(frozen=True)
class Encoded:
    """One row as token ids (T tokens) with everything that is known about each of them.

    response_mask: the last answer with the token that ends it; turn_mask: every answer; score_index: the last
    token, at which a score is read; truncated: the answer was cut or did not end itself.
    """

    ids: list[int]
    response_mask: list[bool]
    turn_mask: list[bool]
    score_index: int
    prompt_length: int
    images: list[Pixels] = field(default_factory=list)
    truncated: bool = False
    id: str = ""

    @property
    def length(self) -> int:
        """The number of tokens."""
        return len(self.ids)

    @property
    def response_ids(self) -> list[int]:
        """The ids of the last answer, its end token included; empty for a prompt."""
        return self.ids[self.prompt_length :]


class _Stretch(NamedTuple):
    """A part of the rendered text that is tokenised by itself."""

    text: str
    answer: bool = False
    images: tuple[Image, ...] = ()


class _Start(NamedTuple):
    """A prompt as rendered text, and for each of its stretches the ids and whether it is an earlier answer."""

    text: str
    pieces: "tuple[tuple[array[int], bool], ...]"


class Template:
    """Turns conversations into `Encoded` rows with the chat template of a tokenizer or a processor.

    chat_template: `auto` (what the tokenizer brings), `plain`, `chatml`, or the path of a Jinja file. system:
    the system message given to conversations that have none. Rows never exceed `max_length` tokens: a longer
    prompt is an error, a longer answer is cut and marked. `notes` says what a reader of the run should know.
    """

    def __init__(
        self,
        tokenizer_or_processor: Any,
        *,
        max_length: int,
        chat_template: str = "auto",
        system: str | None = None,
        images: ImageSettings | None = None,
    ) -> None:
        given = tokenizer_or_processor
        self.processor: Any = given if hasattr(given, "image_processor") else None
        self.tokenizer: Any = given.tokenizer if self.processor is not None else given
        self.max_length = max_length
        self.system = system
        self.image_settings = images or ImageSettings()
        self.source = _source(self.processor, self.tokenizer, chat_template)
        self._bos = _leading_bos(self.tokenizer)
        self._ends = _end_pattern(self.tokenizer)
        # A template with a date in it renders the same prompt differently tomorrow.
        remember = lru_cache(_KEPT) if not self._dated else lambda function: function
        self._start, self._tail = remember(self._encode), remember(self._behind)
        some = Conversation.ask("a")
        self.end_id = self._response(some.answer("b"), self._render(some.messages, True, self._content))[1]
        self.notes = self._notes()

    @property
    def pad_id(self) -> int:
        """The id that fills up rows; any id will do, because masks come from lengths."""
        given = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(int(token) for token in given if token is not None)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a turn: the template's own first, then the tokenizer's end of text."""
        eos = self.tokenizer.eos_token_id
        return (self.end_id,) if eos in (None, self.end_id) else (self.end_id, int(eos))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what decides which tokens a model sees: template, system message, window, ends."""
        facts = [self.source, self.system, self.max_length, self._bos, self.end_id]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def prompt(self, conversation: Conversation) -> Encoded:
        """The conversation's prompt with the generation prompt behind it: what a rollout starts from.

        Raises `PromptTooLong` when it leaves no room for an answer in the window.
        """
        prompt = conversation.prompt
        return self._begin(prompt, self._started(prompt))

    def answered(self, conversation: Conversation) -> Encoded:
        """The conversation with its last answer, which is cut and marked where the window ends."""
        if not conversation.answered:
            raise UserError(f"{_row(conversation)}: it ends without an answer, so there is nothing to encode")
        if conversation.messages[-1].images:
            raise UserError(f"{_row(conversation)}: its answer holds an image; answers are text")
        start = self._started(conversation.prompt)
        prompt = self._begin(conversation.prompt, start)
        text, end_id = self._response(conversation, start.text)
        response = [*self._tokens(_Stretch(text)), end_id]
        room = self.max_length - prompt.length
        return replace(self.continue_with(prompt, response[:room]), truncated=len(response) > room)

    def continue_with(self, prompt: Encoded, response_ids: Sequence[int]) -> Encoded:
        """`prompt` followed by the ids a policy sampled, `truncated` when they do not end with a stop id."""
        if not response_ids:
            raise RunError(f"{_row(prompt)}: the sampler returned no token, not even the end of a turn")
        n = len(response_ids)
        return replace(
            prompt,
            ids=[*prompt.ids, *response_ids],
            response_mask=[*prompt.response_mask, *[True] * n],
            turn_mask=[*prompt.turn_mask, *[True] * n],
            score_index=prompt.length + n - 1,
            truncated=response_ids[-1] not in self.stop_ids,
        )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a response without special tokens and outer white space."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _begin(self, prompt: Conversation, start: _Start) -> Encoded:
        """A row of its own for a prompt that may be known already."""
        ids = [token for tokens, _ in start.pieces for token in tokens]
        turns = [answer for tokens, answer in start.pieces for _ in tokens]
        if len(ids) >= self.max_length:
            raise PromptTooLong(
                f"{_row(prompt)}: its prompt has {len(ids)} tokens and the window {self.max_length}, which "
                "must leave room for an answer; raise max_length or drop the row"
            )
        pixels = [Pixels(image, self.processor, self.image_settings) for image in prompt.images]
        return Encoded(ids, [False] * len(ids), turns, len(ids) - 1, len(ids), pixels, id=prompt.id)

    def _started(self, prompt: Conversation) -> _Start:
        # Without a hash nobody would notice that an image has changed, and with it the tokens it takes.
        known = all(image.sha256 for image in prompt.images)
        return self._start(prompt.messages) if known else self._encode(prompt.messages)

    def _encode(self, messages: tuple[Message, ...]) -> _Start:
        """The prompt of `messages`, rendered and tokenised."""
        text = self._render(messages, True, self._content)
        pieces: list[tuple[array[int], bool]] = []
        for stretch in self._stretches(messages, text):
            tokens = self._tokens(stretch)
            # A tokenizer that begins every text with a start token gets one, and never two.
            if not pieces and self._bos is not None and tokens[:1] != [self._bos]:
                tokens = [self._bos, *tokens]
            pieces.append((array("q", tokens), stretch.answer))
        return _Start(text, tuple(pieces))

    def _behind(self, messages: tuple[Message, ...]) -> str:
        """What stands behind an answer to the prompt of `messages`."""
        marked = [*messages, Message.of("assistant", _MARK)]
        return self._render(marked, False, self._marked).split(_MARK)[-1]

    def _render(self, messages: Sequence[Message], generate: bool, show: Callable[[Message], Any]) -> str:
        if self.system is not None and messages[0].role != "system":
            messages = [Message.of("system", self.system), *messages]
        try:
            text = self.tokenizer.apply_chat_template(
                [{"role": message.role, "content": show(message)} for message in messages],
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=generate,
                image_token=getattr(self.processor, "image_token", ""),
            )
        except TemplateError as error:
            roles = ", ".join(message.role for message in messages)
            raise UserError(
                f"the chat template refuses turns of {roles}: {error}; change the rows, or {_ADVICE}"
            ) from error
        return str(text)

    def _content(self, message: Message) -> Any:
        """A message as its template wants it: a string for tokenizers, a list of parts for processors."""
        if self.processor is not None:
            return [{"type": "image"} if isinstance(p, Image) else p.model_dump() for p in message.content]
        if message.images:
            raise UserError("a message holds an image, which a tokenizer alone cannot read; load a processor")
        return message.text

    def _marked(self, message: Message) -> Any:
        """The same, with the mark in place of an answer."""
        return self._content(Message.of("assistant", _MARK) if message.role == "assistant" else message)

    def _stretches(self, messages: tuple[Message, ...], text: str) -> list[_Stretch]:
        """The prompt's `text` cut at the borders of its earlier answers."""
        answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
        images = [
            tuple(image for message in messages[a + 1 : b] for image in message.images)
            for a, b in pairwise([-1, *answers, len(messages)])
        ]
        if not answers:
            return [_Stretch(text, images=images[0])]
        literals = self._render(messages, True, self._marked).split(_MARK)
        spans = _spans(text, literals, [messages[i].text.strip() for i in answers])
        stretches, cursor = [], 0
        for (start, stop), seen in zip(spans, images):
            end = self._ends.match(text, stop)
            stop = end.end() if end else stop
            stretches += [_Stretch(text[cursor:start], images=seen), _Stretch(text[start:stop], answer=True)]
            cursor = stop
        return [*stretches, _Stretch(text[cursor:], images=images[-1])]

    def _response(self, conversation: Conversation, before: str) -> tuple[str, int]:
        """The text a model has to write after the prompt's text `before`, and the id that ends it."""
        whole = self._render(conversation.messages, False, self._content)
        tail = self._tail(conversation.messages[:-1])
        if not whole.startswith(before) or not whole.endswith(tail):
            raise UserError(
                f"{_row(conversation)}: with this chat template an answered conversation does not begin with "
                f"its prompt, so the answer cannot be told apart; {_ADVICE}"
            )
        answer = whole[len(before) : len(whole) - len(tail)]
        if end := self._ends.match(tail):
            return answer + tail[: end.start(1)], int(self.tokenizer.convert_tokens_to_ids(end.group(1)))
        if self.tokenizer.eos_token_id is None:
            raise UserError(
                "nothing ends an answer: the chat template puts no special token behind it and the tokenizer "
                "has no end-of-text token; set the tokenizer's eos_token"
            )
        return answer, int(self.tokenizer.eos_token_id)

    def _tokens(self, stretch: _Stretch) -> list[int]:
        if not stretch.text:
            return []
        if not stretch.images:
            return list(self.tokenizer(stretch.text, add_special_tokens=False)["input_ids"])
        # The processor knows how many tokens each image takes and puts them in.
        opened = [open_image(image, self.image_settings) for image in stretch.images]
        encoded = self.processor(images=opened, text=[stretch.text], add_special_tokens=False)
        return [int(token) for token in encoded["input_ids"][0]]

    @property
    def _dated(self) -> bool:
        return "strftime_now" in self.source

    def _notes(self) -> list[str]:
        notes = []
        if self.tokenizer.pad_token_id is None:
            notes.append(f"the tokenizer has no padding token; id {self.pad_id} fills up rows, behind the masks")
        if self._dated:
            notes.append("the chat template writes today's date into prompts, so ids change from day to day")
        if "<|im_end|>" in self.source and not self._ends.match("<|im_end|>"):
            notes.append("the tokenizer has no special token <|im_end|>; chatml markers are spelt in pieces")
        return notes


def _row(item: Conversation | Encoded) -> str:
    return f"row {item.id or '(no id)'}"


def _source(processor: Any, tokenizer: Any, wanted: str) -> str:
    """The Jinja text of the template that was asked for."""
    if wanted in BUILT_IN:
        return BUILT_IN[wanted]
    if wanted != "auto":
        path = Path(wanted)
        if not path.is_file():
            raise UserError(f"no chat template at {wanted}; give auto, plain, chatml, or a Jinja file")
        return path.read_text(encoding="utf-8")
    own = getattr(processor, "chat_template", None) or tokenizer.chat_template
    if not own:
        raise UserError(f"the tokenizer brings no chat template; {_ADVICE}")
    return str(own if isinstance(own, str) else tokenizer.get_chat_template())


def _leading_bos(tokenizer: Any) -> int | None:
    """The start-of-text id, if the tokenizer itself puts it before every text."""
    bos = tokenizer.bos_token_id
    return int(bos) if bos is not None and list(tokenizer("")["input_ids"])[:1] == [bos] else None


def _end_pattern(tokenizer: Any) -> re.Pattern[str]:
    """White space, then one special token other than the start of text: how an answer can end."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= {str(token) for token in tokenizer.all_special_tokens}
    if tokenizer.bos_token != tokenizer.eos_token:
        special.discard(tokenizer.bos_token)
    names = "|".join(re.escape(name) for name in sorted(special, key=len, reverse=True))
    return re.compile(rf"\s*({names})" if names else r"(?!)")


def _spans(text: str, literals: Sequence[str], answers: Sequence[str]) -> list[tuple[int, int]]:
    """Where each answer stands in `text`, given the literal text around the answers.

    >>> _spans("Q: a? A: yes. Q: b? A:", ["Q: a? A: ", " Q: b? A:"], ["yes."])
    [(9, 13)]
    """
    if len(literals) != len(answers) + 1 or not text.startswith(literals[0]):
        raise UserError(
            f"the chat template shows {len(literals) - 1} of {len(answers)} earlier answers as they are, so "
            f"they cannot be told from what surrounds them; {_ADVICE}"
        )
    spans, cursor = [], len(literals[0])
    for answer, after in zip(answers, literals[1:]):
        # An answer may quote what follows it, so look behind the answer where it stands unchanged.
        known = cursor + len(answer) if text.startswith(answer, cursor) else cursor
        stop = text.find(after, known)
        if stop < 0:
            raise UserError(f"the chat template rewrites what stands around an earlier answer; {_ADVICE}")
        spans.append((cursor, stop))
        cursor = stop + len(after)
    return spans
