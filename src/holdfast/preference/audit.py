"""What every score of a model is worth on held-out records, and whether it stays the same in other company.

The warnings say in words what a reader should not have to find in the numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from holdfast.errors import UserError
from holdfast.preference.evidence import Direction, Evidence, Judged, gather
from holdfast.preference.invariance import Invariance, invariance
from holdfast.preference.measure import HarmAudit, PairAudit, ScoreAudit, measure
from holdfast.preference.personal import MixtureScorer
from holdfast.preference.score import Scorer

ONE_SIDED = 0.99
LARGEST_DRIFT = 0.01
LENGTHY = 0.5


@dataclass(frozen=True)
class Audit:
    """The audit of a model: facts about it, counts, one `ScoreAudit` per score, invariance, warnings."""

    model: dict[str, Any]
    n: dict[str, int]
    scores: dict[str, ScoreAudit]
    invariance: Invariance
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self)


def audit(
    scorer: Scorer,
    records: Sequence[Judged],
    *,
    facts: Mapping[str, Any] | None = None,
    directions: Mapping[str, Direction] | None = None,
    samples: int = 1000,
) -> Audit:
    """Return what the scores of `scorer` are worth on `records`.

    facts: what to say of the model (its folder, its data). directions: what scores rise with, where `direction_of`
    would not say it. A score is also held against the ratings of its own name. samples: draws of each bootstrap.
    Raises `UserError` when no record holds an answer or a direction names no score.
    """
    evidence = gather(records)
    if not evidence.answers:
        raise UserError(f"none of the {len(records)} records holds an answer, so there is nothing to audit")
    if strangers := sorted(set(directions or {}) - set(scorer.names)):
        raise UserError(f"no scores called {', '.join(strangers)}; the model gives {', '.join(scorer.names)}")
    table = _scores(scorer, evidence)
    chosen = {name: direction_of(name, evidence.rating_names) for name in scorer.names} | dict(directions or {})
    scores = {name: measure(name, table[:, j], evidence, chosen[name], samples) for j, name in enumerate(scorer.names)}
    stable = invariance(scorer, evidence.answers)
    return Audit(
        model={"kind": type(scorer).__name__, "names": list(scorer.names), **(facts or {})},
        n=_counts(records, evidence),
        scores=scores,
        invariance=stable,
        warnings=[
            *_strange_ratings(scores, evidence),
            *(line for name in _answerable(scorer) for line in _worries(name, scores[name])),
            *_unstable(stable),
        ],
    )


def _scores(scorer: Scorer, evidence: Evidence) -> np.ndarray:
    """(A, K); a mixture model scores each answer for the person who judged it."""
    if isinstance(scorer, MixtureScorer):
        return scorer.score_for(evidence.answers, evidence.people).double().numpy()
    return scorer.score(evidence.answers).double().numpy()


def direction_of(name: str, rated: Sequence[str] = ()) -> Direction:
    """What a score of this name rises with: harm, the rating of its name if it is among `rated`, else helpfulness.

    >>> direction_of("cost/toxicity"), direction_of("harmlessness"), direction_of("depth", rated=["depth"])
    ('harm', 'help', 'rating')
    """
    if name.split("/")[0] in ("cost", "harm"):
        return "harm"
    return "rating" if name in rated and name not in ("reward", "score") else "help"


def _counts(records: Sequence[Judged], evidence: Evidence) -> dict[str, int]:
    return {
        "records": len(records),
        "answers": len(evidence.answers),
        "prompts": len(set(evidence.prompts)),
        "unanswered": evidence.unanswered,
        "helpful_pairs": len(evidence.helpful),
        "harmful_pairs": len(evidence.harmful),
        "labelled": int((~np.isnan(evidence.unsafe)).sum()),
        "rated": sum(bool(labels) for labels in evidence.rated),
    }


def _answerable(scorer: Scorer) -> tuple[str, ...]:
    """The scores to worry about: a mixture answers for its personal score, its heads need not please everybody."""
    return ("score",) if isinstance(scorer, MixtureScorer) else scorer.names


def _strange_ratings(scores: Mapping[str, ScoreAudit], evidence: Evidence) -> Iterator[str]:
    """Ratings that are held against nothing, where a score might have been meant that nothing else is held against."""
    unknown = [name for name in evidence.rating_names if name not in scores]
    if unknown and any(one.pairs is None and one.harm is None for one in scores.values()):
        given, known = ", ".join(unknown), ", ".join(scores)
        yield f"no score is called {given}, so these ratings were not used; the model gives {known}"


def _worries(name: str, one: ScoreAudit) -> Iterator[str]:
    if one.pairs is not None:
        yield from _about_pairs(name, one.pairs)
    elif one.harm is None and one.rating is None:
        needed = "safer_id or safe" if one.direction == "harm" else "helpful_id, or chosen and rejected"
        yield f"{name}: no record carries a label to hold it against ({needed}, or a rating called {name})"
    length = one.length["spearman"]
    if length is not None and max(length.low, -length.high) > LENGTHY:
        yield f"{name}: it follows the length of the answer, with a rank correlation of {length}"
    if one.harm is not None:
        yield from _about_harm(name, one.harm)


def _about_pairs(name: str, found: PairAudit) -> Iterator[str]:
    if found.ties.value > 0.5:
        yield f"{name}: {found.ties.value:.0%} of the pairs tie exactly; is the model trained, and its head loaded?"
    elif found.accuracy.high < 0.5:
        yield f"{name}: it ranks pairs the wrong way round (accuracy {found.accuracy}); is its direction right?"
    elif found.gain is not None and found.gain.low <= 0:
        yield (
            f"{name}: not shown to be better than length; accuracy {found.accuracy}, while calling the "
            f"{found.length_rule} answer higher gives {found.length_accuracy}"
        )


def _about_harm(name: str, found: HarmAudit) -> Iterator[str]:
    called, harmful = found.called_harmful.value, found.harmful
    facts = f"{called:.1%} of answers lie above zero, while {harmful.value:.1%} are labelled harmful"
    if called <= 1 - ONE_SIDED and harmful.low > 1 - ONE_SIDED:
        yield f"{name}: all-safe collapse; {facts}"
    elif called >= ONE_SIDED and harmful.high < ONE_SIDED:
        yield f"{name}: all-harmful collapse; {facts}"
    elif found.over_majority is not None and found.over_majority.low <= 0:
        yield (
            f"{name}: its sign is not shown to be better than calling every answer what most are; "
            f"sign accuracy {found.sign_accuracy}, majority {found.majority}"
        )


def _unstable(found: Invariance) -> Iterator[str]:
    for name, drift in found.relative.items():
        if drift > LARGEST_DRIFT:
            yield (
                f"{name}: the same answer scored in other batches or padded on the left moves by up to "
                f"{found.spread[name]:.2g}, {drift:.0%} of their standard deviation; "
                "a mask or a position is not respected"
            )
