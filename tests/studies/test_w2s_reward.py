"""The study `w2s_reward`: pairs are divided and ordered as described, and criteria can fail."""

import gzip
import json
from collections import Counter

import numpy as np
import pytest
import torch
from shared_files import shared_file

from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings
from holdfast.errors import UserError
from holdfast.pocket.oracles import truth
from holdfast.studies import encoder, w2s_common, w2s_reward, w2s_text
from holdfast.studies.common import shared_folder
from holdfast.studies.w2s_common import packed
from holdfast.studies.w2s_reward import Arm, Compared, Pairs, World, criteria, drawn, ordered, plan, shorter, table

CACHES = (w2s_text.corpus, w2s_text.features, w2s_reward.pairs_of, w2s_reward.embedded)


def comparisons():
    """Pairs whose better answer says please; a prompt comes back in another block, and one twice in the exam."""
    rows = []
    for block, count in (("half_a", 60), ("half_b", 40), ("test", 30)):
        for i in range(count):
            prompt = {("half_a", 0): "half_b 1", ("half_b", 0): "test 1", ("test", 0): "test 1"}.get((block, i))
            rows.append(
                {
                    "id": f"{block}-{i}",
                    "prompt": prompt or f"{block} {i}",
                    "chosen": f"please {i}" + " and so on" * (i % 2),
                    "rejected": f"never {i}",
                    "same_prompt": True,
                    "split": block,
                }
            )
    return rows


def write(name, rows):
    shared_folder("w2s").mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (shared_folder("w2s") / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))


@pytest.fixture(autouse=True)
def shared(monkeypatch, tmp_path):
    """A folder of made-up data, and nothing left in memory of another."""
    for kept in CACHES:
        kept.cache_clear()
    monkeypatch.setenv("HOLDFAST_SHARED", str(tmp_path / "shared"))
    monkeypatch.setattr(w2s_reward, "GOLD", 30)
    write("hh_harmless_single_turn", comparisons())
    posts = [
        {"id": f"dav-{i}", "text": f"post {i % 720} is {'rude' if i % 3 else 'nice'}", "label": 1 if i % 3 else 2}
        for i in range(750)  # the last thirty repeat the first
    ]
    write("davidson_offensive", posts)
    yield
    for kept in CACHES:
        kept.cache_clear()


@pytest.fixture
def lengths(monkeypatch):
    """Embeddings that only know how long a text is and whether it says please."""

    def embeddings(folder, texts, small_steps):
        values = np.array([[len(text), "please" in text] for text in texts], dtype=np.float32)
        return encoder.Embedded(values, "lengths", 0.0)

    monkeypatch.setattr(encoder, "embeddings", embeddings)


def test_no_prompt_stands_in_two_parts_and_none_twice_in_the_exam():
    found = w2s_reward.harmless(20, 30)
    assert Counter(one.id.split("-")[0] for one in found.exam) == {"test": 29}
    assert "half_b-0" not in {one.id for one in found.transfer}
    assert {one.id for one in found.gold} == {f"half_a-{i}" for i in range(1, 60)}
    groups = [{one.group for one in part} for part in found]
    assert sum(map(len, groups)) == len(set().union(*groups))
    for part in found:
        assert all(one.high[1].startswith("please") and one.low[1].startswith("never") for one in part)
        assert all(one.high[0] == one.low[0] != "" for one in part)


def test_too_few_pairs_are_named():
    with pytest.raises(UserError, match="31 pairs are asked of the exam of hh, which holds 29"):
        w2s_reward.pairs_of("hh", 31, 10)
    with pytest.raises(UserError, match="60 pairs are asked of the gold pairs, which holds 59"):
        drawn(w2s_reward.pairs_of("hh", 10, 10), 60, seed=1)


def test_the_place_of_the_high_answer_is_the_class_and_drawn():
    pairs = [Compared(str(i), str(i), f"high {i}", f"low {i}") for i in range(400)]
    found = ordered(pairs, (1, 2))
    for i, (id, item) in enumerate(zip(found.ids, found.items)):
        name, place = id.split("/")
        assert name == str(i)
        assert item[int(place)] == f"high {i}"
        assert item[1 - int(place)] == f"low {i}"
    assert 150 < sum(int(id[-1]) for id in found.ids) < 250
    assert found == ordered(pairs, (1, 2))
    assert found != ordered(pairs, (1, 3))


def test_a_seed_draws_gold_pairs_and_orders_and_keeps_the_exam():
    pairs = Pairs(*([Compared(f"{part}{i}", "", "h", "l") for i in range(50)] for part in "etg"))
    first, again, other = (drawn(pairs, 20, seed) for seed in (3, 3, 4))
    assert first == again
    assert first.test == other.test
    assert first.transfer != other.transfer
    assert {id.split("/")[0] for id in first.transfer.ids} == {id.split("/")[0] for id in other.transfer.ids}
    gold = [{id.split("/")[0] for id in one.weak_train.ids} for one in (first, other)]
    assert [len(one) for one in gold] == [20, 20]
    assert gold[0] != gold[1]
    assert len(drawn(pairs, 20, 3).validation.ids) == 0


def test_posts_are_paired_by_class_and_used_once():
    found = w2s_reward.posts(10, 20)
    texts = [side for part in found for one in part for side in (one.high, one.low)]
    assert len(set(texts)) == len(texts)
    assert all(one.high[0].endswith("rude") and one.low[0].endswith("nice") for part in found for one in part)
    assert len(found.exam) == 10
    assert len(found.transfer) == 20
    assert 20 <= len(found.gold) <= 30


def test_answers_of_the_pocket_world_are_ordered_by_its_oracle():
    found = w2s_reward.answers(200, 300)  # so many that some requests are drawn again
    assert [len(part) for part in found] == [200, 300, 30]
    for part in found:
        for one in part:
            values = [truth(one.group, side.response).value for side in (one.high, one.low)]
            assert values[0] > values[1]
            assert one.high.prompt == one.low.prompt
    groups = [one.group for part in found for one in part]
    assert len(set(groups)) == len(groups)
    assert len({one.id for part in found for one in part}) == len(groups)


def test_supervisor_and_student_see_the_same_pairs_each_in_its_way(lengths, tmp_path):
    arm = Arm(data="hh", taught=20, transfer=30, test=20, epochs=2, rate=1e-2, decay=0.3)
    made = plan(tmp_path, World(arms={"hh_300": arm}), "hh_300")
    test = made.pools(1).test
    assert made.supervisor.view(test.items) == [(first[1], second[1]) for first, second in test.items]
    seen = made.student.view(test.items)
    lengths_of = [[len(" [SEP] ".join(side)) for side in item] for item in test.items]
    assert seen[..., 0].tolist() == lengths_of
    # The vault agrees with the words: the second is preferred where it says please.
    assert made.vault.accuracy(test.ids, torch.stack([seen[:, 0, 1], seen[:, 1, 1]], dim=1)).value == 1
    assert {name: one.kind for name, one in made.students.items()} == {k: k for k in arm.losses}
    assert {one.prior for one in made.students.values()} == {"auto"}
    assert {one.fit.optimiser.weight_decay for one in [*made.students.values(), made.ceiling]} == {0.3}
    assert made.student.pair
    assert made.supervisor.pair
    assert not made.select


def test_the_exam_is_sealed_and_its_groups_are_known(lengths, tmp_path):
    arm = Arm(data="hh", taught=20, transfer=30, test=20, epochs=2, rate=1e-2)
    made = plan(tmp_path, World(arms={"hh_300": arm}), "hh_300")
    with pytest.raises(UserError, match="20 of 20 labels asked for by the x are sealed"):
        made.vault.release(made.pools(1).test.ids, "x")
    pairs = w2s_reward.pairs_of("hh", 20, 30)
    assert made.vault.groups(made.pools(1).test.ids) == [one.group for one in pairs.exam]


def test_how_often_the_shorter_answer_is_the_better_one():
    def pair(high, low):
        return Compared("1", "1", ("a long question", high), ("a long question", low))

    assert shorter([pair("no", "yes I can"), pair("no", "well no"), pair("a b", "c d"), pair("x y z", "w")]) == 0.625


def model(accuracy):
    return {"accuracy": accuracy, "right": packed(np.arange(1000) < round(1000 * accuracy)), "on_wrong": 0.6}


def one(weak=0.59, soft=0.61, logconf=0.62, ceiling=0.64):
    own = {"seed": 1, "items": {"test": 1000}, "warnings": [], "seconds": 1.0, "facts": {"shorter": 0.59, "sees": "x"}}
    students = {"soft": model(soft), "logconf": model(logconf)}
    return own | {"supervisor": model(weak) | {"mean": 0.5, "sd": 0.1}, "ceiling": model(ceiling), "students": students}


GOOD = {name: [one()] * 10 for name in ("hh_300", "hh_1000", "cost_50")} | {"pocket": [one()] * 5}


def failing(arm, *runs):
    arms = GOOD | {arm: [*runs, *GOOD[arm][len(runs) :]]}
    return [found["name"] for found in criteria(arms) if not found["holds"]]


@pytest.mark.parametrize(
    "arm, run, times, names",
    [
        ("hh_300", one(soft=0.58), 1, []),
        ("hh_300", one(soft=0.58), 2, ["hh_300_above"]),
        ("hh_300", one(soft=0.599), 10, ["hh_300_recovers"]),
        ("hh_300", one(logconf=0.60), 2, ["hh_300_confidence"]),
        ("hh_1000", one(soft=0.58), 2, ["hh_1000_above"]),
        ("hh_1000", one(logconf=0.60), 2, []),
        ("cost_50", one(soft=0.58), 2, ["cost_50_above"]),
        ("cost_50", one(logconf=0.60), 2, ["cost_50_confidence"]),
        ("pocket", one(soft=0.58), 1, []),
        ("pocket", one(soft=0.58), 2, ["pocket_above"]),
    ],
)
def test_every_criterion_fails_by_itself(arm, run, times, names):
    assert failing(arm, *[run] * times) == names


def test_the_table_ends_with_the_shortcut():
    assert table({"arms": {"hh_300": [one()] * 2}}).endswith("right in: hh_300 0.590.")


def test_a_small_run_ends_in_a_result(lengths, monkeypatch, tmp_path):
    monkeypatch.setattr(w2s_common, "side_by_side", lambda work, items: list(map(work, items)))
    small = {"transfer": 30, "test": 20, "epochs": 4, "rate": 3e-2, "losses": ("soft", "logconf")}
    arms = {name: Arm(data="hh", taught=30, **small) for name in ("hh_300", "hh_1000")}
    arms |= {"cost_50": Arm(data="cost", taught=20, **small), "pocket": Arm(data="pocket", taught=20, **small)}
    imitation = FitSettings(batch_size=32, optimiser=OptimiserSettings(learning_rate=3e-3))
    world = World(weak_hidden=16, weak_epochs=1, strong_hidden=16, imitation=imitation, arms=arms)
    monkeypatch.setattr(w2s_reward, "QUICK", world)
    result = w2s_reward.run(tmp_path / "runs", seeds=[99], quick=True)
    again = w2s_reward.run(tmp_path / "runs", seeds=[99], quick=True)
    assert again == result
    assert {name: len(runs) for name, runs in result["arms"].items()} == dict.fromkeys(arms, 1)
    found = result["arms"]["hh_300"][0]
    assert found["supervisor"]["accuracy"] > 0.9
    assert found["ceiling"]["accuracy"] > 0.9
    assert json.loads(json.dumps(criteria(result["arms"]))) == result["criteria"]
    assert "| pocket | ceiling |" in table(result)


def test_missing_data_are_named_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("HOLDFAST_SHARED", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"hh_harmless_single_turn\.jsonl\.gz; set HOLDFAST_SHARED"):
        w2s_reward.run(tmp_path, seeds=[99], quick=True)


@pytest.mark.slow
@pytest.mark.shared
def test_the_real_pairs_suffice(monkeypatch):
    monkeypatch.undo()
    shared_file("w2s/hh_harmless_single_turn.jsonl.gz")
    for arm in World().arms.values():
        found = drawn(w2s_reward.pairs_of(arm.data, arm.test, arm.transfer), arm.taught, 99)
        sizes = [len(pool.ids) for pool in found.named().values()]
        assert sizes == [arm.taught, arm.transfer, arm.test]
