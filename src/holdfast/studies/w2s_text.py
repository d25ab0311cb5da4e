"""Does a student on sentence embeddings correct a bag of words that taught it to find offensive posts?

Claim (arXiv 2312.09390, sections 4.2 and 4.3.2): a strong student that is finetuned on a weak supervisor's labels
recovers a good part of the gap to its ceiling, the confidence loss recovers more, and copies fewer mistakes. And where
the student is not stronger than its supervisor (arXiv 2312.09390 needs a gap), nothing of this is to be had.

Data: the tweets of Davidson et al. (2017), hateful or offensive against neither; `RT`, handles, links and HTML
entities are cut out, posts left without a word are dropped. Posts of the same words stand in one part. 1,500 posts,
half of each class and no two of the same words, judge every model; 5,000 others, half of each class, are divided anew
with each seed into what the supervisor may learn from and what it labels. Supervisor: TF-IDF and logistic regression
(C = 10) on 100 gold labels. Student: a linear probe on standardised embeddings of all-MiniLM-L6-v2 (a small BERT
trained on the posts where that is not installed); AdamW 1e-3, cosine, batch 32, 10 epochs on 1,800 labelled posts, of
which the one is kept that agrees best with the labels of 200 more: weak ones, gold for the ceiling alone. Arms:

* `tweets`: students by `soft` (naive), `hard`, `logconf` (half of the posts in each class), `logconf_weak` (shares as
  in the weak labels), `product`, `adaptconf` (temperature .5);
* `long`: 40 epochs without a choice of the epoch, for the first five seeds;
* `lsa`, the negative control: in place of the embeddings 300 dimensions of TF-IDF by truncated SVD of the pool;
* `dialogues`: DiaSafety, answers unsafe in their context or not, the supervisor on 500 gold labels, first five seeds;
  no criterion. A prototype of another program found no gap there: the report should say so, and not give a PGR.

Settings are those of that prototype, which ran on its own seeds 0-9: supervisor .814, naive .853 (PGR .43), hard .873
(.65), logconf .884 (.77), weak prior .878 (.70), product .886 (.79), adaptconf .876 (.68), ceiling .906; agreement on
mistakes .40 for naive and .32 for logconf; control: supervisor .789, naive .739, logconf .674, ceiling .818. Of this
program only the quick form was run before, on seed 99; seeds 10-19 never were. Criteria, written down before that:

* naive_above: naive students are right more often than their supervisor in at least 9 of 10 seeds,
* naive_recovers: and their PGR, the ratio of means over seeds, is above .2;
* confidence_above: logconf is right more often than naive in at least 9 of 10 seeds,
* confidence_sure: with p < .01 by Wilcoxon's signed ranks, one-sided, over seeds;
* confidence_corrects: logconf agrees less often with the supervisor's mistakes, in the mean over seeds;
* overfits: in 40 epochs the mean accuracy of naive students falls by at least a point from its best epoch to its last,
* confidence_overfits_less: and that of logconf by less;
* control_below: in the control naive is right less often than its supervisor in at least 9 of 10 seeds,
* control_worse: and logconf less often than naive,
* control_warned: and in all seeds the report warns of a student below its supervisor.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from holdfast.config import Settings
from holdfast.data.halves import take
from holdfast.data.recast import as_classified
from holdfast.data.schema import Classified, Conversation
from holdfast.data.split import cluster_ids, pools
from holdfast.engine.log import RunFolder
from holdfast.evaluate.vault import Vault
from holdfast.studies import encoder
from holdfast.studies.common import criterion, findings, markdown
from holdfast.studies.w2s_common import (
    SOURCE,
    TRAINED_STEPS,
    Runs,
    above,
    all_runs,
    learning,
    more,
    notes_of,
    records,
    recovers,
    surer,
    table_of,
)
from holdfast.systems.transfer_plan import Plan, Pool, Pools
from holdfast.training.learners import BagOfWords, Probe
from holdfast.training.transfer import TransferSettings

SEEDS = tuple(range(10, 20))
CLAIM = "a stronger student corrects its supervisor, and more so with the confidence loss; a weaker one does not"
SALT = "holdfast w2s_text"
NOISE = re.compile(r"\bRT\b|@\w+:?|https?://\S+|&#?\w+;")
SHARES = {"weak_train": 0.5, "transfer": 0.43, "validation": 0.07}
LOSSES = {"logconf": {"prior": "half"}, "logconf_weak": {"kind": "logconf", "prior": "weak"}}
"""What students learn by that are not a loss by its own name and no more."""


class Arm(Settings):
    """What is learned in one arm."""

    data: str = "tweets"
    """Which texts."""
    taught: int = 100
    """Gold labels of the supervisor."""
    losses: tuple[str, ...] = ("soft", "logconf")
    """Losses of the students."""
    epochs: int = 10
    """How long students and ceiling learn."""
    select: bool = True
    """Whether the epoch is chosen by held-out labels."""
    lsa: int = 0
    """Dimensions of TF-IDF by truncated SVD that the student sees in place of embeddings."""
    seeds: int | None = None
    """Only this many of the seeds."""


class World(Settings):
    """How much of everything."""

    test: int = 1500
    """Texts that judge."""
    pool: int = 5000
    """Texts that are divided anew with each seed."""
    transfer: int = 1800
    """Texts that the supervisor labels."""
    validation: int = 200
    """Texts whose labels choose an epoch."""
    small_steps: int = 0
    """Steps of the small encoder; 0 takes MiniLM."""
    arms: dict[str, Arm] = {
        "tweets": Arm(losses=("soft", "hard", "logconf", "logconf_weak", "product", "adaptconf")),
        "long": Arm(epochs=40, select=False, seeds=5),
        "lsa": Arm(lsa=300),
        "dialogues": Arm(data="dialogues", taught=500, seeds=5),
    }
    """Who learns what."""


QUICK = World(
    test=200,
    pool=800,
    transfer=240,
    validation=40,
    small_steps=40,
    arms={
        "tweets": Arm(taught=60, epochs=3),
        "long": Arm(taught=60, epochs=6, select=False),
        "lsa": Arm(taught=60, epochs=3, lsa=30),
    },
)


@dataclass(frozen=True)
class Corpus:
    """Texts with their classes, in an exam and a pool that have no text in common; words: by id, as they are read."""

    exam: list[Classified]
    pool: list[Classified]
    words: dict[str, str]

    @property
    def everything(self) -> list[Classified]:
        """The exam, then the pool."""
        return [*self.exam, *self.pool]


def run(folder: Path, seeds: Sequence[int] = SEEDS, quick: bool = False) -> dict[str, Any]:
    """Run every arm with its seeds, loading what is finished; return the result."""
    world = QUICK if quick else World(small_steps=0 if encoder.installed() else TRAINED_STEPS)
    place = folder / ("quick" if quick else "full")
    RunFolder(place, world)
    make = partial(plan, place, world)
    for name in world.arms:
        make(name)  # its features are written before there are several processes that want them
    arms = all_runs(make, {name: seeds[: arm.seeds] for name, arm in world.arms.items()}, place)
    return findings("w2s_text", CLAIM, SOURCE, criteria(arms), arms, seeds, world)


def plan(place: Path, world: World, name: str) -> Plan:
    """Who learns what in an arm."""
    arm = world.arms[name]
    texts = corpus(arm.data, world.test, world.pool)
    seen, sees = features(place, arm.data, world.test, world.pool, arm.lsa, world.small_steps)
    row = {one.id: i for i, one in enumerate(texts.everything)}
    student = learning(arm.epochs, 1e-3)
    return Plan(
        pools=cache(partial(drawn, texts, world, arm.taught)),
        vault=Vault(
            {one.id: int(one.label) for one in texts.everything},
            2,
            sealed=[one.id for one in texts.exam],
            groups=dict(zip(row, cluster_ids(texts.everything))),
        ),
        supervisor=BagOfWords(lambda ids: [texts.words[id] for id in ids]),
        student=Probe(lambda ids: seen[[row[id] for id in ids]]),
        supervised=TransferSettings(),
        ceiling=student,
        students={loss: student.model_copy(update={"kind": loss} | LOSSES.get(loss, {})) for loss in arm.losses},
        select=arm.select,
        unsafe=1,
        facts={"sees": sees},
    )


def drawn(texts: Corpus, world: World, taught: int, seed: int) -> Pools:
    """What a seed learns from, related texts in one part, and the exam that all seeds share."""
    salt = f"{SALT}/{seed}"
    parts = pools(texts.pool, SHARES, salt)

    def part(name: str, size: int) -> Pool:
        return pool(take(parts[name], size, salt, name))

    return Pools(
        weak_train=part("weak_train", taught),
        transfer=part("transfer", world.transfer),
        validation=part("validation", world.validation),
        test=pool(texts.exam),
    )


def pool(rows: Sequence[Classified]) -> Pool:
    """The rows by their ids alone: supervisor and student each look up what they see of them."""
    ids = tuple(one.id for one in rows)
    return Pool(ids, ids)


@lru_cache
def corpus(data: str, exam: int, pool: int) -> Corpus:
    """The texts of `data`, half of each class in both parts; of related texts only one is in the exam."""
    labelled = tweets() if data == "tweets" else dialogues()
    parts = pools(labelled, {"exam": 0.25, "pool": 0.75}, SALT)
    alone = list(dict(zip(cluster_ids(parts["exam"]), parts["exam"])).values())
    chosen = (even(alone, exam), even(parts["pool"], pool))
    words = {one.id: " [SEP] ".join(turn.text for turn in one.conversation.messages) for part in chosen for one in part}
    return Corpus(*chosen, words)


def even(rows: Sequence[Classified], count: int) -> list[Classified]:
    """`count` of the rows, half of each class, drawn by a hash."""
    classes = ([one for one in rows if one.label == label] for label in "01")
    return [one for part in classes for one in take(part, count // 2, SALT)]


def tweets() -> list[Classified]:
    """The posts that have a word left, of class 1 when hateful or offensive."""
    found = []
    for one in records("davidson_offensive"):
        row = as_classified(one, "tweets")
        if text := clean(row.conversation.messages[0].text):
            kept = {"conversation": Conversation.ask(text), "label": str(int(row.label != "2"))}
            found.append(row.model_copy(update=kept))
    return found


def clean(text: str) -> str:
    """A post without retweet marks, handles, links and HTML entities; empty when no letter is left.

    >>> clean("RT @ann_b: so &#8220;true&#8221; &amp; good http://t.co/x")
    'so true good'
    """
    left = " ".join(NOISE.sub(" ", text).split())
    return left if any(map(str.isalpha, left)) else ""


def dialogues() -> list[Classified]:
    """Answers in their context, of class 1 when unsafe."""
    rows = [as_classified(one, "dialogues") for one in records("diasafety")]
    return [row.model_copy(update={"label": str(int(row.label == "unsafe"))}) for row in rows]


@lru_cache
def features(place: Path, data: str, exam: int, pool: int, lsa: int, small_steps: int) -> tuple[Tensor, str]:
    """What a student sees (N, d) of the texts of a corpus, embeddings or `lsa` dimensions of TF-IDF, and its name."""
    texts = corpus(data, exam, pool)
    words = [texts.words[one.id] for one in texts.everything]
    if lsa:
        return torch.from_numpy(spectrum(place, words, exam, lsa)), f"LSA, {lsa} dimensions"
    found = encoder.embeddings(place, words, small_steps)
    return torch.from_numpy(found.values), found.encoder


def spectrum(place: Path, words: Sequence[str], unseen: int, dimensions: int) -> NDArray[np.float32]:
    """TF-IDF by truncated SVD (N, dimensions), learned without the first `unseen` texts; read when it is there.

    Computed anew it may differ in its last digits, and then a run that was interrupted could not go on.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    key = hashlib.sha256("\x1e".join([str(unseen), str(dimensions), *words]).encode()).hexdigest()[:16]
    file = place / f"lsa-{key}.npz"
    if not file.is_file():
        counts = TfidfVectorizer().fit(words[unseen:])
        axes = TruncatedSVD(dimensions, random_state=0).fit(counts.transform(words[unseen:]))
        partial_file = file.with_suffix(".partial.npz")
        np.savez(partial_file, values=axes.transform(counts.transform(words)).astype(np.float32))
        partial_file.replace(file)
    with np.load(file) as stored:
        return stored["values"]


def criteria(arms: Mapping[str, Runs]) -> list[dict[str, Any]]:
    """Each criterion with what was measured of it, and whether it holds."""
    tweet, lsa = arms["tweets"], arms["lsa"]
    naive, sure = ([one["students"][loss]["on_wrong"] for one in tweet] for loss in ("soft", "logconf"))
    (naive_best, naive_last), (sure_best, sure_last) = (heights(arms["long"], loss) for loss in ("soft", "logconf"))
    return [
        above("naive_above", tweet, "soft", "supervisor"),
        recovers("naive_recovers", tweet, "soft", 0.2),
        above("confidence_above", tweet, "logconf", "soft"),
        surer("confidence_sure", tweet, "logconf", "soft"),
        more("confidence_corrects", naive, sure),
        more("overfits", naive_best, naive_last, 0.01),
        more("confidence_overfits_less", naive_best - naive_last, sure_best - sure_last),
        above("control_below", lsa, "supervisor", "soft"),
        above("control_worse", lsa, "soft", "logconf"),
        criterion("control_warned", [any("below supervisor" in line for line in one["warnings"]) for one in lsa], 1.0),
    ]


def heights(runs: Runs, loss: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The accuracy in every run at the epoch that is best in the mean over runs, and at the last, both (S,)."""
    curves = np.array([one["students"][loss]["curve"] for one in runs])
    return curves[:, curves.mean(0).argmax()], curves[:, -1]


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown tables: all models of all arms, and what learning too long does."""
    arms = result["arms"]
    rows = []
    for loss in ("soft", "logconf"):
        curve = np.mean([one["students"][loss]["curve"] for one in arms["long"]], axis=0)
        best, last = (values.mean() for values in heights(arms["long"], loss))
        rows.append([loss, int(curve.argmax()) + 1, f"{best:.3f}", len(curve), f"{last:.3f}"])
    curves = markdown(["`long`", "best epoch", "accuracy then", "last epoch", "accuracy then"], rows)
    return f"{table_of(arms)}\n\n{notes_of(arms)}\n\n{curves}"
