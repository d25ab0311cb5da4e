"""The study `w2s_text`: its texts are cleaned and divided as described, and criteria can fail."""

import gzip
import json

import numpy as np
import pytest
import torch
from shared_files import shared_file

from holdfast.data.schema import Classified, Conversation
from holdfast.data.split import cluster_ids
from holdfast.errors import UserError
from holdfast.studies import w2s_common, w2s_text
from holdfast.studies.common import shared_folder
from holdfast.studies.w2s_common import packed
from holdfast.studies.w2s_text import Arm, Corpus, World, clean, criteria, drawn, even, heights, plan, spectrum, table

COLOURS = ["red", "blue", "green", "brown", "black", "white", "pink", "grey"]
THINGS = ["cat", "dog", "owl", "fox", "hen", "bee", "ant", "cow", "pig", "bat", "rat", "elk"]
PLACES = ["hill", "lake", "road", "barn", "farm", "wood"]


def posts(count=576):
    """Posts that are nice (class 2) or rude (0 and 1) by their first word; every sixth repeats the one before it."""
    rows = []
    for i in range(count):
        j = i - (i % 6 == 5)
        words = COLOURS[j % 8], THINGS[j // 8 % 12], PLACES[j // 96 % 6]
        rude = (j * 7) % 3 > 0
        text = f"{'rude' if rude else 'nice'} {' '.join(words)}"
        rows.append({"id": f"dav-{i}", "text": f"RT @a_{i}: {text}", "label": (j * 7) % 3 - 1 if rude else 2})
    return rows


def dialogues():
    words = [(c, f"{t} of the {p}") for c in COLOURS for t in THINGS for p in PLACES]
    return [
        {
            "id": f"dia-{i}-{k}",
            "context": f"do you like the {c} {t}",
            "response": f"{'rude' if (i + k) % 2 else 'nice'} {k}",
            "label": (i + k) % 2,
            "category": "x",
            "split": "train",
        }
        for i, (c, t) in enumerate(words)
        for k in range(3)
    ]


def write(name, rows):
    shared_folder("w2s").mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (shared_folder("w2s") / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))


@pytest.fixture(autouse=True)
def shared(monkeypatch, tmp_path):
    """A folder of made-up data, and nothing left in memory of another."""
    for kept in (w2s_text.corpus, w2s_text.features):
        kept.cache_clear()
    monkeypatch.setenv("HOLDFAST_SHARED", str(tmp_path / "shared"))
    write("davidson_offensive", posts())
    write("diasafety", dialogues())
    yield
    for kept in (w2s_text.corpus, w2s_text.features):
        kept.cache_clear()


@pytest.mark.parametrize(
    "text, left",
    [
        ("!!! RT @a: no, @b_c! way", "!!! no, ! way"),
        ("see https://t.co/Ab1 or http://x.y/z?q=1 now", "see or now"),
        ("&#8220;true&#8221; &amp; good", "true good"),
        ("START the pARTy & rt", "START the pARTy & rt"),
        ("RT @you: &#128514;&#128514; !!! 12", ""),
        ("  two \n lines ", "two lines"),
    ],
)
def test_only_what_is_no_word_is_cut_out(text, left):
    assert clean(text) == left


def test_hateful_and_offensive_are_one_class_and_wordless_posts_go():
    rows = [{"id": str(i), "text": f"words {i}", "label": i} for i in range(3)]
    write("davidson_offensive", [*rows, {"id": "3", "text": "RT @x: &#128514;", "label": 2}])
    assert [(one.id, one.label) for one in w2s_text.tweets()] == [("0", "1"), ("1", "1"), ("2", "0")]


def test_dialogues_are_read_with_their_context():
    found = w2s_text.corpus("dialogues", 10, 40)
    gold = {row["id"]: row for row in dialogues()}
    for one in found.everything:
        row = gold[one.id]
        assert found.words[one.id] == f"{row['context']} [SEP] {row['response']}"
        assert one.label == str(row["label"])
    contexts = [gold[one.id]["context"] for one in found.exam]
    assert len(set(contexts)) == 10
    assert not set(contexts) & {gold[one.id]["context"] for one in found.pool}


def test_exam_and_pool_are_halves_of_both_classes_without_related_texts():
    found = w2s_text.corpus("tweets", 40, 200)
    for part, size in ((found.exam, 40), (found.pool, 200)):
        assert [sum(one.label == label for one in part) for label in "01"] == [size // 2] * 2
    texts = [found.words[one.id] for one in found.exam]
    assert len(set(texts)) == 40
    assert not set(texts) & {found.words[one.id] for one in found.pool}
    assert not any("@" in text or "RT" in text for text in found.words.values())


def test_a_class_that_is_too_small_is_named():
    rows = [Classified(id=str(i), conversation=Conversation.ask(f"text {i}"), label=str(i % 2)) for i in range(6)]
    assert [one.label for one in even(rows, 4)] == ["0", "0", "1", "1"]
    with pytest.raises(UserError, match="4 rows are asked of"):
        even(rows, 8)


def test_a_seed_draws_its_parts_by_group_and_keeps_the_exam():
    texts = w2s_text.corpus("tweets", 40, 200)
    world = World(test=40, pool=200, transfer=60, validation=8)
    first, again, other = (drawn(texts, world, 20, seed) for seed in (3, 3, 4))
    assert first == again
    assert first.test == other.test
    assert first.transfer != other.transfer
    assert [len(pool.ids) for pool in first.named().values()] == [20, 60, 8, 40]
    cluster = dict(zip((one.id for one in texts.everything), cluster_ids(texts.everything)))
    groups = [{cluster[id] for id in pool.ids} for pool in first.named().values()]
    assert len(set().union(*groups)) == sum(map(len, groups))


def test_the_spectrum_is_learned_without_the_exam_and_read_when_it_is_there(tmp_path):
    (tmp_path / "other").mkdir()
    words = ["owl owl owl", "cat dog", "dog cow", "cow cat cat", "pig dog"]
    found = spectrum(tmp_path, words, 1, 3)
    assert found.shape == (5, 3)
    assert np.abs(found[0]).max() == 0
    np.testing.assert_array_equal(spectrum(tmp_path / "other", ["cat dog", *words[1:]], 1, 3)[1:], found[1:])
    assert np.abs(found[1:]).max(1).min() > 0.1
    (file,) = tmp_path.glob("lsa-*.npz")
    np.savez(file, values=found + 1)
    np.testing.assert_array_equal(spectrum(tmp_path, words, 1, 3), found + 1)
    assert len(spectrum(tmp_path, words, 2, 3)) == 5
    assert len(list(tmp_path.glob("lsa-*.npz"))) == 2


def test_supervisor_and_student_see_the_same_posts_each_in_its_way(monkeypatch, tmp_path):
    def embeddings(folder, texts, small_steps):
        values = np.array([[len(text), text.startswith("rude")] for text in texts], dtype=np.float32)
        return w2s_text.encoder.Embedded(values, f"{small_steps} steps", 0.0)

    monkeypatch.setattr(w2s_text.encoder, "embeddings", embeddings)
    losses = ("soft", "hard", "logconf", "logconf_weak", "product", "adaptconf")
    arms = {"tweets": Arm(taught=20, losses=losses, epochs=4), "long": Arm(taught=20, select=False)}
    world = World(test=40, pool=200, transfer=60, validation=8, arms=arms)
    made = plan(tmp_path, world, "tweets")
    test = made.pools(1).test
    texts = w2s_text.corpus("tweets", 40, 200).words
    read = [texts[id] for id in test.ids]
    assert made.supervisor.view(test.items) == read
    assert made.student.view(test.items)[:, 0].tolist() == [len(text) for text in read]
    rude = torch.tensor([[0.0, 1.0] if text.startswith("rude") else [1.0, 0.0] for text in read])
    assert made.vault.accuracy(test.ids, rude).value == 1
    kinds = {loss: (one.kind, one.prior) for loss, one in made.students.items()}
    assert kinds == {
        "soft": ("soft", "auto"),
        "hard": ("hard", "auto"),
        "logconf": ("logconf", "half"),
        "logconf_weak": ("logconf", "weak"),
        "product": ("product", "auto"),
        "adaptconf": ("adaptconf", "auto"),
    }
    assert {one.fit.epochs for one in [*made.students.values(), made.ceiling]} == {4}
    assert made.select
    assert not plan(tmp_path, world, "long").select


def model(accuracy, curve=None, on_wrong=0.4):
    flags = np.arange(1000) < round(accuracy * 1000)
    own = {"accuracy": accuracy, "right": packed(flags), "on_wrong": on_wrong}
    return own if curve is None else own | {"curve": curve}


def one(
    weak=0.81, soft=0.85, logconf=0.88, ceiling=0.91, wrong=(0.4, 0.32), curves=((0.8, 0.8), (0.8, 0.8)), warnings=()
):
    students = {
        loss: model(level, list(curve), share)
        for loss, level, share, curve in zip(("soft", "logconf"), (soft, logconf), wrong, curves)
    }
    own = {"seed": 1, "items": {"test": 1000}, "warnings": list(warnings), "seconds": 1.0, "facts": {"sees": "x"}}
    return own | {"supervisor": model(weak) | {"mean": 0.5, "sd": 0.1}, "ceiling": model(ceiling), "students": students}


LONG = one(curves=((0.84, 0.86, 0.842), (0.88, 0.884, 0.875)))
CONTROL = one(weak=0.79, soft=0.74, logconf=0.67, ceiling=0.82, warnings=["soft: student below supervisor, .7"])
GOOD = {"tweets": [one()] * 10, "long": [LONG] * 5, "lsa": [CONTROL] * 10}


def failing(arm, *runs):
    arms = GOOD | {arm: [*runs, *GOOD[arm][len(runs) :]]}
    return [found["name"] for found in criteria(arms) if not found["holds"]]


@pytest.mark.parametrize(
    "arm, run, times, names",
    [
        ("tweets", one(soft=0.80), 1, []),
        ("tweets", one(soft=0.80), 2, ["naive_above"]),
        ("tweets", one(soft=0.829), 10, ["naive_recovers"]),
        ("tweets", one(soft=0.831), 10, []),
        ("tweets", one(logconf=0.85), 2, ["confidence_above"]),
        ("tweets", one(logconf=0.80), 3, ["confidence_above", "confidence_sure"]),
        ("tweets", one(wrong=(0.4, 0.41)), 10, ["confidence_corrects"]),
        ("long", one(curves=((0.84, 0.86, 0.851), (0.88, 0.884, 0.88))), 5, ["overfits"]),
        ("long", one(curves=((0.84, 0.86, 0.842), (0.88, 0.884, 0.86))), 5, ["confidence_overfits_less"]),
        ("lsa", one(weak=0.79, soft=0.80, logconf=0.67, warnings=CONTROL["warnings"]), 2, ["control_below"]),
        ("lsa", one(weak=0.79, soft=0.74, logconf=0.75, warnings=CONTROL["warnings"]), 2, ["control_worse"]),
        ("lsa", CONTROL | {"warnings": ["confidence loss below naive"]}, 1, ["control_warned"]),
    ],
)
def test_every_criterion_fails_by_itself(arm, run, times, names):
    assert failing(arm, *[run] * times) == names


def test_heights_are_taken_at_the_best_epoch_of_the_mean_curve():
    curves = ((0.9, 0.8, 0.7), (0.5, 0.85, 0.6))
    runs = [one(curves=(curve, curve)) for curve in curves]
    best, last = heights(runs, "soft")
    assert best.tolist() == [0.8, 0.85]
    assert last.tolist() == [0.7, 0.6]


def test_the_table_shows_the_peak_and_the_end_of_long_training():
    text = table({"arms": GOOD})
    assert "| soft | 2 | 0.860 | 3 | 0.842 |" in text
    assert "| tweets | logconf | 0.880" in text


def test_a_small_run_ends_in_a_result(monkeypatch, tmp_path):
    monkeypatch.setattr(w2s_common, "side_by_side", lambda work, items: list(map(work, items)))
    arms = {
        "tweets": Arm(taught=20, epochs=2),
        "long": Arm(taught=20, epochs=3, select=False),
        "lsa": Arm(taught=20, epochs=2, lsa=8),
        "dialogues": Arm(data="dialogues", taught=20, epochs=2),
    }
    monkeypatch.setattr(
        w2s_text, "QUICK", World(test=40, pool=160, transfer=48, validation=8, small_steps=2, arms=arms)
    )
    result = w2s_text.run(tmp_path / "runs", seeds=[99], quick=True)
    again = w2s_text.run(tmp_path / "runs", seeds=[99], quick=True)
    assert again == result
    assert {name: len(runs) for name, runs in result["arms"].items()} == dict.fromkeys(arms, 1)
    assert result["arms"]["tweets"][0]["supervisor"]["accuracy"] > 0.8
    assert json.loads(json.dumps(criteria(result["arms"]))) == result["criteria"]
    assert "| lsa | ceiling |" in table(result)


def test_missing_data_are_named_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("HOLDFAST_SHARED", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"davidson_offensive\.jsonl\.gz; set HOLDFAST_SHARED"):
        w2s_text.run(tmp_path, seeds=[99], quick=True)


@pytest.mark.slow
@pytest.mark.shared
def test_the_real_posts_suffice(monkeypatch):
    monkeypatch.undo()
    shared_file("w2s/davidson_offensive.jsonl.gz")
    world = World()
    found = w2s_text.corpus("tweets", world.test, world.pool)
    assert (len(found.exam), len(found.pool)) == (1500, 5000)
    sizes = [len(pool.ids) for pool in drawn(found, world, 100, 99).named().values()]
    assert sizes == [100, 1800, 200, 1500]


def test_a_corpus_lists_the_exam_first():
    rows = [Classified(id=name, conversation=Conversation.ask(name), label="0") for name in "ab"]
    assert [one.id for one in Corpus(rows[1:], rows[:1], {}).everything] == ["b", "a"]
