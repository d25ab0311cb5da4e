"""Positions and puzzles of the study `w2s_chess`, made here: nothing is copied and nothing is downloaded.

Most come from random placements of few pieces, the others from games. In a game Stockfish at few nodes meets itself,
after a random opening, and one side plays half of its moves at random. A position is a puzzle when exactly one move
mates, which every legal move was tried for; the others are rule positions, which tell the legal moves and the checks
and nothing about which of them is good. A board is seen from the side to move: its own pieces walk up. Castling rights
and en passant are not seen, and a pawn that arrives becomes a queen.

python-chess and Stockfish are imported and started inside the functions that need them.
"""

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from holdfast.config import Settings
from holdfast.engine.log import RunFolder
from holdfast.errors import UserError
from holdfast.studies.ppo_max import side_by_side

if TYPE_CHECKING:
    import chess
    import chess.engine

SQUARES, MOVES, KINDS = 64, 4096, 13
"""Squares of a board, moves from one to another, and what can stand on a square: nothing, six own, six of theirs."""
ATTACKERS, DEFENDERS = "QRRBBNNPP", "QRBNPPP"
LONGEST = 120
"""Half-moves after which a game is broken off."""


class DataPlan(Settings):
    """How many positions are looked at, and from which seed."""

    placements: int = Field(default=320_000, ge=1)
    """Random placements that are looked at."""
    games: int = Field(default=1280, ge=1)
    """Games that are played."""
    nodes: int = Field(default=30, ge=1)
    """Nodes that Stockfish searches for a move."""
    parts: int = Field(default=16, ge=1)
    """Pieces of equal size that the work is cut into, each with its own random numbers."""
    seed: int = Field(default=64, ge=0)
    """What everything is drawn from."""


@dataclass(frozen=True)
class Puzzle:
    """A position in which exactly one move mates.

    group_id: the game it comes from, or its own id; moves: the game in SAN up to here, null for a placement.
    """

    id: str
    group_id: str
    fen: str
    moves: tuple[str, ...] | None
    best_uci: str
    best_san: str
    n_legal: int
    ply: int
    source: str
    theme: str = "mateIn1"


class Rules(NamedTuple):
    """Boards (N, 64) and the legal moves of all of them in a row: their codes, whether each gives check, and where the
    moves of each board begin (N + 1)."""

    boards: NDArray[np.uint8]
    moves: NDArray[np.uint16]
    checks: NDArray[np.bool_]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, found: Sequence[tuple[NDArray[np.uint8], "Look"]]) -> "Rules":
        """The rules as seen on boards."""
        looks = [look for _, look in found]
        return cls(
            np.array([board for board, _ in found], dtype=np.uint8).reshape(-1, SQUARES),
            np.array([move for look in looks for move in look.legal], dtype=np.uint16),
            np.array([check for look in looks for check in look.checks], dtype=np.bool_),
            np.cumsum([0, *(len(look.legal) for look in looks)]),
        )

    @classmethod
    def joined(cls, parts: Sequence["Rules"]) -> "Rules":
        """All parts in their order."""
        boards, moves, checks, starts = zip(*parts, strict=True)
        lengths = np.concatenate([np.diff(one) for one in starts])
        return cls(
            np.concatenate(boards), np.concatenate(moves), np.concatenate(checks), np.append(0, np.cumsum(lengths))
        )

    def masks(self, chosen: Sequence[int]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which moves are legal and which give check on the chosen boards, both (B, 4096)."""
        legal, checking = np.zeros((2, len(chosen), MOVES), dtype=np.bool_)
        for row, place in enumerate(chosen):
            own = slice(self.starts[place], self.starts[place + 1])
            legal[row, self.moves[own]] = True
            checking[row, self.moves[own]] = self.checks[own]
        return legal, checking


class Look(NamedTuple):
    """What one move can do on a board: the codes of the legal ones, whether each gives check, and the moves that mate.

    Of the promotions only that to a queen has a code; among the mates all are listed, so that no second one is missed.
    """

    legal: list[int]
    checks: list[bool]
    mates: "list[chess.Move]"


class Part(NamedTuple):
    """Puzzles, and rule positions."""

    puzzles: list[Puzzle]
    rules: Rules


class Data(NamedTuple):
    """All puzzles, all rule positions, and what is to be said of them: counts, SHA-256, the engine's name."""

    puzzles: list[Puzzle]
    rules: Rules
    facts: dict[str, Any]


def missing() -> str | None:
    """What has to be installed before the study can run, in words; None when all is there."""
    if importlib.util.find_spec("chess") is None:
        return "python-chess is not installed; pip install 'holdfast[chess]'"
    if stockfish() is None:
        return "stockfish is not installed; install the program (Debian and Ubuntu: apt-get install stockfish)"
    return None


def stockfish() -> str | None:
    """The path of the program Stockfish; Debian keeps games in a folder that few search."""
    return shutil.which("stockfish") or shutil.which("stockfish", path="/usr/games")


def code(move: "chess.Move", white: bool) -> int:
    """The number of a move, 64 from + to, as the side to move sees it.

    A queen's promotion and the bare move of a pawn are one number. Black's board is turned upside down:

    >>> import chess
    >>> code(chess.Move.from_uci("e2e4"), white=True) == code(chess.Move.from_uci("e7e5"), white=False)
    True
    """
    turned = 0 if white else 56
    return SQUARES * (move.from_square ^ turned) + (move.to_square ^ turned)


def decode(number: int, board: "chess.Board") -> "chess.Move":
    """The move on `board` that `code` gives this number, a queen's promotion where a pawn arrives; perhaps illegal."""
    import chess

    turned = 0 if board.turn else 56
    start, end = (int(square) ^ turned for square in divmod(int(number), SQUARES))
    arrives = board.piece_type_at(start) == chess.PAWN and chess.square_rank(end) in (0, 7)
    return chess.Move(start, end, chess.QUEEN if arrives else None)


def encode(board: "chess.Board") -> NDArray[np.uint8]:
    """What stands on each square (64,) as the side to move sees it: 1 to 6 own pawn to king, 7 to 12 theirs."""
    found, turned = np.zeros(SQUARES, dtype=np.uint8), 0 if board.turn else 56
    for square, piece in board.piece_map().items():
        found[square ^ turned] = piece.piece_type + (0 if piece.color == board.turn else 6)
    return found


def look(board: "chess.Board") -> Look:
    """All that one move can do on `board`, by trying every one."""
    import chess

    seen = Look([], [], [])
    for move in list(board.legal_moves):
        white = board.turn
        board.push(move)
        check = board.is_check()
        if check and not any(board.generate_legal_moves()):
            seen.mates.append(move)
        board.pop()
        if move.promotion in (None, chess.QUEEN):
            seen.legal.append(code(move, white))
            seen.checks.append(check)
    return seen


def unique(seen: Look) -> bool:
    """Whether exactly one move mates, and that one has a code."""
    import chess

    return len(seen.mates) == 1 and seen.mates[0].promotion in (None, chess.QUEEN)


def placement(source: np.random.Generator) -> "chess.Board":
    """A legal position of few pieces: White, to move, has a king and two to five others, Black up to five others."""
    import chess

    while True:
        pieces = "Kk" + "".join(source.permutation(list(ATTACKERS))[: source.integers(2, 6)])
        pieces += "".join(source.permutation(list(DEFENDERS))[: source.integers(6)]).lower()
        board = chess.Board(None)
        for square, letter in zip(source.permutation(SQUARES).tolist(), pieces):
            board.set_piece_at(square, chess.Piece.from_symbol(letter))
        if board.is_valid():
            return board


def game(engine: "chess.engine.SimpleEngine", nodes: int, source: np.random.Generator, name: str) -> "chess.Board":
    """A finished game. After 4 to 16 random half-moves the engine plays, and one side moves at random half the time."""
    import chess
    import chess.engine

    board, opening, careless = chess.Board(), source.integers(4, 17), bool(source.integers(2))
    while not board.is_game_over() and board.ply() < LONGEST:
        if board.ply() < opening or (board.turn == careless and source.random() < 0.5):
            moves = list(board.legal_moves)
            board.push(moves[source.integers(len(moves))])
        else:
            # The engine forgets the last game when the name changes, so that a game depends on its own numbers alone.
            found = engine.play(board, chess.engine.Limit(nodes=nodes), game=name).move
            assert found is not None
            board.push(found)
    return board


def from_placements(plan: DataPlan, part: int) -> Part:
    """Puzzles and rules from random placements."""
    source, found, puzzles = np.random.default_rng((plan.seed, 0, part)), [], []
    for number in range(plan.placements // plan.parts):
        board = placement(source)
        seen = look(board)
        if unique(seen):
            puzzles.append(puzzle(board, seen, f"placement-{part}-{number}", "random_placement"))
        else:
            found.append((encode(board), seen))
    return Part(puzzles, Rules.of(found))


def from_games(plan: DataPlan, part: int) -> Part:
    """Puzzles and rules from games, each of which is one group."""
    source, found, puzzles = np.random.default_rng((plan.seed, 1, part)), [], []
    with _engine() as engine:
        for number in range(plan.games // plan.parts):
            name = f"game-{part}-{number}"
            for board, history in replayed(game(engine, plan.nodes, source, name).move_stack):
                seen = look(board)
                if unique(seen):
                    puzzles.append(puzzle(board, seen, name, "game", history))
                else:
                    found.append((encode(board), seen))
    return Part(puzzles, Rules.of(found))


def replayed(moves: "Sequence[chess.Move]") -> "Iterator[tuple[chess.Board, tuple[str, ...]]]":
    """Every position of a game in which somebody moves, with the moves so far in SAN."""
    import chess

    board, history = chess.Board(), []
    for move in moves:
        yield board, tuple(history)
        history.append(board.san(move))
        board.push(move)


def puzzle(board: "chess.Board", seen: Look, group: str, source: str, history: tuple[str, ...] | None = None) -> Puzzle:
    """The puzzle of a position with a unique mate."""
    (best,) = seen.mates
    return Puzzle(
        id=group if history is None else f"{group}-{board.ply()}",
        group_id=group,
        fen=board.fen(),
        moves=history,
        best_uci=best.uci(),
        best_san=board.san(best),
        n_legal=board.legal_moves.count(),
        ply=board.ply(),
        source=source,
    )


def prepare(folder: Path, plan: DataPlan) -> Data:
    """The data, made once and then read from `folder`; `UserError` when what lies there was altered."""
    run = RunFolder(folder, plan)
    card = run.path / "data.json"
    if not card.is_file():
        puzzles, rules = make(plan)
        np.savez_compressed(run.path / "rules.npz", **rules._asdict())
        run.write_lines("puzzles.jsonl", (asdict(one) for one in puzzles))
        run.write_json(card.name, {"engine": engine_name(), **counts(puzzles, rules), "sha256": sha256(puzzles, rules)})
    facts = json.loads(card.read_text(encoding="utf-8"))
    puzzles, rules = read(run.path)
    if (found := sha256(puzzles, rules)) != facts["sha256"]:
        raise UserError(f"the data in {run.path} have SHA-256 {found}, not {facts['sha256']}; delete that folder")
    return Data(puzzles, rules, facts)


def make(plan: DataPlan) -> Part:
    """Look at all placements and play all games, two at a time; a position that comes twice is one puzzle."""
    work = [partial(kind, plan, part) for part in range(plan.parts) for kind in (from_games, from_placements)]
    parts = side_by_side(_work, work)
    # Without the counters of moves, which nothing depends on.
    puzzles = {one.fen.rsplit(" ", 2)[0]: one for part in parts for one in part.puzzles}
    return Part(list(puzzles.values()), Rules.joined([part.rules for part in parts]))


def _work(piece: "partial[Part]") -> Part:
    return piece()


def read(folder: Path) -> Part:
    """The data as `prepare` wrote them."""
    lines = (folder / "puzzles.jsonl").read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    puzzles = [Puzzle(**(row | {"moves": row["moves"] and tuple(row["moves"])})) for row in rows]
    with np.load(folder / "rules.npz") as stored:
        return Part(puzzles, Rules(**stored))


def sha256(puzzles: Sequence[Puzzle], rules: Rules) -> str:
    """A hash of all that is learned from and asked."""
    digest = hashlib.sha256(json.dumps([asdict(one) for one in puzzles]).encode())
    for values in rules:
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def counts(puzzles: Sequence[Puzzle], rules: Rules) -> dict[str, int]:
    """How many puzzles of each source, games with one, and rule positions there are."""
    sources = [one.source for one in puzzles]
    return {
        "puzzles from placements": sources.count("random_placement"),
        "puzzles from games": sources.count("game"),
        "games with a puzzle": len({one.group_id for one in puzzles if one.source == "game"}),
        "rule positions": len(rules.boards),
    }


def engine_name() -> str:
    """What Stockfish calls itself; another version plays other games."""
    with _engine() as engine:
        return engine.id.get("name", "unknown")


@contextmanager
def _engine() -> "Iterator[chess.engine.SimpleEngine]":
    import chess.engine

    program = stockfish()
    assert program is not None, "without it the study is skipped"
    with chess.engine.SimpleEngine.popen_uci(program) as engine:
        # One thread and a small table that is emptied before each game: the same games everywhere.
        engine.configure({"Threads": 1, "Hash": 1})
        yield engine
