"""The players of the study `w2s_chess`: biases by distance, pointers by hand, and a learner that keeps its base."""

import copy
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from holdfast.engine.log import RunFolder
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings
from holdfast.errors import UserError
from holdfast.studies import w2s_chess_model as model
from holdfast.studies.w2s_chess_data import Look, Rules
from holdfast.studies.w2s_chess_model import Block, ChessLearner, Novice, Player, Pointer, RuleTask, Size, untrained
from holdfast.training.transfer import TransferSettings

TINY = Size(8, 1, 2)


def random_boards(count, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 13, (count, 64), dtype=np.uint8))


def rules(count=40):
    """Made-up rules: from every square one may go to the next, and every third of these gives check."""
    legal = [64 * square + (square + 1) % 64 for square in range(64)]
    seen = Look(legal, [square % 3 == 0 for square in range(64)], [])
    return Rules.of([(board, seen) for board in random_boards(count).numpy()])


def test_offsets_are_differences_of_rank_and_file():
    found = model.offsets()
    for a in range(64):
        for b in range(64):
            assert divmod(int(found[a, b]), 15) == (b // 8 - a // 8 + 7, b % 8 - a % 8 + 7)
    assert (int(found.min()), int(found.max())) == (0, 224)


def test_pairs_at_the_same_distance_share_a_bias_and_the_way_back_has_its_own():
    block = untrained(Player, TINY, 0).body.blocks[0]
    with torch.no_grad():
        block.bias.normal_(generator=torch.Generator().manual_seed(0))
    bias = block.bias[:, model.offsets()]
    # a1 to b3, c4 to d6, g6 to h8: one file, two ranks.
    assert bias[:, 0, 17].tolist() == bias[:, 26, 43].tolist() == bias[:, 46, 63].tolist()
    assert bias[:, 0, 17].tolist() != bias[:, 17, 0].tolist()


def test_attention_is_the_usual_one_with_the_bias_added():
    torch.manual_seed(0)
    block, where = Block(TINY).double(), model.offsets()
    with torch.no_grad():
        block.bias.normal_()
    states = torch.randn(3, 64, 8, dtype=torch.float64)
    q, k, v = (
        part.view(3, 64, 2, 4).transpose(1, 2) for part in block.qkv(block.before_attention(states)).split(8, -1)
    )
    seen = F.scaled_dot_product_attention(q, k, v, attn_mask=block.bias[:, where].expand(3, -1, -1, -1))
    middle = states + block.out(seen.transpose(1, 2).reshape(3, 64, 8))
    expected = middle + block.mlp(block.before_mlp(middle))
    assert torch.allclose(block(states, where), expected, atol=1e-12, rtol=0)


def test_a_pointer_scores_every_way_from_square_to_square():
    torch.manual_seed(0)
    pointer, states = Pointer(8).double(), torch.randn(2, 64, 8, dtype=torch.float64)
    scores = pointer(states)
    assert scores.shape == (2, 4096)
    for start, end in ((0, 0), (3, 60), (60, 3), (63, 1)):
        by_hand = (pointer.start(states[1, start]) * pointer.end(states[1, end])).sum() / 8**0.5
        assert scores[1, 64 * start + end].item() == pytest.approx(by_hand.item(), abs=1e-12)


def test_a_player_knows_where_a_piece_stands():
    player = untrained(Player, TINY, 0)
    board = torch.zeros(2, 64, dtype=torch.uint8)
    board[0, 3], board[1, 4] = 6, 6
    first, second = player(board)
    assert not torch.allclose(first, second)


def test_weights_follow_from_the_seed_and_leave_the_random_state_alone():
    state = torch.random.get_rng_state()
    one, same, other = (untrained(Player, TINY, seed)(random_boards(2)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_loss_of_the_rules_by_hand():
    novice = untrained(Novice, TINY, 0).double()
    task = RuleTask(novice, rules())
    batch = task.collate([4, 2])
    assert torch.equal(batch.boards, random_boards(40)[[4, 2]])
    states = novice.body(batch.boards)
    for name, head, weight, step in (("legal", novice.legal, 5.0, 1), ("check", novice.check, 20.0, 3)):
        total = 0.0
        for scores in head(states).tolist():
            true = {64 * square + (square + 1) % 64 for square in range(0, 64, step)}
            for move, score in enumerate(scores):
                p = 1 / (1 + np.exp(-score))
                total -= weight * np.log(p) if move in true else np.log(1 - p)
        assert task.loss(batch)[name].total.item() == pytest.approx(total, rel=1e-9)
        assert float(task.loss(batch)[name].count) == task.counts(batch)[name] == 2 * 4096


def test_recall_and_precision_of_the_rules():
    task = RuleTask(untrained(Novice, TINY, 0), rules())
    batch = task.collate([0, 1])
    legal = torch.full((2, 4096), -1.0)
    legal[0, 1] = legal[0, 66] = legal[1, 0] = 1.0  # a1b1 and b1c1 are legal, a1a1 is not
    check = torch.full((2, 4096), -1.0)
    check[0, 1] = check[0, 66] = 1.0  # a1b1 gives check, b1c1 does not
    task._scores = lambda _: (legal, check)
    found = {name: float(one.mean) for name, one in task.metrics(batch).items()}
    assert found["legal recall"] == pytest.approx(2 / 128)
    assert found["legal precision"] == pytest.approx(2 / 3)
    assert found["check recall"] == pytest.approx(1 / 44)
    assert found["check precision"] == pytest.approx(1 / 2)


def test_the_exam_of_the_rules_is_apart(tmp_path, monkeypatch):
    seen = {}

    def fit(task, rows, exam, settings, run, *, stage, order):
        seen.update(rows=set(rows), exam=set(exam), drawn={i for step in range(1, 9) for i in order.chosen(step)})
        return type("Found", (), {"metrics": {}})

    monkeypatch.setattr(model, "fit", fit)
    model.learn_rules(TINY, rules(64), 8, 0, RunFolder(tmp_path))
    assert seen["rows"] == set(range(60))
    assert seen["exam"] == {60, 61, 62, 63}
    assert seen["drawn"] <= seen["rows"]
    assert len(seen["drawn"]) > 50


def test_rules_are_learned_and_a_finished_stage_is_loaded(tmp_path):
    novice, known = model.learn_rules(TINY, rules(64), 60, 0, RunFolder(tmp_path))
    losses = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    # A move is legal in one of 64 cases: to know no more than that costs 0.15, to know nothing 0.74.
    assert losses[0]["legal"] > 0.6
    assert losses[59]["legal"] < 0.35
    again, same = model.learn_rules(TINY, rules(64), 60, 0, RunFolder(tmp_path))
    assert same == known
    assert all(torch.equal(a, b) for a, b in zip(novice.parameters(), again.parameters()))


def test_a_player_begins_with_the_checks_and_is_a_copy():
    novice = untrained(Novice, TINY, 0)
    player, boards = novice.player(), random_boards(2)
    assert torch.equal(player(boards), novice.check(novice.body(boards)))
    before = copy.deepcopy(novice.state_dict())
    with torch.no_grad():
        for weight in player.parameters():
            weight.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in novice.state_dict().items())


SETTINGS = TransferSettings(
    fit=FitSettings(
        epochs=30, batch_size=8, optimiser=OptimiserSettings(learning_rate=1e-2, schedule="constant", warmup_ratio=0.0)
    )
)


def table(moves):
    return F.one_hot(torch.tensor(moves), 4096).float()


def learn(folder, base=None, seed=0, moves=(5, 700, 9, 4000, 77, 13, 1234, 6)):
    learner = ChessLearner(Size(16, 1, 2), random_boards_of, base)
    return learner.learn(range(8), table(moves), SETTINGS, seed=seed, run=RunFolder(folder), stage="one")


def random_boards_of(items):
    return random_boards(8, seed=5)[list(items)]


def test_a_learner_learns_its_moves_and_leaves_its_base(tmp_path):
    base = untrained(Player, Size(16, 1, 2), 3)
    before = copy.deepcopy(base.state_dict())
    player = learn(tmp_path / "based", base)
    assert player(range(8)).argmax(-1).tolist() == [5, 700, 9, 4000, 77, 13, 1234, 6]
    assert player([3]).argmax(-1).tolist() == [4000]
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    scratch = learn(tmp_path / "scratch", seed=1)
    assert not torch.equal(scratch(range(8)), player(range(8)))


def test_a_finished_stage_predicts_as_before_and_refuses_other_targets(tmp_path):
    first = learn(tmp_path)(range(8))
    assert torch.equal(learn(tmp_path)(range(8)), first)
    with pytest.raises(UserError, match="sha256"):
        learn(tmp_path, moves=(6, 700, 9, 4000, 77, 13, 1234, 6))


def test_the_seed_draws_the_weights_of_a_new_player(tmp_path):
    one, other = (learn(tmp_path / str(seed), seed=seed)(range(8)) for seed in (1, 2))
    # A step takes all rows here, so their order alone would change no more than the last digits.
    assert float((one - other).abs().max()) > 0.5
