import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from holdfast.errors import RunError, UserError
from holdfast.models import save as module
from holdfast.models.adapters import AdapterSettings, with_adapter
from holdfast.models.heads import from_policy
from holdfast.models.load import ModelSettings, load_policy
from holdfast.models.save import digest, load_checked, save
from holdfast.models.tiny import tiny_llava, tiny_policy

IMAGE = 5


def probes(image=False):
    """Four rows of different lengths, the response being all but the first two tokens."""
    lengths = torch.tensor([8, 7, 8, 7])
    ids = torch.randint(6, 30, (4, 8), generator=torch.Generator().manual_seed(0))
    extra = {}
    if image:
        ids[:, 1:5] = IMAGE
        extra = {"pixel_values": torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))}
    mask = torch.arange(8).expand(4, 8) < lengths[:, None]
    return SimpleNamespace(
        input_ids=ids,
        attention_mask=mask.long(),
        position_ids=torch.arange(8).expand(4, 8),
        response_mask=mask & (torch.arange(8) >= 5),
        score_index=lengths - 1,
        extra=extra,
    )


def tokenizer(pad="<pad>"):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<end>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token=pad)


def score_model(image=False):
    policy = tiny_llava(30, IMAGE) if image else tiny_policy(30)
    return from_policy(policy, ["help", "harm"], init_std=0.5)


def scores(model, given):
    return model.scores(given.input_ids, given.attention_mask, given.position_ids, given.score_index, **given.extra)


@pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
def test_a_score_model_comes_back(tmp_path, image):
    model = score_model(image)
    folder = save(model, tokenizer(), tmp_path / "model", probes=probes(image))
    again = load_checked(folder)
    assert torch.equal(scores(again, probes(image)), scores(model, probes(image)))
    card = json.loads((folder / "holdfast.json").read_text())
    assert (card["kind"], card["names"]) == ("score", ["help", "harm"])
    assert not list(tmp_path.glob(".*")), "nothing is left of the temporary folder"


def test_a_policy_comes_back(tmp_path):
    policy = tiny_policy(30)
    again = load_checked(save(policy, tokenizer(), tmp_path / "model", probes=probes()))
    assert torch.equal(again(probes().input_ids).logits, policy(probes().input_ids).logits)


def test_an_adapter_comes_back_and_notices_another_base(tmp_path):
    tiny_policy(30, seed=0).save_pretrained(tmp_path / "base")
    base = load_policy(ModelSettings(name=str(tmp_path / "base")))
    policy = with_adapter(base, AdapterSettings(rank=2))
    folder = save(policy, tokenizer(), tmp_path / "adapter", probes=probes())
    load_checked(folder)
    tiny_policy(30, seed=1).save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match="does not reproduce"):
        load_checked(folder)


@pytest.mark.slow
def test_another_process_gives_identical_scores(tmp_path):
    model = score_model()
    folder = save(model, tokenizer(), tmp_path / "model", probes=probes())
    program = (
        "import sys; from safetensors.torch import load_file; from holdfast.models.save import load_checked\n"
        "given = load_file(sys.argv[1] + '/probes.safetensors'); given.pop('response_mask')\n"
        "print(load_checked(sys.argv[1]).scores(**given).tolist())"
    )
    result = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == scores(model, probes()).tolist()


def without(file, name):
    weights = load_file(file)
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})


def test_a_lost_head_is_an_error(tmp_path):
    folder = save(score_model(), tokenizer(), tmp_path / "text", probes=probes())
    without(folder / "model.safetensors", "score.weight")
    with pytest.raises(UserError, match=r"lack 1 weights.*score.weight"):
        load_checked(folder)
    folder = save(score_model(True), tokenizer(), tmp_path / "image", probes=probes(True))
    (folder / "score_head.safetensors").unlink()
    with pytest.raises(UserError, match="lost head"):
        load_checked(folder)


def test_another_head_is_an_error(tmp_path):
    folder = save(score_model(), tokenizer(), tmp_path / "model", probes=probes())
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"] = weights["score.weight"].flip(0).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"does not reproduce what it said.*expected \[.*got \["):
        load_checked(folder)


@pytest.mark.parametrize("name", ["holdfast.json", "probes.safetensors"])
def test_a_folder_without_proof(tmp_path, name):
    folder = save(tiny_policy(30), tokenizer(), tmp_path / "model", probes=probes())
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"lacks {name}"):
        load_checked(folder)


def test_probes_need_responses(tmp_path):
    given = probes()
    given.response_mask[2] = False
    with pytest.raises(ValueError, match="every probe needs a response"):
        save(tiny_policy(30), tokenizer(), tmp_path / "model", probes=given)


def test_plain_tools_learn_the_padding_unless_it_is_the_end(tmp_path):
    model = score_model()
    save(model, tokenizer(), tmp_path / "model", probes=probes())
    assert json.loads((tmp_path / "model" / "config.json").read_text())["pad_token_id"] == 0
    save(score_model(), tokenizer(pad="<end>"), tmp_path / "same", probes=probes())
    assert json.loads((tmp_path / "same" / "config.json").read_text())["pad_token_id"] is None


@pytest.mark.parametrize("when", ["writing", "replacing"])
def test_a_full_disk_leaves_the_old_model(tmp_path, monkeypatch, when):
    target = tmp_path / "model"
    save(tiny_policy(30, seed=0), tokenizer(), target, probes=probes())
    before = digest(target)

    def full(*_):
        raise OSError(28, "No space left on device")

    if when == "writing":
        monkeypatch.setattr(module, "save_file", full)
    else:
        rename = module.Path.rename
        monkeypatch.setattr(module.Path, "rename", lambda s, t: full() if ".partial" in s.name else rename(s, t))
    with pytest.raises(RunError, match=r"cannot save to .*model.*No space left"):
        save(tiny_policy(30, seed=1), tokenizer(), target, probes=probes())
    assert digest(target) == before
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_saving_again_replaces(tmp_path):
    target = tmp_path / "model"
    save(tiny_policy(30, seed=0), tokenizer(), target, probes=probes())
    (target / "stale.txt").write_text("old")
    save(tiny_policy(30, seed=1), tokenizer(), target, probes=probes())
    assert not (target / "stale.txt").exists()
    load_checked(target)


def test_digest_covers_weights_tokenizer_and_configuration_and_nothing_else(tmp_path):
    folder = save(tiny_policy(30), tokenizer(), tmp_path / "model", probes=probes())
    first = digest(folder)
    (folder / "holdfast.json").write_text("{}")
    (folder / "README.md").write_text("a note")
    assert digest(folder) == first
    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b" ")
        assert digest(folder) != first, name
        (folder / name).write_bytes(content)
    assert digest(folder) == first


def test_digest_needs_a_model(tmp_path):
    with pytest.raises(UserError, match="no safetensors weights"):
        digest(tmp_path)
    with pytest.raises(UserError, match="no model folder"):
        digest(tmp_path / "nowhere")
