"""The best policy by its own answers: which prompts judge, what is read, and that training does not change by it."""

import json
import math
import random
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from holdfast import config
from holdfast.data.schema import Conversation, DualPair, Ranked, Scored
from holdfast.data.sources import write_jsonl
from holdfast.data.split import leaks
from holdfast.engine.best import Judged
from holdfast.engine.supervised import FitResult
from holdfast.errors import RunError, UserError
from holdfast.models.load import ModelSettings, load_policy
from holdfast.preference.score import FunctionScorer
from holdfast.systems import a_lol, recipe
from holdfast.training.offline import OfflineTask

ROWS = 200
SMALL = [
    *("pocket=null", "attributes=null", "cost=null", "limits=[]", "sft.epochs=1"),
    "tokenizer={kind: word, vocab_size: 256}",
    "model={config: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, "
    "num_attention_heads: 2, num_key_value_heads: 2, max_position_embeddings: 128}}",
    "functions=[{call: 'tulips:f', names: [f], each: true}]",
    "rewards={f: {weight: 2.0}}",
    *("offline.method=wbc", "value={}", "rollout.sampling.max_new_tokens=4"),
    *("fit.epochs=1", "fit.batch_size=16", "fit.checkpoint_every=3"),
    "data.pools={sft: 0.5, pref: 0.2, rl: 0.15, dev: 0.1, safety: 0.05}",
]
BEST = "best={evaluations: 4, prompts: 6}"
BY_PAIRS = ("offline=null", "rewards={f: {weight: 2.0}}", "data.answers=null")


def words(asked, said):
    return len(said.split()) / 4


@pytest.fixture(autouse=True)
def scorer(monkeypatch):
    monkeypatch.setitem(sys.modules, "tulips", SimpleNamespace(f=words))


def asked(i):
    return Conversation.ask(f"how do i make {('bread', 'tulips', 'tables')[i % 3]} number {i} ?", id=f"p{i}")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Answers that bring the score `f`, pairs and rankings, all to the same prompts."""
    folder = tmp_path_factory.mktemp("data")
    said = [f"like {('bread', 'tulips', 'tables')[i % 3]} ." for i in range(ROWS)]
    rows = {
        "answers": [
            Scored(id=f"a{i}", conversation=asked(i).answer(said[i]), scores={"f": 0.1 + (i % 5) / 5})
            for i in range(ROWS)
        ],
        "pairs": [
            DualPair(id=f"d{i}", prompt=asked(i), responses=(said[i], "no ."), helpful_id=i % 2) for i in range(ROWS)
        ],
        "ranked": [
            Ranked(id=f"r{i}", prompt=asked(i), responses=(said[i], "no ."), rewards=(2.0, 1.0)) for i in range(ROWS)
        ],
    }
    for name, records in rows.items():
        write_jsonl(records, folder / f"{name}.jsonl")
    return folder


def settings(files, *overrides):
    return config.load(a_lol.ALol, recipe("a_lol/pocket"), [*SMALL, f"data.answers={files}/answers.jsonl", *overrides])


def rows(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    kept = [row for row in lines if row["stage"] == "policy"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in kept]


def weights(folder):
    """The saved policy's weights."""
    return load_file(folder / "models" / "policy" / "model.safetensors")


def snapshot(folder, step):
    return load_file(folder / "checkpoints" / "policy" / "best" / f"step-{step:09d}" / "model.safetensors")


@pytest.fixture
def scripted(monkeypatch):
    """Let the policy earn what stands in a script, judgement by judgement."""

    def follow(*values):
        left = iter(values)
        monkeypatch.setattr(a_lol, "reward_of", lambda scores, terms: torch.tensor([float(next(left))]))

    return follow


def test_the_policy_of_the_best_step_is_saved_examined_and_told_of(files, tmp_path, scripted):
    scripted(0.1, 0.7, 0.3, 0.7)
    summary = a_lol.run(settings(files, BEST), tmp_path)
    total = int(summary["offline"]["steps"])
    steps = [math.ceil(total * i / 4) for i in (1, 2, 3, 4)]
    best = summary["best"]
    assert (best["step"], best["value"]) == (steps[1], pytest.approx(0.7))
    assert [(one["step"], one["value"]) for one in best["of"]] == [
        (step, pytest.approx(value)) for step, value in zip(steps, (0.1, 0.7, 0.3, 0.7), strict=True)
    ]
    assert best["prompts"] == 6
    assert [row["step"] for row in rows(tmp_path) if "best/reward" in row] == steps
    saved, kept = weights(tmp_path), snapshot(tmp_path, steps[1])
    assert all(torch.equal(saved[name], kept[name]) for name in saved)
    last = load_file(tmp_path / "checkpoints" / "policy" / f"step-{total:09d}" / "model.safetensors")
    assert any(not torch.equal(last[name], kept[name]) for name in kept), "and not that of the last step"


def test_what_is_judged_is_the_mean_reward_of_own_answers_to_these_prompts(files, tmp_path, monkeypatch):
    known = {}
    original = a_lol.contest_of

    def watched(chosen, times, prompts, bench):
        known.update(prompts=prompts, bench=bench)
        return original(chosen, times, prompts, bench)

    monkeypatch.setattr(a_lol, "contest_of", watched)
    summary = a_lol.run(settings(files, "best={evaluations: 1, prompts: 6}"), tmp_path)
    bench = known["bench"]
    policy = load_policy(ModelSettings(name=str(tmp_path / "models" / "policy")), device="cpu")
    bench.policy.load_state_dict(policy.state_dict())
    starts = [bench.template.prompt(one) for one in known["prompts"]]
    samples = bench.generator.generate(starts, 1, bench.settings.rollout.sampling, bench.settings.seed)
    said = [bench.template.decode(one.response_ids) for one in samples]
    # Float32 sums.
    assert summary["best"]["value"] == pytest.approx(sum(2.0 * words("", one) for one in said) / 6, abs=1e-6)


def test_the_training_is_the_same_whoever_watches(files, tmp_path):
    alone = a_lol.run(settings(files), tmp_path / "alone")
    watched = a_lol.run(settings(files, BEST), tmp_path / "watched")
    assert [row for row in rows(tmp_path / "watched") if "best/reward" not in row] == rows(tmp_path / "alone")
    assert "best" not in alone
    step = int(alone["offline"]["steps"])
    ends = [
        load_file(tmp_path / name / "checkpoints" / "policy" / f"step-{step:09d}" / "model.safetensors")
        for name in ("alone", "watched")
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert watched["offline"] == alone["offline"]


class PowerCut(Exception):
    """What ends a run within a step."""


@pytest.mark.parametrize("cut", [2, 5, 8])
def test_a_killed_run_keeps_the_best_of_one_that_was_not(files, tmp_path, monkeypatch, cut):
    whole = a_lol.run(settings(files, BEST), tmp_path / "whole")
    original, steps = OfflineTask.loss, []

    def failing(self, batch):
        steps.append(batch)
        if len(steps) == cut:
            raise PowerCut
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(OfflineTask, "loss", failing)
        with pytest.raises(PowerCut):
            a_lol.run(settings(files, BEST), tmp_path / "parts")
    parts = a_lol.run(settings(files, BEST), tmp_path / "parts")
    assert parts["best"] == whole["best"]
    assert parts["learned"] == whole["learned"]
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "method", [(), ("dpo={}", "data.pairs=FOLDER/pairs.jsonl"), ("pro={}", "data.ranked=FOLDER/ranked.jsonl")]
)
def test_no_prompt_that_judges_is_learned_from_or_in_the_exam(files, tmp_path, monkeypatch, method):
    seen, judging = [], []
    divided, contest = a_lol.divided, a_lol.contest_of
    monkeypatch.setattr(a_lol, "divided", lambda ready, own, share: (seen.extend(own), divided(ready, own, share))[1])
    monkeypatch.setattr(a_lol, "contest_of", lambda *given: (judging.extend([given[2], given[3]]), contest(*given))[1])
    changed = (*(BY_PAIRS if method else ()), *(one.replace("FOLDER", str(files)) for one in method))
    # All sources hold the same prompts.
    summary = a_lol.run(settings(files, "best={evaluations: 2, prompts: 1000}", *changed), tmp_path)
    prompts, bench = judging
    assert len(prompts) == len(bench.pools.practise) == summary["best"]["prompts"] > 5
    assert len(seen) > 5
    assert leaks([*seen, *bench.pools.dev, *bench.pools.imitate, *bench.pools.safety], prompts) == []
    assert len(summary["best"]["of"]) == 2


def pools(practise, **others):
    return SimpleNamespace(**({"imitate": [], "pairs": [], "dev": []} | others), practise=practise)


def test_prompts_are_chosen_by_a_hash_and_fewer_are_the_first_of_more(capsys):
    prompts = [asked(i) for i in range(40)]
    few, more = (a_lol.judging_prompts(pools(prompts), count) for count in (5, 15))
    assert more[:5] == few
    assert {one.id for one in few} != {f"p{i}" for i in range(5)}
    turned = random.Random(1).sample(prompts, 40)
    assert a_lol.judging_prompts(pools(turned), 15) == more
    assert capsys.readouterr().err == ""
    assert len(a_lol.judging_prompts(pools(prompts), 99)) == 40
    assert "best: 40 prompts to practise on, which is all there are, and 99 were asked for" in capsys.readouterr().err


def test_prompts_of_another_fold_are_a_fault_of_ours_and_none_the_users():
    for fold in ("imitate", "dev"):
        with pytest.raises(AssertionError, match="folds share no prompt"):
            a_lol.judging_prompts(pools([asked(1)], **{fold: [asked(1)]}), 5)
    with pytest.raises(UserError, match=r"there are none; give data\.prompts"):
        a_lol.judging_prompts(pools([]), 5)


def test_an_adapter_alone_is_kept_and_put_back(files, tmp_path, scripted):
    scripted(0.0, 3.0, 2.0, 1.0)
    best = a_lol.run(settings(files, BEST, "sft=null", "model.adapter.rank=2"), tmp_path)["best"]
    kept = snapshot(tmp_path, best["step"])
    assert kept
    assert all("lora" in name for name in kept)
    saved = load_file(tmp_path / "models" / "policy" / "adapter_model.safetensors")
    assert len(saved) == len(kept)
    for name, value in saved.items():
        [match] = [key for key in kept if key.replace(".default", "") == name]
        assert torch.equal(value, kept[match])


def test_answers_without_a_score_are_never_the_best(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tulips", SimpleNamespace(f=lambda asked, said: None))
    with pytest.raises(RunError, match="policy: none of 4 judgements gave a finite reward"):
        a_lol.run(settings(files, BEST), tmp_path)
    told = a_lol.best_of(FitResult(4, {}, Judged(4, 0.5), (Judged(2, math.nan), Judged(4, 0.5))), 1)
    assert told["best"]["of"] == [{"step": 2, "value": None}, {"step": 4, "value": 0.5}]
    assert told["best"]["prompts"] == 1


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["rewards={reward: {}}"], "no model gives their reward; there are f. Add a section"),
        (["rewards={f: {}, g: {}}"], "no model gives their g; there are f"),
        (["functions=[]"], "no model gives their f; there are none"),
        (["best.evaluations=0"], "best.evaluations"),
        (["best.prompts=0"], "best.prompts"),
    ],
)
def test_what_cannot_be_judged_is_told_before_anything_runs(files, overrides, message):
    with pytest.raises(UserError, match=message):
        settings(files, BEST, *overrides)


def test_models_of_the_run_judge_as_well(files):
    assert settings(files, BEST, "reward={}", "rewards={reward: {}}").best is not None
    with pytest.raises(UserError, match="rewards: not read by dpo"):
        settings(files, *BY_PAIRS, "dpo={}")
    assert settings(files, *BY_PAIRS, "dpo={}", BEST).best is not None, "with best they are"


def test_scores_of_a_folder_are_looked_up_before_the_policy_learns(files):
    chosen = settings(files, BEST, "scorers=[folder]", "rewards={honesty: {}}")
    bench = SimpleNamespace(settings=chosen, scorer=FunctionScorer(("f",), None))
    with pytest.raises(UserError, match=r"no model gives the scores honesty; there are f.*or set best=null"):
        a_lol.improve(chosen, bench, None)
