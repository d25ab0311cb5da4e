"""The student's task: targets of the whole step however it is cut, the best epoch, and resuming as equality."""

import copy
import json

import pytest
import torch
from torch import nn

from holdfast.config import build
from holdfast.engine.log import RunFolder
from holdfast.engine.order import Shuffled
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings, cut, fit, share
from holdfast.errors import RunError, UserError
from holdfast.losses import transfer as losses
from holdfast.training.transfer import (
    TransferBatch,
    TransferRow,
    TransferSettings,
    TransferTask,
    class_prior,
    predicted,
    rows_of,
    train,
)

KINDS = ("soft", "hard", "logconf", "entropy", "product", "window", "adaptconf")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def world(count=32, classes=2, seed=0):
    features = torch.randn(count, 5, generator=source(seed))
    weak = (2 * torch.randn(count, classes, generator=source(seed + 1))).softmax(-1)
    return features, weak


def linear(classes=2, seed=3):
    model = nn.Linear(5, classes)
    with torch.no_grad():
        model.weight.copy_(torch.randn(classes, 5, generator=source(seed)))
        model.bias.zero_()
    return model


def settings(epochs=3, batch=8, micro=None, **changes):
    optimiser = OptimiserSettings(learning_rate=0.05, warmup_ratio=0.0)
    fit_settings = FitSettings(epochs=epochs, batch_size=batch, micro_tokens=micro, optimiser=optimiser)
    return TransferSettings(fit=fit_settings, **changes)


def task_of(model, rows, chosen, prior=None, order=None):
    return TransferTask(model, lambda inputs: model(torch.stack(inputs)), rows, chosen, prior, order=order)


def test_naive_loss_by_a_double_loop():
    features, weak = world(6)
    model = linear()
    task = task_of(model, rows := rows_of(features, weak), settings())
    batch = task.collate(rows)
    total = 0.0
    # Sums of six numbers in another order, hence more than 1e-6.
    for x, target in zip(features, weak):
        p = model(x).softmax(-1).detach()
        for k in range(2):
            total -= float(target[k] * p[k].log())
    assert task.loss(batch)["transfer"].total.item() == pytest.approx(total, abs=1e-5)
    assert task.counts(batch) == {"transfer": 6.0}


def test_targets_carry_no_gradient_but_for_entropy():
    features, weak = world()
    rows = rows_of(features, weak)
    for kind in KINDS:
        model = linear()
        task = task_of(model, rows, settings(kind=kind), torch.tensor([0.5, 0.5]))
        task.begin(20, 20)
        batch = task.collate(rows)
        logits = model(features)
        assert task._target(batch, logits).requires_grad == (kind == "entropy")


def test_the_weight_rises_over_a_fifth_of_the_training():
    features, weak = world()
    task = task_of(linear(), rows_of(features, weak), settings(kind="logconf"))
    seen = []
    for step in (1, 11, 21, 100):
        task.begin(step, 100)
        seen.append(task.weight)
    assert seen == pytest.approx([0, 0.25, 0.5, 0.5])


def test_the_confident_target_is_a_mixture_with_half_of_the_batch():
    z = torch.tensor([2.0, 1.0, 0.5, -1.0])
    weak = torch.tensor([0.9, 0.2, 0.4, 0.6])
    model = nn.Identity()
    rows = rows_of(torch.stack([torch.zeros(4), z], 1), torch.stack([1 - weak, weak], 1))
    chosen = settings(kind="logconf", min_pool=1)
    task = TransferTask(nn.Linear(1, 1), lambda inputs: model(torch.stack(inputs)), rows, chosen, torch.full((2,), 0.5))
    task.begin(50, 50)
    batch = task.collate(rows)
    target = task._target(batch, torch.stack([row.input for row in rows]))
    assert target[:, 1].tolist() == pytest.approx([0.95, 0.60, 0.20, 0.30], abs=1e-6)
    assert float(task.loss(batch)["transfer"].mean) == pytest.approx(0.606882, abs=1e-6)


def test_options_reach_the_targets():
    features, weak = world()
    rows = rows_of(features, weak)
    logits = linear()(features)
    p = logits.softmax(-1).detach()

    def target(**changes):
        task = task_of(linear(), rows, settings(**changes))
        task.begin(50, 50)
        return task._target(task.collate(rows), logits)

    powered = target(kind="product", student_power=2.0, weak_power=0.5)
    by_hand = p**2 * weak**0.5
    torch.testing.assert_close(powered, by_hand / by_hand.sum(1, keepdim=True))
    narrow = target(kind="window", radius=0.05)
    torch.testing.assert_close(narrow, weak * (p.amax(1, keepdim=True) < 0.55))
    cool = losses.target("adaptconf", p, weak, options=losses.Options(temperature=0.1))
    torch.testing.assert_close(target(kind="adaptconf", temperature=0.1), cool)


def gradients(task, rows, micro):
    task.begin(30, 30)
    chosen = [rows[i] for i in task.order.chosen(30)]
    model = task.model
    model.zero_grad()
    for part in cut(chosen, micro):
        (task.loss(task.collate(part))["transfer"].total / len(chosen)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 4])
def test_four_times_eight_rows_teach_what_thirty_two_do(kind, classes):
    features, weak = world(96, classes)
    rows, model = rows_of(features, weak), linear(classes)
    prior = torch.full((classes,), 1 / classes)

    def at_once(micro):
        chosen = settings(epochs=10, batch=32, micro=micro, kind=kind)
        return gradients(task_of(model, rows, chosen, prior, Shuffled(96, 32, 10, 0)), rows, micro)

    torch.testing.assert_close(at_once(8), at_once(None), rtol=0, atol=1e-6)


class Rank:
    """One of two processes: what both bring to `gather` is known after each has been there once."""

    size = 2

    def __init__(self, rank, brought):
        self.rank, self.brought = rank, brought

    def gather(self, items):
        self.brought[self.rank] = list(items)
        return [one for rank in sorted(self.brought) for one in self.brought[rank]]


def test_two_processes_with_sixteen_rows_teach_what_one_with_thirty_two_does():
    features, weak = world(96)
    rows, model, half = rows_of(features, weak), linear(), torch.tensor([0.5, 0.5])
    order, chosen = Shuffled(96, 32, 10, 0), settings(epochs=10, batch=32, kind="logconf")
    alone = gradients(task_of(model, rows, chosen, half, order), rows, None)
    brought, both = {}, torch.zeros_like(alone)
    for rank in (0, 1, 0, 1):
        task = TransferTask(
            model,
            lambda inputs: model(torch.stack(inputs)),
            rows,
            chosen,
            half,
            order=order,
            processes=Rank(rank, brought),
        )
        both_known = len(brought) == 2
        task.begin(30, 30)
        own = share([rows[i] for i in order.chosen(30)], task.processes)
        assert len(own) == 16
        if both_known:
            model.zero_grad()
            (task.loss(task.collate(own))["transfer"].total / 32).backward()
            both += torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(both, alone, rtol=0, atol=1e-6)


def test_ranked_by_micro_batch_would_teach_something_else():
    """What the first pass is for: without it the threshold is that of the micro-batch."""
    features, weak = world(96)
    rows, model, half = rows_of(features, weak), linear(), torch.tensor([0.5, 0.5])
    order = Shuffled(96, 32, 10, 0)
    whole = gradients(task_of(model, rows, settings(epochs=10, batch=32, kind="logconf"), half, order), rows, None)
    blind = task_of(model, rows, settings(epochs=10, batch=32, kind="logconf"), half, order)
    assert (gradients(blind, rows, 8) - whole).abs().max() > 1e-3


def test_ties_are_broken_by_their_place_in_the_step():
    weak = torch.full((12, 2), 0.5)
    rows, half, order = rows_of(torch.ones(12, 5), weak), torch.tensor([0.5, 0.5]), Shuffled(12, 12, 3, 0)
    task = task_of(linear(), rows, settings(epochs=3, batch=12, micro=4, kind="logconf", most=1.0), half, order)
    task.begin(3, 3)
    batch = task.collate([rows[i] for i in order.chosen(3)])
    target = task._target(batch, torch.zeros(12, 2))
    assert target[:, 1].tolist() == [1.0] * 6 + [0.0] * 6


def test_agreement_is_with_the_likely_label():
    rows = rows_of(torch.eye(3), torch.tensor([[0.6, 0.4], [0.3, 0.7], [0.9, 0.1]]))
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    task = TransferTask(nn.Linear(1, 1), lambda inputs: logits[: len(inputs)], rows, settings())
    found = task.metrics(task.collate(rows))
    assert float(found["agreement"].mean) == pytest.approx(2 / 3)
    assert isinstance(task.collate(rows), TransferBatch)


@pytest.mark.parametrize(
    "prior, weak, expected",
    [
        ("auto", [[0.6, 0.4], [0.44, 0.56]], [0.5, 0.5]),
        ("auto", [[0.9, 0.1], [0.7, 0.3]], [0.8, 0.2]),
        ("half", [[0.9, 0.1], [0.7, 0.3]], [0.5, 0.5]),
        ("weak", [[0.6, 0.4], [0.44, 0.56]], [0.52, 0.48]),
        (0.17, [[0.6, 0.4]], [0.83, 0.17]),
        ("none", [[0.6, 0.4]], None),
        ("auto", [[0.4, 0.3, 0.3]], [0.4, 0.3, 0.3]),
        ("auto", [[0.36, 0.33, 0.31]], [1 / 3] * 3),
    ],
)
def test_the_prior_of_each_setting(prior, weak, expected):
    found = class_prior(prior, torch.tensor(weak))
    assert found is None if expected is None else found.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_share_is_of_two_classes_and_between_zero_and_one():
    with pytest.raises(UserError, match=r"prior: 0.3 is the share of class 1 of two, not of 3"):
        class_prior(0.3, torch.full((2, 3), 1 / 3))
    with pytest.raises(UserError, match="prior"):
        build(TransferSettings, {"prior": 1.5})


def trained(tmp_path, chosen, held_out=(), watch=None, count=32, name="run"):
    features, weak = world(count)
    model = linear()
    train(
        model,
        lambda inputs: model(torch.stack(inputs)),
        rows_of(features, weak),
        chosen,
        RunFolder(tmp_path / name),
        prior=torch.tensor([0.5, 0.5]),
        held_out=held_out,
        watch=watch,
    )
    return model


@pytest.mark.parametrize("kind", ["logconf", "entropy"])
def test_without_weight_a_confident_loss_is_the_naive_one(tmp_path, kind):
    naive = trained(tmp_path, settings(), name="naive")
    mixed = trained(tmp_path, settings(kind=kind, most=0.0), name=kind)
    torch.testing.assert_close(mixed.weight, naive.weight, rtol=0, atol=1e-6)


def test_the_epoch_that_agrees_best_is_kept(tmp_path):
    """The held-out labels are the answers of the network after its second epoch, so no other agrees as well."""
    features, weak = world(32)
    snapshots = []

    def learned(held_out, name):
        model = linear()
        train(
            model,
            lambda inputs: model(torch.stack(inputs)),
            rows_of(features, weak),
            settings(epochs=4),
            RunFolder(tmp_path / name),
            prior=None,
            held_out=held_out,
            watch=lambda epoch: snapshots.append((epoch, copy.deepcopy(model.state_dict()))),
        )
        return model

    last = learned((), "without")
    assert [epoch for epoch, _ in snapshots] == [1, 2, 3, 4]
    assert torch.equal(last.weight, snapshots[3][1]["weight"])
    second = linear()
    second.load_state_dict(snapshots[1][1])
    others, _ = world(200, seed=9)
    answers = torch.eye(2)[second(others).argmax(1)]
    chosen = learned(rows_of(others, answers), "with")
    assert torch.equal(chosen.weight, second.weight)
    agreed = json.loads((tmp_path / "with" / "selection.json").read_text(encoding="utf-8"))["agreement"]
    assert agreed[1] == 1 > max(agreed[0], agreed[2], agreed[3])


class Stop(RuntimeError):
    pass


@pytest.mark.parametrize("stop_after", [4, 6, 8])
def test_a_run_begun_again_is_the_run_that_was_never_stopped(tmp_path, stop_after):
    """Cut steps, a moving weight, and a choice among epochs: checkpoints at every step, also between two epochs."""
    features, _ = world(20, seed=5)
    held_out = rows_of(features, torch.eye(2)[torch.arange(20) % 2])
    chosen = settings(epochs=3, micro=3, kind="logconf")
    chosen = chosen.model_copy(update={"fit": chosen.fit.model_copy(update={"checkpoint_every": 1})})
    whole = trained(tmp_path, chosen, held_out, name="whole")
    calls = []

    def stop(self, step, total):
        calls.append(step)
        if step == stop_after + 1 and len(calls) == stop_after + 1:
            raise Stop
        original(self, step, total)

    original = TransferTask.begin
    TransferTask.begin = stop
    try:
        with pytest.raises(Stop):
            trained(tmp_path, chosen, held_out, name="stopped")
        resumed = trained(tmp_path, chosen, held_out, name="stopped")
    finally:
        TransferTask.begin = original
    assert calls.count(stop_after + 1) == 2
    assert torch.equal(resumed.weight, whole.weight)
    agreed = [(tmp_path / name / "selection.json").read_text(encoding="utf-8") for name in ("whole", "stopped")]
    assert agreed[0] == agreed[1]


def test_a_finished_stage_is_only_loaded(tmp_path, monkeypatch):
    held_out = rows_of(*world(20, seed=5))
    first = trained(tmp_path, settings(), held_out)
    monkeypatch.setattr(TransferTask, "loss", None)
    again = trained(tmp_path, settings(), held_out)
    assert torch.equal(first.weight, again.weight)


def test_predictions_come_in_the_order_of_the_items():
    class Input:
        def __init__(self, value, length):
            self.value, self.length = value, length

    inputs = [Input(float(i), length) for i, length in enumerate((1, 5, 2, 4, 3))]
    seen = []

    def forward(rows):
        seen.append(len(rows))
        return torch.tensor([[0.0, row.value] for row in rows])

    assert predicted(nn.Linear(1, 1), forward, inputs, tokens=6)[:, 1].tolist() == [0, 1, 2, 3, 4]
    assert len(seen) > 1


def test_a_diverged_student_is_an_error(tmp_path):
    features, weak = world(8)
    model = linear()
    rows = [TransferRow(one * float("nan"), label, i) for i, (one, label) in enumerate(zip(features, weak))]
    task = task_of(model, rows, settings(kind="soft"))
    with pytest.raises(RunError, match=r"is nan \(rows \d"):
        fit(task, rows, (), settings().fit, RunFolder(tmp_path), stage="transfer")
