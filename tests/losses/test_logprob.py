import math

import pytest
import torch
from torch.nn.functional import cross_entropy, linear
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from holdfast.losses.logprob import (
    kl_k1,
    kl_k2,
    kl_k3,
    kl_loss,
    logits_logprobs,
    token_logprobs,
    token_logprobs_entropy,
)

N, H, V = 11, 4, 23


def head(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()

    labels = torch.randint(V, (N,), generator=generator)
    return draw(N, H), draw(V, H), draw(V), labels


def plain(hidden, weight, bias, labels, temperature):
    logits = (hidden @ weight.T + bias) / temperature
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    return -cross_entropy(logits, labels, reduction="none"), entropy


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("chunk", "held"), [(1, 0), (4, 0), (4, N * V), (11, 0), (1024, 0)])
def test_chunks_equal_the_plain_form_in_value_and_gradient(chunk, held, temperature):
    hidden, weight, bias, labels = head()
    scale = torch.linspace(-1, 1, N, dtype=torch.float64)
    inputs = (hidden, weight, bias)

    logp, entropy = plain(hidden, weight, bias, labels, temperature)
    slopes = torch.autograd.grad((scale * logp).sum(), inputs, retain_graph=True)
    both = torch.autograd.grad((scale * logp + scale.flip(0) * entropy).sum(), inputs)

    options = {"bias": bias, "temperature": temperature, "chunk": chunk, "held": held}
    alone = token_logprobs(hidden, weight, labels, **options)
    assert_close(alone, logp, rtol=1e-12, atol=1e-12)
    assert_close(torch.autograd.grad((scale * alone).sum(), inputs), slopes, rtol=1e-12, atol=1e-12)

    pair = token_logprobs_entropy(hidden, weight, labels, **options)
    assert_close(pair, (logp, entropy), rtol=1e-12, atol=1e-12)
    loss = (scale * pair[0] + scale.flip(0) * pair[1]).sum()
    assert_close(torch.autograd.grad(loss, inputs), both, rtol=1e-12, atol=1e-12)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements any operation returned, forward and backward."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(item, torch.Tensor):
                self.elements = max(self.elements, item.numel())
        return out


@pytest.mark.parametrize("function", [token_logprobs, lambda *a, **k: sum(token_logprobs_entropy(*a, **k))])
def test_all_logits_never_exist_at_once(function):
    rows, width, vocabulary, chunk = 64, 2, 50, 8
    hidden = torch.randn(rows, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    with LargestTensor() as largest:
        function(hidden, weight, torch.zeros(rows, dtype=torch.long), chunk=chunk).sum().backward()
    assert largest.elements == chunk * vocabulary


def test_what_forward_keeps_for_backward_holds_no_logits():
    kept = []
    hidden, weight, _, labels = head()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        token_logprobs(hidden, weight, labels, chunk=4)
    assert max(t.numel() for t in kept if t.data_ptr() != weight.data_ptr()) < 4 * V
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        token_logprobs(hidden, weight, labels, chunk=4, held=len(labels) * V)
    assert sum(t.numel() for t in kept if t.shape[-1] == V) == len(labels) * V, "few enough are held"


def test_half_precision_is_lifted_before_the_normaliser():
    hidden, weight, bias, labels = head(torch.bfloat16)
    logits = linear(hidden, weight, bias).detach()
    expected = -cross_entropy(logits.double(), labels, reduction="none").float()
    assert_close(token_logprobs(hidden, weight, labels, bias=bias), expected, rtol=1e-6, atol=1e-6)
    assert_close(logits_logprobs(logits, labels), expected, rtol=1e-6, atol=1e-6)
    assert token_logprobs(hidden, weight, labels, bias=bias, chunk=4).dtype == torch.float32


def test_frozen_weight_and_no_grad():
    hidden, weight, _, labels = head()
    token_logprobs(hidden, weight.detach(), labels, chunk=4).sum().backward()
    assert hidden.grad is not None
    with torch.no_grad():
        assert not token_logprobs(hidden, weight, labels, chunk=4).requires_grad


def test_no_rows_give_no_values_and_a_zero_gradient():
    _, weight, _, _ = head()
    hidden = torch.zeros(0, H, dtype=torch.float64, requires_grad=True)
    logp = token_logprobs(hidden, weight, torch.zeros(0, dtype=torch.long))
    assert logp.shape == (0,)
    logp.sum().backward()
    assert not weight.grad.any()


def test_logits_form_equals_a_double_loop():
    logits = torch.randn(2, 3, V, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    labels = torch.tensor([[0, 5, 22], [7, 7, 1]])
    for b in range(2):
        for t in range(3):
            scaled = [float(z) / 1.5 for z in logits[b, t]]
            normaliser = sum(torch.tensor(scaled, dtype=torch.float64).exp().tolist())
            expected = scaled[labels[b, t]] - float(torch.tensor(normaliser, dtype=torch.float64).log())
            assert float(logits_logprobs(logits, labels, 1.5)[b, t]) == pytest.approx(expected, abs=1e-12)


def test_errors_say_what_was_given():
    hidden, weight, _, labels = head()
    with pytest.raises(ValueError, match=r"hidden must be \(N, H\) and labels \(N,\), got \(11, 4\) and \(10,\)"):
        token_logprobs(hidden, weight, labels[:-1])
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        token_logprobs(hidden, weight, labels, temperature=0)


def policies():
    generator = torch.Generator().manual_seed(5)
    p = torch.randn(6, dtype=torch.float64, generator=generator).requires_grad_()
    q = torch.randn(6, dtype=torch.float64, generator=generator)
    return p, q, (p.log_softmax(-1).exp() * (p.log_softmax(-1) - q.log_softmax(-1))).sum()


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_expectation_of_k1_and_k3_is_the_divergence(estimator):
    p, q, divergence = policies()
    logp = p.log_softmax(-1).detach()
    expectation = (logp.exp() * estimator(logp, q.log_softmax(-1))).sum()
    assert expectation.item() == pytest.approx(divergence.item(), abs=1e-12)


def test_expected_gradient_of_k2_is_that_of_the_divergence():
    p, q, divergence = policies()
    logp = p.log_softmax(-1)
    (expected,) = torch.autograd.grad(divergence, p, retain_graph=True)
    (slope,) = torch.autograd.grad((logp.detach().exp() * kl_k2(logp, q.log_softmax(-1))).sum(), p)
    assert_close(slope, expected, rtol=1e-12, atol=1e-12)


def test_estimators_by_hand_and_at_equality():
    logp, ref = torch.tensor([-1.0], dtype=torch.float64), torch.tensor([-1.5], dtype=torch.float64)
    assert kl_k1(logp, ref).item() == 0.5
    assert kl_k2(logp, ref).item() == 0.125
    assert kl_k3(logp, ref).item() == pytest.approx(0.10653065971263342, abs=1e-15)
    for estimator in (kl_k1, kl_k2, kl_k3):
        assert estimator(logp, logp).item() == 0.0


def drawn_by(logits):
    """The log-probabilities of every token, and what an expectation over the tokens drawn weighs them with."""
    logp = logits.log_softmax(-1)
    return logp, logp.detach().exp()


@pytest.mark.parametrize(
    "estimator, value, slope",
    [("k1", 0.5, 1.0), ("k2", 0.125, 0.5), ("k3", 0.10653066, 0.39346934), ("ratio_k3", 0.10653066, 0.5)],
)
def test_each_loss_and_its_slope_by_hand(estimator, value, slope):
    logp = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    loss = kl_loss(estimator, logp, torch.tensor([-1.5], dtype=torch.float64), logp)
    assert loss.item() == pytest.approx(value, abs=1e-8)
    assert torch.autograd.grad(loss.sum(), logp)[0].item() == pytest.approx(slope, abs=1e-8)


EXACT = [-0.030963, -0.190363, 0.221326]


@pytest.mark.parametrize(
    "estimator, expected",
    [
        ("k1", [0.0, 0.0, 0.0]),  # holds nothing
        ("k2", EXACT),
        ("k3", [0.022509, -0.232468, 0.209959]),  # pushes the first token the other way
        ("ratio_k3", EXACT),
    ],
)
def test_expected_gradients_on_three_tokens(estimator, expected):
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([0.1, 0.4, -0.3], dtype=torch.float64).log_softmax(-1)
    logp, p = drawn_by(logits)
    divergence = (logp.exp() * (logp - ref)).sum()
    assert divergence.item() == pytest.approx(0.153331, abs=1e-6)
    assert torch.autograd.grad(divergence, logits, retain_graph=True)[0].tolist() == pytest.approx(EXACT, abs=1e-6)
    (slope,) = torch.autograd.grad((p * kl_loss(estimator, logp, ref, logp)).sum(), logits)
    assert slope.tolist() == pytest.approx(expected, abs=1e-6)


def test_the_gradient_of_k3_is_that_of_the_other_divergence():
    p, q, _ = policies()
    logp, weights = drawn_by(p)
    ref = q.log_softmax(-1)
    (other,) = torch.autograd.grad((ref.exp() * (ref - logp)).sum(), p, retain_graph=True)
    (slope,) = torch.autograd.grad((weights * kl_loss("k3", logp, ref)).sum(), p)
    assert_close(slope, other, rtol=1e-12, atol=1e-12)


def test_ratio_k3_is_exact_for_tokens_of_another_policy_too():
    p, q, divergence = policies()
    drawer = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(6)).log_softmax(-1)
    logp = p.log_softmax(-1)
    expectation = (drawer.exp() * kl_loss("ratio_k3", logp, q.log_softmax(-1), drawer)).sum()
    assert expectation.item() == pytest.approx(divergence.item(), abs=1e-12)
    (expected,) = torch.autograd.grad(divergence, p, retain_graph=True)
    assert_close(torch.autograd.grad(expectation, p)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "estimator, share",
    [
        ("k2", 0.3 * math.e**2 / (0.3 * math.e**2 + 0.7)),  # the optimum, reference * exp(reward / beta)
        ("ratio_k3", 0.3 * math.e**2 / (0.3 * math.e**2 + 0.7)),
        ("k3", (0.5 + math.sqrt(0.85)) / 2),  # that of the other divergence, the root of p^2 - p / 2 - 0.15
        ("k1", 1.0),  # unbounded
    ],
)
def test_where_two_arms_come_to_rest(estimator, share):
    """Rewards 1 and 0, reference 0.3 and 0.7, beta 0.5, by the expected gradient."""
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    rewards, ref = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.3, 0.7], dtype=torch.float64).log()
    for _ in range(400):
        logp, p = drawn_by(logits)
        advantages = rewards - (p * rewards).sum()
        loss = (p * (0.5 * kl_loss(estimator, logp, ref, logp) - advantages * logp)).sum()
        logits.data -= 2 * torch.autograd.grad(loss, logits)[0]
    # 2e-3: without a KL that holds, certainty is approached as 1 / steps.
    assert logits.softmax(-1)[0].item() == pytest.approx(share, abs=2e-3 if estimator == "k1" else 1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "ratio_k3"])
def test_a_kl_behind_the_mask_reaches_neither_loss_nor_gradient(estimator):
    logp = torch.tensor([-1.0, -math.inf, math.nan], requires_grad=True)
    ref, old = torch.tensor([-1.5, -math.inf, 1.0]), torch.tensor([-1.0, math.nan, math.inf])
    loss = kl_loss(estimator, logp, ref, old, mask=torch.tensor([True, False, False]))
    (slope,) = torch.autograd.grad(loss.sum(), logp)
    assert loss[0] != 0
    assert slope[0] != 0
    assert loss[1:].tolist() == slope[1:].tolist() == [0.0, 0.0]


def test_no_exponent_overflows_and_a_token_far_too_likely_is_still_pulled_back():
    logp = torch.tensor([-1e4, 0.0], requires_grad=True)  # float32: exp overflows at 89
    ref = torch.tensor([0.0, -1e4])
    for estimator, slopes in {"k3": [0.0, 1.0], "k2": [-1e4, 1e4]}.items():
        loss = kl_loss(estimator, logp, ref)
        assert loss.isfinite().all()
        assert torch.autograd.grad(loss.sum(), logp)[0].tolist() == slopes
    for old in (torch.tensor([1e4, -1e4]), torch.tensor([-2e4, 1e4])):
        loss = kl_loss("ratio_k3", logp, ref, old)
        assert loss.isfinite().all()
        assert torch.autograd.grad(loss.sum(), logp)[0].isfinite().all()


def test_reference_and_sampler_are_constants_to_the_kl():
    logp, ref, old = torch.randn(3, 4, generator=torch.Generator().manual_seed(8)).requires_grad_()
    for estimator in ("k1", "k2", "k3", "ratio_k3"):
        slopes = torch.autograd.grad(kl_loss(estimator, logp, ref, old).sum(), (logp, ref, old), allow_unused=True)
        assert [slope is None for slope in slopes] == [False, True, True]


def test_the_kl_says_what_it_lacks():
    one = torch.zeros(1)
    with pytest.raises(ValueError, match="no estimator 'k4'; there are k1, k2, k3, ratio_k3"):
        kl_loss("k4", one, one)
    with pytest.raises(ValueError, match=r"ratio_k3 weighs each token by its ratio .* give old"):
        kl_loss("ratio_k3", one, one)
    assert kl_loss("k3", one.bfloat16(), one.bfloat16()).dtype == torch.float32
