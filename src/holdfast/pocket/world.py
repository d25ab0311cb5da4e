"""The pocket world as ordinary files, read by everything downstream on the same path as real data.

`conversations.jsonl` to imitate, `pairs.jsonl` judged by noisy annotators, `prompts.jsonl` to practise on, and
`policy/`, a tiny network with random weights and a tokenizer that knows the words of the grammar. On request also
`people.jsonl`, pairs judged by people of different tastes, and `ratings.jsonl`, answers rated on several scales.
"""

from pathlib import Path

import numpy as np
from pydantic import Field

from holdfast.config import Settings, fingerprint
from holdfast.data.schema import Conversation
from holdfast.data.sources import write_jsonl
from holdfast.data.tokenizer import train_tokenizer
from holdfast.models.tiny import tiny_policy
from holdfast.pocket import annotators, grammar, people, ratings
from holdfast.pocket.annotators import Annotator
from holdfast.pocket.oracles import request
from holdfast.pocket.people import PeopleSettings
from holdfast.pocket.ratings import RatingsSettings

FILES = {"sft": "conversations", "pairs": "pairs", "prompts": "prompts"}
PEOPLE, RATINGS = "people.jsonl", "ratings.jsonl"
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
    # Not mentioned while off: a world without them keeps the fingerprint and the bytes it always had.
    people: PeopleSettings | None = Field(None, exclude_if=lambda value: value is None)
    """People of different tastes who judge pairs too."""
    ratings: RatingsSettings | None = Field(None, exclude_if=lambda value: value is None)
    """Answers rated on several scales."""


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
    prompts = [_prompt(f"prompt-{i}", text) for i, text in enumerate(texts)]
    for name, records in zip(FILES.values(), (answered, pairs, prompts), strict=True):
        write_jsonl(records, folder / f"{name}.jsonl")
    _write_extras(folder, settings)
    words = grammar.vocabulary(people.phrases() if settings.people else ())
    tokenizer = train_tokenizer([" ".join(words)], 4096, "word")
    policy = tiny_policy(len(tokenizer), hidden=settings.hidden, layers=settings.layers, seed=settings.seed)
    tokenizer.save_pretrained(folder / "policy")
    policy.save_pretrained(folder / "policy")
    stamp.write_text(fingerprint(settings), encoding="ascii")
    return folder


def _write_extras(folder: Path, settings: WorldSettings) -> None:
    """People and ratings, each from random numbers of its own; what an earlier world left here goes."""
    for name in (PEOPLE, RATINGS):
        (folder / name).unlink(missing_ok=True)
    if settings.people:
        rng = np.random.default_rng([settings.seed, 1])
        write_jsonl(people.draw_people(settings.people, rng), folder / PEOPLE)
    if settings.ratings:
        rng = np.random.default_rng([settings.seed, 2])
        write_jsonl(ratings.draw_ratings(settings.ratings, settings.harmful_share, rng), folder / RATINGS)


def _prompt(name: str, text: str) -> Conversation:
    """A request with its kind for a source: benign, harmful or disguised."""
    return Conversation.ask(text, id=name).model_copy(update={"source": request(text).kind})


def _conversation(number: int, settings: WorldSettings, rng: np.random.Generator) -> Conversation:
    prompt = annotators.draw_request(rng, settings.harmful_share)
    asked = request(prompt)
    manner = annotators.HARMFUL_WRITER if asked.topic.harmful else annotators.BENIGN_WRITER
    reply = annotators.write_reply(asked, manner, rng)
    return Conversation.ask(prompt, id=f"conversation-{number}").answer(reply)
