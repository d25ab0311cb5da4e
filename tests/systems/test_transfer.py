"""The weak-to-strong pipeline end to end on a small world, and what must be true of it whatever is learned."""

import json
from dataclasses import replace

import pytest
import torch

from holdfast.engine.log import RunFolder
from holdfast.engine.seeds import generator
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings
from holdfast.errors import UserError
from holdfast.evaluate.vault import Vault
from holdfast.preference.weak_labels import WeakLabels
from holdfast.systems.transfer import weak_to_strong
from holdfast.systems.transfer_plan import Plan, Pool, Pools
from holdfast.systems.transfer_report import warnings
from holdfast.training.learners import Probe
from holdfast.training.transfer import TransferSettings, TransferTask

SIZES = {"weak_train": 60, "transfer": 160, "validation": 60, "test": 300, "fresh": 120, "audit": 60}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def settings(epochs=4, **changes):
    optimiser = OptimiserSettings(learning_rate=0.1, warmup_ratio=0.0)
    return TransferSettings(fit=FitSettings(epochs=epochs, batch_size=32, optimiser=optimiser), **changes)


class World:
    """Items with sides -1 and 1; the supervisor sees little of the side, the student much."""

    def __init__(self):
        count = sum(SIZES.values())
        source = generator(1)
        self.sides = torch.randint(2, (count,), generator=source) * 2.0 - 1.0
        self.weak, self.strong = (torch.randn(count, 4, generator=source) for _ in range(2))
        self.weak[:, 0] += 0.6 * self.sides
        self.strong[:, 0] += 1.6 * self.sides
        self.gold = {str(i): int(side > 0) for i, side in enumerate(self.sides.tolist())}
        start, self.pools = 0, {}
        for name, size in SIZES.items():
            places = range(start, start + size)
            self.pools[name], start = Pool(tuple(map(str, places)), places), start + size

    def plan(self, fresh=False, **changes):
        parts = {name: pool for name, pool in self.pools.items() if name not in ("fresh", "audit")}
        if fresh:
            parts |= {"fresh": (self.pools["fresh"],), "audit": self.pools["audit"]}
        whole = {
            "pools": lambda seed: Pools(**parts),
            "vault": Vault(self.gold, 2, sealed=self.pools["test"].ids),
            "supervisor": Probe(lambda rows: self.weak[list(rows)]),
            "student": Probe(lambda rows: self.strong[list(rows)]),
            "supervised": settings(20),
            "ceiling": settings(),
            "students": {"soft": settings(), "logconf": settings(kind="logconf")},
        }
        return Plan(**{**whole, **changes})


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    plan = world.plan(seeds=(0, 1), calibrate=0.4, unsafe=1)
    torch.set_num_threads(1)
    return plan, folder, weak_to_strong(plan, RunFolder(folder))


class Oracle:
    """A learner that ignores what it is told and predicts by a function of the items."""

    pair = False

    def __init__(self, predict, name="oracle"):
        self.predict, self.name = predict, name

    def learn(self, items, targets, settings, *, seed, run, stage, select=None, watch=None):
        return self.predict


def test_the_report_says_everything_and_is_plain(finished):
    _, folder, report = finished
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == report
    assert report["items"] == {name: SIZES[name] for name in ("weak_train", "transfer", "validation", "test")}
    assert set(report["students"]) == {"soft", "logconf"}
    naive = report["students"]["soft"]
    assert naive["recovery"]["weak"]["value"] < naive["recovery"]["student"]["value"]
    assert naive["recovery"]["student"]["value"] <= naive["recovery"]["ceiling"]["value"] + 0.02
    assert len(naive["recovery"]["per_seed"]) == 2
    assert {"agreement", "misfit", "blind_spots", "overconfidence", "calibration_error", "recall"} <= set(naive)
    assert [one["calibration"]["method"] for one in report["labels"]] == ["temperature"] * 2
    assert len(report["accuracy"]["ceiling"]) == 2


def test_all_models_are_judged_on_the_same_items(finished, world):
    _, folder, _ = finished
    files = sorted((folder / "predictions").rglob("*.jsonl"))
    assert len(files) == 4 * 2
    for file in files:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert tuple(row["id"] for row in rows) == world.pools["test"].ids
        assert all(set(row) == {"id", "hard", "p"} for row in rows)


def test_curves_have_every_epoch_and_the_gap_of_an_oracle(finished):
    _, _, report = finished
    for student in report["students"].values():
        for one in student["stopping"]:
            assert len(one["gold"]) == len(one["weak"]) == 4
            assert one["last"] == one["gold"][-1]
            assert one["oracle"] == max(one["gold"])
            assert one["chosen"] == one["gold"][one["weak"].index(max(one["weak"]))]
            assert one["gap"] >= 0
        # The student that is judged is that of the chosen epoch.
        chosen = [one["chosen"] for one in student["stopping"]]
        assert student["recovery"]["student"]["value"] == pytest.approx(sum(chosen) / 2)


def test_gold_is_read_by_those_who_may(finished):
    plan, _, _ = finished
    reads = plan.vault.reads
    assert reads["supervisor"] + reads["calibration"] == 2 * SIZES["weak_train"]
    assert 0 < reads["calibration"] < SIZES["weak_train"]
    assert reads["ceiling"] == 2 * (SIZES["transfer"] + SIZES["validation"])
    assert set(reads) == {"supervisor", "calibration", "ceiling", "test", "curve"}


def test_weak_labels_are_of_what_the_supervisor_has_not_seen(finished, world):
    _, folder, _ = finished
    rows = (folder / "weak_labels" / "0" / "supervisor.jsonl").read_text(encoding="utf-8").splitlines()
    ids = {json.loads(row)["id"] for row in rows}
    assert ids == {id for name in ("transfer", "validation", "test") for id in world.pools[name].ids}


def test_a_finished_run_is_loaded_and_says_the_same(finished, world, monkeypatch):
    plan, folder, report = finished
    monkeypatch.setattr(TransferTask, "loss", None)
    fresh = replace(plan, vault=Vault(world.gold, 2, sealed=world.pools["test"].ids))
    assert weak_to_strong(fresh, RunFolder(folder)) == report


def test_labels_of_other_items_are_stale(finished, world):
    plan, folder, _ = finished
    with pytest.raises(UserError, match="is stale: its dataset_sha256"):
        weak_to_strong(replace(plan, data_sha256="other"), RunFolder(folder))


def test_labels_of_another_calibration_are_stale(finished, world):
    plan, folder, _ = finished
    other = replace(plan, calibration="none", vault=Vault(world.gold, 2, sealed=world.pools["test"].ids))
    with pytest.raises(UserError, match="is stale: it was calibrated by temperature, now none is asked for"):
        weak_to_strong(other, RunFolder(folder))


def test_a_supervisor_that_is_right_makes_a_ceiling_bit_for_bit(world, tmp_path):
    truth = Oracle(lambda rows: 2000 * torch.eye(2)[[world.gold[str(i)] for i in rows]])
    plan = world.plan(supervisor=truth, students={"soft": settings(), "hard": settings(kind="hard")})
    report = weak_to_strong(plan, RunFolder(tmp_path))
    predictions = [
        (tmp_path / "predictions" / name / "0.jsonl").read_text(encoding="utf-8")
        for name in ("ceiling", "soft", "hard")
    ]
    assert predictions[0] == predictions[1] == predictions[2]
    assert report["students"]["soft"]["recovery"]["value"] is None
    assert any("PGR: n/a" in words and "better than the ceiling" in words for words in report["warnings"])


def test_a_copy_of_the_supervisor_recovers_nothing(world, tmp_path):
    weak = Oracle(lambda rows: 2 * torch.stack([-world.weak[list(rows), 0], world.weak[list(rows), 0]], 1))

    class Copy(Oracle):
        def learn(self, items, targets, settings, *, stage, **rest):
            if stage.startswith("ceiling"):
                return lambda rows: 9 * torch.eye(2)[[world.gold[str(i)] for i in rows]]
            return super().learn(items, targets, settings, stage=stage, **rest)

    plan = world.plan(supervisor=weak, student=Copy(weak.predict), students={"soft": settings()})
    found = weak_to_strong(plan, RunFolder(tmp_path))["students"]["soft"]
    assert found["recovery"]["value"]["value"] == 0
    assert found["agreement"]["everywhere"]["value"] == 1
    assert found["stopping"] == [None]
    assert found["misfit"]["value"] == pytest.approx(0, abs=1e-12)
    assert found["confident_disagreement"] is None or found["confident_disagreement"]["value"] == 0


def test_a_student_cannot_open_the_vault(world, tmp_path):
    plan = world.plan()

    class Cheat(Probe):
        def learn(self, items, targets, *rest, stage, **named):
            if stage.startswith("student"):
                targets = plan.vault.release([str(i) for i in items], "student")
            return super().learn(items, targets, *rest, stage=stage, **named)

    with pytest.raises(UserError, match="student/soft asked for gold labels"):
        weak_to_strong(replace(plan, student=Cheat(plan.student.view)), RunFolder(tmp_path / "cheat"))


def test_students_learn_while_the_vault_raises(world, tmp_path, monkeypatch):
    """Every reading while a student learns would raise, and no student notices."""
    plan, learning = world.plan(), []

    class Watched(Probe):
        def learn(self, *given, stage, **named):
            learning.append(stage)
            try:
                return super().learn(*given, stage=stage, **named)
            finally:
                learning.pop()

    def read(vault, ids, purpose):
        assert not any(stage.startswith("student") for stage in learning), purpose
        return original(vault, ids, purpose)

    original = Vault._read
    monkeypatch.setattr(Vault, "_read", read)
    report = weak_to_strong(replace(plan, student=Watched(plan.student.view)), RunFolder(tmp_path))
    assert set(report["students"]) == {"soft", "logconf"}


def test_bootstrapping_goes_through_an_intermediate_learner(world, tmp_path):
    middle = Probe(lambda rows: torch.cat([world.weak[list(rows), :1], 0.5 * world.strong[list(rows)]], 1))
    seen = {}

    class Noted(Probe):
        def learn(self, items, targets, *rest, stage, **named):
            seen[stage] = (list(items), targets.clone())
            return super().learn(items, targets, *rest, stage=stage, **named)

    plan = world.plan(fresh=True, intermediate=((middle, settings()),), students={"soft": settings()})
    plan = replace(plan, student=Noted(plan.student.view))
    report = weak_to_strong(plan, RunFolder(tmp_path))
    assert set(report["students"]) == {"soft", "soft_bootstrapped"}
    assert report["bootstrapping_ended"] == [""]
    direct, chained, ceiling = (seen[f"{name}/0"] for name in ("student/soft", "student/soft_bootstrapped", "ceiling"))
    # The same items for all three; only what is said of them differs.
    assert direct[0] == chained[0] == ceiling[0]
    stamps = json.loads((tmp_path / "weak_labels" / "0" / "intermediate_1.jsonl").read_text("utf-8").splitlines()[0])
    labels = WeakLabels.read(
        tmp_path / "weak_labels" / "0" / "intermediate_1.jsonl",
        data_sha256=stamps["dataset_sha256"],
        split_sha256=stamps["split_sha256"],
    )
    assert torch.equal(chained[1], labels.take(world.pools["transfer"].ids))
    assert not torch.equal(chained[1], direct[1])
    assert plan.vault.reads["audit"] == 2 * SIZES["audit"]


def test_bootstrapping_ends_below_the_supervisor(world, tmp_path):
    blind = Oracle(lambda rows: torch.stack([world.strong[list(rows), 3], -world.strong[list(rows), 3]], 1), "blind")
    plan = world.plan(fresh=True, intermediate=((blind, settings()),), students={"soft": settings()})
    report = weak_to_strong(plan, RunFolder(tmp_path))
    assert set(report["students"]) == {"soft"}
    assert "intermediate learner 1 is right on" in report["bootstrapping_ended"][0]
    assert any("bootstrapping ended" in words for words in report["warnings"])


def test_pools_that_share_a_group_are_refused(world, tmp_path):
    groups = {world.pools["transfer"].ids[3]: "same", world.pools["test"].ids[5]: "same"}
    plan = world.plan(vault=Vault(world.gold, 2, groups=groups))
    with pytest.raises(UserError, match="1 groups stand both in transfer and in test, such as same"):
        weak_to_strong(plan, RunFolder(tmp_path))
    with pytest.raises(UserError, match="1 intermediate learners need as many fresh pools, got 0"):
        weak_to_strong(world.plan(intermediate=((plan.student, settings()),)), RunFolder(tmp_path))


def test_seeds_are_judged_on_one_test_set(world, tmp_path):
    def pools(seed):
        parts = {name: world.pools[name] for name in ("weak_train", "transfer", "validation", "test")}
        return Pools(**parts | {"test": world.pools["test"].take(range(seed, 100))})

    with pytest.raises(UserError, match="the test items differ between seeds"):
        weak_to_strong(world.plan(pools=pools, seeds=(0, 1)), RunFolder(tmp_path))


def found(student, weak=0.7, value=True, recall=None):
    recovery = {
        "student": {"value": student},
        "weak": {"value": weak},
        "value": value or None,
        "reason": "gap too small",
    }
    return {"recovery": recovery} | ({"recall": recall} if recall else {})


@pytest.mark.parametrize(
    "students, words",
    [
        ({"soft": found(0.8), "logconf": found(0.85)}, []),
        ({"soft": found(0.65)}, ["soft: student below supervisor, 0.650 against 0.700"]),
        ({"soft": found(0.8), "logconf": found(0.75)}, ["confidence loss below naive: 0.750 against 0.800"]),
        ({"soft": found(0.8, value=None)}, ["soft: PGR: n/a (gap too small)"]),
        (
            {"soft": found(0.8, recall={"student": {"value": 0.4}, "weak": {"value": 0.5}})},
            ["soft: more accurate than its supervisor, and its recall at 5 % false positives is lower"],
        ),
        ({"soft": found(0.8, recall={"student": {"value": 0.6}, "weak": {"value": 0.5}})}, []),
        (
            {"soft_bootstrapped": found(0.8), "logconf_bootstrapped": found(0.75)},
            ["confidence loss below naive, bootstrapped: 0.750 against 0.800"],
        ),
    ],
)
def test_what_a_reader_must_not_overlook(students, words):
    assert list(warnings({"students": students, "seeds": [], "bootstrapping_ended": [], "labels": []})) == words


class Memory:
    """Knows what it was told, and nothing else."""

    name, pair = "memory", False

    def __init__(self):
        self.told = {}

    def learn(self, items, targets, settings, *, seed, run, stage, select=None, watch=None):
        known = dict(zip(items, targets.tolist()))
        self.told[stage] = known
        return lambda others: torch.tensor([known.get(one, [0.5, 0.5]) for one in others]).log().clamp(min=-20)


def test_cross_fitting_labels_what_taught_the_supervisor_by_others(tmp_path):
    world, weak, strong = World(), Memory(), Memory()
    plan = world.plan(supervisor=weak, student=strong, cross_fit=3, select=False, students={"soft": settings()})
    weak_to_strong(plan, RunFolder(tmp_path / "run", settings()))
    lines = (tmp_path / "run" / "weak_labels" / "0" / "supervisor.jsonl").read_text().splitlines()
    p = {row["id"]: row["p"] for row in map(json.loads, lines)}
    taught = world.pools["weak_train"]
    assert all(p[id] == [0.5, 0.5] for id in taught.ids), "who memorised an item did not label it"
    folds = [set(weak.told[f"fold_{i}/0"]) for i in range(3)]
    assert set.union(*folds) == set(taught.items)
    assert sum(map(len, folds)) == 2 * len(taught.items), "each item taught two of three folds"
    learned = {*taught.items, *world.pools["transfer"].items}
    assert set(strong.told["student/soft/0"]) == set(strong.told["ceiling/0"]) == learned


def test_without_cross_fitting_students_do_not_see_what_taught_the_supervisor(tmp_path):
    world, weak, strong = World(), Memory(), Memory()
    plan = world.plan(supervisor=weak, student=strong, select=False, students={"soft": settings()})
    weak_to_strong(plan, RunFolder(tmp_path / "run", settings()))
    assert set(strong.told["student/soft/0"]) == set(world.pools["transfer"].items)
    assert set(weak.told) == {"supervisor/0"}
