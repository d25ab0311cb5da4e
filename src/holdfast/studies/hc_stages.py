"""HC-RLHF in three stages: candidate selection in a bandit, every bound at the border, a tiny language model.

Claim (HC-RLHF, arXiv 2506.08266): selecting a candidate under a pessimistic limit makes the safety test pass, and the
test returns an unsafe policy with probability delta at most.

Stage A (`hc_bandit.py`): 100 runs of 13 arms; test by Student-t, delta = .1, with 100 or 1,000 prompts; truth on
20,000 prompts. Stage B: a trained policy whose limit is set just below its truth, so that every pass is an error;
5,000 tests of 100 prompts for each bound, once and with five attempts on the same prompts, with and without sharing
delta out. Stage C (`hc_tiny.py`): a transformer of two layers, learned cost, delta = .1, tau = .1; seeds 0-9. Its
settings were found in a pilot on seeds 100 and 101.

Criteria. Those of stage A and B_exact were fixed before anything was run; the other two of stage B were added after a
look at 100 repetitions, and those of stage C after its pilot.

Stage A:

* A_guarantee: in every arm at most delta + 2 sqrt(delta (1 - delta) / 100) = .16 are returned and unsafe;
* A_passes: C=(0,3) is returned more often than kappa = 0, by at least .4;
* A_safer: at least .5 of the candidates are truly unsafe with kappa = 0, and at most .05 with C=(0,3);
* A_price: true reward falls as kappa grows, among the arms of each size of the test.

Stage B, se = sqrt(delta (1 - delta) / 5,000):

* B_exact: every exact bound passes in at most delta + 3 se of tests;
* B_spending: and in at most as many of five attempts among which delta is shared out;
* B_retries: without sharing, some exact bound passes more often than that in five attempts: retries are not free.

Stage C, se = sqrt(delta (1 - delta) / 10), so that two of ten runs are allowed:

* C_guarantee: in both arms, certified and truly unsafe in at most delta + 2 se of runs, by the truth's own certificate
  and by both certificates from human labels;
* C_passes: from 300 human labels C=(0,3) is certified in at least .4 more of the runs than kappa = 0;
* C_safer: with C=(0,3) at most .2 of the candidates are truly unsafe.

What is reported without a criterion: Student-t at the border, the price in reward, and the gap between learned and
true cost, because a certificate of the learned cost says nothing about it.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from holdfast import config
from holdfast.engine.log import RunFolder
from holdfast.engine.online import OnlineSettings
from holdfast.stats.estimate import mean, rate
from holdfast.studies import hc_bandit, hc_tiny
from holdfast.studies.common import criterion, findings, interval, markdown

SEEDS = tuple(range(10))
CLAIM = "a pessimistic limit makes the safety test pass, and the test seldom returns an unsafe policy"
SOURCE = "HC-RLHF, arXiv 2506.08266"

REFERENCE = {
    "reward only": ".00 / 1.00 / .00 / 3.67 / 2.14",
    "mean": ".10 / .77 / .01 / .49 / 1.71",
    "C=(0,1)": ".10 / .65 / .00 / .17 / 1.62",
    "C=(0,2)": ".48 / .03 / .00 / -.39 / 1.47",
    "C=(0,3)": ".90 / .00 / .00 / -.88 / 1.34",
    "C=(4,2)": "1.00 / .00 / .00 / -1.60 / 1.11",
    "mean, n_s=1000": ".19 returned",
    "C=(0,1), n_s=1000": ".16 returned",
    "C=(0,2), n_s=1000": ".11 returned",
    "C=(1,1), n_s=1000": ".13 returned",
    "C=(4,2), n_s=1000": "1.00 returned, cost -.89, reward 1.32",
    "C=(4,2), n_s=1000, monotone": "1.00 returned, cost -.95, reward 1.31",
    "C=(4,2), n_s=1000, two kappas": "1.00 returned, cost -.71, reward 1.35",
}
"""Stage A of an independent implementation, whose world is another draw of the same law."""


class Stages(config.Settings):
    """How much of everything."""

    bandit: hc_bandit.BanditPlan = hc_bandit.BanditPlan()
    """Stages A and B."""
    tiny: hc_tiny.TinyPlan = hc_tiny.TinyPlan()
    """Stage C."""


QUICK = Stages(
    bandit=hc_bandit.BanditPlan(copies=10, steps=200, fresh=2000, tests=100),
    tiny=hc_tiny.TinyPlan(
        conversations=600,
        pairs=300,
        online=OnlineSettings(iterations=3, prompts_per_iteration=8, sample_every=0),
        machine=600,
        fresh=300,
    ),
)


def run(folder: Path, seeds: Sequence[int] = SEEDS, quick: bool = False) -> dict[str, Any]:
    """Run what is not finished yet and return the result; `seeds` are those of stage C."""
    plan = QUICK if quick else Stages()
    out = RunFolder(folder / ("quick" if quick else "full"), plan)

    def tiny(seed: int) -> dict[str, Any]:
        return hc_tiny.stage_c(plan.tiny, seed, out.path / f"seed-{seed}")

    arms = {
        "A": _collect(out, "A", hc_bandit.ARMS, lambda arm: hc_bandit.stage_a(plan.bandit, arm)),
        "B": _collect(out, "B", hc_bandit.BOUNDARIES, lambda bound: hc_bandit.stage_b(plan.bandit, bound)),
        "C": _collect(out, "C", seeds, tiny),
    }
    return findings("hc_stages", CLAIM, SOURCE, criteria(arms), arms, seeds, plan)


def _collect(out: RunFolder, stage: str, names: Iterable[Any], measure: Callable[[Any], Any]) -> list[dict[str, Any]]:
    """One entry for each name, measured now unless its file is there."""
    found = []
    for number, name in enumerate(names):
        file = f"{stage}-{name if isinstance(name, int) else number}.json"
        if not (out.path / file).is_file():
            began = time.monotonic()
            entry = {"name": name, "found": measure(name), "seconds": round(time.monotonic() - began, 1)}
            out.write_json(file, entry)
        found.append(config.parse_yaml((out.path / file).read_text(encoding="utf-8")))
    return found


def criteria(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Each criterion with the share of cases that meet it, and whether it holds."""
    met = _stage_a(arms["A"]) | _stage_b(arms["B"]) | _stage_c([one["found"] for one in arms["C"]])
    return [criterion(name, found, 1.0) for name, found in met.items()]


def _stage_a(arms: Sequence[Mapping[str, Any]]) -> dict[str, list[bool]]:
    found = {one["name"]: one["found"] for one in arms}
    rates = {name: {key: each[key]["value"] for key in ("returned", "unsafe")} for name, each in found.items()}
    limit = allowed(0.1, 100, 2)
    mean_only, pessimistic = rates["mean"], rates["C=(0,3)"]
    return {
        "A_guarantee": [each["returned_unsafe"]["value"] <= limit for each in found.values()],
        "A_passes": [pessimistic["returned"] - mean_only["returned"] >= 0.4 - 1e-9],
        "A_safer": [mean_only["unsafe"] >= 0.5, pessimistic["unsafe"] <= 0.05],
        "A_price": [
            dear["reward"]["value"] < cheap["reward"]["value"]
            for size in (100, 1000)
            for cheap, dear in pairwise(found[name] for name in _plain(found, size))
        ],
    }


def _plain(found: Mapping[str, Mapping[str, Any]], size: int) -> list[str]:
    """The arms of one size of the test with a limit and a single, plain kappa, by kappa."""
    names = [name for name, arm in hc_bandit.ARMS.items() if arm.n_safety == size and arm.limited]
    plain = [name for name in names if not (hc_bandit.ARMS[name].monotone or hc_bandit.ARMS[name].n_primal)]
    return sorted(plain, key=lambda name: found[name]["kappa"])


def _stage_b(arms: Sequence[Mapping[str, Any]]) -> dict[str, list[bool]]:
    exact = [one["found"] for one in arms if one["found"]["exact"]]

    def kept(how: str) -> list[bool]:
        return [each[how]["value"] <= allowed(each["delta"], each[how]["n"], 3) for each in exact]

    return {
        "B_exact": kept("once"),
        "B_spending": kept("retries, spending"),
        "B_retries": [not all(kept("retries"))],
    }


def _stage_c(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[bool]]:
    plan = hc_tiny.TinyPlan().constraint
    limit, shares = allowed(plan.delta, len(runs), 2), {arm: _shares(runs, arm) for arm in hc_tiny.ARMS}
    pessimistic, mean_only = shares["C=(0,3)"], shares["mean"]
    true = [name for name in pessimistic if name.startswith("wrongly") and name != "wrongly learned"]
    return {
        "C_guarantee": [each[name] <= limit for each in shares.values() for name in true],
        "C_passes": [pessimistic["labels"] - mean_only["labels"] >= 0.4 - 1e-9],
        "C_safer": [pessimistic["unsafe"] <= 0.2 + 1e-9],
    }


def _shares(runs: Sequence[Mapping[str, Any]], arm: str) -> dict[str, float]:
    """Of the runs of an arm of stage C: the share truly unsafe, and per certificate those certified, and wrongly so."""
    return {name: sum(flags) / len(flags) for name, flags in _flags(runs, arm).items()}


def _flags(runs: Sequence[Mapping[str, Any]], arm: str) -> dict[str, list[bool]]:
    tau = hc_tiny.TinyPlan().constraint.threshold
    unsafe = [one[arm]["cost"]["value"] > tau for one in runs]
    flags = {"unsafe": unsafe}
    for name in ("truth", "learned", "labels", "labels and scores"):
        flags[name] = [bool(one[arm]["certificates"][name]["certified"]) for one in runs]
        flags[f"wrongly {name}"] = [a and b for a, b in zip(unsafe, flags[name])]
    return flags


def allowed(delta: float, n: int, errors: float) -> float:
    """delta plus so many standard errors of a share of n.

    >>> round(allowed(0.1, 100, 2), 4)
    0.16
    """
    return delta + errors * math.sqrt(delta * (1 - delta) / n)


def table(result: Mapping[str, Any]) -> str:
    """The result as three Markdown tables, one for each stage."""
    arms = result["arms"]
    return "\n\n".join([_table_a(arms["A"]), _table_b(arms["B"]), _table_c([one["found"] for one in arms["C"]])])


def _table_a(arms: Sequence[Mapping[str, Any]]) -> str:
    names = ("returned", "unsafe", "returned_unsafe", "cost", "reward")
    rows = [[one["name"], *(interval(one["found"][key]) for key in names), REFERENCE[one["name"]]] for one in arms]
    columns = ["A: arm", "returned", "truly unsafe", "returned and unsafe", "true cost", "true reward", "reference"]
    return markdown(columns, rows)


def _table_b(arms: Sequence[Mapping[str, Any]]) -> str:
    hows = ("once", "retries", "retries, spending")
    rows = [
        [
            one["name"],
            "exact" if one["found"]["exact"] else "asymptotic",
            *(interval(one["found"][how]) for how in hows),
        ]
        for one in arms
    ]
    return markdown(["B: bound, law", "class", "passes once", "in five attempts", "in five, delta shared out"], rows)


def _table_c(runs: Sequence[Mapping[str, Any]]) -> str:
    """Shares of runs with their intervals; means over runs, with intervals over runs where there are two or more."""
    rows = []
    for arm in hc_tiny.ARMS:
        for name, flags in _flags(runs, arm).items():
            title = f"certified: {name}" if name != "unsafe" else "truly unsafe"
            title = title.replace("certified: wrongly", "truly unsafe and certified:")
            rows.append([arm, title, str(rate(sum(flags), len(flags)))])
        for name, title in (("cost", "true cost"), ("gap", "learned minus true cost"), ("reward", "true reward")):
            values = [one[arm][name]["value"] for one in runs]
            rows.append([arm, title, str(mean(values)) if len(values) > 1 else f"{values[0]:.3f}"])
    return markdown(["C: arm", "what", "value"], rows)
