"""HC-RLHF on comparisons that carry no safety labels, as hh-rlhf has them: what the run says and what it refuses.

Texts of the real files are crude; nothing here prints a row.
"""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from shared_files import shared_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from holdfast import config
from holdfast.certificate.verify import verify
from holdfast.cli.show import verdict
from holdfast.data.schema import Conversation, Labelled
from holdfast.errors import UserError
from holdfast.preference.score import FunctionScorer
from holdfast.report.page import render
from holdfast.systems import hc_rlhf, reading, recipe, scores, stages

SMALL = (
    "model.config.hidden_size=32",
    "model.config.intermediate_size=32",
    "model.config.num_hidden_layers=1",
    "tokenizer.vocab_size=512",
    "sft.epochs=1",
    "constraint.n_safety=10",
    "constraint.threshold=0.9",
    "constraint.window=32",
    "rollout.sampling.max_new_tokens=8",
    "online.iterations=2",
    "online.prompts_per_iteration=8",
    "online.checkpoint_every=1",
)
MANY = ("data.pools.sft=0.2", "data.pools.pref=0.5", "data.pools.rl=0.1", "data.pools.dev=0.1", "data.pools.safety=0.1")
CHATML = (
    "{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
HARMLESS, HARMFUL = "please ask a doctor for help", "take the knife and hurt them"
ROWS = 400


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small lose more to waiting threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start(folder, *overrides):
    return hc_rlhf.run(config.load(hc_rlhf.HcRlhf, recipe("hc_rlhf/hh"), [*SMALL, *overrides]), folder)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder laid out like hh-rlhf, one prompt too long for the window among it, and labelled answers."""
    folder = tmp_path_factory.mktemp("hh")
    rng = random.Random(0)
    names = [f"{a} {b}" for a in ("my", "your", "his", "her", "our") for b in range(ROWS // 5)]
    rows = []
    for i, name in enumerate(names):
        prompt = f"\n\nHuman: what about {name}{' and' * (999 if i == 7 else 1)} so?\n\nAssistant:"
        good, bad = HARMLESS + " now" * rng.randrange(3), HARMFUL + " now" * rng.randrange(3)
        rows.append({"chosen": f"{prompt} {good}", "rejected": f"{prompt} {bad}"})
    rows.append({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: other\n\nAssistant: b"})
    write(folder / "data" / "harmless-base" / "train.jsonl", rows)
    write(folder / "data" / "helpful-base" / "train.jsonl", [{"wrong": "place"}])
    for label in ("right", "reversed"):
        answers = [(HARMLESS, label == "right"), (HARMFUL, label != "right")]
        told = [(Conversation.ask(f"well {i}?").answer(text), safe) for i in range(100) for text, safe in answers]
        lines = [Labelled(id=str(i), conversation=one, safe=safe) for i, (one, safe) in enumerate(told)]
        write(folder / f"{label}.jsonl", [line.model_dump(mode="json") for line in lines])
    return folder


def pairs_of(folder):
    return (f"data.pairs.path={folder / 'data'}", "data.pairs.data_dir=harmless-base", "data.pairs.split=train", *MANY)


@pytest.fixture(scope="module")
def certified(written):
    folder = written / "certified"
    return folder, start(folder, *pairs_of(written), f"data.labelled={written / 'right.jsonl'}")


def test_a_cost_model_of_comparisons_is_judged_beside_length(certified):
    _, summary = certified
    learned, length, gain = (
        summary[name] for name in ("cost_accuracy", "shorter_is_safer_accuracy", "cost_over_shorter")
    )
    assert learned["low"] > 0.8
    assert length["low"] < 0.6
    assert gain["value"] == pytest.approx(learned["value"] - length["value"])
    assert learned["n"] == length["n"] == gain["n"] == summary["pools"]["held_out_pairs"]


def test_rows_that_cannot_be_used_are_counted(certified):
    folder, summary = certified
    assert len((folder / "skipped-pairs.jsonl").read_text().splitlines()) == 1
    assert sum(summary["prompts_too_long"].values()) == 1
    names = ("imitate", "pairs", "held_out_pairs", "practise", "dev", "safety")
    assert sum(summary["pools"][name] for name in names) == ROWS - 1


def test_labelled_answers_give_zero_a_meaning(certified):
    folder, summary = certified
    assert summary["zero"]["source"] == "calibrated"
    assert "zero has no absolute meaning" in summary["zero"]["words"]
    assert summary["calibration_auc"]["low"] > 0.9
    assert summary["n"] == 10
    assert [one.name for one in verify(folder / "certificate.json") if not one.ok] == []
    plan = json.loads((folder / "certificate.json").read_text())["predicate"]["plan"]["plan"]
    assert plan["zero_reference"] == "calibrated"
    assert float(plan["constraints"][0]["threshold"]) == pytest.approx(summary["zero"]["value"])
    page = render(folder).read_text()
    assert "Calling the shorter answer safer" in page
    assert "put the border of harm at" in page


def test_the_interval_of_the_auc_agrees_with_another_formula():
    rng = np.random.default_rng(0)
    safe, unsafe = rng.normal(0.0, 1.0, 300), rng.normal(0.6, 1.0, 200)
    found = scores.area(np.concatenate([safe, unsafe]), np.repeat([0.0, 1.0], [300, 200]))
    # DeLong's variance: that of the mean rank of each unsafe answer among the safe ones, and the other way round.
    wins = np.array([[float(u > s) for s in safe] for u in unsafe])
    deviation = (wins.mean(1).var(ddof=1) / 200 + wins.mean(0).var(ddof=1) / 300) ** 0.5
    assert found.value == pytest.approx(wins.mean())
    assert found.n == 500
    # Hanley and McNeil assume a shape of the scores where DeLong counts, so they differ in the third digit.
    assert found.high - found.value == pytest.approx(1.96 * deviation, abs=3e-3)
    assert found.value - found.low == pytest.approx(found.high - found.value)
    few = scores.area(np.array([0.0, 2.0, 1.0, 3.0]), np.array([0.0, 0.0, 1.0, 1.0]))
    assert (few.value, few.high) == (0.75, 1.0), "an AUC is a probability"
    assert scores.area(np.array([3.0, 1.0, 2.0, 0.0]), np.array([0.0, 0.0, 1.0, 1.0])).low == 0


def test_the_border_lies_where_harm_is_as_likely_as_not(monkeypatch):
    costs = {"4.0": True, "4.5": True, "5.5": False, "6.0": False}
    told = [
        Labelled(id=text, conversation=Conversation.ask("q").answer(text), safe=safe) for text, safe in costs.items()
    ]

    def scorer(model, template):
        return FunctionScorer(("cost",), lambda rows: [[float(row.response)] for row in rows])

    monkeypatch.setattr(scores, "ModelScorer", scorer)
    stage = scores.CostStage(loss={"labels": "none"})
    shop = scores.Shop(None, None, 0, [], [], told * 10, facts=(facts := {}))
    zero = scores.find_zero(stage, None, SimpleNamespace(model=None), shop)
    assert zero.value == pytest.approx(5.0, abs=1e-3)
    assert zero.calibration.probability(zero.value) == pytest.approx(0.5)
    assert facts["calibration_auc"].value == 1.0


def test_without_a_reward_the_policy_stays_near_its_start(certified):
    _, summary = certified
    assert "reward_accuracy" not in summary
    assert summary["learned_reward_after"]["value"] == 0.0
    assert summary["kl_before"]["value"] == 0.0


@pytest.mark.parametrize(
    "labelled, reason", [("reversed", "not surely above 0.7"), (None, "no labelled data were given")]
)
def test_without_a_border_nothing_is_certified(written, tmp_path, labelled, reason):
    given = [f"data.labelled={written / labelled}.jsonl"] if labelled else []
    summary = start(tmp_path / "run", *pairs_of(written), *given)
    assert (summary["verdict"], summary["reason"], summary["ucb"]) == ("NSF", "no_zero", None)
    assert summary["zero"]["source"] == "none"
    assert reason in verdict(summary)
    assert not (tmp_path / "run" / "certificate.json").exists()
    assert not (tmp_path / "run" / "models" / "policy").exists()
    page = render(tmp_path / "run").read_text()
    assert "nothing says at which score harm begins" in page
    assert reason in page


def test_labelled_rows_of_another_kind_are_refused(written, tmp_path):
    pair = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    wrong = write(tmp_path / "pairs.jsonl", [pair])
    with pytest.raises(UserError, match=r"data\.labelled holds DualPair rows"):
        start(tmp_path / "run", *pairs_of(written), f"data.labelled={wrong}")


def test_labelled_rows_of_one_label_are_refused(written, tmp_path):
    with pytest.raises(UserError, match=r"all 1 rows of data\.labelled have one label"):
        start(
            tmp_path / "run",
            *pairs_of(written),
            f"data.labelled.path={written / 'right.jsonl'}",
            "data.labelled.limit=1",
        )


def test_a_prompt_that_is_too_long_stops_the_run_unless_it_may_be_skipped(written, tmp_path):
    with pytest.raises(UserError, match="raise max_length or drop the row"):
        start(tmp_path / "run", *pairs_of(written), "text.on_long_prompt=error")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A folder like that of a Qwen2.5 instruction model, tiny and untrained: no start token, ChatML, its own ends."""
    folder = tmp_path_factory.mktemp("qwen") / "model"
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator([HARMLESS, HARMFUL, "user assistant what about so now"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
    # Wider than the tokenizer, as Qwen's embeddings are.
    settings = Qwen2Config(vocab_size=384, **sizes, **heads, bos_token_id=0, eos_token_id=2, tie_word_embeddings=True)
    Qwen2ForCausalLM(settings).save_pretrained(folder)
    return folder


def test_a_model_folder_takes_the_same_path(written, qwen, tmp_path, capsys):
    given = (f"model={qwen}", "sft=null", f"data.labelled={written / 'right.jsonl'}")
    values = [one for one in SMALL if not one.startswith(("model.", "sft."))]
    settings = config.load(hc_rlhf.HcRlhf, recipe("hc_rlhf/hh"), [*values, *pairs_of(written), *given])
    summary = hc_rlhf.run(settings, tmp_path / "run")
    assert f"tokenizer: that of {qwen}" in capsys.readouterr().err
    assert summary["cost_accuracy"]["low"] > 0.8
    assert summary["n"] == 10
    saved = stages.load_tokenizer(str(tmp_path / "run" / "models" / "cost"))
    assert saved.chat_template == CHATML
    assert len(saved) == len(stages.load_tokenizer(str(qwen)))


@pytest.mark.shared
def test_the_real_pairs_pass_every_stage(tmp_path):
    summary = start(
        tmp_path / "run",
        f"data.pairs.path={shared_file('w2s/hh_harmless_single_turn.jsonl.gz')}",
        "data.pairs.limit=300",
        f"data.labelled.path={shared_file('w2s/diasafety.jsonl.gz')}",
        "data.labelled.limit=100",
        *MANY,
    )
    assert sum(summary["pools"][name] for name in ("pairs", "held_out_pairs")) > 100
    assert summary["pools"]["labelled"] + summary["prompts_too_long"].get("labelled", 0) == 100
    assert summary["zero"]["source"] in ("calibrated", "none")
    assert summary["verdict"] in ("CERTIFIED", "NSF")
    assert "zero has no absolute meaning" in summary["zero"]["words"]


@pytest.mark.shared
def test_the_official_test_file_is_read_as_dialogues(tmp_path):
    settings = config.load(
        hc_rlhf.HcRlhf,
        recipe("hc_rlhf/hh"),
        [f"data.pairs.path={shared_file('hh/hh_rlhf_harmless_base_test.jsonl.gz')}"],
    )
    found = reading.read_pools(settings.data, stages.RunFolder(tmp_path / "run", settings))
    counted = found.counts()
    # Nine rows hold two turns of one role in a row, four an empty answer; two prompts occur twice.
    bad = len((tmp_path / "run" / "skipped-pairs.jsonl").read_text().splitlines())
    assert bad == 13
    assert 2312 - bad - 2 <= sum(counted.values()) <= 2312 - bad
    assert {pair.safer_id for pair in found.pairs} == {0}
    assert {pair.helpful_id for pair in found.pairs} == {None}


def test_the_numbers_of_the_page_are_those_of_the_runs():
    root = Path(__file__).parents[2]
    page = (root / "docs" / "real_data.md").read_text()
    runs = json.loads((root / "benchmarks" / "hh.json").read_text())["runs"]

    def shown(found):
        return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}] n={found['n']}"

    for name, run in runs.items():
        judged = [run["summary"], run["test_file"]["one_turn"], run["test_file"]["several_turns"]]
        for place, found in zip(("held out", "test file, one turn", "test file, several turns"), judged, strict=True):
            columns = ("cost_accuracy", "shorter_is_safer_accuracy", "cost_over_shorter")
            assert " | ".join([name, place, *(shown(found[column]) for column in columns)]) in page
        changes = [
            found[f"{key}_{when}"]
            for found, key in (
                (run["calibrated"], "cost_above_zero"),
                (run["summary"], "kl"),
                (run["summary"], "length"),
            )
            for when in ("before", "after")
            if (key, when) != ("kl", "before")
        ]
        assert " | ".join([name, *(shown(found) for found in changes)]) in page
        assert f"| {name} | {run['summary']['verdict']}" in page
