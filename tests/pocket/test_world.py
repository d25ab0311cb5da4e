"""The world as files: determined by its settings, whole or written again, and read like any other data."""

import pytest

from holdfast.data.schema import Conversation, DualPair
from holdfast.data.sources import DataSettings, read
from holdfast.models.load import ModelSettings, load_policy, load_tokenizer
from holdfast.pocket import oracles, world
from holdfast.pocket.world import WorldSettings

SMALL = WorldSettings(conversations=200, pairs=150, prompts=400, hidden=16, layers=1)


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
    return read(DataSettings(path=str(folder / f"{world.FILES[name]}.jsonl")), folder / "skipped.jsonl").records


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
