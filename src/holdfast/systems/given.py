"""The stages of learning from answers that lie there already: gather, score, limit, rank.

What A-LoL (arXiv 2305.14718) asks of the reference besides is in `valued`; methods that need less take fewer stages.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from holdfast.data.recast import as_ranked
from holdfast.data.schema import Conversation, DualPair, Ranked, Record, Scored
from holdfast.data.split import leaks
from holdfast.engine.log import RunFolder
from holdfast.errors import UserError
from holdfast.models.value import network_digest
from holdfast.preference.score import ModelScorer
from holdfast.systems import dual, reading, stages
from holdfast.training.offline import OfflineRow
from holdfast.training.selection import Admitted, OfflineLimit, RewardTerm, admit, reward_of

Item = TypeVar("Item", bound=Record)
Found = TypeVar("Found")
Terms = Mapping[str, RewardTerm]
FOLDER = "annotations"
# What an answer is worth unless a run says otherwise.
REWARD = {"reward": RewardTerm()}


class OfflineData(reading.DataSection):
    """The data of an offline run. A text alone is the path of the pairs."""

    answers: reading.Source | None = None
    """Answers that bring their rewards (`reward`, or `rewards` by name), to learn from; null takes those that SFT
    imitates, scored by the models of this run."""
    ranked: reading.Source | None = None
    """Several answers to each prompt with their rewards or best first, for `dpo` and `pro`; null takes the pairs."""


@dataclass(frozen=True)
class Answers:
    """N answers to learn from, with every score (N,) they have and their reward (N,)."""

    conversations: list[Conversation]
    scores: dict[str, Tensor]
    reward: Tensor

    def take(self, chosen: Sequence[int]) -> "Answers":
        """The answers at these places."""
        own = {name: values[chosen] for name, values in self.scores.items()}
        return Answers([self.conversations[i] for i in chosen], own, self.reward[chosen])


def with_answers(data: OfflineData | None) -> OfflineData | None:
    """The data with answers of their own as what is imitated and whose prompts are practised on, unless others are.

    Rankings stand in for them where there are no pairs either.
    """
    own = data and (data.answers or (data.ranked if data.pairs is None else None))
    if data is None or own is None:
        return data
    return data.model_copy(update={"sft": data.sft or own, "prompts": data.prompts or own})


def gather(bench: dual.Bench, data: OfflineData, terms: Terms, limits: Sequence[str]) -> Answers:
    """The answers to learn from, with rewards of their own or from the run's models: `data.answers`, or the SFT pool.

    Raises `UserError` where there is none, and for answers without a reward.
    """
    needed = [*dict.fromkeys((*terms, *limits))]
    if data.answers is None:
        answered = [one for one in bench.pools.imitate if one.answered and one.response]
        if not answered:
            raise UserError("no answer to learn from; give data.answers, data.sft or data.pairs")
        scores = scores_of(bench, answered, needed, "scores")
    else:
        rows = in_no_other_fold(bench, reading.scored(data.answers, bench.run), "answers")
        answered = [one.conversation.model_copy(update={"id": one.id, "source": one.source}) for one in rows]
        # A score has one scale: that of the rows, or where none of them brings it, that of the run's models.
        asked = [name for name in needed if not any(name in one.scores for one in rows) and name in bench.scorer.names]
        own = [name for name in needed if name not in asked]
        _named_in(rows, own)
        scores = {name: torch.tensor([one.scores[name] for one in rows]) for name in own}
        scores |= scores_of(bench, answered, asked, "scores") if asked else {}
    return Answers(answered, scores, worth_of(scores, terms, answered))


def in_no_other_fold(bench: dual.Bench, rows: Sequence[Item], name: str) -> list[Item]:
    """The rows of `data.NAME` with prompts and pictures that no fold but that of SFT holds, and that fit the window.

    The source need not be one that the folds were made from. How many are left out is said and stands in the facts.
    """
    pools = bench.pools
    elsewhere: list[Record] = [*pools.practise, *pools.dev, *pools.safety, *pools.pairs, *pools.held_out_pairs]
    elsewhere += [*pools.ratings, *pools.held_out_ratings]
    shared = {id(row) for _, row in leaks(elsewhere, rows)}
    apart = [row for row in rows if id(row) not in shared]
    skips = bench.settings.text.on_long_prompt == "skip"
    kept = [row for row in apart if not skips or reading.fits(row, bench.template)]  # type: ignore[arg-type]
    left_out = {"in_other_folds": len(shared), "too_long": len(apart) - len(kept)}
    bench.facts[f"{name}_left_out"] = left_out
    if any(left_out.values()):
        stages.say(f"data.{name}: {len(rows)} rows, left out: {reading.listed(left_out)}")
    if not kept:
        raise UserError(
            f"data.{name}: none of {len(rows)} rows can be learned from ({reading.listed(left_out)}); give more, or a "
            "larger data.pools.sft"
        )
    return kept


def scores_of(
    bench: dual.Bench, answered: Sequence[Conversation], needed: Sequence[str], name: str
) -> dict[str, Tensor]:
    """(N,) of each needed score by the run's models, NaN where one gives none, as they were when first asked for.

    Scorers may vary, as endpoints do, so what they said is kept in `annotations/NAME.json` for a run that is resumed.
    """
    scored_by(bench, needed)

    def ask() -> dict[str, list[float | None]]:
        found = stages.scores_by_name(bench.scorer)(answered)
        return {key: [value if math.isfinite(value) else None for value in found[key].tolist()] for key in needed}

    kept = once(bench.run, name, [plain(answered), list(needed), scorer_digest(bench, {})], ask)
    return {key: torch.tensor([math.nan if one is None else one for one in kept[key]]) for key in needed}


def once(run: RunFolder, name: str, follows_from: Any, make: Callable[[], Found]) -> Found:
    """What `make` gives, as plain JSON: made once, by the first process for all, and kept in `annotations/NAME.json`.

    Raises `UserError` when what is kept does not follow from the JSON `follows_from`.
    """
    place = f"{FOLDER}/{name}.json"

    def work() -> Found:
        stamp = hashlib.sha256(json.dumps(follows_from, sort_keys=True).encode()).hexdigest()
        (run.path / FOLDER).mkdir(parents=True, exist_ok=True)
        if not (run.path / place).is_file():
            run.write_json(place, {"follows_from": stamp, "found": make()})
        kept = json.loads((run.path / place).read_text(encoding="utf-8"))
        if kept["follows_from"] != stamp:
            raise UserError(f"stale {run.path / place}: what it was made from changed since; run in a new folder")
        found: Found = kept["found"]
        return found

    return stages.on_main(run, work)


def plain(conversations: Sequence[Conversation]) -> list[Any]:
    """The conversations as plain JSON."""
    return [one.model_dump(mode="json") for one in conversations]


def worth_of(scores: Mapping[str, Tensor], terms: Terms, answered: Sequence[Conversation]) -> Tensor:
    """(N,) what the answers are worth, NaN where nobody asks, or `UserError` that names those without a score."""
    if not terms:
        return torch.full((len(answered),), math.nan, dtype=torch.float64)
    reward = reward_of(scores, terms)
    lacking = [one.id or "without an id" for one, known in zip(answered, reward.isfinite().tolist()) if not known]
    if lacking:
        raise UserError(
            f"{len(lacking)} of {len(answered)} answers have no finite reward ({', '.join(lacking[:5])}): not all of "
            f"{', '.join(terms)} are known; leave these answers out, or name scores under rewards that all of them have"
        )
    return reward


def scored_by(bench: dual.Bench, needed: Sequence[str], otherwise: str = "") -> None:
    """None, or `UserError` for a score that no model of the run gives."""
    if missing := [name for name in needed if name not in bench.scorer.names]:
        raise UserError(
            f"no model gives the scores {', '.join(missing)}; there are {', '.join(bench.scorer.names) or 'none'}. Add "
            f"a section (reward, cost, attributes), scorers, functions or endpoints{otherwise}"
        )


def _named_in(rows: Sequence[Scored], needed: Sequence[str]) -> None:
    """None, or `UserError` for rows that lack a reward."""
    for name in needed:
        lacking = [one.id for one in rows if name not in one.scores]
        if lacking:
            known = ", ".join(sorted({key for one in rows for key in one.scores}))
            raise UserError(
                f"{len(lacking)} of {len(rows)} answers carry no {name} ({', '.join(lacking[:5])}); there are {known}. "
                "Complete the data, or name other scores under rewards and limits"
            )


def within(answers: Answers, limits: Sequence[OfflineLimit], bench: dual.Bench) -> tuple[Answers, Tensor]:
    """The answers that keep the limits with what each counts (N,); what the limits removed stands in the facts."""
    found = admit(answers.scores, limits, answers.reward)
    _tell(bench, found)
    chosen = found.kept.nonzero()[:, 0].tolist()
    return answers.take(chosen), found.weight[chosen]


def scorer_digest(bench: dual.Bench, terms: Terms) -> str:
    """A hash of what rewards follow from: the terms, every score model, and the settings of all other scorers.

    A folder of `scorers` counts by what was loaded from it as well, which may have been trained anew. Of functions and
    services no more can be seen than their settings.
    """
    models = {name: getattr(bench, name) for name in ("reward", "cost", "attributes")}
    weights = {name: network_digest(model.network) for name, model in models.items() if model is not None}
    for one in bench.others:
        if isinstance(one, ModelScorer):
            loaded = f"{network_digest(one.model.network)} {one.template.fingerprint}"
            weights[f"scorers: {', '.join(one.names)}"] = loaded
    others = bench.settings.model_dump(mode="json", include={"scorers", "functions", "endpoints"})
    told = {name: term.model_dump() for name, term in terms.items()}
    return hashlib.sha256(json.dumps([weights, others, told], sort_keys=True).encode()).hexdigest()


def rewarded_rows(bench: dual.Bench, answers: Answers, weight: Tensor) -> list[OfflineRow]:
    """Rows for methods that do not ask V."""
    rows = [bench.template.answered(one) for one in answers.conversations]
    known = zip(rows, answers.reward.tolist(), weight.tolist())
    return [OfflineRow(row, reward=reward, weight=own) for row, reward, own in known]


def rankings(
    bench: dual.Bench,
    data: OfflineData,
    terms: Terms,
    limits: Sequence[OfflineLimit],
    scored: bool,
    judged: bool = False,
) -> list[Ranked]:
    """Rankings to learn from, those whose best answer is beyond a limit left out.

    scored: order each by its rewards, as PRO needs, or where some bring none by those of this run's models; without,
    pairs of the answer that people preferred, or else the best, and the worst. judged: the terms are read elsewhere.
    """
    if data.ranked is not None:
        found = in_no_other_fold(bench, reading.ranked(data.ranked, bench.run), "ranked")
    else:
        found = [as_ranked(pair, "pairs") for pair in bench.pools.pairs if _preferred(pair)]
    if scored and any(one.rewards is None for one in found):
        found = _by_score(bench, found, terms)
    elif scored and found and terms != REWARD and not judged:
        raise UserError("data.ranked brings its rewards, so `rewards` would not be read; leave it out")
    found = _decided(found, scored)
    if not found:
        raise UserError("no ranking to learn from; give data.pairs with a preferred answer, or data.ranked")
    if not scored:
        found = [_best_and_worst(one) for one in found]
    if not limits:
        return found
    best = [one.prompt.answer(one.responses[0]) for one in found]
    scores = scores_of(bench, best, [*dict.fromkeys(limit.score for limit in limits)], "limited_scores")
    worth = [one.rewards[0] if one.rewards else math.nan for one in found]
    admitted = admit(scores, limits, torch.tensor(worth))
    _tell(bench, admitted)
    return [one for one, kept in zip(found, admitted.kept.tolist()) if kept]


def _preferred(pair: DualPair) -> bool:
    return pair.helpful_id is not None or pair.safer_id is not None


def _by_score(bench: dual.Bench, found: Sequence[Ranked], terms: Terms) -> list[Ranked]:
    """The rankings in the order of this run's rewards; equal rewards keep the order given."""
    answered = [one.prompt.model_copy(update={"id": one.id}).answer(text) for one in found for text in one.responses]
    unknown = [one.rewards for one in found].count(None)
    scored_by(bench, list(terms), f": {unknown} of {len(found)} rankings bring no rewards, by which pro orders them")
    scores = scores_of(bench, answered, list(terms), "ranking_scores")
    rewards = iter(worth_of(scores, terms, answered).tolist())
    return [
        Ranked.by_reward(one.responses, [next(rewards) for _ in one.responses], id=one.id, prompt=one.prompt)
        for one in found
    ]


def _decided(found: Sequence[Ranked], scored: bool) -> list[Ranked]:
    """The rankings that prefer an answer; with equal rewards a person may have, who is not heard where `scored`."""
    chosen = [not _tied(one) or (one.preferred is not None and not scored) for one in found]
    if tied := chosen.count(False):
        stages.say(f"rankings: {tied} of {len(found)} are left out, all their answers being worth the same")
    return [one for one, kept in zip(found, chosen) if kept]


def _tied(one: Ranked) -> bool:
    return one.rewards is not None and one.rewards[0] == one.rewards[-1]


def _best_and_worst(one: Ranked) -> Ranked:
    """A ranking of two: what a person chose, whatever the rewards say, or else the best; and the worst other one."""
    best = one.preferred or 0
    worst = max(i for i in range(len(one.responses)) if i != best)
    return Ranked(
        id=one.id,
        prompt=one.prompt,
        responses=(one.responses[best], one.responses[worst]),
        source=one.source,
        split=one.split,
    )


def _tell(bench: dual.Bench, admitted: Admitted) -> None:
    """What the limits removed, for the person and the summary."""
    bench.facts["offline_limits"] = admitted.report
    for one in admitted.report:
        stages.say(
            f"limit: {one['score']} <= {one['most']:g} ({one['how']}): {one['beyond']} of {one['answers']} answers are "
            f"beyond it, {one['without_score']} of them without the score"
        )
