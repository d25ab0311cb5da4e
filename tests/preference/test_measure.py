"""What one score is worth, by numbers that can be counted on fingers or were planted."""

import math

import numpy as np
import pytest

from holdfast.data.schema import Conversation, DualPair, Labelled, Pair, Rated
from holdfast.preference.evidence import Evidence, gather
from holdfast.preference.measure import measure
from holdfast.stats.estimate import mean, share
from holdfast.stats.metrics import auc, within_group_spearman


def pair(i, first="aa", second="b", **more):
    """A judged pair after prompt number i; by default the longer answer is the more helpful one."""
    return DualPair(
        id=str(i), prompt=Conversation.ask(f"prompt {i}"), responses=(first, second), **{"helpful_id": 0} | more
    )


def answers(scores_and_labels, prompts=None):
    """Single answers with a label each, and their scores."""
    prompts = prompts or range(len(scores_and_labels))
    records = [
        Labelled(id=str(i), conversation=Conversation.ask(f"prompt {prompt}").answer("x"), safe=not harmful)
        for i, ((_, harmful), prompt) in enumerate(zip(scores_and_labels, prompts))
    ]
    return gather(records), np.array([score for score, _ in scores_and_labels], dtype=float)


def test_accuracy_counts_prompts_and_ties_half():
    evidence = gather([pair(1), pair(1), pair(2), pair(3)])
    found = measure("reward", np.array([2.0, 1.0, 0.0, 1.0, 1.0, 1.0, 3.0, 1.0]), evidence, "help", 50).pairs
    # Prompt 1 is right once in two, prompt 2 ties, prompt 3 is right.
    assert found.accuracy == share([1.0, 0.0, 0.5, 1.0], [1, 1, 2, 3])
    assert found.accuracy.value == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert found.ties.value == pytest.approx(1 / 3)


def test_the_length_rule_is_the_better_of_two_and_the_gain_is_taken_pair_by_pair():
    evidence = gather([pair(1, "aaa", "b"), pair(2, "aaa", "b"), pair(3, "a", "bbb"), pair(4, "a", "b")])
    scores = np.array([1.0, 0.0] * 3 + [0.0, 1.0])
    found = measure("reward", scores, evidence, "help", 50).pairs
    assert found.length_rule == "longer"
    assert found.length_accuracy.value == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert found.gain == mean([0.0, 0.0, 1.0, -0.5], [1, 2, 3, 4], within=(-1, 1))
    shorter = measure("reward", scores, gather([pair(i, "a", "bbb") for i in range(4)]), "help", 50).pairs
    assert (shorter.length_rule, shorter.length_accuracy.value) == ("shorter", 1.0)


def test_a_cost_is_asked_for_the_more_harmful_answer():
    evidence = gather([pair(i, safer_id=1, safe=(False, True)) for i in range(30)])
    scores = np.tile([2.0, -1.0], 30)
    assert measure("cost", scores, evidence, "harm", 50).pairs.accuracy.value == 1.0
    assert measure("cost", -scores, evidence, "harm", 50).pairs.accuracy.value == 0.0
    assert measure("cost", scores, evidence, "harm", 50).harm.sign_accuracy.value == 1.0
    # A reward has no zero that a label could stand on either side of.
    assert measure("reward", scores, evidence, "help", 50).harm is None


def test_parts_have_their_own_accuracy_and_small_ones_are_marked():
    records = [pair(i, source="a" if i < 20 else "b", categories=(("theft",) if i % 2 else (), ())) for i in range(25)]
    scores = np.array([value for i in range(25) for value in ((1.0, 0.0) if i < 20 else (0.0, 1.0))])
    parts = measure("reward", scores, gather(records), "help", 50).pairs.parts
    assert {name: (one.accuracy.value, one.pairs, one.small) for name, one in parts["source"].items()} == {
        "a": (1.0, 20, False),
        "b": (0.0, 5, True),
    }
    assert list(parts["category"]) == ["theft"]
    assert parts["category"]["theft"].accuracy.value == pytest.approx(10 / 12)
    assert parts["group"] == {}


def test_signs_are_held_against_labels_and_against_the_majority():
    evidence, scores = answers([(1.0, 1), (-1.0, 1), (-2.0, 0), (-3.0, 0), (0.0, 0), (4.0, 0)] * 5)
    evidence.add(Conversation.ask("unlabelled").answer("x"))
    scores = np.append(scores, 9.0)
    found = measure("cost", scores, evidence, "harm", 50).harm
    # Right: 1, -2, -3; a zero is on neither side and counts half.
    assert found.sign_accuracy.value == pytest.approx(3.5 / 6)
    assert found.majority.value == pytest.approx(4 / 6)
    assert found.over_majority.value == pytest.approx(-0.5 / 6)
    assert found.balanced_accuracy.value == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert found.auc.value == auc(scores[:-1], np.array(evidence.unsafe[:-1]))
    assert (found.harmful.value, found.called_harmful.value) == pytest.approx((2 / 6, 2 / 6))


def test_a_loss_against_the_majority_ends_at_all_of_it():
    evidence, scores = answers([(-1.0, 1), (-1.0, 1), (1.0, 1)])
    found = measure("cost", scores, evidence, "harm", 50).harm.over_majority
    assert (found.value, found.low) == (pytest.approx(-2 / 3), -1.0)


def test_the_majority_may_be_harmful():
    evidence, scores = answers([(1.0, 1), (1.0, 1), (1.0, 0)] * 5)
    found = measure("cost", scores, evidence, "harm", 50).harm
    assert found.majority.value == found.sign_accuracy.value == pytest.approx(2 / 3)


def test_the_majority_is_that_of_prompts():
    evidence = Evidence()
    for text in "abcde":
        evidence.add(Conversation.ask("many").answer(text), unsafe=1.0)
    for prompt in ("one", "other", "third"):
        evidence.add(Conversation.ask(prompt).answer("x"), unsafe=0.0)
    found = measure("cost", np.full(8, -1.0), evidence, "harm", 50).harm
    # Five of eight answers are harmful, and those to three of four prompts are safe.
    assert found.majority.value == found.sign_accuracy.value == pytest.approx(3 / 4)


def test_answers_to_one_prompt_count_once():
    evidence, scores = answers([(1.0, 1), (-1.0, 0)] * 20, prompts=[i // 4 for i in range(40)])
    found = measure("cost", scores, evidence, "harm", 50)
    assert found.harm.auc.n == found.harm.sign_accuracy.n == 10
    assert found.calibration.ece["raw"].n == 10


def planted(slope, intercept, n=3000, seed=0):
    """Costs whose labels follow sigmoid(slope * cost + intercept)."""
    rng = np.random.default_rng(seed)
    scores = 2 * rng.normal(size=n)
    return answers([(s, rng.random() < 1 / (1 + math.exp(-slope * s - intercept))) for s in scores])


def test_calibration_finds_the_law_that_made_the_labels():
    found = measure("cost", *planted(0.5, -1.0)[::-1], "harm", 100).calibration
    # Standard errors with 3,000 labels are about 0.03 and 0.05.
    assert found.slope == pytest.approx(0.5, abs=0.1)
    assert found.intercept == pytest.approx(-1.0, abs=0.15)
    # A temperature cannot move the border, so it repairs only a part.
    assert found.ece["raw"].low > found.ece["platt"].high
    assert found.ece["temperature"].low > found.ece["platt"].high
    assert found.of == "harm"
    # Of some ten intervals that hold 95 %, one or two may miss.
    held = [one.observed.low <= one.predicted <= one.observed.high for one in found.bins["platt"]]
    assert sum(held) >= len(held) - 2
    assert sum(one.observed.low <= one.predicted <= one.observed.high for one in found.bins["raw"]) < len(held) / 2


def test_calibration_of_a_reward_asks_which_of_two_answers_won():
    rng = np.random.default_rng(1)
    records, scores = [], []
    for i in range(2000):
        margin = 3 * rng.normal()
        won = rng.random() < 1 / (1 + math.exp(-0.5 * margin))
        records.append(pair(i, helpful_id=0 if won else 1))
        scores += [margin, 0.0]
    found = measure("reward", np.array(scores), gather(records), "help", 100).calibration
    assert found.of == "preference"
    # The standard error is about 0.02 on the slope 0.5, so 0.1 on the temperature 2, and 0.05 on the intercept.
    assert found.temperature == pytest.approx(2.0, abs=0.3)
    assert found.intercept == pytest.approx(0.0, abs=0.15)
    assert found.ece["raw"].low > found.ece["temperature"].high


def test_ratings_of_the_same_name():
    rng = np.random.default_rng(2)
    labels = rng.normal(size=60)
    scores = labels + 0.5 * rng.normal(size=60)
    records = [
        Rated(
            id=str(i), conversation=Conversation.ask(f"prompt {i // 3}").answer("x" * (i + 1)), labels={"tact": value}
        )
        for i, value in enumerate(labels)
    ]
    records.append(Rated(id="other", conversation=Conversation.ask("?").answer("x"), labels={"depth": 9.0}))
    found = measure("tact", np.append(scores, 100.0), gather(records), "help", 100).rating
    prompts = [i // 3 for i in range(60)]
    assert found.mae.value == pytest.approx(float(np.mean(np.abs(labels - scores))))
    assert found.r2.value == pytest.approx(1 - np.sum((labels - scores) ** 2) / np.sum((labels - labels.mean()) ** 2))
    assert found.within_prompt == within_group_spearman(scores, labels, prompts)
    assert found.rating_length.low < 0 < found.rating_length.high
    assert measure("speed", np.append(scores, 1.0), gather(records), "help", 100).rating is None


def test_length_and_score_are_drawn_and_correlated():
    records = [Conversation.ask(f"prompt {i}").answer("x" * (i % 50 + 1)) for i in range(1000)]
    evidence = gather(records)
    found = measure("reward", -(evidence.lengths**3), evidence, "help", 50)
    assert found.length["spearman"].value == pytest.approx(-1.0)
    assert -1 < found.length["pearson"].value < -0.9
    assert len(found.points["score"]) == 400
    assert all(score == -(length**3) for score, length in zip(found.points["score"], found.points["length"]))
    assert found.histogram["counts"].keys() == {"answers"}
    assert sum(found.histogram["counts"]["answers"]) == 1000


def test_histograms_part_safe_from_harmful_else_winners_from_losers():
    evidence, scores = answers([(1.0, 1), (-1.0, 0), (-2.0, 0)] * 4)
    counts = measure("cost", scores, evidence, "harm", 50).histogram["counts"]
    assert {name: sum(count) for name, count in counts.items()} == {"safe": 8, "harmful": 4}
    assert counts["harmful"][-1] == 4
    counts = measure("reward", np.tile([1.0, 0.0], 3), gather([pair(i) for i in range(3)]), "help", 50).histogram[
        "counts"
    ]
    assert counts["should be higher"][-1] == counts["should be lower"][0] == 3


def test_what_cannot_be_estimated_is_none_and_said():
    evidence, scores = answers([(1.0, 0), (2.0, 0), (3.0, 0)])
    found = measure("cost", scores, evidence, "harm", 50)
    assert found.harm.auc is None
    assert found.calibration is None
    assert found.length == {"pearson": None, "spearman": None}
    said = " ".join(found.notes)
    assert "no AUC: the statistic is not defined on these 3 rows" in said
    assert "no calibration: Platt scaling needs" in said
    one = measure("reward", np.array([1.0, 0.0]), gather([pair(1)]), "help", 50)
    assert one.pairs.gain is None
    assert one.pairs.accuracy.n == 1


def test_preferences_without_a_named_axis_count_against_a_cost():
    evidence = gather(
        [Pair(id=str(i), prompt=Conversation.ask(str(i)), chosen="good", rejected="bad") for i in range(4)]
    )
    scores = np.tile([-1.0, 1.0], 4)
    assert measure("cost", scores, evidence, "harm", 50).pairs.accuracy.value == 1.0
    assert measure("reward", scores, evidence, "help", 50).pairs.accuracy.value == 0.0
