"""People of the pocket world: they write answers of mixed quality and judge pairs with noise."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from scipy.special import expit

from holdfast.data.schema import Conversation, DualPair
from holdfast.pocket import grammar
from holdfast.pocket.grammar import Request, Topic
from holdfast.pocket.oracles import Truth, request, truth

Item = TypeVar("Item")


@dataclass(frozen=True)
class Manner:
    """How a writer answers.

        refuse: share of refusals; counts: how often one, two, three steps are given; slip: share of steps that go
    wrong (another object, another topic's step, a repetition); astray: share of answers to a question that nobody
    asked; polite: share of kind openings, half as many closings; alternative: share of refusals that name another
    way out.
    """

    refuse: float
    counts: tuple[float, float, float]
    slip: float
    astray: float = 0.0
    polite: float = 0.4
    alternative: float = 0.5


# What the instruction data look like: helpful to anyone, harmful requests included, and careless now and then.
BENIGN_WRITER = Manner(refuse=0.12, counts=(0.25, 0.35, 0.4), slip=0.12)
HARMFUL_WRITER = Manner(refuse=0.3, counts=(0.2, 0.3, 0.5), slip=0.05)
# What annotators compare: every kind of answer, so that the learned scores have seen all of them.
SPREAD = Manner(refuse=0.25, counts=(0.3, 0.3, 0.4), slip=0.2, astray=0.1)


def draw_request(rng: np.random.Generator, harmful_share: float = 0.5) -> str:
    """One prompt: harmful with probability `harmful_share`, and framed as a story in two of five cases."""
    return ask_about(pick(grammar.HARMFUL if rng.random() < harmful_share else grammar.BENIGN, rng), rng)


def ask_about(topic: Topic, rng: np.random.Generator) -> str:
    """One prompt about `topic`, framed as a story in two of five cases."""
    act, thing = pick(topic.pairs, rng)
    frame = pick(grammar.FRAMED if rng.random() < 0.4 else grammar.PLAIN, rng)
    return frame.format(act=act, object=thing, detail=pick(grammar.DETAILS, rng))


def write_reply(asked: Request, manner: Manner, rng: np.random.Generator) -> str:
    """One answer to the request, in the manner's proportions."""
    if rng.random() < manner.refuse:
        parts = [pick(grammar.REFUSALS, rng)]
        return " ".join([*parts, pick(grammar.ALTERNATIVES, rng)] if rng.random() < manner.alternative else parts)
    if rng.random() < manner.astray:
        asked = _astray(asked, rng)
    count = 1 + int(rng.choice(3, p=manner.counts))
    order = rng.permutation(len(asked.topic.steps))[:count]
    steps: list[tuple[str, str]] = []
    for i in order:
        step = (asked.topic.steps[i], asked.object)
        steps.append(_slip(steps, step, asked, rng) if rng.random() < manner.slip else step)
    opener = pick(grammar.OPENERS, rng) if rng.random() < manner.polite else ""
    closer = pick(grammar.CLOSERS, rng) if rng.random() < manner.polite / 2 else ""
    return " ".join(filter(None, [opener, grammar.sentences(steps), closer]))


def _astray(asked: Request, rng: np.random.Generator) -> Request:
    """Another question: the same object under another topic, or the same topic about another object."""
    if rng.random() < 0.6:
        other = pick([topic for topic in grammar.TOPICS if topic is not asked.topic], rng)
        return replace(asked, topic=other)
    things = [thing for _, thing in asked.topic.pairs if thing != asked.object]
    return replace(asked, object=pick(things, rng))


def _slip(
    said: list[tuple[str, str]], step: tuple[str, str], asked: Request, rng: np.random.Generator
) -> tuple[str, str]:
    """A step gone wrong: about another object, from another topic, or one that was said before."""
    kind = rng.integers(3)
    if kind == 0 and said:
        return said[rng.integers(len(said))]
    if kind == 1:
        return step[0], pick([thing for _, thing in asked.topic.pairs if thing != asked.object], rng)
    other = pick([topic for topic in grammar.TOPICS if topic is not asked.topic], rng)
    return pick(other.steps, rng), asked.object


def pick(options: Sequence[Item], rng: np.random.Generator) -> Item:
    """One of `options`, each as likely as the others."""
    return options[rng.integers(len(options))]


@dataclass(frozen=True)
class Annotator:
    """Judges pairs by the truth through noise.

    sharpness: P(prefer the more helpful) = sigmoid(sharpness x difference in value);
    flip: share of safety labels and safety preferences that come out wrong.
    """

    sharpness: float = 10.0
    flip: float = 0.05

    def judge(self, name: str, prompt: str, replies: tuple[str, str], rng: np.random.Generator) -> DualPair:
        """The pair with both preferences, safety labels, graded rates and categories.

        The label of each answer is drawn first and the safety preference follows from labels and severity, so a
        person may be wrong but does not contradict themselves.
        """
        truths = (truth(prompt, replies[0]), truth(prompt, replies[1]))
        margin = truths[0].value - truths[1].value
        helpful = 0 if rng.random() < expit(self.sharpness * margin) else 1
        seen = tuple(self._severity(one, rng) for one in truths)
        rates = tuple(-level if level else self._merit(one) for level, one in zip(seen, truths, strict=True))
        if rates[0] == rates[1]:
            safer = int(rng.integers(2))
        else:
            safer = 0 if rates[0] > rates[1] else 1
        return DualPair(
            id=name,
            prompt=Conversation.ask(prompt),
            responses=replies,
            helpful_id=helpful,
            safer_id=safer,
            safe=(seen[0] == 0, seen[1] == 0),
            harmless_rate=rates,
            severity=seen,
            categories=tuple(one.categories if level else () for level, one in zip(seen, truths, strict=True)),
            source="pocket",
            licence="Apache-2.0",
        )

    def _severity(self, true: Truth, rng: np.random.Generator) -> int:
        if rng.random() >= self.flip:
            return true.severity
        return 0 if true.harmful else 1

    @staticmethod
    def _merit(true: Truth) -> int:
        """Rate of a safe answer: a bare refusal 0, a plain answer 1, a refusal with another way out 2."""
        if not true.refusal:
            return 1
        return 2 if true.alternative else 0


def draw_pair(name: str, annotator: Annotator, rng: np.random.Generator, prompt: str | None = None) -> DualPair:
    """A prompt with two different answers, judged."""
    prompt = prompt or draw_request(rng)
    asked = request(prompt)
    first = second = write_reply(asked, SPREAD, rng)
    while second == first:
        second = write_reply(asked, SPREAD, rng)
    return annotator.judge(name, prompt, (first, second), rng)
