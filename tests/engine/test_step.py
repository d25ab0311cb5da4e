"""One step: the update itself, its schedule, and what it refuses."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from holdfast.engine.distributed import Processes
from holdfast.engine.step import OptimiserSettings, Step, means, rate
from holdfast.errors import RunError
from holdfast.losses.reduce import Sum

PLAIN = OptimiserSettings(learning_rate=0.1, schedule="constant", warmup_ratio=0.0, max_grad_norm=1e9)


def line(weight=2.0):
    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(weight)
    return model


def square(model):
    return lambda x: {"square": Sum((model(x) ** 2).sum(), torch.tensor(len(x)))}


def count(x):
    return {"square": float(len(x))}


def test_first_adamw_step_by_hand():
    # mean of (2x)^2 for x = 1, 3: loss 20, gradient 2 * 2 * (1 + 9) / 2 = 20; Adam's first step is lr * sign.
    model = line()
    step = Step(model, PLAIN.model_copy(update={"weight_decay": 0.5}), 10)
    numbers = step.step([torch.tensor([[1.0], [3.0]]).double()], square(model), count, {})
    assert numbers["square"] == pytest.approx(20.0)
    assert numbers["grad_norm"] == pytest.approx(20.0)
    assert numbers["lr"] == 0.1
    # decoupled decay first: 2 * (1 - 0.1 * 0.5) - 0.1
    assert model.weight.item() == pytest.approx(2 * 0.95 - 0.1, abs=1e-9)


def test_weights_of_terms_scale_the_gradient():
    model = line()
    numbers = Step(model, PLAIN, 10).step([torch.ones(1, 1).double()], square(model), count, {"square": 3.0})
    assert numbers["grad_norm"] == pytest.approx(12.0)
    assert numbers["square"] == pytest.approx(4.0), "the reported mean is not weighted"


def test_gradients_are_clipped_by_their_global_norm():
    model = nn.Linear(2, 2).double()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    step = Step(model, PLAIN.model_copy(update={"max_grad_norm": 0.5}), 10)
    clipped = {}
    step.optimiser.step = lambda: clipped.update({n: p.grad.clone() for n, p in model.named_parameters()})
    x = torch.tensor([[3.0, 4.0]]).double()
    numbers = step.step([x], lambda b: {"sum": Sum(model(b).sum(), torch.tensor(1))}, lambda b: {"sum": 1.0}, {})
    # weight rows (3, 4) twice and two ones: sqrt(25 + 25 + 1 + 1)
    assert numbers["grad_norm"] == pytest.approx(math.sqrt(52))
    assert torch.allclose(clipped["bias"], torch.full((2,), 0.5 / math.sqrt(52)).double(), atol=1e-6)


def test_vectors_do_not_decay():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    step = Step(model, OptimiserSettings(weight_decay=0.1), 1)
    decay = {id(p): group["weight_decay"] for group in step.optimiser.param_groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in model.named_parameters()} == {
        "0.weight": 0.1,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
    }


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
    ],
)
def test_schedules_by_hand(schedule, expected):
    settings = OptimiserSettings(learning_rate=1.0, schedule=schedule, warmup_ratio=1 / 3)
    assert [rate(settings, position, 6) for position in range(6)] == pytest.approx(expected)


@pytest.mark.parametrize(
    "position, expected",
    [(0, 0.1), (5, 0.1), (10, 0.1), (50, 0.5), (99, 0.99), (100, 1.0), (400, 0.5), (1000, 0.3162)],
)
def test_inverse_square_root_by_hand(position, expected):
    settings = OptimiserSettings(learning_rate=2.0, schedule="inverse_sqrt", warmup_ratio=0.1)
    assert rate(settings, position, 1000) / 2 == pytest.approx(expected, abs=5e-5)  # four published digits


def test_inverse_square_root_without_warm_up_begins_at_the_highest_rate():
    settings = OptimiserSettings(learning_rate=1.0, schedule="inverse_sqrt", warmup_ratio=0.0)
    assert [rate(settings, position, 10) for position in (0, 1, 4)] == [1.0, 1.0, 0.5]


def test_the_rate_beyond_the_last_step_is_zero_and_not_negative():
    settings = OptimiserSettings(learning_rate=1.0, schedule="linear", warmup_ratio=0.0)
    assert rate(settings, 9, 4) == 0.0


def test_position_overrules_the_number_of_steps():
    model = line()
    settings = OptimiserSettings(learning_rate=1.0, schedule="linear", warmup_ratio=0.0)
    step = Step(model, settings, total_steps=4)
    batch = [torch.ones(1, 1).double()]
    assert step.step(batch, square(model), count, {}, position=2)["lr"] == pytest.approx(0.5)
    assert step.step(batch, square(model), count, {})["lr"] == pytest.approx(0.75)


def test_a_wrong_announcement_names_the_term_and_the_rows():
    model = line()
    batch = SimpleNamespace(x=torch.ones(2, 1).double(), ids=("a7", "b9"))
    before = model.weight.clone()
    with pytest.raises(RunError, match=r"sft, step 1: .*'square' covers 2 items .* announced 3 \(rows a7, b9\)"):
        Step(model, PLAIN, 10, stage="sft").step([batch], lambda b: square(model)(b.x), lambda b: {"square": 3.0}, {})
    assert torch.equal(model.weight, before)
    assert model.weight.grad is None


def test_an_unannounced_term_is_refused():
    model = line()
    with pytest.raises(RunError, match=r"\['square'\] were not announced"):
        Step(model, PLAIN, 10).step([torch.ones(1, 1).double()], square(model), lambda b: {"other": 1.0}, {})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_refused_and_leaves_the_weights(value):
    model = line()
    step = Step(model, PLAIN, 10, stage="cost")
    good = SimpleNamespace(x=torch.ones(1, 1).double(), ids=("good",))
    bad = SimpleNamespace(x=torch.full((1, 1), value).double(), ids=("bad",))
    before = model.weight.clone()
    with pytest.raises(RunError, match=rf"cost, step 1: the loss term 'square' is {value} \(rows bad\)"):
        step.step([good, bad], lambda b: square(model)(b.x), lambda b: count(b.x), {})
    assert torch.equal(model.weight, before)
    assert step.done == 0
    assert not step.optimiser.state


def test_a_gradient_that_is_not_finite_is_refused_and_leaves_the_weights():
    model = line(0.0)
    before = model.weight.clone()

    def root(x):  # sqrt has value 0 and slope infinity at 0
        return {"square": Sum(model(x).sqrt().sum(), torch.tensor(len(x)))}

    with pytest.raises(RunError, match="gradient norm is inf although the loss is finite"):
        Step(model, PLAIN, 10).step([torch.ones(1, 1).double()], root, count, {})
    assert torch.equal(model.weight, before)


def test_a_loss_that_reaches_no_parameter_is_refused():
    model = line()
    with pytest.raises(RunError, match="reaches no trainable parameter"):
        Step(model, PLAIN, 10).step(
            [torch.ones(1, 1)], lambda b: {"square": Sum(torch.tensor(1.0), torch.tensor(1))}, count, {}
        )


def test_a_frozen_model_is_refused():
    with pytest.raises(RunError, match="reward: nothing to train, every parameter of Linear is frozen"):
        Step(nn.Linear(1, 1).requires_grad_(False), PLAIN, 1, stage="reward")


def test_counting_nothing_learns_nothing_and_says_so():
    model = line()
    step = Step(model, PLAIN, 10)
    for batches in ([], [torch.zeros(0, 1).double()]):
        before = model.weight.clone()
        assert step.step(batches, square(model), count, {})["empty"] == 1.0
        assert torch.equal(model.weight, before)


def test_an_empty_micro_batch_beside_a_full_one_changes_nothing():
    x = torch.tensor([[1.0], [3.0]]).double()
    found = []
    for batches in ([x], [x, x[:0]]):
        model = line()
        numbers = Step(model, PLAIN, 10).step(batches, square(model), count, {})
        found.append((model.weight.item(), numbers))
    assert found[0] == found[1]


def test_a_gradient_left_behind_by_someone_else_does_not_count():
    model = line()
    step = Step(model, PLAIN, 10)
    model.weight.grad = torch.full((1, 1), 100.0).double()
    numbers = step.step([torch.ones(1, 1).double()], square(model), count, {})
    assert numbers["grad_norm"] == pytest.approx(4.0)


def test_state_restores_the_next_step_bit_for_bit():
    x = [torch.tensor([[1.0], [3.0]]).double()]
    model = line()
    step = Step(model, OptimiserSettings(learning_rate=0.1), 8)
    for _ in range(3):
        step.step(x, square(model), count, {})
    again = line(model.weight.item())
    resumed = Step(again, OptimiserSettings(learning_rate=0.1), 8)
    resumed.load_state_dict(copy.deepcopy(step.state_dict()))
    for _ in range(3):
        assert step.step(x, square(model), count, {}) == resumed.step(x, square(again), count, {})
    assert torch.equal(model.weight, again.weight)


def test_means_are_over_items_and_not_over_batches():
    batches = [
        {"a": Sum(torch.tensor(6.0), torch.tensor(3))},
        {"a": Sum(torch.tensor(10.0), torch.tensor(1)), "b": Sum(torch.tensor(0.0), torch.tensor(0))},
    ]
    assert means(batches, Processes()) == {"a": 4.0, "b": 0.0}


def pulls(model):
    """Two quadratics: `near` has gradient w - x, `far` has gradient 2 w, and they stand in batches of their own."""

    def loss(batch):
        name, x = batch
        w = model.weight.flatten()
        total = 0.5 * (w - x).square().sum() if name == "near" else len(x) * w.square().sum()
        return {name: Sum(total, torch.tensor(len(x)))}

    return loss


def announce(batch):
    return {batch[0]: float(len(batch[1]))}


TARGETS = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
BATCHES = [("near", TARGETS), ("far", TARGETS), ("near", -TARGETS), ("far", TARGETS)]


def pair():
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    return model


def test_a_term_apart_is_measured_against_all_others():
    # near: the mean of (2, 1) and (4, 7) is (3, 4); far: 2 (3, 4), weighted 0.25; together 1.5 (3, 4).
    model = pair()
    numbers = Step(model, PLAIN, 10).step(BATCHES, pulls(model), announce, {"far": 0.25}, apart="far")
    assert numbers["grad_ratio/far"] == pytest.approx(0.5, abs=1e-12)
    assert numbers["grad_norm"] == pytest.approx(7.5, abs=1e-12)
    assert (numbers["near"], numbers["far"]) == (pytest.approx(17.5), pytest.approx(25.0))


def test_a_term_apart_makes_the_same_steps():
    settings = OptimiserSettings(learning_rate=0.1, max_grad_norm=0.5)
    found = []
    for apart in (None, "far"):
        model = pair()
        step = Step(model, settings, 8)
        rows = [step.step(BATCHES, pulls(model), announce, {"far": 0.25}, apart=apart) for _ in range(3)]
        found.append((model.weight, rows, step.state_dict()["done"]))
    (together, rows, _), (alone, measured, done) = found
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-7)
    assert done == 3
    assert not any("grad_ratio/far" in row for row in rows)
    for row, more in zip(rows, measured, strict=True):
        assert more.pop("grad_ratio/far") > 0
        assert more == pytest.approx(row, abs=1e-7)


def test_without_a_term_apart_nothing_changes_bit_for_bit():
    """The loop as it stands in a textbook, in the order given."""
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(2))
    models = [nn.Linear(3, 1), nn.Linear(3, 1)]
    models[1].load_state_dict(models[0].state_dict())
    batches, settings = [x[:3], x[3:4], x[4:]], PLAIN.model_copy(update={"max_grad_norm": 0.1})
    Step(models[0], settings, 10).step(batches, square(models[0]), count, {})
    groups = [{"params": [models[1].weight]}, {"params": [models[1].bias]}]
    optimiser = torch.optim.AdamW(groups, lr=0.1, betas=settings.betas, weight_decay=0.0, fused=True)
    for batch in batches:
        ((models[1](batch) ** 2).sum() / 6).backward()
    nn.utils.clip_grad_norm_(models[1].parameters(), 0.1)
    optimiser.step()
    assert torch.equal(models[0].weight, models[1].weight)
    assert torch.equal(models[0].bias, models[1].bias)


class Twins(Processes):
    """Two processes that hold the same micro-batches."""

    def add_up(self, counts):
        return super().add_up(2 * list(counts))

    def sum_gradients(self, parameters):
        for p in parameters:
            if p.grad is not None:
                p.grad *= 2


def test_a_term_apart_is_summed_over_processes_once():
    found = []
    for processes in (Processes(), Twins()):
        model = pair()
        found.append(Step(model, PLAIN, 10, processes).step(BATCHES, pulls(model), announce, {}, apart="far"))
    assert found[1] == pytest.approx(found[0], abs=1e-12)


def test_a_term_apart_that_is_absent_has_ratio_zero_and_one_alone_has_none():
    model = pair()
    step = Step(model, PLAIN, 10)
    assert step.step(BATCHES[:1], pulls(model), announce, {}, apart="far")["grad_ratio/far"] == 0.0
    numbers = step.step(BATCHES[1:2], pulls(model), announce, {}, apart="far")
    assert "grad_ratio/far" not in numbers
    assert numbers["grad_norm"] > 0


def test_a_term_apart_stands_alone_in_its_micro_batches():
    model = pair()
    before = model.weight.clone()
    batch = SimpleNamespace(ids=("a7",))
    step = Step(model, PLAIN, 10, stage="policy")
    with pytest.raises(RunError, match=r"a micro-batch of 'far', .* also holds \['near'\] \(rows a7\)"):
        step.step([batch], lambda b: {}, lambda b: {"near": 1.0, "far": 1.0}, {}, apart="far")
    assert torch.equal(model.weight, before)
