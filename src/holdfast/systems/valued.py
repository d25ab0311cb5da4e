"""The stages that ask what the reference earns: the value of a prompt, V(x), and answers annotated by it.

Both are steps of A-LoL (arXiv 2305.14718), which learns from answers that are better than what the reference earns.
"""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from holdfast.config import Settings
from holdfast.data.template import Encoded
from holdfast.models.value import ValueHead, network_digest
from holdfast.rollout.reading import PromptStates, Reader
from holdfast.systems import dual, exam, given, stages
from holdfast.training.annotate import CARD, Annotations, annotate, facts_of
from holdfast.training.value import ValueSettings, fit_value


class ValueStage(Settings):
    """What the reference earns on a prompt, V(x)."""

    learn_from: Literal["samples", "data"] = "samples"
    """Scores of the reference's own answers to the prompts to practise on, `rollout.samples_per_prompt` each; or the
    rewards of the data themselves, which needs no scorer and asks what the data earn on such prompts."""
    head: ValueSettings = ValueSettings()
    """The head, and how it is fitted."""
    room: float = Field(0.05, gt=0)
    """What the range of V leaves below and above the rewards it learns from, as a share of their range."""


def annotated(
    bench: dual.Bench,
    answers: given.Answers,
    terms: given.Terms,
    value: ValueStage,
    reference: exam.Reference,
    margin: float,
) -> tuple[list[Encoded], Annotations]:
    """The encoded answers with V, advantages and reference log-probabilities, kept in the folder `annotations`."""
    rows = [bench.template.answered(one) for one in answers.conversations]
    folder = bench.run.path / given.FOLDER
    with reference() as frozen:
        learned_from = _earned(bench, rows, answers, terms, value, reader(bench, frozen))
    # Outside, because a reference that shares the policy's weights is open without gradients.
    head = _value_head(bench, *learned_from, value)
    origin: dict[str, Any] = {"scorer": given.scorer_digest(bench, terms), "margin": margin}

    def written() -> dict[str, Any]:
        with reference() as frozen:
            told = reader(bench, frozen), head, rows, answers.reward
            if not (folder / CARD).is_file():
                components = {name: answers.scores[name] for name in terms}
                found = annotate(*told, components=components, **origin)
                head.save(folder / "value_head")
                found.save(folder)
            return facts_of(*told, **origin)

    # All processes read one file: an advantage that rounding lifts above zero in one of them must be kept by all.
    found = Annotations.load(folder, stages.on_main(bench.run, written))
    bench.facts["annotations"] = summary = found.summary()
    stages.say(
        f"annotations: {summary['kept']} of {summary['answers']} answers are better than the reference's on their "
        f"prompt; mean reward {summary['mean_reward']:.3f}, mean value {summary['mean_value']:.3f}"
    )
    return rows, found


def reader(bench: dual.Bench, frozen: nn.Module) -> Reader:
    """What the reference says of given answers: at temperature 1, as the policy that learns from them is read."""
    return Reader(frozen, bench.template.pad_id, micro_tokens=bench.settings.rollout.micro_tokens)


def _earned(
    bench: dual.Bench,
    rows: Sequence[Encoded],
    answers: given.Answers,
    terms: given.Terms,
    value: ValueStage,
    reading_it: Reader,
) -> tuple[PromptStates, Tensor, Tensor]:
    """States of prompts, and of each answer that V learns from, the reference's own or given, its prompt and reward."""
    if value.learn_from == "samples":
        return _sampled(bench, terms, reading_it)
    prompts, of = reading_it.prompt_states(rows)
    return prompts, of, answers.reward


def _value_head(bench: dual.Bench, prompts: PromptStates, of: Tensor, earned: Tensor, value: ValueStage) -> ValueHead:
    """V(x), fitted to what was earned on the prompts."""
    # A sigmoid reaches neither end of its range.
    room = value.room * max(float(earned.max() - earned.min()), 1e-6)
    settings = value.head.model_copy(update={"fit": stages.offset(value.head.fit, bench.settings.seed)})
    head = settings.head(prompts.states.shape[-1], float(earned.min()) - room, float(earned.max()) + room)
    found = fit_value(head, prompts, earned, of, settings, bench.run)
    bench.facts["value"] = {"epoch": found.epoch, **found.calibration.to_dict()}
    bias = found.calibration.bias
    stages.say(f"value: epoch {found.epoch}, held out mean R - V {bias}, slope {found.calibration.slope}")
    return found.head


def _sampled(bench: dual.Bench, terms: given.Terms, reading_it: Reader) -> tuple[PromptStates, Tensor, Tensor]:
    """The states of the prompts to practise on, and for each of the reference's answers its prompt and reward."""
    given.scored_by(bench, list(terms), "; or set value.learn_from=data, which needs no scorer")
    asked, rollout, seed = bench.pools.practise, bench.settings.rollout, bench.settings.seed
    starts = [bench.template.prompt(one) for one in asked]

    def sample() -> list[tuple[int, str]]:
        found = bench.generator.generate(starts, rollout.samples_per_prompt, rollout.sampling, seed)
        return [(one.prompt_index, bench.template.decode(one.response_ids)) for one in found]

    how = [rollout.samples_per_prompt, rollout.sampling.model_dump(mode="json"), seed]
    samples = given.once(bench.run, "samples", [given.plain(asked), *how, network_digest(reading_it.model)], sample)
    answered = [asked[i].answer(text) for i, text in samples]
    scores = given.scores_of(bench, answered, list(terms), "sample_scores")
    prompts, place = reading_it.prompt_states(starts)
    return prompts, place[[i for i, _ in samples]], given.worth_of(scores, terms, answered)
