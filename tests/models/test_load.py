import json

import huggingface_hub
import pytest
import torch
from pydantic import ValidationError

from holdfast.errors import UserError
from holdfast.models.load import ModelSettings, load_policy, load_tokenizer
from holdfast.models.tiny import tiny_llava, tiny_policy

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_an_architecture_is_built_with_the_size_of_the_tokenizer():
    settings = ModelSettings(config={"model_type": "qwen2", "num_key_value_heads": 2, **SMALL})
    policy = load_policy(settings, vocab_size=50)
    assert policy.config.vocab_size == 50
    assert (policy.dtype, policy.training) == (torch.float32, False)


@pytest.mark.parametrize("dtype, expected", [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_precision(tmp_path, dtype, expected):
    tiny_policy(10).bfloat16().save_pretrained(tmp_path)
    assert load_policy(ModelSettings(name=str(tmp_path), dtype=dtype)).dtype == expected


def test_a_folder_comes_back_as_it_was(tmp_path):
    policy = tiny_policy(10)
    policy.save_pretrained(tmp_path)
    again = load_policy(ModelSettings(name=str(tmp_path)), vocab_size=10)
    assert all(torch.equal(*pair) for pair in zip(policy.parameters(), again.parameters(), strict=True))


def test_a_vision_model_comes_with_its_tower(tmp_path):
    tiny_llava(10, 5).save_pretrained(tmp_path)
    assert hasattr(load_policy(ModelSettings(name=str(tmp_path))).model, "vision_tower")


@pytest.mark.parametrize(
    "config, message",
    [
        ({"model_type": "lama"}, "transformers knows no 'lama'"),
        ({}, "transformers knows no None"),
        ({"model_type": "llama", "hiden_size": 8}, "llama has no setting hiden_size"),
    ],
)
def test_an_architecture_with_mistakes_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        load_policy(ModelSettings(config=config))


@pytest.mark.parametrize("given", [{}, {"name": "a/b", "config": {"model_type": "llama"}}])
def test_exactly_one_source(given):
    with pytest.raises(ValidationError, match="give either name"):
        ModelSettings(**given)


def test_a_path_to_nothing(tmp_path):
    with pytest.raises(UserError, match=r"no model folder at .*nowhere"):
        load_policy(ModelSettings(name=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match=r"holds no config.json"):
        load_policy(ModelSettings(name=str(tmp_path)))


def test_weights_in_another_format_are_not_read(tmp_path):
    policy = tiny_policy(10)
    policy.config.save_pretrained(tmp_path)
    torch.save(policy.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no safetensors weights, only .*pytorch_model.bin"):
        load_policy(ModelSettings(name=str(tmp_path)))


def test_a_missing_weight_is_not_replaced_by_random_numbers(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny_policy(10).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 weights .*model.layers.1.mlp.up_proj.weight.* random"):
        load_policy(ModelSettings(name=str(tmp_path)))


def test_damaged_weights(tmp_path):
    tiny_policy(10).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot load weights"):
        load_policy(ModelSettings(name=str(tmp_path)))


def test_an_unknown_hub_name_offline(offline):
    with pytest.raises(UserError, match=r"cannot load a configuration for 'nobody/nothing'.*local folder"):
        load_policy(ModelSettings(name="nobody/nothing"))


def test_code_beside_the_weights_is_not_run(tmp_path):
    tiny_policy(10).save_pretrained(tmp_path)
    (tmp_path / "code.py").write_text("raise SystemExit('this code must not run')\n")
    config = json.loads((tmp_path / "config.json").read_text())
    remote = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": remote}))
    with pytest.raises(UserError, match="cannot load a configuration"):
        load_policy(ModelSettings(name=str(tmp_path)))


def test_a_tokenizer_that_is_too_large_for_the_model(tmp_path):
    tiny_policy(10).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="tokenizer has 11 ids, the model embeds 10"):
        load_policy(ModelSettings(name=str(tmp_path)), vocab_size=11)


def tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<img>": 0, "?": 1}, unk_token="?"))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="?")


def test_a_vision_folder_gives_a_processor_and_a_text_folder_a_tokenizer(tmp_path):
    pytest.importorskip("PIL")
    from holdfast.models.tiny import tiny_processor

    tiny_policy(10).save_pretrained(tmp_path / "text")
    tokenizer().save_pretrained(tmp_path / "text")
    tiny_llava(10, 0).save_pretrained(tmp_path / "vision")
    tiny_processor(tokenizer(), "<img>").save_pretrained(tmp_path / "vision")
    assert not hasattr(load_tokenizer(str(tmp_path / "text")), "image_processor")
    assert hasattr(load_tokenizer(str(tmp_path / "vision")), "image_processor")
    assert not hasattr(load_tokenizer(str(tmp_path / "vision"), processor=False), "image_processor")


def test_a_folder_without_tokenizer(tmp_path):
    tiny_policy(10).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="cannot load a tokenizer"):
        load_tokenizer(str(tmp_path))
