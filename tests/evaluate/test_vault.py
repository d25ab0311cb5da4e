"""The vault: numbers come out, labels do not; it is shut while somebody learns."""

import json
import math

import numpy as np
import pytest
import torch

from holdfast.errors import UserError
from holdfast.evaluate.vault import Vault

GOLD = {"a": 0, "b": 1, "c": 1, "d": 0}


def logits(*answers):
    return torch.eye(2)[list(answers)]


@pytest.fixture
def vault():
    return Vault(GOLD, 2, sealed=("c", "d"), groups={"c": "pair", "d": "pair"})


def test_labels_are_released_for_training_but_not_where_they_judge(vault):
    assert vault.release(["b", "a"], "supervisor").tolist() == [[0, 1], [1, 0]]
    with pytest.raises(UserError, match=r"1 of 2 labels asked for by the ceiling are sealed.*such as c"):
        vault.release(["a", "c"], "ceiling")
    assert vault.reads == {"supervisor": 2}


def test_readings_are_counted_by_purpose(vault):
    vault.accuracy(["a", "b"], logits(0, 0))
    vault.accuracy(["a"], logits(0), "audit")
    vault.curve(["c", "d"], torch.tensor([[1, 0], [1, 1], [0, 0]]))
    assert vault.reads == {"test": 2, "audit": 1, "curve": 2}


def test_accuracy_counts_groups(vault):
    assert vault.accuracy(["a", "b", "c", "d"], logits(0, 0, 1, 0)).value == pytest.approx(2 / 3)
    assert vault.accuracy(["a", "b", "c", "d"], logits(0, 0, 1, 0)).n == 3
    assert vault.correct(["a", "b"], logits(0, 0)).tolist() == [True, False]
    assert vault.curve(["c", "d"], torch.tensor([[1, 0], [1, 1], [0, 1]])) == [1.0, 0.5, 0.0]
    with pytest.raises(ValueError, match="as many rows"):
        vault.correct(["a"], logits(0, 0))


def test_locked_is_locked(vault):
    with vault.locked("student/logconf"):
        for reading in (
            lambda: vault.release(["a"], "ceiling"),
            lambda: vault.accuracy(["a"], logits(0)),
            lambda: vault.curve(["a"], torch.tensor([[0]])),
            lambda: vault.examine(["a"], *[torch.ones(1, 1, 2) / 2] * 3),
        ):
            with pytest.raises(UserError, match="student/logconf asked for gold labels"):
                reading()
    assert not vault.reads
    assert vault.accuracy(["a"], logits(0)).value == 1
    with pytest.raises(RuntimeError), vault.locked("x"):
        raise RuntimeError
    assert vault.accuracy(["a"], logits(0)).value == 1


def test_bad_labels_and_unknown_ids_are_named(vault):
    with pytest.raises(UserError, match="gold labels are 0 to 1; 1 are not, such as 2 of x"):
        Vault({"x": 2}, 2)
    with pytest.raises(UserError, match="no gold label for 1 of 2 items, such as z"):
        vault.accuracy(["a", "z"], logits(0, 0))


def test_no_public_name_gives_the_labels_away(vault):
    assert {name for name in vars(vault) if not name.startswith("_")} == {"classes", "reads"}


@pytest.fixture(scope="module")
def world():
    """200 items: the supervisor errs on the first 60, the student on the first 30, the ceiling on the first 10."""
    gold = torch.arange(200) % 2
    ids = [str(i) for i in range(200)]

    def wrong(count, sure):
        answers = gold.clone()
        answers[:count] = 1 - answers[:count]
        return torch.where(torch.eye(2)[answers] > 0, sure, 1 - sure)

    vault = Vault({id: int(label) for id, label in zip(ids, gold)}, 2)
    return vault, ids, wrong(60, 0.8), wrong(30, 0.9), wrong(10, 0.99)


def test_the_examination_by_hand(world):
    vault, ids, weak, student, ceiling = world
    found = vault.examine(ids, weak[None], student[None], ceiling[None], unsafe=1)
    json.dumps(found, allow_nan=False)
    # Accuracies .70, .85, .95.
    assert found["recovery"]["value"]["value"] == pytest.approx(0.15 / 0.25)
    assert found["recovery"]["weak"]["value"] == pytest.approx(0.7)
    assert found["agreement"]["on_right"]["value"] == 1
    assert found["agreement"]["on_wrong"]["value"] == pytest.approx(0.5)
    assert found["copied_mistakes"]["value"] == 1
    assert found["overconfidence"]["value"] == pytest.approx(0.9 - 0.85)
    # .1 apart on 170 items; .7 apart on the 30 whose mistake was not copied.
    assert found["misfit"]["value"] == pytest.approx((170 * 0.01 + 30 * 0.49) / 200, abs=1e-6)
    assert found["blind_spots"]["known"]["value"] == 0
    assert found["blind_spots"]["unknown"]["value"] == pytest.approx(20 / 50)
    assert math.isfinite(found["calibration_error"])
    assert found["recall"]["student"]["value"] < found["recall"]["ceiling"]["value"]


def test_each_seed_has_a_threshold_of_its_own():
    gold = [i % 2 for i in range(100)]
    rank = torch.tensor([0.6 + 0.003 * i if label else 0.004 * i for i, label in enumerate(gold)], dtype=torch.float64)
    sure, modest = (torch.stack([1 - p, p], -1) for p in (rank, 0.3 * rank))
    vault = Vault({str(i): label for i, label in enumerate(gold)}, 2)
    both = torch.stack([sure, modest])
    recall = vault.examine(list(map(str, range(100))), both, both, both, unsafe=1)["recall"]["student"]
    assert recall["value"] == 1
    assert recall["n"] == 50, "two answers to an item are one item"


def test_seeds_of_one_item_are_one_item(world):
    vault, ids, weak, student, ceiling = world
    once = vault.examine(ids, weak[None], student[None], ceiling[None])
    twice = vault.examine(ids, *(torch.stack([one, one]) for one in (weak, student, ceiling)))
    assert twice["agreement"]["everywhere"]["n"] == 200
    assert twice["agreement"]["everywhere"]["value"] == pytest.approx(once["agreement"]["everywhere"]["value"])
    assert twice["agreement"]["on_wrong"]["value"] == pytest.approx(once["agreement"]["on_wrong"]["value"])
    assert twice["overconfidence"]["value"] == pytest.approx(once["overconfidence"]["value"])
    assert twice["recovery"]["per_seed"] == pytest.approx(once["recovery"]["per_seed"] * 2)
    assert "recall" not in once


def test_items_of_one_group_are_resampled_together(world):
    _, ids, *models = world
    gold = {id: i % 2 for i, id in enumerate(ids)}
    found = Vault(gold, 2, groups={id: i // 4 for i, id in enumerate(ids)}).examine(ids, *(one[None] for one in models))
    assert found["recovery"]["gap"]["n"] == 50
    assert found["agreement"]["everywhere"]["n"] == 50


def test_a_copy_recovers_nothing_and_a_ceiling_everything(world):
    vault, ids, weak, _, ceiling = world
    copy = vault.examine(ids, weak[None], weak[None], ceiling[None])
    assert copy["recovery"]["value"]["value"] == 0
    assert copy["agreement"]["everywhere"]["value"] == 1
    assert copy["confident_disagreement"] is None or copy["confident_disagreement"]["value"] == 0
    whole = vault.examine(ids, weak[None], ceiling[None], ceiling[None])
    assert whole["recovery"]["value"]["value"] == 1
    upside_down = vault.examine(ids, ceiling[None], weak[None], weak[None])
    assert upside_down["recovery"]["value"] is None
    assert "better than the ceiling" in upside_down["recovery"]["reason"]
    assert np.isfinite(upside_down["recovery"]["gap"]["value"])
