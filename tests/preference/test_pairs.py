"""Pairs read together: scores and gradients with a shared prompt, when it is shared, and what rows say they take."""

import warnings
from dataclasses import replace

import pytest
import torch

from holdfast.data.images import Pixels
from holdfast.data.schema import Conversation, DualPair
from holdfast.data.template import Encoded, Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.engine.supervised import cut
from holdfast.models.adapters import AdapterSettings
from holdfast.models.heads import from_policy, with_score_adapter
from holdfast.models.tiny import tiny_llava, tiny_policy
from holdfast.preference import pairs
from holdfast.preference.pairs import PairForward, PairRow, collate_pairs, helpful_rows, sides
from holdfast.preference.tasks import CostSettings, CostTask, RewardSettings, RewardTask

PAD, IMAGE, VOCABULARY = 0, 5, 30


def encoded(prompt, answer, images=()):
    ids = [*prompt, *answer]
    mask = [False] * len(prompt) + [True] * len(answer)
    return Encoded(ids, mask, mask, len(ids) - 1, len(prompt), list(images))


def row(prompt, first, second, **more):
    return PairRow("row", encoded(prompt, first), encoded(prompt, second), **more)


ROWS = [
    row([7, 8, 9, 10, 11, 12], [20, 21, 22], [23]),
    row([13, 14, 15], [21, 21], [21, 24, 25, 26]),
    row([16, 17, 18, 19], [22], [27]),
]
DISTINCT = [row([], [7, 8, 9], [10, 11, 12])]


def model_of(kind="llama", names=("score", "other"), seed=0):
    policy = tiny_policy(VOCABULARY, hidden=16, kind="llama" if kind == "lora" else kind, seed=seed)
    model = from_policy(policy, names, init_std=0.5)
    if kind != "lora":
        return model
    model = with_score_adapter(model, AdapterSettings(rank=2))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5, generator=torch.Generator().manual_seed(1))
    return model


def watched(model):
    """A list that grows by the number of tokens of each pass through the backbone."""
    tokens = []
    embedding = next(module for module in model.modules() if isinstance(module, torch.nn.Embedding))
    embedding.register_forward_hook(lambda module, inputs, output: tokens.append(inputs[0].numel()))
    return tokens


def gradients(model, scores):
    model.zero_grad()
    (torch.cat(scores) * torch.arange(1.0, 13.0).reshape(6, 2)).tanh().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "lora"])
def test_scores_and_gradients_are_those_of_the_plain_pass(kind):
    model, batch = model_of(kind), collate_pairs(ROWS, PAD)
    forward = PairForward(model)
    plain = sides(model, batch)
    wanted = gradients(model, plain)
    forward(batch)
    tokens = watched(model)
    shared = forward(batch)
    assert tokens == [3 * 10], "three lines as long as the first pair: 6 + 3 + 1"
    found = gradients(model, shared)
    # Sums in another order.
    torch.testing.assert_close(torch.cat(shared), torch.cat(plain), rtol=0, atol=1e-5)
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-4 * float(wanted[name].abs().max()))


def test_sides_keep_their_order():
    model = model_of()
    forth = PairForward(model)(collate_pairs(ROWS, PAD))
    turned = [replace(one, first=one.second, second=one.first) for one in ROWS[::-1]]
    back = PairForward(model)(collate_pairs(turned, PAD))
    torch.testing.assert_close(torch.cat(back), torch.cat(forth[::-1]).reshape(2, 3, 2).flip(1).reshape(6, 2))


def test_what_does_not_pay_or_is_switched_off_is_read_plainly():
    model = model_of()
    tokens = watched(model)
    PairForward(model)(collate_pairs(DISTINCT, PAD))
    PairForward(model, "off")(collate_pairs(ROWS, PAD))
    assert tokens == [6, 6 * 9]


@pytest.mark.parametrize(("prompt", "shares"), [(2, False), (3, True)])
def test_the_gate_is_a_ratio_of_tokens(prompt, shares):
    """Answers of six tokens: 16 over 14 = 1.14 is too little, 18 over 15 = 1.2 is enough."""
    start = list(range(7, 7 + prompt))
    batch = collate_pairs([row(start, [20] * 6, [21] * 6)], PAD)
    assert (PairForward(model_of())._layout(batch) is not None) == shares


def test_the_first_pass_is_compared_once_and_a_difference_ends_sharing(monkeypatch):
    model, batch = model_of(), collate_pairs(ROWS, PAD)
    tokens = watched(model)
    PairForward(model)(batch)
    assert tokens == [54, 30, 30], "the plain pass, the shared one, and the one that counts"
    original = pairs.SharedRows.inputs
    # A family that attends by columns instead of positions.
    monkeypatch.setattr(
        pairs.SharedRows,
        "inputs",
        lambda self, network: original(self, network) | {"position_ids": torch.arange(10).expand(self.input_ids.shape)},
    )
    # A new head gives zeros either way; the states tell.
    with torch.no_grad():
        model.head.weight.zero_()
    bad = PairForward(model)
    with pytest.warns(UserWarning, match=r"changes the states of this llama by .* so pairs are read one by one"):
        scores = bad(batch)
    torch.testing.assert_close(torch.cat(scores), torch.cat(sides(model, batch)))
    tokens.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bad(batch)
    assert tokens == [54]


def test_dropout_does_not_disturb_the_comparison():
    model = with_score_adapter(model_of(), AdapterSettings(rank=2, dropout=0.5)).train()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    forward = PairForward(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        forward(collate_pairs(ROWS, PAD))
    tokens = watched(model)
    forward(collate_pairs(ROWS, PAD))
    assert tokens == [30]
    assert model.network.training


@pytest.mark.parametrize(("dtype", "accepted"), [(torch.float32, False), (torch.bfloat16, True)])
def test_each_precision_is_compared_with_its_own_measure(monkeypatch, dtype, accepted):
    """One per cent is rounding for numbers of 8 bits, and a mistake for numbers of 24."""
    model = model_of().to(dtype)
    model.head.float()
    original = pairs.SharedRows.at
    monkeypatch.setattr(pairs.SharedRows, "at", lambda self, values, index: 1.01 * original(self, values, index))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        PairForward(model)(collate_pairs(ROWS, PAD))
    assert (caught == []) == accepted


@pytest.mark.parametrize("same", [True, False])
def test_an_image_of_both_answers_is_read_once_and_different_images_never(same):
    model = from_policy(tiny_llava(VOCABULARY, IMAGE), ("score",), init_std=0.5)
    pixels = torch.randn(4, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    prompts = [[3, IMAGE, IMAGE, IMAGE, IMAGE, 6], [9, 8, IMAGE, IMAGE, IMAGE, IMAGE]]

    def side(i, k):
        image = Picture(pixels[i if same else i + 2 * k])
        return encoded(prompts[i], [20 + i + k, 22], [image])

    batch = collate_pairs([PairRow(str(i), side(i, 0), side(i, 1)) for i in range(2)], PAD)
    seen = []
    model.network.base_model.vision_tower.register_forward_hook(
        lambda module, inputs, output: seen.append(output.last_hidden_state.shape[0])
    )
    shared, plain = PairForward(model)(batch), sides(model, batch)
    assert seen == ([4, 2, 2, 4] if same else [4, 4])
    # Sums in another order.
    torch.testing.assert_close(torch.cat(shared), torch.cat(plain), rtol=0, atol=1e-5)


class Picture(Pixels):
    """Pixels that are there already."""

    def __init__(self, values):
        object.__setattr__(self, "values", values)

    def tensors(self):
        return {"pixel_values": self.values}


def test_a_row_says_what_stands_in_the_batch():
    forward = PairForward(model_of())
    assert [one.length for one in ROWS] == [18, 14, 10]
    # The second pair's answers begin alike: 3 + 1 tokens once, then 1 and 3.
    assert [one.length for one in forward.budgeted(ROWS)] == [10, 8, 6]
    assert [one.length for one in PairForward(model_of(), "off").budgeted(ROWS)] == [18, 14, 10]
    assert forward.budgeted([]) == []
    for part in cut(forward.budgeted(ROWS), 20):
        layout = forward._layout(collate_pairs(part, PAD))
        assert layout is not None
        assert layout.part.numel() == len(part) * part[0].length <= 20


def test_equal_answers_read_the_shared_state():
    model = model_of()
    first, second = PairForward(model)(collate_pairs([row([7, 8, 9], [20, 21], [20, 21])], PAD))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_margins_reach_the_batch():
    template = Template(train_tokenizer(["a b c d"], 64, "word"), max_length=16)
    prompt = Conversation.ask("a b")
    given = [
        DualPair(id=str(margin), prompt=prompt, responses=("c", "d"), helpful_id=1, margin=margin)
        for margin in (0.5, None)
    ]
    assert collate_pairs(helpful_rows(given, template), template.pad_id).margin.tolist() == [0.5, 0.0]


@pytest.mark.parametrize(("task", "settings"), [(RewardTask, RewardSettings), (CostTask, CostSettings)])
def test_tasks_share_unless_told_otherwise(task, settings):
    model = model_of(names=("score",))
    auto, off = (task(model, PAD, settings(share_prompt=share)) for share in ("auto", "off"))
    batch = auto.collate(ROWS)
    tokens = watched(model)
    scores = [torch.stack(one.sides(batch)) for one in (auto, off)]
    assert tokens == [54, 30, 30, 54]
    # Sums in another order.
    torch.testing.assert_close(*scores, rtol=0, atol=1e-5)
