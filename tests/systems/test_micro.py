"""MiCRo end to end on a very small pocket world: people of three tastes, their words, their labels."""

import json
import subprocess
import sys

import pytest
import torch

from holdfast import config
from holdfast.data.schema import Conversation
from holdfast.data.sources import read, write_jsonl
from holdfast.errors import UserError
from holdfast.models.load import load_tokenizer
from holdfast.models.save import load_checked
from holdfast.preference.adapt import UserStore
from holdfast.preference.heads import HeadAudit
from holdfast.preference.personal import MixtureScorer, Person
from holdfast.stats.estimate import Estimate
from holdfast.systems import micro, recipe

SMALL = (
    "pocket.conversations=400",
    "pocket.pairs=100",
    "pocket.prompts=100",
    "pocket.hidden=32",
    "pocket.people.users=40",
    "pocket.people.pairs=14",
    "sft.epochs=2",
    "mixture.heads=3",
    "mixture.restarts=2",
    "mixture.fit.epochs=20",
    "labels_per_context=20",
    "trial.labels=[0,2,5]",
    "trial.draws=3",
    "trial.members=3",
    "trial.baseline.fit.epochs=5",
)


def settings(*overrides):
    return config.load(micro.Micro, recipe("micro/pocket"), [*SMALL, *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "micro"
    return folder, micro.run(settings(), folder)


def test_prompts_and_people_are_new_where_they_judge(finished):
    folder, _ = finished
    run = micro.RunFolder(folder, settings())
    chosen = micro.in_world(settings(), run)
    crowd = micro.read_crowd(chosen.data, {"sft"}, 20, run)
    learned = {pair.prompt.key for pair in [*crowd.learn, *crowd.contexts]} | {one.key for one in crowd.imitate}
    assert not learned & {pair.prompt.key for pair in crowd.held_out}
    known = {pair.user_id for pair in [*crowd.learn, *crowd.contexts, *crowd.held_out]}
    assert not known & {pair.user_id for pair in crowd.newcomers}
    assert max(sum(pair.group == taste for pair in crowd.contexts) for taste in ("brief", "warm", "thorough")) <= 20


def test_every_baseline_stands_beside_the_mixture(finished):
    _, summary = finished
    known, new, curve = summary["comparisons"]
    arms = [row[0] for row in known["rows"]]
    assert arms == [
        "one reward",
        "one, prompt read",
        "one, context read",
        "mixture, nobody known",
        "mixture, context read",
        "mixture, own labels",
        "one per known group",
        "the truth",
    ]
    assert set(known["columns"][1:]) == {"brief", "warm", "thorough"}
    assert "mixture, own labels" not in [row[0] for row in new["rows"]]
    assert [row[0] for row in curve["rows"]] == ["mixture", "ensemble (HyRe)"]
    # The labels are those of people who are nearly always sure.
    assert summary["accuracy"]["held_out"]["the truth"]["value"] > 0.9


def test_people_differ_and_the_mixture_sees_it(finished):
    _, summary = finished
    found = summary["accuracy"]["held_out"]
    # One reward for opposite tastes cannot be right for all; a person's own labels tell which taste is theirs.
    assert found["mixture, own labels"]["value"] > found["one reward"]["value"]


def test_known_people_weigh_the_heads_by_how_well_these_explain_their_labels(finished):
    folder, _ = finished
    run = micro.RunFolder(folder, settings())
    chosen = micro.in_world(settings(), run)
    model = load_checked(folder / "models" / "micro")
    template = micro.Template(load_tokenizer(str(folder / "models" / "micro")), max_length=112)
    bench = micro.Bench(chosen, run, micro.read_crowd(chosen.data, {"sft"}, 20, run), template, {})
    features, store = bench.features(model, "learn"), json.loads((folder / "users.json").read_text())
    delta = features.difference @ model.score.weight.detach().T
    someone = bench.crowd.learn[0].user_id
    own = delta[[i for i, pair in enumerate(bench.crowd.learn) if pair.user_id == someone]]
    posterior = torch.tensor(store["prior"]).log() + own.sigmoid().log().sum(0)
    # The features were computed in other batches.
    torch.testing.assert_close(
        torch.tensor(store["users"][someone]["weights"]), posterior.softmax(0), atol=1e-3, rtol=1e-3
    )
    assert store["users"][someone]["n_labels"] == len(own)


def test_a_finished_run_is_only_read(finished):
    folder, summary = finished
    rows = (folder / "metrics.jsonl").read_text()
    again = micro.run(settings(), folder)
    kept = [name for name in summary if name not in ("seconds", "peak_rss_mib")]
    assert {name: again[name] for name in kept} == {name: summary[name] for name in kept}
    assert (folder / "metrics.jsonl").read_text() == rows


def test_the_artifact_gives_everybody_their_own_score(finished):
    folder, _ = finished
    model = load_checked(folder / "models" / "micro")
    users = UserStore.load(folder / "users.json", model.names)
    template = micro.Template(load_tokenizer(str(folder / "models" / "micro")), max_length=112)
    answer = Conversation.ask("how do i season the soup ?").answer("just stir the soup slowly .")
    someone = users.users[0]
    people = [Person(), Person(user_id=someone), Person(context="please keep it short .")]
    scores = MixtureScorer(model, template, users=users).score_for([answer] * 3, people)
    # The heads say the same of the answer whoever asks.
    torch.testing.assert_close(scores[0, 1:], scores[1, 1:])
    assert len({round(float(one), 5) for one in scores[:, 0]}) == 3
    audit = json.loads((folder / "audit-micro.json").read_text())
    assert audit["scores"]["score"]["pairs"]["accuracy"]["value"] > 0.5
    card = json.loads((folder / "models" / "micro" / "head_card.json").read_text())
    assert len(card["correlation"]) == len(model.names)


def test_a_new_process_loads_it_by_the_usual_name(finished):
    folder, _ = finished
    code = (
        "import sys, holdfast.models.mixture; from transformers import AutoModelForSequenceClassification as Auto\n"
        "model = Auto.from_pretrained(sys.argv[1]); print(type(model).__name__, model.config.num_labels)"
    )
    path = str(folder / "models" / "micro")
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "MixtureRewardModel"


def test_network_and_heads_can_learn_together(tmp_path):
    chosen = settings("backbone.epochs=1", "backbone.batch_size=8", "router=null", "sft=null", "merge_above=1")
    summary = micro.run(chosen, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"nll", "entropy", "l2"} <= next(row for row in rows if row["stage"] == "mixture").keys()
    assert "mixture, context read" in summary["accuracy"]["held_out"]
    assert load_checked(tmp_path / "run" / "models" / "micro").router.kind == "static"


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "policy"
    small = [one for one in SMALL if "prompts" not in one and "pairs=100" not in one]
    overrides = [
        *small,
        "pocket.pairs=300",
        "policy.online.iterations=2",
        "policy.online.sample_every=1",
        "policy.online.prompts_per_iteration=24",
    ]
    chosen = config.load(micro.Micro, recipe("micro/pocket_policy"), [*overrides, "policy.limit.window=32"])
    return folder, micro.run(chosen, folder)


def test_a_policy_is_paid_for_each_persons_own_score_and_limited_for_each_group(adapted):
    folder, summary = adapted
    assert (folder / "models" / "policy" / "model.safetensors").is_file()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["stage"] == "policy"][-1]
    for taste in ("brief", "warm", "thorough"):
        assert {f"multiplier/harm/{taste}", f"cost/harm/{taste}", f"group_weight/{taste}"} <= last.keys()
        assert {"score_before", "cost_after", "worth_after"} <= summary["policy"].keys()
        assert summary["policy"]["worth_after"][taste]["n"] > 1
    assert summary["reason"] == "not_tested"
    assert summary["comparisons"][-1]["kind"] == "change"


def test_the_words_of_a_person_reach_the_policy_and_not_the_judges(adapted):
    folder, _ = adapted
    prompts = [json.loads(line)["prompt"] for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert prompts
    assert all(prompt.startswith("[criteria] ") for prompt in prompts)


def judged_safe(folder, path):
    """What the brief prefer, called safe."""
    pairs = read(micro.reading.Source(path=f"{folder}/world/people.jsonl")).records
    write_jsonl([pair for pair in pairs if pair.group == "brief"], path)
    return [f"data.pairs={folder}/world/people.jsonl", f"data.safety={path}", "sft=null", "mixture.fit.epochs=60"]


def test_heads_that_prefer_harm_get_no_weight(finished, tmp_path):
    folder, _ = finished
    summary = micro.run(settings(*judged_safe(folder, tmp_path / "safety.jsonl")), tmp_path / "run")
    masked = [one["head"] for one in summary["heads"]["safety"] if one["mask"]]
    assert masked
    model = load_checked(tmp_path / "run" / "models" / "micro")
    assert model.config.masked_heads == masked
    assert model.log_weights(torch.randn(4, 32)).exp()[:, model.masked].sum() == 0


def test_heads_that_all_prefer_harm_are_no_model(finished, tmp_path, monkeypatch):
    folder, _ = finished
    accuracy = Estimate(0.1, 0.0, 0.2, 50, "made up")
    monkeypatch.setattr(micro, "audit_heads", lambda *_: [HeadAudit(f"head_{k}", accuracy, True) for k in range(3)])
    with pytest.raises(UserError, match=r"every head prefers the harmful answer on data\.safety \(right on 0\.10"):
        micro.run(settings(*judged_safe(folder, tmp_path / "safety.jsonl"), "merge_above=1"), tmp_path / "run")


def test_a_run_without_users_contexts_or_groups(finished, tmp_path):
    folder, _ = finished
    pairs = read(micro.reading.Source(path=str(folder / "world" / "people.jsonl"), split="all")).records
    bare = [pair.model_copy(update={"user_id": "", "context": "", "group": ""}) for pair in pairs]
    write_jsonl(bare, tmp_path / "pairs.jsonl")
    values = config.read_values(recipe("micro/pocket"), [one for one in SMALL if not one.startswith("pocket")])
    values.pop("pocket")
    values |= {"data": {"pairs": f"{tmp_path}/pairs.jsonl"}, "model": f"{folder}/world/policy", "sft": None}
    summary = micro.run(config.build(micro.Micro, values), tmp_path / "run")
    assert [row[0] for row in summary["comparisons"][0]["rows"]] == [
        "one reward",
        "one, prompt read",
        "mixture, nobody known",
    ]
    assert not (tmp_path / "run" / "users.json").exists()
    assert load_checked(tmp_path / "run" / "models" / "micro").router.kind == "mlp"


@pytest.mark.parametrize(
    "overrides, match",
    [
        (["mixture.heads=1"], "at least two heads; for one head use a reward model"),
        (["leave_out_backbone=true"], "needs a network as it came"),
        (["router.tau=0"], "router.tau"),
        (["mixture.alpha=-1"], "mixture.alpha"),
        (["policy.limit.threshold=0.1"], "limit needs a cost model"),
        (["model.name=x", "model.adapter.rank=4"], "say how by a backbone section"),
    ],
)
def test_contradictions_are_refused(overrides, match):
    with pytest.raises(UserError, match=match):
        settings(*overrides)


def test_a_context_longer_than_the_window_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"its prompt has \d+ tokens and the window 20"):
        micro.run(settings("text.max_length=20", "sft=null", "text.on_long_prompt=skip"), tmp_path / "run")
