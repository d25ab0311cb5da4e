"""The study of real preferences: its folds, its labels and its criteria, on worlds whose truth is known."""

import gzip
import json

import numpy as np
import pytest
import torch

from holdfast.errors import UserError
from holdfast.preference.features import PairFeatures
from holdfast.preference.mixture import train_heads
from holdfast.stats.estimate import per_cluster
from holdfast.studies import hh, micro_hh, micro_hh_fold
from holdfast.studies.micro_hh_fold import Fold, Plan, Tally, World, folds, shortened, turned

PLAN = Plan(
    folds=2,
    steps=40,
    restarts=1,
    penalties=(1e-3, 1e-2),
    scratch_penalties=(1e-2,),
    budgets=(5, 50),
    scratch_budgets=(5,),
    few_shot=(50,),
    draws=3,
    scratch_draws=1,
    user_pairs=10,
    axes=2,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small lose more to waiting threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def opposed(n=600, informed=True):
    """Two groups with opposite tastes on one axis; prompts tell the group when `informed`."""
    rng = np.random.default_rng(0)
    harmless = np.arange(n) % 2 == 0
    taste = np.where(harmless, -1.0, 1.0)
    difference = rng.normal(size=(n, 4))
    difference[:, 0] = taste * np.abs(difference[:, 0])
    prompt = rng.normal(size=(n, 3)) * 0.1
    prompt[:, 0] += taste * informed
    features = PairFeatures(torch.tensor(difference).float(), torch.tensor(prompt).float())
    return World(features, harmless, tuple(f"prompt {i}" for i in range(n)), np.where(harmless, 0.0, 1.0))


def fold_of(world, tally):
    part = folds(world.prompts, 2, 0)
    return Fold(PLAN, world, np.flatnonzero(part == 0), np.flatnonzero(part == 1), 0, tally)


@pytest.fixture(scope="module")
def measured():
    world = opposed()
    tally = Tally(len(world.prompts))
    fold_of(world, tally).run()
    return tally.means(), world


def test_every_arm_finds_what_its_world_holds(measured):
    means, _ = measured
    found = {arm: np.nanmean(values) for arm, values in means.items()}
    for group, other in (hh.GROUPS, hh.GROUPS[::-1]):
        assert found[f"R0 {group} alone"] > 0.9
        assert found[f"R0 {group} alone, asked about {other}"] < 0.1
    assert found["R1 per-group BT"] > 0.9
    assert 0.35 < found["R1 single BT"] < 0.65
    assert 0.35 < found["R1 static K=2"] < 0.65
    assert found["R1 MiCRo K=2"] > 0.9
    assert found["R1 MiCRo K=4"] > 0.9
    assert found["R1 conditioned BT"] > 0.9
    assert found["R1 posterior, 50 labels"] > 0.9
    assert 0.35 < found["R1 posterior, 0 labels"] < 0.65
    assert found["R1 longer wins, helpful"] == 1.0
    assert found["R1 longer wins, harmless"] == 0.0
    assert found["R2 single BT"] > 0.9
    assert found["R2 MiCRo K=2"] > 0.9
    assert found["R4 single BT, first type"] + found["R4 single BT, second type"] == pytest.approx(1.0)
    assert found["R4 sessions, larger head"] > 0.9
    assert found["R4 sessions, smaller head"] < 0.1
    assert found["R4 few-shot, 50 labels"] > 0.9
    assert found["R4 few-shot, 0 labels"] == pytest.approx(0.5)
    assert 0 <= found["spread R1 MiCRo K=2"] < 0.6


def test_only_test_pairs_are_asked_and_none_of_the_labels_told(measured):
    means, world = measured
    test = folds(world.prompts, 2, 0) == 1
    for arm, values in means.items():
        assert np.isnan(values[~test]).all(), arm
    for arm in ("R1 single BT", "R1 per-group BT", "R1 MiCRo K=2", "R4 sessions, larger head"):
        assert not np.isnan(means[arm][test]).any()


def test_labels_told_are_of_one_group_and_never_asked():
    world = opposed(120)
    fold = fold_of(world, Tally(120))
    groups = set()
    for budget, told, rest in fold._labels((5, 20), 2):
        assert len(told) == budget
        assert not set(told.tolist()) & set(rest.tolist())
        harmless = set(world.harmless[fold.test[np.concatenate([told, rest])]].tolist())
        assert len(harmless) == 1
        assert len(told) + len(rest) == (world.harmless[fold.test] == next(iter(harmless))).sum()
        groups |= harmless
    assert groups == {False, True}


def test_equal_prompts_share_a_fold_and_every_fold_gets_prompts():
    prompts = [f"p{i % 30}" for i in range(90)]
    part = folds(prompts, 5, seed=1)
    assert all(len(set(part[i::30].tolist())) == 1 for i in range(30))
    assert np.bincount(part).tolist() == [18] * 5
    assert not np.array_equal(part, folds(prompts, 5, seed=2))


def test_turning_labels_turns_answers():
    features = PairFeatures(torch.tensor([[2.0], [3.0]]), torch.ones(2, 1))
    assert turned(features, -1.0).difference.tolist() == [[-2.0], [-3.0]]
    assert turned(features, np.array([1.0, -1.0])).difference.tolist() == [[2.0], [-3.0]]


def test_prompts_are_read_along_axes_from_their_centre():
    features = PairFeatures(torch.ones(1, 1), torch.tensor([[3.0, 5.0]]))
    centre, axes = torch.tensor([1.0, 2.0]), torch.tensor([[1.0], [10.0]])
    assert shortened(features, centre, axes).router.tolist() == [[32.0]]
    assert shortened(features, None, None) is features


def test_hidden_users_are_learned_from_pairs_and_from_sessions(monkeypatch):
    seen = []

    def watched(features, settings):
        seen.append((settings.session, settings.router, features.session.bincount().tolist()))
        return train_heads(features, settings)

    monkeypatch.setattr(micro_hh_fold, "train_heads", watched)
    world = opposed(80)
    fold_of(world, Tally(80)).hidden(1e-2)
    users = [PLAN.user_pairs] * 4
    assert seen == [("pair", "static", users), ("auto", "static", users)]


def test_a_tally_averages_over_the_times_a_pair_was_asked():
    tally = Tally(3)
    tally.judge("a", np.array([0, 1]), torch.tensor([0.9, 0.5]))
    tally.judge("a", np.array([0]), torch.tensor([0.1]))
    np.testing.assert_array_equal(tally.means()["a"], [0.5, 0.5, np.nan])


def test_features_are_scaled_differences_of_the_right_texts():
    rows = [
        hh.Comparison("harmless", "Human: q", "q", "one two", "one"),
        hh.Comparison("helpful", "p", "p", "x", "y z"),
    ]
    assert micro_hh.texts(rows[0]) == ("one two", "one", "q\n\none two", "q\n\none", "Human: q")
    embedded = np.arange(20, dtype=np.float32).reshape(10, 2) ** 2
    world = micro_hh.world_of(rows, embedded, scale=5.0)
    for i in range(2):
        a, b, c, d, prompt = embedded[5 * i : 5 * i + 5]
        np.testing.assert_array_equal(world.features.difference[i], 5 * np.concatenate([a - b, c - d]))
        np.testing.assert_array_equal(world.features.router[i], prompt)
    assert world.harmless.tolist() == [True, False]
    assert world.longer.tolist() == [1.0, 0.0]


def test_seeds_are_averaged_pair_by_pair_and_the_best_penalty_is_taken():
    one = {"R1 a": np.array([1.0, np.nan, np.nan]), "scratch 50 0.1": np.ones(3), "scratch 50 1": np.zeros(3)}
    two = {"R1 a": np.array([0.0, 1.0, np.nan]), "scratch 50 0.1": np.zeros(3), "scratch 50 1": np.zeros(3)}
    found = micro_hh.average([one, two])
    np.testing.assert_array_equal(found["R1 a"], [0.5, 1.0, np.nan])
    np.testing.assert_array_equal(found["R1 scratch BT, 50 labels"], [0.5, 0.5, 0.5])
    assert set(found) == {"R1 a", "R1 scratch BT, 50 labels"}


LEVELS = {
    "R1 single BT": 0.54,
    "R1 MiCRo K=2": 0.58,
    "R1 posterior, 50 labels": 0.61,
    "R1 scratch BT, 50 labels": 0.56,
    "R2 single BT": 0.61,
    "R2 MiCRo K=2": 0.615,
    "R4 sessions, larger head": 0.6,
    "R4 sessions, smaller head": 0.4,
    "R4 few-shot, 50 labels": 0.6,
}


@pytest.mark.parametrize(
    "arm, level, broken",
    [
        (None, 0.0, set()),
        ("R1 single BT", 0.565, {"conflict", "routed"}),
        ("R1 MiCRo K=2", 0.555, {"routed"}),
        ("R1 posterior, 50 labels", 0.585, {"few_labels"}),
        ("R1 scratch BT, 50 labels", 0.6, {"worth"}),
        ("R2 MiCRo K=2", 0.63, {"no_harm"}),
        ("R2 MiCRo K=2", 0.59, {"no_harm"}),
        ("R4 sessions, smaller head", 0.51, {"sessions"}),
        ("R4 few-shot, 50 labels", 0.57, {"new_user"}),
    ],
)
def test_criteria_break_where_they_should(arm, level, broken):
    n = 4000
    levels = LEVELS | ({arm: level} if arm else {})
    means = {name: (np.arange(n) < round(value * n)).astype(float) for name, value in levels.items()}
    found = micro_hh.criteria(means, [str(i) for i in range(n)])
    assert {one["name"] for one in found if not one["holds"]} == broken


def test_a_gain_that_is_too_uncertain_does_not_count():
    n, rng = 2000, np.random.default_rng(0)
    means = {name: (rng.random(n) < value).astype(float) for name, value in LEVELS.items()}
    means["R1 MiCRo K=2"] = np.clip(means["R1 MiCRo K=2"] + 0.05, 0, 1)
    prompts = [str(i) for i in range(n)]
    gain = per_cluster(means["R1 MiCRo K=2"] - means["R1 single BT"], None)
    assert gain.std(ddof=1) / n**0.5 > 0.01
    (routed,) = [one for one in micro_hh.criteria(means, prompts) if one["name"] == "routed"]
    assert routed["value"] == pytest.approx(gain.mean())
    assert not routed["holds"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder like the one of the real files, with words that helpful and harmless people see differently."""
    rng, folder = np.random.default_rng(0), tmp_path / "shared" / "data" / "hh"
    folder.mkdir(parents=True)
    for group, (good, bad) in zip(hh.GROUPS, (("yes sure", "no never"), ("no never", "yes sure")), strict=True):
        rows = []
        for i in range(130):
            asked = [f"<|prompter|>{group} question {i} about {rng.choice(['tea', 'rain', 'cats'])}", "<|assistant|>"]
            rows.append(json.dumps({"prefix": [asked, asked], "suffix": [f"{good} {i}", f"{bad} {i} now"]}) + "\n")
        (folder / f"lolrl_hh_test_{group}_base.jsonl.gz").write_bytes(gzip.compress("".join(rows).encode()))
    listed = {f"{group}_base.json": [0] for group in hh.GROUPS}
    (folder / "lolrl_bad_test_indices_by_file.json.gz").write_bytes(gzip.compress(json.dumps(listed).encode()))
    monkeypatch.setenv("HOLDFAST_SHARED", str(tmp_path / "shared"))
    small = {"pairs": 120, "small_steps": 2, "steps": 10, "draws": 2, "budgets": (50,), "few_shot": (50,)}
    monkeypatch.setattr(micro_hh, "QUICK", micro_hh.QUICK.model_copy(update=small))
    return tmp_path


def test_the_study_runs_on_files_and_reads_what_is_finished(files, monkeypatch, capsys):
    result = micro_hh.run(files / "out", seeds=(0,), quick=True)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["pairs"] == 240
    kept = {f"{group} kept": 129 for group in hh.GROUPS}
    assert result["rows"] == kept | {f"{group} listed as bad": 1 for group in hh.GROUPS}
    assert result["encoder"] == "small BERT, 2 steps"
    assert result["arms"]["R1 longer wins, helpful"]["accuracy"]["value"] == 0.0
    names = ["conflict", "routed", "few_labels", "worth", "no_harm", "sessions", "new_user"]
    assert [one["name"] for one in result["criteria"]] == names
    page = micro_hh.table(result)
    assert all(f"| {arm} |" in page for arm in result["arms"])
    monkeypatch.setattr(Fold, "run", lambda self: pytest.fail("a finished seed was run again"))
    assert micro_hh.run(files / "out", seeds=(0,), quick=True)["arms"] == result["arms"]


def test_without_the_files_it_is_said_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HOLDFAST_SHARED", str(tmp_path))
    with pytest.raises(UserError, match="set HOLDFAST_SHARED"):
        micro_hh.run(tmp_path / "out", quick=True)
