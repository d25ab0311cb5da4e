"""Tokenizers trained on the spot, for models that are built from a configuration.

Both kinds carry a chat template in which every turn is closed by the end token, so they go through the same code
as a tokenizer from the hub.
"""

from collections.abc import Iterable
from typing import Literal

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from holdfast.errors import UserError

SPECIAL = (
    "<|pad|>",
    "<|begin|>",
    "<|end|>",
    "<|unknown|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|image|>",
)
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|' + message['role'] + '|>' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}"
    "{%- else %}{%- for part in message['content'] %}"
    "{{- '<|image|>' if part['type'] == 'image' else part['text'] }}"
    "{%- endfor %}{%- endif %}"
    "{{- eos_token }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, kind: Literal["word", "bytes"] = "bytes"
) -> PreTrainedTokenizerFast:
    """A tokenizer with at most `vocab_size` entries learned from `texts`.

    `word` splits at white space (small closed languages); `bytes` is byte-level BPE and can spell any text.
    Raises `UserError` when `vocab_size` leaves no room beside special tokens and bytes.

    >>> tokenizer = train_tokenizer(["stir the soup", "serve the soup"], 32, "word")
    >>> tokenizer.decode(tokenizer("serve the soup")["input_ids"])
    'serve the soup'
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" else []
    if vocab_size <= len(SPECIAL) + len(alphabet):
        raise UserError(
            f"vocab_size is {vocab_size}, which leaves nothing to learn: special tokens and bytes alone take "
            f"{len(SPECIAL) + len(alphabet)}; raise it"
        )
    trainer: trainers.Trainer
    if kind == "word":
        core = Tokenizer(models.WordLevel(unk_token="<|unknown|>"))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=list(SPECIAL), show_progress=False)
    else:
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL),
            initial_alphabet=alphabet,
            show_progress=False,
        )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        bos_token="<|begin|>",
        eos_token="<|end|>",
        unk_token="<|unknown|>" if kind == "word" else None,
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>", "<|image|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
