import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from holdfast.errors import UserError
from holdfast.models.adapters import AdapterSettings
from holdfast.models.heads import (
    ScoreModel,
    critic_from,
    freeze_backbone,
    from_policy,
    load_score_model,
    with_score_adapter,
)
from holdfast.models.load import ModelSettings
from holdfast.models.policy import response_logprobs
from holdfast.models.scales import read_scales
from holdfast.models.tiny import tiny_llava, tiny_policy

PAD, IMAGE = 0, 5
CONTENTS = [[3, IMAGE, IMAGE, IMAGE, IMAGE, 6, 7, 8], [9, IMAGE, IMAGE, IMAGE, IMAGE, 10]]
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
KINDS = ["llama", "qwen2", "llava"]


def build(kind, names=("help", "harm"), **settings):
    policy = tiny_llava(30, IMAGE) if kind == "llava" else tiny_policy(30, kind=kind)
    return from_policy(policy, names, init_std=0.5, **settings)


def images(kind, pixels=PIXELS):
    return {"pixel_values": pixels} if kind == "llava" else {}


def rows(contents, side="right"):
    """The four arguments of `scores`; the score is read at the last token."""
    width = max(map(len, contents))
    ids, mask = torch.full((len(contents), width), PAD), torch.zeros(len(contents), width, dtype=torch.long)
    for i, row in enumerate(contents):
        start = width - len(row) if side == "left" else 0
        ids[i, start : start + len(row)] = torch.tensor(row)
        mask[i, start : start + len(row)] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return ids, mask, positions, (mask * torch.arange(width)).argmax(-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_score(kind, side):
    model = build(kind)
    together = model.scores(*rows(CONTENTS, side), **images(kind))
    assert together.shape == (2, 2)
    for i, content in enumerate(CONTENTS):
        alone = model.scores(*rows([content]), **images(kind, PIXELS[i : i + 1]))
        # Attention kernels differ between masked and unmasked batches, hence more than 1e-6.
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_rows_is_order_of_scores(kind):
    model = build(kind)
    forth = model.scores(*rows(CONTENTS), **images(kind))
    back = model.scores(*rows(CONTENTS[::-1]), **images(kind, PIXELS.flip(0)))
    torch.testing.assert_close(forth.flip(0), back, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_score_is_the_head_times_the_state_at_the_index(kind):
    model = build(kind)
    ids, mask, positions, index = rows(CONTENTS)
    hidden = model.network.base_model(
        input_ids=ids, attention_mask=mask, position_ids=positions, **images(kind)
    ).last_hidden_state
    values = model.token_values(ids, mask, positions, **images(kind))
    assert values.shape == (*ids.shape, 2)
    for i in range(2):
        for k in range(2):
            for t in range(ids.shape[1]):
                expected = sum(h * w for h, w in zip(hidden[i, t].tolist(), model.head.weight[k].tolist()))
                assert float(values[i, t, k].detach()) == pytest.approx(expected, abs=1e-5)  # fp32, 64 terms
    scores = model.scores(ids, mask, positions, index, **images(kind))
    torch.testing.assert_close(scores, torch.stack([values[0, 7], values[1, 5]]), rtol=0, atol=1e-6)


def test_changing_only_the_image_changes_only_its_row():
    model = build("llava")
    changed = PIXELS.clone()
    changed[1] += 1
    before, after = (model.scores(*rows(CONTENTS), pixel_values=pixels) for pixels in (PIXELS, changed))
    torch.testing.assert_close(before[0], after[0], rtol=0, atol=1e-6)
    assert (before[1] - after[1]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_plain_transformers_computes_the_same_scores(kind, tmp_path):
    model = build(kind, names=("help", "harm", "tone"))
    model.config.pad_token_id = PAD
    model.save_pretrained(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids, mask, positions, index = rows(CONTENTS)
    with torch.no_grad():
        theirs = plain(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(model.scores(ids, mask, positions, index), theirs, rtol=0, atol=1e-6)
    assert plain.config.id2label == {0: "help", 1: "harm", 2: "tone"}


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_again_it_is_the_same(kind, tmp_path):
    model = build(kind)
    model.save_pretrained(tmp_path)
    again = load_score_model(ModelSettings(name=str(tmp_path)))
    arguments = rows(CONTENTS)
    assert again.names == ("help", "harm")
    assert torch.equal(model.scores(*arguments, **images(kind)), again.scores(*arguments, **images(kind)))


def test_a_padding_id_inside_the_text_moves_nothing():
    model = build("llama")
    model.config.pad_token_id = 8  # the last token of the first row
    ids, mask, positions, index = rows(CONTENTS)
    expected = model.token_values(ids, mask, positions)[0, 7]
    torch.testing.assert_close(model.scores(ids, mask, positions, index)[0], expected, rtol=0, atol=1e-6)


def test_a_score_model_is_a_copy_of_the_policy():
    policy = tiny_policy(30)
    model = from_policy(policy, ["reward"])
    assert (model.scores(*rows(CONTENTS)) == 0).all(), "a new head is zero"
    before = {name: weight.clone() for name, weight in policy.named_parameters()}
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    assert all(torch.equal(before[name], weight) for name, weight in policy.named_parameters())


def test_a_critic_may_start_from_any_of_several_scores():
    both = from_policy(tiny_policy(64, hidden=16, heads=2, layers=1), ("reward", "cost"), init_std=1.0)
    critic = critic_from(both, ("value/harm", "value/harm^2"), "cost")
    assert torch.equal(critic.head.weight[0], both.head.weight[1])
    assert critic.head.weight[1].eq(0).all()
    assert torch.equal(critic_from(both, ("value",)).head.weight[0], both.head.weight[0])


def test_a_critic_starts_from_the_scores_and_then_goes_its_own_way(tmp_path):
    model = build("llama", names=("reward",))
    critic = critic_from(model)
    ids, mask, positions, _ = rows(CONTENTS)
    values = critic.token_values(ids, mask, positions)
    assert torch.equal(values, model.token_values(ids, mask, positions))
    critic.save_pretrained(tmp_path)
    plain = AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        theirs = plain(input_ids=ids, attention_mask=mask).logits
        critic.head.weight.zero_()
    real = mask.bool()
    torch.testing.assert_close(values[real], theirs[real], rtol=0, atol=1e-6)
    assert model.head.weight.abs().sum() > 0


def storage(*models):
    """Bytes of all parameters, each counted once however many networks hold it."""
    every = {weight.data_ptr(): weight.nbytes for model in models for weight in model.parameters()}
    return sum(every.values())


def learn(model, arguments, steps=2, **extra):
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        (model.token_values(*arguments, **extra) - 1).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_a_critic_of_an_adapted_score_model_costs_one_more_adapter(kind):
    policy = tiny_llava(30, IMAGE) if kind == "llava" else tiny_policy(30, kind=kind)
    score = from_policy(policy, ["reward", "harm"], init_std=0.5, share=True)
    score = with_score_adapter(score, AdapterSettings(rank=2))
    *arguments, index = rows(CONTENTS)
    learn(score, arguments, **images(kind))
    before = storage(policy, score)
    critic = critic_from(score)
    trainable = sum(weight.nbytes for weight in critic.parameters() if weight.requires_grad)
    assert storage(policy, score, critic) - before == trainable
    assert trainable < 0.3 * storage(policy)

    start = score.scores(*arguments, index, **images(kind)).detach()
    assert torch.equal(critic.scores(*arguments, index, **images(kind)), start)
    learn(critic, arguments, **images(kind))
    assert not torch.equal(critic.scores(*arguments, index, **images(kind)), start)
    assert torch.equal(score.scores(*arguments, index, **images(kind)), start), "the scores stay what they were"


def test_a_critic_copies_what_learns_and_shares_what_is_frozen():
    free, frozen = build("llama"), freeze_backbone(build("llama"))
    assert storage(free, critic_from(free)) == 2 * storage(free)
    assert storage(frozen, critic_from(frozen)) == storage(frozen) + frozen.head.weight.nbytes


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", ["llama", "llava"])
def test_a_critic_predicts_the_streams_it_is_given(kind, adapted, tmp_path):
    policy = tiny_llava(30, IMAGE) if kind == "llava" else tiny_policy(30, kind=kind)
    policy.save_pretrained(tmp_path / "base")
    policy.name_or_path = policy.config.name_or_path = str(tmp_path / "base")
    model = from_policy(policy, ["help", "harm"], init_std=0.5)
    if adapted:
        model = with_score_adapter(model, AdapterSettings(rank=2))
    streams = ("value", "value/harm", "value/harm^2")
    critic = critic_from(model, streams)
    assert (critic.names, critic.config.num_labels, model.names) == (streams, 3, ("help", "harm"))
    *arguments, _ = rows(CONTENTS)
    values, scores = (one.token_values(*arguments, **images(kind)) for one in (critic, model))
    torch.testing.assert_close(values[..., 0], scores[..., 0], rtol=0, atol=1e-6)
    assert values.shape[-1] == 3
    assert (values[..., 1:] == 0).all()
    learn(critic, arguments, **images(kind))
    values = critic.token_values(*arguments, **images(kind))
    assert (values[..., 1:] != 0).all(), "every value learns"

    critic.save_pretrained(tmp_path / "critic")
    again = load_score_model(ModelSettings(name=str(tmp_path / "critic")))
    assert again.names == streams
    assert torch.equal(again.token_values(*arguments, **images(kind)), values)


def test_the_base_under_a_critics_adapter_has_a_head_of_the_same_rows():
    model = with_score_adapter(build("llama"), AdapterSettings(rank=2))
    critic = critic_from(model, ("value", "value/harm", "value/tone"))
    with critic.network.disable_adapter():
        assert critic.token_values(*rows(CONTENTS)[:3]).shape[-1] == 3


def test_a_critic_of_values_forgets_what_scores_mean():
    model = build("llama", names=("harm",))
    model.config.score_scales = [{"name": "harm", "low": 0.0, "high": 3.0, "higher_is_better": False}]
    model.config.score_borders = [0.0, 1.0]
    model = ScoreModel(model.network)
    critic = critic_from(model, ("value/harm",))
    assert read_scales(critic.config, critic.names) == {}
    assert critic.borders is None
    assert ScoreModel(critic.network).borders is None
    assert model.borders is not None
    assert list(read_scales(model.config, model.names)) == ["harm"]


def test_the_head_keeps_float32_over_a_bfloat16_backbone(tmp_path):
    model = build("qwen2")
    model.save_pretrained(tmp_path)
    half = load_score_model(ModelSettings(name=str(tmp_path), dtype="bfloat16"))
    assert next(half.parameters()).dtype == torch.bfloat16
    assert torch.equal(half.head.weight, model.head.weight)
    arguments = rows(CONTENTS)
    assert half.scores(*arguments).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.scores(*arguments).dtype == torch.float32


@pytest.mark.parametrize("names", [[], ["help", "help"]])
def test_names_must_be_distinct(names):
    with pytest.raises(UserError, match="distinct names"):
        from_policy(tiny_policy(10), names)
    with pytest.raises(UserError, match="distinct names"):
        critic_from(build("llama"), names)


def test_a_policy_folder_is_no_score_model(tmp_path):
    tiny_policy(10).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lack 1 weights.*score.weight.*head lost"):
        load_score_model(ModelSettings(name=str(tmp_path)))
    (tmp_path / "vision").mkdir()
    tiny_llava(10, 5).save_pretrained(tmp_path / "vision")
    with pytest.raises(UserError, match=r"lost head.*score_head.safetensors"):
        load_score_model(ModelSettings(name=str(tmp_path / "vision")))


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_policy_share_one_base(kind):
    policy = tiny_llava(30, IMAGE) if kind == "llava" else tiny_policy(30, kind=kind)
    reward, cost = (
        with_score_adapter(from_policy(policy, [name], init_std=0.5, share=True), AdapterSettings(rank=2))
        for name in ("reward", "cost")
    )
    everything = [weight for model in (policy, reward, cost) for weight in model.parameters()]
    distinct = {weight.data_ptr(): weight.numel() for weight in everything}
    assert sum(distinct.values()) < 1.3 * sum(weight.numel() for weight in policy.parameters())

    arguments, response = rows(CONTENTS), torch.tensor([[False] * 5 + [True] * 3, [False] * 8])
    before = response_logprobs(policy, *arguments[:3], response, **images(kind))
    other = cost.scores(*arguments, **images(kind))
    trained = [weight for weight in reward.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    start = reward.scores(*arguments, **images(kind)).detach()
    for _ in range(2):
        optimizer.zero_grad()
        reward.scores(*arguments, **images(kind)).square().sum().backward()
        optimizer.step()
    assert not torch.equal(reward.scores(*arguments, **images(kind)), start)
    assert torch.equal(cost.scores(*arguments, **images(kind)), other)
    assert torch.equal(response_logprobs(policy, *arguments[:3], response, **images(kind)), before)


def test_an_adapted_policy_gives_no_base():
    from holdfast.models.adapters import with_adapter

    with pytest.raises(UserError, match="before adding adapters"):
        from_policy(with_adapter(tiny_policy(10), AdapterSettings()), ["reward"])
