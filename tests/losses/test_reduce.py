import pytest
import torch
from torch import tensor

from holdfast.losses.reduce import (
    Sum,
    explained_variance,
    masked_mean,
    masked_variance,
    objective,
    over,
    per_sequence,
    precise,
    same_shape,
)

VALUES = tensor([[1.0, 2.0, 3.0], [10.0, 40.0, 50.0]], dtype=torch.float64)
MASK = tensor([[True, True, True], [True, False, False]])


def test_token_mean_and_sequence_mean_differ_as_they_should():
    assert over(VALUES, MASK).mean.item() == 4.0  # (1 + 2 + 3 + 10) / 4
    assert per_sequence(VALUES, MASK).mean.item() == 6.0  # (2 + 10) / 2


def test_no_mask_counts_everything():
    total, count = over(VALUES)
    assert (total.item(), count.item()) == (106.0, 6)


def test_mean_of_nothing_is_zero():
    nothing = torch.zeros_like(MASK)
    assert over(VALUES, nothing).mean.item() == 0.0
    assert masked_mean(VALUES, nothing).item() == 0.0
    assert per_sequence(VALUES, nothing).count.item() == 0


def test_an_empty_row_counts_for_no_sequence():
    mask = MASK.clone()
    mask[1] = False
    assert per_sequence(VALUES, mask).mean.item() == 2.0


@pytest.mark.parametrize("reduction", [over, per_sequence])
def test_nothing_behind_the_mask_reaches_value_or_gradient(reduction):
    values = VALUES.masked_fill(~MASK, float("nan")).requires_grad_()
    mean = reduction(values, MASK).mean
    assert mean.item() == reduction(VALUES, MASK).mean.item()
    mean.backward()
    assert values.grad is not None
    assert torch.equal(values.grad != 0, MASK)


@pytest.mark.parametrize("reduction", [over, per_sequence])
def test_shapes_that_differ_are_refused(reduction):
    with pytest.raises(ValueError, match=r"values \(2, 3\), mask \(2, 1\)"):
        reduction(VALUES, MASK[:, :1])


def test_same_shape_names_every_tensor():
    same_shape(a=VALUES, b=VALUES)
    with pytest.raises(ValueError, match=r"a \(2,\), b \(2, 1\)"):
        same_shape(a=torch.zeros(2), b=torch.zeros(2, 1))


def test_half_precision_is_summed_in_float32():
    ones = torch.ones(257, dtype=torch.bfloat16)  # 257 is no bfloat16
    assert over(ones).total.item() == 257
    assert per_sequence(ones[None], torch.ones(1, 257, dtype=torch.bool)).total.dtype == torch.float32
    assert precise(VALUES).dtype == torch.float64


@pytest.mark.parametrize("reduction", [over, per_sequence])
@pytest.mark.parametrize("cut", [[8], [4, 4], [1] * 8, [3, 3, 2]])
def test_gradient_does_not_depend_on_how_the_batch_is_cut(reduction, cut):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(8, 5, 3, dtype=torch.float64, generator=generator)
    mask = torch.rand(8, 5, generator=generator) < 0.6
    mask[2] = False

    def loss(weight, rows, mask):
        return {"fit": reduction((rows @ weight).square(), mask), "size": over(rows @ weight)}

    def gradient(pieces):
        weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
        rows = list(zip(inputs.split(pieces), mask.split(pieces), strict=True))
        terms = [loss(weight, *row) for row in rows]
        counts = {name: sum(float(term[name].count) for term in terms) for name in terms[0]}
        for term in terms:
            objective(term, counts, {"size": 0.3}).backward()
        return weight.grad

    # Independent of `objective`: the derivative of the weighted means, written out for the whole batch.
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    squares = (inputs @ weight).square()
    if reduction is over:
        fit = squares[mask].mean()
    else:
        fit = torch.stack([row[kept].mean() for row, kept in zip(squares, mask, strict=True) if kept.any()]).mean()
    (fit + 0.3 * (inputs @ weight).mean()).backward()
    torch.testing.assert_close(gradient(cut), weight.grad, rtol=1e-12, atol=1e-12)


def test_objective_refuses_what_was_not_counted():
    term = Sum(tensor(1.0), tensor(1))
    with pytest.raises(ValueError, match=r"no count for the loss terms \['l2'\]; counted were \['rank'\]"):
        objective({"l2": term}, {"rank": 1.0}, {})
    with pytest.raises(ValueError, match="no loss terms"):
        objective({}, {}, {})


def test_a_term_with_no_items_in_the_step_is_zero():
    term = over(tensor([3.0]), tensor([False]))
    assert objective({"rank": term}, {"rank": 0.0}, {}).item() == 0.0


def test_variance_is_that_of_the_population_behind_the_mask():
    kept = [1.0, 2.0, 3.0, 10.0]
    mean = sum(kept) / 4
    hidden = VALUES.masked_fill(~MASK, float("nan"))
    expected = sum((value - mean) ** 2 for value in kept) / 4
    assert masked_variance(hidden, MASK).item() == pytest.approx(expected, abs=1e-12)
    assert masked_variance(VALUES, torch.zeros_like(MASK)).item() == 0.0


def test_explained_variance_by_hand():
    returns = tensor([[1.0, 2.0, 3.0, 99.0]], dtype=torch.float64)
    mask = tensor([[True, True, True, False]])

    def explained(*values):
        return explained_variance(returns, tensor([values], dtype=torch.float64), mask)

    assert explained(1.0, 2.0, 3.0, 0.0) == 1
    assert explained(5.0, 5.0, 5.0, 0.0) == pytest.approx(0, abs=1e-12)
    # returns vary by 2/3; errors 0, 1, 0 by 2/9
    assert explained(1.0, 1.0, 3.0, float("nan")) == pytest.approx(2 / 3, abs=1e-12)
    assert explained(3.0, 2.0, 1.0, 0.0) == pytest.approx(-3, abs=1e-12)  # errors -2, 0, 2


def test_explained_variance_of_returns_that_do_not_vary_is_zero():
    one = torch.ones(1, 1)
    assert explained_variance(one, torch.zeros(1, 1), one.bool()) == 0.0
    assert explained_variance(VALUES, VALUES, torch.zeros_like(MASK)) == 0.0


def test_explained_variance_refuses_to_broadcast():
    with pytest.raises(ValueError, match=r"returns \(2, 3\), values \(2, 1\), mask \(2, 3\)"):
        explained_variance(VALUES, VALUES[:, :1], MASK)
