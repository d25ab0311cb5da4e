from typing import get_args

import pytest
import torch
from torch.autograd import grad
from torch.testing import assert_close

from holdfast.losses.aggregate import Kind, gather, row_counts, token_weights
from holdfast.losses.mask import from_lengths
from holdfast.losses.reduce import Sum, objective

KINDS = get_args(Kind)
LENGTHS = torch.tensor([3, 1, 5, 0, 2, 4, 4, 1])
GROUPS = torch.tensor([7, 7, 7, 7, 2, 2, 0, 0])
LONGEST = 6


def loss(kind, values, lengths, groups, longest=LONGEST):
    mask = from_lengths(lengths, values.shape[1])
    return gather(values, mask, token_weights(kind, lengths, groups), row_counts(kind, lengths, groups, longest))


def average(numbers):
    return sum(numbers) / len(numbers)


def by_hand(kind, values, lengths, groups, longest):
    """The mean as its definition reads, over lists of numbers."""
    rows = [values[i][: lengths[i]] for i in range(len(lengths)) if lengths[i]]
    if kind == "token_mean":
        return average([value for row in rows for value in row])
    if kind == "row_mean":
        return average([average(row) for row in rows])
    if kind == "token_sum_constant":
        return sum(sum(row) for row in rows) / (len(rows) * longest)
    if kind == "sequence_sum":
        return average([sum(row) for row in rows])
    prompts = {}
    for i, group in enumerate(groups):
        prompts.setdefault(group, []).extend(values[i][: lengths[i]])
    return average([average(tokens) for tokens in prompts.values() if tokens])


@pytest.mark.parametrize(
    "kind, mean",
    [
        ("row_mean", 1.5),
        ("token_mean", 5 / 3),
        ("token_sum_constant", 1.0),
        ("sequence_sum", 5.0),
        ("prompt_mean", 5 / 3),
    ],
)
def test_two_answers_by_hand(kind, mean):
    values = torch.tensor([[1.0] * 4, [2.0] * 4])
    found = loss(kind, values, torch.tensor([2, 4]), torch.tensor([0, 0]), longest=5)
    assert found.mean.item() == pytest.approx(mean, abs=1e-6)


def test_a_prompt_of_its_own_weighs_as_much_as_one_with_many_tokens():
    values = torch.tensor([[1.0] * 4, [2.0] * 4])
    assert loss("prompt_mean", values, torch.tensor([2, 4]), torch.tensor([0, 1])).mean.item() == 1.5


@pytest.mark.parametrize("kind", KINDS)
def test_means_equal_their_definition(kind):
    values = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = by_hand(kind, values.tolist(), LENGTHS.tolist(), GROUPS.tolist(), LONGEST)
    # 1e-6: weights are float32.
    assert loss(kind, values, LENGTHS, GROUPS).mean.item() == pytest.approx(expected, rel=1e-6)


def in_cuts(kind, values, processes):
    """The gradient when each process takes rows in micro-batches of its own; `processes` holds rows per batch."""
    mask = from_lengths(LENGTHS, values.shape[1])
    weights, counts = token_weights(kind, LENGTHS, GROUPS), row_counts(kind, LENGTHS, GROUPS, LONGEST)
    batches = [rows for process in processes for rows in process]
    terms = [Sum(*gather(values[rows], mask[rows], weights[rows], counts[rows])) for rows in batches]
    count = sum(float(term.count) for term in terms)
    slopes = [grad(objective({"policy": term}, {"policy": count}, {}), values)[0] for term in terms]
    return sum(slopes)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_do_not_depend_on_the_cut(kind):
    values = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    # 1e-6: the shares of three answers in one prompt are thirds in float32.
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    whole = in_cuts(kind, values, [[order]])
    assert whole.abs().max() > 0.01
    for pieces in range(2, 9):
        assert_close(in_cuts(kind, values, [order.tensor_split(pieces)]), whole, rtol=1e-6, atol=1e-9)
        halves = [order[:3].tensor_split(min(pieces, 3)), order[3:].tensor_split(pieces)]
        filled = [[rows for rows in process if len(rows)] for process in halves]
        assert_close(in_cuts(kind, values, filled), whole, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_answer_changes_nothing(kind):
    values = torch.randn(8, 6, generator=torch.Generator().manual_seed(3))
    there = LENGTHS > 0
    expected = loss(kind, values[there], LENGTHS[there], GROUPS[there])
    assert_close(loss(kind, values.masked_fill(~there[:, None], float("nan")), LENGTHS, GROUPS), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_no_answers_or_only_empty_ones_count_nothing(kind):
    none = torch.zeros(2, dtype=torch.long)
    for lengths in (none, none[:0], torch.tensor([])):
        assert not row_counts(kind, lengths, lengths, LONGEST).any()
        assert not token_weights(kind, lengths, lengths).any()
    assert loss(kind, torch.ones(2, 3), none, none) == (0, 0)


def test_what_stands_behind_the_mask_is_not_summed():
    values = torch.tensor([[1.0, float("nan")]], requires_grad=True)
    found = loss("row_mean", values, torch.tensor([1]), torch.tensor([0]))
    assert found.mean.item() == 1.0
    assert grad(found.total, values)[0].tolist() == [[1.0, 0.0]]


def test_the_constant_does_not_follow_the_lengths():
    long, short = (
        row_counts("token_sum_constant", torch.tensor(n), torch.tensor([0, 1]), 10) for n in ([9, 9], [1, 2])
    )
    assert long.tolist() == short.tolist() == [10, 10]


def test_errors_say_what_was_given():
    one, two = torch.tensor([1]), torch.tensor([1, 2])
    for function in (token_weights, lambda *given: row_counts(*given, 5)):
        with pytest.raises(ValueError, match="no mean 'mean'; there are token_mean, row_mean"):
            function("mean", one, one)
        with pytest.raises(ValueError, match=r"lengths \(2,\), groups \(1,\)"):
            function("row_mean", two, one)
    with pytest.raises(ValueError, match="longest, the most tokens allowed, is 3; an answer has 4"):
        row_counts("token_sum_constant", torch.tensor([2, 4]), two, 3)
    values, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"weights \(2, 1\), counts \(2,\), rows \(2,\)"):
        gather(values, mask, torch.zeros(2, 1), torch.zeros(2))
    with pytest.raises(ValueError, match=r"values \(2, 3\), mask \(2, 2\)"):
        gather(values, mask[:, :2], torch.zeros(2), torch.zeros(2))
