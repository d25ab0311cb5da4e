"""The study on real answers: which rows are read, what is measured, and that all methods run."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from shared_files import shared_file

from holdfast.data.schema import Conversation, Ranked
from holdfast.engine.log import RunFolder
from holdfast.errors import UserError
from holdfast.studies import a_lol_hh
from holdfast.studies.a_lol_hh import (
    DEVELOPMENT,
    FILES,
    METHODS,
    Plan,
    criteria,
    encoded,
    fits,
    link,
    material,
    prefers,
    prepare,
    rows,
    run,
    shortened,
    table,
)

WORDS = ["dig", "plant", "water", "prune", "stir", "chop", "bake", "taste", "sing", "hum", "tune", "drum"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small lose more to waiting threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def row(tranche, line, answers=(" one two", "three"), logits=(0.5, -0.5), asked="how?"):
    return {
        "prefix": [[f"<|prompter|>{asked}", "<|assistant|>"]] * 2,
        "suffix": list(answers),
        "reward": list(logits),
        "sft_index": 0,
        "meta": {"path": f"data/{tranche}/dev.jsonl", "line_num": line, "task": "dialogue"},
    }


def write(folder, name, found):
    lines = "".join(json.dumps(one) + "\n" for one in found)
    (folder / name).write_bytes(gzip.compress(lines.encode()))


def tranche(file):
    return file.removeprefix("lolrl_hh_test_").removesuffix(".jsonl.gz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """120 rows: answers with `dig` are liked, a fifth of the pairs has equal rewards, and the first row of each file is
    in the development set."""
    place, source = tmp_path_factory.mktemp("shared") / "data" / "hh", np.random.default_rng(0)
    place.mkdir(parents=True)
    for file in FILES:
        made = []
        for line in range(1, 41):
            said = [" ".join(source.choice(WORDS, size=source.integers(2, 12))) for _ in range(2)]
            logits = [said[i].split().count("dig") - 1 + 0.1 * i for i in range(2)] if line % 5 else [0.0, 0.0]
            asked = " ".join(source.choice(WORDS, size=25))
            made.append(row(tranche(file), line, said, logits, asked))
        write(place, file, made)
    write(place, DEVELOPMENT, [row(tranche(file), 1) for file in FILES])
    return place


SMALL = Plan(sft_steps=4, steps=2, batch=8, window=48, vocabulary=320, hidden=16, known=20, value_epochs=1)


@pytest.fixture(scope="module")
def shared(folder):
    return material(SMALL, folder)


@pytest.fixture(scope="module")
def bench(shared, tmp_path_factory):
    return prepare(SMALL, shared, 1, RunFolder(tmp_path_factory.mktemp("reference") / "run"))


def test_rows_of_the_development_set_are_left_out_and_rewards_order_answers(folder):
    found = rows(folder)
    assert len(found) == 3 * 39
    assert {one.id for one in found}.isdisjoint({f"{tranche(file)}-1" for file in FILES})
    assert all(one.rewards[0] >= one.rewards[1] for one in found)
    assert len(rows(folder, most=10)) == 3 * 9


def test_missing_files_are_named_with_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"there is no .*lolrl_hh_dev.jsonl.gz; set HOLDFAST_SHARED to the folder"):
        rows(tmp_path)


def test_the_last_words_of_the_last_turn_are_the_prompt():
    prompt = Conversation.ask("a b c").answer("no").model_copy()
    asked = prompt.model_copy(update={"messages": (*prompt.messages, *Conversation.ask("d e f g").messages)})
    short = shortened(Ranked(id="x", prompt=asked, responses=("1", "2")), 3)
    assert [message.text for message in short.prompt.messages] == ["e f g"]
    assert short.responses == ("1", "2")


def test_prompts_are_in_one_part_only_and_leave_room(shared):
    learned, held_out = ({one.prompt.messages[0].text for one in part} for part in (shared.learned, shared.held_out))
    assert not learned & held_out
    assert len(shared.learned) + len(shared.held_out) <= 117
    assert 10 < len(shared.held_out) < 40
    assert max(one.length for one in encoded(shared.learned, shared.template)) <= SMALL.window
    long = shared.learned[0].model_copy(update={"prompt": Conversation.ask(" ".join(WORDS * 5))})
    assert fits(shared.learned[0], shared.template)
    assert not fits(long, shared.template)


def test_values_are_learned_from_prompts_that_nothing_else_learns_from(shared, bench):
    labels = bench.labels
    assert len(labels.rows) == 2 * (len(shared.learned) - SMALL.known)
    by_id = {one.id: one for one in shared.learned}
    for one in labels.rows[:6]:
        assert one.reward in [pytest.approx(link(logit)) for logit in by_id[one.tokens.id].rewards]
    for pair in labels.pairs:
        assert pair.quality == by_id[pair.id].rewards
    assert link(2.0) == pytest.approx(math.exp(2) / (1 + math.exp(2)))


def test_what_a_policy_prefers_is_what_a_slow_loop_says(shared, bench, tmp_path):
    start = bench.start
    policy = prepare(SMALL.model_copy(update={"sft_steps": 2}), shared, 5, RunFolder(tmp_path / "run")).start.policy
    found = prefers(policy, bench)
    judged = [one for one in shared.held_out if one.rewards[0] != one.rewards[1]]
    assert len(judged) < len(shared.held_out)
    expected = []
    for one in judged:
        leads = []
        for text in one.responses:
            tokens = shared.template.answered(one.prompt.answer(text))
            ids, total = torch.tensor([tokens.ids]), 0.0
            for model, sign in ((policy, 1), (start.policy, -1)):
                said = model(ids).logits[0].double().log_softmax(-1)
                total += sign * sum(said[t - 1, ids[0, t]].item() for t in range(tokens.prompt_length, tokens.length))
            leads.append(total / (tokens.length - tokens.prompt_length))
        expected.append(leads[0] > leads[1])
    assert found == expected
    assert 0 < sum(found) < len(found)
    assert sum(prefers(start.policy, bench)) == 0


def arms(ours, theirs):
    usual = {"right": {"value": 0.5}, "kept": None, "seconds": 1.0}
    return {"nll": [usual | {"pairs": one} for one in theirs], "a_lol": [usual | {"pairs": one} for one in ours]}


def test_pairs_are_compared_by_their_means_over_seeds():
    ours, theirs = ["1" * 60 + "0" * 40, "1" * 70 + "0" * 30], ["0" * 10 + "1" * 40 + "0" * 50] * 2
    (found,) = criteria(arms(ours, theirs))
    assert found["value"] == pytest.approx(0.65 - 0.4)
    # 10 pairs gain 1, 10 gain 1, 10 gain 1/2: the standard error of the mean is .04.
    assert found["holds"]
    assert found["low"] == pytest.approx(0.25 - 1.96 * 0.042, abs=0.015)
    assert found["n"] == 100
    assert not criteria(arms(theirs, ours))[0]["holds"]
    assert not criteria(arms(theirs, theirs))[0]["holds"]
    assert not criteria(arms(ours[:1], theirs[:1]))[0]["holds"]  # one seed is no evidence


def test_all_methods_run_and_finished_ones_are_read(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(a_lol_hh, "QUICK", SMALL)
    monkeypatch.setenv("HOLDFAST_SHARED", str(folder.parents[1]))
    first = run(tmp_path, [0], quick=True)
    assert set(first["arms"]) == set(METHODS)
    assert len({ones[0]["pairs"] for ones in first["arms"].values()}) > 3
    text = json.dumps(first, allow_nan=False)
    assert not any(word in text for word in WORDS)
    assert 0 < first["arms"]["a_lol"][0]["kept"] < 1
    monkeypatch.setattr(a_lol_hh, "prepare", None)
    assert run(tmp_path, [0], quick=True) == first
    assert len(table(first).splitlines()) == 2 + len(METHODS) + 2


def test_nothing_of_the_rows_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(a_lol_hh, "METHODS", ("nll",))
    monkeypatch.setattr(a_lol_hh, "QUICK", SMALL)
    monkeypatch.setenv("HOLDFAST_SHARED", str(folder.parents[1]))
    run(tmp_path, [0], quick=True)
    texts = [file.read_bytes() for file in tmp_path.rglob("*.json*")]
    assert texts
    assert not any(word.encode() in text for text in texts for word in WORDS)


@pytest.mark.shared
def test_the_real_files_are_those_that_were_described():
    folder = Path(shared_file(f"hh/{FILES[0]}")).parent
    # 5,620 rows less those with an empty answer or two equal ones.
    assert 5590 <= len(rows(folder)) <= 5620
