import pytest
import torch

from holdfast.errors import UserError
from holdfast.models.router import Router

U = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


def filled(kind):
    """A router whose weights are no longer zero."""
    router = Router(kind, features=6, heads=3, hidden=4)
    with torch.no_grad():
        for weight in router.parameters():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    return router


@pytest.mark.parametrize("kind", ["static", "linear", "mlp"])
def test_a_new_router_is_uniform_and_learns(kind):
    router = Router(kind, features=6, heads=3)
    logits = router(U)
    assert logits.shape == (5, 3)
    assert (logits == 0).all()
    logits[:, 0].sum().backward()
    last = router.logits if kind == "static" else router.last.weight
    assert last.grad.abs().sum() > 0


def test_a_static_router_says_the_same_to_everybody():
    logits = filled("static")(U)
    assert torch.equal(logits, logits[:1].expand(5, 3))
    assert not torch.equal(logits[:, 0], logits[:, 1])


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_logits_by_hand(kind):
    router = filled(kind).double()
    for row, logits in zip(U.double().tolist(), router(U.double()).tolist()):
        if kind == "mlp":
            weight, bias = router.hidden.weight.tolist(), router.hidden.bias.tolist()
            row = [max(0.0, b + sum(w * x for w, x in zip(ws, row))) for ws, b in zip(weight, bias)]
        for k, logit in enumerate(logits):
            expected = router.last.bias[k].item() + sum(w * x for w, x in zip(router.last.weight[k].tolist(), row))
            assert logit == pytest.approx(expected, abs=1e-12)


def test_the_hidden_layer_follows_from_the_seed_alone():
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first, same, other = (Router("mlp", 6, 3, seed=seed).hidden.weight for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.random.get_rng_state()), "the global random state is left alone"


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_precision_is_the_routers_own(kind):
    router = filled(kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = router(U)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, router(U))
    assert torch.equal(router(U.bfloat16()), router(U.bfloat16().float()))


def test_what_cannot_be_is_an_error():
    with pytest.raises(UserError, match="no router is called 'gate'; choose one of static, linear, mlp"):
        Router("gate", 6, 3)
    with pytest.raises(ValueError, match=r"features \(B, 6\), got \(5, 7\)"):
        Router("mlp", 6, 3)(torch.zeros(5, 7))
