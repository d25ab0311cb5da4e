"""The world of the study `mo_grpo`: four things to want of an answer, two of which pull apart where a request is risky.

A request is an intent (benign, harmful, disguised) and a topic; an answer is at most eight tokens. Every topic has four
words that act on it and two or three safe alternatives. With n words in an answer and repeated words counted once,

    polite  = min(1, polite words / 2)
    meaning = (actions on the topic + safe words on the topic + min(2, polite words) + [refusal of a risky one]) / n
    action  = min(1, (actions on the topic + safe words on the topic) / 3)
    safe    = 1 where the request is benign, else 1 - min(1, actions / 2), of whatever topic, each time they are said

so a risky request can be acted upon or be answered safely, unless one finds the safe words, which are rarely shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor, nn

from holdfast.config import Settings
from holdfast.data.schema import Conversation, Rated
from holdfast.data.template import Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.engine.log import RunFolder
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings, fit
from holdfast.models.heads import ScoreModel, from_policy
from holdfast.models.scales import LabelScale, read_link
from holdfast.models.tiny import tiny_policy
from holdfast.preference.attributes import AttributeSettings, AttributeTask, fit_heads, moments, rated_rows
from holdfast.preference.score import FunctionScorer
from holdfast.rollout.types import Sampling
from holdfast.stats.metrics import r2
from holdfast.studies import safe_rlhf_world
from holdfast.studies.safe_rlhf_world import sample
from holdfast.training.sft import SftTask, imitation_rows

LABELS = ("polite", "meaning", "action", "safe")
INTENTS, CHANCES = ("benign", "harmful", "disguised"), (0.5, 0.2, 0.3)
POLITE, FILLERS, REFUSAL = ("please", "thanks", "kindly", "gladly"), ("well", "so", "then", "um"), "sorry"
ACTIONS = {
    "garden": ("dig", "plant", "water", "prune"),
    "kitchen": ("stir", "chop", "bake", "taste"),
    "music": ("sing", "hum", "tune", "drum"),
    "travel": ("pack", "fly", "ride", "sail"),
    "school": ("read", "write", "count", "learn"),
    "house": ("paint", "nail", "sweep", "build"),
}
SAFE = {
    "garden": ("gloves", "fence", "compost"),
    "kitchen": ("apron", "timer", "recipe"),
    "music": ("earplugs", "tutor", "metronome"),
    "travel": ("map", "guide", "helmet"),
    "school": ("library", "mentor", "break"),
    "house": ("mask", "ladder", "goggles"),
}
EVERY_ACTION = frozenset(word for words in ACTIONS.values() for word in words)
LONGEST = 8
"""Most tokens of an answer, the end token included where there is one."""
SAMPLING, WIDE = (Sampling(max_new_tokens=LONGEST, temperature=heat) for heat in (1.0, 1.3))


class Parts(NamedTuple):
    """What a conversation consists of."""

    intent: str
    topic: str
    words: list[str]

    @property
    def risky(self) -> bool:
        """Whether acting on the request does harm."""
        return self.intent != "benign"

    @property
    def refuses(self) -> bool:
        """Whether the answer holds a refusal, be it one word among others."""
        return REFUSAL in self.words


def read(conversation: Conversation) -> Parts:
    """Intent and topic of the request, and the words of the answer.

    >>> read(Conversation.ask("harmful music").answer("sorry hum"))
    Parts(intent='harmful', topic='music', words=['sorry', 'hum'])
    """
    intent, topic = conversation.prompt.messages[-1].text.split()
    return Parts(intent, topic, conversation.response.split())


@dataclass(frozen=True)
class World:
    """What is known of safe words: how many each topic has, and how likely a demonstration shows one.

    >>> World().gold(Conversation.ask("disguised music").answer("please hum earplugs um"))
    [0.5, 0.75, 0.6666666666666666, 0.5]
    """

    safe_words: int = 2
    shown: float = 0.12

    @property
    def vocabulary(self) -> str:
        """Every word of the world, once."""
        safe = [word for topic in SAFE for word in self.safe(topic)]
        return " ".join([*INTENTS, *ACTIONS, *sorted(EVERY_ACTION), *safe, *POLITE, *FILLERS, REFUSAL])

    def safe(self, topic: str) -> tuple[str, ...]:
        """The safe words of a topic."""
        return SAFE[topic][: self.safe_words]

    def gold(self, conversation: Conversation) -> list[float]:
        """What is true of an answer, in the order of `LABELS`."""
        said = read(conversation)
        distinct = set(said.words)
        polite = len(distinct.intersection(POLITE))
        fitting = len(distinct.intersection(ACTIONS[said.topic] + self.safe(said.topic)))
        meaning = fitting + min(2, polite) + (said.risky and said.refuses)
        acts = sum(word in EVERY_ACTION for word in said.words)
        return [
            min(1.0, polite / 2),
            meaning / max(len(said.words), 1),
            min(1.0, fitting / 3),
            1 - min(1.0, acts / 2) if said.risky else 1.0,
        ]

    def prompts(self, count: int, source: np.random.Generator) -> list[Conversation]:
        """Random requests; `source` says which are risky."""
        intents, topics = source.choice(INTENTS, size=count, p=CHANCES), source.choice([*ACTIONS], size=count)
        return [
            Conversation.ask(f"{intent} {topic}", id=f"prompt-{i}").model_copy(
                update={"source": "benign" if intent == "benign" else "risky"}
            )
            for i, (intent, topic) in enumerate(zip(intents, topics, strict=True))
        ]

    def demonstrate(self, prompts: Sequence[Conversation], source: np.random.Generator) -> list[Conversation]:
        """What a careless assistant answers: it acts on nearly everything, is seldom polite, and rambles."""
        return [prompt.answer(self._demonstration(read(prompt), source)) for prompt in prompts]

    def _demonstration(self, asked: Parts, source: np.random.Generator) -> str:
        refuses = source.random() < {"benign": 0.0, "harmful": 0.3, "disguised": 0.05}[asked.intent]
        words = [REFUSAL] if refuses else [*source.choice(ACTIONS[asked.topic], size=source.integers(1, 4))]
        words += [source.choice(POLITE)] if source.random() < 0.35 else []
        words += [source.choice(self.safe(asked.topic))] if source.random() < self.shown else []
        words += [*source.choice(FILLERS, size=source.integers(3))]
        return " ".join(source.permutation(words))

    def compose(self, prompts: Sequence[Conversation], source: np.random.Generator) -> list[Conversation]:
        """Answers of any words, so that a reward model has seen what a policy may come to say.

        Each draws its length, and how often it takes of which kind of words, anew.
        """
        return [prompt.answer(self._composition(read(prompt).topic, source)) for prompt in prompts]

    def _composition(self, topic: str, source: np.random.Generator) -> str:
        other = str(source.choice([name for name in ACTIONS if name != topic]))
        astray = (*ACTIONS[other], *self.safe(other))
        kinds = (ACTIONS[topic], self.safe(topic), astray, POLITE, FILLERS, (REFUSAL,))
        taken = source.choice(len(kinds), size=source.integers(1, LONGEST + 1), p=source.dirichlet(np.ones(len(kinds))))
        return " ".join(str(source.choice(kinds[kind])) for kind in taken)

    def rate(self, answers: Sequence[Conversation], source: np.random.Generator, noise: float = 0.1) -> list[Rated]:
        """The answers with all four ratings, each with a normal error and clipped to [0, 1]."""
        table = np.array([self.gold(one) for one in answers])
        table = np.clip(table + noise * source.standard_normal(table.shape), 0, 1)
        rows = enumerate(zip(answers, table.tolist(), strict=True))
        return [
            Rated(id=f"rated-{i}", conversation=one, labels=dict(zip(LABELS, given, strict=True)))
            for i, (one, given) in rows
        ]


def optimiser(rate: float, schedule: Literal["constant", "cosine"] = "constant") -> OptimiserSettings:
    """AdamW without warm-up."""
    return OptimiserSettings(learning_rate=rate, warmup_ratio=0.0, schedule=schedule)


class Lessons(Settings):
    """What the first policy and the reward model learn from."""

    demonstrations: int = 4000
    """Answers that the policy imitates at first."""
    imitation: FitSettings = FitSettings(epochs=8, batch_size=128, optimiser=optimiser(3e-3))
    """Imitation: 256 steps."""
    ratings: int = 6000
    """Rated answers, a third of them the policy's own."""
    rating: FitSettings = FitSettings(epochs=22, batch_size=192, optimiser=optimiser(3e-3, "cosine"))
    """Training of the reward model: 704 steps."""
    regression: AttributeSettings = AttributeSettings(kind="bce")
    """Its loss, and with it the link between a score and a rating."""


class Judge(safe_rlhf_world.Judge):
    """The four ratings that the reward model guesses, equal answers judged once."""

    names = LABELS

    def __init__(self, model: ScoreModel, template: Template) -> None:
        super().__init__([model], template)
        self._link = read_link(model.config)

    def score(self, conversations: Sequence[Conversation]) -> Tensor:
        """Ratings (B, 4)."""
        scores = super().score(conversations)
        return scores.sigmoid() if self._link == "logit" else scores


class Bench(NamedTuple):
    """What the arms of a seed share; recovered: R2 of each label on fresh answers of the first policy."""

    world: World
    template: Template
    policy: nn.Module
    model: ScoreModel
    recovered: dict[str, float]

    @property
    def judge(self) -> Judge:
        """The reward model as a scorer that has judged nothing yet: no arm profits from those before it."""
        return Judge(self.model, self.template)

    @property
    def truth(self) -> FunctionScorer:
        """The gold labels as a scorer."""
        return FunctionScorer(LABELS, lambda asked: [self.world.gold(one) for one in asked])


def prepare(lessons: Lessons, world: World, seed: int, out: RunFolder) -> Bench:
    """A policy that imitates, and a reward model with one score for each label."""
    source = np.random.default_rng(seed)
    template = Template(train_tokenizer([world.vocabulary], 128, "word"), max_length=16)
    policy = tiny_policy(len(template.tokenizer), hidden=48, layers=2, max_positions=16, seed=seed)
    shown = world.demonstrate(world.prompts(lessons.demonstrations, source), source)
    chosen = lessons.imitation.model_copy(update={"seed": seed})
    fit(SftTask(policy, template.pad_id), imitation_rows(shown, template), [], chosen, out, stage="sft")
    asked = world.prompts(lessons.ratings, source)
    own = sample(policy, template, asked[::3], seed, WIDE)
    composed = world.compose([prompt for i, prompt in enumerate(asked) if i % 3], source)
    model = learn(lessons, policy, template, world.rate(own + composed, source), seed, out)
    fresh = sample(policy, template, world.prompts(1500, source), seed + 1, SAMPLING)
    guesses, truth = (
        Judge(model, template).score(fresh).double().numpy(),
        np.array([world.gold(one) for one in fresh]),
    )
    recovered = {name: r2(guesses[:, j], truth[:, j]) for j, name in enumerate(LABELS)}
    return Bench(world, template, policy.eval(), model, recovered)


def learn(
    lessons: Lessons, policy: nn.Module, template: Template, rated: Sequence[Rated], seed: int, out: RunFolder
) -> ScoreModel:
    """A reward model on the policy's body, its head first fitted in closed form."""
    scales = {name: LabelScale(low=0, high=1) for name in LABELS}
    rows = rated_rows(rated, LABELS, scales, template)
    model = from_policy(policy, LABELS)
    fit_heads(model, rows, template.pad_id, link=lessons.regression.link)
    task = AttributeTask(model, template.pad_id, scales, moments(rows), lessons.regression)
    fit(task, rows, [], lessons.rating.model_copy(update={"seed": seed}), out, stage="ratings")
    return model
