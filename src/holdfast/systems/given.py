"""The stages of learning from answers that lie there already: gather, score, limit, value, annotate.

Each is one step of A-LoL (arXiv 2305.14718); methods that need less take fewer of them.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.config import Settings
from holdfast.data.recast import as_preference, as_ranked
from holdfast.data.schema import Conversation, DualPair, Ranked, Scored
from holdfast.data.split import keys
from holdfast.data.template import Encoded
from holdfast.errors import UserError
from holdfast.models.value import ValueHead, network_digest
from holdfast.rollout.reading import PromptStates, Reader
from holdfast.systems import dual, reading, stages
from holdfast.training.annotate import CARD, Annotations, annotate, facts_of
from holdfast.training.offline import OfflineRow
from holdfast.training.selection import Admitted, OfflineLimit, RewardTerm, admit, reward_of
from holdfast.training.value import ValueSettings, fit_value

Reference = Callable[[], AbstractContextManager[nn.Module]]
FOLDER = "annotations"


class ValueStage(Settings):
    """What the reference earns on a prompt, V(x)."""

    learn_from: Literal["samples", "data"] = "samples"
    """Scores of the reference's own answers to the prompts to practise on, `rollout.samples_per_prompt` each; or the
    rewards of the data themselves, which needs no scorer and asks what the data earn on such prompts."""
    head: ValueSettings = ValueSettings()
    """The head, and how it is fitted."""
    room: float = Field(0.05, gt=0)
    """What the range of V leaves below and above the rewards it learns from, as a share of their range."""


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
    """The data with answers of their own as what is imitated and whose prompts are practised on, unless others are."""
    if data is None or data.answers is None:
        return data
    return data.model_copy(update={"sft": data.sft or data.answers, "prompts": data.prompts or data.answers})


def gather(bench: dual.Bench, data: OfflineData, terms: Mapping[str, RewardTerm], limits: Sequence[str]) -> Answers:
    """The answers to learn from: those of the SFT pool, with rewards from the data or from the run's models."""
    needed = [*dict.fromkeys((*terms, *limits))]
    if data.answers is None:
        answered = [one for one in bench.pools.imitate if one.answered and one.response]
        if not answered:
            raise UserError("no answer to learn from; give data.answers, data.sft or data.pairs")
        _scored_by(bench, needed)
        scores = stages.on_main(bench.run, lambda: stages.scores_by_name(bench.scorer)(answered))
        return Answers(answered, scores, reward_of(scores, terms))
    inside = {keys(one)[0] for one in bench.pools.imitate}
    rows = [one for one in reading.scored(data.answers, bench.run) if keys(one)[0] in inside]
    if not rows:
        raise UserError(f"data.answers: no prompt of {data.answers.path} falls into the pool to learn from; enlarge it")
    _named_in(rows, needed)
    answered = [one.conversation.model_copy(update={"id": one.id, "source": one.source}) for one in rows]
    scores = {name: torch.tensor([one.scores[name] for one in rows]) for name in needed}
    return Answers(answered, scores, reward_of(scores, terms))


def _scored_by(bench: dual.Bench, needed: Sequence[str], otherwise: str = "") -> None:
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


def annotated(
    bench: dual.Bench,
    answers: Answers,
    terms: Mapping[str, RewardTerm],
    value: ValueStage,
    reference: Reference,
    margin: float,
) -> tuple[list[Encoded], Annotations]:
    """The encoded answers with V, advantages and reference log-probabilities, kept in the folder `annotations`."""
    rows = [bench.template.answered(one) for one in answers.conversations]
    folder, sampling = bench.run.path / FOLDER, bench.settings.rollout.sampling
    with reference() as frozen:
        reader = Reader(frozen, bench.template.pad_id, sampling.temperature, bench.settings.rollout.micro_tokens)
        head = _value_head(bench, rows, answers, terms, value, reader)
        origin = {"scorer": scorer_digest(bench, terms), "margin": margin}
        if (folder / CARD).is_file():
            found = Annotations.load(folder, facts_of(reader, head, rows, answers.reward, **origin))
        else:
            components = {name: answers.scores[name] for name in terms}
            found = annotate(reader, head, rows, answers.reward, components=components, **origin)
            stages.on_main(bench.run, lambda: (head.save(folder / "value_head"), found.save(folder)))
    bench.facts["annotations"] = summary = found.summary()
    stages.say(
        f"annotations: {summary['kept']} of {summary['answers']} answers are better than the reference's on their "
        f"prompt; mean reward {summary['mean_reward']:.3f}, mean value {summary['mean_value']:.3f}"
    )
    return rows, found


def _value_head(
    bench: dual.Bench,
    rows: Sequence[Encoded],
    answers: Answers,
    terms: Mapping[str, RewardTerm],
    value: ValueStage,
    reader: Reader,
) -> ValueHead:
    """V(x), fitted to what the reference's own answers earn, or to what the data earn."""
    if value.learn_from == "data":
        prompts, of = reader.prompt_states(rows)
        earned = answers.reward
    else:
        prompts, of, earned = _sampled(bench, terms, reader)
    # A sigmoid reaches neither end of its range.
    room = value.room * max(float(earned.max() - earned.min()), 1e-6)
    settings = value.head.model_copy(update={"fit": stages.offset(value.head.fit, bench.settings.seed)})
    head = settings.head(prompts.states.shape[-1], float(earned.min()) - room, float(earned.max()) + room)
    found = fit_value(head, prompts, earned, of, settings, bench.run)
    bench.facts["value"] = {"epoch": found.epoch, **found.calibration.to_dict()}
    bias = found.calibration.bias
    stages.say(f"value: epoch {found.epoch}, held out mean R - V {bias}, slope {found.calibration.slope}")
    return found.head


def _sampled(bench: dual.Bench, terms: Mapping[str, RewardTerm], reader: Reader) -> tuple[PromptStates, Tensor, Tensor]:
    """The states of the prompts to practise on, and for each of the reference's answers its prompt and reward."""
    _scored_by(bench, list(terms), "; or set value.learn_from=data, which needs no scorer")
    asked, settings = bench.pools.practise, bench.settings
    starts = [bench.template.prompt(one) for one in asked]
    samples = bench.generator.generate(
        starts, settings.rollout.samples_per_prompt, settings.rollout.sampling, settings.seed
    )
    answered = [asked[one.prompt_index].answer(bench.template.decode(one.response_ids)) for one in samples]
    scores = stages.on_main(bench.run, lambda: stages.scores_by_name(bench.scorer)(answered))
    prompts, place = reader.prompt_states(starts)
    return prompts, place[[one.prompt_index for one in samples]], reward_of(scores, terms)


def scorer_digest(bench: dual.Bench, terms: Mapping[str, RewardTerm]) -> str:
    """A hash of what rewards follow from: the terms, the run's own models, and the settings of all other scorers."""
    models = {name: getattr(bench, name) for name in ("reward", "cost", "attributes")}
    weights = {name: network_digest(model.network) for name, model in models.items() if model is not None}
    others = bench.settings.model_dump(mode="json", include={"scorers", "functions", "endpoints"})
    told = {name: term.model_dump() for name, term in terms.items()}
    return hashlib.sha256(json.dumps([weights, others, told], sort_keys=True).encode()).hexdigest()


def rewarded_rows(bench: dual.Bench, answers: Answers, weight: Tensor) -> list[OfflineRow]:
    """Rows for methods that ask neither V nor the reference."""
    rows = [bench.template.answered(one) for one in answers.conversations]
    known = zip(rows, answers.reward.tolist(), weight.tolist())
    return [OfflineRow(row, reward=reward, weight=own) for row, reward, own in known]


def rankings(
    bench: dual.Bench, data: OfflineData, terms: Mapping[str, RewardTerm], limits: Sequence[OfflineLimit], scored: bool
) -> list[Ranked]:
    """Rankings to learn from, those whose best answer is beyond a limit left out.

    scored: order each by the rewards of this run's models, as PRO needs; without, the order is that of the people.
    """
    if data.ranked is not None:
        inside = {keys(one)[0] for one in (*bench.pools.imitate, *(pair.prompt for pair in bench.pools.pairs))}
        rows = [one for one in reading.ranked(data.ranked, bench.run) if keys(one)[0] in inside]
        # What a person chose counts for pairs, whatever the rewards say.
        found = rows if scored else [as_ranked(as_preference(one, "ranked"), "ranked") for one in rows]
    else:
        found = [as_ranked(pair, "pairs") for pair in bench.pools.pairs if _preferred(pair)]
    if not found:
        raise UserError("no ranking to learn from; give data.pairs with a preferred answer, or data.ranked")
    if scored and any(one.rewards is None for one in found):
        found = _by_score(bench, found, terms)
    if not limits:
        return found
    best = [one.prompt.answer(one.responses[0]) for one in found]
    _scored_by(bench, [limit.score for limit in limits])
    scores = stages.on_main(bench.run, lambda: stages.scores_by_name(bench.scorer)(best))
    admitted = admit(scores, limits, torch.zeros(len(found)))
    _tell(bench, admitted)
    return [one for one, kept in zip(found, admitted.kept.tolist()) if kept]


def _preferred(pair: DualPair) -> bool:
    return pair.helpful_id is not None or pair.safer_id is not None


def _by_score(bench: dual.Bench, found: Sequence[Ranked], terms: Mapping[str, RewardTerm]) -> list[Ranked]:
    """The rankings in the order of this run's rewards; equal rewards leave nothing to rank and go."""
    _scored_by(bench, list(terms))
    answered = [one.prompt.answer(text) for one in found for text in one.responses]
    scores = stages.on_main(bench.run, lambda: stages.scores_by_name(bench.scorer)(answered))
    rewards = iter(reward_of(scores, terms).tolist())
    return [
        Ranked.by_reward(one.responses, [next(rewards) for _ in one.responses], id=one.id, prompt=one.prompt)
        for one in found
    ]


def _tell(bench: dual.Bench, admitted: Admitted) -> None:
    """What the limits removed, for the person and the summary."""
    bench.facts["offline_limits"] = admitted.report
    for one in admitted.report:
        stages.say(
            f"limit: {one['score']} <= {one['most']:g} ({one['how']}): {one['beyond']} of {one['answers']} answers are "
            f"beyond it, {one['without_score']} of them without the score"
        )
