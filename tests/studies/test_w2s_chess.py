"""The study `w2s_chess`: who is told what by whom, criteria that are those of its head, and a skip that says why."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from holdfast.engine.log import RunFolder
from holdfast.errors import UserError
from holdfast.studies import w2s_chess, w2s_chess_data
from holdfast.studies.w2s_chess import ARMS, Plan, Seed, World, criteria, dealt, exam_and_rest, played, table
from holdfast.studies.w2s_chess_data import MOVES, DataPlan, Puzzle
from holdfast.studies.w2s_chess_model import Player, Size, untrained

chess = pytest.importorskip("chess")

N = 400


def answered(share, after=0, **more):
    """The run of an arm that is right on so large a share of the test, from a place on."""
    flags = np.roll(np.arange(N) < round(share * N), after)
    return {"seed": 10, "exact": {"value": share}, "right": "".join(str(int(flag)) for flag in flags), **more}


GOOD = {
    "weak": [answered(0.4), answered(0.42)],
    "few": [answered(0.15), answered(0.14)],
    "rules_only": [answered(0.1), answered(0.1)],
    "naive": [answered(0.5), answered(0.5)],
    "product": [answered(0.5), answered(0.5)],
    "direct": [answered(0.22), answered(0.21)],
    "middle": [answered(0.2), answered(0.2)],
    "bootstrapped": [answered(0.24), answered(0.2)],
    "ceiling": [answered(0.7), answered(0.7)],
}


@pytest.mark.parametrize(
    "changed, fails",
    [
        ({}, []),
        ({"naive": [answered(0.6), answered(0.42)]}, ["C1_above_supervisor"]),
        ({"naive": [answered(0.45), answered(0.45)]}, ["C2_recovers"]),
        ({"naive": [answered(0.46), answered(0.46)]}, []),
        ({"direct": [answered(0.35), answered(0.34)]}, ["C3_larger_gap"]),
        # Measured against its own supervisor, not against that of `naive`.
        ({"direct": [answered(0.4), answered(0.4)]}, ["C3_larger_gap"]),
        ({"naive": [answered(0.44)] * 2, "direct": [answered(0.2)] * 2}, ["C2_recovers"]),
        # Without a gap there is no PGR, and what is not known does not hold.
        ({"ceiling": [answered(0.43), answered(0.42)]}, ["C2_recovers", "C3_larger_gap"]),
    ],
)
def test_each_criterion_can_fail(changed, fails):
    found = criteria(GOOD | changed)
    assert [one["name"] for one in found if not one["holds"]] == fails
    json.dumps(found, allow_nan=False)


def test_pgr_is_the_ratio_of_means():
    found = {one["name"]: one for one in criteria(GOOD)}
    assert found["C2_recovers"]["value"] == pytest.approx((0.5 - 0.41) / (0.7 - 0.41), abs=1e-9)
    assert found["C3_larger_gap"]["value"] == pytest.approx((0.215 - 0.145) / (0.7 - 0.145), abs=1e-9)
    ends = w2s_chess.recovery(GOOD, "bootstrapped").value
    # The end of the chain is measured from the supervisor it began with, not from the intermediate player.
    assert ends.value == pytest.approx((0.22 - 0.145) / (0.7 - 0.145), abs=1e-9)


def puzzle(name, group=None, fen="7k/8/6K1/8/8/8/R7/8 w - - 0 1", best="a2a8"):
    san = chess.Board(fen).san(chess.Move.from_uci(best))
    return Puzzle(name, group or name, fen, None, best, san, 14, 0, "game")


def test_the_exam_has_one_puzzle_of_a_game_and_the_rest_none_of_it():
    puzzles = [puzzle(f"{group}-{i}", f"g{group}") for group in range(30) for i in range(1 + group % 3)]
    test, rest = exam_and_rest(puzzles, 10)
    assert len(test) == len({one.group_id for one in test}) == 10
    assert not {one.group_id for one in test} & {one.group_id for one in rest}
    assert len({one.group_id for one in rest}) == 20
    # By the name of the game: neither order nor more puzzles from elsewhere move those that are in.
    again, _ = exam_and_rest(puzzles[::-1], 10)
    assert {one.group_id for one in again} == {one.group_id for one in test}


def test_parts_have_their_size_and_share_no_game():
    puzzles = [puzzle(f"{group}-{i}", f"g{group}") for group in range(40) for i in range(3)]
    parts = dealt(puzzles, (20, 31, 10), seed=4)
    assert [len(part) for part in parts] == [20, 31, 10]
    names = [{one.group_id for one in part} for part in parts]
    assert not names[0] & names[1] | names[0] & names[2] | names[1] & names[2]
    assert dealt(puzzles, (20, 31, 10), seed=4) == parts
    assert dealt(puzzles, (20, 31, 10), seed=5) != parts
    with pytest.raises(UserError, match=r"120 puzzles are too few for parts of \[100, 30\]; look at more positions"):
        dealt(puzzles, (100, 30), seed=4)


def test_a_move_is_legal_or_mates_on_the_board_itself():
    two_mates = "7k/8/6K1/8/8/8/RQ6/8 w - - 0 1"
    black = "8/r7/8/8/8/6k1/8/7K b - - 0 1"
    arrives = "k7/7P/1K6/8/8/8/8/8 w - - 0 1"
    cases = [
        (two_mates, "a2a8", True, True),
        (two_mates, "b2b8", True, True),
        (two_mates, "a2a3", True, False),
        (two_mates, "a2b3", False, False),
        (two_mates, "d4d5", False, False),
        (black, "a7a1", True, True),
        (black, "a7a2", True, False),
        (black, "h1h2", False, False),
        (arrives, "h7h8", True, True),
    ]
    # The mate that a puzzle names plays no part here.
    items = [replace(puzzle(str(i)), fen=fen) for i, (fen, *_) in enumerate(cases)]
    numbers = [w2s_chess_data.code(chess.Move.from_uci(uci), chess.Board(fen).turn) for fen, uci, *_ in cases]
    legal, mates = played(items, F.one_hot(torch.tensor(numbers), MOVES).float())
    assert legal.tolist() == [one[2] for one in cases]
    assert mates.tolist() == [one[3] for one in cases]


SMALL = Plan(test=4, weak=4, few=2, transfer=4, rules={"strong": 1, "middle": 1})


def rook_on(file):
    """The mate of a rook on the second rank, files from 0."""
    name = chess.FILE_NAMES[file]
    return puzzle(f"p{file}", fen=f"7k/8/6K1/8/8/8/{file or ''}R{7 - file}/8 w - - 0 1", best=f"{name}2{name}8")


def small_world():
    pool = [puzzle(f"q{i}") for i in range(12)]
    bases = {name: untrained(Player, Size(8, 1, 2), 0) for name in ("strong", "middle")}
    return World([rook_on(file) for file in range(4)], pool, bases)


@pytest.fixture
def told(monkeypatch):
    """What every arm learned: its size, its puzzles, its targets and how; each predicts as its place says."""
    found = {}

    def learn(self, name, size, items, targets, settings):
        place = len(found)
        found[name] = (size, [one.id for one in items], targets, settings)
        return lambda asked: F.one_hot(torch.full((len(asked),), place), MOVES).float() * 5

    monkeypatch.setattr(Seed, "_learn", learn)
    return found


def test_who_is_told_what_by_whom(told, tmp_path):
    seed = Seed(SMALL, small_world(), 3, RunFolder(tmp_path))
    marks = seed.arms()
    assert set(marks) == set(ARMS)
    own, told_to, fresh = ([one.id for one in part] for part in (seed.own, seed.told, seed.fresh))
    assert not set(own) & set(told_to) | set(own) & set(fresh) | set(told_to) & set(fresh)
    sizes = {name: one[0] for name, one in told.items()}
    assert [name for name, size in sizes.items() if size == "weak"] == ["weak", "few"]
    assert [name for name, size in sizes.items() if size == "middle"] == ["middle"]
    items = {name: one[1] for name, one in told.items()}
    assert items["weak"] == own
    assert items["few"] == own[:2]
    assert items["bootstrapped"] == fresh
    assert all(items[name] == told_to for name in ("naive", "product", "direct", "middle", "ceiling"))
    place = {name: i for i, name in enumerate(told)}
    for name, supervisor in w2s_chess.SUPERVISORS.items():
        assert told[name][2].argmax(-1).tolist() == [place[supervisor]] * 4
        assert told[name][3].kind == ("product" if name == "product" else "hard")
        assert told[name][3].fit == SMALL.student
    right = w2s_chess.right(puzzle("x"))
    assert right == 64 * chess.A2 + chess.A8
    for name, fit in (("weak", SMALL.supervisor), ("few", SMALL.supervisor), ("ceiling", SMALL.student)):
        assert torch.equal(told[name][2], F.one_hot(torch.full((len(items[name]),), right), MOVES).float())
        assert (told[name][3].kind, told[name][3].fit) == ("soft", fit)
    assert seed.vault.reads["ceiling"] == 4


def test_the_answers_of_the_exam_are_released_to_nobody(told, tmp_path):
    seed = Seed(SMALL, small_world(), 3, RunFolder(tmp_path))
    with pytest.raises(UserError, match="sealed for evaluation"):
        seed.taught("weak", seed.world.test)


def test_a_student_that_looks_at_gold_labels_is_stopped(monkeypatch, tmp_path):
    seed = Seed(SMALL, small_world(), 3, RunFolder(tmp_path))
    monkeypatch.setattr(Seed, "_learn", lambda self, *told: self.vault.release([self.told[0].id], to="student"))
    seed.taught("ceiling", seed.told)
    with pytest.raises(UserError, match="naive asked for gold labels"):
        seed.follow("naive", lambda items: torch.zeros(len(items), MOVES), seed.told)


def test_marks_by_hand(told, tmp_path):
    seed = Seed(SMALL, small_world(), 3, RunFolder(tmp_path))
    right = [w2s_chess.right(one) for one in seed.world.test]

    def answers(*moves):
        return F.one_hot(torch.tensor(moves), MOVES).float()

    def king(start, end):
        return 64 * chess.parse_square(start) + chess.parse_square(end)

    seed.answers["weak"] = answers(right[0], right[1], king("g6", "f6"), 0)
    # Right once, where its supervisor is too; the last two answers are the supervisor's mistakes, one is illegal.
    seed.labels["naive"] = np.array([True])
    seed.sit("naive", lambda: lambda asked: answers(right[0], king("g6", "f6"), king("g6", "f6"), 0))
    found = seed.marks["naive"]
    assert found["right"] == "1000"
    shares = {what: one["value"] for what, one in found.items() if isinstance(one, dict)}
    assert shares == {
        "exact": 0.25,
        "mating": 0.25,
        "legal": 0.75,
        "legal labels": 1.0,
        "agreement": 0.75,
        "agreement on its right": 0.5,
        "agreement on its wrong": 1.0,
    }
    seed.answers["few"], seed.labels["direct"] = answers(0, 0, 0, right[3]), np.array([True])
    seed.sit("direct", lambda: lambda asked: answers(0, 0, 0, 0))
    assert seed.marks["direct"]["agreement"]["value"] == 0.75


def test_illegal_labels_are_kept_and_counted(told, tmp_path):
    seed = Seed(SMALL, small_world(), 3, RunFolder(tmp_path))
    mate = w2s_chess.right(seed.told[0])
    quiet = 64 * chess.A2 + chess.A3
    labels = F.one_hot(torch.tensor([mate, quiet, 0, mate]), MOVES).float() * 5
    seed.follow("naive", lambda asked: labels, seed.told)
    assert len(told["naive"][1]) == 4
    assert seed.labels["naive"].tolist() == [True, True, False, True]


@pytest.mark.parametrize("words", ["stockfish is not installed; install it", "python-chess is not installed; pip"])
def test_a_skipped_study_says_so_and_holds_nothing(tmp_path, monkeypatch, words):
    monkeypatch.setattr(w2s_chess, "missing", lambda: words)
    monkeypatch.setattr(w2s_chess, "prepare", None)
    result = w2s_chess.run(tmp_path, [10])
    json.dumps(result, allow_nan=False)
    assert result["skipped"] == words
    assert table(result) == f"w2s_chess was skipped: {words}"
    assert [one["holds"] for one in result["criteria"]] == [False] * 3
    assert not list(tmp_path.iterdir())


def test_the_table_names_every_arm():
    others = {what: {"value": 0.5} for what in w2s_chess.SHOWN[1:]}
    arms = {name: [one | others for one in ones] for name, ones in GOOD.items()}
    lines = table({"arms": arms}).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in ARMS]
    naive = next(line for line in lines if line.startswith("| naive"))
    assert "| weak | 0.500 [0.500, 0.500] |" in naive
    assert "| 0.310 [" in naive


TINY = Plan(
    data=DataPlan(placements=2400, games=4, parts=2),
    rules={"strong": 3, "middle": 2},
    test=10,
    weak=12,
    few=6,
    transfer=10,
    supervisor=w2s_chess._epochs(1, 3e-3),
    student=w2s_chess._epochs(1, 1e-3),
)


@pytest.mark.slow
@pytest.mark.skipif(w2s_chess_data.stockfish() is None, reason="the program Stockfish is not installed")
def test_a_whole_run_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(w2s_chess, "QUICK", TINY)
    for module in (w2s_chess, w2s_chess_data):
        monkeypatch.setattr(module, "side_by_side", lambda work, items: [work(item) for item in items])
    result = w2s_chess.run(tmp_path, [3], quick=True)
    json.dumps(result, allow_nan=False)
    assert {name: len(ones) for name, ones in result["arms"].items()} == dict.fromkeys(ARMS, 1)
    assert result["data"]["engine"].startswith("Stockfish")
    assert all(one["exact"]["value"] == one["mating"]["value"] for ones in result["arms"].values() for one in ones)
    monkeypatch.setattr(w2s_chess, "Seed", None)
    again = w2s_chess.run(tmp_path, [3], quick=True)
    assert again["arms"] == result["arms"]
    assert again["criteria"] == result["criteria"]
