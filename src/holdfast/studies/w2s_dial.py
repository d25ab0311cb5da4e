"""Does a strong student correct its weak supervisor, or copy it? A dial between the two.

Claim (arXiv 2312.09390, section 5.1 and appendix E.1): a student generalises beyond its supervisor where it cannot
imitate the supervisor's errors, and falls back to its level where it can; the confidence loss helps in the second case.

World: y is -1 or 1. The supervisor sees x_w in R^8, normal with mean .7 y in the first coordinate, and is a logistic
layer trained on 500 items. The student sees x_s in R^32, normal with mean 1.4 y in the first coordinate, and
rho x_w + sqrt(1 - rho^2) noise: rho is the dial. It is a logistic layer too, trained on weak labels by AdamW at 3e-3
with a cosine schedule and batches of 32, as is the ceiling on the true labels of the same items; no epoch is selected.
Everything is drawn anew with each seed. Arms: 4,000 items with rho 0 and 1 for 10 epochs, rho 1 for 60; 2,000 items
with rho 0, .5, .9 and 1 for 10 epochs.

Criteria, written down before the first run of the study; every seed counts by itself:

* corrects: with rho 0 and 4,000 items naive students recover more than .8 of the gap;
* imitates: with rho 1 and 60 epochs they recover less than .03, above or below zero,
* copies: and agree with the supervisor on more than .98 of its mistakes;
* confidence: with rho 1 and 10 epochs the confidence loss recovers at least .2 more than the naive loss;
* little_data: with rho 0 and 2,000 items it recovers less than the naive loss.
"""

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holdfast.config import Settings
from holdfast.engine.log import RunFolder
from holdfast.engine.seeds import generator
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings
from holdfast.evaluate.vault import Vault
from holdfast.studies.common import criterion, findings, markdown
from holdfast.studies.ppo_max import side_by_side
from holdfast.systems.transfer import weak_to_strong
from holdfast.systems.transfer_plan import Plan, Pool, Pools
from holdfast.training.learners import Probe
from holdfast.training.transfer import TransferSettings

SEEDS = (10, 11, 12, 13, 14)
CLAIM = "a student corrects its supervisor where it cannot imitate it, and copies it where it can"
SOURCE = "Weak-to-strong generalization, arXiv 2312.09390"


class Arm(Settings):
    """One position of the dial."""

    rho: float
    """How well the student sees what the supervisor sees."""
    items: int
    """Items to learn from."""
    epochs: int
    """How long."""


class World(Settings):
    """How much of everything."""

    taught: int = 500
    """Items with gold labels for the supervisor."""
    test: int = 4000
    """Items that judge."""
    supervisor_epochs: int = 40
    """Epochs of the supervisor."""
    arms: dict[str, Arm] = {
        "rho 0": Arm(rho=0.0, items=4000, epochs=10),
        "rho 1": Arm(rho=1.0, items=4000, epochs=10),
        "rho 1, long": Arm(rho=1.0, items=4000, epochs=60),
        "rho 0, few": Arm(rho=0.0, items=2000, epochs=10),
        "rho 0.5, few": Arm(rho=0.5, items=2000, epochs=10),
        "rho 0.9, few": Arm(rho=0.9, items=2000, epochs=10),
        "rho 1, few": Arm(rho=1.0, items=2000, epochs=10),
    }
    """The positions of the dial."""


QUICK = World(
    test=1000,
    arms={
        "rho 0": Arm(rho=0.0, items=1000, epochs=10),
        "rho 1": Arm(rho=1.0, items=1000, epochs=10),
        "rho 1, long": Arm(rho=1.0, items=1000, epochs=40),
        "rho 0, few": Arm(rho=0.0, items=500, epochs=10),
    },
)


def run(folder: Path, seeds: Sequence[int] = SEEDS, quick: bool = False) -> dict[str, Any]:
    """Run every arm with every seed, loading what is finished; return the result."""
    world, place = (QUICK, folder / "quick") if quick else (World(), folder / "full")
    found = side_by_side(partial(_one_seed, place, world), seeds)
    arms = {name: [each[name] for each in found] for name in world.arms}
    return findings("w2s_dial", CLAIM, SOURCE, criteria(arms), arms, seeds, world)


def _one_seed(folder: Path, world: World, seed: int) -> dict[str, dict[str, Any]]:
    return {name: _one_arm(folder / name.replace(" ", "_"), world, arm, seed) for name, arm in world.arms.items()}


def _one_arm(folder: Path, world: World, arm: Arm, seed: int) -> dict[str, Any]:
    """What the models of one arm and seed are worth, read from the disk when they are finished."""
    began, out = time.monotonic(), RunFolder(folder / str(seed), world.model_copy(update={"arms": {folder.name: arm}}))
    finished = out.path / "arm.json"
    if finished.is_file():
        return json.loads(finished.read_text(encoding="utf-8"))
    report = weak_to_strong(plan(world, arm, seed), out)
    recovery = report["students"]["soft"]["recovery"]
    found: dict[str, Any] = {"seed": seed, "weak": recovery["weak"]["value"], "ceiling": recovery["ceiling"]["value"]}
    for loss, student in report["students"].items():
        found[loss] = {
            "accuracy": student["recovery"]["student"]["value"],
            "pgr": student["recovery"]["per_seed"][0],
            "on_wrong": student["agreement"]["on_wrong"]["value"],
        }
    found |= {"warnings": report["warnings"], "seconds": round(time.monotonic() - began, 1)}
    out.write_json("arm.json", found)
    return found


def plan(world: World, arm: Arm, seed: int) -> Plan:
    """The world of a seed, and who learns what in it."""
    sizes = {"weak_train": world.taught, "transfer": arm.items, "test": world.test}
    sides, weak, strong = drawn(sum(sizes.values()), arm.rho, seed)
    pools, start = {}, 0
    for name, size in sizes.items():
        places = range(start, start + size)
        pools[name], start = Pool(tuple(map(str, places)), places), start + size
    gold = {str(i): int(side > 0) for i, side in enumerate(sides.tolist())}
    student = TransferSettings(fit=_fit(arm.epochs))
    return Plan(
        pools=lambda _: Pools(validation=Pool(), **pools),
        vault=Vault(gold, 2, sealed=pools["test"].ids),
        supervisor=Probe(lambda places: weak[list(places)]),
        student=Probe(lambda places: strong[list(places)]),
        supervised=TransferSettings(fit=_fit(world.supervisor_epochs)),
        ceiling=student,
        students={kind: student.model_copy(update={"kind": kind}) for kind in ("soft", "logconf")},
        seeds=(seed,),
        select=False,
    )


def drawn(count: int, rho: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The sides (N,) of the items, -1 or 1, and what supervisor (N, 8) and student (N, 40) see of them.

    With another rho the same seed draws the same items.
    """
    source = generator(seed)
    sides = torch.randint(2, (count,), generator=source) * 2.0 - 1.0
    weak, strong, noise = (torch.randn(count, width, generator=source) for width in (8, 32, 8))
    weak[:, 0] += 0.7 * sides
    strong[:, 0] += 1.4 * sides
    return sides, weak, torch.cat([strong, rho * weak + (1 - rho**2) ** 0.5 * noise], dim=1)


def _fit(epochs: int) -> FitSettings:
    adam = OptimiserSettings(learning_rate=3e-3, weight_decay=0.01, betas=(0.9, 0.999), warmup_ratio=0.0)
    return FitSettings(epochs=epochs, batch_size=32, optimiser=adam)


def criteria(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Each criterion with the share of seeds that meet it, and whether it holds."""
    long = arms["rho 1, long"]
    return [
        criterion("corrects", [_pgr(one, "soft") > 0.8 for one in arms["rho 0"]], 1.0),
        criterion("imitates", [abs(_pgr(one, "soft")) < 0.03 for one in long], 1.0),
        criterion("copies", [one["soft"]["on_wrong"] > 0.98 for one in long], 1.0),
        criterion("confidence", [_pgr(one, "logconf") - _pgr(one, "soft") >= 0.2 for one in arms["rho 1"]], 1.0),
        criterion("little_data", [_pgr(one, "logconf") < _pgr(one, "soft") for one in arms["rho 0, few"]], 1.0),
    ]


def _pgr(one: Mapping[str, Any], loss: str) -> float:
    """The recovered gap of a run; a run without a gap meets no criterion."""
    value = one[loss]["pgr"]
    return float("nan") if value is None else value


def table(result: Mapping[str, Any]) -> str:
    """A Markdown table with the mean over seeds of every arm."""
    rows = []
    for name, runs in result["arms"].items():
        levels = [_mean(runs, lambda one, key=key: one[key]) for key in ("weak", "ceiling")]
        cells = [
            _mean(runs, lambda one, loss=loss, key=key: one[loss][key])
            for loss in ("soft", "logconf")
            for key in ("accuracy", "pgr", "on_wrong")
        ]
        rows.append([name, *levels, *cells])
    losses = [f"{loss} {what}" for loss in ("naive", "logconf") for what in ("accuracy", "PGR", "agrees on mistakes")]
    return markdown(["arm", "supervisor", "ceiling", *losses], rows)


def _mean(runs: Sequence[Mapping[str, Any]], of: Any) -> str:
    values = [of(one) for one in runs]
    return "n/a" if None in values else f"{sum(values) / len(values):.3f}"
