"""Positions and puzzles of the study `w2s_chess`: numbers of moves, rules, and mates that are unique."""

import json

import numpy as np
import pytest

from holdfast.errors import UserError
from holdfast.studies import w2s_chess_data as data
from holdfast.studies.w2s_chess_data import DataPlan, Look, Rules

chess = pytest.importorskip("chess")
needs_engine = pytest.mark.skipif(data.stockfish() is None, reason="the program Stockfish is not installed")

SMALL = DataPlan(placements=600, games=8, parts=2)


def positions():
    """A few dozen positions of either side to move, from one random game and some that have promotions."""
    source, board = np.random.default_rng(3), chess.Board()
    while board.ply() < 40 and not board.is_game_over():
        yield board
        moves = list(board.legal_moves)
        board.push(moves[source.integers(len(moves))])
    yield chess.Board("1n5k/P6P/8/8/8/8/8/K7 w - - 0 1")
    yield chess.Board("k7/8/8/8/8/8/p6p/1N5K b - - 0 1")


@pytest.mark.parametrize(
    "uci, white, number",
    [("a1a2", True, 8), ("a8a7", False, 8), ("e2e4", True, 64 * 12 + 28), ("h7h8q", True, 55 * 64 + 63)],
)
def test_the_number_of_a_move_by_hand(uci, white, number):
    assert data.code(chess.Move.from_uci(uci), white) == number


def test_moves_come_back_from_their_numbers():
    seen = 0
    for board in positions():
        moves = [move for move in board.legal_moves if move.promotion in (None, chess.QUEEN)]
        numbers = [data.code(move, board.turn) for move in moves]
        assert [data.decode(number, board) for number in numbers] == moves
        assert len(set(numbers)) == len(numbers)
        assert 0 <= min(numbers) <= max(numbers) < data.MOVES
        seen += len(moves)
    assert seen > 500


def test_a_board_is_seen_from_the_side_to_move():
    for board in positions():
        assert (data.encode(board) == data.encode(board.mirror())).all()
    first = data.encode(chess.Board())
    assert first[:8].tolist() == [4, 2, 3, 5, 6, 3, 2, 4]
    assert first[56:].tolist() == [10, 8, 9, 11, 12, 9, 8, 10]
    assert first.reshape(8, 8)[1:7].tolist() == [[1] * 8, *[[0] * 8] * 4, [7] * 8]


def test_a_look_is_what_every_single_move_does():
    for board in positions():
        before = board.fen()
        seen = data.look(board)
        assert board.fen() == before
        checks = {}
        for start in chess.SQUARES:
            for end in chess.SQUARES:
                for promotion in (None, chess.QUEEN):
                    move = chess.Move(start, end, promotion)
                    # A king that takes its own rook is another way to write castling.
                    if board.color_at(end) != board.turn and board.is_legal(move):
                        checks[data.code(move, board.turn)] = board.gives_check(move)
        assert dict(zip(seen.legal, seen.checks, strict=True)) == checks


def mates_of(board):
    """By another way than `look`: a copy of the board for each move."""
    found = []
    for move in board.legal_moves:
        after = board.copy()
        after.push(move)
        if after.is_checkmate():
            found.append(move.uci())
    return found


def test_only_one_mating_move_makes_a_puzzle():
    one, two = chess.Board("7k/8/6K1/8/8/8/R7/8 w - - 0 1"), chess.Board("7k/8/6K1/8/8/8/RQ6/8 w - - 0 1")
    assert mates_of(one) == ["a2a8"]
    assert data.unique(data.look(one))
    assert len(mates_of(two)) > 1
    assert not data.unique(data.look(two))
    # A queen and a rook both mate from there: two moves of one number are still two.
    both = chess.Board("k7/7P/1K6/8/8/8/8/8 w - - 0 1")
    assert sorted(mates_of(both)) == ["h7h8q", "h7h8r"]
    assert not data.unique(data.look(both))
    knight = chess.Move.from_uci("h7h8n")
    assert not data.unique(Look([], [], [knight]))
    assert not data.unique(Look([], [], []))


def test_placements_are_legal_and_small():
    source = np.random.default_rng(0)
    found = [data.placement(source) for _ in range(50)]
    assert all(board.is_valid() and board.turn == chess.WHITE for board in found)
    white, black = ({board.occupied_co[side].bit_count() for board in found} for side in chess.COLORS)
    assert white <= set(range(3, 7))
    assert black <= set(range(1, 7))
    assert len({board.fen() for board in found}) == 50


def test_puzzles_of_placements_have_one_mate_and_are_no_rule_positions():
    part = data.from_placements(SMALL, 0)
    assert len(part.puzzles) + len(part.rules.boards) == 300
    assert len(part.puzzles) >= 3
    for one in part.puzzles:
        board = chess.Board(one.fen)
        assert mates_of(board) == [one.best_uci]
        assert board.san(chess.Move.from_uci(one.best_uci)) == one.best_san
        assert one.best_san.endswith("#")
        assert (one.n_legal, one.group_id, one.moves) == (board.legal_moves.count(), one.id, None)
    again, other = data.from_placements(SMALL, 0), data.from_placements(SMALL, 1)
    assert again.puzzles == part.puzzles
    assert not {one.fen for one in other.puzzles} & {one.fen for one in part.puzzles}


@needs_engine
def test_puzzles_of_games_have_their_history_and_one_group_for_each_game():
    part = data.from_games(SMALL, 0)
    assert part.puzzles
    for one in part.puzzles:
        board = chess.Board()
        for san in one.moves:
            board.push_san(san)
        assert board.fen() == one.fen
        assert (board.ply(), one.id) == (one.ply, f"{one.group_id}-{one.ply}")
        assert mates_of(board) == [one.best_uci]
    assert {one.group_id for one in part.puzzles} <= {f"game-0-{number}" for number in range(4)}
    # The engine has forgotten the games before, so the same numbers give the same games.
    assert data.from_games(SMALL, 0).puzzles == part.puzzles


def test_a_game_is_replayed_move_by_move():
    moves = [chess.Move.from_uci(uci) for uci in ("f2f3", "e7e5", "g2g4", "d8h4")]
    seen = [(board.fen(), history) for board, history in data.replayed(moves)]
    assert [history for _, history in seen] == [(), ("f3",), ("f3", "e5"), ("f3", "e5", "g4")]
    last = chess.Board(seen[-1][0])
    assert mates_of(last) == ["d8h4"]
    assert data.unique(data.look(last))


def test_masks_are_those_of_the_looks():
    looks = [Look([3, 7], [False, True], []), Look([], [], []), Look([5], [True], [])]
    boards = [np.full(64, i, dtype=np.uint8) for i in range(3)]
    rules = Rules.joined([Rules.of(list(zip(boards[:1], looks[:1]))), Rules.of(list(zip(boards[1:], looks[1:])))])
    assert rules.boards[:, 0].tolist() == [0, 1, 2]
    legal, checks = rules.masks([2, 0, 1])
    assert [np.flatnonzero(row).tolist() for row in legal] == [[5], [3, 7], []]
    assert [np.flatnonzero(row).tolist() for row in checks] == [[5], [7], []]
    assert legal.shape == (3, 4096)


def test_rules_of_nothing_join():
    empty = Rules.of([])
    assert empty.boards.shape == (0, 64)
    assert Rules.joined([empty, empty]).starts.tolist() == [0]


@pytest.fixture
def stub(monkeypatch):
    """Data without an engine, made in this process; how often they were made."""
    made = []

    def make(plan):
        made.append(plan)
        return data.from_placements(plan, 0)

    monkeypatch.setattr(data, "make", make)
    monkeypatch.setattr(data, "engine_name", lambda: "Fish 1")
    return made


def test_data_are_made_once_and_altered_ones_are_refused(tmp_path, stub):
    first = data.prepare(tmp_path / "data", SMALL)
    second = data.prepare(tmp_path / "data", SMALL)
    assert len(stub) == 1
    assert first.puzzles == second.puzzles
    assert all((a == b).all() for a, b in zip(first.rules, second.rules))
    assert first.facts["engine"] == "Fish 1"
    assert first.facts["puzzles from placements"] == len(first.puzzles)
    assert first.facts["rule positions"] == 300 - len(first.puzzles)
    file = tmp_path / "data" / "puzzles.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows[0]["best_uci"] = "a1a2"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(UserError, match=r"data have SHA-256 [0-9a-f]{64}, not [0-9a-f]{64}; delete that folder"):
        data.prepare(tmp_path / "data", SMALL)


def test_data_of_another_plan_are_refused(tmp_path, stub):
    data.prepare(tmp_path / "data", SMALL)
    with pytest.raises(UserError, match="placements"):
        data.prepare(tmp_path / "data", DataPlan(placements=601, games=8, parts=2))


def test_a_position_that_comes_twice_is_one_puzzle(monkeypatch):
    part = data.from_placements(SMALL, 0)
    monkeypatch.setattr(data, "side_by_side", lambda work, items: [part, part])
    made = data.make(SMALL)
    assert sorted(one.fen for one in made.puzzles) == sorted(one.fen for one in part.puzzles)
    assert len(made.rules.boards) == 2 * len(part.rules.boards)


def test_work_covers_every_part_of_both_kinds(monkeypatch):
    asked, part = [], data.from_placements(SMALL, 0)
    monkeypatch.setattr(data, "side_by_side", lambda work, items: [part for item in items if not asked.append(item)])
    data.make(SMALL)
    assert sorted((one.func.__name__, one.args[1]) for one in asked) == [
        ("from_games", 0),
        ("from_games", 1),
        ("from_placements", 0),
        ("from_placements", 1),
    ]


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(data, "stockfish", lambda: "/somewhere/stockfish")
    assert data.missing() is None
    monkeypatch.setattr(data, "stockfish", lambda: None)
    assert "apt-get install stockfish" in data.missing()
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'holdfast[chess]'" in data.missing()
