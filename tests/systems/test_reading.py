"""Sources as systems read them: one kind of record from many kinds of rows, and rows set aside in the run folder."""

import json

import pytest

from holdfast.data.schema import Classified, Ranked, Scored
from holdfast.engine.log import RunFolder
from holdfast.errors import UserError
from holdfast.systems import reading

TURNS = ["<|prompter|>q", "<|assistant|>"]
PRO = {"prefix": [TURNS, TURNS], "suffix": ["x", "y"], "reward": [-1.0, 2.0]}
PAIR = {"prompt": "q", "chosen": "x", "rejected": "y"}


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "run", reading.PoolSettings())


@pytest.fixture
def source(tmp_path):
    def written(*rows, **settings):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return reading.Source(path=str(path), **settings)

    return written


def test_scored_answers_of_every_kind(source, run) -> None:
    (row,) = reading.scored(source({"prompt": "q", "response": "x", "reward": 0.5}), run)
    assert isinstance(row, Scored)
    assert (row.id, row.scores) == ("rows-1", {"reward": 0.5})
    best, worst = reading.scored(source(PRO), run)
    assert [(one.id, one.conversation.response, one.scores["reward"]) for one in (best, worst)] == [
        ("rows-1/0", "y", 2.0),
        ("rows-1/1", "x", -1.0),
    ]
    talk = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}]}
    (rated,) = reading.scored(source({"conversation": talk, "labels": {"help": 3, "tone": None}}), run)
    assert rated.scores == {"help": 3.0}
    with pytest.raises(UserError, match=r"data\.answers: the Pair rows-1 carries no reward"):
        reading.scored(source(PAIR), run)


def test_ranked_answers_of_every_kind(source, run) -> None:
    (pair,) = reading.ranked(source(PAIR), run)
    assert isinstance(pair, Ranked)
    assert (pair.responses, pair.rewards) == (("x", "y"), None)
    (row,) = reading.ranked(source(PRO), run)
    assert (row.responses, row.rewards, row.preferred) == (("y", "x"), (2.0, -1.0), 1)
    with pytest.raises(UserError, match=r"data\.ranked holds Classified rows; pairs or ranked answers are needed"):
        reading.ranked(source({"text": "q", "label": 1}), run)


def test_classes_of_every_kind(source, run) -> None:
    (row,) = reading.classified(source({"text": "q", "label": 1, "group_id": "g"}), run)
    assert isinstance(row, Classified)
    assert (row.label, row.group) == ("1", "g")
    safety = [{"context": "q", "response": "x", "label": label} for label in (0, 1)]
    assert [row.label for row in reading.classified(source(*safety), run)] == ["safe", "unsafe"]
    with pytest.raises(UserError, match=r"data\.classified holds Pair rows; texts with a label"):
        reading.classified(source(PAIR), run)


def test_what_people_prefer_is_not_what_rewards_say(source, run) -> None:
    (pair,) = reading.preferences(source(PRO), "pairs", run)
    assert (pair.chosen, pair.rejected) == ("x", "y")


def test_rows_without_a_usable_reward_are_set_aside(source, run, capsys) -> None:
    rows = [{"prompt": "q", "response": "x", "reward": value} for value in (0.5, None, 1.5)]
    found = reading.scored(source(*rows, on_bad_row="skip"), run)
    assert [row.scores["reward"] for row in found] == [0.5, 1.5]
    (skipped,) = (run.path / "skipped-answers.jsonl").read_text().splitlines()
    assert json.loads(skipped)["reason"] == "reward must be a finite number, got None"
    assert "data.answers: 1 rows cannot be used" in capsys.readouterr().err
    with pytest.raises(UserError, match="row 2: reward must be a finite number, got None"):
        reading.scored(source(*rows), run)
