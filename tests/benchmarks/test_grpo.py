"""What `benchmarks/grpo.py` and `gpu.py` compare is what they say, and results are kept, refused and judged rightly."""

import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

# Behind everything else: scripts have plain names.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import gpu
import grpo
import grpo_scaling
import grpo_sides
import grpo_turns
import turns
from grpo_world import EOS, PAD, SIZES, Case, build, given_answers, reference_of

from holdfast.data.schema import Conversation
from holdfast.data.template import Template
from holdfast.rollout.generate import TransformersGenerator
from holdfast.rollout.types import Sampling

TINY = Case("tiny", prompt=24, response=16, prompts=2, group=4, threads=1)


def rollouts(case):
    """Answers to four prompts, 50 to each."""
    world = build(case)
    template = Template(world.tokenizer, max_length=64)
    starts = [template.prompt(Conversation.ask(text)) for text in world.texts]
    sampler = TransformersGenerator(world.policy, (EOS,), PAD)
    return sampler.generate(starts, 50, Sampling(max_new_tokens=case.response), seed=0)


def test_prompts_have_exactly_the_tokens_asked_for():
    world = build(TINY)
    template = Template(world.tokenizer, max_length=64)
    starts = [template.prompt(Conversation.ask(text)) for text in world.texts]
    assert [start.length for start in starts] == [24] * 4
    chats = [[{"role": "user", "content": text}] for text in world.texts]
    tokens = world.tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert tokens["input_ids"] == [start.ids for start in starts]


def test_full_answers_have_all_their_tokens():
    assert {len(sample.response_ids) for sample in rollouts(TINY)} == {16}


def test_answers_that_end_have_half_of_them_on_average():
    samples = rollouts(replace(TINY, ends=True))
    assert {sample.finish for sample in samples} == {"stop", "length"}
    # The standard error of the mean of 200 such lengths is 0.4, and the end's logit is only about what it shall be.
    assert 6.5 < sum(len(sample.response_ids) for sample in samples) / len(samples) < 9.5


def test_no_sample_holds_padding():
    samples = [*rollouts(TINY), *rollouts(replace(TINY, ends=True))]
    assert not any(PAD in sample.response_ids for sample in samples)


def test_given_answers_are_of_several_lengths_and_half_of_them_end():
    answers = given_answers(TINY, build(TINY))
    rows = [row for group in answers.values() for row in group]
    assert (len(answers), len(rows)) == (2, 8)
    assert [row[-1] == EOS for row in rows] == [True, False] * 4
    assert len({len(row) for row in rows}) > 2
    assert max(map(len, rows)) <= 16


def test_reference_is_some_way_off_and_the_policy_stays():
    policy = build(TINY).policy
    before = policy.lm_head.weight.detach().clone()
    other = reference_of(policy)
    assert torch.equal(policy.lm_head.weight, before)
    assert 0.005 < float((other.lm_head.weight.detach() - before).std()) < 0.02
    assert torch.equal(other.model.embed_tokens.weight, policy.model.embed_tokens.weight)


@pytest.mark.parametrize("name, parameters", [("1M", 1e6), ("5M", 5e6), ("15M", 15e6), ("40M", 40e6)])
def test_sizes_are_what_they_are_called(name, parameters):
    size = SIZES[name]
    key_value = max(size.hidden // 64, 2) // 2 * (size.hidden // max(size.hidden // 64, 2))
    attention = 2 * size.hidden**2 + 2 * size.hidden * key_value
    layer = attention + 3 * size.hidden * 2 * size.hidden
    total = 2 * size.vocabulary * size.hidden + size.layers * layer
    assert 0.88 < total / parameters < 1.12


def cases(monkeypatch, script, *words):
    monkeypatch.setattr(sys, "argv", [script.__name__, *words])
    return script.cases(script.arguments())


def test_all_sizes_and_settings_are_compared_unless_some_are_chosen(monkeypatch):
    assert len(cases(monkeypatch, grpo)) == 8
    chosen = cases(monkeypatch, grpo, "--size", "40M", "--setting", "512:128", "--answers", "full", "ends")
    assert list(chosen) == ["40M 512:128 full", "40M 512:128 ends"]
    assert chosen["40M 512:128 ends"] == Case("40M", 512, 128, ends=True, prompts=2)


def test_short_cases_have_more_prompts_and_steps(monkeypatch):
    found = {name: (case.prompts, case.steps) for name, case in cases(monkeypatch, grpo).items()}
    assert found["5M 64:64 full"] == (8, 4)
    assert found["5M 512:128 full"] == (4, 1)
    assert found["40M 64:64 full"] == (4, 4)


@pytest.mark.parametrize("setting, ratio, enough", [((512, 128), 2.9, False), ((512, 128), 3.1, True)])
def test_long_prompts_are_held_to_more(setting, ratio, enough):
    found = grpo.judged(Case("5M", *setting), {"step_ratio": ratio, "peak_ratio": 1.1})
    assert found == {"target": 3.0, "fast_enough": enough, "small_enough": False}
    assert grpo.judged(Case("5M", 64, 64), {"step_ratio": 1.3, "peak_ratio": 1.0})["fast_enough"]


def test_gpu_cases_differ_by_precision(monkeypatch):
    found = cases(monkeypatch, gpu, "--size", "500M", "--setting", "512:128")
    assert {name.split()[-1]: case.dtype for name, case in found.items() if "vllm" not in name} == {
        "bfloat16": "bfloat16",
        "float32": "float32",
    }
    assert {case.device for case in found.values()} == {"cuda"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said_in_a_sentence(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match="no CUDA device is to be seen here"):
        gpu.main()


def test_flops_of_a_step_by_hand():
    case = Case("tiny", prompt=6, response=4, prompts=1, group=2)
    # 64 wide, 2 layers, 256 words: tables of 16,384 weights, and 1,000 in the body.
    body, head = 10 * (2 * 1000 + 2 * 2 * 64 * 10), 4 * 2 * 16384
    assert gpu.step_flops(case, 1000 + 2 * 16384, length=4) == 2 * (6 * body + 5 * head)


def test_utilisation_is_a_share_of_the_peak():
    summary = {"parameters": 40000, "mean_length": {"trl": 8.0}, "seconds": {"trl": {"step": 2.0}}}
    flops = gpu.step_flops(TINY, 40000, 8.0)
    assert gpu.utilisation(TINY, summary, peak=1.0) == {"trl": flops / 2e12}


def run(step, generate, peak, length=10.0):
    """What a side prints, for one step that is not timed and two that are."""
    one = {"generate": generate, "reference": 0.5, "score": 0.25}
    return {
        "rows": [{"length": 99.0}, {"length": length}, {"length": length}],
        "seconds": [one | {"step": step - 0.5}, one | {"step": step + 0.5}],
        "peak_mb": peak,
        "parameters": 7,
    }


def test_summary_is_of_medians_over_turns():
    runs = {"trl": [run(8, 2, 200), run(9, 2, 200), run(60, 2, 200)], "holdfast": [run(4, 1, 150)] * 3}
    found = grpo_turns.summary(TINY, runs)
    assert found["step_ratio"] == 2.25
    assert found["step_ratio_range"] == [2.0, 15.0]
    assert found["peak_ratio"] == 0.75
    assert found["seconds"]["trl"] == {"step": 9, "generate": 2, "reference": 0.5, "score": 0.25, "learn": 6.25}
    assert found["phase_ratio"]["generate"] == 2
    assert found["tokens_per_second"]["holdfast"] == 8 * (24 + 10) / 4


def test_passes_of_trl_to_try():
    assert grpo_turns.choices(Case("tiny", 1, 1, prompts=8, group=8)) == [8, 16, 64]
    assert grpo_turns.choices(Case("tiny", 1, 1, prompts=2, group=8)) == [8, 16]


def spawned(monkeypatch, numbers):
    """Replace processes by what they would print; returns the list of those that were asked for."""
    asked = []

    def spawn(side, case, moved=None):
        asked.append((side, case.seed, case.rows, moved is not None))
        if moved is not None:
            torch.save(torch.tensor(numbers[side]["moved"]), moved)
            return {"rows": [numbers[side]]}
        # TRL is fastest with 8 answers in a pass.
        return run(4 if side == "holdfast" else 8 + abs(case.rows - 8), 1, 100)

    monkeypatch.setattr(grpo_turns, "spawn", spawn)
    return asked


def numbers(**changed):
    one = {"loss": 0.5, "reward": 1.0, "kl": 0.01, "grad_norm": 2.0, "moved": [1.0, 0.0]}
    return {"trl": one, "holdfast": one | changed}


def test_turns_alternate_and_are_not_repeated(monkeypatch, tmp_path):
    asked = spawned(monkeypatch, numbers())
    case, file = replace(TINY, prompts=8), tmp_path / "out.json"
    grpo_turns.contest(turns.Book(file, "grpo"), "one", case, repeats=2, rows=-1)
    assert asked[:2] == [("holdfast", 0, 0, True), ("trl", 0, 0, True)]
    assert asked[2:5] == [("trl", 0, 4, False), ("trl", 0, 8, False), ("trl", 0, 32, False)]
    assert [(side, seed) for side, seed, *_ in asked[5:]] == [("holdfast", 0), ("trl", 0), ("trl", 1), ("holdfast", 1)]
    assert {one[2:] for one in asked[5:]} == {(8, False)}
    asked.clear()
    entry = grpo_turns.contest(turns.Book(file, "grpo"), "one", case, repeats=3, rows=-1)
    assert asked == [("holdfast", 2, 8, False), ("trl", 2, 8, False)]
    assert entry["summary"]["step_ratio"] == 2.0
    assert json.loads(file.read_text())["results"]["one"]["trl_rows"]["used"] == 8


@pytest.mark.parametrize(
    "changed",
    [
        {"loss": 0.5001},
        {"loss": math.nan},
        {"reward": 1.01},
        {"kl": 0.0101},
        {"grad_norm": 2.01},
        {"moved": [1.0, 0.01]},
    ],
)
def test_sides_that_learn_different_things_are_not_timed(monkeypatch, tmp_path, changed):
    asked = spawned(monkeypatch, numbers(**changed))
    with pytest.raises(SystemExit, match=rf"learn different things \({next(iter(changed))}\)"):
        grpo_turns.contest(turns.Book(tmp_path / "out.json", "grpo"), "one", TINY, repeats=2, rows=0)
    assert len(asked) == 2


def test_a_pass_of_trl_that_is_given_is_not_looked_for(monkeypatch, tmp_path):
    asked = spawned(monkeypatch, numbers())
    grpo_turns.contest(turns.Book(None, "grpo"), "one", TINY, repeats=1, rows=4)
    assert asked[2:] == [("holdfast", 0, 4, False), ("trl", 0, 4, False)]


def test_results_of_another_case_or_machine_are_not_mixed(monkeypatch, tmp_path):
    spawned(monkeypatch, numbers())
    file = tmp_path / "out.json"
    grpo_turns.contest(turns.Book(file, "grpo"), "one", TINY, repeats=1, rows=0)
    with pytest.raises(SystemExit, match="give another file to --out"):
        grpo_turns.contest(turns.Book(file, "grpo"), "one", replace(TINY, steps=3), repeats=1, rows=0)
    with pytest.raises(SystemExit, match="give another file to --out"):
        turns.Book(file, "gpu", "NVIDIA H100")


def test_growth_of_a_power_law_is_its_exponent(monkeypatch, tmp_path):
    asked = []

    def spawn(side, case):
        asked.append(case)
        one = {"generate": case.prompt, "reference": 1.0, "score": 1.0, "step": 4.0 * case.prompt**2}
        return {"seconds": [one], "parameters": 10, "peak_mb": 1.0}

    monkeypatch.setattr(grpo_scaling, "spawn", spawn)
    monkeypatch.setattr(grpo_scaling, "AXES", {"prompt": (64, 128, 256)})
    book = turns.Book(tmp_path / "out.json", "grpo_scaling")
    grpo_scaling.scaling(book, threads=1)
    found = book.entries["prompt"]["exponent"]
    assert (found["step"], found["generate"]) == (pytest.approx(2), pytest.approx(1))
    assert [case.prompt for case in asked] == [64, 128, 256]
    grpo_scaling.scaling(turns.Book(tmp_path / "out.json", "grpo_scaling"), threads=1)
    assert len(asked) == 3, "points that are known are not measured again"


def test_our_side_measures_what_the_comparison_needs(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    found = grpo_sides.measure("holdfast", replace(TINY, steps=2), moved=None)
    assert len(found["rows"]) == 3
    assert len(found["seconds"]) == 2
    assert {row["length"] for row in found["rows"]} == {16.0}
    assert all(row["kl"] > 0 for row in found["rows"])
    for step in found["seconds"]:
        assert 0 < step["generate"] + step["reference"] + step["score"] < step["step"]


def test_our_loss_is_that_of_the_policy_with_its_weighted_kl():
    row = {"policy/policy": 0.5, "policy/kl": 0.1, "policy/grad_norm": 2.0, "reward": 1.0, "length": 3.0}
    assert grpo_sides._plain(row)["loss"] == pytest.approx(0.504, abs=1e-12)


@pytest.mark.slow
def test_both_sides_learn_the_same_from_the_same_answers():
    pytest.importorskip("trl", reason="TRL is not installed")
    found = turns.differences(grpo_turns.match(), TINY)
    assert set(found) == set(grpo_turns.LIMITS)
    assert found["moved"] < 1e-4


def test_a_case_travels_as_json():
    assert Case(**json.loads(json.dumps(asdict(TINY)))) == TINY
