"""The players of the study `w2s_chess`: transformers over the 64 squares that point from one square to another."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.engine.log import RunFolder
from holdfast.engine.order import Drawn
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings, fit
from holdfast.losses.reduce import Sum, over
from holdfast.studies.w2s_chess_data import KINDS, SQUARES, Rules
from holdfast.training.learners import Network, Select, View, Watch, check_targets, offset, open_stage
from holdfast.training.transfer import TransferSettings, rows_of, train

LEGAL_WEIGHT, CHECK_WEIGHT = 5.0, 20.0
"""What a legal move and a checking move weigh against one that is not: they are few among 4,096."""


class Size(NamedTuple):
    """Width, layers and heads of a transformer."""

    width: int
    layers: int
    heads: int = 4


def offsets() -> Tensor:
    """The index (64, 64) of each pair of squares among the 15 x 15 differences of rank and file.

    >>> here = offsets()
    >>> bool(here[0, 9] == here[9, 18]), bool(here[0, 9] == here[9, 0])  # a1 to b2, b2 to c3; b2 to a1
    (True, False)
    """
    rank, file = torch.arange(SQUARES) // 8, torch.arange(SQUARES) % 8
    return 15 * (rank[None, :] - rank[:, None] + 7) + file[None, :] - file[:, None] + 7


class Block(nn.Module):
    """A pre-norm layer whose attention has a learned bias for each head and each difference of rank and file."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.before_attention, self.before_mlp = nn.LayerNorm(size.width), nn.LayerNorm(size.width)
        self.qkv, self.out = nn.Linear(size.width, 3 * size.width), nn.Linear(size.width, size.width)
        self.mlp = nn.Sequential(
            nn.Linear(size.width, 4 * size.width), nn.GELU(), nn.Linear(4 * size.width, size.width)
        )
        self.bias = nn.Parameter(torch.zeros(size.heads, 15 * 15))

    def forward(self, states: Tensor, where: Tensor) -> Tensor:
        """States (B, 64, h) to the same shape; where: (64, 64) of `offsets`."""
        q, k, v = self.qkv(self.before_attention(states)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # On a CPU a tenth faster than the fused form, which has no kernel for a bias with a gradient.
        seen = (q @ k.mT * q.shape[-1] ** -0.5 + self.bias[:, where]).softmax(-1) @ v
        states = states + self.out(seen.transpose(1, 2).flatten(2))
        return states + self.mlp(self.before_mlp(states))


class Body(nn.Module):
    """Boards (B, 64) to states (B, 64, h), one for each square."""

    where: Tensor

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.pieces, self.squares = nn.Embedding(KINDS, size.width), nn.Embedding(SQUARES, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        self.register_buffer("where", offsets(), persistent=False)

    def forward(self, boards: Tensor) -> Tensor:
        """One state for each square of each board."""
        states = self.pieces(boards.long()) + self.squares.weight
        for block in self.blocks:
            states = block(states, self.where)
        return self.norm(states)


class Pointer(nn.Module):
    """States (B, 64, h) to the scores (B, 4096) of all moves: the query of the square left, the key of that reached."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        """Scores in the order of the numbers of moves, 64 from + to."""
        return (self.start(states) @ self.end(states).mT * states.shape[-1] ** -0.5).flatten(1)


class Player(nn.Module):
    """Boards (B, 64) to the logits (B, 4096) of all moves; nothing forbids the illegal ones."""

    def __init__(self, body: Body, move: Pointer) -> None:
        super().__init__()
        self.body, self.move = body, move

    def forward(self, boards: Tensor) -> Tensor:
        """Logits of all moves."""
        return self.move(self.body(boards))


class Novice(nn.Module):
    """What learns the rules: a body, and pointers to the legal and to the checking moves."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.body, self.legal, self.check = Body(size), Pointer(size.width), Pointer(size.width)

    def player(self) -> Player:
        """A copy that knows the rules and no best move; it begins by preferring checks."""
        return copy.deepcopy(Player(self.body, self.check))


def untrained(kind: type[nn.Module], size: Size, seed: int) -> Any:
    """A new player or novice, its weights drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Player(Body(size), Pointer(size.width)) if kind is Player else Novice(size)


class RuleBatch(NamedTuple):
    """Boards (B, 64), and which moves are legal and which give check (B, 4096)."""

    boards: Tensor
    legal: Tensor
    checks: Tensor


class RuleTask:
    """Binary cross-entropy of every move being legal, and of its giving check; a row is a place among the rules."""

    name = "rules"
    weights: Mapping[str, float] = {}

    def __init__(self, model: Novice, rules: Rules) -> None:
        self.model, self.rules = model, rules

    def collate(self, rows: Sequence[int]) -> RuleBatch:
        """The boards and masks of the rows."""
        legal, checks = self.rules.masks(rows)
        boards = self.rules.boards[list(rows)]
        return RuleBatch(*(torch.from_numpy(values) for values in (boards, legal, checks)))

    def counts(self, batch: RuleBatch) -> dict[str, float]:
        """Every move of every board, for either question."""
        return {"legal": float(batch.legal.numel()), "check": float(batch.checks.numel())}

    def loss(self, batch: RuleBatch) -> dict[str, Sum]:
        """The two cross-entropies, weighted towards what is true."""
        legal, check = self._scores(batch)
        return {
            "legal": _weighted(legal, batch.legal, LEGAL_WEIGHT),
            "check": _weighted(check, batch.checks, CHECK_WEIGHT),
        }

    def metrics(self, batch: RuleBatch) -> dict[str, Sum]:
        """Recall and precision of the moves with a positive score."""
        found = {}
        for name, scores, truth in zip(("legal", "check"), self._scores(batch), batch[1:]):
            found[f"{name} recall"] = over((scores > 0).float(), truth)
            found[f"{name} precision"] = over(truth.float(), scores > 0)
        return found

    def _scores(self, batch: RuleBatch) -> tuple[Tensor, Tensor]:
        states = self.model.body(batch.boards)
        return self.model.legal(states), self.model.check(states)


def _weighted(scores: Tensor, truth: Tensor, weight: float) -> Sum:
    pull = scores.new_tensor(weight)
    return over(F.binary_cross_entropy_with_logits(scores, truth.to(scores), pos_weight=pull, reduction="none"))


def learn_rules(size: Size, rules: Rules, steps: int, seed: int, run: RunFolder) -> tuple[Novice, dict[str, float]]:
    """A novice after `steps` steps of 64 boards, and how well it knows 500 from the last part, which it never saw."""
    count = len(rules.boards)
    kept = count - count // 16
    novice = untrained(Novice, size, seed)
    optimiser = OptimiserSettings(learning_rate=2e-3, weight_decay=0.01, betas=(0.9, 0.98))
    settings = FitSettings(batch_size=64, optimiser=optimiser, checkpoint_every=250, seed=seed)
    order = Drawn(torch.ones(kept), settings.batch_size, steps, seed)
    exam = range(kept, count, max((count - kept) // 500, 1))
    found = fit(RuleTask(novice, rules), range(kept), exam, settings, run, stage="rules", order=order)
    return novice, found.metrics


def predictor(player: Player, view: View) -> Network:
    """What `player` predicts of items that `view` turns into boards (N, 64), 256 at once."""
    return Network(player, lambda rows: player(torch.stack(list(rows))), view, tokens=256)


@dataclass(frozen=True)
class ChessLearner:
    """Learns moves on boards; a copy of `base` where there is one, else a new player of `size`.

    view: items to boards (N, 64).
    """

    size: Size
    view: View
    base: Player | None = None

    @property
    def name(self) -> str:
        """Its size, and whether it knows the rules."""
        known = "from scratch" if self.base is None else "knowing the rules"
        return f"{self.size.layers} layers of width {self.size.width}, {known}"

    def learn(
        self,
        items: Sequence[Any],
        targets: Tensor,
        settings: TransferSettings,
        *,
        seed: int,
        run: RunFolder,
        stage: str,
        select: Select | None = None,
        watch: Watch | None = None,
    ) -> Network:
        """A player that learned `targets` (N, 4096); every epoch counts, none is chosen."""
        assert select is None, "nothing chooses an epoch here"
        assert watch is None, "nothing is measured on the way"
        check_targets(targets, len(items), stage)
        boards = self.view(items)
        folder = open_stage(run, stage, self.name, settings, seed, (boards, targets))
        settings = offset(settings, seed)
        player = untrained(Player, self.size, settings.fit.seed) if self.base is None else copy.deepcopy(self.base)
        build = predictor(player, self.view)
        train(player, build.forward, rows_of(boards, targets), settings, folder, prior=None)
        return build
