import pytest
from pydantic import ValidationError

from holdfast.errors import UserError
from holdfast.rollout.types import Sampling


def test_defaults_are_the_policy_itself():
    assert Sampling().unbiased
    Sampling().require_unbiased()


@pytest.mark.parametrize(
    "setting, unbiased",
    [
        ({"temperature": 0.7}, True),
        ({"top_p": 0.9}, False),
        ({"top_k": 5}, False),
        ({"repetition_penalty": 1.2}, False),
        ({"greedy": True}, False),
    ],
)
def test_training_refuses_every_other_distribution_by_name(setting, unbiased):
    sampling = Sampling(**setting)
    assert sampling.unbiased is unbiased
    (name, value) = next(iter(setting.items()))
    with pytest.raises(UserError, match=f"sampling has {name}={value} .needs"):
        sampling.require_unbiased()


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": 0},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"repetition_penalty": 0.9},
        {"max_new_tokens": 0},
        {"top_P": 0.5},
    ],
)
def test_bounds(setting):
    with pytest.raises(ValidationError, match=next(iter(setting))):
        Sampling(**setting)
