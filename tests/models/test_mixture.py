import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from holdfast.data.context import CONTEXT
from holdfast.errors import UserError
from holdfast.models.adapters import AdapterSettings, with_adapter
from holdfast.models.heads import from_policy, load_score_model
from holdfast.models.load import ModelSettings, load_policy
from holdfast.models.mixture import (
    MixtureRewardModel,
    OneColumn,
    load_mixture,
    merged,
    mixture_from,
    save_head_card,
    with_backbone_adapter,
)
from holdfast.models.mixture_config import CONTEXT_TEMPLATE, MixtureRewardConfig
from holdfast.models.save import digest, load_checked, save
from holdfast.models.tiny import tiny_llava, tiny_policy

PAD, IMAGE = 0, 5
KINDS = ["llama", "qwen2", "llava"]
NAMES = ("clear", "kind", "short")
OWN = ["router.hidden.bias", "router.hidden.weight", "router.last.bias", "router.last.weight", "score.weight"]
PROMPTS = [[3, IMAGE, IMAGE, IMAGE, IMAGE, 6, 7], [9, IMAGE, IMAGE, IMAGE, IMAGE]]
ANSWERS = [[8, 11], [10, 12, 13]]
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def build(kind="llama", names=NAMES, *, policy=None, **settings):
    """A mixture whose router has learned something."""
    if policy is None:
        policy = tiny_llava(30, IMAGE) if kind == "llava" else tiny_policy(30, kind=kind)
    model = mixture_from(policy, names, init_std=0.5, **settings)
    last = model.router.logits if model.router.kind == "static" else model.router.last.weight
    with torch.no_grad():
        last.copy_(0.5 * torch.randn(last.shape, generator=torch.Generator().manual_seed(1)))
    return model


def rows(answers=ANSWERS, side="right", kind="llama", prompts=PROMPTS):
    """Prompts with answers, as `forward` takes them."""
    contents = [prompt + answer for prompt, answer in zip(prompts, answers)]
    width = max(map(len, contents))
    ids, mask = torch.full((len(contents), width), PAD), torch.zeros(len(contents), width, dtype=torch.long)
    for i, row in enumerate(contents):
        start = width - len(row) if side == "left" else 0
        ids[i, start : start + len(row)] = torch.tensor(row)
        mask[i, start : start + len(row)] = 1
    given = {"input_ids": ids, "attention_mask": mask, "prompt_lengths": torch.tensor([len(each) for each in prompts])}
    return given | ({"pixel_values": PIXELS[: len(ids)]} if kind == "llava" else {})


def facts(model, **given):
    """What a mixture says of rows, as one table (B, 3 K + 1)."""
    with torch.no_grad():
        said = model(**given)
    return torch.cat([said.logits, said.router_logits, said.weights, said.score[:, None]], dim=1)


def tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<end>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<pad>")


def probes(kind="llama"):
    given = rows(kind=kind)
    mask, width = given["attention_mask"], given["input_ids"].shape[1]
    columns = torch.arange(width)
    return SimpleNamespace(
        input_ids=given["input_ids"],
        attention_mask=mask,
        position_ids=columns.expand_as(mask),
        response_mask=mask.bool() & (columns >= given["prompt_lengths"][:, None]),
        score_index=mask.sum(-1) - 1,
        extra={"pixel_values": PIXELS} if kind == "llava" else {},
    )


def saved(model, folder, kind="llama"):
    return save(model, tokenizer(), folder, probes=probes(kind))


def without(file, *names):
    save_file({k: v for k, v in load_file(file).items() if k not in names}, file, metadata={"format": "pt"})


def edited(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind):
    model = build(kind)
    right, left = facts(model, **rows(kind=kind)), facts(model, **rows(side="left", kind=kind))
    # Attention kernels differ between masked and unmasked batches, hence more than 1e-6.
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5)
    for i in range(2):
        given = rows(ANSWERS[i : i + 1], kind=kind, prompts=PROMPTS[i : i + 1])
        given |= {"pixel_values": PIXELS[i : i + 1]} if kind == "llava" else {}
        torch.testing.assert_close(facts(model, **given), right[i : i + 1], rtol=0, atol=1e-5)
        del given["attention_mask"]
        torch.testing.assert_close(facts(model, **given), right[i : i + 1], rtol=0, atol=1e-5)


def test_every_number_by_hand():
    model = build(router="linear")
    model.set_standardisation(torch.tensor([1.0, -2.0, 0.5]), torch.tensor([2.0, 0.5, 4.0]))
    given = rows()
    hidden = model.model(given["input_ids"], attention_mask=given["attention_mask"]).last_hidden_state.tolist()
    said = model(**given)
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS)):
        phi, u = hidden[i][len(prompt) + len(answer) - 1], hidden[i][len(prompt) - 1]
        reward = [sum(w * x for w, x in zip(row, phi)) for row in model.score.weight.tolist()]
        logit = [sum(w * x for w, x in zip(row, u)) for row in model.router.last.weight.tolist()]
        weight = [math.exp(one) / sum(math.exp(other) for other in logit) for one in logit]
        score = sum(f * (r - m) / s for f, r, m, s in zip(weight, reward, [1.0, -2.0, 0.5], [2.0, 0.5, 4.0]))
        for name, expected in zip(("logits", "router_logits", "weights"), (reward, logit, weight)):
            assert said[name][i].tolist() == pytest.approx(expected, abs=1e-5)  # fp32, sums of 64 terms
        assert said.score[i].item() == pytest.approx(score, abs=1e-4)  # fp32, scaled up by 1 / 0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_no_answer_changes_its_own_weights(kind, side):
    model = build(kind)
    first = model(**rows(kind=kind, side=side))
    # Other tokens, and as many: the first token of an answer is what an index off by one would read.
    other = model(**rows([[14, 15], [16, 17, 18]], kind=kind, side=side))
    assert torch.equal(first.weights, other.weights)
    assert (first.logits - other.logits).abs().min() > 1e-4
    longer = model(**rows([[14, 15, 16, 17], [18]], kind=kind, side=side))
    torch.testing.assert_close(longer.weights, first.weights, rtol=0, atol=1e-6)
    question = model(**rows(kind=kind, side=side, prompts=[[*PROMPTS[0][:-1], 20], PROMPTS[1]]))
    assert (question.weights[0] - first.weights[0]).abs().max() > 1e-4
    assert torch.equal(question.weights[1], first.weights[1])


def test_a_picture_changes_rewards_and_weights_of_its_row():
    model, given = build("llava"), rows(kind="llava")
    before = facts(model, **given)
    after = facts(model, **given | {"pixel_values": torch.stack([PIXELS[0], PIXELS[1] + 1])})
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=1e-6)
    assert ((after[1] - before[1])[:9].abs() > 1e-6).all()


def test_score_index_says_which_token_is_scored():
    model, given = build(), rows()
    index = torch.tensor([8, 6])
    shorter = rows([ANSWERS[0], ANSWERS[1][:2]])
    torch.testing.assert_close(facts(model, **given, score_index=index), facts(model, **shorter), rtol=0, atol=1e-5)


@pytest.mark.parametrize("lengths", [[0, 5], [10, 5]])
def test_a_prompt_ends_before_what_is_scored(lengths):
    with pytest.raises(ValueError, match="do not end before the scored tokens"):
        build()(**rows() | {"prompt_lengths": torch.tensor(lengths)})


def test_the_router_must_know_where_the_prompt_ends():
    given = rows()
    del given["prompt_lengths"]
    with pytest.raises(UserError, match=r"a mlp router reads the last token of the prompt.*give prompt_lengths"):
        build()(**given)
    known = facts(build(), **given, router_logits=torch.tensor([1.0, 2.0, 3.0]))
    assert known[:, 6:9].tolist() == [pytest.approx([0.090031, 0.244728, 0.665241], abs=1e-6)] * 2
    static = build(router="static")
    assert static(**given).router_logits.tolist() == [static.router.logits.tolist()] * 2


def test_masking_takes_weight_and_nothing_else():
    model = build(names=("a", "b", "c", "d"))
    logits = torch.tensor([1, 0.5, -0.2, 0.3])
    plain = model(**rows(), router_logits=logits)
    assert plain.weights[0].tolist() == pytest.approx([0.415920, 0.252268, 0.125273, 0.206540], abs=1e-6)
    model.mask(["c"])
    masked = model(**rows(), router_logits=logits)
    assert masked.weights[0].tolist() == pytest.approx([0.475485, 0.288396, 0, 0.236119], abs=1e-6)
    assert masked.weights[0, 2] == 0
    assert torch.equal(masked.logits, plain.logits)
    torch.testing.assert_close(masked.score, (masked.weights * plain.logits).sum(-1), rtol=0, atol=1e-6)
    assert (model(**rows()).weights[:, 2] == 0).all(), "the router's own weights are masked too"
    model.mask([])
    assert torch.equal(model(**rows(), router_logits=logits).weights, plain.weights)


def test_what_cannot_be_masked():
    model = build()
    with pytest.raises(UserError, match="no head brief to mask; the heads are clear, kind, short"):
        model.mask(["brief"])
    with pytest.raises(UserError, match="all 3 heads are masked"):
        model.mask(["short", "clear", "kind"])
    assert model.config.masked_heads == []


def test_standardisation_needs_finite_numbers_that_vary():
    model = build()
    for mean, std in (([0.0, 1.0], [1.0] * 3), ([0.0] * 3, [1.0, math.nan, 1.0])):
        with pytest.raises(ValueError, match="needs 3 finite numbers"):
            model.set_standardisation(torch.tensor(mean), torch.tensor(std))
    with pytest.raises(UserError, match="the heads kind give every answer the same reward"):
        model.set_standardisation(torch.zeros(3), torch.tensor([1.0, 0.0, 1.0]))


def test_the_order_of_heads_means_nothing():
    model, other = build(router="linear"), build(router="linear", names=(NAMES[2], *NAMES[:2]))
    order = [2, 0, 1]
    model.set_standardisation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0]))
    other.set_standardisation(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([3.0, 1.0, 2.0]))
    with torch.no_grad():
        for mine, theirs in ((model.score, other.score), (model.router.last, other.router.last)):
            theirs.weight.copy_(mine.weight[order])
    for one in (model, other):
        one.mask(["kind"])
    torch.testing.assert_close(other(**rows()).score, model(**rows()).score, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind, router", [*((kind, "mlp") for kind in KINDS), ("llama", "static"), ("llama", "linear")])
def test_transformers_reads_it_back_bit_for_bit(kind, router, tmp_path):
    model = build(kind, router=router, router_hidden=16, context_template="{context}: {prompt}")
    model.mask(["kind"])
    model.set_standardisation(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.1, 1.2, 1.3]))
    model.config.stage = {"heads": "stage 1", "tau": 1.0}
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert isinstance(again, MixtureRewardModel)
    assert torch.equal(facts(again, **rows(kind=kind)), facts(model, **rows(kind=kind)))
    config = again.config
    assert (config.num_heads, config.num_labels, config.id2label[1]) == (3, 3, "kind")
    for name in ("head_names", "router_type", "router_hidden", "context_template", "stage", "masked_heads"):
        assert getattr(config, name) == getattr(model.config, name), name
    assert (config.reward_mean, config.reward_std) == (model.config.reward_mean, model.config.reward_std)
    assert hasattr(config, "vision_config") == (kind == "llava")


@pytest.mark.slow
def test_another_process_gives_identical_numbers(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    program = (
        "import sys, json, torch, holdfast.models.mixture\n"
        "from transformers import AutoModelForSequenceClassification\n"
        "model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])\n"
        "said = model(**{name: torch.tensor(value) for name, value in json.loads(sys.argv[2]).items()})\n"
        "print(json.dumps([said[name].tolist() for name in ('logits', 'weights', 'score')]))"
    )
    given = json.dumps({name: value.tolist() for name, value in rows().items()})
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), given], capture_output=True, text=True, check=True
    )
    said = model(**rows())
    assert json.loads(result.stdout) == [said[name].tolist() for name in ("logits", "weights", "score")]


@pytest.mark.parametrize("kind", KINDS)
def test_head_and_router_keep_float32_over_a_bfloat16_backbone(kind, tmp_path):
    model = build(kind)
    model.save_pretrained(tmp_path)
    half = load_mixture(ModelSettings(name=str(tmp_path), dtype="bfloat16"))
    own = {name: weight for name, weight in half.named_parameters() if not name.startswith("model.")}
    assert {weight.dtype for weight in half.model.parameters()} == {torch.bfloat16}
    assert sorted(own) == [
        "router.hidden.bias",
        "router.hidden.weight",
        "router.last.bias",
        "router.last.weight",
        "score.weight",
    ]
    for name, weight in own.items():
        assert torch.equal(weight, model.get_parameter(name)), name
    given = rows(kind=kind)
    if kind == "llava":
        given["pixel_values"] = given["pixel_values"].bfloat16()
    assert half(**given).score.dtype == torch.float32
    built = AutoModelForSequenceClassification.from_config(model.config, dtype=torch.bfloat16)
    assert (built.score.weight.dtype, built.router.last.weight.dtype) == (torch.float32, torch.float32)


def test_autocast_does_not_reach_the_heads():
    model, phi = build(), torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = model.rewards(phi)
    assert torch.equal(inside, model.rewards(phi))


def test_a_new_mixture_is_uniform_and_its_heads_differ():
    model = mixture_from(tiny_policy(30), NAMES, seed=3)
    torch.testing.assert_close(model(**rows()).weights, torch.full((2, 3), 1 / 3), rtol=0, atol=1e-6)
    first, second, third = model.score.weight
    assert min((first - second).abs().max(), (first - third).abs().max(), (second - third).abs().max()) > 0.01
    same, other = (mixture_from(tiny_policy(30), NAMES, seed=seed) for seed in (3, 4))
    for name in ("score.weight", "router.hidden.weight"):
        assert torch.equal(same.get_parameter(name), model.get_parameter(name))
        assert not torch.equal(other.get_parameter(name), model.get_parameter(name))
    assert CONTEXT_TEMPLATE == CONTEXT, "people who say nothing get one template, whatever they use"
    assert model.config.context_template == CONTEXT


def test_from_config_starts_uniform_with_other_heads():
    model = AutoModelForSequenceClassification.from_config(build().config).eval()
    torch.testing.assert_close(model(**rows()).weights, torch.full((2, 3), 1 / 3), rtol=0, atol=1e-6)
    assert not torch.equal(model.score.weight[0], model.score.weight[1])


@pytest.mark.parametrize("share", [False, True])
def test_the_policy_is_copied_or_shared(share):
    policy = tiny_policy(30)
    model = mixture_from(policy, NAMES, share=share)
    assert (model.model.norm.weight is policy.model.norm.weight) == share
    assert model.model is not policy.model


def test_a_score_model_can_be_the_base():
    model = mixture_from(from_policy(tiny_llava(30, IMAGE), ["reward"]).network, NAMES)
    assert model(**rows(kind="llava")).logits.shape == (2, 3)


def test_what_makes_no_mixture():
    policy = tiny_policy(10)
    with pytest.raises(UserError, match=r"at least two heads.*for one head train a reward model"):
        mixture_from(policy, ["only"])
    with pytest.raises(UserError, match="distinct names"):
        mixture_from(policy, ["a", "a"])
    with pytest.raises(UserError, match="heads that start equal stay equal"):
        mixture_from(policy, NAMES, init_std=0)
    with pytest.raises(UserError, match="before adding adapters"):
        mixture_from(with_adapter(policy, AdapterSettings()), NAMES)
    with pytest.raises(UserError, match=r"router_type: 'gate' is unknown; choose from static, linear, mlp"):
        mixture_from(tiny_policy(10), NAMES, router="gate")
    with pytest.raises(UserError, match=r"must hold \{context\} and \{prompt\} once each"):
        mixture_from(tiny_policy(10), NAMES, context_template="{prompt}")


def test_head_router_and_backbone_learn():
    model = build()
    model(**rows()).score.sum().backward()
    for name in ("score.weight", "router.hidden.weight", "router.last.bias", "model.layers.0.mlp.up_proj.weight"):
        assert model.get_parameter(name).grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_mixture_proves_itself(kind, tmp_path):
    model = build(kind)
    folder = saved(model, tmp_path / "model", kind)
    again = load_checked(folder)
    assert torch.equal(facts(again, **rows(kind=kind)), facts(model, **rows(kind=kind)))
    card = json.loads((folder / "holdfast.json").read_text())
    assert (card["kind"], card["names"]) == ("mixture", list(NAMES))
    said = model(**rows(kind=kind))
    expected = torch.cat([said.logits, said.weights, said.score[:, None]], dim=1)
    torch.testing.assert_close(torch.tensor(card["results"]), expected, rtol=0, atol=1e-5)
    assert again.config.get_text_config().pad_token_id == 0


@pytest.mark.parametrize("lost", ["score.weight", "router.last.bias", "router.hidden.weight", "model.norm.weight"])
def test_a_lost_part_is_an_error(lost, tmp_path):
    folder = saved(build(), tmp_path / "model")
    without(folder / "model.safetensors", lost)
    for load in (load_checked, AutoModelForSequenceClassification.from_pretrained):
        with pytest.raises(UserError, match=f"lack {lost}.*a head or router was lost"):
            load(folder)


def test_a_changed_part_is_an_error(tmp_path):
    folder = saved(build(), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    for name in ("score.weight", "router.last.weight"):
        changed = weights | {name: weights[name].flip(0).contiguous()}
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match="does not reproduce what it said"):
            load_checked(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"head_names": ["short", "kind", "clear"]}, r"saved with the scores \['clear', 'kind', 'short'\]"),
        ({"head_names": ["clear", "kind"]}, "there are 2 heads, but the configuration says .*'num_heads': 3"),
        ({"reward_std": [1.0]}, "there are 3 heads, but the configuration says .*'reward_std': 1"),
        ({"masked_heads": list(NAMES)}, "all 3 heads are masked"),
        ({"masked_heads": ["kind"]}, "does not reproduce what it said"),
        ({"reward_mean": [0.0, 0.0, 9.0]}, "does not reproduce what it said"),
        ({"router_type": "static"}, r"lack router\.logits"),
        ({"aggregation": "vote"}, "aggregation: 'vote' is unknown; choose from linear, tournament"),
        ({"router_feature": "first_answer_token"}, "router_feature: 'first_answer_token' is unknown"),
        ({"model_type": "llama"}, "not a mixture; load it as a score model"),
    ],
)
def test_a_damaged_configuration_is_an_error(changes, message, tmp_path):
    folder = saved(build(), tmp_path / "model")
    edited(folder / "config.json", **changes)
    with pytest.raises(UserError, match=message):
        load_checked(folder)


@pytest.fixture
def base(tmp_path):
    tiny_policy(30).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def lean(base, **settings):
    """A mixture that leaves its backbone where it is."""
    model = build(policy=load_policy(ModelSettings(name=str(base))), **settings)
    model.config.backbone_name_or_path = str(base)
    return model


def test_a_frozen_backbone_stays_where_it_is(base, tmp_path):
    model = lean(base)
    folder = saved(model, tmp_path / "model")
    assert sorted(load_file(folder / "model.safetensors")) == OWN
    for load in (load_checked, AutoModelForSequenceClassification.from_pretrained):
        again = load(folder)
        assert not again.training
        assert torch.equal(facts(again, **rows()), facts(model, **rows()))
    half = load_mixture(ModelSettings(name=str(folder), dtype="bfloat16"))
    assert (half.model.dtype, half.score.weight.dtype) == (torch.bfloat16, torch.float32)
    full = saved(build(policy=tiny_policy(30)), tmp_path / "full")
    assert torch.equal(facts(load_checked(full), **rows()), facts(model, **rows()))


def test_another_backbone_or_none_is_an_error(base, tmp_path):
    folder = saved(lean(base), tmp_path / "model")
    tiny_policy(30, seed=1).save_pretrained(base)
    for load in (load_checked, AutoModelForSequenceClassification.from_pretrained):
        with pytest.raises(UserError, match="are not those this mixture was trained on"):
            load(folder)
    base.rename(tmp_path / "moved")
    for load in (load_checked, AutoModelForSequenceClassification.from_pretrained):
        with pytest.raises(UserError, match=r"no model folder at .*base"):
            load(folder)
    tiny_policy(30).save_pretrained(tmp_path / "copy")
    edited(folder / "config.json", backbone_name_or_path=str(tmp_path / "copy"))
    assert torch.equal(facts(load_checked(folder), **rows()), facts(build(), **rows()))


def test_a_lean_file_that_lost_its_router_is_an_error(base, tmp_path):
    folder = saved(lean(base), tmp_path / "model")
    without(folder / "model.safetensors", "router.last.weight")
    with pytest.raises(UserError, match=r"lack router\.last\.weight"):
        load_checked(folder)


def test_a_trained_backbone_cannot_be_left_out(base, tmp_path):
    model = lean(base)
    with torch.no_grad():
        model.model.norm.weight.add_(1e-3)
    with pytest.raises(UserError, match=r"the backbone is not the one at .*base"):
        model.save_pretrained(tmp_path / "model")
    model.config.backbone_name_or_path = None
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(
        facts(load_mixture(ModelSettings(name=str(tmp_path / "model"))), **rows()), facts(model, **rows())
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_trained_and_merged(kind, tmp_path):
    policy = tiny_llava(30, IMAGE) if kind == "llava" else tiny_policy(30, kind=kind)
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    model = with_backbone_adapter(build(kind, policy=policy, share=True), AdapterSettings(rank=2))
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert {name.split(".")[0] for name in trainable} == {"model", "score", "router"}
    assert all("lora_" in name for name in trainable if name.startswith("model."))
    start = facts(model, **rows(kind=kind))
    optimizer = torch.optim.SGD([model.get_parameter(name) for name in trainable], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        said = model(**rows(kind=kind))
        (said.logits.square().mean() + said.router_logits.square().mean()).backward()
        optimizer.step()
    end = facts(model, **rows(kind=kind))
    assert (end - start).abs().max() > 0.1
    with pytest.raises(UserError, match=r"save merged\(model\) instead"):
        saved(model, tmp_path / "model", kind)
    whole = merged(model)
    # Base and update are added before the product instead of after it.
    torch.testing.assert_close(facts(whole, **rows(kind=kind)), end, rtol=0, atol=1e-4)
    again = load_checked(saved(whole, tmp_path / "model", kind))
    assert torch.equal(facts(again, **rows(kind=kind)), facts(whole, **rows(kind=kind)))
    assert torch.equal(facts(model, **rows(kind=kind)), end), "merging leaves the trained model alone"
    assert all(torch.equal(before[name], weight) for name, weight in policy.state_dict().items())
    with pytest.raises(UserError, match="no adapter, so there is nothing to merge"):
        merged(whole)


def test_a_mixture_is_also_a_score_model_with_k_scores(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    plain = load_score_model(ModelSettings(name=str(tmp_path), dtype="bfloat16"))
    assert plain.names == NAMES
    assert plain.network.router.last.weight.dtype == torch.float32
    exact = load_score_model(ModelSettings(name=str(tmp_path)))
    given = probes()
    scores = exact.scores(given.input_ids, given.attention_mask, given.position_ids, given.score_index)
    torch.testing.assert_close(scores, model(**rows()).logits, rtol=0, atol=1e-6)


def test_a_trainer_reads_one_column(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    reward = OneColumn(load_mixture(ModelSettings(name=str(tmp_path)))).train().eval()
    assert reward.config.num_labels == 1
    assert reward.config.name_or_path == str(tmp_path)
    assert reward.device == torch.device("cpu")
    reward.config.pad_token_id = PAD  # what GRPO trainers do before they tokenise for it
    with torch.inference_mode():
        assert torch.equal(reward(**rows()).logits[:, 0], model(**rows()).score)


def test_a_trainer_that_asks_for_one_label_is_told_how(base, tmp_path):
    for folder, model in (("full", build()), ("lean", lean(base))):
        model.save_pretrained(tmp_path / folder)
        with pytest.raises(UserError, match=r"3 heads cannot have num_labels=1.*put it into OneColumn"):
            AutoModelForSequenceClassification.from_pretrained(tmp_path / folder, num_labels=1)


def test_a_known_person_needs_no_prompt_lengths():
    model = build()
    model.set_standardisation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0]))
    person = torch.tensor([0.2, 0.3, 0.5])
    inputs = {name: value for name, value in rows().items() if name != "prompt_lengths"}
    reward = OneColumn(model, log_weights=person.log())
    column = reward(**inputs).logits
    assert column.shape == (2, 1)
    raw = model(**rows()).logits
    expected = 0.2 * (raw[:, 0] - 1) + 0.3 * (raw[:, 1] - 2) / 2 + 0.5 * (raw[:, 2] - 3) / 3
    torch.testing.assert_close(column[:, 0], expected, rtol=0, atol=1e-5)  # fp32, three scaled terms
    with pytest.raises(UserError, match="give prompt_lengths"):
        OneColumn(model)(**inputs)
    assert torch.equal(OneColumn(build(router="static"))(**inputs).logits[:, 0], build(router="static")(**inputs).score)


def test_a_person_must_fit_the_heads():
    model = build()
    with pytest.raises(UserError, match="one weight for each of the 3 heads"):
        OneColumn(model, torch.zeros(2))
    model.mask(["kind"])
    with pytest.raises(UserError, match="lies on masked heads"):
        OneColumn(model, torch.tensor([0.0, 1.0, 0.0]).log())


def test_a_head_card_is_a_note(tmp_path):
    folder = saved(build(), tmp_path / "model")
    before = digest(folder)
    card = {"heads": {"kind": {"accuracy": 0.8}}, "masked": []}
    assert json.loads(save_head_card(folder, card).read_text()) == card
    assert digest(folder) == before
    load_checked(folder)
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_head_card(folder, {"accuracy": math.nan})
    assert json.loads((folder / "head_card.json").read_text()) == card


def test_where_the_policy_lay_is_not_part_of_the_mixture(base, tmp_path):
    here = saved(build(policy=load_policy(ModelSettings(name=str(base)))), tmp_path / "here")
    base = base.rename(tmp_path / "elsewhere")
    there = saved(build(policy=load_policy(ModelSettings(name=str(base)))), tmp_path / "there")
    assert digest(here) == digest(there)
    assert str(tmp_path) not in (there / "config.json").read_text()


def test_a_configuration_without_facts_is_complete():
    config = MixtureRewardConfig()
    assert (config.num_heads, config.reward_std, config.masked_heads, config.stage) == (2, [1.0, 1.0], [], {})
