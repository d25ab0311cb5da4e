"""Do mixtures find conflicting groups in real preferences, and what are their heads worth?

Claim (MiCRo, arXiv 2505.24846): where groups of people conflict, a mixture of reward heads learned from plain pairs
beats a single Bradley-Terry model, and a few labels suffice to find a group's weights.

Data: the test files of helpful-base and harmless-base (Anthropic HH), cleaned. Backbone: a frozen sentence encoder.
Features: 5 x the difference of the embeddings of the two answers, and of the two answers after the last human turn;
the embedding of the prompt for a linear router. Five folds grouped by prompt; every number is on held-out pairs.
Rows: R0 each group alone; R1 both groups as they are; R2 with the labels of harmlessness reversed, which removes the
conflict; R4 hidden users of two types (60 / 40) with opposite labels. R3 (labels made anew by a language model for a
hidden objective) is left out: its files are not at hand.

Criteria, written down before the first run of the study; accuracy over pairs, differences paired by prompt:

* conflict: the single Bradley-Terry model of R1 is right in at most 0.56 of the pairs;
* routed: MiCRo with two heads, alpha = 0, weighed by the prompt, beats it by at least 0.02 with a standard error of at
  most 0.01;
* few_labels: two heads weighed by 50 labels per group are right in at least 0.59;
* worth: that is at least 0.02 more than a model trained on the same 50 labels;
* no_harm: without conflict (R2) mixture and single model differ by at most 0.01;
* sessions: with the session likelihood the two heads of R4 lie on opposite sides of 0.5 for one user type;
* new_user: 50 labels of a new user of R4 bring at least 0.58.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit

from holdfast import config
from holdfast.engine.log import RunFolder
from holdfast.preference.features import PairFeatures
from holdfast.stats.compare import paired_t
from holdfast.stats.estimate import Estimate, share
from holdfast.studies import encoder, hh
from holdfast.studies.common import commit, interval, markdown, shared_folder
from holdfast.studies.micro_hh_fold import Fold, Plan, Tally, World, folds

SEEDS = (0,)
CLAIM = "a mixture finds conflicting groups in real preferences, and a few labels suffice to weigh its heads"
SOURCE = "MiCRo, arXiv 2505.24846"
QUICK = Plan(
    folds=2,
    pairs=250,
    small_steps=60,
    steps=60,
    budgets=(10, 50),
    scratch_budgets=(50,),
    few_shot=(10, 50),
    draws=5,
    scratch_draws=1,
)
TRAINED_STEPS = 600
"""Steps of the small encoder where MiniLM is not installed; about two minutes."""

REFERENCE = {
    "R0 helpful alone": ".603",
    "R0 harmless alone": ".620",
    "R0 helpful alone, asked about harmless": ".391",
    "R0 harmless alone, asked about helpful": ".401",
    "R1 longer wins, helpful": ".582",
    "R1 longer wins, harmless": ".447",
    "R1 single BT": ".542",
    "R1 per-group BT": ".616",
    "R1 conditioned BT": ".554 to .575",
    "R1 static K=2": ".542",
    "R1 MiCRo K=2": ".579",
    "R1 MiCRo K=4": ".578",
    "R1 MiCRo K=2 alpha=0.05": ".571",
    "R1 MiCRo K=2 alpha=0.5": ".540",
    "R1 posterior, 0 labels": ".529",
    "R1 posterior, 5 labels": ".564",
    "R1 posterior, 10 labels": ".577",
    "R1 posterior, 25 labels": ".601",
    "R1 posterior, 50 labels": ".606",
    "R1 posterior, 100 labels": ".612",
    "R1 posterior, 400 labels": ".612",
    "R1 scratch BT, 50 labels": ".562",
    "R2 single BT": ".612",
    "R2 MiCRo K=2": ".616",
    "R4 single BT, first type": ".553",
    "R4 single BT, second type": ".447",
    "R4 per pair, larger head": ".548",
    "R4 per pair, smaller head": ".528",
    "R4 sessions, larger head": ".606",
    "R4 sessions, smaller head": ".391",
    "R4 few-shot, 0 labels": ".500",
    "R4 few-shot, 5 labels": ".542",
    "R4 few-shot, 10 labels": ".560",
    "R4 few-shot, 20 labels": ".581",
    "R4 few-shot, 50 labels": ".603",
}
"""Numbers of an independent implementation of the protocol, with other folds; standard errors .003 to .010."""

Means = dict[str, NDArray[np.float64]]


def run(folder: Path, seeds: Sequence[int] = SEEDS, quick: bool = False) -> dict[str, Any]:
    """Run the folds of all seeds, reading seeds that are finished; return the result."""
    plan = QUICK if quick else Plan(small_steps=0 if encoder.installed() else TRAINED_STEPS)
    rows, counts = hh.comparisons(shared_folder("hh"))
    chosen = some(rows, plan.pairs)
    folder.mkdir(parents=True, exist_ok=True)
    found = encoder.embeddings(folder, [text for row in chosen for text in texts(row)], plan.small_steps)
    world = world_of(chosen, found.values, plan.scale)
    done = [_one_seed(folder / f"seed-{seed}", world, plan, seed) for seed in seeds]
    measured = average([means for means, _ in done])
    return {
        "study": "micro_hh",
        "claim": CLAIM,
        "source": SOURCE,
        "criteria": criteria(measured, world.prompts),
        "arms": arms(measured, world.prompts),
        "spread": {arm: float(np.nanmean(values)) for arm, values in measured.items() if arm.startswith("spread")},
        "encoder": found.encoder,
        "rows": counts,
        "pairs": len(chosen),
        "seeds": list(seeds),
        "seconds": round(sum(seconds for _, seconds in done), 1),
        "seconds_embedding": round(found.seconds, 1),
        "commit": commit(),
        "config_fingerprint": config.fingerprint(plan),
    }


def some(rows: Sequence[hh.Comparison], pairs: int | None) -> list[hh.Comparison]:
    """The first `pairs` comparisons of each group; all of them for null."""
    return [row for group in hh.GROUPS for row in [one for one in rows if one.group == group][:pairs]]


def texts(row: hh.Comparison) -> tuple[str, ...]:
    """The five texts of a comparison: both answers, both after the last human turn, and the prompt."""
    answers = (row.chosen, row.rejected)
    return (*answers, *(f"{row.last_turn}\n\n{answer}" for answer in answers), row.prompt)


def world_of(rows: Sequence[hh.Comparison], embedded: NDArray[np.float32], scale: float) -> World:
    """The comparisons as features; embedded: (5 N, d), the embeddings of their `texts` one after the other."""
    chosen, rejected, after_chosen, after_rejected, prompt = embedded.reshape(len(rows), 5, -1).transpose(1, 0, 2)
    difference = scale * np.concatenate([chosen - rejected, after_chosen - after_rejected], axis=1)
    words = np.array([len(row.chosen.split()) - len(row.rejected.split()) for row in rows])
    return World(
        PairFeatures(torch.from_numpy(difference), torch.from_numpy(prompt.copy())),
        np.array([row.group == "harmless" for row in rows]),
        tuple(row.prompt for row in rows),
        0.5 + 0.5 * np.sign(words),
    )


def _one_seed(folder: Path, world: World, plan: Plan, seed: int) -> tuple[Means, float]:
    """How often each pair was answered rightly, by arm, and the seconds that took."""
    run, file = RunFolder(folder, plan), folder / "means.npz"
    if not file.is_file():
        began, tally = time.monotonic(), Tally(len(world.prompts))
        part = folds(world.prompts, plan.folds, seed)
        with run.progress(plan.folds, f"seed {seed}: folds") as advance:
            for number in range(plan.folds):
                train, test = np.flatnonzero(part != number), np.flatnonzero(part == number)
                Fold(plan, world, train, test, seed, tally).run()
                advance({})
        partial = folder / "means.partial.npz"
        np.savez(partial, seconds=time.monotonic() - began, **tally.means())
        partial.replace(file)
    with np.load(file) as stored:
        return {name: stored[name] for name in stored.files if name != "seconds"}, float(stored["seconds"])


def average(seeds: Sequence[Means]) -> Means:
    """(N,) for each arm: the mean over seeds, NaN where a pair was asked in none; `scratch` with its best penalty."""
    together = {}
    for arm in seeds[0]:
        values = np.stack([means[arm] for means in seeds])
        asked = ~np.isnan(values)
        together[arm] = np.where(asked.any(0), np.nansum(values, 0) / np.maximum(asked.sum(0), 1), np.nan)
    # The test pairs choose the penalty, in favour of the model that the heads are compared with.
    best: dict[str, str] = {}
    for arm in [arm for arm in together if arm.startswith("scratch")]:
        name = f"R1 scratch BT, {arm.split()[1]} labels"
        if name not in best or np.nanmean(together[arm]) > np.nanmean(together[best[name]]):
            best[name] = arm
    chosen = {name: together[arm] for name, arm in best.items()}
    return {arm: values for arm, values in together.items() if not arm.startswith("scratch")} | chosen


def accuracy(measured: Means, arm: str, prompts: Sequence[str]) -> Estimate:
    """The accuracy of an arm with its interval over prompts."""
    asked = ~np.isnan(measured[arm])
    return share(measured[arm][asked], _kept(prompts, asked))


def difference(measured: Means, arm: str, other: str, prompts: Sequence[str]) -> Estimate:
    """The accuracy of `arm` minus that of `other` on the pairs that both were asked, paired by prompt."""
    asked = ~np.isnan(measured[arm]) & ~np.isnan(measured[other])
    return paired_t(measured[arm][asked], measured[other][asked], _kept(prompts, asked)).difference


def _kept(prompts: Sequence[str], asked: NDArray[np.bool_]) -> list[str]:
    return [prompt for prompt, kept in zip(prompts, asked.tolist(), strict=True) if kept]


def arms(measured: Means, prompts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Accuracy of every arm, and its difference to the single model of its row where it was asked the same."""
    found: dict[str, dict[str, Any]] = {}
    for arm in sorted((arm for arm in measured if arm.startswith("R")), key=_order):
        single = f"{arm[:2]} single BT"
        compared = arm != single and arm[:2] in ("R1", "R2")
        gain = difference(measured, arm, single, prompts).to_dict() if compared else None
        found[arm] = {"accuracy": accuracy(measured, arm, prompts).to_dict(), "difference": gain}
    return found


def _order(arm: str) -> tuple[str, int]:
    names = list(REFERENCE)
    return arm[:2], names.index(arm) if arm in names else len(names)


def criteria(measured: Means, prompts: Sequence[str]) -> list[dict[str, Any]]:
    """Each criterion with what was measured, and whether it holds."""

    def judged(name: str, found: Estimate, needed: str, holds: bool) -> dict[str, Any]:
        return {"name": name, "holds": bool(holds), **found.to_dict(), "needed": needed}

    single, routed = "R1 single BT", "R1 MiCRo K=2"
    conflict = accuracy(measured, single, prompts)
    gain = difference(measured, routed, single, prompts)
    few, scratch = "R1 posterior, 50 labels", "R1 scratch BT, 50 labels"
    known, worth = accuracy(measured, few, prompts), difference(measured, few, scratch, prompts)
    harm = difference(measured, "R2 MiCRo K=2", "R2 single BT", prompts)
    sides = [accuracy(measured, f"R4 sessions, {size} head", prompts) for size in ("larger", "smaller")]
    apart = difference(measured, "R4 sessions, larger head", "R4 sessions, smaller head", prompts)
    user = accuracy(measured, "R4 few-shot, 50 labels", prompts)
    error = (gain.high - gain.low) / 2 / float(stdtrit(gain.n - 1, 0.975))
    return [
        judged("conflict", conflict, "at most 0.56", conflict.value <= 0.56),
        judged("routed", gain, "at least 0.02, standard error at most 0.01", gain.value >= 0.02 and error <= 0.01),
        judged("few_labels", known, "at least 0.59", known.value >= 0.59),
        judged("worth", worth, "at least 0.02", worth.value >= 0.02),
        judged("no_harm", harm, "within 0.01", abs(harm.value) <= 0.01),
        judged("sessions", apart, "one above 0.5, one below", (sides[0].value - 0.5) * (sides[1].value - 0.5) < 0),
        judged("new_user", user, "at least 0.58", user.value >= 0.58),
    ]


def table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table, one line per arm."""
    rows = []
    for arm, found in result["arms"].items():
        gain = "" if found["difference"] is None else interval(found["difference"])
        rows.append([arm, interval(found["accuracy"]), gain, REFERENCE.get(arm, "")])
    facts = f"{result['pairs']} pairs; encoder: {result['encoder']}; seeds {', '.join(map(str, result['seeds']))}; "
    facts += f"{result['seconds']:.0f} s after {result['seconds_embedding']:.0f} s of embedding."
    columns = ("arm", "accuracy", "gain over the single model", "another implementation")
    return f"{markdown(columns, rows)}\n\n{facts}"
