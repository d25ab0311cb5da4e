"""The stages of learning from given answers, each alone with as much of a bench as it reads."""

from types import SimpleNamespace

import pytest
import torch
from given_bench import FOLDS, answers_of, ask, bench, judged_by
from torch import nn

from holdfast.data.recast import as_ranked
from holdfast.data.schema import Conversation, DualPair, Ranked, Rated, Scored
from holdfast.data.sources import write_jsonl
from holdfast.errors import UserError
from holdfast.systems import a_lol, given, reading
from holdfast.training.selection import OfflineLimit, RewardTerm


def source(folder, rows):
    write_jsonl(rows, folder / "rows.jsonl")
    return reading.Source(path=str(folder / "rows.jsonl"))


def test_own_answers_are_what_is_imitated_unless_others_are():
    answers, other, pairs, ranked = (reading.Source(path=name) for name in ("answers", "other", "pairs", "ranked"))
    found = given.with_answers(given.OfflineData(answers=answers))
    assert (found.sft, found.prompts) == (answers, answers)
    kept = given.with_answers(given.OfflineData(answers=answers, sft=other, prompts=pairs))
    assert (kept.sft, kept.prompts) == (other, pairs)
    assert given.with_answers(given.OfflineData(ranked=ranked)).sft == ranked
    beside = given.OfflineData(ranked=ranked, pairs=pairs)
    assert given.with_answers(beside) == beside, "pairs bring answers and prompts themselves"
    assert given.with_answers(None) is None


def scored(scores, start=0):
    return [Scored(id=f"row-{i}", conversation=ask(i).answer("a b"), scores=one) for i, one in enumerate(scores, start)]


def test_a_score_comes_from_the_rows_or_else_from_the_models(tmp_path):
    rows = scored([{"reward": 0.5}, {"reward": 0.25}])
    found = given.gather(
        bench(tmp_path), given.OfflineData(answers=source(tmp_path, rows)), {"reward": RewardTerm()}, ["words"]
    )
    assert found.scores["reward"].tolist() == found.reward.tolist() == [0.5, 0.25]
    assert found.scores["words"].tolist() == [2.0, 2.0], "what only a limit names is asked for, too"
    assert [one.id for one in found.conversations] == ["row-0", "row-1"], "under the names of the rows"


def test_a_score_that_some_rows_bring_is_not_mixed_with_that_of_a_model(tmp_path):
    rows = scored([{"words": 0.5, "cost": 1.0}, {"cost": 2.0}])
    with pytest.raises(UserError, match=r"1 of 2 answers carry no words \(row-1\)"):
        given.gather(bench(tmp_path), given.OfflineData(answers=source(tmp_path, rows)), {"words": RewardTerm()}, [])


def test_only_answers_with_words_are_learned_from(tmp_path):
    imitate = [ask(0).answer("a b c"), ask(1), ask(2).answer("")]
    found = given.gather(bench(tmp_path, imitate=imitate), given.OfflineData(), {"words": RewardTerm()}, [])
    assert [one.response for one in found.conversations] == ["a b c"]
    with pytest.raises(UserError, match="no answer to learn from"):
        given.gather(bench(tmp_path, imitate=imitate[1:]), given.OfflineData(), {"words": RewardTerm()}, [])


@pytest.mark.parametrize("fold", FOLDS)
def test_no_row_stands_in_a_fold_that_judges_or_samples(fold, tmp_path):
    there = {
        "pairs": DualPair(id="x", prompt=ask(1), responses=("a", "b")),
        "ratings": Rated(id="x", conversation=ask(1).answer("a"), labels={"help": 1.0}),
    }.get(fold.removeprefix("held_out_"), ask(1))
    rows = scored([{"reward": 1.0}] * 3)
    place = bench(tmp_path, **{fold: [there], "imitate": [ask(0)]})
    assert [one.id for one in given.in_no_other_fold(place, rows, "answers")] == ["row-0", "row-2"]
    assert place.facts == {"answers_left_out": {"in_other_folds": 1, "too_long": 0}}
    with pytest.raises(UserError, match=r"none of 1 rows can be learned from \(in_other_folds 1"):
        given.in_no_other_fold(place, rows[1:2], "answers")


def test_rows_whose_prompt_does_not_fit_are_left_out_where_that_is_asked(tmp_path):
    rows = scored([{"reward": 1.0}] * 2)
    rows[0] = rows[0].model_copy(update={"conversation": Conversation.ask("a " * 40).answer("b")})
    skipping = bench(tmp_path, on_long_prompt="skip")
    assert given.in_no_other_fold(skipping, rows, "answers") == rows[1:]
    assert skipping.facts["answers_left_out"] == {"in_other_folds": 0, "too_long": 1}
    assert given.in_no_other_fold(bench(tmp_path), rows, "answers") == rows, "an error when they are read"


def test_what_is_left_by_limits_stays_together(tmp_path):
    found = answers_of({"reward": [0.1, 0.2, 0.3, 0.4], "cost": [5.0, 0.0, 0.0, 0.0], "tone": [0.0, 0.0, 1.0, 0.0]})
    limits = [OfflineLimit(score="cost"), OfflineLimit(score="tone", how="weight")]
    place = bench(tmp_path)
    left, weight = given.within(found, limits, place)
    assert left.conversations == found.conversations[1:]
    assert left.reward.tolist() == pytest.approx([0.2, 0.3, 0.4])
    assert left.scores["tone"].tolist() == [0.0, 1.0, 0.0]
    assert weight.tolist() == pytest.approx([1.0, 0.36787944, 1.0])
    assert [one["beyond"] for one in place.facts["offline_limits"]] == [1, 1]


def test_scores_are_asked_again_where_a_model_changed(tmp_path):
    place = bench(tmp_path)
    given.scores_of(place, [ask(0).answer("a")], ["words"], "scores")
    place.reward = SimpleNamespace(network=nn.Linear(2, 1))
    with pytest.raises(UserError, match=r"stale .*scores\.json"):
        given.scores_of(place, [ask(0).answer("a")], ["words"], "scores")


def test_what_rewards_follow_from(tmp_path):
    def digest(weight=1.0, name="", settings=None):
        place = bench(tmp_path)
        place.settings = settings or place.settings
        if name:
            torch.manual_seed(0)
            setattr(place, name, SimpleNamespace(network=nn.Linear(2, 1)))
        return given.scorer_digest(place, {"reward": RewardTerm(weight=weight)})

    call = {"call": "operator:countOf", "names": ["n"]}
    others = [
        {"functions": [call]},
        {"scorers": ["folder"]},
        {"endpoints": [{"url": "http://x", "names": ["n"]}]},
    ]
    found = [digest(), digest(2.0), *(digest(name=one) for one in ("reward", "cost", "attributes"))]
    found += [digest(settings=a_lol.ALol(**one)) for one in others]
    assert len(set(found)) == len(found)
    assert digest() == found[0]


def test_a_folder_of_scorers_is_what_was_loaded_from_it(tmp_path):
    place, folder = bench(tmp_path), tmp_path / "judge"
    asked = [place, [ask(0).answer("a")], ["words"], "scores"]
    judged_by(folder, place)
    found = given.scores_of(*asked)
    judged_by(folder, place)
    assert given.scores_of(*asked)["words"].tolist() == found["words"].tolist(), "the same weights"
    for change in ({"seed": 1}, {"chat_template": "chatml"}):
        judged_by(folder, place, **change)
        with pytest.raises(UserError, match=r"stale .*scores\.json"):
            given.scores_of(*asked)


def test_rows_without_annotations_keep_reward_and_weight_apart(tmp_path):
    rows = given.rewarded_rows(bench(tmp_path), answers_of({"reward": [0.25, 0.5]}), torch.tensor([1.0, 0.75]))
    assert [(one.reward, one.weight) for one in rows] == [(0.25, 1.0), (0.5, 0.75)]
    assert [one.tokens.id for one in rows] == ["p0", "p1"]


def judged(i, **labels):
    return DualPair(id=f"d{i}", prompt=ask(i), responses=("a b c", "d"), **labels)


def test_pairs_that_somebody_judged_are_rankings(tmp_path):
    pairs = [judged(0, helpful_id=1), judged(1, safer_id=0), judged(2)]
    found = given.rankings(bench(tmp_path, pairs=pairs), given.OfflineData(), given.REWARD, [], scored=False)
    assert [(one.id, one.responses) for one in found] == [("d0", ("d", "a b c")), ("d1", ("a b c", "d"))]
    by_reward = given.rankings(
        bench(tmp_path, pairs=pairs), given.OfflineData(), {"words": RewardTerm()}, [], scored=True
    )
    assert [one.rewards for one in by_reward] == [(3.0, 1.0), (3.0, 1.0)], "people are asked for pairs alone"
    with pytest.raises(UserError, match="no ranking to learn from"):
        given.rankings(bench(tmp_path, pairs=pairs[2:]), given.OfflineData(), given.REWARD, [], scored=False)


def test_a_limit_looks_at_the_answer_that_is_imitated(tmp_path):
    pairs = [judged(0, helpful_id=0), judged(1, helpful_id=1)]
    place = bench(tmp_path, pairs=pairs)
    limits = [OfflineLimit(score="words", most=2.0)]
    found = given.rankings(place, given.OfflineData(), given.REWARD, limits, scored=False)
    assert [one.id for one in found] == ["d1"]
    assert place.facts["offline_limits"][0]["beyond"] == 1


def ranked(i, *rewards):
    texts = ("a", "b c", "d e f")[: len(rewards)]
    return Ranked(id=f"r{i}", prompt=ask(i), responses=texts, rewards=rewards)


def test_rankings_keep_all_answers_for_pro_and_two_for_dpo(tmp_path):
    data = given.OfflineData(ranked=source(tmp_path, [ranked(i, 3.0, 2.0, 1.0) for i in range(3)]))
    place = bench(tmp_path, dev=[ask(2)])
    found = given.rankings(place, data, given.REWARD, [], scored=True)
    assert [(one.id, one.rewards) for one in found] == [("r0", (3.0, 2.0, 1.0)), ("r1", (3.0, 2.0, 1.0))]
    assert place.facts["ranked_left_out"]["in_other_folds"] == 1
    pairs = given.rankings(place, data, given.REWARD, [], scored=False)
    assert [one.responses for one in pairs] == [("a", "d e f")] * 2


def test_rankings_of_which_some_bring_no_rewards_are_scored_alike(tmp_path):
    rows = [ranked(0, 3.0, 2.0, 1.0), ranked(1, 1.0, 0.0).model_copy(update={"rewards": None})]
    data = given.OfflineData(ranked=source(tmp_path, rows))
    found = given.rankings(bench(tmp_path), data, {"words": RewardTerm()}, [], scored=True)
    assert [one.rewards for one in found] == [(3.0, 2.0, 1.0), (2.0, 1.0)], "by the models, on one scale"
    assert found[0].responses == ("d e f", "b c", "a")


def test_a_preference_by_people_alone_is_no_tie():
    assert not given._tied(as_ranked(judged(0, helpful_id=1), "pairs"))
    assert given._tied(ranked(0, 1.0, 1.0))
