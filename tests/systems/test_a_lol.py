"""A-LoL and its relatives end to end on a very small pocket world: gather, limit, value, annotate, learn, resume."""

import json
import random
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from holdfast import config
from holdfast.data.recast import as_ranked
from holdfast.data.schema import Conversation, Pair, Ranked, Scored
from holdfast.data.sources import write_jsonl
from holdfast.engine.log import RunFolder
from holdfast.errors import UserError
from holdfast.models.save import load_checked
from holdfast.preference.score import FunctionScorer
from holdfast.report.page import changes
from holdfast.systems import a_lol, given, recipe
from holdfast.training.annotate import Annotations
from holdfast.training.selection import RewardTerm

SMALL = [
    *("pocket.conversations=400", "pocket.pairs=400", "pocket.prompts=1200", "pocket.hidden=32", "sft.epochs=1"),
    *("pocket.ratings.prompts=60", "attributes.fit.epochs=1", "fit.epochs=1", "fit.batch_size=32"),
    *("rollout.sampling.max_new_tokens=8", "value.head.fit.epochs=2", "fit.checkpoint_every=0"),
    "limits=[{score: politeness, most: 0.8}]",
]


def settings(*overrides):
    return config.load(a_lol.ALol, recipe("a_lol/pocket"), [*SMALL, *overrides])


def rows(folder, stage="policy"):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in lines if row["stage"] == stage]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "a_lol"
    return folder, a_lol.run(settings(), folder)


def test_only_better_answers_within_the_limit_are_learned(finished):
    folder, summary = finished
    [limit] = summary["offline_limits"]
    told = summary["annotations"]
    assert limit["answers"] - limit["beyond"] == told["answers"]
    assert limit["beyond"] > 0
    watched = told["answers"] - summary["offline"]["rows"]
    assert 0 < watched < 0.2 * told["answers"]
    assert summary["offline"]["kept"] < summary["offline"]["rows"]
    steps = summary["offline"]["steps"]
    assert [row["step"] for row in rows(folder)][-1] == steps
    whole = -(-int(summary["offline"]["rows"]) // 32)
    assert steps == max(1, int(whole * summary["offline"]["kept"] / summary["offline"]["rows"]))


def test_annotations_are_files_that_add_up(finished):
    folder, _ = finished
    card = json.loads((folder / "annotations" / "annotations.json").read_text())
    found = Annotations.load(folder / "annotations", card["facts"])
    assert torch.allclose(found.advantage, found.rewards - found.value, atol=1e-6)
    terms = settings().rewards
    summed = sum(terms[name].weight * values for name, values in found.components.items())
    assert torch.allclose(found.rewards, summed.float(), atol=1e-5)
    assert (folder / "annotations" / "value_head").is_dir()


def test_the_summary_tells_before_from_after(finished):
    folder, summary = finished
    for name in ("learned_helpfulness", "learned_cost", "true_harm", "true_help", "kl", "length"):
        assert {"value", "low", "high"} <= summary[f"{name}_before"].keys()
    assert summary["kl_before"]["value"] == pytest.approx(0, abs=1e-4)
    assert summary["kl_after"]["value"] > 0
    assert 0 < summary["distinct_2_after"] <= 1
    assert {"slope", "bias", "error", "spread"} <= summary["value"].keys()
    load_checked(folder / "models" / "policy")
    assert {"offline", "nll", "clip_low", "clip_high", "log_ratio"} <= rows(folder)[0].keys()


def test_the_ratio_begins_at_one(finished):
    first = rows(finished[0])[0]
    assert first["log_ratio"] == pytest.approx(0, abs=1e-4)
    assert first["clip_low"] == first["clip_high"] == 0


def test_a_finished_run_is_only_loaded(finished, monkeypatch):
    folder, summary = finished
    monkeypatch.setattr("holdfast.systems.valued.annotate", None)
    again = a_lol.run(settings(), folder)
    assert again["learned_helpfulness_after"] == summary["learned_helpfulness_after"]


def test_stale_annotations_are_refused(finished, tmp_path):
    folder, _ = finished
    copied = shutil.copytree(folder, tmp_path / "run")
    card = copied / "annotations" / "annotations.json"
    told = json.loads(card.read_text())
    told["facts"]["reference"] = "0" * 64
    card.write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"stale annotations.*the weights of the reference"):
        a_lol.run(settings(), copied)


@pytest.mark.parametrize("method", ["dpo", "pro"])
def test_pairs_are_learned_from(method, tmp_path):
    changed = ["limits=[]", "rewards={reward: {}}"] if method == "dpo" else ["limits=[{score: politeness, most: 0.8}]"]
    summary = a_lol.run(
        settings("offline=null", f"{method}={{}}", "value={}", "fit.epochs=2", *changed), tmp_path / "run"
    )
    assert summary["method_of"] == method
    assert 0 <= summary["learned"]["accuracy"] <= 1
    # Estimated from one sample each, the small KL after a few steps may come out below zero.
    assert abs(summary["kl_after"]["value"]) > 1e-3
    assert ("offline_limits" in summary) == (method == "pro")
    if method == "pro":
        [limit] = summary["offline_limits"]
        assert summary["rankings"] == limit["answers"] - limit["beyond"]


def test_methods_without_a_reference_are_not_annotated(tmp_path):
    file = tmp_path / "answers.jsonl"
    write_jsonl(scored(200), file)
    summary = a_lol.run(real(file, "offline.method=wbc", "value={}"), tmp_path / "run")
    assert summary["offline"]["kept_share"] == 1
    assert not (tmp_path / "run" / "annotations").exists()


def scored(count, name="reward"):
    words = ("bread", "tulips", "tables", "rivers", "songs")
    return [
        Scored(
            id=f"row-{i}",
            conversation=Conversation.ask(f"how do i make {words[i % 5]} number {i} ?").answer(
                f"like {words[i % 3]} ."
            ),
            scores={name: (i % 7) / 7, "cost": (i % 4) - 1.5},
        )
        for i in range(count)
    ]


REAL = [
    *("pocket=null", "attributes=null", "cost=null", "sft.epochs=1", "tokenizer={kind: word, vocab_size: 256}"),
    "model={config: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, "
    "num_attention_heads: 2, num_key_value_heads: 2, max_position_embeddings: 128}}",
    "rewards={reward: {}}",
    "limits=[{score: cost}]",
    "value={learn_from: data, head: {heads: 2, fit: {epochs: 1}}}",
    *("rollout.sampling.max_new_tokens=4", "fit.epochs=1"),
    "data.pools={sft: 0.8, pref: 0.04, rl: 0.06, dev: 0.06, safety: 0.04}",
]


def real(file, *overrides):
    return config.load(a_lol.ALol, recipe("a_lol/pocket"), [*REAL, f"data.answers={file}", *overrides])


def test_answers_may_bring_their_rewards(tmp_path):
    file = tmp_path / "answers.jsonl"
    write_jsonl(scored(200), file)
    summary = a_lol.run(real(file), tmp_path / "run")
    lines = (tmp_path / "run" / "annotations" / "annotations.jsonl").read_text().splitlines()
    given = {one.id: one.scores for one in scored(200)}
    for row in map(json.loads, lines):
        assert row["reward"] == pytest.approx(given[row["id"]]["reward"], abs=1e-6)
        assert given[row["id"]]["cost"] <= 0, "the limit is kept by the scores in the file"
    assert summary["annotations"]["answers"] == len(lines)
    assert summary["pools"]["imitate"] > len(lines)


def test_without_a_scorer_for_samples_the_way_out_is_named(tmp_path):
    file = tmp_path / "answers.jsonl"
    write_jsonl(scored(200), file)
    with pytest.raises(UserError, match=r"no model gives the scores reward.*value.learn_from=data"):
        a_lol.run(
            real(file, "value={learn_from: samples}", "functions=[{call: 'operator:countOf', names: [n], each: true}]"),
            tmp_path / "run",
        )


def test_missing_rewards_are_named(tmp_path):
    file = tmp_path / "answers.jsonl"
    write_jsonl([*scored(150), *(one.model_copy(update={"id": f"x{one.id}"}) for one in scored(150, "other"))], file)
    with pytest.raises(UserError, match=r"answers carry no reward .*there are cost, other, reward"):
        a_lol.run(real(file), tmp_path / "run")


def test_scores_that_nobody_gives_are_named(tmp_path):
    with pytest.raises(UserError, match="no model gives the scores honesty; there are cost, helpfulness"):
        a_lol.run(settings("rewards={honesty: {}}"), tmp_path / "run")


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["offline=null"], "give one of offline, dpo, pro; given: none"),
        (["dpo={}"], "given: offline, dpo"),
        (["constraint.threshold=0.1"], "constraint: for policies that sample"),
        (
            ["offline=null", "dpo={}", "limits=[{how: weight}]", "value={}", "rewards={reward: {}}"],
            "limits weigh single answers",
        ),
        (["offline.method=nll"], "knows no reward to draw by"),
        (["offline.clip=0"], "offline.clip"),
        (["offline.method=r_gold"], "value: not read by r_gold"),
        (["offline=null", "dpo={}"], "value, rewards: not read by dpo"),
        (["data.ranked=x"], r"data\.ranked: not read by a_lol"),
        (["offline=null", "pro={}", "value={}", "data.answers=x"], r"data\.answers: not read by pro"),
    ],
)
def test_contradictions_are_told_before_anything_runs(overrides, words):
    with pytest.raises(UserError, match=words):
        settings(*overrides)


def test_naming_dpo_leaves_out_the_default_method():
    assert a_lol.ALol(dpo={}).offline is None
    assert a_lol.ALol().offline is not None


def test_a_ranking_by_people_is_ordered_by_reward_for_pro(tmp_path):
    pair = Pair(id="1", prompt=Conversation.ask("Tulips ?"), chosen="no .", rejected="dig a hole .")
    ranked = as_ranked(pair, "pairs")
    [found] = given._by_score(bench(tmp_path, words), [ranked], {"words": RewardTerm()})
    assert ranked.responses == ("no .", "dig a hole ."), "DPO keeps the order of the people"
    assert found.responses == ("dig a hole .", "no .")
    assert found.rewards == (4.0, 2.0)


def words(rows):
    return [[float(len(one.response.split()))] for one in rows]


def bench(folder, function):
    """As much of a bench as scoring reads."""
    scorer, run = FunctionScorer(("words",), function), RunFolder(folder, a_lol.ALol())
    own = {"reward": None, "cost": None, "attributes": None, "others": ()}
    return SimpleNamespace(scorer=scorer, run=run, settings=a_lol.ALol(), **own)


def test_answers_are_scored_once(tmp_path):
    answered = [Conversation.ask("Tulips ?").answer(text) for text in ("no .", "dig a hole .")]
    first = given.scores_of(bench(tmp_path, words), answered, ["words"], "scores")
    again = given.scores_of(bench(tmp_path, None), answered, ["words"], "scores")
    assert first["words"].tolist() == again["words"].tolist() == [2.0, 4.0]
    with pytest.raises(UserError, match=r"stale .*scores\.json: what it was made from changed"):
        given.scores_of(bench(tmp_path, words), answered[:1], ["words"], "scores")


def test_answers_without_a_score_are_named_before_anything_is_fitted(tmp_path):
    pair = as_ranked(Pair(id="r7", prompt=Conversation.ask("Tulips ?"), chosen="no .", rejected="dig ."), "pairs")
    partly = bench(tmp_path, lambda rows: [[None if one.response == "dig ." else 1.0] for one in rows])
    with pytest.raises(UserError, match=r"1 of 2 answers have no finite reward \(r7\): not all of words are known"):
        given._by_score(partly, [pair], {"words": RewardTerm()})


def test_missing_scores_of_answers_to_learn_from_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "half", SimpleNamespace(f=lambda asked, said: None if len(said) % 2 else 1.0))
    file = tmp_path / "answers.jsonl"
    write_jsonl([one.conversation.model_copy(update={"id": one.id}) for one in scored(200)], file)
    changed = ("rewards={f: {}}", "limits=[]", "functions=[{call: 'half:f', names: [f], each: true}]")
    with pytest.raises(UserError, match=r"answers have no finite reward \(row-.*not all of f are known"):
        a_lol.run(real(file, *changed, "data.answers=null", f"data.sft={file}", f"data.prompts={file}"), tmp_path / "r")


def test_a_resumed_run_keeps_what_varying_scorers_said(tmp_path, monkeypatch):
    noise = random.Random(0)
    noisy = SimpleNamespace(f=lambda asked, said: (len(said) % 5) / 5 + noise.uniform(-0.1, 0.1))
    monkeypatch.setitem(sys.modules, "noisy", noisy)
    file = tmp_path / "answers.jsonl"
    write_jsonl([one.conversation.model_copy(update={"id": one.id}) for one in scored(200)], file)
    functions = "functions=[{call: 'noisy:f', names: [f], each: true}]"
    given_data = ("data.answers=null", f"data.sft={file}", f"data.prompts={file}")
    changed = ("rewards={f: {}}", "limits=[]", "value={head: {heads: 2, fit: {epochs: 1}}}", functions, *given_data)
    first = a_lol.run(real(file, *changed), tmp_path / "run")
    again = a_lol.run(real(file, *changed), tmp_path / "run")
    assert again["annotations"] == first["annotations"]
    assert again["value"] == first["value"]


def test_an_adapter_is_trained_over_its_reference(finished, tmp_path):
    base = finished[0] / "models" / "sft"
    adapted = settings("sft=null", f"model.name={base}", "model.adapter.rank=2")
    summary = a_lol.run(adapted, tmp_path / "run")
    assert (tmp_path / "run" / "models" / "policy" / "adapter_model.safetensors").is_file()
    assert rows(tmp_path / "run")[0]["log_ratio"] == pytest.approx(0, abs=1e-4)
    assert abs(summary["learned"]["log_ratio"]) > 1e-3
    assert a_lol.run(adapted, tmp_path / "run")["annotations"] == summary["annotations"]


def test_answers_need_not_be_what_is_imitated(tmp_path):
    answers, sft, prompts = (tmp_path / f"{name}.jsonl" for name in ("answers", "sft", "prompts"))
    write_jsonl(scored(300), answers)
    write_jsonl([one.conversation for one in scored(100)], sft)
    write_jsonl([one.conversation.prompt for one in scored(150)], prompts)
    apart = (f"data.sft={sft}", f"data.prompts={prompts}", "limits=[]")
    summary = a_lol.run(real(answers, *apart), tmp_path / "run")
    left_out = summary["answers_left_out"]["in_other_folds"]
    pools = summary["pools"]
    assert left_out == pools["practise"] + pools["dev"] + pools["safety"] > 0
    assert summary["annotations"]["answers"] == 300 - left_out
    assert summary["annotations"]["answers"] > pools["imitate"]


def test_a_limit_may_be_on_a_score_that_the_run_gives(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "length", SimpleNamespace(f=lambda asked, said: float(said == "like bread .")))
    file = tmp_path / "answers.jsonl"
    write_jsonl(scored(200), file)
    changed = ("limits=[{score: f, most: 0.5}]", "functions=[{call: 'length:f', names: [f], each: true}]")
    [limit] = a_lol.run(real(file, *changed), tmp_path / "run")["offline_limits"]
    assert 0 < limit["beyond"] < limit["answers"]
    assert limit["without_score"] == 0


def rankings(count):
    return [
        Ranked(
            id=f"r{i}", prompt=one.conversation.prompt, responses=("dig .", "no .", "why ?"), rewards=(3.0, 2.0, 1.0)
        )
        for i, one in enumerate(scored(count))
    ]


@pytest.mark.parametrize("method", ["dpo", "pro"])
def test_rankings_alone_are_enough(method, tmp_path):
    file = tmp_path / "ranked.jsonl"
    write_jsonl(rankings(200), file)
    alone = ("offline=null", f"{method}={{}}", "value={}", "limits=[]", "data.answers=null", f"data.ranked={file}")
    summary = a_lol.run(real(file, *alone), tmp_path / "run")
    assert summary["rankings"] == 200 - summary["ranked_left_out"]["in_other_folds"]
    if method == "pro":
        with pytest.raises(UserError, match=r"data\.ranked brings its rewards"):
            a_lol.run(real(file, *alone, "rewards={reward: {link: sigmoid}}"), tmp_path / "other")


def test_pairs_are_cut_from_rankings():
    one = rankings(1)[0]
    assert given._best_and_worst(one).responses == ("dig .", "why ?")
    assert given._best_and_worst(one.model_copy(update={"preferred": 1})).responses == ("no .", "why ?")
    assert given._best_and_worst(one.model_copy(update={"preferred": 2})).responses == ("why ?", "no .")


def test_equal_rewards_prefer_nothing_unless_a_person_did():
    tied = rankings(1)[0].model_copy(update={"rewards": (1.0, 1.0, 1.0)})
    chosen = tied.model_copy(update={"preferred": 2})
    assert given._decided([tied, chosen], scored=False) == [chosen]
    assert given._decided([tied, chosen], scored=True) == []


def test_no_prompt_is_both_learned_from_and_watched():
    prompts = [Conversation.ask(f"how many are {i % 40} ?") for i in range(120)]
    learned, watching = a_lol.divided(list(range(120)), prompts, 0.1)
    assert len(watching) == 12, "three answers to each of four prompts"
    assert {i % 40 for i in learned}.isdisjoint(i % 40 for i in watching)
    turned = a_lol.divided(list(range(119, -1, -1)), prompts[::-1], 0.1)[1]
    assert sorted(turned) == watching, "whatever their order"
    with pytest.raises(UserError, match="all answers are to one prompt"):
        a_lol.divided([1, 2], prompts[:1] * 2, 0.1)


def test_short_answers_have_no_triples_to_count():
    told = a_lol.diversity(SimpleNamespace(conversations=[Conversation.ask("Tulips ?").answer("dig now")]))
    assert told == {"distinct_1": 1.0, "distinct_2": 1.0}
    page = {f"{name}_{when}": value for when in ("before", "after") for name, value in told.items()}
    found = changes(SimpleNamespace(summary={**page, "distinct_3_before": 0.5}))
    assert [one.name for one in found] == ["Different words", "Different pairs of words"]
