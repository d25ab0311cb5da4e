"""The world of the study `a_lol`: noisy copies of hidden answers, some of which are better than others.

A prompt is one of eight classes and two words that mean nothing. To each class belong four hidden answers of six
letters, worth 1, .95, .9 and .85. Whoever wrote the data knew one of the four and copied it badly. An answer earns

    reward = max over the four of worth x share of the six places where the letters agree,     halved without an end

where an answer ends if its seventh token says so: one that is shorter or longer has not ended in time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from holdfast.data.schema import Conversation
from holdfast.data.template import Template
from holdfast.data.tokenizer import train_tokenizer

CLASSES, HIDDEN, PLACES = 8, 4, 6
LETTERS = tuple("abcdefghijklmnop")
NUISANCE = tuple(f"n{i}" for i in range(8))
WORTH = np.array([1.0, 0.95, 0.9, 0.85])
WRONG = 0.6
GOOD = 0.7
"""An answer with more than this tells which hidden answer it means."""
CHAT = (
    "{{- bos_token }}"
    "{%- for m in messages %}{{- ' ' + m['content'] }}{{- eos_token if m['role'] == 'assistant' }}{%- endfor %}"
)


class Judged(NamedTuple):
    """What an answer earns, and which hidden answer of its class it comes closest to."""

    reward: float
    hidden: int


@dataclass(frozen=True)
class World:
    """Hidden answers drawn from a seed, and the share of the data that copies them badly."""

    seed: int
    corrupted: float = 0.7

    @cached_property
    def hidden(self) -> NDArray[np.int64]:
        """(8, 4, 6) the letters of each hidden answer of each class, as places in the alphabet."""
        return np.random.default_rng((self.seed, 0)).integers(len(LETTERS), size=(CLASSES, HIDDEN, PLACES))

    def judge(self, conversation: Conversation) -> Judged:
        """What the answer of a conversation earns, and what it means.

        >>> world = World(0)
        >>> said = " ".join(LETTERS[i] for i in world.hidden[3, 1])
        >>> world.judge(Conversation.ask("c3 n0 n0").answer(said))
        Judged(reward=0.95, hidden=1)
        """
        words = conversation.response.split()
        said = np.array([LETTERS.index(word) if word in LETTERS else -1 for word in words[:PLACES]], dtype=np.int64)
        agree = (self.hidden[read(conversation)][:, : len(said)] == said).sum(-1) / PLACES
        best = int((WORTH * agree).argmax())
        ended = len(words) == PLACES
        return Judged(float(WORTH[best] * agree[best]) * (1.0 if ended else 0.5), best)

    def rewards(self, conversations: Sequence[Conversation]) -> list[float]:
        """What each answer earns."""
        return [self.judge(one).reward for one in conversations]

    def prompts(self, name: str, count: int, source: np.random.Generator) -> list[Conversation]:
        """Random prompts, told apart by `name` and a number."""
        numbers, words = source.integers(CLASSES, size=count), source.choice(NUISANCE, size=(count, 2))
        asked = enumerate(zip(numbers, words, strict=True))
        return [Conversation.ask(f"c{number} {one} {other}", id=f"{name}-{i}") for i, (number, (one, other)) in asked]

    def copies(self, prompts: Sequence[Conversation], source: np.random.Generator) -> list[Conversation]:
        """One answer of the data to each prompt: a random hidden answer, of which a share `corrupted` is copied badly,
        each letter being replaced by a random one with probability .6."""
        return [prompt.answer(self._copy(read(prompt), source)) for prompt in prompts]

    def _copy(self, number: int, source: np.random.Generator) -> str:
        letters = self.hidden[number, source.integers(HIDDEN)]
        wrong = (source.random(PLACES) < WRONG) & (source.random() < self.corrupted)
        replaced = np.where(wrong, source.integers(len(LETTERS), size=PLACES), letters)
        return " ".join(LETTERS[i] for i in replaced)

    def diversity(self, conversations: Sequence[Conversation]) -> float:
        """How many hidden answers the good answers mean: exp of the entropy of their shares, the mean over classes.

        Between 1 and 4; a class without any good answer counts 0.
        """
        table = np.zeros((CLASSES, HIDDEN))
        for one in conversations:
            found = self.judge(one)
            table[read(one), found.hidden] += found.reward > GOOD
        return float(np.mean([effective_number(row) for row in table]))


def read(conversation: Conversation) -> int:
    """The class of a prompt.

    >>> read(Conversation.ask("c3 n0 n5"))
    3
    """
    return int(conversation.messages[0].text.split()[0].removeprefix("c"))


def effective_number(counts: NDArray[np.float64]) -> float:
    """exp(entropy) of counts, 0 without any.

    >>> round(effective_number(np.array([5.0, 5.0, 0.0])), 6), effective_number(np.zeros(4))
    (2.0, 0.0)
    """
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def misjudged(rewards: Sequence[float], share: float, source: np.random.Generator) -> list[float]:
    """The rewards, of which a random `share` is replaced, each by the reward of another row drawn for it alone.

    >>> misjudged([0.0, 1.0], 1.0, np.random.default_rng(0))
    [1.0, 0.0]
    """
    given = np.asarray(rewards)
    rows = source.permutation(len(given))[: round(share * len(given))]
    # Each number but the row's own, equally likely.
    others = (rows + source.integers(1, len(given), size=len(rows))) % len(given)
    found = given.copy()
    found[rows] = given[others]
    return found.tolist()


def template() -> Template:
    """One token for each of 32 words; beside them and the two ends stand six that are the tokenizer's own."""
    words = [*(f"c{i}" for i in range(CLASSES)), *NUISANCE, *LETTERS]
    tokenizer: Any = train_tokenizer([" ".join(words)], 64, "word")
    tokenizer.chat_template = CHAT
    return Template(tokenizer, max_length=16)


def untrained(vocab_size: int, seed: int) -> PreTrainedModel:
    """A GPT-2 of two layers and width 64 without dropout; the global random state is left alone."""
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=16,
        n_embd=64,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        # The defaults name ids that a small vocabulary does not have.
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()
