"""Can a weak reward or cost model label the pairs that a stronger one learns from?

Claim (arXiv 2312.09390, reward modelling): a strong model that learns from a weak one's labels of pairs is right more
often than it, though the paper's recover only about a tenth of the gap, and its confidence loss was not tried there.

A pair is a high and a low answer in random order; its weak label is the probability, by the supervisor, that the
second is the high one. One exam for all seeds. A seed draws the pairs that teach the supervisor, the order of the
answers, and the order of the batches; no epoch is chosen. Related pairs never stand in two parts. Arms:

* `hh_300`, `hh_1000`: harmless single-turn pairs of people (Anthropic HH), the preferred answer is the high one.
  Supervisor: TF-IDF of the answers and Bradley-Terry by logistic regression without intercept (C = 10) on 300 or
  1,000 pairs of the first block. Student: a linear Bradley-Terry head without bias, from zero, on embeddings of
  "prompt [SEP] answer" by all-MiniLM-L6-v2 (a small BERT where that is not installed), on 3,000 pairs of the second
  block, 6 epochs, AdamW 3e-4, decay .1, cosine, batch 32. Exam: 1,500 pairs of the third block. Students by `soft`
  (naive), `hard`, `logconf` (own answer above or below one half), `product`.
* `cost_50`: a cost model. The high one of a pair is an offensive tweet, the low one another that is not (Davidson et
  al.); no post is used twice. The same supervisor on 50 pairs, students on 1,000 pairs, 5 epochs, AdamW 1e-3, decay
  .01; 713 pairs judge.
* `pocket`, the first five seeds: answers of the pocket world, the more helpful one by its oracle is high. Both models
  are finetuned transformers: the supervisor (width 32, one layer) from scratch on 100 pairs, the student
  (width 64, two layers) after imitating 2,000 answers, once for all seeds, on 1,200 pairs for 3 epochs; 1,000 judge.

Settings of the first two kinds are those of a prototype, another program, that ran on its own seeds 0-9 and 0-7:
`hh_300` .587, naive .612 (PGR .50), hard .613, logconf .624 (.75), product .617, ceiling .637; `hh_1000` .592, .619
(.61), .618, .624 (.71), .625, .637; `cost_50` .896, .938 (.63), .948, .955 (.87), .954, .964. Seed 99 served to try
this program; seeds 10-19 were never run before. Criteria, written down before that:

* hh_300_above, hh_1000_above, cost_50_above: naive students are right more often than their supervisor in at least 9
  of 10 seeds;
* hh_300_recovers: the PGR of naive students, the ratio of means over seeds, is above .2;
* hh_300_confidence, cost_50_confidence: logconf is right more often than naive in at least 9 of 10 seeds;
* pocket_above: naive students are right more often than their supervisor in at least 4 of 5 seeds.

The heads of the first two kinds are linear: that finetuned large reward models recover little is not contradicted.
"""

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from holdfast.config import Settings
from holdfast.data.recast import as_preference
from holdfast.data.schema import Conversation
from holdfast.data.split import cluster_ids
from holdfast.data.template import Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.engine.log import RunFolder
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings, fit
from holdfast.errors import UserError
from holdfast.evaluate.vault import Vault
from holdfast.models.tiny import tiny_policy
from holdfast.pocket import annotators, grammar
from holdfast.pocket.oracles import truth
from holdfast.studies import encoder, w2s_text
from holdfast.studies.common import findings
from holdfast.studies.w2s_common import (
    SOURCE,
    TRAINED_STEPS,
    Runs,
    above,
    all_runs,
    learning,
    notes_of,
    records,
    recovers,
    table_of,
)
from holdfast.systems.transfer_plan import Plan, Pool, Pools
from holdfast.training.learners import BagOfWords, Finetuned, Learner, Probe
from holdfast.training.sft import SftTask, imitation_rows
from holdfast.training.transfer import TransferSettings

SEEDS = tuple(range(10, 20))
CLAIM = "a reward or cost model that learns from a weaker one's labels surpasses it"

GOLD = 500
"""Gold pairs at hand of posts and of answers in the pocket world; a seed draws some of them for its supervisor."""


class Arm(Settings):
    """What is learned in one arm."""

    data: Literal["hh", "cost", "pocket"]
    """Which pairs."""
    taught: int
    """Gold pairs of the supervisor."""
    transfer: int
    """Pairs that it labels."""
    test: int
    """Pairs that judge."""
    epochs: int
    """How long students and ceiling learn."""
    rate: float
    """Their highest learning rate."""
    decay: float = 0.01
    """Their weight decay."""
    losses: tuple[str, ...] = ("soft", "hard", "logconf", "product")
    """Losses of the students."""
    seeds: int | None = None
    """Only this many of the seeds."""


HH = Arm(data="hh", taught=300, transfer=3000, test=1500, epochs=6, rate=3e-4, decay=0.1)


class World(Settings):
    """How much of everything."""

    small_steps: int = 0
    """Steps of the small encoder; 0 takes MiniLM."""
    weak_hidden: int = 32
    """Width of the pocket world's supervisor."""
    weak_epochs: int = 10
    """Epochs of its training."""
    strong_hidden: int = 64
    """Width of its student."""
    imitation: FitSettings = FitSettings(
        epochs=4, batch_size=32, micro_tokens=8192, optimiser=OptimiserSettings(learning_rate=3e-3)
    )
    """How that student imitates answers before it compares them."""
    arms: dict[str, Arm] = {
        "hh_300": HH,
        "hh_1000": HH.model_copy(update={"taught": 1000}),
        "cost_50": Arm(data="cost", taught=50, transfer=1000, test=713, epochs=5, rate=1e-3),
        "pocket": Arm(
            data="pocket",
            taught=100,
            transfer=1200,
            test=1000,
            epochs=3,
            rate=1e-3,
            losses=("soft", "logconf"),
            seeds=5,
        ),
    }
    """Who learns what."""


QUICK = World(
    small_steps=40,
    imitation=FitSettings(epochs=1, batch_size=32, optimiser=OptimiserSettings(learning_rate=3e-3)),
    weak_epochs=2,
    arms={
        "hh_300": HH.model_copy(update={"taught": 100, "transfer": 200, "test": 200, "epochs": 2}),
        "hh_1000": HH.model_copy(update={"taught": 200, "transfer": 200, "test": 200, "epochs": 2}),
        "cost_50": Arm(data="cost", taught=50, transfer=100, test=100, epochs=2, rate=1e-3),
        "pocket": Arm(data="pocket", taught=50, transfer=64, test=100, epochs=1, rate=1e-3, losses=("soft",)),
    },
)


class Compared(NamedTuple):
    """Two answers, the high one first, and the group they belong to."""

    id: str
    group: str
    high: Any
    low: Any


class Pairs(NamedTuple):
    """What judges, what is labelled, and what the supervisor's gold pairs are drawn from; no group is in two."""

    exam: list[Compared]
    transfer: list[Compared]
    gold: list[Compared]


def run(folder: Path, seeds: Sequence[int] = SEEDS, quick: bool = False) -> dict[str, Any]:
    """Run every arm with its seeds, loading what is finished; return the result."""
    world = QUICK if quick else World(small_steps=0 if encoder.installed() else TRAINED_STEPS)
    place = folder / ("quick" if quick else "full")
    RunFolder(place, world)
    make = partial(plan, place, world)
    for name in world.arms:
        make(name)  # what its seeds share is written before there are several processes that want it
    arms = all_runs(make, {name: seeds[: arm.seeds] for name, arm in world.arms.items()}, place)
    return findings("w2s_reward", CLAIM, SOURCE, criteria(arms), arms, seeds, world)


def plan(place: Path, world: World, name: str) -> Plan:
    """Who learns what in an arm."""
    arm = world.arms[name]
    pairs = pairs_of(arm.data, arm.test, arm.transfer)
    team = networks(place, world, arm) if arm.data == "pocket" else linear(place, world, arm)
    taught = learning(arm.epochs, arm.rate, arm.decay)
    everything = [one for part in pairs for one in part]
    return Plan(
        pools=cache(partial(drawn, pairs, arm.taught)),
        vault=Vault(
            {f"{one.id}/{y}": y for one in everything for y in (0, 1)},
            2,
            sealed=[f"{one.id}/{y}" for one in pairs.exam for y in (0, 1)],
            groups={f"{one.id}/{y}": one.group for one in everything for y in (0, 1)},
        ),
        supervisor=team.supervisor,
        student=team.student,
        supervised=team.supervised,
        ceiling=taught,
        students={loss: taught.model_copy(update={"kind": loss}) for loss in arm.losses},
        select=False,
        facts={"shorter": shorter(pairs.exam), "sees": team.sees},
    )


def shorter(pairs: Sequence[Compared]) -> float:
    """The share of pairs whose high answer has fewer words, ties for a half: the easiest error to imitate."""
    longer = [np.sign(len(said(one.high).split()) - len(said(one.low).split())) for one in pairs]
    return float(0.5 - 0.5 * np.mean(longer))


def said(side: Any) -> str:
    """The answer of a side, without what it answers."""
    return str(side.response if isinstance(side, Conversation) else side[-1])


def drawn(pairs: Pairs, taught: int, seed: int) -> Pools:
    """What a seed learns from, and the exam; all in random order of the answers."""
    shuffled = np.random.default_rng((seed, 0)).permutation(len(pairs.gold)).tolist()
    chosen = sorted(some(shuffled, taught, "the gold pairs"))
    return Pools(
        weak_train=ordered([pairs.gold[i] for i in chosen], (seed, 1)),
        transfer=ordered(pairs.transfer, (seed, 2)),
        validation=Pool(),
        test=ordered(pairs.exam, (0, 3)),
    )


def ordered(pairs: Sequence[Compared], seed: tuple[int, int]) -> Pool:
    """The pairs with the high answer first or second by chance; its place, which is the class, ends the id."""
    places = np.random.default_rng(seed).integers(2, size=len(pairs)).tolist()
    ids = tuple(f"{one.id}/{place}" for one, place in zip(pairs, places))
    return Pool(ids, [(one.low, one.high) if place else (one.high, one.low) for one, place in zip(pairs, places)])


def some(rows: Sequence[Any], count: int, name: str) -> list[Any]:
    """The first `count` of the rows; `UserError` when there are fewer."""
    if len(rows) < count:
        raise UserError(f"{count} pairs are asked of {name}, which holds {len(rows)}; give more data or ask for fewer")
    return list(rows[:count])


@lru_cache
def pairs_of(data: str, test: int, transfer: int) -> Pairs:
    """The pairs of one kind in three parts."""
    exam, told, gold = {"hh": harmless, "cost": posts, "pocket": answers}[data](test, transfer)
    return Pairs(some(exam, test, f"the exam of {data}"), some(told, transfer, f"the transfer pairs of {data}"), gold)


def harmless(test: int, transfer: int) -> Pairs:
    """Pairs of people; of the exam's one per prompt, and a prompt of a later part is in no earlier one.

    Sides are (prompt, answer).
    """
    rows = [as_preference(one, "hh") for one in records("hh_harmless_single_turn")]
    parts: dict[str, list[Compared]] = {"half_a": [], "half_b": [], "test": []}
    for row, cluster in zip(rows, cluster_ids(rows)):
        asked = row.prompt.messages[0].text
        parts[row.split].append(Compared(row.id, cluster, (asked, row.chosen), (asked, row.rejected)))
    gold, told, exam = parts.values()
    examined = {one.group for one in exam}
    told = [one for one in told if one.group not in examined]
    shut = examined.union(one.group for one in told)
    alone = {one.group: one for one in exam}
    return Pairs(list(alone.values()), told, [one for one in gold if one.group not in shut])


def posts(test: int, transfer: int) -> Pairs:
    """An offensive post and one that is not, all of different words. Sides are (text,)."""
    texts = w2s_text.corpus("tweets", 2 * test, 2 * (transfer + GOLD))
    parts = []
    for part in (texts.exam, texts.pool):
        alone = dict(zip(cluster_ids(part), part)).values()
        sides = ([one for one in alone if one.label == label] for label in "10")
        parts.append([Compared(a.id, a.id, (texts.words[a.id],), (texts.words[b.id],)) for a, b in zip(*sides)])
    exam, rest = parts
    return Pairs(exam, rest[:transfer], rest[transfer:])


def answers(test: int, transfer: int) -> Pairs:
    """Two answers to a request of the pocket world, each request once. Sides are conversations."""
    rng = np.random.default_rng(0)
    found: dict[str, Compared] = {}
    while len(found) < test + transfer + GOLD:
        drawn = annotators.draw_pair(f"pair-{len(found)}", annotators.Annotator(), rng)
        asked = drawn.prompt.messages[0].text
        value = [truth(asked, reply).value for reply in drawn.responses]
        if asked not in found and value[0] != value[1]:
            replies = [drawn.prompt.answer(reply) for reply in drawn.responses]
            high = int(value[1] > value[0])
            found[asked] = Compared(drawn.id, asked, replies[high], replies[1 - high])
    rows = list(found.values())
    return Pairs(rows[:test], rows[test : test + transfer], rows[test + transfer :])


class Team(NamedTuple):
    """Who labels, how it learns, who learns from the labels, and what that one sees."""

    supervisor: Learner
    supervised: TransferSettings
    student: Learner
    sees: str


def linear(place: Path, world: World, arm: Arm) -> Team:
    """A bag of words that reads the answers, and a linear head on embeddings of what was asked and answered."""
    seen, row, name = embedded(place, world.small_steps, arm.data, arm.test, arm.transfer)
    words = BagOfWords(lambda items: [(said(first), said(second)) for first, second in items], pair=True)
    probe = Probe(lambda items: seen[torch.tensor([[row[side] for side in item] for item in items])], pair=True)
    return Team(words, TransferSettings(), probe, name)


@lru_cache
def embedded(
    place: Path, small_steps: int, data: str, test: int, transfer: int
) -> tuple[Tensor, dict[tuple[str, ...], int], str]:
    """Embeddings (N, d) of all answers that the student reads, the row of each, and the name of the encoder."""
    pairs = pairs_of(data, test, transfer)
    sides = dict.fromkeys(side for part in (pairs.exam, pairs.transfer) for one in part for side in (one.high, one.low))
    found = encoder.embeddings(place, [" [SEP] ".join(side) for side in sides], small_steps)
    return torch.from_numpy(found.values), {side: i for i, side in enumerate(sides)}, found.encoder


def networks(place: Path, world: World, arm: Arm) -> Team:
    """A small transformer, how it learns, and a larger one that imitated the answers to be labelled, good and bad.

    The paper calls it generative finetuning: a language model learns from the answers before it learns to compare.
    """
    tokenizer = train_tokenizer([" ".join(grammar.vocabulary())], 4096, "word")
    template = Template(tokenizer, max_length=128)
    small = tiny_policy(len(tokenizer), hidden=world.weak_hidden, layers=1, seed=1)
    large = tiny_policy(len(tokenizer), hidden=world.strong_hidden, layers=2, seed=2)
    pairs = pairs_of("pocket", arm.test, arm.transfer).transfer
    rows = imitation_rows([side for one in pairs for side in (one.high, one.low)], template)
    fit(SftTask(large, template.pad_id), rows, [], world.imitation, RunFolder(place / "imitation"), stage="sft")
    pair = [Finetuned(one, template, pair=True) for one in (small, large)]
    return Team(pair[0], learning(world.weak_epochs, 3e-3), pair[1], "tokens")


def criteria(arms: Mapping[str, Runs]) -> list[dict[str, Any]]:
    """Each criterion with what was measured of it, and whether it holds."""
    naive = [above(f"{name}_above", arms[name], "soft", "supervisor") for name in ("hh_300", "hh_1000", "cost_50")]
    return [
        *naive,
        recovers("hh_300_recovers", arms["hh_300"], "soft", 0.2),
        *(above(f"{name}_confidence", arms[name], "logconf", "soft") for name in ("hh_300", "cost_50")),
        above("pocket_above", arms["pocket"], "soft", "supervisor", 0.8),
    ]


def table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table with all models of all arms."""
    arms = result["arms"]
    baseline = ", ".join(f"{name} {runs[0]['facts']['shorter']:.3f}" for name, runs in arms.items())
    return f"{table_of(arms)}\n\n{notes_of(arms)}\n\nWho always takes the shorter answer is right in: {baseline}."
