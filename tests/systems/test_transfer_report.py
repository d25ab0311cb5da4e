"""The report of outcomes that are written out by hand: whose seeds, whose rows, whose epoch, and which warnings."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import one_hot

from holdfast.evaluate.vault import Vault
from holdfast.preference.weak_labels import Calibration, WeakLabels
from holdfast.systems.transfer_plan import Curve, Outcome, Plan, Pool, Pools
from holdfast.systems.transfer_report import reported
from holdfast.training.transfer import TransferSettings

TEST, TRANSFER = tuple(f"t{i}" for i in range(20)), ("a", "b")
GOLD = {id: i % 2 for i, id in enumerate(TEST)} | {"a": 0, "b": 1}


def right(count):
    """Probabilities (20, 2) of a model that is right on the first `count` test items."""
    y = torch.tensor([GOLD[id] for id in TEST])
    y[count:] = 1 - y[count:]
    return 0.8 * one_hot(y, 2).float() + 0.1


def labels(note=""):
    return WeakLabels(TRANSFER, torch.tensor([[0.0, 2.0], [0.0, -1.0]]), "weak", Calibration(note=note))


def curve(agreed=()):
    """An epoch that is right on 5, one on 15, one on 10 items."""
    return Curve(torch.stack([right(count).argmax(1) for count in (5, 15, 10)]), list(agreed))


def plan(seeds=(7, 9), **changes):
    pools = Pools(Pool(), Pool(TRANSFER, [0, 1]), Pool(), Pool(TEST, list(TEST)))
    weak, strong = SimpleNamespace(name="words"), SimpleNamespace(name="network")
    whole = {"pools": lambda seed: pools, "vault": Vault(GOLD, 2), "supervisor": weak, "student": strong}
    own = TransferSettings()
    return Plan(**whole, supervised=own, ceiling=own, students={"soft": own}, seeds=seeds, **changes)


def outcome(student=12, chained=None, agreed=(), ended="", note=""):
    students = {"soft": right(student)} | ({"soft_bootstrapped": right(chained)} if chained else {})
    return Outcome(right(8), right(18), students, dict.fromkeys(students, curve(agreed)), labels(note), ended)


def test_a_student_is_judged_in_the_seeds_that_have_it():
    found = reported(plan(), [outcome(10, ended="it fell"), outcome(14, chained=16)])
    naive, chained = (found["students"][name] for name in ("soft", "soft_bootstrapped"))
    assert (naive["seeds"], chained["seeds"]) == ([7, 9], [9])
    assert naive["recovery"]["student"]["value"] == pytest.approx(0.6)
    assert chained["recovery"]["student"]["value"] == pytest.approx(0.8)
    assert [len(one["stopping"]) for one in (naive, chained)] == [2, 1]
    assert found["accuracy"] == {"supervisor": [pytest.approx(0.4)] * 2, "ceiling": [pytest.approx(0.9)] * 2}
    assert found["learners"] == {"supervisor": "words", "student": "network"}
    assert found["items"] == {"transfer": 2, "test": 20}, "empty pools are not mentioned"
    assert found["bootstrapping_ended"] == ["it fell", ""]
    assert [one for one in found["warnings"] if "ended" in one] == ["seed 7: bootstrapping ended, it fell"]


@pytest.mark.parametrize("agreed, chosen", [((0.9, 0.8, 0.7), 0.25), ((0.1, 0.2, 0.3), 0.5), ((), 0.5)])
def test_an_epoch_is_chosen_by_weak_labels_or_is_the_last(agreed, chosen):
    found = reported(plan(seeds=(0,)), [outcome(agreed=agreed)])
    [one] = found["students"]["soft"]["stopping"]
    assert one["gold"] == [0.25, 0.75, 0.5]
    assert (one["last"], one["chosen"], one["oracle"]) == (0.5, chosen, 0.75)
    assert one["gap"] == pytest.approx(0.75 - chosen)


def test_labels_are_described_by_class_or_by_the_surest_of_many():
    found = reported(plan(seeds=(0,)), [outcome(note="too few")])
    p = torch.tensor([[0.0, 2.0], [0.0, -1.0]]).softmax(-1)
    [one] = found["labels"]
    assert one["mean"] == pytest.approx(p.mean(0).tolist())
    assert one["sd"] == pytest.approx((abs(p[0] - p[1]) / 2).tolist())
    assert "seed 0: labels are not calibrated, too few" in found["warnings"]
    many = Outcome(right(8), right(18), {}, {}, WeakLabels(TRANSFER, torch.eye(17)[:2] * 9, "weak"))
    [wide] = reported(plan(seeds=(0,)), [many])["labels"]
    surest = float((torch.eye(17)[0] * 9).softmax(-1).amax())
    assert wide["mean"] == [pytest.approx(surest)]
    assert wide["sd"] == [pytest.approx(0.0, abs=1e-6)]


def test_places_in_a_pool_name_ids_and_items_alike():
    assert Pool(("a", "b", "c"), [1, 2, 3]).take([2, 0]) == Pool(("c", "a"), [3, 1])
    named = Pools(Pool(), Pool(("a",), [1]), Pool(), Pool(("b",), [2]), (Pool(("c",), [3]), Pool(("d",), [4])))
    assert list(named.named()) == ["transfer", "test", "fresh 1", "fresh 2"]
