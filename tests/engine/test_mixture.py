"""The benign share of every iteration: kept exactly, in any order, by every process and after every resume."""

import pytest

from holdfast.engine.mixture import Mixture
from holdfast.errors import UserError

BENIGN = [i % 3 == 0 for i in range(18)]  # 6 benign and 12 other prompts


@pytest.mark.parametrize("share, benign", [(0.0, 0), (0.25, 2), (0.3, 2), (0.5, 3), (2 / 3, 4), (1.0, 6)])
def test_every_iteration_holds_the_share_and_no_prompt_twice(share, benign):
    mixture = Mixture(BENIGN, share)
    for number in range(12):
        chosen = mixture.take(6, number, seed=3)
        assert len(set(chosen)) == 6
        assert sum(BENIGN[i] for i in chosen) == benign


def test_each_kind_runs_through_epochs_of_its_own_in_new_orders():
    mixture = Mixture(BENIGN, 0.5)
    rounds = [[mixture.take(6, 2 * epoch + half, seed=3) for half in (0, 1)] for epoch in range(4)]
    for first, second in rounds:
        assert sorted(i for i in first + second if BENIGN[i]) == [0, 3, 6, 9, 12, 15], "two iterations are an epoch"
        assert len({i for i in first + second if not BENIGN[i]}) == 6, "half an epoch of the others"
    others = [i for pair in rounds[:2] for half in pair for i in half if not BENIGN[i]]
    assert sorted(others) == [i for i in range(18) if not BENIGN[i]]
    orders = [[i for half in pair for i in half if BENIGN[i]] for pair in rounds]
    assert len({tuple(order) for order in orders}) == 4


def test_kinds_of_one_size_are_not_always_paired_alike():
    mixture = Mixture([True] * 8 + [False] * 8, 0.5)
    pairs = [{i % 8 for i in mixture.take(2, number, seed=0)} for number in range(16)]
    assert any(len(pair) == 2 for pair in pairs), "one order for both kinds would pair each prompt with its twin"


def test_the_choice_depends_on_iteration_and_seed_only():
    taken = [Mixture(BENIGN, 0.5).take(6, number, seed=3) for number in range(5)]
    mixture = Mixture(BENIGN, 0.5)
    assert [mixture.take(6, number, seed=3) for number in reversed(range(5))] == taken[::-1]
    assert [mixture.take(6, number, seed=4) for number in range(5)] != taken


def test_contiguous_shares_of_processes_get_both_kinds():
    mixture = Mixture([True] * 40 + [False] * 40, 0.5)
    first = [sum(i < 40 for i in mixture.take(16, number, seed=1)[:8]) for number in range(10)]
    assert min(first) >= 1
    assert max(first) <= 7
    assert len(set(first)) > 1


def test_a_kind_with_too_few_prompts_says_what_to_set():
    with pytest.raises(UserError, match=r"share of 0.5 takes 8 benign prompts in an iteration of 16, and only 6 are"):
        Mixture(BENIGN, 0.5).take(16, 0, seed=0)
    with pytest.raises(UserError, match=r"takes 13 other prompts .* only 12 are given; add other prompts, lower"):
        Mixture(BENIGN, 0.2).take(16, 0, seed=0)
    with pytest.raises(UserError, match=r"is 0 benign and 4 other prompts, so one kind would never be seen; raise"):
        Mixture(BENIGN, 0.1).take(4, 0, seed=0)
    with pytest.raises(UserError, match=r"is 4 benign and 0 other prompts"):
        Mixture(BENIGN, 0.9).take(4, 0, seed=0)
    with pytest.raises(UserError, match=r"benign share of prompts is 1.5; give a number from 0 to 1"):
        Mixture(BENIGN, 1.5)


def test_a_share_of_all_or_nothing_needs_no_prompts_of_the_other_kind():
    assert sorted(Mixture([True] * 4, 1.0).take(4, 0, seed=0)) == [0, 1, 2, 3]
    assert sorted(Mixture([False] * 4, 0.0).take(4, 0, seed=0)) == [0, 1, 2, 3]
