"""Few-shot weights: the exact regret identity, what the labels of a person are worth, and the store that keeps them."""

import json
import math
import os

import pytest
import torch

from holdfast.errors import UserError
from holdfast.preference import adapt as module
from holdfast.preference.adapt import UserStore, adapt, capped, sequential

NAMES = ("brief", "thorough", "polite")


def t(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def near(expected):
    """Equal to numbers given with six digits."""
    return pytest.approx(expected, abs=1e-6)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def uniform(heads):
    return torch.zeros(heads, dtype=torch.float64).log_softmax(-1)


ROUNDS = t([0.9, 0.5, 0.2], [0.8, 0.6, 0.3], [0.3, 0.7, 0.9], [0.9, 0.4, 0.1])


def test_the_regret_identity_by_hand():
    deltas = torch.special.logit(ROUNDS)
    losses = sequential(uniform(3), deltas)
    assert losses[0].item() == near(-math.log((0.9 + 0.5 + 0.2) / 3))
    assert losses.sum().item() == near(2.358098)
    heads = (-ROUNDS.log()).sum(0)
    assert heads.tolist() == near([1.637837, 2.476938, 5.221356])
    assert losses.sum().item() == near(-math.log(sum(ROUNDS.prod(0).tolist()) / 3))
    assert losses.sum().item() <= heads.min().item() + math.log(3) == near(2.736450)
    assert adapt(uniform(3), deltas).exp().tolist() == near([0.684989, 0.295983, 0.019027])


def test_the_identity_holds_for_any_labels_and_any_prior():
    rng = torch.Generator().manual_seed(0)
    for _ in range(30):
        deltas = 3 * torch.randn(12, 4, generator=rng, dtype=torch.float64)
        prior = torch.randn(4, generator=rng, dtype=torch.float64).softmax(-1)
        slow, weights = [], prior.tolist()
        for row in deltas.tolist():
            p = sum(w * sigmoid(d) for w, d in zip(weights, row))
            slow.append(-math.log(p))
            weights = [w * sigmoid(d) / p for w, d in zip(weights, row)]
        found = sequential(prior.log(), deltas)
        assert found.tolist() == pytest.approx(slow, abs=1e-10)
        assert adapt(prior.log(), deltas).exp().tolist() == pytest.approx(weights, abs=1e-10)
        whole = -torch.logsumexp(prior.log() + torch.nn.functional.logsigmoid(deltas).sum(0), 0)
        assert found.sum().item() == pytest.approx(whole.item(), abs=1e-10)
        regret = found.sum() - (-torch.nn.functional.logsigmoid(deltas).sum(0) - prior.log()).min()
        assert regret.item() <= 1e-12


def test_no_labels_give_the_prior_and_their_order_is_irrelevant():
    prior = t(0.5, 0.3, 0.2).log()
    assert torch.equal(adapt(prior, torch.empty(0, 3)), prior)
    assert sequential(prior, torch.empty(0, 3)).shape == (0,)
    deltas = torch.special.logit(ROUNDS)
    torch.testing.assert_close(adapt(prior, deltas.flip(0)), adapt(prior, deltas))
    cooler, hotter = adapt(prior, deltas, tau=0.1).exp(), adapt(prior, deltas, tau=10.0).exp()
    assert cooler.max() > adapt(prior, deltas).exp().max() > hotter.max()


@pytest.mark.parametrize(
    "labels, accuracy", [(1, 0.790013), (2, 0.790013), (3, 0.850912), (5, 0.870094), (10, 0.879274), (20, 0.880782)]
)
def test_what_m_labels_are_worth_with_mirrored_heads(labels, accuracy):
    """The user is the first head, labels are noisy; the next pair is decided by the weightier head, ties by a coin."""
    p, expected = sigmoid(2.0), 0.0
    for agreeing in range(labels + 1):
        chance = math.comb(labels, agreeing) * p**agreeing * (1 - p) ** (labels - agreeing)
        signs = t(*[1.0] * agreeing, *[-1.0] * (labels - agreeing))
        weights = adapt(uniform(2), 2 * signs[:, None] * t(1.0, -1.0)).exp()
        first = float(weights[0])
        right = 0.5 if abs(first - 0.5) < 1e-9 else p if first > 0.5 else 1 - p
        expected += chance * right
    assert expected == near(accuracy)


# The safety rule.


def test_labels_cannot_lift_unaudited_heads_above_their_share():
    even, unaudited = uniform(4), torch.tensor([True, True, False, False])
    eager = t(0.6, 0.3, 0.04, 0.06).log()
    found = capped(eager, even, unaudited).exp()
    assert found.tolist() == pytest.approx([0.5 * 2 / 3, 0.5 / 3, 0.2, 0.3])
    assert capped(eager, even, unaudited, w_max=0.9).exp().tolist() == pytest.approx(eager.exp().tolist())
    assert capped(eager, even, unaudited, w_max=0.6).exp()[:2].sum().item() == pytest.approx(0.6)
    assert torch.equal(capped(even, even, unaudited), even)


def test_the_share_before_any_label_is_always_allowed():
    prior, unaudited = t(0.8, 0.2).log(), torch.tensor([True, False])
    assert torch.equal(capped(prior, prior, unaudited), prior)
    assert capped(t(0.9, 0.1).log(), prior, unaudited).exp().tolist() == pytest.approx([0.8, 0.2])
    assert torch.equal(capped(t(0.3, 0.7).log(), prior, unaudited), t(0.3, 0.7).log())
    everything = torch.tensor([True, True])
    assert torch.equal(capped(t(0.9, 0.1).log(), prior, everything), t(0.9, 0.1).log())


def test_audited_heads_without_any_weight_take_over_as_they_stood():
    found = capped(t(1.0, 0.0, 0.0).log(), t(0.2, 0.6, 0.2).log(), torch.tensor([True, False, False]))
    assert found.exp().tolist() == pytest.approx([0.5, 0.375, 0.125])
    assert capped(t(0.7, 0.0, 0.3).log(), t(0.5, 0.0, 0.5).log(), torch.tensor([True, False, False]))[1] == -torch.inf


# The store.


def labels(*rows):
    return torch.tensor(rows, dtype=torch.float32)


def test_a_store_learns_and_comes_back_bit_for_bit(tmp_path):
    store = UserStore(NAMES, t(0.5, 0.3, 0.2).log())
    store.learn("ada", labels([2.0, -1.0, 0.0], [3.0, 0.5, -1.0]))
    store.learn("ada", labels([0.1, 0.2, 0.3]))
    store.learn("zoe \u00e9", labels([-50.0, 40.0, -300.0]))
    at_once = adapt(t(0.5, 0.3, 0.2).log(), labels([2.0, -1.0, 0.0], [3.0, 0.5, -1.0], [0.1, 0.2, 0.3]).double())
    torch.testing.assert_close(store.log_weights("ada"), at_once.float())
    store.save(tmp_path / "users.json")
    again = UserStore.load(tmp_path / "users.json", NAMES)
    assert again.users == store.users == ("ada", "zoe \u00e9")
    for user in (*store.users, "nobody"):
        assert torch.equal(again.log_weights(user), store.log_weights(user))
        assert again.n_labels(user) == store.n_labels(user)
    again.learn("ada", labels([1.0, 1.0, -1.0]))
    store.learn("ada", labels([1.0, 1.0, -1.0]))
    assert torch.equal(again.log_weights("ada"), store.log_weights("ada"))
    assert (store.n_labels("ada"), store.n_labels("zoe \u00e9")) == (4, 1)


def test_someone_without_labels_gets_the_prior_and_is_known_to_have_none():
    store = UserStore(NAMES, t(0.5, 0.3, 0.2).log())
    store.learn("new", torch.empty(0, 3))
    assert store.log_weights("new").exp().tolist() == pytest.approx([0.5, 0.3, 0.2])
    assert store.n_labels("new") == 0
    assert store.users == ()
    store.learn("new", labels([1.0, 0.0, 0.0]))
    assert store.n_labels("new") == 1
    store.forget("new")
    assert store.n_labels("new") == 0
    assert UserStore(NAMES).log_weights("x").exp().tolist() == pytest.approx([1 / 3] * 3)


def test_the_cap_holds_on_the_way_out_so_a_later_audit_counts(tmp_path):
    store = UserStore(NAMES)
    store.learn("ada", labels([5.0, -5.0, -5.0]))
    assert store.log_weights("ada").exp()[0] > 0.9
    store.save(tmp_path / "users.json")
    strict = UserStore.load(tmp_path / "users.json", NAMES, unaudited=["brief"], w_max=0.4)
    assert strict.log_weights("ada").exp().tolist() == pytest.approx([0.4, 0.3, 0.3])
    with pytest.raises(UserError, match="no heads called rude; the heads are brief, thorough, polite"):
        UserStore(NAMES, unaudited=["rude"])
    with pytest.raises(UserError, match="w_max, the largest share of unaudited heads, lies between 0 and 1, got 2"):
        UserStore(NAMES, w_max=2)


@pytest.mark.parametrize(
    "names, message",
    [
        (("brief", "thorough"), r"weights over 3 heads \(brief, thorough, polite\), and the model has 2"),
        (("brief", "polite", "thorough"), r"the model has 3 \(brief, polite, thorough\); weights mean nothing"),
    ],
)
def test_weights_of_other_heads_are_refused(tmp_path, names, message):
    UserStore(NAMES).save(tmp_path / "users.json")
    with pytest.raises(UserError, match=message):
        UserStore.load(tmp_path / "users.json", names)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda v: v.pop("prior"), "is no user store: it needs heads, prior, and users"),
        (lambda v: v["users"]["ada"].pop("n_labels"), "is no user store"),
        (
            lambda v: v["users"]["ada"].update(weights=[0.5, 0.5]),
            "user ada: its weights are not 3 shares that",
        ),
        (lambda v: v["users"]["ada"].update(weights=[0.5, 0.9, -0.4]), "user ada: its weights are not 3 shares"),
        (lambda v: v.update(prior=[1.0, 1.0, 1.0]), "the prior: its weights are not 3 shares"),
    ],
)
def test_damaged_stores_are_refused(tmp_path, change, message):
    store = UserStore(NAMES)
    store.learn("ada", labels([1.0, 0.0, 0.0]))
    file = tmp_path / "users.json"
    store.save(file)
    values = json.loads(file.read_text("utf-8"))
    assert values["heads"] == list(NAMES)
    assert values["users"]["ada"]["n_labels"] == 1
    change(values)
    file.write_text(json.dumps(values), "utf-8")
    with pytest.raises(UserError, match=message):
        UserStore.load(file, NAMES)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no users at .*gone\.json"):
        UserStore.load(tmp_path / "gone.json", NAMES)
    (tmp_path / "cut.json").write_text('{"heads": [', "utf-8")
    with pytest.raises(UserError, match=r"cut.json is not JSON .* restore it from a copy"):
        UserStore.load(tmp_path / "cut.json", NAMES)


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "users.json"
    store = UserStore(NAMES)
    store.save(file)
    before = file.read_bytes()
    store.learn("ada", labels([1.0, 0.0, 0.0]))

    def crash(handle):
        raise OSError("the disk is full")

    monkeypatch.setattr(module.os, "fsync", crash)
    with pytest.raises(OSError, match="full"):
        store.save(file)
    assert file.read_bytes() == before
    monkeypatch.setattr(module.os, "fsync", os.fsync)


def test_labels_of_other_heads_or_without_numbers_are_refused():
    store = UserStore(NAMES)
    with pytest.raises(UserError, match=r"labels of 'ada' must have a column for each of brief, .*, got \(1, 2\)"):
        store.learn("ada", labels([1.0, 2.0]))
    with pytest.raises(UserError, match="labels of 'ada' have rewards that are not finite"):
        store.learn("ada", labels([1.0, math.nan, 0.0]))
    with pytest.raises(ValueError, match=r"3 heads need a prior of as many, got \(2,\)"):
        UserStore(NAMES, uniform(2))
