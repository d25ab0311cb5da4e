"""Tokenizers made on the spot go through the same template code as those from the hub."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from holdfast.data.schema import Conversation, Message
from holdfast.data.template import Template
from holdfast.data.tokenizer import SPECIAL, train_tokenizer
from holdfast.errors import UserError

TEXTS = ["stir the soup slowly .", "serve the soup warm .", "what is the best soup ?"]
BYTES = train_tokenizer(TEXTS, 300)


def test_words_are_learned_whole_and_others_are_unknown():
    tokenizer = train_tokenizer(TEXTS, 64, "word")
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.split())
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
    assert tokenizer("eat soup")["input_ids"][0] == tokenizer.unk_token_id
    assert len(tokenizer) == len(SPECIAL) + len({word for text in TEXTS for word in text.split()})


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30).filter(lambda text: "<|" not in text))
def test_bytes_can_spell_anything(text):
    assert BYTES.decode(BYTES(text)["input_ids"]) == text


def test_the_vocabulary_keeps_its_size():
    assert len(BYTES) <= 300
    assert len(train_tokenizer(TEXTS, 12, "word")) == 12


@pytest.mark.parametrize("kind, least", [("word", 8), ("bytes", 264)])
def test_a_vocabulary_without_room_is_refused(kind, least):
    with pytest.raises(UserError, match=f"vocab_size is {least}, .* special tokens and bytes alone take {least}"):
        train_tokenizer(TEXTS, least, kind)
    assert len(train_tokenizer(TEXTS, least + 1, kind)) == least + 1


def test_pad_begin_and_end_are_three_tokens():
    ids = {BYTES.pad_token_id, BYTES.bos_token_id, BYTES.eos_token_id}
    assert len(ids) == 3
    assert BYTES.convert_ids_to_tokens(sorted(ids)) == ["<|pad|>", "<|begin|>", "<|end|>"]
    assert BYTES.decode([*ids, *BYTES("soup")["input_ids"]], skip_special_tokens=True) == "soup"


@pytest.mark.parametrize("kind", ["word", "bytes"])
def test_every_turn_is_closed_by_the_end_token(kind):
    template = Template(train_tokenizer(TEXTS, 400, kind), max_length=200)
    dialogue = Conversation(
        messages=(
            Message.of("system", "serve warm"),
            Message.of("user", "what is the best soup ?"),
            Message.of("assistant", "the soup ."),
            Message.of("user", "the best ?"),
            Message.of("assistant", "stir slowly ."),
        )
    )
    row = template.answered(dialogue)
    tokenizer = template.tokenizer
    assert tokenizer.decode(row.ids).replace(" ", "") == (
        "<|begin|><|system|>servewarm<|end|><|user|>whatisthebestsoup?<|end|>"
        "<|assistant|>thesoup.<|end|><|user|>thebest?<|end|><|assistant|>stirslowly.<|end|>"
    )
    assert template.decode(row.response_ids) == "stir slowly ."
    assert row.ids.count(tokenizer.eos_token_id) == 5
    assert row.ids[row.prompt_length - 1] == tokenizer.convert_tokens_to_ids("<|assistant|>")
    turns = template.decode([token for token, own in zip(row.ids, row.turn_mask) if own])
    assert turns.split() == ["the", "soup", ".", "stir", "slowly", "."] or kind == "bytes"
    assert template.stop_ids == (tokenizer.eos_token_id,)


def test_it_lies_in_a_folder_like_any_other(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 64, "word")
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    row, same = (
        Template(one, max_length=40).answered(Conversation.ask("what is the soup ?").answer("warm ."))
        for one in (tokenizer, again)
    )
    assert row == same
    assert again.decode(again("serve the soup")["input_ids"]) == "serve the soup"
