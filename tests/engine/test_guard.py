"""Snapshots, rollback and early end: a run killed anywhere and resumed is the run that was never killed."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from holdfast.engine.checkpoint import Checkpoints
from holdfast.engine.guard import Watch, restore_best
from holdfast.engine.log import RunFolder
from holdfast.engine.loop import Loop
from holdfast.engine.online import OnlineSettings, run_online
from holdfast.engine.step import OptimiserSettings
from holdfast.losses.reduce import Sum

OPTIMISER = OptimiserSettings(learning_rate=0.1, schedule="linear", warmup_ratio=0.0)
TOTAL = 12


class PowerCut(Exception):
    """What ends a run between two iterations."""


class Drift:
    """A weight that follows the prompts and noise, with a multiplier and a memory of where it was."""

    weights = {}
    apart = {}

    def __init__(self, cut=None):
        self.parts = {"policy": nn.Linear(1, 1, bias=False)}
        self.parts["policy"].weight.data.zero_()
        self.optimisers = {"policy": OPTIMISER}
        self.multiplier, self.began, self.cut = 1.0, [], cut

    @property
    def at(self):
        return self.parts["policy"].weight.item()

    def collect(self, prompts, iteration):
        if iteration == self.cut:
            raise PowerCut
        self.began.append(self.at)
        self.multiplier += 1.0
        return torch.tensor([float(prompt) for prompt in prompts]) + torch.randn(len(prompts))

    def mini_batches(self, experience, rng):
        return [[value] for value in experience]

    def counts(self, part, batch):
        return {"follow": 1.0}

    def loss(self, part, batch):
        return {"follow": Sum((self.parts[part](torch.ones(1)) - batch).square().sum(), torch.tensor(1))}

    def after(self, experience):
        return {"at": self.began[-1], "multiplier": self.multiplier}

    def samples(self, experience):
        return []

    def state_dict(self):
        return {"multiplier": self.multiplier}

    def load_state_dict(self, state):
        self.multiplier = state["multiplier"]


class Script:
    """A guard that does at each iteration what stands in its script, and counts what it has seen."""

    def __init__(self, healthy=(), best=(), rollback=(), stop=(), keep_every=1):
        self.healthy, self.best, self.rollback, self.stop = healthy, best, rollback, stop
        self.keep_every, self.wants_best, self.promising = keep_every, bool(best), True
        self.seen, self.backs, self.rows = 0, 0, []

    def judge(self, iteration, numbers):
        self.seen += 1
        self.rows.append(dict(numbers))
        action = "rollback" if iteration in self.rollback else "stop" if iteration in self.stop else None
        return SimpleNamespace(
            action=action,
            healthy=iteration in self.healthy,
            best=iteration in self.best,
            numbers={"alarm/seen": float(self.seen), "alarm/backs": float(self.backs)},
            words=f"WARN at iteration {iteration}" if action else "",
            aloud=iteration != 6,
        )

    def rolled_back(self):
        self.backs += 1

    def state_dict(self):
        return {"seen": self.seen, "backs": self.backs}

    def load_state_dict(self, state):
        self.seen, self.backs = state["seen"], state["backs"]


def go(folder, algorithm, guard=None, finished=None, every=3):
    settings = OnlineSettings(iterations=TOTAL, prompts_per_iteration=3, checkpoint_every=every, seed=5)
    return run_online(algorithm, range(7), settings, RunFolder(folder), stage="policy", guard=guard, finished=finished)


def read(folder, name="metrics.jsonl"):
    file = folder / name
    lines = file.read_text().splitlines() if file.exists() else []
    return [{key: value for key, value in json.loads(line).items() if not key.startswith("seconds")} for line in lines]


def kept(folder, name="healthy"):
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints" / "policy" / name).glob("step-*"))


def test_a_rollback_puts_weights_and_state_back_and_goes_on_with_the_next_iteration(tmp_path):
    algorithm, guard = Drift(), Script(healthy=(1, 2, 5), rollback=(7,))
    go(tmp_path, algorithm, guard, every=0)
    rows = read(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, TOTAL + 1))
    assert rows[7]["at"] == rows[4]["at"], "iteration 8 begins where the healthy iteration 5 did: behind iteration 4"
    assert [row["multiplier"] for row in rows] == [2, 3, 4, 5, 6, 7, 8, 6, 7, 8, 9, 10]
    assert rows[6]["alarm/rolled_back_to"] == 4.0
    assert guard.backs == 1
    assert [row["alarm/seen"] for row in rows] == list(range(1, TOTAL + 1)), "the guard's own state does not go back"
    rates = [row["policy/lr"] for row in rows]
    assert rates == sorted(rates, reverse=True), "nor does the schedule"
    assert rows[8]["at"] != rows[5]["at"], "nor do the prompts and the random numbers"


def test_the_optimiser_goes_back_too(tmp_path):
    """Moments of what was undone would push the weight on. AdamW counts its steps: three in each iteration."""
    go(tmp_path, Drift(), Script(healthy=(2,), rollback=(3, 4)))
    state = torch.load(tmp_path / "checkpoints" / "policy" / "step-000000012" / "state.pt")
    # Both times back to behind iteration 1: of 12 iterations the second, third and fourth are undone.
    assert int(state["states"]["step/policy"]["optimiser"]["state"][0]["step"]) == 3 * (TOTAL - 3)


def test_the_start_counts_as_healthy(tmp_path):
    algorithm = Drift()
    go(tmp_path, algorithm, Script(rollback=(2,)))
    rows = read(tmp_path)
    assert rows[1]["alarm/rolled_back_to"] == 0.0
    assert rows[2]["at"] == rows[0]["at"] == 0.0


def test_alarms_are_told_and_recorded(tmp_path, capsys):
    go(tmp_path, Drift(), Script(healthy=(2,), rollback=(4,), stop=(6,)))
    assert read(tmp_path, "alarms.jsonl") == [
        {
            "stage": "policy",
            "step": 4,
            "words": "WARN at iteration 4. Back to what iteration 1 had learned",
            "action": "rollback",
            "alarm/seen": 4.0,
            "alarm/backs": 0.0,
            "alarm/rolled_back_to": 1.0,
        },
        {
            "stage": "policy",
            "step": 6,
            "words": "WARN at iteration 6. Back to what iteration 1 had learned. The stage ends here",
            "action": "stop",
            "alarm/seen": 6.0,
            "alarm/backs": 1.0,
            "alarm/rolled_back_to": 1.0,
        },
    ]
    told = capsys.readouterr().err
    assert "policy: WARN at iteration 4. Back to what iteration 1 had learned\n" in told
    assert "iteration 6" not in told, "recorded for the report, and not told"


def test_the_guard_judges_the_row_that_is_logged_and_its_numbers_join_it(tmp_path):
    guard = Script()
    result = go(tmp_path, Drift(), guard)
    for row, judged in zip(read(tmp_path), guard.rows, strict=True):
        assert {**judged, "alarm/seen": row["alarm/seen"], "alarm/backs": 0.0} == {
            key: value for key, value in row.items() if key not in ("stage", "step")
        }
        assert {"at", "policy/follow", "policy/lr"} <= judged.keys()
    assert result.metrics["alarm/seen"] == TOTAL


def test_a_guard_may_end_the_stage_and_it_stays_ended(tmp_path):
    algorithm = Drift()
    result = go(tmp_path, algorithm, Script(healthy=(3,), stop=(5,)))
    assert result.iterations == 5
    assert [row["step"] for row in read(tmp_path)] == [1, 2, 3, 4, 5]
    again = Drift()
    assert go(tmp_path, again, Script()) == result, "the second guard would not have stopped"
    assert again.began == []
    assert (again.at, again.multiplier) == (algorithm.at, 3.0), "what two iterations had learned, the last healthy ones"


def test_a_guard_that_keeps_nothing_ends_the_stage_where_it_is(tmp_path):
    algorithm = Drift()
    go(tmp_path, algorithm, Script(stop=(5,), keep_every=0))
    assert algorithm.multiplier == 6.0


def test_the_best_snapshot_can_be_put_in_place(tmp_path):
    algorithm = Drift()
    go(tmp_path, algorithm, Script(healthy=(3, 4, 5), best=(4,)))
    last = algorithm.at
    run = RunFolder(tmp_path)
    assert restore_best(run, "policy", algorithm.parts) == 3
    assert algorithm.at != last
    assert restore_best(run, "elsewhere", algorithm.parts) is None


@pytest.mark.parametrize("every", [0, 2, 4])
def test_a_stage_is_over_when_it_is_finished(tmp_path, every):
    algorithm, asked = Drift(), []

    def finished():
        asked.append(algorithm.multiplier)
        return algorithm.multiplier >= 5.0

    result = go(tmp_path, algorithm, finished=finished, every=every)
    assert result.iterations == 4
    assert asked == [1.0, 2.0, 3.0, 4.0, 5.0], "before every iteration, the first included"
    again = Drift()
    assert go(tmp_path, again, finished=lambda: again.multiplier >= 5.0, every=every) == result
    assert (again.began, again.at) == ([], algorithm.at)


def test_what_was_finished_at_the_outset_does_nothing(tmp_path):
    algorithm = Drift()
    assert go(tmp_path, algorithm, finished=lambda: True).iterations == 0
    assert algorithm.began == []
    assert not (tmp_path / "checkpoints").exists()


def test_snapshots_are_kept_no_closer_than_asked(tmp_path):
    written, inner = [], Watch._write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watch, "_write", lambda self, step: (written.append(step), inner(self, step)))
        go(tmp_path, Drift(), Script(healthy=(5, 6, 7, 8, 12), keep_every=3))
        # Due from 3 on; 3 was not confirmed by iteration 4, but 4 by iteration 5, so the next is due at 7.
        assert written == [0, 3, 4, 7, 10, 11]
        written.clear()
        guard = Script(healthy=(5, 6, 7, 8, 12), keep_every=3)
        guard.promising = False
        go(tmp_path / "bleak", Drift(), guard)
        assert written == [0], "nothing is written that could not be confirmed"


def test_where_a_best_is_wanted_every_iteration_may_be_it(tmp_path):
    go(tmp_path, Drift(), Script(healthy=(5,), best=(5,), keep_every=9))
    assert kept(tmp_path, "best") == [4]


def test_no_snapshots_where_none_are_wanted(tmp_path):
    go(tmp_path, Drift(), Script(healthy=range(TOTAL + 1), keep_every=0))
    assert not (tmp_path / "checkpoints" / "policy" / "healthy").exists()


def test_only_snapshots_that_a_checkpoint_would_go_back_to_are_kept(tmp_path):
    """Of the checkpoints 9 and 12 are left; healthy before 9 was what 5 learned, before 12 what 10 did."""
    go(tmp_path, Drift(), Script(healthy=(2, 3, 5, 6, 11), best=(3, 5, 11)))
    assert kept(tmp_path) == [5, 10]
    assert kept(tmp_path, "best") == [4, 10]


def test_a_snapshot_made_since_the_last_checkpoint_does_not_displace_the_one_before(tmp_path):
    """Killed in iteration 5: a run resumed from checkpoint 3 knows of 1 as healthy, and of 3 only after iteration 4."""
    with pytest.raises(PowerCut):
        go(tmp_path, Drift(5), Script(healthy=(2, 4)))
    assert kept(tmp_path) == [1, 3, 4]


def test_a_snapshot_that_is_not_confirmed_is_forgotten(tmp_path):
    go(tmp_path, Drift(), Script(healthy=(4,)), every=0)
    assert kept(tmp_path) == [3]


def test_the_best_snapshot_holds_the_weights_that_were_judged(tmp_path):
    go(tmp_path, Drift(), Script(healthy=(3, 8), best=(3, 8)))
    rows, algorithm = read(tmp_path), Drift()
    Checkpoints(tmp_path / "checkpoints" / "policy" / "best").load(7, algorithm.parts)
    assert algorithm.at == rows[7]["at"]


SCRIPTS = {
    "back within what was killed": {"healthy": (1, 2), "rollback": (5,)},
    "back over a snapshot newer than the checkpoint": {"healthy": (2, 3, 5, 6), "rollback": (7,)},
    "back before any newer snapshot": {"healthy": (2, 8), "rollback": (7, 11)},
    "back to a snapshot that a checkpoint has too": {"healthy": (4, 7, 10), "rollback": (5, 8, 11), "keep_every": 2},
    "back twice, best, stop": {"healthy": (2, 4, 8), "best": (2, 8), "rollback": (5, 9), "stop": (11,)},
}


@pytest.fixture(scope="module", params=SCRIPTS)
def whole(request, tmp_path_factory):
    """A script and the run that was never killed under it."""
    folder, algorithm, guard = tmp_path_factory.mktemp("whole"), Drift(), Script(**SCRIPTS[request.param])
    result = go(folder, algorithm, guard)
    return SimpleNamespace(
        script=SCRIPTS[request.param], folder=folder, algorithm=algorithm, guard=guard, result=result
    )


@pytest.mark.parametrize("cut", [1, 2, 4, 5, 6, 7, 8, 9, 10, 11])
def test_a_run_killed_anywhere_is_the_run_never_killed(tmp_path, whole, cut):
    with pytest.raises(PowerCut):
        go(tmp_path, Drift(cut), Script(**whole.script))
    again, guard = Drift(), Script(**whole.script)
    assert go(tmp_path, again, guard) == whole.result
    assert (again.at, again.multiplier) == (whole.algorithm.at, whole.algorithm.multiplier)
    assert guard.state_dict() == whole.guard.state_dict()
    for file in ("metrics.jsonl", "alarms.jsonl"):
        assert read(tmp_path, file) == read(whole.folder, file)
    for name in ("healthy", "best"):
        assert kept(tmp_path, name) == kept(whole.folder, name)


def test_a_snapshot_that_the_resumed_run_has_not_come_to_is_not_gone_back_to(tmp_path):
    """Killed at 7 the run has snapshots 1 and 5; resumed from checkpoint 3 it rolls back at 4, where 5 lies ahead."""
    with pytest.raises(PowerCut):
        go(tmp_path, Drift(7), Script(healthy=(2, 6)), every=3)
    damaged = tmp_path / "checkpoints" / "policy" / "step-000000006"
    damaged.rename(tmp_path / "damaged")
    assert kept(tmp_path) == [1, 5, 6], "6 was written for iteration 7 and never judged"
    go(tmp_path, Drift(), Script(rollback=(4,)))
    rows = read(tmp_path)
    assert rows[3]["alarm/rolled_back_to"] == 1.0
    assert rows[4]["at"] == rows[1]["at"]


def test_a_snapshot_written_and_not_judged_before_the_kill_is_not_gone_back_to(tmp_path):
    """Killed in iteration 4, just behind checkpoint 3, whose snapshot iteration 4 finds ill."""
    with pytest.raises(PowerCut):
        go(tmp_path, Drift(4), Script(healthy=(2,)))
    assert kept(tmp_path) == [1, 3]
    go(tmp_path, Drift(), Script(rollback=(4,)))
    assert read(tmp_path)[3]["alarm/rolled_back_to"] == 1.0


@pytest.mark.parametrize("healthy", [(2, 4, 5), (2,)])
def test_a_damaged_checkpoint_that_is_deleted_leaves_a_run_that_still_goes_back_rightly(tmp_path, healthy):
    script = {"healthy": healthy, "rollback": (8,)}
    go(tmp_path / "whole", Drift(), Script(**script))
    with pytest.raises(PowerCut):
        go(tmp_path / "parts", Drift(8), Script(**script))
    newest = tmp_path / "parts" / "checkpoints" / "policy" / "step-000000006"
    newest.rename(tmp_path / "damaged")
    go(tmp_path / "parts", Drift(), Script(**script))
    assert read(tmp_path / "parts") == read(tmp_path / "whole")


class Second:
    """The processes as the second of two sees them: the first one's row and its snapshots count."""

    rank, size, is_main = 1, 2, False
    device = torch.device("cpu")

    def __init__(self, theirs):
        self.theirs = theirs

    def gather(self, own):
        return [*self.theirs.pop(0), *own]

    def barrier(self):
        pass


def test_every_process_judges_the_row_of_the_first(tmp_path):
    guard = Script(healthy=(5,))
    run = SimpleNamespace(processes=Second([[1], [{"at": 7.0}]]), path=tmp_path, fingerprint="")
    watch = Watch(guard, Loop(run, "policy", 3, {}, {}))
    watch.begin(5)
    assert watch._latest == 1, "it knows of the snapshot that the first has"
    watch.look(5, {"at": torch.tensor(3.0)})
    assert guard.rows == [{"at": 7.0}]
    assert watch._latest == 4, "and of that which the first has written"
    assert not (tmp_path / "checkpoints").exists()
