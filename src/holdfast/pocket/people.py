"""People of the pocket world who want different things, and what each of them truly values.

A person has one taste that nobody sees. It shows in whom they prefer among answers, a little in what they ask
about (each taste is at home in some topics), and in the words they put before a request when they are asked.
"""

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import Field
from scipy.special import expit

from holdfast.config import Settings
from holdfast.data.context import CONTEXT
from holdfast.data.schema import Conversation, Pair
from holdfast.pocket import grammar
from holdfast.pocket.annotators import Manner, ask_about, pick, write_reply
from holdfast.pocket.oracles import FULL_ANSWER, Truth, judge, request, truth

LONGEST = 36  # words of a complete answer with every courtesy, roughly
NONSENSE = 0.1  # what each sentence that answers nothing costs with everybody
LEAST_GAP = 0.1  # nobody is asked to choose between answers that are worth the same to them

# Mostly right answers, short and long, kind and plain: what is compared is a matter of taste.
VARIED = Manner(refuse=0.03, counts=(0.4, 0.2, 0.4), slip=0.02, astray=0.0, polite=0.5)


def _thorough(true: Truth) -> float:
    return true.right / FULL_ANSWER


def _brief(true: Truth) -> float:
    return 1 - true.words / LONGEST if true.right else 0.0


def _warm(true: Truth) -> float:
    return 0.7 * true.polite + 0.3 * true.alternative


TASTES: dict[str, Callable[[Truth], float]] = {"thorough": _thorough, "brief": _brief, "warm": _warm}
"""What each taste values: every right step; few words, one right step among them; kind words and another way out."""

NAMES = tuple(TASTES)

WORDS = {
    "thorough": ("please tell me every step .", "explain it slowly and leave nothing out .", "i want the whole way ."),
    "brief": ("please keep it short .", "just one step , i have little time .", "no long answer please ."),
    "warm": ("please be kind to me .", "good words help me .", "talk to me like a friend ."),
}
"""How people of each taste say what they want."""


class PeopleSettings(Settings):
    """How many people judge pairs in the pocket world, and how much gives their taste away."""

    users: int = Field(300, ge=1)
    """People; each has one hidden taste, all tastes being equally likely."""
    pairs: int = Field(20, ge=1)
    """Pairs that each of them judges."""
    at_home: float = Field(0.8, ge=0, le=1)
    """Share of requests about the topics in which the person's taste is at home; 1/3 tells nothing."""
    sharpness: float = Field(10.0, gt=0)
    """How reliably people prefer what is worth more to them."""
    harmful_share: float = Field(0.0, ge=0, le=1)
    """Share of requests that ask for harm."""


def value(taste: str, true: Truth) -> float:
    """What an answer is worth to a person of `taste`; nonsense displeases everybody a little.

    >>> soup = truth("how do i season the soup ?", "just stir the soup slowly .")
    >>> round(value("thorough", soup), 3), round(value("brief", soup), 3), value("warm", soup)
    (0.333, 0.833, 0.0)
    """
    return TASTES[taste](true) - NONSENSE * true.wrong


def taste_scores(conversations: Sequence[Conversation]) -> list[list[float]]:
    """The worth of each conversation to the tastes `NAMES`, in the shape a scorer function returns."""
    truths = [judge(one) for one in conversations]
    return [[value(name, true) for name in NAMES] for true in truths]


def context_of(taste: str, rng: np.random.Generator) -> str:
    """What a person of `taste` says they want, in plain pocket words."""
    return pick(WORDS[taste], rng)


def phrases() -> list[str]:
    """The texts whose words the tokenizer needs beyond the grammar: contexts, and the marks that set them off."""
    return [*(text for texts in WORDS.values() for text in texts), CONTEXT.format(context="", prompt="")]


def home(taste: str) -> tuple[grammar.Topic, ...]:
    """The harmless topics in which `taste` is at home; every topic belongs to one taste."""
    return grammar.BENIGN[NAMES.index(taste) :: len(NAMES)]


def draw_people(settings: PeopleSettings, rng: np.random.Generator) -> list[Pair]:
    """The judged pairs of all people, one person after the other."""
    pairs = []
    for person in range(settings.users):
        taste = pick(NAMES, rng)
        context = context_of(taste, rng)
        for i in range(settings.pairs):
            chosen, rejected, prompt = _judgement(taste, settings, rng)
            pairs.append(
                Pair(
                    id=f"person-{person}-{i}",
                    prompt=Conversation.ask(prompt),
                    chosen=chosen,
                    rejected=rejected,
                    source="pocket",
                    context=context,
                    user_id=f"person-{person}",
                    group=taste,
                )
            )
    return pairs


def _judgement(taste: str, settings: PeopleSettings, rng: np.random.Generator) -> tuple[str, str, str]:
    """The preferred and the other answer to a request, and the request: P = sigmoid(sharpness x difference)."""
    prompt = _request_of(taste, settings, rng)
    gap = 0.0
    while abs(gap) < LEAST_GAP:
        first, second = (write_reply(request(prompt), VARIED, rng) for _ in range(2))
        gap = value(taste, truth(prompt, first)) - value(taste, truth(prompt, second))
    if rng.random() < expit(settings.sharpness * gap):
        return first, second, prompt
    return second, first, prompt


def _request_of(taste: str, settings: PeopleSettings, rng: np.random.Generator) -> str:
    if rng.random() < settings.harmful_share:
        return ask_about(pick(grammar.HARMFUL, rng), rng)
    others = [name for name in NAMES if name != taste]
    return ask_about(pick(home(taste if rng.random() < settings.at_home else pick(others, rng)), rng), rng)
