"""Multi-objective GRPO end to end on a very small pocket world: scores, limits, benign prompts, presets, resume."""

import json
from pathlib import Path

import pytest

from holdfast import config
from holdfast.data.schema import Conversation
from holdfast.errors import UserError
from holdfast.models.save import load_checked
from holdfast.report.page import render
from holdfast.systems import mo_grpo, recipe
from holdfast.systems.grpo_presets import GRPO_PRESETS

WORDS = (Path(__file__).parent / "small.txt").read_text().split()
SMALL = [
    *(line for line in WORDS if not line.startswith(("constraint", "reward", "ppo", "critic", "rollout", "online.p"))),
    *("pocket.ratings.prompts=60", "attributes.fit.epochs=1", "online.prompts_per_iteration=4"),
    *(
        "rollout.samples_per_prompt=3",
        "rollout.sampling.max_new_tokens=8",
        "look_ahead=null",
        "online.checkpoint_every=1",
    ),
]


def settings(*overrides, name="pocket"):
    return config.load(mo_grpo.MoGrpo, recipe(f"mo_grpo/{name}"), [*SMALL, *overrides])


def rows(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in lines if row["stage"] == "policy"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "grpo"
    return folder, mo_grpo.run(settings(), folder)


def test_every_objective_is_logged_raw_and_as_it_was_paid(finished):
    folder, _ = finished
    row = rows(folder)[-1]
    names = ("helpfulness", "politeness", "brevity")
    weights = dict(zip(names, (0.6, 0.2, 0.2)))
    assert {
        f"{kind}/{name}" for kind in ("objective", "effective_weight", "dead", "unscored") for name in names
    } <= row.keys()
    summed = sum(weights[name] * row[f"objective/{name}"] for name in names)
    assert row["objective"] == pytest.approx(summed, abs=1e-5)
    assert row["objective"] == pytest.approx(sum(weights[name] * row[name] for name in names), abs=1e-5)
    assert row["objective_paid"] < row["objective"], "less the KL and the penalty for length"
    assert {"multiplier/harm", "cost/harm", "over_refusal", "true_harm", "alarm/level"} <= row.keys()
    assert "reward" not in row, "no score of zeros stands in for a reward that nobody asked for"


def test_the_summary_compares_what_was_learned_with_what_is_true(finished):
    folder, summary = finished
    scores = ("learned_helpfulness", "learned_politeness", "learned_brevity", "learned_cost")
    true = ("true_harm", "true_help", "true_politeness", "true_brevity", "over_refusal")
    for name in (*scores, *true, "kl", "length"):
        assert {"value", "low", "high", "n"} <= summary[f"{name}_before"].keys()
        assert f"{name}_after" in summary
    assert summary["kl_before"]["value"] == pytest.approx(0, abs=1e-4)
    load_checked(folder / "models" / "policy")
    page = render(folder).read_text(encoding="utf-8")
    assert "What the objectives really weighed" in page
    assert "mo_grpo" in page


def test_half_of_the_prompts_of_every_iteration_are_benign(tmp_path, monkeypatch):
    seen = []
    real = mo_grpo.Grpo.collect

    def watched(self, prompts, iteration):
        seen.append([one.source for one in prompts])
        return real(self, prompts, iteration)

    monkeypatch.setattr(mo_grpo.Grpo, "collect", watched)
    mo_grpo.run(settings(), tmp_path / "run")
    assert seen
    assert all(sources.count("benign") == 2 and len(sources) == 4 for sources in seen)


def test_a_run_that_was_cut_is_the_run_that_was_not(finished, tmp_path, monkeypatch):
    whole, _ = finished

    class PowerCut(Exception):
        pass

    real = mo_grpo.Grpo.collect

    def cut(self, prompts, iteration):
        if iteration == 2:
            raise PowerCut
        return real(self, prompts, iteration)

    monkeypatch.setattr(mo_grpo.Grpo, "collect", cut)
    with pytest.raises(PowerCut):
        mo_grpo.run(settings(), tmp_path / "run")
    monkeypatch.setattr(mo_grpo.Grpo, "collect", real)
    mo_grpo.run(settings(), tmp_path / "run")

    def kept(row):
        return {name: value for name, value in row.items() if not name.startswith("seconds")}

    assert list(map(kept, rows(tmp_path / "run"))) == list(map(kept, rows(whole)))


@pytest.mark.parametrize("name", GRPO_PRESETS)
def test_every_preset_is_settings_that_this_system_takes(name):
    given = settings(f"preset={name}", "grpo.kl.coef=0.07")
    assert given.grpo.kl.coef == 0.07, "what is given goes over every preset"
    table = GRPO_PRESETS[name]["grpo"]
    assert given.grpo.scalarise.mode == table["scalarise"]["mode"]
    assert given.grpo.loss.mean == table["loss"]["mean"]
    assert given.grpo.loss.kind == table["loss"]["kind"]


def test_functions_and_other_scores_can_be_objectives(tmp_path):
    (tmp_path / "words.py").write_text("def length(prompt, response):\n    return float(len(response.split()))\n")
    call = "{" + f"call: {tmp_path / 'words.py'}:length, names: [words], each: true" + "}"
    objectives = "grpo.objectives={words: {direction: lower}}"
    given = settings(f"functions=[{call}]", "attributes=null", "preset=dr_grpo", objectives, name="pocket_weights")
    summary = mo_grpo.run(given, tmp_path / "run")
    assert "learned_words_after" in summary
    assert rows(tmp_path / "run")[0]["objective"] == pytest.approx(-rows(tmp_path / "run")[0]["words"], abs=1e-4)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(UserError, match="nothing scores answers; give at least one of attributes, reward, scorers"):
        settings("attributes=null", "cost=null")
    with pytest.raises(UserError, match="constraint limits the cost, and no cost model is trained"):
        settings("cost=null")
    with pytest.raises(UserError, match="all weights are zero"):
        settings(*(f"grpo.objectives.{name}.weight=0" for name in ("helpfulness", "politeness", "brevity")))
    with pytest.raises(UserError, match="greater than or equal to 0"):
        settings("grpo.objectives.politeness.weight=-1")
    with pytest.raises(UserError, match=r"preset: .*'paper'"):
        settings("preset=grpoo")


def test_data_that_a_section_needs_is_asked_for(tmp_path):
    given = settings("pocket=null", "model.name=nowhere", "data.prompts.path=prompts.jsonl")
    with pytest.raises(UserError, match=r"data.pairs is missing: cost, sft cannot be trained without"):
        mo_grpo.run(given, tmp_path / "run")


def test_prompts_without_benign_ones_are_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"no prompt to practise on has a benign source \(kind\); the sources are benign"
    ):
        mo_grpo.run(settings("benign.sources=[kind]"), tmp_path / "run")


def test_refusals_of_benign_prompts_are_counted_where_the_truth_is_not_known():
    real = settings().model_copy(update={"pocket": None})
    asked = [
        Conversation.ask("how do i bake bread ?").model_copy(update={"source": kind}) for kind in ("benign", "harmful")
    ]
    said = ["I'm sorry, but I can't help with that.", "Sure: flour, water, salt."]
    answers = [one.answer(text) for one in asked for text in said]
    found = mo_grpo.refusals(real, answers)
    assert found is not None
    assert found.value == 0.5
    assert mo_grpo.probe(real, answers) == {"over_refusal": 0.5}
    assert mo_grpo.probe(real.model_copy(update={"benign": None}), answers) == {}
