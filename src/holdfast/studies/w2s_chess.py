"""Does a strong player that learns from a weak one's moves become better than it, and less so the weaker that one is?

Claim (weak-to-strong generalisation, arXiv 2312.09390, chess): naive finetuning on a weak supervisor's greedy moves
recovers part of the gap to a player that learned from the right ones (the paper's PGR: near 0 for its smallest
supervisors, above .4 for small gaps); going through players of intermediate size on fresh puzzles helps.

World: `w2s_chess_data.py`. Puzzles with exactly one mating move, from random placements and from games of Stockfish;
a game never gives puzzles to two parts, and the 1,500 test puzzles, the same for all seeds, come from as many games.
Players: `w2s_chess_model.py`, transformers over the 64 squares that give a logit to each of 4,096 moves from square to
square; illegal moves are not forbidden, but counted. A move is right when it is the mating one; `mating` also accepts
another mate, of which these puzzles have none, and so checks the bookkeeping. This is a move policy on boards, not
text generation as in the paper, and mates in two are left out: they cost fifty times as much to find.

The strong player (width 64, 3 layers) and the intermediate one (40, 2 layers) learn the rules first, once for all
seeds: which moves are legal and which give check, from 370,000 positions without any best move. Their move head begins
as the check head. The supervisor (32, 2 layers) starts from scratch. Arms of a seed:

* `weak`: the supervisor, on 1,500 right moves, 15 epochs at 3e-3; `few`: another one, on the first 700 of them;
* `naive`: the strong player on 2,500 other puzzles, told the greedy moves of `weak`, legal or not; `product`: told its
  probabilities times the student's own, normalised; `ceiling`: told the right moves of the same puzzles. 5 epochs at
  1e-3. All here: AdamW, cosine, batch 32, gradient norm within 1, the last epoch counts;
* `direct`: as `naive`, under `few`; `middle`: the intermediate player under `few`, on the same puzzles;
  `bootstrapped`: the strong player on 2,500 fresh puzzles under `middle`; `rules_only`: the strong player, untold.

PGR is the ratio of the means over seeds, with a paired bootstrap over puzzles and seeds; one ceiling serves all.

Settings are those of a prototype, another program with its own data, that was run on its seeds 0-4 (naive .30, product
.33 there, direct .11 and bootstrapped .15 on seeds 0-2). Of this program only the speed of its parts was measured: no
accuracy was looked at on any seed, and seeds 10-14 were never run before. Written down before the first run of the
study:

* C1: `naive` is right more often than `weak` in every seed;
* C2: the PGR of `naive` is above .15;
* C3: the PGR of `direct`, whose supervisor is weaker, is below that of `naive`.

Bootstrapping and the product loss are reported without a criterion. Without python-chess or Stockfish the study is
skipped, says so, and none of its criteria holds.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from holdfast.config import Settings
from holdfast.engine.log import RunFolder
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings
from holdfast.errors import UserError
from holdfast.evaluate.vault import Vault
from holdfast.stats.estimate import proportion
from holdfast.stats.recovery import Recovery, recovered
from holdfast.studies.common import criterion, findings, interval, markdown
from holdfast.studies.ppo_max import side_by_side
from holdfast.studies.w2s_chess_data import MOVES, DataPlan, Puzzle, code, decode, encode, missing, prepare, read
from holdfast.studies.w2s_chess_model import ChessLearner, Player, Size, learn_rules, predictor
from holdfast.studies.w2s_common import judged
from holdfast.training.learners import Predictor
from holdfast.training.transfer import TransferSettings

SEEDS = (10, 11, 12, 13, 14)
CLAIM = "a student of a weak supervisor surpasses it, by less of the gap where the gap is larger"
SOURCE = "weak-to-strong generalisation, arXiv 2312.09390, chess"
SUPERVISORS = {"naive": "weak", "product": "weak", "direct": "few", "middle": "few", "bootstrapped": "middle"}
ARMS = ("weak", "few", "rules_only", *SUPERVISORS, "ceiling")
RECOVERED = {"naive": "weak", "product": "weak", "direct": "few", "middle": "few", "bootstrapped": "few"}
"""Whose gap to the ceiling each student is measured by."""
SIZES = {"strong": Size(64, 3), "middle": Size(40, 2), "weak": Size(32, 2)}


def _epochs(count: int, rate: float) -> FitSettings:
    return FitSettings(epochs=count, batch_size=32, optimiser=OptimiserSettings(learning_rate=rate))


class Plan(Settings):
    """How much of everything."""

    data: DataPlan = DataPlan()
    """Positions that are looked at."""
    rules: dict[str, int] = {"strong": 2000, "middle": 2000}
    """Steps of 64 boards that the rules are learned in."""
    test: int = Field(default=1500, ge=1)
    """Puzzles of the exam."""
    weak: int = Field(default=1500, ge=1)
    """Right moves that the supervisor learns."""
    few: int = Field(default=700, ge=1)
    """Those of them that the weaker supervisor learns."""
    transfer: int = Field(default=2500, ge=1)
    """Puzzles that a supervisor labels."""
    supervisor: FitSettings = _epochs(15, 3e-3)
    """How a supervisor learns."""
    student: FitSettings = _epochs(5, 1e-3)
    """How students and the ceiling learn."""


QUICK = Plan(
    data=DataPlan(placements=24_000, games=64, parts=2),
    rules={"strong": 20, "middle": 20},
    test=100,
    weak=150,
    few=75,
    transfer=100,
    supervisor=_epochs(2, 3e-3),
    student=_epochs(1, 1e-3),
)


class World(NamedTuple):
    """The puzzles, those of the exam first and apart, and the players that know the rules."""

    test: list[Puzzle]
    pool: list[Puzzle]
    bases: dict[str, Player]


def run(folder: Path, seeds: Sequence[int] = SEEDS, quick: bool = False) -> dict[str, Any]:
    """Run all arms for the seeds, two at a time, taking up what is finished; return the result.

    Without python-chess or Stockfish nothing runs, and `skipped` says what to install.
    """
    plan, place = (QUICK, folder / "quick") if quick else (Plan(), folder / "full")
    arms: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    if words := missing():
        return _result(arms, seeds, plan, {"skipped": words})
    data = prepare(place / "data", plan.data)
    novices = side_by_side(partial(novice, place, plan), list(plan.rules))
    bases = {name: player for name, (player, _) in zip(plan.rules, novices)}
    world = World(*exam_and_rest(data.puzzles, plan.test), bases)
    for found in side_by_side(partial(one_seed, place, plan, world), seeds):
        for name, one in found.items():
            arms[name].append(one)
    learned = {name: known for name, (_, known) in zip(plan.rules, novices)}
    return _result(arms, seeds, plan, {"rules": learned, "data": data.facts})


def _result(arms: Mapping[str, Any], seeds: Sequence[int], plan: Plan, more: dict[str, Any]) -> dict[str, Any]:
    return findings("w2s_chess", CLAIM, SOURCE, criteria(arms), arms, seeds, plan) | more


def novice(place: Path, plan: Plan, name: str) -> tuple[Player, dict[str, float]]:
    """The player `name` that knows the rules and no more, and how well it knows them."""
    began = time.monotonic()
    out = RunFolder(place / f"rules-{name}", plan)
    found, known = learn_rules(SIZES[name], read(place / "data").rules, plan.rules[name], 0, out)
    return found.player(), known | {"seconds": round(time.monotonic() - began, 1)}


def exam_and_rest(puzzles: Sequence[Puzzle], count: int) -> tuple[list[Puzzle], list[Puzzle]]:
    """One puzzle of each of `count` games, chosen by a hash of the game, and all puzzles of the other games."""
    by_hash = sorted(games(puzzles), key=lambda one: hashlib.sha256(one[0].group_id.encode()).digest())
    return [one[0] for one in by_hash[:count]], [each for one in by_hash[count:] for each in one]


def games(puzzles: Sequence[Puzzle]) -> list[list[Puzzle]]:
    """The puzzles of each game together, games in the order of their first puzzle."""
    found: dict[str, list[Puzzle]] = {}
    for one in puzzles:
        found.setdefault(one.group_id, []).append(one)
    return list(found.values())


def dealt(puzzles: Sequence[Puzzle], sizes: Sequence[int], seed: int) -> list[list[Puzzle]]:
    """Parts of the given sizes in random order; no game is in two, so of the last game of a part some may be left out.

    Raises `UserError` when there are too few.
    """
    whole = games(puzzles)
    order = iter(np.random.default_rng((seed, 0)).permutation(len(whole)).tolist())
    parts: list[list[Puzzle]] = []
    for size in sizes:
        part: list[Puzzle] = []
        while len(part) < size:
            place = next(order, None)
            if place is None:
                raise UserError(
                    f"{len(puzzles)} puzzles are too few for parts of {list(sizes)}; look at more positions"
                )
            part += whole[place]
        parts.append(part[:size])
    return parts


def one_seed(place: Path, plan: Plan, world: World, seed: int) -> dict[str, dict[str, Any]]:
    """What is measured of every arm of a seed."""
    out = RunFolder(place / f"seed-{seed}", plan)
    finished = out.path / "summary.json"
    if not finished.is_file():
        out.write_json(finished.name, Seed(plan, world, seed, out).arms())
    found: dict[str, dict[str, Any]] = json.loads(finished.read_text(encoding="utf-8"))
    return found


class Seed:
    """One run of everything: who learned what, and the marks of the exam."""

    def __init__(self, plan: Plan, world: World, seed: int, out: RunFolder) -> None:
        self.plan, self.world, self.seed, self.out = plan, world, seed, out
        sizes = (plan.weak, plan.transfer, plan.transfer)
        self.own, self.told, self.fresh = dealt(world.pool, sizes, seed)
        gold = {one.id: right(one) for one in [*world.test, *world.pool]}
        self.vault = Vault(gold, MOVES, sealed=[one.id for one in world.test])
        self.marks: dict[str, dict[str, Any]] = {}
        self.answers: dict[str, Tensor] = {}
        self.labels: dict[str, np.ndarray] = {}

    def arms(self) -> dict[str, dict[str, Any]]:
        """All arms, each measured."""
        self.sit("rules_only", lambda: predictor(self.world.bases["strong"], boards))
        weak = self.sit("weak", partial(self.taught, "weak", self.own))
        few = self.sit("few", partial(self.taught, "few", self.own[: self.plan.few]))
        self.sit("ceiling", partial(self.taught, "ceiling", self.told))
        self.sit("naive", partial(self.follow, "naive", weak, self.told))
        self.sit("product", partial(self.follow, "product", weak, self.told))
        self.sit("direct", partial(self.follow, "direct", few, self.told))
        middle = self.sit("middle", partial(self.follow, "middle", few, self.told))
        self.sit("bootstrapped", partial(self.follow, "bootstrapped", middle, self.fresh))
        return self.marks

    def taught(self, name: str, items: Sequence[Puzzle]) -> Predictor:
        """What learns the right moves."""
        gold = self.vault.release([one.id for one in items], to=name)
        if name == "ceiling":
            return self._learn(name, "strong", items, gold, TransferSettings(fit=self.plan.student))
        return self._learn(name, "weak", items, gold, TransferSettings(fit=self.plan.supervisor))

    def follow(self, name: str, supervisor: Predictor, items: Sequence[Puzzle]) -> Predictor:
        """What learns the supervisor's moves, or its probabilities times its own."""
        labels = supervisor(items).softmax(-1)
        self.labels[name] = played(items, labels)[0]
        kind = "product" if name == "product" else "hard"
        size = "middle" if name == "middle" else "strong"
        with self.vault.locked(name):
            return self._learn(name, size, items, labels, TransferSettings(kind=kind, fit=self.plan.student))

    def _learn(
        self, name: str, size: str, items: Sequence[Puzzle], targets: Tensor, settings: TransferSettings
    ) -> Predictor:
        learner = ChessLearner(SIZES[size], boards, self.world.bases.get(size))
        return learner.learn(items, targets, settings, seed=self.seed, run=self.out, stage=name)

    def sit(self, name: str, make: Callable[[], Predictor]) -> Predictor:
        """Make a player, examine it, and note its marks."""
        began = time.monotonic()
        player = make()
        self.answers[name] = player(self.world.test)
        self.marks[name] = {"seed": self.seed, **self._marks(name), "seconds": round(time.monotonic() - began, 1)}
        return player

    def _marks(self, name: str) -> dict[str, Any]:
        test, answers = self.world.test, self.answers[name]
        ids = [one.id for one in test]
        flags = self.vault.correct(ids, answers)
        legal, mates = played(test, answers)
        found = {"exact": flags, "mating": mates, "legal": legal}
        if supervisor := SUPERVISORS.get(name):
            weak = self.answers[supervisor]
            same = (answers.argmax(-1) == weak.argmax(-1)).numpy()
            its = self.vault.correct(ids, weak, "agreement")
            found |= {"legal labels": self.labels[name], "agreement": same}
            found |= {"agreement on its right": same[its], "agreement on its wrong": same[~its]}
        marks = {what: proportion(values).to_dict() for what, values in found.items() if len(values)}
        return {**marks, "right": "".join(str(int(flag)) for flag in flags)}


def right(puzzle: Puzzle) -> int:
    """The number of the mating move."""
    import chess

    return code(chess.Move.from_uci(puzzle.best_uci), chess.Board(puzzle.fen).turn)


def boards(items: Sequence[Puzzle]) -> Tensor:
    """The boards (N, 64) of puzzles."""
    import chess

    return torch.from_numpy(np.stack([encode(chess.Board(one.fen)) for one in items]))


def played(items: Sequence[Puzzle], logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Whether the most likely move (N, 4096) is legal, and whether it mates, both (N,)."""
    import chess

    legal, mates = np.zeros((2, len(items)), dtype=np.bool_)
    for i, (one, number) in enumerate(zip(items, logits.argmax(-1).tolist(), strict=True)):
        board = chess.Board(one.fen)
        move = decode(number, board)
        legal[i] = board.is_legal(move)
        if legal[i]:
            board.push(move)
            mates[i] = board.is_checkmate()
    return legal, mates


def recovery(arms: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> Recovery:
    """How much of the gap between its first supervisor and the ceiling the students of an arm recover."""
    tables = [
        [[int(flag) for flag in one["right"]] for one in arms[each]] for each in (RECOVERED[name], name, "ceiling")
    ]
    return recovered(*tables)


def criteria(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Each criterion with what was measured of it, and whether it holds."""
    names = ("C1_above_supervisor", "C2_recovers", "C3_larger_gap")
    if not arms["naive"]:
        return [criterion(name, [], 1.0) for name in names]
    better = [s["exact"]["value"] > w["exact"]["value"] for s, w in zip(arms["naive"], arms["weak"], strict=True)]
    near, far = recovery(arms, "naive"), recovery(arms, "direct")
    most = near.value.value if near.value else -math.inf  # without one nothing is below it
    return [
        criterion(names[0], better, 1.0),
        judged(names[1], near, lambda pgr: pgr > 0.15, "PGR > 0.15"),
        judged(names[2], far, lambda pgr: pgr < most, "PGR < that of naive"),
    ]


SHOWN = ("exact", "mating", "legal", "legal labels", "agreement", "agreement on its right", "agreement on its wrong")


def table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table, mean and range over the seeds; why there is none, where it was skipped."""
    if "skipped" in result:
        return f"w2s_chess was skipped: {result['skipped']}"
    arms = result["arms"]
    rows = []
    for name in ARMS:
        cells = [_range([one[what]["value"] for one in arms[name] if what in one]) for what in SHOWN]
        rows.append([name, SUPERVISORS.get(name, "-"), *cells, _pgr(arms, name)])
    return markdown(["arm", "told by", *SHOWN, "PGR"], rows)


def _pgr(arms: Mapping[str, Any], name: str) -> str:
    if name not in RECOVERED:
        return "-"
    found = recovery(arms, name)
    return f"n/a ({found.reason})" if found.value is None else interval(found.value.to_dict())


def _range(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return interval({"value": float(np.mean(values)), "low": min(values), "high": max(values)})
