"""The weight of the KL: Ziegler's rule by hand, its ways to go wrong, and why the loss uses k2."""

import json

import pytest
import torch

from holdfast.config import Settings, load
from holdfast.errors import RunError, UserError
from holdfast.losses.logprob import kl_k1, kl_k2, kl_k3
from holdfast.training.kl import KlController, KlSettings


def controller(**settings):
    return KlController(KlSettings(**{"coef": 0.05, "control": "adaptive", "target": 0.06, **settings}))


@pytest.mark.parametrize(
    "kl, coef", [(0.12, 0.050128), (0.06, 0.05), (0.0, 0.049872), (0.063, 0.050032), (9, 0.050128)]
)
def test_one_step_by_hand(kl, coef):
    one = controller()
    one.observe(kl, samples=128)
    assert one.coef == pytest.approx(coef, abs=1e-12)


def test_the_weight_finds_the_target():
    one, distance = controller(horizon=1000.0), 0.5
    for _ in range(2000):
        distance = 0.002 / one.coef  # the tighter it holds, the nearer the policy stays
        one.observe(distance, samples=100)
    assert distance == pytest.approx(0.06, rel=1e-3)
    assert one.coef == pytest.approx(0.002 / 0.06, rel=1e-3)


def test_a_fixed_weight_stays():
    one = controller(control="fixed")
    for kl in (9.0, 0.0, float("nan")):
        one.observe(kl, samples=10**6)
    assert one.coef == 0.05


def test_a_raised_weight_is_steered_on_and_never_loosened():
    one, plain = controller(), controller()
    one.raise_to(2)
    assert one.coef == 0.1
    for each in (one, plain):
        each.observe(0.12, samples=128)
    assert one.coef == pytest.approx(2 * plain.coef, rel=1e-15)
    one.raise_to(4)
    one.raise_to(2)
    assert (one.factor, one.coef) == (4, pytest.approx(4 * plain.coef, rel=1e-15))
    for wrong in (0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="at least 1 and finite"):
            one.raise_to(wrong)


def test_the_state_is_everything():
    one, other = controller(), controller()
    one.observe(0.2, samples=512)
    one.raise_to(2)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for each in (one, other):
        each.observe(0.01, samples=64)
    assert (one.coef, one.factor, one.state_dict()) == (other.coef, other.factor, other.state_dict())


def test_a_weight_cannot_be_steered_by_no_number():
    with pytest.raises(RunError, match="KL per token is nan"):
        controller().observe(float("nan"), samples=1)


def test_a_horizon_too_short():
    one = controller(horizon=100.0)
    one.observe(0.0, samples=499)
    assert one.coef > 0
    with pytest.raises(UserError, match=r"kl\.horizon is 100 answers, too few for iterations of 500"):
        one.observe(0.0, samples=500)


class Method(Settings):
    kl: KlSettings = KlSettings()


def test_a_plain_number_is_the_weight():
    assert load(Method, overrides=["kl=0.3"]).kl == KlSettings(coef=0.3)
    assert load(Method, overrides=["kl=0"]).kl == KlSettings(coef=0)
    assert load(Method, overrides=["kl.mode=reward_only"]).kl == KlSettings(mode="reward_only")
    assert load(Method).kl.coef == 0.02


@pytest.mark.parametrize(
    "override, words",
    [
        ("kl=-1", "kl.coef: .*greater than or equal to 0"),
        ("kl=true", "kl: .*dictionary"),
        ("kl={control: adaptive, coef: 0}", "kl: control=adaptive multiplies coef and cannot leave zero"),
        ("kl.estimator=k3", "kl.estimator: .*'k2'"),
        ("kl.target=0", "kl.target: .*greater than 0"),
    ],
)
def test_settings_that_cannot_be(override, words):
    with pytest.raises(UserError, match=words):
        load(Method, overrides=[override])


def test_only_k2_in_the_loss_has_the_gradient_of_the_kl():
    """Every token of a small vocabulary, weighed by its probability, instead of samples."""
    logits = torch.tensor([0.3, -1.2, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    logp, ref = logits.log_softmax(0), torch.tensor([1.0, 0.5, -0.5, -1.0], dtype=torch.float64).log_softmax(0)
    p, q = logp.exp(), ref.exp()

    def gradient(value):
        return torch.autograd.grad(value, logits, retain_graph=True)[0].tolist()

    wanted, other = gradient((p * (logp - ref)).sum()), gradient((q * (ref - logp)).sum())
    in_loss = {each: gradient((p.detach() * each(logp, ref)).sum()) for each in (kl_k1, kl_k2, kl_k3)}
    assert in_loss[kl_k2] == pytest.approx(wanted, abs=1e-12)
    assert in_loss[kl_k3] == pytest.approx(other, abs=1e-12)
    assert in_loss[kl_k1] == pytest.approx([0.0] * 4, abs=1e-12)
    assert max(abs(a - b) for a, b in zip(wanted, other)) > 0.1
