"""Fitting a value head: what it learns from noise, which prompts choose the epoch, and how it is measured."""

import shutil

import numpy as np
import pytest
import torch

from holdfast.engine.log import RunFolder
from holdfast.errors import UserError
from holdfast.models.value import ValueHead, network_digest
from holdfast.rollout.reading import PromptStates
from holdfast.training import value
from holdfast.training.value import ValueRow, ValueSettings, ValueTask, calibration, fit_value, predict

H, WORDS = 16, 6


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def world(count, seed, samples=2, noise=0.1):
    """Prompts whose first word says what is earned, and rewards of `samples` noisy answers to each."""
    fixed, drawn = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    words, places = torch.randn(WORDS, H, generator=fixed), torch.randn(5, H, generator=fixed)
    texts = torch.randint(WORDS, (count, 5), generator=drawn)
    padding = torch.arange(5) >= torch.randint(1, 6, (count,), generator=drawn)[:, None]
    states = (words[texts] + places).masked_fill(padding[..., None], 0.0)
    of = torch.arange(count).repeat_interleave(samples)
    truth = torch.linspace(0.2, 0.8, WORDS)[texts[:, 0]][of]
    error = (noise * torch.randn(len(of), generator=drawn)).clamp(-0.2, 0.2)
    return PromptStates(states, padding), truth + error, of, error


def settings(epochs=40, rate=3e-3, **fit):
    given = ValueSettings(heads=4)
    optimiser = given.fit.optimiser.model_copy(update={"learning_rate": rate})
    return given.model_copy(
        update={"fit": given.fit.model_copy(update={"epochs": epochs, "optimiser": optimiser, **fit})}
    )


def head_of(seed=0, **options):
    return ValueHead(H, 4, seed=seed, **options)


def test_noisy_rewards_teach_what_the_first_word_earns():
    prompts, rewards, of, _ = world(250, seed=1)
    head = head_of()
    found = fit_value(head, prompts, rewards, of, settings(25))
    assert found.head is head
    assert not head.training
    new, earned, whose, error = world(400, seed=2)
    values = predict(head, new)
    floor = float(error.square().mean())
    assert float((values[whose] - earned).square().mean()) < 1.2 * floor
    assert 0 < float(values.min()) < float(values.max()) < 1
    seen = found.calibration
    assert seen.bias.low < 0 < seen.bias.high
    # The standard error of the slope is about 0.05: noise 0.1 over the root of 100 answers and a spread of 0.2.
    assert seen.slope == pytest.approx(1, abs=0.2)
    assert seen.error < 0.4 * seen.spread
    assert (seen.answers, seen.bias.n) == (100, 50)
    assert found.epoch > 0


def test_where_nothing_can_be_learned_the_head_says_nearly_the_mean():
    prompts, _, of, _ = world(60, seed=3)
    rewards = torch.rand(len(of), generator=torch.Generator().manual_seed(4))
    found = fit_value(head_of(), prompts, rewards, of, settings(8))
    # Epoch 0 is among those compared, so held-out prompts can lose nothing but the training mean's own error.
    constant = fit_value(head_of(), prompts, rewards, of, settings(1, rate=1e-12))
    assert found.calibration.error <= constant.calibration.error
    assert constant.calibration.slope is None
    assert constant.epoch == 0


def spied(monkeypatch):
    """What the loop is given to learn from, and to hold out."""
    seen, original = {}, value.fit_or_scratch

    def fit(task, rows, *args, held_out, **kwargs):
        seen.update(train=list(rows), held_out=list(held_out), task=task)
        return original(task, rows, *args, held_out=held_out, **kwargs)

    monkeypatch.setattr(value, "fit_or_scratch", fit)
    return seen


def test_held_out_prompts_are_held_out_with_all_their_answers(monkeypatch):
    seen = spied(monkeypatch)
    prompts, rewards, of, _ = world(30, seed=5, samples=3)
    order = torch.randperm(len(of), generator=torch.Generator().manual_seed(0))
    fit_value(head_of(), prompts, rewards[order], of[order], settings(1))
    train, held = ({row.prompt for row in seen[name]} for name in ("train", "held_out"))
    assert len(held) == 6
    assert not train & held
    assert train | held == set(range(30))
    for row in seen["train"] + seen["held_out"]:
        assert sorted(row.rewards) == pytest.approx(sorted(rewards[of == row.prompt].tolist()))
        assert row.length == int((~prompts.padding[row.prompt]).sum())
    other = settings(1, seed=1)
    fit_value(head_of(), prompts, rewards, of, other)
    assert {row.prompt for row in seen["held_out"]} != held


def test_the_first_guess_is_the_mean_reward_of_the_training_prompts(monkeypatch):
    seen = spied(monkeypatch)
    prompts, rewards, of, _ = world(20, seed=6, samples=1)
    head = head_of(low=-1.0, high=2.0)
    with torch.no_grad():
        head.last.weight.fill_(3.0)
    fit_value(head, prompts, rewards, of, settings(1, rate=1e-12))
    wanted = np.mean([reward for row in seen["train"] for reward in row.rewards])
    assert predict(head, prompts).tolist() == pytest.approx([wanted] * 20, abs=1e-5)


def test_the_loss_is_the_squared_error_of_every_answer():
    prompts, _, _, _ = world(4, seed=7)
    head = head_of().eval()
    torch.nn.init.normal_(head.last.weight, generator=torch.Generator().manual_seed(0))
    rows = [ValueRow(2, (0.1, 0.7, 0.4), 5), ValueRow(0, (0.9,), 5)]
    task = ValueTask(head, prompts, rows, settings().fit)
    batch = task.collate(rows)
    values = predict(head, prompts).tolist()
    errors = [(values[row.prompt] - reward) ** 2 for row in rows for reward in row.rewards]
    loss = task.loss(batch)["squared_error"]
    assert float(loss.total.detach()) == pytest.approx(sum(errors), abs=1e-6)
    assert task.counts(batch) == {"squared_error": 4.0}
    assert float(loss.count) == 4


def test_the_head_of_the_best_epoch_is_kept():
    prompts, rewards, of, _ = world(40, seed=8, noise=0.3)
    head = head_of()
    found = fit_value(head, prompts, rewards, of, settings(30, rate=1e-2))
    assert 0 < found.epoch < 30, "this is long enough to overfit"
    shorter = head_of()
    assert fit_value(shorter, prompts, rewards, of, settings(found.epoch, rate=1e-2)).epoch == found.epoch
    assert network_digest(shorter) == network_digest(head)


def test_a_head_is_read_without_dropout_whatever_its_mode():
    prompts, rewards, of, _ = world(20, seed=9)
    head = head_of(dropout=0.5)
    fit_value(head, prompts, rewards, of, settings(2))
    wanted = head(prompts.states, prompts.padding).detach()
    head.train()
    torch.testing.assert_close(predict(head, prompts), wanted, rtol=0, atol=1e-6)
    assert head.training


def test_many_prompts_are_read_in_portions(monkeypatch):
    prompts, _, _, _ = world(11, seed=10)
    head = head_of()
    torch.nn.init.normal_(head.last.weight, generator=torch.Generator().manual_seed(0))
    wanted = predict(head, prompts)
    monkeypatch.setattr(value, "_AT_ONCE", 3)
    torch.testing.assert_close(predict(head, prompts), wanted, rtol=0, atol=1e-6)


def test_a_run_is_resumed_to_the_same_head(tmp_path):
    prompts, rewards, of, _ = world(30, seed=11)

    def fitted(folder=None):
        head, run = head_of(dropout=0.2), None if folder is None else RunFolder(folder)
        found = fit_value(head, prompts, rewards, of, settings(4, batch_size=8, checkpoint_every=5), run)
        return network_digest(head), found.epoch

    whole = fitted()
    assert fitted(tmp_path) == whole
    folders = sorted((tmp_path / "checkpoints" / "value").iterdir())
    assert [folder.name for folder in folders] == ["step-000000010", "step-000000012"]
    shutil.rmtree(folders[-1])
    assert fitted(tmp_path) == whole
    assert fitted(tmp_path) == whole, "a finished stage is only loaded"


def test_the_cut_into_micro_batches_changes_nothing():
    prompts, rewards, of, _ = world(30, seed=11)
    heads = [head_of(dropout=0.0) for _ in range(2)]
    for head, micro_tokens in zip(heads, (None, 7)):
        fit_value(head, prompts, rewards, of, settings(4, batch_size=8, micro_tokens=micro_tokens))
    one, two = (predict(head, prompts) for head in heads)
    # Twelve steps of Adam, which turns gradients that differ by rounding into steps of full size.
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_calibration_is_that_of_the_least_squares():
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 1, 50)
    rewards = 0.1 + 1.5 * values + rng.normal(0, 0.1, 50)
    found = calibration(values, rewards, [i // 2 for i in range(50)])
    assert found.slope == pytest.approx(np.polyfit(values, rewards, 1)[0])
    assert found.bias.value == pytest.approx(np.mean(rewards - values))
    assert found.bias.n == 25
    assert found.error == pytest.approx(np.mean((rewards - values) ** 2))
    assert found.spread == pytest.approx(np.mean((rewards - rewards.mean()) ** 2))
    assert found.to_dict()["bias"]["n"] == 25
    assert calibration([0.3, 0.3, 0.3], [0.0, 0.5, 1.0], ["a", "b", "c"]).slope is None


def test_settings_make_a_head():
    head = ValueSettings(heads=2, dropout=0.3).head(H, -1.0, 4.0)
    assert head.facts == {"hidden": H, "heads": 2, "low": -1.0, "high": 4.0, "dropout": 0.3}


def test_what_cannot_be_learned_from_is_refused():
    prompts, rewards, of, _ = world(20, seed=12)
    spoilt = rewards.clone()
    spoilt[[3, 4]] = torch.nan
    with pytest.raises(UserError, match="2 of 40 answers have no finite reward"):
        fit_value(head_of(), prompts, spoilt, of)
    with pytest.raises(UserError, match=r"and the value head only from 0 to 0\.5; give the head the range"):
        fit_value(head_of(high=0.5), prompts, rewards, of)
    with pytest.raises(UserError, match=r"and the value head only from 0\.5 to 1; give the head the range"):
        fit_value(head_of(low=0.5), prompts, rewards, of)
    with pytest.raises(UserError, match="3 prompts are too few to fit a value to: 2 would be held out and 1 left"):
        fit_value(head_of(), prompts, rewards[:6], of[:6])
    with pytest.raises(ValueError, match="40 rewards need a prompt each, below 20"):
        fit_value(head_of(), prompts, rewards, of[:-1])
    with pytest.raises(ValueError, match="40 rewards need a prompt each, below 20"):
        fit_value(head_of(), prompts, rewards, of + 1)
