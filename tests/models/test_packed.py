"""Packed weights give the products of the plain ones, only inside the block, and only where they may."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from holdfast.models import packed as module
from holdfast.models.packed import LEAST, packed


def network(bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.ModuleDict({"large": nn.Linear(512, 300, bias=bias), "small": nn.Linear(64, 64)}).to(dtype)


@pytest.mark.parametrize("shape", [(1, 512), (3, 1, 512), (70, 2, 512)])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_the_plain_weights(shape, bias):
    net, rows = network(bias), torch.randn(shape)
    wanted = linear(rows.double(), net["large"].weight.double(), net["large"].bias.double() if bias else None).detach()
    with torch.no_grad(), packed(net) as names:
        assert names == ["large"]
        found = net["large"](rows)
    # Sums of 512 float32 products.
    assert float((found - wanted).abs().max()) < 1e-5
    assert found.shape == wanted.shape


def test_small_matrices_and_other_kinds_are_left_alone():
    class Other(nn.Linear):
        def forward(self, rows):
            return rows

    net = nn.ModuleList([Other(512, 512), nn.Linear(362, 362), nn.Linear(363, 363), network(dtype=torch.float64)])
    net[1].forward = net[2].forward = lambda rows: rows
    del net[2].forward
    assert 362 * 362 < LEAST < 363 * 363
    with torch.no_grad(), packed(net) as names:
        assert names == ["2"]
        assert float(net[0](torch.ones(1)).sum()) == 1
        assert net[1](3) == 3


def test_what_someone_else_put_in_place_of_forward_stays():
    net = network()
    net["large"].forward = lambda rows: "theirs"
    with torch.no_grad(), packed(net) as names:
        assert names == []
        assert net["large"](None) == "theirs"
    assert net["large"](None) == "theirs"


def test_weights_are_read_when_the_block_begins_and_given_back_after_it():
    net, rows = network(), torch.randn(2, 512)
    with torch.no_grad():
        with packed(net):
            before = net["large"](rows)
        net["large"].weight.mul_(2)
        with packed(net):
            after = net["large"](rows)
    bias = net["large"].bias
    assert torch.allclose(after - bias, 2 * (before - bias), atol=1e-5)
    assert "forward" not in vars(net["large"])
    assert net["large"](rows).requires_grad


def test_an_error_inside_gives_the_layers_back():
    net = network()
    with pytest.raises(ZeroDivisionError), torch.no_grad(), packed(net):
        raise ZeroDivisionError
    assert "forward" not in vars(net["large"])


def test_it_refuses_where_gradients_are_wanted():
    with pytest.raises(RuntimeError, match="no gradient"), packed(network()):
        pass


@pytest.mark.parametrize("broken", ["absent", "raises", "wrong"])
def test_where_torch_cannot_nothing_is_packed(monkeypatch, broken):
    def fails(*_):
        raise RuntimeError("no such operator")

    if broken == "absent":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    else:
        monkeypatch.setattr(module, "_product", fails if broken == "raises" else lambda rows, *_: rows[..., :24])
    module.usable.cache_clear()
    try:
        with torch.no_grad(), packed(network()) as names:
            assert names == []
    finally:
        module.usable.cache_clear()
