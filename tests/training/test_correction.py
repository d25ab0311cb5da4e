"""What answers of another sampler weigh, and that the policy's own weigh one."""

from types import SimpleNamespace

import pytest
import torch

from holdfast.training.correction import CorrectionSettings, weigh

MASK = torch.tensor([[True, True, True], [True, True, False]])
SAMPLER = torch.tensor([[-2.0, -1.0, -3.0], [-1.0, -1.5, 0.0]])
# Ratios of tokens 1.349859, .904837, 2.459603; their product is 3.004166 and its third root 1.442917.
AWAY = torch.tensor([[0.3, -0.1, 0.9], [0.0, 0.1, 0.0]])


def experience(sampler=SAMPLER):
    return SimpleNamespace(
        old_logprobs=(SAMPLER + AWAY).where(MASK, 0.0), sampler_logprobs=sampler, response_mask=MASK, size=2
    )


def test_tokens_weigh_their_ratio_up_to_the_cap():
    found = weigh(CorrectionSettings(), experience())
    expected = [[1.349859, 0.904837, 2.0], [1.0, 1.105171, 0.0]]
    torch.testing.assert_close(found.weights, torch.tensor(expected), rtol=0, atol=1e-6)
    assert found.keep.tolist() == [True, True]
    assert found.numbers["mismatch/capped"] == pytest.approx(1 / 5)
    assert found.numbers["mismatch/weight"] == pytest.approx((1.349859 + 0.904837 + 2.0 + 1.0 + 1.105171) / 5, abs=1e-6)
    assert found.numbers["mismatch/dropped"] == 0
    assert found.numbers["mismatch/kl"] > 0


@pytest.mark.parametrize(
    "settings, keep",
    [
        ({"drop": "product"}, [False, True]),  # 3.004 is above 3
        ({"drop": "geometric"}, [True, True]),
        ({"drop": "geometric", "high": 1.4}, [False, True]),
        ({"drop": "product", "high": 4.0}, [True, True]),
        ({"drop": "none", "high": 1.0}, [True, True]),
    ],
)
def test_answers_too_far_from_the_sampler_are_left_out(settings, keep):
    found = weigh(CorrectionSettings(**settings), experience())
    assert found.keep.tolist() == keep
    assert found.weights.any(-1).tolist() == keep
    assert found.numbers["mismatch/dropped"] == 1 - sum(keep) / 2


def test_a_ratio_below_the_lower_border_is_left_out_too():
    turned = SimpleNamespace(
        old_logprobs=SAMPLER, sampler_logprobs=(SAMPLER + AWAY).where(MASK, 0.0), response_mask=MASK, size=2
    )
    assert weigh(CorrectionSettings(drop="product", low=0.4), turned).keep.tolist() == [False, True]


def test_where_the_policy_was_the_sampler_all_tokens_weigh_one():
    found = weigh(CorrectionSettings(cap=1.0, drop="product", low=1.0, high=1.0), experience(sampler=None))
    assert torch.equal(found.weights, MASK.float())
    assert found.keep.tolist() == [True, True]
    assert found.numbers == {}
