"""People who disagree, as data: pairs divided by prompt and by person.

What judges a personal model must be new twice: prompts that nothing was learned from, and people that nobody knows.
"""

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from holdfast.data.schema import Conversation, DualPair, Pair
from holdfast.data.split import keys, pools, share_of
from holdfast.engine.log import RunFolder
from holdfast.errors import UserError
from holdfast.systems import reading, stages


class CrowdData(reading.Shorthand):
    """Whose preferences are learned. A text alone is the path of the pairs."""

    pairs: reading.Source
    """Preferences: chosen and rejected answers, with user_id, context and group where they are known."""
    contexts: reading.Source | None = None
    """Preferences labelled under a context, for the second stage; null takes the pairs that carry one."""
    safety: reading.Source | None = None
    """Pairs whose chosen answer is the safe one: a head that prefers the other gets no weight."""
    sft: reading.Source | None = None
    """Conversations to imitate first, when `sft` is set."""
    judged: reading.Source | None = None
    """Pairs with safety labels, for the cost model of a policy under a limit."""
    held_out: float = Field(0.2, gt=0, lt=0.9)
    """Share of the prompts on which everything is judged."""
    new_users: float = Field(0.2, ge=0, lt=0.9)
    """Share of the people whose pairs nothing learns from: the new users of the few-shot curve."""
    salt: str = "holdfast"
    """Changes which prompts are held out and which people are new."""


@dataclass(frozen=True)
class Crowd:
    """Pairs divided by prompt and by person: what is learned from, what only judges, and the new people."""

    imitate: list[Conversation]
    learn: list[Pair]
    held_out: list[Pair]
    newcomers: list[Pair]
    contexts: list[Pair]
    safety: list[Pair]
    judged: list[DualPair]
    held_out_judged: list[DualPair]


def read_crowd(data: CrowdData, needed: Set[str], labels_per_context: int, run: RunFolder) -> Crowd:
    """Read all sources; hold out prompts and people, both by a hash of their own names."""
    pairs = reading.preferences(data.pairs, "pairs", run)
    safety = reading.preferences(data.safety, "safety", run) if data.safety else []
    for name in sorted(needed):
        if getattr(data, name) is None:
            what = {"sft": "sft has nothing to imitate", "judged": "policy.cost has nothing to learn from"}[name]
            raise UserError(f"data.{name} is missing: {what}; give it, or set that section to null")
    sft = reading.conversations(data.sft, run) if data.sft and "sft" in needed else []
    judged = reading.dual_pairs(data.judged, run) if data.judged and "judged" in needed else []
    told = reading.preferences(data.contexts, "contexts", run) if data.contexts else [p for p in pairs if p.context]
    divided = pools([*pairs, *told, *sft, *judged], {"learn": 1 - data.held_out, "held_out": data.held_out}, data.salt)
    judges = {keys(record)[0] for record in divided["held_out"]}

    def learnable(records: Sequence[Any]) -> list[Any]:
        return [record for record in records if keys(record)[0] not in judges and not is_new(record)]

    def is_new(record: Any) -> bool:
        user = getattr(record, "user_id", "")
        return bool(user) and share_of(f"{data.salt}/{user}") < data.new_users

    found = Crowd(
        imitate=learnable(sft),
        learn=learnable(pairs),
        held_out=[pair for pair in pairs if keys(pair)[0] in judges and not is_new(pair)],
        newcomers=[pair for pair in pairs if is_new(pair)],
        contexts=few_of_each(learnable(told), labels_per_context),
        safety=safety,
        judged=learnable(judged),
        held_out_judged=[pair for pair in judged if keys(pair)[0] in judges],
    )
    stages.say("rows: " + reading.listed({name: len(rows) for name, rows in vars(found).items() if rows}))
    if not found.learn or not found.held_out:
        raise UserError("no pair is left to learn from or to judge by; change data.held_out or data.new_users")
    return found


def few_of_each(pairs: Sequence[Pair], most: int) -> list[Pair]:
    """At most so many pairs of each group's contexts (of each context, where no group is known), in their order."""
    seen: Counter[str] = Counter()
    kept = []
    for pair in pairs:
        seen[pair.group or pair.context] += 1
        if seen[pair.group or pair.context] <= most:
            kept.append(pair)
    return kept
