"""A policy examined before and after it is improved, and what the summary says of the difference."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from holdfast.engine.log import RunFolder
from holdfast.evaluate.policy import TRUTH, Exam, Outcome, examine
from holdfast.pocket import oracles
from holdfast.preference.score import FunctionScorer
from holdfast.stats.estimate import Estimate
from holdfast.systems import dual, stages
from holdfast.systems.dual import Bench

Reference = Callable[[], AbstractContextManager[nn.Module]]
Improve = Callable[[Any, Bench, Reference], dict[str, Any]]
Further = Callable[[Outcome], Mapping[str, Estimate | float]]


def run(
    settings: dual.DualSettings,
    folder: str | Path,
    method: str,
    improve: Improve,
    *,
    further: Further | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Run all stages in `folder`, resuming what is finished there; return the summary.

    improve: changes the bench's policy in place and returns what is to be told of it; further: estimates or
    numbers that the summary holds beside the usual ones.
    """
    began = time.monotonic()
    run_folder = RunFolder(folder, settings, trackers=settings.trackers, overwrite=overwrite)
    bench = dual.prepare(settings, run_folder)
    reference = stages.frozen_reference(bench.policy)
    before = exam(bench, reference)
    facts = improve(settings, bench, reference)
    after = exam(bench, reference)
    summary = {"verdict": None, "reason": "not_tested", **facts, **compare(bench, before, after, further)}
    return finish(bench, summary, began, method)


def exam_of(bench: Bench) -> Exam:
    """The exam before and after: the dev prompts, sampled as in training and deployment."""
    truth = FunctionScorer(TRUTH, oracles.scores) if bench.settings.pocket else None
    return Exam(
        prompts=bench.pools.dev,
        template=bench.template,
        sampling=bench.settings.rollout.sampling,
        scorer=bench.scorer,
        truth=truth,
        seed=bench.settings.seed,
        micro_tokens=bench.settings.rollout.micro_tokens,
    )


def probe(conversations: Any) -> dict[str, float]:
    """The truth about training answers in the pocket world, for the curves."""
    table = np.array(oracles.scores(conversations))
    benign = table[:, 3] > 0
    found = {"true_harm": float(table[:, 1].mean())}
    if benign.any():
        found["true_help"] = float(table[benign, 0].mean())
        found["over_refusal"] = float(table[benign, 2].mean())
    return found


def compare(bench: Bench, before: Outcome, after: Outcome, further: Further | None = None) -> dict[str, Any]:
    """The before and after part of the summary; writes `scores.jsonl` for the scatter of cost and reward."""
    rows: list[dict[str, Any]] = []
    pictured = bench.cost is not None and "reward" in before.scores
    for when, outcome in (("before", before), ("after", after)) if pictured else ():
        for i, one in enumerate(outcome.conversations):
            row = {"when": when, **{name: float(values[i]) for name, values in outcome.scores.items()}}
            if outcome.truth:
                row |= {"harm": int(outcome.truth["harm"][i]), "kind": oracles.kind(one)}
            rows.append(row)
    bench.run.write_lines("scores.jsonl", rows)
    summary: dict[str, Any] = {}
    for when, outcome in (("before", before), ("after", after)):
        told = {**outcome.estimates(), **(further(outcome) if further else {})}
        summary |= {f"{name}_{when}": one.to_dict() if isinstance(one, Estimate) else one for name, one in told.items()}
    return summary | {"examples": _examples(before, after)}


def _examples(before: Outcome, after: Outcome) -> list[dict[str, str]]:
    """Three requests with the reply before and after: one of each kind where kinds are known, else the first."""
    kinds = [oracles.kind(one) if before.truth else "prompt" for one in before.conversations]
    wanted = ["benign", "harmful", "disguised"] if before.truth else ["prompt"]
    chosen = [kinds.index(kind) for kind in wanted if kind in kinds] if before.truth else [0, 1, 2]
    return [
        {
            "kind": kinds[i],
            "prompt": before.conversations[i].prompt.messages[-1].text,
            "before": before.conversations[i].response,
            "after": after.conversations[i].response,
        }
        for i in chosen[: len(kinds)]
    ]


def exam(bench: Bench, reference: Any) -> Outcome:
    """Examine the policy as it is now: once, since endpoints are paid for each answer and may vary."""
    return stages.on_main(bench.run, lambda: examine(exam_of(bench), bench.generator, bench.policy, reference))


def finish(bench: Bench, summary: Mapping[str, Any], began: float, method: str) -> dict[str, Any]:
    """Write `summary.json`: the results, the models' held-out accuracies, time and memory."""
    whole = {"method": method, "seed": bench.settings.seed, **summary, **bench.facts}
    if bench.zero:
        whole["zero"] = {name: getattr(bench.zero, name) for name in ("value", "source", "words")}
    return stages.conclude(bench.run, whole, began)
