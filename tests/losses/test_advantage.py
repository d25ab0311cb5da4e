import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from holdfast.losses.advantage import gae, leave_one_out, length_adaptive, mix, normalise, overlong, token_rewards
from holdfast.losses.logprob import kl_k1, kl_k2, kl_k3
from holdfast.losses.mask import from_lengths, span
from holdfast.losses.surrogate import reinforce


def t(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


ALL = torch.ones(1, 3, dtype=torch.bool)
KL = (t(-0.5, -1.0, -0.2) - t(-0.7, -0.9, -0.5))[None]
REWARDS = token_rewards(KL, t(2.0), ALL, coefficient=-0.02).rewards
COSTS = token_rewards(KL, t(1.5), ALL, coefficient=0.02).rewards
REWARD_VALUES, COST_VALUES = t(0.5, 0.8, 1.2)[None], t(0.1, 0.4, 0.9)[None]


def near(actual, *expected, tolerance=1e-9):
    assert actual.flatten().tolist() == pytest.approx(list(expected), abs=tolerance)


def test_shaped_rewards_and_costs_by_hand():
    near(REWARDS, -0.004, 0.002, 1.994)
    near(COSTS, 0.004, -0.002, 1.506)
    near(mix(REWARDS, {"harm": COSTS}, {"harm": 3.0}), -0.004, 0.002, -0.631)


def test_both_advantages_and_their_mixture_by_hand():
    reward, reward_returns = gae(REWARDS, REWARD_VALUES, ALL)
    near(reward, 1.394485, 1.1563, 0.794)
    near(reward_returns, 1.894485, 1.9563, 1.994)
    cost, cost_returns = gae(COSTS, COST_VALUES, ALL)
    near(cost, 1.324015, 1.0737, 0.606)
    near(cost_returns, 1.424015, 1.4737, 1.506)
    mixed = mix(reward, {"harm": cost}, {"harm": 3.0})
    near(mixed, -0.64439, -0.5162, -0.256)
    combined = (REWARDS - 3 * COSTS) / 4, (REWARD_VALUES - 3 * COST_VALUES) / 4
    assert_close(mixed, gae(*combined, ALL)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("start", [0, 2])
def test_padding_does_not_leak_into_advantages(start):
    mask = span(tensor([start]), tensor([start + 3]), size=7)
    values = torch.full((1, 7), float("nan"), dtype=torch.float64).masked_fill(mask, 0.2)
    rewards = token_rewards(torch.zeros_like(values), t(1.0), mask, coefficient=-1.0).rewards
    advantages, returns = gae(rewards, values, mask)
    near(advantages[mask], 0.722, 0.760, 0.800)
    near(returns[mask], 0.922, 0.960, 1.0)
    assert not advantages[~mask].any()
    assert not returns[~mask].any()


def test_gae_equals_the_sum_it_stands_for():
    """A_t = sum_l (gamma lam)^l delta_{t+l}, row by row, over the tokens of the mask alone."""
    generator = torch.Generator().manual_seed(7)
    gamma, lam = 0.9, 0.8
    rewards, values = torch.randn(2, 12, 9, dtype=torch.float64, generator=generator)
    mask = torch.rand(12, 9, generator=generator) < 0.6  # with gaps: they are skipped
    mask[0] = False
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for row in range(12):
        r, v = rewards[row][mask[row]].tolist(), values[row][mask[row]].tolist()
        deltas = [r[i] + gamma * (v[i + 1] if i + 1 < len(v) else 0.0) - v[i] for i in range(len(r))]
        slow = [
            sum((gamma * lam) ** (later - now) * deltas[later] for later in range(now, len(r))) for now in range(len(r))
        ]
        assert advantages[row][mask[row]].tolist() == pytest.approx(slow, abs=1e-12)
        slow_returns = [advantage + value for advantage, value in zip(slow, v, strict=True)]
        assert returns[row][mask[row]].tolist() == pytest.approx(slow_returns, abs=1e-12)


LOGP, REF = t(-1.0, -0.5, -2.0, -0.1)[None], t(-1.2, -0.5, -1.5, -0.4)[None]
FOUR = torch.ones(1, 4, dtype=torch.bool)
FOUR_VALUES = t(0.2, 0.1, 0.4, 0.3)[None]
FOUR_REWARDS = token_rewards(kl_k1(LOGP, REF), t(0.6), FOUR, coefficient=-0.05).rewards


def test_penalties_and_shaped_rewards_of_four_tokens_by_hand():
    near(kl_k1(LOGP, REF), 0.2, 0.0, -0.5, 0.3)
    near(kl_k2(LOGP, REF), 0.02, 0.0, 0.125, 0.045)
    near(kl_k3(LOGP, REF), 0.018731, 0.0, 0.148721, 0.040818, tolerance=1e-6)
    near(FOUR_REWARDS, -0.01, 0.0, 0.025, 0.585)


@pytest.mark.parametrize(
    "lam, expected, targets",
    [
        (0.0, (-0.11, 0.3, -0.075, 0.285), (0.09, 0.4, 0.325, 0.585)),
        (0.9, (0.307015, 0.46335, 0.1815, 0.285), (0.507015, 0.56335, 0.5815, 0.585)),
        (0.95, (0.351664, 0.485963, 0.19575, 0.285), (0.551664, 0.585963, 0.59575, 0.585)),
        (1.0, (0.4, 0.51, 0.21, 0.285), (0.6, 0.61, 0.61, 0.585)),
    ],
)
def test_gae_of_four_tokens_by_hand(lam, expected, targets):
    advantages, returns = gae(FOUR_REWARDS, FOUR_VALUES, FOUR, lam=lam)
    near(advantages, *expected, tolerance=1e-6)  # six digits are given
    near(returns, *targets, tolerance=1e-6)


def test_lambda_may_differ_from_answer_to_answer():
    generator = torch.Generator().manual_seed(15)
    rewards, values = torch.randn(2, 3, 6, dtype=torch.float64, generator=generator)
    mask = from_lengths(tensor([6, 2, 4]), size=6)
    lams = t(0.0, 0.5, 1.0)
    advantages, returns = gae(rewards, values, mask, 0.9, lams)
    for row, lam in enumerate(lams.tolist()):
        alone = gae(rewards[row : row + 1], values[row : row + 1], mask[row : row + 1], 0.9, lam)
        assert torch.equal(advantages[row : row + 1], alone[0])
        assert torch.equal(returns[row : row + 1], alone[1])


def test_the_tail_is_the_value_of_going_on():
    """An answer cut short, with the value of its next state, is the beginning of one that earns it there."""
    generator = torch.Generator().manual_seed(16)
    rewards, values = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator)
    mask = from_lengths(tensor([5, 3, 0]), size=5)
    tail, gamma = t(2.0, -1.5, 7.0), 0.9
    advantages, returns = gae(rewards, values, mask, gamma, 0.8, tail=tail)
    paid = rewards.clone()
    paid[0, 4] += gamma * 2.0
    paid[1, 2] -= gamma * 1.5
    expected = gae(paid, values, mask, gamma, 0.8)
    assert_close(advantages, expected[0], rtol=0, atol=1e-12)
    assert_close(returns, expected[1], rtol=0, atol=1e-12)
    assert not advantages[2].any()


def test_lambda_and_tail_take_the_width_of_the_values():
    single = FOUR_VALUES.float()
    advantages, returns = gae(single, single, FOUR, lam=t(0.5), tail=t(1.0))
    assert advantages.dtype == returns.dtype == torch.float32


@pytest.mark.parametrize("name", ["lam", "tail"])
def test_gae_refuses_one_number_for_several_answers(name):
    mask = from_lengths(tensor([3, 2]), size=3)
    with pytest.raises(ValueError, match=rf"{name} \(2, 1\), rows \(2,\)"):
        gae(torch.zeros(2, 3), torch.zeros(2, 3), mask, **{name: torch.zeros(2, 1)})


def test_without_penalty_and_discount_every_token_returns_the_score():
    generator = torch.Generator().manual_seed(17)
    mask = from_lengths(tensor([4, 1, 6]), size=6)
    score = t(1.5, -2.0, 0.25)
    values = torch.randn(3, 6, dtype=torch.float64, generator=generator)
    rewards = token_rewards(torch.randn_like(values), score, mask, coefficient=0.0).rewards
    _, returns = gae(rewards, values, mask, lam=1.0)
    assert_close(returns[mask], score[:, None].expand(3, 6)[mask], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "lam, later, left, tolerance",
    [(0.95, 100, 0.00592, 5e-6), (0.9, 100, 2.7e-5, 5e-7), (0.95, 500, 7e-12, 5e-13)],
)
def test_what_is_left_of_a_late_reward(lam, later, left, tolerance):
    rewards = torch.zeros(1, later + 1, dtype=torch.float64)
    rewards[0, -1] = 1.0
    advantages, _ = gae(rewards, torch.zeros_like(rewards), torch.ones_like(rewards, dtype=torch.bool), lam=lam)
    assert advantages[0, 0].item() == pytest.approx(left, abs=tolerance)  # of published digits


def test_lambda_grows_with_the_length_of_the_answer():
    lengths = tensor([0, 10, 20, 40, 100, 500, 2000, 8000])
    expected = [0, 0, 0, 0.5, 0.8, 0.96, 0.99, 0.9975]
    near(length_adaptive(lengths.double(), alpha=0.05), *expected, tolerance=1e-12)
    near(length_adaptive(lengths, alpha=0.05), *expected, tolerance=1e-6)
    floor = [0.9, 0.9, 0.9, 0.9, 0.9, 0.96, 0.99, 0.9975]
    near(length_adaptive(lengths.double(), alpha=0.05, floor=0.9), *floor, tolerance=1e-12)


def test_length_adaptive_refuses_what_gives_no_lambda():
    for alpha in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"alpha must be above 0, got {alpha}"):
            length_adaptive(tensor([5]), alpha)
    for floor in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"floor must lie between 0 and 1, got {floor}"):
            length_adaptive(tensor([5]), 0.05, floor)


RAGGED = from_lengths(tensor([3, 1]), size=4)
RAW = t(1.0, 2.0, 3.0, 77.0, -1.0, 77.0, 77.0, 77.0).view(2, 4).masked_fill(~RAGGED, float("nan"))


def test_normalised_advantages_by_hand():
    scaled = normalise(RAW, RAGGED)
    near(scaled[RAGGED], -0.169031, 0.507092, 1.183216, -1.521277, tolerance=1e-6)  # six digits are given
    near(normalise(RAW, RAGGED, clip=0.12)[RAGGED], -0.12, 0.12, 0.12, -0.12)
    assert scaled[~RAGGED].tolist() == [0.0] * 4


def test_moments_of_others_count_where_they_are_given():
    own, theirs = torch.tensor([1.0, 5.0], dtype=torch.float64), torch.tensor([-2.0, 3.0, 0.5], dtype=torch.float64)
    everyone, mask = torch.cat([own, theirs]), torch.ones(2, dtype=torch.bool)
    whole = normalise(everyone, torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(normalise(own, mask, among=everyone), whole[:2])
    assert not torch.allclose(normalise(own, mask), whole[:2])


def test_normalising_adds_a_millionth_to_the_variance():
    near(normalise(t(0.0, 2e-3)[None], tensor([[True, True]])), -(0.5**0.5), 0.5**0.5)


def test_one_advantage_or_none_or_equal_ones_are_normalised_to_zero():
    one = torch.zeros_like(RAGGED)
    for mask in (one, one.index_put((tensor(0), tensor(1)), tensor(True))):
        assert not normalise(RAW, mask).any()
    assert not normalise(torch.full((2, 4), 0.7, dtype=torch.float64), RAGGED).any()


def test_gae_refuses_a_mask_of_another_shape():
    with pytest.raises(ValueError, match=r"rewards \(1, 3\), values \(1, 3\), mask \(3,\)"):
        gae(REWARDS, REWARD_VALUES, ALL[0])


def test_gae_gives_constants():
    values = REWARD_VALUES.clone().requires_grad_()
    assert not any(result.requires_grad for result in gae(REWARDS, values, ALL))


@pytest.mark.parametrize("multiplier", [0.0, 0.3, 20.0, 1000.0])
def test_strength_of_the_kl_penalty_does_not_depend_on_the_multiplier(multiplier):
    nothing = t(0.0)
    reward = token_rewards(KL, nothing, ALL, coefficient=-0.02).rewards
    cost = token_rewards(KL, nothing, ALL, coefficient=0.02).rewards
    assert_close(mix(reward, {"harm": cost}, {"harm": multiplier}), -0.02 * KL, rtol=0, atol=1e-12)


def test_score_lands_on_the_last_response_token_of_every_row():
    mask = span(tensor([1, 0, 3, 2]), tensor([4, 1, 5, 2]), size=5)  # the last row is empty
    rewards = token_rewards(torch.ones(4, 5), tensor([1.0, 2.0, 3.0, 4.0]), mask, coefficient=-0.5).rewards
    assert rewards.tolist() == [
        [0, -0.5, -0.5, 0.5, 0],
        [1.5, 0, 0, 0, 0],
        [0, 0, 0, -0.5, 2.5],
        [0, 0, 0, 0, 0],
    ]


def test_clamp_comes_after_the_penalty_and_is_counted():
    mask = from_lengths(tensor([3, 2]), size=4)
    kl = t(1000.0, 0.0, 5.0, 1000.0).expand(2, 4)
    shaped = token_rewards(kl, t(52.0, -60.0), mask, coefficient=-1.0, clamp=50.0)
    assert shaped.rewards.tolist() == [[-50, 0, 47, 0], [-50, -50, 0, 0]]
    assert (shaped.clamped.total.item(), shaped.clamped.count.item()) == (3, 5)
    unclamped = token_rewards(kl, t(52.0, -60.0), mask, coefficient=-1.0)
    assert unclamped.rewards[0].tolist() == [-1000, 0, 47, 0]
    assert unclamped.clamped.total.item() == 0


def test_what_stands_behind_the_mask_does_not_count():
    mask = from_lengths(tensor([2]), size=3)
    rewards = token_rewards(t(1.0, 1.0, float("nan"))[None], t(1.0), mask, coefficient=1.0).rewards
    assert rewards.tolist() == [[1.0, 2.0, 0.0]]


def test_leave_one_out_equals_a_double_loop():
    returns = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    groups = returns.view(3, 4).tolist()
    slow = [g[j] - sum(g[i] for i in range(4) if i != j) / 3 for g in groups for j in range(4)]
    near(leave_one_out(returns, 4), *slow, tolerance=1e-12)


def test_leave_one_out_policy_loss_by_both_formulas():
    returns, logp = t(1.0, 3.0), t(-2.0, -5.0)
    ours = reinforce(logp, leave_one_out(returns, 2)).mean.item()
    published = -sum((g - 2.0) * lp for g, lp in zip(returns.tolist(), logp.tolist(), strict=True)) / (2 - 1)
    assert ours == published == 3.0


def test_leave_one_out_ignores_a_constant_per_prompt():
    returns = t(1.0, 3.0, -2.0, 0.5)
    shifted = returns + t(7.0, 7.0, -4.0, -4.0)
    assert_close(leave_one_out(shifted, 2), leave_one_out(returns, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("k, message", [(1, "at least 2, got 1"), (3, r"\(4,\) are no whole groups of 3")])
def test_leave_one_out_refuses_bad_groups(k, message):
    with pytest.raises(ValueError, match=message):
        leave_one_out(torch.zeros(4), k)


def test_multiplier_zero_is_plain_reward_bit_for_bit():
    reward, cost = torch.randn(2, 50, generator=torch.Generator().manual_seed(9))
    assert torch.equal(mix(reward, {"harm": cost}, {"harm": 0.0}), reward)
    assert torch.equal(mix(reward, {}, {}), reward)


def test_large_multiplier_tends_to_minus_the_cost():
    reward, cost = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    assert_close(mix(reward, {"harm": cost}, {"harm": 1e12}), -cost, rtol=0, atol=1e-10)


def test_several_constraints_each_by_its_own_name():
    mixed = mix(t(1.0), {"a": t(2.0), "b": t(10.0)}, {"b": 1.0, "a": 2.0})
    near(mixed, (1 - 2 * 2 - 1 * 10) / 4)


def test_scaling_cost_and_multiplier_scales_the_mixture():
    """With no penalty, cost and its critic times a, and the multiplier over a: A times (1+l)/(1+l/a)."""
    multiplier, a = 3.0, 2.5
    reward, _ = gae(REWARDS, REWARD_VALUES, ALL)
    cost, _ = gae(COSTS, COST_VALUES, ALL)
    scaled, _ = gae(a * COSTS, a * COST_VALUES, ALL)
    before = mix(reward, {"harm": cost}, {"harm": multiplier})
    after = mix(reward, {"harm": scaled}, {"harm": multiplier / a})
    assert_close(after, before * (1 + multiplier) / (1 + multiplier / a), rtol=0, atol=1e-12)


def test_fixed_weight_shaping_is_the_frozen_multiplier_times_one_plus_nu():
    """R - nu C with KL (1 + nu) beta and the combined critic equals (1 + nu) times the Lagrangian mixture."""
    nu, beta = 1.7, 0.02
    shaping = token_rewards(KL, t(2.0) - nu * t(1.5), ALL, coefficient=-(1 + nu) * beta).rewards
    fixed, _ = gae(shaping, REWARD_VALUES - nu * COST_VALUES, ALL)
    reward, _ = gae(REWARDS, REWARD_VALUES, ALL)
    cost, _ = gae(COSTS, COST_VALUES, ALL)
    assert_close(fixed, (1 + nu) * mix(reward, {"harm": cost}, {"harm": nu}), rtol=0, atol=1e-12)


def test_mix_refuses_unknown_names_and_bad_multipliers():
    with pytest.raises(ValueError, match=r"costs \['harm'\] and multipliers \['hram'\]"):
        mix(t(1.0), {"harm": t(1.0)}, {"hram": 1.0})
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"finite and not negative, got \{{'harm': {bad}\}}"):
            mix(t(1.0), {"harm": t(1.0)}, {"harm": bad})


def test_an_answer_pays_for_coming_near_the_limit():
    penalty = overlong(tensor([1, 16, 17, 18, 20, 21]), limit=20, cache=4)
    assert penalty.tolist() == [0, 0, -0.25, -0.5, -1, -1]
    assert overlong(tensor([16, 18]), limit=20, cache=4 * 0.5).tolist() == [0, 0]  # a cache need not be whole
    assert overlong(tensor([10]), limit=20, cache=20).tolist() == [-0.5]


@pytest.mark.parametrize("cache", [0, -1, 21, float("nan")])
def test_a_cache_outside_the_limit_is_refused(cache):
    with pytest.raises(ValueError, match=f"cache is a part of the limit of 20 tokens, .* got {cache}"):
        overlong(tensor([1]), limit=20, cache=cache)
