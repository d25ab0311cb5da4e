"""The world as files: determined by its settings, whole or written again, and read like any other data."""

import hashlib
import math
import re

import pytest

from holdfast.config import fingerprint, load, to_yaml
from holdfast.data.context import with_context
from holdfast.data.schema import Conversation, DualPair, Pair, Rated
from holdfast.data.sources import DataSettings, read
from holdfast.models.load import ModelSettings, load_policy, load_tokenizer
from holdfast.pocket import oracles, world
from holdfast.pocket.people import PeopleSettings
from holdfast.pocket.ratings import RatingsSettings
from holdfast.pocket.world import WorldSettings

SMALL = WorldSettings(conversations=200, pairs=150, prompts=400, hidden=16, layers=1)

PEOPLED = SMALL.model_copy(
    update={"people": PeopleSettings(users=20, pairs=5), "ratings": RatingsSettings(prompts=30, missing=0.3)}
)
# Of the world that published studies were run in, for these settings; written down before people were added.
PUBLISHED = {
    "conversations.jsonl": "523ab5e5d7c77fb5decb61e83acd88508d741122fde39d7c5ab1b4484f317492",
    "pairs.jsonl": "447057c202114cd724d275e33acebb8fba87f8b541a61f3881ca17cb93decf3d",
    "prompts.jsonl": "a7ca954982a5e2fdfecd8f1cff2a55b1f2b54f2e27ad1958453bea9907279a22",
    "policy/tokenizer.json": "77166f8ff3b1c4c86a3f8306fb0dce59fc60b6f5039f965b1a4a83cc88e8875e",
    "policy/chat_template.jinja": "b62739073152d7d3e33ff9e28cc311bbb271b2add55effbc9ab575125d51c581",
    "world.sha256": "1b7b2500a2532103e27e8bf5e1e4a2fc175fa13b5c570188e332ec4254d6c139",
}


def content(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return world.write(tmp_path_factory.mktemp("world"), SMALL)


def test_equal_settings_give_equal_bytes(tmp_path, folder):
    assert content(world.write(tmp_path, SMALL)) == content(folder)


def test_another_seed_gives_another_world(tmp_path, folder):
    other, first = content(world.write(tmp_path, SMALL.model_copy(update={"seed": 1}))), content(folder)
    assert other.keys() == first.keys()
    for name in ("conversations.jsonl", "pairs.jsonl", "prompts.jsonl", "policy/model.safetensors"):
        assert other[name] != first[name]


def test_a_finished_world_is_left_as_it_is(tmp_path):
    world.write(tmp_path, SMALL)
    (tmp_path / "pairs.jsonl").write_text("touched")
    world.write(tmp_path, SMALL)
    assert (tmp_path / "pairs.jsonl").read_text() == "touched"


class PowerCut(Exception):
    """What ends the writing of a world."""


@pytest.mark.parametrize("seed", [0, 1])
def test_an_interrupted_world_is_written_again(tmp_path, folder, monkeypatch, seed):
    """Also where it was going to replace another one: no stamp may vouch for the files of two worlds."""

    def cut(*_, **__):
        raise PowerCut

    if seed:
        world.write(tmp_path, SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(world, "train_tokenizer", cut)
        with pytest.raises(PowerCut):
            world.write(tmp_path, SMALL.model_copy(update={"seed": seed}))
    assert content(world.write(tmp_path, SMALL)) == content(folder)


def rows(folder, name):
    return records(folder / f"{world.FILES[name]}.jsonl")


def records(path):
    return read(DataSettings(path=str(path)), path.with_name("skipped.jsonl")).records


def test_its_files_are_read_on_the_ordinary_path(folder):
    imitate, pairs, prompts = (rows(folder, name) for name in ("sft", "pairs", "prompts"))
    assert len(imitate) == 200
    assert all(isinstance(one, Conversation) and one.answered for one in imitate)
    assert len(pairs) == 150
    assert all(isinstance(one, DualPair) and one.licence for one in pairs)
    keys = [one.key for one in prompts]
    assert len(keys) == len(set(keys)) <= 400
    assert not any(one.answered for one in prompts)
    kinds = {oracles.kind(one) for one in prompts}
    assert kinds == {"benign", "harmful", "disguised"}


def test_its_policy_knows_every_word_of_its_files(folder):
    settings = ModelSettings(name=str(folder / "policy"))
    tokenizer, policy = load_tokenizer(settings.name), load_policy(settings)
    texts = [message.text for one in rows(folder, "sft") for message in one.messages]
    texts += [text for pair in rows(folder, "pairs") for text in pair.responses]
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
        assert max(ids) < policy.config.vocab_size


def test_settings_reach_the_annotators(tmp_path):
    """Faultless ones contradict the truth nowhere; nobody asks for harm where none may ask."""
    settings = SMALL.model_copy(update={"flip": 0.0, "sharpness": 200.0, "harmful_share": 0.0})
    world.write(tmp_path, settings)
    for pair in rows(tmp_path, "pairs"):
        truths = [oracles.truth(pair.prompt.messages[-1].text, text) for text in pair.responses]
        assert pair.safe == tuple(not one.harmful for one in truths)
        margin = truths[0].value - truths[1].value
        if abs(margin) > 0.1:  # what they then get wrong is one pair in half a billion
            assert pair.helpful_id == (0 if margin > 0 else 1)
        assert oracles.kind(pair.prompt) == "benign"
    assert {oracles.kind(one) for name in ("sft", "prompts") for one in rows(tmp_path, name)} == {"benign"}


@pytest.fixture(scope="module")
def peopled(tmp_path_factory):
    return world.write(tmp_path_factory.mktemp("peopled"), PEOPLED)


def test_a_world_without_people_is_the_published_one(tmp_path):
    world.write(tmp_path, SMALL.model_copy(update={"seed": 3}))
    prompts = tmp_path / "prompts.jsonl"
    # Prompts have come to say of what kind they are; without that they are the bytes they were.
    lines, kinds = re.subn(rb', "source": "(benign|harmful|disguised)"\}', b"}", prompts.read_bytes())
    assert kinds == len(lines.splitlines())
    prompts.write_bytes(lines)
    found = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in PUBLISHED}
    assert found == PUBLISHED
    assert not {"people.jsonl", "ratings.jsonl"} & set(content(tmp_path))


def test_people_and_ratings_change_nothing_else(folder, peopled, tmp_path):
    """They have random numbers of their own; only the tokenizer learns the words that people need."""
    old, new = content(folder), content(peopled)
    assert new.keys() - old.keys() == {"people.jsonl", "ratings.jsonl"}
    for name in ("conversations.jsonl", "pairs.jsonl", "prompts.jsonl"):
        assert new[name] == old[name]
    assert new["policy/tokenizer.json"] != old["policy/tokenizer.json"]
    rated = content(world.write(tmp_path, PEOPLED.model_copy(update={"people": None})))
    assert rated["ratings.jsonl"] == new["ratings.jsonl"]
    assert rated["policy/tokenizer.json"] == old["policy/tokenizer.json"]
    # What an earlier world left in the folder is gone.
    assert content(world.write(tmp_path, SMALL)) == old


def test_people_and_ratings_follow_the_seed(peopled, tmp_path):
    again = content(world.write(tmp_path / "same", PEOPLED))
    other = content(world.write(tmp_path / "other", PEOPLED.model_copy(update={"seed": 1})))
    for name in ("people.jsonl", "ratings.jsonl"):
        assert again[name] == content(peopled)[name] != other[name]


def test_people_and_ratings_are_read_on_the_ordinary_path(peopled):
    people, rated = records(peopled / world.PEOPLE), records(peopled / world.RATINGS)
    assert len(people) == 100
    assert all(isinstance(pair, Pair) and pair.user_id and pair.group and pair.context for pair in people)
    assert all(oracles.kind(pair.prompt) == "benign" for pair in people)
    assert all(isinstance(row, Rated) for row in rated)
    assert any(math.isnan(label) for row in rated for label in row.labels.values())
    assert {oracles.kind(row.conversation) for row in rated} == {"benign", "harmful", "disguised"}


def test_the_tokenizer_knows_the_words_of_people(peopled):
    tokenizer = load_tokenizer(str(peopled / "policy"))
    for pair in records(peopled / world.PEOPLE):
        asked = with_context(pair.prompt, pair.context).messages[0].text
        for text in (asked, pair.chosen, pair.rejected):
            assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], text


def test_people_are_switched_on_by_a_setting(tmp_path):
    settings = load(WorldSettings, overrides=["people.users=7"])
    assert (settings.people.users, settings.ratings) == (7, None)
    assert fingerprint(settings) != fingerprint(WorldSettings())
    (tmp_path / "world.yaml").write_text(to_yaml(settings))
    assert load(WorldSettings, tmp_path / "world.yaml") == settings
