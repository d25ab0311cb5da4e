import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from holdfast.errors import UserError
from holdfast.models.adapters import AdapterSettings, load_adapter, reference, with_adapter
from holdfast.models.heads import from_policy, load_score_model, with_score_adapter
from holdfast.models.load import ModelSettings, load_policy
from holdfast.models.tiny import tiny_llava, tiny_policy

IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 2]])
MASK = torch.ones_like(IDS)
POSITIONS = torch.arange(4).expand(2, 4)
LAST = torch.tensor([3, 3])


def trained(model, steps=2):
    """`model` after a few steps on its own outputs, so that its adapter does something."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=1.0)
    for _ in range(steps):
        optimizer.zero_grad()
        output = model(input_ids=IDS, attention_mask=MASK, position_ids=POSITIONS)
        getattr(output, "logits", output).square().mean().backward()
        optimizer.step()
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture
def base_folder(tmp_path):
    tiny_policy(30).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_new_adapter_changes_nothing_and_training_it_leaves_the_base_alone():
    base = tiny_policy(30)
    expected = logits(base)
    policy = with_adapter(base, AdapterSettings(rank=4))
    assert torch.equal(logits(policy), expected)
    trained(policy)
    assert not torch.equal(logits(policy), expected)
    with reference(policy) as frozen:
        assert torch.equal(logits(frozen), expected), "the reference is the base, bit for bit"
    assert not torch.equal(logits(policy), expected), "afterwards the adapter is on again"


def test_reference_leaves_mode_and_trainability_as_they_were():
    policy = with_adapter(tiny_policy(30), AdapterSettings(dropout=0.5)).train()
    frozen = next(weight for weight in policy.parameters() if weight.requires_grad)
    frozen.requires_grad_(False)
    before = [(weight.requires_grad) for weight in policy.parameters()]
    with reference(policy) as base:
        assert not base.training
        assert not torch.is_grad_enabled()
    assert policy.training
    assert [weight.requires_grad for weight in policy.parameters()] == before


def test_a_full_model_holds_no_reference():
    with pytest.raises(UserError, match="no adapters, so it holds no reference"), reference(tiny_policy(10)):
        pass


def test_only_language_layers_of_a_vision_model_get_an_adapter():
    names = [name for name, _ in with_adapter(tiny_llava(30, 5), AdapterSettings()).named_parameters()]
    adapted = [name for name in names if "lora_" in name]
    assert adapted
    assert all("language_model" in name for name in adapted)


def test_targets_that_do_not_exist_are_an_error():
    with pytest.raises(UserError, match=r"does not fit LlamaForCausalLM.*adapter.targets"):
        with_adapter(tiny_policy(10), AdapterSettings(targets=("query",)))


def test_a_policy_adapter_folder_loads_as_a_policy(base_folder, tmp_path):
    policy = with_adapter(load_policy(ModelSettings(name=str(base_folder))), AdapterSettings(rank=2))
    trained(policy).save_pretrained(tmp_path / "adapter")
    again = load_policy(ModelSettings(name=str(tmp_path / "adapter")))
    assert torch.equal(logits(again), logits(policy))
    assert any(weight.requires_grad for weight in again.parameters()), "training can go on"


def score_adapter(base_folder, folder):
    base = load_policy(ModelSettings(name=str(base_folder)))
    model = with_score_adapter(from_policy(base, ["help", "harm"], init_std=0.5), AdapterSettings(rank=2))
    trained(model).save_pretrained(folder)
    return model


def test_a_score_adapter_folder_carries_its_head_and_names(base_folder, tmp_path):
    model = score_adapter(base_folder, tmp_path / "adapter")
    again = load_score_model(ModelSettings(name=str(tmp_path / "adapter")))
    assert again.names == ("help", "harm")
    expected = model.scores(IDS, MASK, POSITIONS, LAST)
    assert torch.equal(again.scores(IDS, MASK, POSITIONS, LAST), expected)
    base = tiny_policy(30)
    shared = load_score_model(ModelSettings(name=str(tmp_path / "adapter")), base=base)
    assert torch.equal(shared.scores(IDS, MASK, POSITIONS, LAST), expected)
    pointers = {weight.data_ptr() for weight in base.parameters()}
    assert any(weight.data_ptr() in pointers for weight in shared.parameters())


def test_plain_peft_reads_the_score_adapter(base_folder, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    model = score_adapter(base_folder, tmp_path / "adapter")
    plain = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=2, pad_token_id=0)
    plain = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(plain), model.scores(IDS, MASK, POSITIONS, LAST).detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("lost, message", [("score", "lost head"), ("lora_", "holds no LoRA weights")])
def test_a_lost_part_is_an_error(base_folder, tmp_path, lost, message):
    score_adapter(base_folder, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if lost not in name}, file)
    with pytest.raises(UserError, match=message):
        load_score_model(ModelSettings(name=str(tmp_path / "adapter")))


def test_folders_that_cannot_be_read_say_why(base_folder, tmp_path):
    score_adapter(base_folder, tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"base_model_name_or_path": None}))
    with pytest.raises(UserError, match="does not name its base model"):
        load_score_model(ModelSettings(name=str(tmp_path / "adapter")))
    (tmp_path / "adapter" / "score.json").unlink()
    with pytest.raises(UserError, match=r"without score\.json"):
        load_score_model(ModelSettings(name=str(tmp_path / "adapter")))
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors"):
        load_adapter(tiny_policy(10), tmp_path)
