"""The template against a tokenizer's own rendering, across tokenizers, markers and windows."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from holdfast.data.schema import Conversation, Image, Message
from holdfast.data.template import PromptTooLong, Template
from holdfast.errors import RunError, UserError

TEXTS = ["how do I plant a tulip in a pot", "dig a hole and water it well", "be brief and kind", "thanks"]

QWEN = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
LLAMA_3 = (
    "{{- bos_token }}{%- for m in messages %}"
    "{{- '<|header|>' + m.role + '<|/header|>\n\n' + m.content | trim + '<|eot|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|header|>assistant<|/header|>\n\n' }}{%- endif %}"
)
LLAMA_2 = (
    "{%- if messages[0].role == 'system' %}{{- raise_exception('no system turns here') }}{%- endif %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}"
    "{{- bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{%- else %}{{- ' ' + m.content | trim + ' ' + eos_token }}{%- endif %}{%- endfor %}"
)
# Answers are announced with an empty thought that prompts do not have, as some reasoning models do.
THINKING = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.role == 'assistant' and loop.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{{- m.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
SPECIAL = ["<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "<|header|>", "<|/header|>", "<|eot|>"]


def tokenizer_of(
    chat_template: str | None, pad: str | None = "<pad>", eos: str = "<eos>", adds_bos: bool = False
) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(TEXTS, trainer)
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token=eos,
        pad_token=pad,
        additional_special_tokens=[token for token in SPECIAL if token not in ("<pad>", "<bos>", eos)],
        chat_template=chat_template,
    )


def conversation(*texts: str, system: str | None = None) -> Conversation:
    turns = [Message.of("system", system)] if system else []
    turns += [Message.of("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]
    return Conversation(messages=tuple(turns), id="row-7")


TALK = conversation("how do I plant a tulip", "dig a hole", "thanks", "water it well")


def spelt(template: Template, ids: list[int], mask: list[bool]) -> str:
    return template.tokenizer.decode([token for token, marked in zip(ids, mask) if marked])


@pytest.mark.parametrize("source", [QWEN, LLAMA_3, LLAMA_2])
def test_ids_are_those_of_the_tokenizers_own_chat_template(source: str) -> None:
    template = Template(tokenizer_of(source), max_length=300)
    rows = [{"role": m.role, "content": m.text} for m in TALK.messages]
    own = template.tokenizer.apply_chat_template(rows[:-1], add_generation_prompt=True)["input_ids"]
    assert template.prompt(TALK).ids == own
    whole = template.tokenizer.apply_chat_template(rows, tokenize=False)
    assert template.tokenizer.decode(template.answered(TALK).ids) == whole.removesuffix("\n")


@pytest.mark.parametrize(
    "source, end", [(QWEN, "<|im_end|>"), (LLAMA_3, "<|eot|>"), (LLAMA_2, "<eos>"), (THINKING, "<|im_end|>")]
)
def test_an_example_begins_with_what_a_rollout_starts_from(source: str, end: str) -> None:
    template = Template(tokenizer_of(source), max_length=300)
    prompt, answered = template.prompt(TALK), template.answered(TALK)
    assert answered.ids[: prompt.length] == prompt.ids
    assert answered.prompt_length == prompt.length == prompt.score_index + 1
    assert template.stop_ids[0] == template.tokenizer.convert_tokens_to_ids(end) == answered.ids[-1]
    assert answered.score_index == answered.length - 1
    assert not any(prompt.response_mask)
    assert not answered.truncated
    assert answered.id == "row-7"


@pytest.mark.parametrize("source, end", [(QWEN, "<|im_end|>"), (LLAMA_3, "<|eot|>"), (LLAMA_2, "<eos>")])
def test_masks_cover_answers_and_their_ends_and_nothing_else(source: str, end: str) -> None:
    template = Template(tokenizer_of(source), max_length=300)
    row = template.answered(TALK)
    joined = ["".join(spelt(template, row.ids, mask).split()) for mask in (row.response_mask, row.turn_mask)]
    assert joined == [f"wateritwell{end}", f"digahole{end}wateritwell{end}"]
    assert row.response_mask == [i >= row.prompt_length for i in range(row.length)]


def test_a_longer_talk_begins_with_the_ids_of_its_earlier_turns() -> None:
    for source in ("plain", "chatml", QWEN, LLAMA_3):
        known = source in ("plain", "chatml")
        tokenizer = tokenizer_of(None if known else source)
        template = Template(tokenizer, max_length=300, chat_template=source if known else "auto")
        early = template.answered(Conversation(messages=TALK.messages[:2]))
        assert template.prompt(TALK).ids[: early.length] == early.ids
        assert template.prompt(TALK).turn_mask[: early.length] == early.turn_mask


def test_what_a_model_must_write_before_the_answer_belongs_to_the_response() -> None:
    template = Template(tokenizer_of(THINKING), max_length=300)
    row = template.answered(TALK)
    text = spelt(template, row.ids, row.response_mask)
    assert text == "<think>\n\n</think>\n\nwater it well<|im_end|>"


def test_masks_do_not_depend_on_which_tokens_are_pad_and_end() -> None:
    usual = Template(tokenizer_of(LLAMA_3), max_length=300).answered(TALK)
    for pad, eos in (("<eos>", "<eos>"), ("<eos>", "<pad>"), ("<|eot|>", "<eos>"), (None, "<eos>")):
        row = Template(tokenizer_of(LLAMA_3, pad=pad, eos=eos), max_length=300).answered(TALK)
        assert row == usual


def test_a_missing_pad_token_is_noted_and_harmless() -> None:
    template = Template(tokenizer_of(QWEN, pad=None), max_length=300)
    assert template.pad_id == template.tokenizer.eos_token_id
    assert "no padding token" in template.notes[0]
    assert Template(tokenizer_of(QWEN), max_length=300).notes == []


@pytest.mark.parametrize("source", [LLAMA_3, QWEN])
def test_a_tokenizer_that_adds_a_start_token_gets_exactly_one(source: str) -> None:
    template = Template(tokenizer_of(source, adds_bos=True), max_length=300)
    for row in (template.prompt(TALK), template.answered(TALK)):
        assert row.ids.count(template.tokenizer.bos_token_id) == 1
        assert row.ids[0] == template.tokenizer.bos_token_id
        assert len(row.turn_mask) == row.length
    plain = Template(tokenizer_of(QWEN), max_length=300).prompt(TALK)
    assert template.tokenizer.bos_token_id not in plain.ids


def test_an_answer_without_an_end_in_the_template_gets_the_tokenizers() -> None:
    bare = "{%- for m in messages %}{{- m.role + ': ' + m.content + '\n' }}{%- endfor %}"
    source = bare + "{%- if add_generation_prompt %}{{- 'assistant: ' }}{%- endif %}"
    template = Template(tokenizer_of(source), max_length=300)
    row = template.answered(TALK)
    assert spelt(template, row.ids, row.response_mask) == "water it well<eos>"
    assert spelt(template, row.ids, row.turn_mask) == "dig a holewater it well<eos>"
    assert template.stop_ids == (template.tokenizer.eos_token_id,)


def test_an_answer_that_quotes_its_surroundings_is_marked_whole() -> None:
    after = "<|im_end|>\n<|im_start|>user\nthanks<|im_end|>\n<|im_start|>assistant\n"
    template = Template(tokenizer_of(QWEN), max_length=300)
    row = template.prompt(conversation("how do I plant", f"dig {after}well", "thanks"))
    assert spelt(template, row.ids, row.turn_mask) == f"dig {after}well<|im_end|>"


def test_texts_equal_to_markers_do_not_confuse_the_borders() -> None:
    for source in (QWEN, LLAMA_3, LLAMA_2):
        template = Template(tokenizer_of(source), max_length=300)
        row = template.answered(conversation("a", "a", "user", "assistant", "a", "a"))
        assert template.decode(row.response_ids) == "a"
        text = spelt(template, row.ids, row.turn_mask)
        assert template.tokenizer.decode(
            template.tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=True
        ).split() in (["a", "assistant", "a"], ["aassistanta"])


def test_empty_and_one_token_answers_are_fine() -> None:
    template = Template(tokenizer_of(LLAMA_3), max_length=300)
    empty = template.answered(conversation("thanks", ""))
    assert empty.response_ids == [template.stop_ids[0]]
    assert template.decode(empty.response_ids) == ""
    assert sum(template.answered(conversation("thanks", "a")).response_mask) == 2


def test_decoding_gives_the_answer_back() -> None:
    for source in (QWEN, LLAMA_3, LLAMA_2):
        template = Template(tokenizer_of(source), max_length=300)
        for text in ("dig a hole", "two\n\nparts: 1, 2!", "caf\u00e9 \u2603"):
            assert template.decode(template.answered(conversation("thanks", text)).response_ids) == text


def test_sampled_ids_are_marked_exactly() -> None:
    template = Template(tokenizer_of(QWEN), max_length=300)
    prompt = template.prompt(TALK)
    end = template.stop_ids[0]
    row = template.continue_with(prompt, [20, 21, end])
    assert row.ids == [*prompt.ids, 20, 21, end]
    assert row.response_mask == [False] * prompt.length + [True] * 3
    assert row.turn_mask == [*prompt.turn_mask, True, True, True]
    assert (row.score_index, row.prompt_length, row.truncated) == (prompt.length + 2, prompt.length, False)
    assert template.continue_with(prompt, [20, 21]).truncated
    assert not template.continue_with(prompt, [template.tokenizer.eos_token_id]).truncated
    assert template.continue_with(prompt, template.answered(TALK).response_ids) == template.answered(TALK)
    with pytest.raises(RunError, match="row row-7: the sampler returned no token"):
        template.continue_with(prompt, [])


def test_the_window_cuts_answers_and_marks_them() -> None:
    full = Template(tokenizer_of(QWEN), max_length=300).answered(TALK)
    exact = Template(tokenizer_of(QWEN), max_length=full.length).answered(TALK)
    assert exact == full
    cut = Template(tokenizer_of(QWEN), max_length=full.length - 1).answered(TALK)
    assert cut.truncated
    assert cut.ids == full.ids[:-1]
    assert cut.score_index == cut.length - 1


def test_a_prompt_that_fills_the_window_is_an_error_with_its_length() -> None:
    length = Template(tokenizer_of(QWEN), max_length=300).prompt(TALK).length
    assert Template(tokenizer_of(QWEN), max_length=length + 1).prompt(TALK).length == length
    template = Template(tokenizer_of(QWEN), max_length=length)
    message = rf"row row-7: its prompt has {length} tokens and the window {length}.*raise max_length"
    with pytest.raises(PromptTooLong, match=message):
        template.prompt(TALK)
    with pytest.raises(UserError, match=message):
        template.answered(TALK)


def test_a_system_message_is_given_only_where_there_is_none() -> None:
    tokenizer = tokenizer_of(QWEN)
    template = Template(tokenizer, max_length=300, system="be brief")
    bare, own = conversation("thanks"), conversation("thanks", system="be kind")
    written = conversation("thanks", system="be brief")
    assert template.prompt(bare).ids == Template(tokenizer, max_length=300).prompt(written).ids
    assert "be brief" not in tokenizer.decode(template.prompt(own).ids)


def test_a_template_that_refuses_turns_says_what_to_do() -> None:
    template = Template(tokenizer_of(LLAMA_2), max_length=300)
    with pytest.raises(UserError, match=r"refuses turns of system, user: no system turns.*chat_template"):
        template.prompt(conversation("thanks", system="be kind"))


def test_without_a_chat_template_the_ways_out_are_named() -> None:
    with pytest.raises(UserError, match="no chat template; set chat_template to plain, chatml"):
        Template(tokenizer_of(None), max_length=300)
    with pytest.raises(UserError, match=r"no chat template at missing\.jinja"):
        Template(tokenizer_of(None), max_length=300, chat_template="missing.jinja")


def test_a_template_can_come_from_a_file(tmp_path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(QWEN)
    own = Template(tokenizer_of(None), max_length=300, chat_template=str(file))
    assert own.answered(TALK) == Template(tokenizer_of(QWEN), max_length=300).answered(TALK)
    chatml = Template(tokenizer_of(None), max_length=300, chat_template="chatml")
    assert chatml.answered(TALK) == own.answered(TALK)


def test_plain_needs_no_special_tokens_but_an_end() -> None:
    template = Template(tokenizer_of(None), max_length=300, chat_template="plain")
    assert template.tokenizer.decode(template.answered(TALK).ids) == (
        "User:\nhow do I plant a tulip\n\nAssistant:\ndig a hole<eos>\n\n"
        "User:\nthanks\n\nAssistant:\nwater it well<eos>"
    )
    endless = tokenizer_of(None)
    endless.eos_token = None
    with pytest.raises(UserError, match="nothing ends an answer"):
        Template(endless, max_length=300, chat_template="plain")


def test_chatml_markers_the_tokenizer_does_not_know_are_noted() -> None:
    core = Tokenizer(models.WordLevel({"[UNK]": 0, "[END]": 1, "user": 2}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token="[END]")
    template = Template(tokenizer, max_length=300, chat_template="chatml")
    assert any("no special token <|im_end|>" in note for note in template.notes)
    assert template.answered(TALK).ids[-1] == 1


def test_templates_that_hide_or_move_answers_are_refused() -> None:
    hides = "{{- messages[0].content + '>' }}"
    hides += "{%- if messages | length == 2 %}{{- messages[1].content }}{%- endif %}"
    template = Template(tokenizer_of(hides), max_length=300)
    with pytest.raises(UserError, match="shows 0 of 1 earlier answers"):
        template.prompt(TALK)
    turns = "{%- for m in messages | reverse %}{{- m.content }}{%- endfor %}"
    with pytest.raises(UserError, match="does not begin with its prompt"):
        Template(tokenizer_of(turns), max_length=300)


def test_rows_that_cannot_be_encoded_say_why() -> None:
    template = Template(tokenizer_of(QWEN), max_length=300)
    with pytest.raises(UserError, match="row row-7: it ends without an answer"):
        template.answered(conversation("thanks"))
    with pytest.raises(UserError, match="a tokenizer alone cannot read"):
        template.prompt(Conversation.ask("thanks", (Image(path="a.png"),)))


def test_a_template_with_a_date_is_noted() -> None:
    dated = Template(tokenizer_of("{{- strftime_now('%d %b') }}" + QWEN), max_length=300)
    assert "today's date" in dated.notes[0]


def test_the_fingerprint_follows_what_changes_tokens() -> None:
    def made(source: str = QWEN, **settings) -> str:
        return Template(tokenizer_of(source), **{"max_length": 300, **settings}).fingerprint

    assert made() == made()
    assert len({made(), made(LLAMA_3), made(system="be kind"), made(max_length=200)}) == 4


class Renderings:
    """Counts how often a tokenizer renders a chat template and how often it tokenises."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rendered = self.tokenised = 0
        kind, render, tokenise = type(tokenizer), type(tokenizer).apply_chat_template, type(tokenizer).__call__

        def counted_render(*given, **named):
            self.rendered += 1
            return render(*given, **named)

        def counted_tokenise(*given, **named):
            self.tokenised += 1
            return tokenise(*given, **named)

        monkeypatch.setattr(kind, "apply_chat_template", counted_render)
        monkeypatch.setattr(kind, "__call__", counted_tokenise)

    def taken(self) -> tuple[int, int]:
        """Renderings and tokenisations since the last question."""
        found = (self.rendered, self.tokenised)
        self.rendered = self.tokenised = 0
        return found


def test_a_prompt_is_rendered_and_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    template = Template(tokenizer_of(QWEN), max_length=300)
    count = Renderings(template.tokenizer, monkeypatch)
    first = template.prompt(TALK)
    assert count.taken() == (2, 3), "whole, with its earlier answer marked; and its three stretches"
    assert template.prompt(TALK.model_copy(update={"id": "again"})).ids == first.ids
    assert count.taken() == (0, 0)
    template.answered(TALK)
    assert count.taken() == (2, 1), "whole, and once for all answers what stands behind an answer"
    template.answered(TALK.prompt.answer("dig"))
    assert count.taken() == (1, 1)
    template.prompt(conversation("how do I plant a tulip", "dig a hole", "thank you"))
    assert count.taken() == (2, 3)


@pytest.mark.parametrize("source", ["plain", "chatml", LLAMA_3, THINKING])
def test_rows_of_known_prompts_are_those_of_a_template_that_knows_none(source: str) -> None:
    known = source in ("plain", "chatml")
    rng, tokenizer = random.Random(3), tokenizer_of(None if known else source, adds_bos=source == LLAMA_3)

    def made() -> Template:
        return Template(tokenizer, max_length=40, chat_template=source if known else "auto", system="be kind")

    def result(template: Template, one: Conversation, name: str) -> object:
        try:
            return getattr(template, name)(one)
        except PromptTooLong as error:
            return str(error)

    words = ["", " ", "a", "thanks\n", "<eos>", "dig a hole and water it well", "a tulip in a pot " * 3]
    pool = [
        conversation(
            *(rng.choice(words) for _ in range(rng.choice((1, 1, 3, 5)))), system=rng.choice((None, "be brief"))
        ).model_copy(update={"id": str(i)})
        for i in range(12)
    ]
    template = made()
    for _ in range(60):
        prompt = rng.choice(pool)
        one = prompt.answer(rng.choice(words))
        assert result(template, prompt, "prompt") == result(made(), prompt, "prompt")
        assert result(template, one, "answered") == result(made(), one, "answered")


def test_rows_that_are_changed_leave_those_to_come_alone() -> None:
    template = Template(tokenizer_of(QWEN), max_length=300)
    for encode in (template.prompt, template.answered):
        first, ids = encode(TALK), list(encode(TALK).ids)
        for part in (first.ids, first.response_mask, first.turn_mask):
            part.clear()
        first.images.append(None)
        again = encode(TALK)
        assert again.ids == ids
        assert len(again.response_mask) == len(again.turn_mask) == len(ids)
        assert again.images == []


def test_known_prompts_keep_their_own_names() -> None:
    template = Template(tokenizer_of(QWEN), max_length=300)
    rows = [template.prompt(TALK.model_copy(update={"id": name})) for name in ("one", "two")]
    assert [row.id for row in rows] == ["one", "two"]
    small = Template(tokenizer_of(QWEN), max_length=4)
    for name in ("one", "two"):
        with pytest.raises(PromptTooLong, match=f"row {name}: its prompt has"):
            small.prompt(TALK.model_copy(update={"id": name}))


def test_a_prompt_with_a_date_is_rendered_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    dated = "{%- set today = strftime_now('%d %b') %}" + QWEN
    template = Template(tokenizer_of(dated), max_length=300)
    count = Renderings(template.tokenizer, monkeypatch)
    for _ in range(2):
        template.prompt(conversation("thanks"))
        assert count.taken() == (1, 1)
        template.answered(conversation("thanks", "a"))
        assert count.taken() == (3, 2)
