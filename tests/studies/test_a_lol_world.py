"""The world of the study `a_lol`: what answers earn and mean, what the data look like, and which rewards are wrong."""

import numpy as np
import pytest
import torch

from holdfast.data.schema import Conversation
from holdfast.studies.a_lol_world import (
    CLASSES,
    HIDDEN,
    LETTERS,
    NUISANCE,
    PLACES,
    WORTH,
    Judged,
    World,
    effective_number,
    misjudged,
    read,
    template,
    untrained,
)

WORLD = World(7)
ASKED = Conversation.ask("c2 n1 n4")


def copy_of(hidden, number=2, world=WORLD):
    return [LETTERS[i] for i in world.hidden[number, hidden]]


def judged(words, asked=ASKED):
    return WORLD.judge(asked.answer(" ".join(words)))


@pytest.mark.parametrize("hidden, worth", [(0, 1.0), (1, 0.95), (2, 0.9), (3, 0.85)])
def test_a_perfect_copy_earns_what_its_hidden_answer_is_worth(hidden, worth):
    assert judged(copy_of(hidden)) == Judged(pytest.approx(worth), hidden)


def test_rewards_by_hand():
    words = copy_of(1)
    # A letter that no hidden answer of the class has there.
    never = [next(x for i, x in enumerate(LETTERS) if i not in WORLD.hidden[2, :, place]) for place in range(PLACES)]
    assert judged([*words[:4], *never[4:]]).reward == pytest.approx(0.95 * 4 / 6)
    assert judged(words[:5]).reward == pytest.approx(0.95 * 5 / 6 / 2)
    assert judged([*words, words[0]]).reward == pytest.approx(0.95 / 2)
    assert judged([words[0], *words]).reward < 0.95 / 2  # a letter too early, the others are out of place
    assert judged(["n1", *words[1:]]).reward == pytest.approx(0.95 * 5 / 6)
    assert judged(never).reward == judged([]).reward == 0
    assert judged(words, Conversation.ask("c3 n1 n4")).reward < 0.95


def test_the_reward_is_that_of_a_slow_loop():
    source = np.random.default_rng(0)
    for one in WORLD.copies(WORLD.prompts("x", 200, source), source):
        said, found = one.messages[1].text.split(" "), []
        for hidden in range(HIDDEN):
            right = 0
            for place in range(PLACES):
                right += LETTERS[WORLD.hidden[read(one), hidden, place]] == said[place]
            found.append((1, 0.95, 0.9, 0.85)[hidden] * right / 6)
        assert WORLD.judge(one).reward == pytest.approx(max(found), abs=1e-12)


def test_data_are_copied_as_badly_as_the_head_says():
    source = np.random.default_rng(3)
    asked = WORLD.prompts("data", 2000, source)
    meant = [WORLD.judge(one) for one in World(7, corrupted=0.0).copies(asked, source)]
    assert [one.reward for one in meant] == pytest.approx([WORTH[one.hidden] for one in meant])
    # A quarter of the copies mean each hidden answer; the standard errors are .01.
    assert np.bincount([one.hidden for one in meant]) / 2000 == pytest.approx([0.25] * 4, abs=0.04)
    kept, rewards = [], []
    for share in (0.7, 0.9):
        said = World(7, share).copies(asked, source)
        kept.append(np.mean([max((WORLD.hidden[read(one)] == places(one)).sum(-1)) == PLACES for one in said]))
        rewards.append(np.mean(WORLD.rewards(said)))
    # A bad copy is perfect by chance with probability (.4 + .6 / 16)^6 = .007; the standard errors are .01.
    assert kept == pytest.approx([0.305, 0.106], abs=0.04)
    # The prototype's data earn .568; the standard errors are .005 over answers and about .01 over worlds.
    assert rewards[0] == pytest.approx(0.568, abs=0.03)
    assert rewards[1] < rewards[0] - 0.05


def places(one):
    return [LETTERS.index(word) for word in one.response.split()]


def test_prompts_are_random_and_named():
    asked = WORLD.prompts("exam", 4000, np.random.default_rng(0))
    assert asked[17].id == "exam-17"
    shares = np.bincount([read(one) for one in asked], minlength=CLASSES) / len(asked)
    # The standard errors are .005.
    assert shares == pytest.approx([1 / 8] * 8, abs=0.02)
    assert {one.messages[0].text.split()[2] for one in asked} == set(NUISANCE)


def test_worlds_differ_by_seed_alone():
    assert (World(7, 0.9).hidden == WORLD.hidden).all()
    assert (World(8).hidden != WORLD.hidden).any()


def test_diversity_counts_hidden_answers_that_good_answers_mean():
    def said(*hidden):
        return [Conversation.ask(f"c{c} n0 n0").answer(" ".join(copy_of(h, c))) for c in range(CLASSES) for h in hidden]

    assert WORLD.diversity(said(0, 1, 2, 3)) == pytest.approx(4)
    assert WORLD.diversity(said(3, 3)) == pytest.approx(1)
    # exp of the entropy of 2/3 and 1/3.
    assert WORLD.diversity(said(0, 0, 1)) == pytest.approx(3 / 2 ** (2 / 3))
    poor = [ASKED.answer(" ".join(copy_of(0)[:3]))]
    assert WORLD.diversity(poor) == 0
    assert WORLD.diversity(said(0, 1) + poor) == pytest.approx(2)
    # One class of eight has two, the others nothing.
    assert WORLD.diversity(said(0, 1)[4:6]) == pytest.approx(2 / 8)


def test_the_effective_number_of_counts():
    assert effective_number(np.array([1.0, 1.0, 2.0])) == pytest.approx(2**1.5)
    assert effective_number(np.array([0.0, 3.0])) == 1
    assert effective_number(np.zeros(3)) == 0


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 1.0])
def test_so_many_rewards_are_those_of_another_answer(share):
    rewards = [i / 1000 for i in range(1000)]
    found = misjudged(rewards, share, np.random.default_rng(1))
    wrong = [i for i in range(1000) if found[i] != rewards[i]]
    # All rewards differ, so each replaced one shows.
    assert len(wrong) == round(1000 * share)
    assert set(found) <= set(rewards)
    if share == 1.0:
        # Drawn for each row alone, with replacement: about 1 - 1/e of the rewards occur; standard error .01.
        assert len(set(found)) / 1000 == pytest.approx(1 - np.exp(-1), abs=0.05)
        assert np.corrcoef(rewards, found)[0, 1] == pytest.approx(0, abs=0.15)  # a standard error of .03


def test_no_row_is_given_its_own_reward():
    for seed in range(20):
        found = misjudged([0.0, 1.0, 2.0], 1.0, np.random.default_rng(seed))
        assert all(reward != own for own, reward in enumerate(found)), seed


def test_a_row_is_four_tokens_and_seven_more_that_end_it():
    told = template()
    answer = ASKED.answer(" ".join(copy_of(0)))
    row = told.answered(answer)
    assert (row.prompt_length, row.length, row.ids[-1], row.truncated) == (4, 11, told.end_id, False)
    assert row.ids[:4] == told.prompt(ASKED).ids
    assert told.decode(row.response_ids) == answer.response
    assert len(told.tokenizer) == 8 + 8 + 8 + 16


def test_the_model_is_small_without_dropout_and_leaves_the_random_state_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, same, other = untrained(40, 1), untrained(40, 1), untrained(40, 2)
    assert torch.equal(before, torch.get_rng_state())
    ids = torch.tensor([[1, 2, 3]])
    one.train()
    assert torch.equal(one(ids).logits, same(ids).logits)
    assert not torch.equal(one(ids).logits, other(ids).logits)
    assert (one.config.n_layer, one.config.n_embd, one.config.n_head) == (2, 64, 4)
