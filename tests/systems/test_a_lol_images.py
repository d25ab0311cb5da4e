"""Prompts with pictures in A-LoL, by single answers, by pairs and by rankings, on a very small LLaVA."""

import json

import pytest

from holdfast import config
from holdfast.data.tokenizer import train_tokenizer
from holdfast.errors import UserError
from holdfast.models.save import load_checked
from holdfast.models.tiny import tiny_llava, tiny_policy, tiny_processor
from holdfast.systems import a_lol, recipe

picture = pytest.importorskip("PIL.Image")

COLOURS = {"red": (200, 0, 0), "blue": (0, 0, 200), "green": (0, 200, 0), "white": (250, 250, 250)}
QUESTION = "what is in this picture ?"
TINY = [
    *("pocket=null", "attributes=null", "cost=null", "limits=[]", "rewards={reward: {}}", "tokenizer=null"),
    *("sft.epochs=1", "fit.epochs=1", "fit.batch_size=16", "rollout.sampling.max_new_tokens=4"),
    "data.pools={sft: 0.7, pref: 0.06, rl: 0.08, dev: 0.1, safety: 0.06}",
]
BY_ANSWERS = ("value={learn_from: data, head: {heads: 2, fit: {epochs: 1}}}", "offline.method=a_lol_seq")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a network that sees, one that does not, pictures, and answers to one question about them."""
    folder = tmp_path_factory.mktemp("pictures")
    texts = [QUESTION, *(f"a {name} square ." for name in COLOURS), "no ."]
    words = train_tokenizer(texts, 256, "word")
    image = words.convert_tokens_to_ids("<|image|>")
    tiny_llava(len(words), image, hidden=16).save_pretrained(folder / "sees")
    tiny_processor(words, "<|image|>").save_pretrained(folder / "sees")
    tiny_policy(len(words), hidden=16).save_pretrained(folder / "reads")
    words.save_pretrained(folder / "reads")
    answers, rankings = [], []
    for i in range(100):
        name = list(COLOURS)[i % 4]
        colour = tuple(max(part - i // 4, 0) for part in COLOURS[name])
        picture.new("RGB", (16, 16), colour).save(folder / f"{i}.png")
        content = [{"type": "image", "path": f"{i}.png"}, {"type": "text", "text": QUESTION}]
        common = {"id": f"row-{i}", "prompt": [{"role": "user", "content": content}]}
        told = [f"a {name} square .", "no .", "a square ."][: 2 + i % 2]
        answers.append({**common, "response": told[i % 2], "reward": 0.9 - 0.8 * (i % 2)})
        rankings.append({**common, "responses": told, "rewards": [0.9, 0.2, 0.1][: len(told)]})
    for file, rows in (("answers", answers), ("ranked", rankings)):
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(made, *overrides, model="sees"):
    return config.load(a_lol.ALol, recipe("a_lol/pocket"), [*TINY, f"model={made / model}", *overrides])


def test_answers_about_pictures_are_annotated_and_learned(made, tmp_path):
    summary = a_lol.run(settings(made, *BY_ANSWERS, f"data.answers={made / 'answers.jsonl'}"), tmp_path / "run")
    assert summary["annotations"]["answers"] + summary["answers_left_out"]["in_other_folds"] == 100
    lines = (tmp_path / "run" / "annotations" / "annotations.jsonl").read_text().splitlines()
    same = [row for row in map(json.loads, lines) if row["id"] in {f"row-{i}" for i in range(1, 100, 2)}]
    # One question and one answer: only the pictures differ.
    # A network of chance tells them apart by little, and rounding alone by less than 1e-6.
    told = [row["ref_logprob"] for row in same]
    assert max(told) - min(told) > 1e-5, "the reference sees the pictures"
    load_checked(tmp_path / "run" / "models" / "policy")


@pytest.mark.parametrize("method", ["dpo", "pro"])
def test_rankings_about_pictures_are_learned(method, made, tmp_path):
    chosen = settings(made, "offline=null", "value={}", f"{method}={{}}", f"data.ranked={made / 'ranked.jsonl'}")
    summary = a_lol.run(chosen, tmp_path / "run")
    assert summary["rankings"] + summary["ranked_left_out"]["in_other_folds"] == 100
    assert abs(summary["kl_after"]["value"]) > 1e-4
    load_checked(tmp_path / "run" / "models" / "policy")


def test_a_network_without_eyes_is_refused(made, tmp_path):
    chosen = settings(made, *BY_ANSWERS, f"data.answers={made / 'answers.jsonl'}", model="reads")
    with pytest.raises(UserError, match="a message holds an image, which a tokenizer alone cannot read"):
        a_lol.run(chosen, tmp_path / "run")
