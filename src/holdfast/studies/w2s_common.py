"""What the studies of weak supervision on real texts share: their files, their losses, and what is kept of a run."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from holdfast.data.formats import Readable
from holdfast.data.halves import identities
from holdfast.data.sources import DataSettings, read
from holdfast.engine.log import RunFolder
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings
from holdfast.stats.compare import paired_t
from holdfast.stats.estimate import Estimate
from holdfast.stats.recovery import Recovery, recovered
from holdfast.studies.common import criterion, existing, interval, markdown, shared_folder
from holdfast.studies.ppo_max import side_by_side
from holdfast.systems.transfer import one_seed
from holdfast.systems.transfer_plan import Plan
from holdfast.systems.transfer_report import reported
from holdfast.training.transfer import TransferSettings

SOURCE = "Weak-to-strong generalization, arXiv 2312.09390"
TRAINED_STEPS = 600
"""Steps of the small encoder where MiniLM is not installed."""

Runs = Sequence[Mapping[str, Any]]


def records(name: str) -> list[Readable]:
    """The usable rows of a file; `UserError` when it is missing or two rows have one id."""
    file = existing(shared_folder("w2s") / f"{name}.jsonl.gz", "data/w2s")
    found = read(DataSettings(path=str(file), split="all", on_bad_row="skip")).records
    identities(found)
    return found


def learning(epochs: int, rate: float, decay: float = 0.01, **options: Any) -> TransferSettings:
    """AdamW at `rate` with a cosine schedule and batches of 32; options: the other settings of the loss."""
    adam = OptimiserSettings(learning_rate=rate, weight_decay=decay, betas=(0.9, 0.999), warmup_ratio=0.0)
    return TransferSettings(fit=FitSettings(epochs=epochs, batch_size=32, optimiser=adam), **options)


def all_runs(
    make: Callable[[str], Plan], seeds: Mapping[str, Sequence[int]], place: Path
) -> dict[str, list[dict[str, Any]]]:
    """The runs of every arm with its seeds, two at a time; `make` gives the plan of an arm."""
    jobs = [(arm, seed) for arm, own in seeds.items() for seed in own]
    found = side_by_side(partial(_one_job, make, place), jobs)
    return {arm: [run for (of, _), run in zip(jobs, found, strict=True) if of == arm] for arm in seeds}


def _one_job(make: Callable[[str], Plan], place: Path, job: tuple[str, int]) -> dict[str, Any]:
    arm, seed = job
    return one_run(partial(make, arm), seed, place / arm.replace(" ", "_"))


def one_run(make: Callable[[], Plan], seed: int, folder: Path) -> dict[str, Any]:
    """What the models of a plan and a seed are worth, read from `folder` when they are finished.

    supervisor, ceiling: their accuracy and which test items they have right; students: the same by loss, how often
    each agrees with its supervisor, and its accuracy after every epoch.
    """
    finished = folder / f"seed-{seed}.json"
    if not finished.is_file():
        began, run = time.monotonic(), RunFolder(folder)
        found = measured(replace(make(), seeds=(seed,)), seed, run)
        run.write_json(finished.name, found | {"seconds": round(time.monotonic() - began, 1)})
    kept: dict[str, Any] = json.loads(finished.read_text(encoding="utf-8"))
    return kept


def measured(plan: Plan, seed: int, run: RunFolder) -> dict[str, Any]:
    """Train the models of a seed and look at them."""
    outcome = one_seed(plan, seed, run)
    report = reported(plan, [outcome])
    ids = plan.pools(seed).test.ids

    def marks(p: torch.Tensor) -> dict[str, Any]:
        right = plan.vault.correct(ids, p)
        return {"accuracy": float(right.mean()), "right": packed(right)}

    students = {}
    for loss, found in report["students"].items():
        agreement = {name: share and share["value"] for name, share in found["agreement"].items()}
        students[loss] = marks(outcome.students[loss]) | agreement | {"curve": found["stopping"][0]["gold"]}
    (labels,) = report["labels"]
    return {
        "seed": seed,
        "items": report["items"],
        "supervisor": marks(outcome.weak) | {"mean": labels["mean"][1], "sd": labels["sd"][1]},
        "ceiling": marks(outcome.ceiling),
        "students": students,
        "warnings": report["warnings"],
        "facts": report["facts"],
    }


def packed(flags: NDArray[np.bool_]) -> str:
    """Flags (N,) as hexadecimal digits, eight to a pair, filled up with zeros.

    >>> packed(np.array([True, False, False, False, False, False, False, True, True]))
    '8180'
    """
    return np.packbits(flags).tobytes().hex()


def unpacked(digits: str, count: int) -> NDArray[np.bool_]:
    """The first `count` flags that `packed` wrote.

    >>> unpacked("8180", 9).astype(int).tolist()
    [1, 0, 0, 0, 0, 0, 0, 1, 1]
    """
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), dtype=np.uint8), count=count).astype(bool)


def accuracies(runs: Runs, name: str) -> list[float]:
    """The accuracy in every run of the supervisor, the ceiling, or the student of a loss."""
    return [_model(one, name)["accuracy"] for one in runs]


def recovery(runs: Runs, loss: str) -> Recovery:
    """How much of the gap the students of a loss recover: a ratio of means, with its interval or why there is none."""
    weak, student, ceiling = (
        np.stack([unpacked(_model(one, name)["right"], one["items"]["test"]) for one in runs])
        for name in ("supervisor", loss, "ceiling")
    )
    return recovered(weak, student, ceiling)


def _model(one: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = one[name] if name in ("supervisor", "ceiling") else one["students"][name]
    return found


def above(name: str, runs: Runs, model: str, other: str, needed: float = 0.9) -> dict[str, Any]:
    """The criterion that `model` is right more often than `other` in this share of the runs."""
    pairs = zip(accuracies(runs, model), accuracies(runs, other), strict=True)
    return criterion(name, [one > two for one, two in pairs], needed)


def recovers(name: str, runs: Runs, loss: str, least: float) -> dict[str, Any]:
    """The criterion that the PGR of a loss is above `least`; one that was withheld is not."""
    if not runs:
        return criterion(name, [], 1.0)
    return judged(name, recovery(runs, loss), lambda value: value > least, f"PGR > {least}")


def judged(name: str, found: Recovery, holds: Callable[[float], bool], needed: str) -> dict[str, Any]:
    """The criterion as a PGR meets it; one that was withheld meets none."""
    if found.value is None:
        return criterion(name, [], 1.0) | {"method": found.reason}
    return {"name": name, "holds": holds(found.value.value), **found.value.to_dict(), "needed": needed}


def more(name: str, larger: ArrayLike, smaller: ArrayLike, least: float = 0.0) -> dict[str, Any]:
    """The criterion that one value of each run is, in the mean over runs, by more than `least` above another."""
    values = np.asarray(larger, dtype=np.float64)
    if values.size < 2:
        return criterion(name, [], 1.0) | {"method": "an interval needs two runs"}
    found: Estimate = paired_t(values, smaller).difference
    return {"name": name, "holds": found.value > least, **found.to_dict(), "needed": f"> {least}"}


def surer(name: str, runs: Runs, better: str, other: str, level: float = 0.01) -> dict[str, Any]:
    """The criterion that a loss is better than another by Wilcoxon's signed-rank test, one-sided, over the runs.

    Every sign pattern is tried, so that equal differences do no harm; what is shown is the mean difference.
    """
    from scipy.stats import PermutationMethod, wilcoxon

    values, others = (np.array(accuracies(runs, loss)) for loss in (better, other))
    found = more(name, values, others)
    gains = np.round(values - others, 9)  # what is equal on paper must not be ranked by its last bit
    if found["value"] is None or not gains.any():
        return found
    every_sign = PermutationMethod(2 ** min(len(gains), 16))
    p = float(wilcoxon(gains, alternative="greater", method=every_sign).pvalue)
    return found | {"holds": p < level, "method": f"p = {p:.4f}, signed ranks", "needed": f"p < {level}"}


def table_of(arms: Mapping[str, Runs]) -> str:
    """A Markdown table: the models of every arm, with means over the seeds, PGR, and agreement on mistakes."""
    rows = []
    for arm, runs in arms.items():
        for model in ("supervisor", *runs[0]["students"], "ceiling"):
            values = accuracies(runs, model)
            level = interval({"value": float(np.mean(values)), "low": min(values), "high": max(values)})
            rows.append([arm, model, level, *_gains(runs, model)])
    columns = ["arm", "model", "accuracy", "PGR", "above its supervisor", "above naive", "agrees on mistakes"]
    return markdown(columns, rows)


def notes_of(arms: Mapping[str, Runs]) -> str:
    """A Markdown table: what students see, what weak labels are like, and in how many seeds the gap is too small."""
    rows = []
    for arm, runs in arms.items():
        labels = [f"{np.mean([one['supervisor'][key] for one in runs]):.2f}" for key in ("mean", "sd")]
        withheld = sum(any(line.startswith("soft: PGR: n/a") for line in one["warnings"]) for one in runs)
        rows.append([arm, runs[0]["facts"]["sees"], *labels, f"{withheld}/{len(runs)}"])
    return markdown(["arm", "students see", "mean of weak labels", "their SD", "seeds without a PGR"], rows)


def _gains(runs: Runs, model: str) -> list[str]:
    """The cells of a table that only a student has."""
    if model not in runs[0]["students"]:
        return ["-"] * 4
    values, n = accuracies(runs, model), len(runs)
    found = recovery(runs, model)
    wins = [
        f"{sum(one > two for one, two in zip(values, accuracies(runs, other), strict=True))}/{n}"
        for other in ("supervisor", "soft")
    ]
    mistakes = [one["students"][model]["on_wrong"] for one in runs]
    agreed = "-" if None in mistakes else f"{np.mean(mistakes):.2f}"
    pgr = f"n/a ({found.reason})" if found.value is None else interval(found.value.to_dict())
    return [pgr, wins[0], wins[1] if model != "soft" else "-", agreed]
