import pytest
import torch

from holdfast.models.tiny import IMAGE_TOKENS, tiny_llava, tiny_policy, tiny_processor


def flat(model):
    return torch.cat([weight.flatten() for weight in model.parameters()])


@pytest.mark.parametrize(
    "build",
    [
        lambda seed: tiny_policy(30, seed=seed),
        lambda seed: tiny_policy(30, kind="qwen2", seed=seed),
        lambda seed: tiny_llava(30, 5, seed=seed),
    ],
    ids=["llama", "qwen2", "llava"],
)
def test_weights_follow_from_the_seed_alone(build):
    torch.manual_seed(1)
    first = build(3)
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(flat(first), flat(build(3)))
    assert not torch.equal(flat(first), flat(build(4)))
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state()), "building must leave the global random state alone"


def test_kinds_are_the_families_they_name():
    assert tiny_policy(30).config.model_type == "llama"
    assert tiny_policy(30, kind="qwen2").config.model_type == "qwen2"
    assert tiny_llava(30, 5).config.vision_config.hidden_size == 32


def test_processor_writes_as_many_tokens_as_the_model_takes():
    image = pytest.importorskip("PIL.Image")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<img>": 0, "look": 1, "?": 2}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=["<img>"])
    inputs = tiny_processor(tokenizer, "<img>")(
        images=[image.new("RGB", (40, 25))], text="look <img> look", return_tensors="pt"
    )
    assert inputs["input_ids"].tolist() == [[1, *[0] * IMAGE_TOKENS, 1]]
    logits = tiny_llava(3, 0)(**inputs).logits
    assert logits.shape == (1, IMAGE_TOKENS + 2, 3)
