"""As much of a bench as the stages of learning from given answers read."""

from types import SimpleNamespace

import torch

from holdfast.data.schema import Conversation
from holdfast.data.template import Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.engine.log import RunFolder
from holdfast.models.heads import from_policy
from holdfast.models.tiny import tiny_policy
from holdfast.preference.score import FunctionScorer, JointScorer
from holdfast.systems import a_lol, given

FOLDS = ("practise", "dev", "safety", "pairs", "held_out_pairs", "ratings", "held_out_ratings")


def lengths(rows):
    return [[float(len(one.response.split()))] for one in rows]


def bench(folder, score=lengths, names=("words",), seed=0, on_long_prompt="error", **folds):
    """As much of a bench as the stages read; folds: the records of pools that are not empty."""
    settings = a_lol.ALol(seed=seed, text={"max_length": 24, "on_long_prompt": on_long_prompt})
    words = train_tokenizer(
        ["a b c d e f g tulips bread how many are ? . " + " ".join(map(str, range(30)))], 80, "word"
    )
    pools = {name: [] for name in ("imitate", *FOLDS)} | folds
    return SimpleNamespace(
        scorer=FunctionScorer(names, score),
        run=RunFolder(folder / "run"),
        settings=settings,
        template=Template(words, max_length=24),
        pools=SimpleNamespace(**pools),
        reward=None,
        cost=None,
        attributes=None,
        others=(),
        facts={},
    )


def ask(i):
    return Conversation.ask(f"how many tulips are {i} ?", id=f"p{i}")


def answers_of(scores):
    asked = [ask(i).answer("a") for i in range(len(next(iter(scores.values()))))]
    named = {name: torch.tensor(values) for name, values in scores.items()}
    return given.Answers(asked, named, next(iter(named.values())).double())


def judged_by(folder, place, seed=0, chat_template="plain"):
    """Save a model of the score `words` to `folder`, and let the bench `place` read its scores from there."""
    words = place.template.tokenizer
    policy = tiny_policy(len(words), hidden=8, layers=1, heads=2)
    from_policy(policy, ("words",), init_std=0.5, seed=seed).save_pretrained(folder)
    words.save_pretrained(folder)
    text = {"max_length": 24, "chat_template": chat_template}
    place.others = a_lol.ALol(scorers=[str(folder)], text=text).further_scorers("cpu")
    place.scorer = JointScorer(place.others)
