"""Weak-to-strong runs end to end: texts with classes, pairs of the pocket world, splits, seeds, bad input."""

import json

import pytest

from holdfast import config
from holdfast.data.schema import Classified, Conversation, DualPair
from holdfast.data.sources import write_jsonl
from holdfast.data.template import PromptTooLong
from holdfast.engine.log import RunFolder
from holdfast.errors import UserError
from holdfast.models.save import load_checked
from holdfast.systems import recipe, stages, weak_scores, weak_to_strong
from holdfast.systems.weak_learners import LearnerSettings, Workshop, told
from holdfast.systems.weak_scores import LabelSettings

POCKET = [
    *("pocket={conversations: 100, pairs: 900, prompts: 100, hidden: 32}", "student.sft.epochs=1", "fit.epochs=1"),
    *("seeds=[0, 1]", "weak_rows=60", "losses={soft: {}, logconf: {kind: logconf}}"),
]


def settings(*overrides, name="pocket"):
    return config.load(weak_to_strong.WeakToStrong, recipe(f"weak_to_strong/{name}"), list(overrides))


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "w2s"
    return folder, weak_to_strong.run(settings(*POCKET), folder)


def test_the_report_holds_every_student(finished):
    folder, summary = finished
    report = summary["weak_to_strong"]
    assert set(report["students"]) == {"soft", "logconf"}
    assert report["seeds"] == [0, 1]
    for student in report["students"].values():
        recovery = student["recovery"]
        levels = [recovery[name]["value"] for name in ("weak", "student", "ceiling")]
        assert all(0 < value < 1 for value in levels)
        if recovery["value"] is None:
            assert recovery["reason"]
        assert len(recovery["per_seed"]) == 2
    assert json.loads((folder / "report.json").read_text())["students"].keys() == report["students"].keys()


def test_weak_labels_hold_no_ground_truth_and_no_row_of_the_supervisor(finished):
    folder, summary = finished
    rows = read(folder / "weak_labels" / "0" / "supervisor.jsonl")
    counts = summary["weak_to_strong"]["items"]
    assert len(rows) == counts["transfer"] + counts["validation"] + counts["test"]
    assert not any({"gold", "label", "y", "helpful_id"} & row.keys() for row in rows)


def test_all_models_are_judged_on_the_same_items(finished):
    folder, _ = finished
    asked = {tuple(row["id"] for row in read(file)) for file in sorted((folder / "predictions").glob("*/*.jsonl"))}
    assert len(asked) == 1


def test_a_finished_run_gives_the_same_report(finished):
    folder, summary = finished
    again = weak_to_strong.run(settings(*POCKET), folder)
    assert again["weak_to_strong"]["students"] == summary["weak_to_strong"]["students"]


def test_models_of_the_first_seed_can_be_used_as_labellers(finished, tmp_path):
    models = finished[0] / "models"
    assert {one.name for one in models.iterdir()} == {"sft_student", "student_soft", "student_logconf"}
    student = load_checked(models / "student_soft")
    assert student.names == ("reward",)
    pair = DualPair(id="1", prompt=Conversation.ask("dark ?"), responses=("sea", "sky"))
    labels = LabelSettings(source="weak_model", reward={"name": str(models / "student_soft")})
    labelled = weak_scores.asked(labels, "reward", [pair], RunFolder(tmp_path / "run"), stages.TextSection())
    assert labelled.table.p.shape == (1, 2)


def texts(count, tail=""):
    words = {"rude": ["awful", "stupid", "hate"], "kind": ["lovely", "great", "thanks"]}
    rows = []
    for i in range(count):
        label = ("rude", "kind")[i % 2]
        text = f"{words[label][i % 3]} weather number {i} {tail}"
        rows.append(Classified(id=str(i), conversation=Conversation.ask(text), label=label, group=f"g{i // 4}"))
    return rows


CLASSIFIER = [
    *("pocket=null", "task=classifier", "student={kind: words}", "seeds=[0]", "calibrate=0", "unsafe=rude"),
    *("losses={soft: {}, hard: {kind: hard}}", "weak_rows=20"),
]


def test_texts_with_classes(tmp_path):
    write_jsonl(texts(400), tmp_path / "texts.jsonl")
    summary = weak_to_strong.run(settings(*CLASSIFIER, f"data={tmp_path / 'texts.jsonl'}"), tmp_path / "run")
    report = summary["weak_to_strong"]
    assert report["facts"]["classes"] == ["kind", "rude"]
    assert report["students"]["hard"]["recovery"]["student"]["value"] > 0.9
    assert report["students"]["soft"]["recall"]["student"]["value"] > 0.9
    assert any("PGR: n/a" in warning for warning in report["warnings"]), "supervisor and ceiling are both perfect"


def test_cross_fitting_gives_students_more_to_learn_from(tmp_path):
    write_jsonl(texts(400), tmp_path / "texts.jsonl")
    given = [*CLASSIFIER, "cross_fit=2", f"data={tmp_path / 'texts.jsonl'}"]
    report = weak_to_strong.run(settings(*given), tmp_path / "run")["weak_to_strong"]
    rows = read(tmp_path / "run" / "weak_labels" / "0" / "supervisor.jsonl")
    counts = report["items"]
    assert len(rows) == counts["weak_train"] + counts["transfer"] + counts["validation"] + counts["test"]


def test_no_group_stands_in_two_splits(tmp_path):
    write_jsonl(texts(400), tmp_path / "texts.jsonl")
    chosen = settings(*CLASSIFIER, f"data={tmp_path / 'texts.jsonl'}")
    items = [weak_to_strong.Item(row, row.conversation, int(row.label == "rude")) for row in texts(400)]
    split = weak_to_strong.divided(chosen, chosen.data, items).splits
    owner = {}
    for name, rows in split.items():
        for row in rows:
            assert owner.setdefault(row.group, name) == name


def test_the_vault_knows_groups(tmp_path):
    chosen = settings(*CLASSIFIER, "data=unread")
    items = [weak_to_strong.Item(row, row.conversation, int(row.label == "rude")) for row in texts(400)]
    split = weak_to_strong.divided(chosen, chosen.data, items)
    shop = weak_to_strong.workshop(chosen, chosen.data, items, ["kind", "rude"], RunFolder(tmp_path / "run"))
    plan = weak_to_strong.planned(chosen, split, {one.record.id: one for one in items}, ["kind", "rude"], shop)
    assert len(set(plan.vault.groups([one.record.id for one in items]))) == 100


class Narrow:
    """A template with room for twelve words of a prompt."""

    def prompt(self, conversation):
        if len(told(conversation).split()) > 12:
            raise PromptTooLong("too long")


def test_a_prompt_too_long_for_one_learner_is_named_or_left_out_for_all(tmp_path):
    rows = [*texts(8), texts(1, "very " * 20)[0].model_copy(update={"id": "long"})]
    for mode in ("error", "skip"):
        chosen = settings(*CLASSIFIER, f"text.on_long_prompt={mode}")
        shop = Workshop(chosen, None, False, (), {}, list)
        vars(shop)["bases"] = {"student": (None, Narrow())}
        if mode == "error":
            with pytest.raises(
                UserError, match="1 of 9 rows, such as long, have a prompt that leaves the student no room"
            ):
                shop.legible(rows)
        else:
            assert shop.legible(rows) == [True] * 8 + [False]


def test_a_network_that_was_not_named_is_asked_for(tmp_path):
    pairs = [DualPair(id="1", prompt=Conversation.ask("?"), responses=("a", "b"), helpful_id=0)]
    write_jsonl(pairs, tmp_path / "pairs.jsonl")
    with pytest.raises(UserError, match=r"student.model is missing: kind=finetuned needs a network"):
        weak_to_strong.run(settings("pocket=null", f"data={{pairs: {tmp_path / 'pairs.jsonl'}}}"), tmp_path / "run")


def test_intermediate_learners_are_audited():
    items = [weak_to_strong.Item(row, row.conversation, i % 2) for i, row in enumerate(texts(2000))]
    for given, audited in (("[]", False), ("[{kind: words}]", True)):
        chosen = settings(f"intermediate={given}", "data={shares: {audit: 0.1}}")
        assert ("audit" in weak_to_strong.divided(chosen, chosen.data, items).splits) is audited


def test_intermediate_learners_share_the_transfer_split():
    chosen = settings("intermediate=[{kind: words}]", "data={shares: {transfer: 0.4}}")
    items = [weak_to_strong.Item(row, row.conversation, i % 2) for i, row in enumerate(texts(2000))]
    split = weak_to_strong.divided(chosen, chosen.data, items).splits
    whole = len(split["transfer"]) + len(split["fresh_1"])
    # Pools are drawn by hash: the standard error of a half of some 760 rows in groups of 4 is .036.
    assert len(split["fresh_1"]) / whole == pytest.approx(0.5, abs=0.11)
    assert not {row.group for row in split["transfer"]} & {row.group for row in split["fresh_1"]}


@pytest.mark.parametrize("task, better", [("reward", "helpful_id"), ("cost", "safer_id")])
def test_the_order_of_a_pair_is_drawn_and_its_gold_class_follows(task, better):
    seen = set()
    for i in range(40):
        pair = DualPair(id=str(i), prompt=Conversation.ask("?"), responses=("a", "b"), **{better: 0})
        item = weak_to_strong.compared(pair, task, "salt")
        texts_of = [one.response for one in item.shown]
        wanted = "a" if task == "reward" else "b"  # the more helpful, or the more harmful answer
        assert texts_of[item.gold] == wanted
        seen.add(tuple(texts_of))
    assert seen == {("a", "b"), ("b", "a")}


def test_a_pair_without_a_label_on_the_axis_is_no_item(tmp_path):
    pair = DualPair(id="1", prompt=Conversation.ask("?"), responses=("a", "b"), safer_id=0)
    write_jsonl([pair], tmp_path / "pairs.jsonl")
    with pytest.raises(UserError, match="no pair carries helpful_id"):
        weak_to_strong.run(settings("pocket=null", f"data={{pairs: {tmp_path / 'pairs.jsonl'}}}"), tmp_path / "run")


def test_one_class_is_refused(tmp_path):
    write_jsonl([one for one in texts(80) if one.label == "kind"], tmp_path / "texts.jsonl")
    with pytest.raises(UserError, match="one class"):
        weak_to_strong.run(settings(*CLASSIFIER, "unsafe=''", f"data={tmp_path / 'texts.jsonl'}"), tmp_path / "run")


def test_more_rows_than_there_are(tmp_path):
    write_jsonl(texts(80), tmp_path / "texts.jsonl")
    with pytest.raises(UserError, match="weak_train, which holds"):
        weak_to_strong.run(settings(*CLASSIFIER, "weak_rows=500", f"data={tmp_path / 'texts.jsonl'}"), tmp_path / "run")


def test_an_unknown_class_is_named(tmp_path):
    write_jsonl(texts(80), tmp_path / "texts.jsonl")
    with pytest.raises(UserError, match="unsafe=vile is no class of the data; there are kind, rude"):
        weak_to_strong.run(settings(*CLASSIFIER, "unsafe=vile", f"data={tmp_path / 'texts.jsonl'}"), tmp_path / "run")


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["losses={hard: {kind: hard}}"], "losses needs the naive student"),
        (["losses={soft: {fit: {epochs: 9}}}"], "losses share `fit`"),
        (["seeds=[1, 1]"], "a seed stands twice"),
        (["cross_fit=1"], "cross_fit needs two folds or more"),
        (["sft={epochs: 1}"], "sft belongs to a learner"),
        (["unsafe=rude"], "unsafe names a class of texts"),
        (["student={kind: words, hidden: 3}"], "hidden has no effect on kind=words"),
        (["student={kind: words}"], "losses.logconf follows what the student says while it learns"),
        (["model=x"], "model belongs to a learner"),
        (["data={texts: t}"], "task=reward reads data.pairs, and data.texts has no effect"),
        (["task=classifier", "data={pairs: p}"], "task=classifier reads data.texts, and data.pairs has no effect"),
        (["student={kind: probe, model: {name: x, adapter: {rank: 2}}}"], "a probe leaves the network"),
    ],
)
def test_contradictions_are_told_before_anything_runs(overrides, words):
    with pytest.raises(UserError, match=words):
        settings(*overrides)


def test_the_pocket_world_has_no_classes_of_texts(tmp_path):
    with pytest.raises(UserError, match="the pocket world judges pairs"):
        weak_to_strong.run(settings("task=classifier"), tmp_path / "run")


def test_a_conversation_as_text():
    assert told(Conversation.ask("a").answer("b")) == "a b"
    assert LearnerSettings(kind="words").model is None


def plan_of(folder, *overrides):
    """The splits and the plan of 400 texts in 100 groups, every fourth of them rude, before anything is learned."""
    chosen = settings(*CLASSIFIER, "data.texts=unread", *overrides)
    rows = [one.model_copy(update={"label": "kind" if i % 4 else "rude"}) for i, one in enumerate(texts(400))]
    items = [weak_to_strong.Item(row, row.conversation, int(row.label == "rude")) for row in rows]
    split = weak_to_strong.divided(chosen, chosen.data, items)
    shop = weak_to_strong.workshop(chosen, chosen.data, items, ["kind", "rude"], RunFolder(folder / "run"))
    by_id = {one.record.id: one for one in items}
    return split, weak_to_strong.planned(chosen, split, by_id, ["kind", "rude"], shop), by_id


def test_the_plan_says_what_the_settings_say(tmp_path):
    given = ["seed=3", "seeds=[0, 2]", "calibrate=0.3", "cross_fit=2", "supervised.epochs=5", "fit.epochs=7"]
    given += ["supervisor.regularisation=2", "intermediate=[{kind: words, regularisation: 3}]"]
    _, plan, _ = plan_of(tmp_path, *given)
    assert (plan.seeds, plan.calibrate, plan.cross_fit, plan.unsafe) == ((3, 5), 0.3, 2, 1)
    assert {name: one.kind for name, one in plan.students.items()} == {"soft": "soft", "hard": "hard"}
    assert [one.fit.epochs for one in (plan.supervised, plan.ceiling, *plan.students.values())] == [5, 7, 7, 7]
    assert [one.fit.seed for one in (plan.supervised, plan.ceiling)] == [0, 0]  # learners add the plan's
    [(middle, lesson)] = plan.intermediate
    assert [one.regularisation for one in (plan.supervisor, middle, plan.student)] == [2, 3, 10]
    assert lesson.kind == "soft"


def test_each_seed_draws_gold_rows_of_its_own_and_shares_the_rest(tmp_path):
    split, plan, _ = plan_of(tmp_path, "seeds=[0, 1]", "intermediate=[{kind: words}]")
    first, second = (plan.pools(seed) for seed in plan.seeds)
    assert len(first.weak_train.ids) == len(second.weak_train.ids) == 20
    assert first.weak_train.ids != second.weak_train.ids
    assert {*first.weak_train.ids, *second.weak_train.ids} <= {row.id for row in split.splits["weak_train"]}
    for name in ("transfer", "validation", "test", "audit"):
        assert getattr(first, name) == getattr(second, name)
        assert getattr(first, name).ids == tuple(row.id for row in split.splits[name])
    assert [pool.ids for pool in first.fresh] == [tuple(row.id for row in split.splits["fresh_1"])]


def test_the_seed_of_the_run_counts_once(tmp_path):
    """Seed 1 of run 3 is seed 4 of run 0."""
    _, plan, _ = plan_of(tmp_path / "one", "seed=3", "seeds=[1]")
    _, other, _ = plan_of(tmp_path / "two", "seed=0", "seeds=[4]")
    assert plan.seeds == other.seeds == (4,)
    assert plan.pools(4).weak_train.ids == other.pools(4).weak_train.ids
    assert (plan.supervised, plan.ceiling, plan.students) == (other.supervised, other.ceiling, other.students)


def test_gold_labels_of_the_test_are_never_released(tmp_path):
    _, plan, _ = plan_of(tmp_path)
    with pytest.raises(UserError, match="are sealed for evaluation"):
        plan.vault.release(plan.pools(0).test.ids[:1], "supervisor")


def test_nothing_of_the_test_is_read_before_it_is_judged(tmp_path):
    split, _, by_id = plan_of(tmp_path)
    read = weak_to_strong.learnable(split, by_id)
    assert not {told(one) for one in read} & {told(row.conversation) for row in split.splits["test"]}
    assert len(read) == sum(len(rows) for name, rows in split.splits.items() if name != "test")


@pytest.mark.parametrize("balance", [True, False])
def test_classes_are_balanced_unless_data_are_to_stay(balance, tmp_path):
    split, plan, _ = plan_of(tmp_path, f"data.balance={balance}")
    assert plan.facts["dropped"] == len(split.dropped)
    assert bool(split.dropped) is balance


def test_a_task_reads_the_pairs_that_people_judged_on_its_axis(tmp_path):
    asked = [Conversation.ask(f"{i} ?") for i in range(3)]
    known = [{"helpful_id": 0}, {"safer_id": 1}, {"helpful_id": 1, "safer_id": 1}]
    rows = [DualPair(id=str(i), prompt=asked[i], responses=("a", "b"), **known[i]) for i in range(3)]
    write_jsonl(rows, tmp_path / "pairs.jsonl")
    for task, wanted in (("reward", {"0": "a", "2": "b"}), ("cost", {"1": "a", "2": "a"})):
        chosen = settings(f"task={task}", f"data.pairs={tmp_path / 'pairs.jsonl'}")
        items, _ = weak_to_strong.read_items(chosen, chosen.data, RunFolder(tmp_path / task))
        assert {one.record.id: one.shown[one.gold].response for one in items} == wanted


def test_the_world_brings_what_was_not_given(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "pocket_world", lambda *what, **named: tmp_path)
    given = ["supervisor={kind: probe, model: mine}", "intermediate=[{kind: probe}, {kind: words}]"]
    found = weak_to_strong.in_world(settings(*given), None)
    models = [one.model and one.model.name for one in (found.supervisor, *found.intermediate, found.student)]
    assert models == ["mine", str(tmp_path / "policy"), None, str(tmp_path / "policy")]
    assert found.data.pairs.path == str(tmp_path / "pairs.jsonl")
    own = weak_to_strong.in_world(settings(*given, "data.pairs=own"), None)
    assert own.data.pairs.path == "own"
