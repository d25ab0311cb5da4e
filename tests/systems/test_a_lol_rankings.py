"""Rankings end to end in A-LoL: of mixed sizes, with rewards and without, PRO files, lines of no use."""

import json
from itertools import pairwise

import pytest

from holdfast import config
from holdfast.errors import UserError
from holdfast.report.page import render
from holdfast.systems import a_lol, recipe

WORDS = ("bread", "tulips", "tables", "rivers", "songs")
ANSWERS = ("first look at it . then do it slowly .", "just do it .", "no .", "ask someone and wait .")
WORTH = (0.9, 0.5, 0.1, 0.3)
TINY = [
    *("pocket=null", "attributes=null", "cost=null", "limits=[]", "offline=null", "value={}", "rewards={reward: {}}"),
    *("sft.epochs=1", "fit.epochs=1", "fit.batch_size=16", "rollout.sampling.max_new_tokens=4"),
    "tokenizer={kind: word, vocab_size: 256}",
    "model={config: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, "
    "num_attention_heads: 2, num_key_value_heads: 2, max_position_embeddings: 128}}",
    "data.pools={sft: 0.7, pref: 0.06, rl: 0.08, dev: 0.1, safety: 0.06}",
]


def ask(i):
    return f"how do i make {WORDS[i % 5]} number {i} ?"


def ranked(i, **changes):
    """Two, three or four answers in turn, never in the order of their rewards."""
    count = 2 + i % 3
    order = [*range(1, count), 0]
    told = {"responses": [ANSWERS[k] for k in order], "rewards": [WORTH[k] for k in order]}
    return {"id": f"row-{i}", "prompt": ask(i), **told, **changes}


def pro_row(i):
    """The first answer, which a person chose, has the highest reward in three rows of four."""
    count = 2 + i % 3
    worth = list(WORTH[:count]) if i % 4 else [WORTH[1], WORTH[0], *WORTH[2:count]]
    prefix = [[f"<|prompter|>{ask(i)}", "<|assistant|>"]] * count
    return {"prefix": prefix, "suffix": list(ANSWERS[:count]), "reward": worth, "meta": {"path": "x", "line_num": i}}


def write(folder, rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return file


def run(folder, method, rows, *overrides, skip=False):
    source = f"data.ranked={{path: {write(folder, rows)}, on_bad_row: {'skip' if skip else 'error'}}}"
    chosen = config.load(a_lol.ALol, recipe("a_lol/pocket"), [*TINY, f"{method}={{}}", source, *overrides])
    return a_lol.run(chosen, folder / "run")


@pytest.mark.parametrize("method", ["dpo", "pro"])
@pytest.mark.parametrize("row", [ranked, pro_row])
def test_rankings_of_mixed_sizes_are_learned_and_counted(method, row, tmp_path):
    summary = run(tmp_path, method, [row(i) for i in range(120)])
    assert summary["rankings"] + summary["ranked_left_out"]["in_other_folds"] == 120
    assert 0 < summary["watching"] < summary["rankings"]
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [one["step"] for one in steps if one["stage"] == "policy"][-1]
    assert last == -(-(summary["rankings"] - summary["watching"]) // 16), "those that watch are not learned from"
    learned = summary["rankings"] - summary["watching"]
    page = render(tmp_path / "run").read_text(encoding="utf-8")
    assert f"Learned from {learned} of {summary['rankings']} rankings" in page
    assert f"{summary['watching']} only watch the training" in page


def test_order_alone_suffices_for_dpo_and_not_for_pro(tmp_path):
    rows = [ranked(i, rewards=None) if i % 2 else ranked(i) for i in range(120)]
    assert run(tmp_path, "dpo", rows)["method_of"] == "dpo"
    (tmp_path / "second").mkdir()
    with pytest.raises(UserError, match=r"no model gives the scores reward.* \d+ of \d+ rankings bring no rewards"):
        run(tmp_path / "second", "pro", rows)


def test_rankings_without_rewards_are_scored_by_the_models_of_the_run(tmp_path, monkeypatch):
    (tmp_path / "length.py").write_text("def f(prompt, answer):\n    return float(len(answer))\n")
    monkeypatch.syspath_prepend(tmp_path)
    rows = [ranked(i, rewards=None, responses=list(ANSWERS[i % 3 : i % 3 + 2])) for i in range(0, 120, 2)]
    rows += [ranked(i) for i in range(1, 120, 2)]
    scorer = ("functions=[{call: 'length:f', names: [f], each: true}]", "rewards={f: {}}")
    limits = "limits=[{score: f, most: 30}]"
    summary = run(tmp_path, "pro", rows, *scorer, limits)
    [limit] = summary["offline_limits"]
    longest, *_, within = sorted((float(max(map(len, pair))) for pair in pairwise(ANSWERS)), reverse=True)
    assert limit["reward_beyond"] == pytest.approx(longest), "worth of the best answer of those left out"
    assert within <= limit["reward_within"] < 30
    kept = json.loads((tmp_path / "run" / "annotations" / "ranking_scores.json").read_text())["found"]["f"]
    assert set(kept) == {float(len(text)) for text in ANSWERS}


def test_what_a_limit_costs_is_not_known_without_rewards(tmp_path, monkeypatch):
    (tmp_path / "size.py").write_text("def f(prompt, answer):\n    return float(len(answer))\n")
    monkeypatch.syspath_prepend(tmp_path)
    rows = [ranked(i, rewards=None, responses=list(ANSWERS[i % 3 : i % 3 + 2])) for i in range(120)]
    functions = "functions=[{call: 'size:f', names: [f], each: true}]"
    summary = run(tmp_path, "dpo", rows, functions, "limits=[{score: f, most: 30}]")
    [limit] = summary["offline_limits"]
    assert limit["beyond"] == limit["answers"] - summary["rankings"] > 0
    assert limit["reward_within"] is limit["reward_beyond"] is None


def test_pairs_may_stand_in_for_rankings(tmp_path):
    rows = [{"id": f"p{i}", "prompt": ask(i), "chosen": ANSWERS[i % 2], "rejected": ANSWERS[2]} for i in range(120)]
    summary = run(tmp_path, "dpo", rows)
    assert 60 < summary["pools"]["imitate"] <= summary["rankings"] <= 120, "their chosen answers are imitated"


BAD = (
    '{"id": "cut short", "prompt": "x"\n',
    '["no", "object"]\n',
    ranked(0, responses=[ANSWERS[0]], rewards=[1]),
    ranked(0, rewards=[1]),
    ranked(0, rewards=[1, None]),
    ranked(0, responses=["a .", "a . "]),
    ranked(0, responses=["a .", ""]),
    ranked(0, responses="a ."),
    ranked(0, prompt=""),
    ranked(0, preferred=5),
    {"id": "no answers", "prompt": ask(0)},
)
BAD_PRO = (
    {**pro_row(0), "prefix": [], "suffix": [], "reward": []},
    {**pro_row(0), "reward": [1]},
    {**pro_row(0), "suffix": None},
    {**pro_row(0), "prefix": [["<|prompter|>a", "<|assistant|>"], ["<|prompter|>b", "<|assistant|>"]]},
    {**pro_row(0), "prefix": [["<|prompter|>a"]] * 2},
    {**pro_row(0), "meta": "x"},
)


@pytest.mark.parametrize("row, bad", [(ranked, BAD), (pro_row, BAD_PRO)], ids=["ranked", "pro"])
def test_lines_of_no_use_are_set_aside_with_reasons(row, bad, tmp_path):
    summary = run(tmp_path, "dpo", [*(row(i) for i in range(120)), *bad], skip=True)
    assert summary["rankings"] + summary["ranked_left_out"]["in_other_folds"] == 120
    told = [json.loads(line) for line in (tmp_path / "run" / "skipped-ranked.jsonl").read_text().splitlines()]
    assert [one["row"] for one in told] == [121 + i for i in range(len(bad))]
    assert len({one["reason"] for one in told}) == len(bad), "each says what is wrong with it"


def test_rankings_that_do_not_say_so_are_told_how(tmp_path):
    rows = [{key: value for key, value in ranked(i).items() if key != "rewards"} for i in range(6)]
    with pytest.raises(UserError, match="best first, add rewards: null to the rows or set format: ranked"):
        run(tmp_path, "dpo", rows)


def test_the_method_of_a_recipe_has_to_be_left_out():
    kept = [one for one in TINY if one != "offline=null"]
    with pytest.raises(UserError, match=r"given: offline, dpo .offline=null leaves out a recipe's"):
        config.load(a_lol.ALol, recipe("a_lol/pocket"), [*kept, "dpo={}"])
