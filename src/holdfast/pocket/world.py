"""The pocket world as ordinary files, read by everything downstream on the same path as real data.

`conversations.jsonl` to imitate, `pairs.jsonl` judged by noisy annotators, `prompts.jsonl` to practise on, and
`policy/`, a tiny network with random weights and a tokenizer that knows the words of the grammar.
"""

from pathlib import Path

import numpy as np
from pydantic import Field

from holdfast.config import Settings, fingerprint
from holdfast.data.schema import Conversation
from holdfast.data.sources import write_jsonl
from holdfast.data.tokenizer import train_tokenizer
from holdfast.models.tiny import tiny_policy
from holdfast.pocket import annotators, grammar
from holdfast.pocket.annotators import Annotator
from holdfast.pocket.oracles import request

FILES = {"sft": "conversations", "pairs": "pairs", "prompts": "prompts"}
STAMP = "world.sha256"


class WorldSettings(Settings):
    """How large the pocket world is and how well its annotators judge."""

    conversations: int = Field(16_000, ge=100)
    """Answered requests to imitate."""
    pairs: int = Field(12_000, ge=100)
    """Judged pairs of answers."""
    prompts: int = Field(14_000, ge=100)
    """Draws of a request; repeated ones are written once."""
    harmful_share: float = Field(0.55, ge=0, le=1)
    """Share of requests that ask for harm."""
    sharpness: float = Field(10.0, gt=0)
    """How reliably annotators prefer the more helpful answer."""
    flip: float = Field(0.05, ge=0, lt=0.5)
    """Share of safety labels that come out wrong."""
    hidden: int = Field(96, ge=8)
    """Width of the tiny network."""
    layers: int = Field(2, ge=1)
    """Its depth."""
    seed: int = Field(0, ge=0)
    """Everything here follows from it."""


def write(folder: str | Path, settings: WorldSettings) -> Path:
    """Write the world into `folder` and return it; a folder that already holds this world is left as it is."""
    folder = Path(folder)
    stamp = folder / STAMP
    if stamp.is_file() and stamp.read_text(encoding="ascii") == fingerprint(settings):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    # Written last and removed first: an interrupted world is written again, whatever lay here before.
    stamp.unlink(missing_ok=True)
    rng = np.random.default_rng(settings.seed)
    answered = [_conversation(i, settings, rng) for i in range(settings.conversations)]
    annotator = Annotator(settings.sharpness, settings.flip)
    pairs = [
        annotators.draw_pair(f"pair-{i}", annotator, rng, annotators.draw_request(rng, settings.harmful_share))
        for i in range(settings.pairs)
    ]
    texts = dict.fromkeys(annotators.draw_request(rng, settings.harmful_share) for _ in range(settings.prompts))
    prompts = [Conversation.ask(text, id=f"prompt-{i}") for i, text in enumerate(texts)]
    for name, records in zip(FILES.values(), (answered, pairs, prompts), strict=True):
        write_jsonl(records, folder / f"{name}.jsonl")
    tokenizer = train_tokenizer([" ".join(grammar.vocabulary())], 4096, "word")
    policy = tiny_policy(len(tokenizer), hidden=settings.hidden, layers=settings.layers, seed=settings.seed)
    tokenizer.save_pretrained(folder / "policy")
    policy.save_pretrained(folder / "policy")
    stamp.write_text(fingerprint(settings), encoding="ascii")
    return folder


def _conversation(number: int, settings: WorldSettings, rng: np.random.Generator) -> Conversation:
    prompt = annotators.draw_request(rng, settings.harmful_share)
    asked = request(prompt)
    manner = annotators.HARMFUL_WRITER if asked.topic.harmful else annotators.BENIGN_WRITER
    reply = annotators.write_reply(asked, manner, rng)
    return Conversation.ask(prompt, id=f"conversation-{number}").answer(reply)
