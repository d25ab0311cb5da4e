"""The value head: by a slow double loop, in whatever company a prompt is read, and as it comes back from a folder."""

import json
import math

import pytest
import torch

from holdfast.errors import UserError
from holdfast.models.value import CARD, WEIGHTS, ValueHead, network_digest

H = 24


def spoken(heads=4, seed=1, **options):
    """A head in evaluation mode that says something different of every prompt."""
    head = ValueHead(H, heads, **options).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in (head.last.weight, head.last.bias, head.attention.in_proj_bias, head.attention.out_proj.bias):
            weight.normal_(generator=generator)
    return head


def prompts(lengths=(5, 1, 3), seed=0, scale=1.0):
    """States (P, T, H) with rubbish on the padding, which stands on the right, and the padding."""
    states = scale * torch.randn(len(lengths), max(lengths), H, generator=torch.Generator().manual_seed(seed))
    return states, torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]


def slow(head, states):
    """V of one prompt (T, H), one head and one token at a time, in float64."""
    weight, bias = head.attention.in_proj_weight.detach().double(), head.attention.in_proj_bias.detach().double()
    query = weight[:H] @ head.query.detach().double() + bias[:H]
    keys = [weight[H : 2 * H] @ one + bias[H : 2 * H] for one in states.double()]
    values = [weight[2 * H :] @ one + bias[2 * H :] for one in states.double()]
    heads = head.attention.num_heads
    width, gathered = H // heads, []
    for k in range(heads):
        part = slice(k * width, (k + 1) * width)
        scores = [float(query[part] @ key[part]) / math.sqrt(width) for key in keys]
        total = sum(math.exp(score) for score in scores)
        gathered.append(sum(math.exp(score) / total * value[part] for score, value in zip(scores, values)))
    out = head.attention.out_proj
    pooled = out.weight.detach().double() @ torch.cat(gathered) + out.bias.detach().double()
    logit = float(head.last.weight.detach().double()[0] @ pooled) + float(head.last.bias.detach())
    return head.low + (head.high - head.low) / (1 + math.exp(-logit))


@pytest.mark.parametrize("heads, low, high", [(1, 0.0, 1.0), (4, 0.0, 5.0), (8, -2.0, 3.0)])
def test_a_value_is_that_of_the_formula(heads, low, high):
    head = spoken(heads, low=low, high=high)
    states, padding = prompts()
    found = head(states, padding).tolist()
    wanted = [slow(head, line[~hidden]) for line, hidden in zip(states, padding)]
    assert found == pytest.approx(wanted, abs=1e-6 * (high - low) * 2)
    assert max(wanted) - min(wanted) > 0.05 * (high - low)


@pytest.mark.parametrize("hidden, heads", [(64, 8), (24, 4)])
def test_number_of_parameters(hidden, heads):
    count = sum(weight.numel() for weight in ValueHead(hidden, heads).parameters())
    assert count == 4 * hidden**2 + 6 * hidden + 1
    assert count == {64: 16_769}.get(hidden, count)


def test_the_output_is_squeezed_into_the_range():
    head = ValueHead(H, 4, high=5.0).eval()
    with torch.no_grad():
        head.last.bias.fill_(0.4)
    assert head(*prompts()).tolist() == pytest.approx([2.993438] * 3, abs=1e-6)
    states, padding = prompts(scale=1e4)
    found = spoken(low=-1.0, high=2.0)(states, padding)
    assert bool(((found >= -1) & (found <= 2)).all())


def test_padding_order_and_batch_change_nothing():
    head = spoken()
    states, padding = prompts()
    found = head(states, padding)
    alone = [head(line[~hidden][None], hidden[~hidden][None])[0] for line, hidden in zip(states, padding)]
    torch.testing.assert_close(found, torch.stack(alone), rtol=0, atol=1e-6)
    order = [2, 0, 1]
    torch.testing.assert_close(head(states[order], padding[order]), found[order], rtol=0, atol=1e-6)
    more = torch.full((3, 4, H), 100.0)
    hidden = torch.ones(3, 4, dtype=torch.bool)
    right = head(torch.cat([states, more], 1), torch.cat([padding, hidden], 1))
    left = head(torch.cat([more, states], 1), torch.cat([hidden, padding], 1))
    torch.testing.assert_close(right, found, rtol=0, atol=1e-6)
    torch.testing.assert_close(left, found, rtol=0, atol=1e-6)


def test_states_of_half_precision_are_read_in_full():
    head = spoken()
    states, padding = prompts()
    half = states.bfloat16()
    wanted = head(half.float(), padding)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(half, padding)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


def test_dropout_acts_in_training_alone():
    head = spoken(dropout=0.5)
    states, padding = prompts()
    assert torch.equal(head(states, padding), head(states, padding))
    head.train()
    assert not torch.equal(head(states, padding), head(states, padding))


def test_a_head_begins_at_a_constant_and_can_learn_from_there():
    head = spoken(low=-1.0, high=3.0)
    head.begin_at(2.5)
    found = head(*prompts())
    assert found.tolist() == pytest.approx([2.5] * 3)
    found.sum().backward()
    assert float(head.last.weight.grad.abs().max()) > 0
    for given, said in ((-1.0, -0.96), (9.0, 2.96)):
        head.begin_at(given)
        assert head(*prompts()).tolist() == pytest.approx([said] * 3)


def test_equal_seeds_give_equal_heads_and_leave_the_global_state_alone():
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    one, two, other = ValueHead(H, 4), ValueHead(H, 4), ValueHead(H, 4, seed=1)
    assert torch.equal(torch.rand(1), wanted)
    assert one.digest == two.digest != other.digest


@pytest.mark.parametrize(
    "options, words",
    [
        ({"heads": 5}, "5 heads cannot share 24 hidden units"),
        ({"heads": 4, "low": 1.0, "high": 1.0}, "low below high, got 1 and 1"),
    ],
)
def test_impossible_heads_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        ValueHead(H, **options)


def test_other_shapes_and_empty_prompts_are_refused():
    head = spoken()
    states, padding = prompts()
    for wrong in ((states[..., 1:], padding), (states, padding[:, 1:]), (states, torch.ones_like(padding))):
        with pytest.raises(ValueError, match=r"states \(P, T, 24\) of at least one token each, got states \(3, 5"):
            head(*wrong)


def test_a_saved_head_comes_back(tmp_path):
    head = spoken(low=-1.0, high=4.0, dropout=0.3)
    (tmp_path / "config.json").write_text("a model's")
    assert head.save(tmp_path) == tmp_path
    back = ValueHead.load(tmp_path)
    assert not back.training
    assert back.facts == head.facts == {"hidden": H, "heads": 4, "low": -1.0, "high": 4.0, "dropout": 0.3}
    assert torch.equal(back(*prompts()), head(*prompts()))
    assert back.digest == head.digest
    assert (tmp_path / "config.json").read_text() == "a model's"


def change(path, **values):
    card = json.loads((path / CARD).read_text())
    (path / CARD).write_text(json.dumps(card | values))


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda path: (path / WEIGHTS).unlink(), f"lacks {WEIGHTS}"),
        (lambda path: (path / CARD).write_text("{"), "cannot be read"),
        (lambda path: (path / WEIGHTS).write_bytes(b"nothing"), "cannot be read"),
        (lambda path: change(path, hidden=48), "cannot be read"),
        (lambda path: change(path, colour="red"), "cannot be read"),
        (lambda path: change(path, high=2.0), "is not the one that was saved"),
        (lambda path: spoken(seed=2).save(path / "x") and (path / "x" / WEIGHTS).replace(path / WEIGHTS), "is not the"),
    ],
)
def test_a_damaged_head_is_refused(tmp_path, damage, words):
    spoken().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=words):
        ValueHead.load(tmp_path)


def test_the_digest_of_a_network_is_that_of_its_weights():
    network, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert network_digest(network) != network_digest(other)
    other.load_state_dict(network.state_dict())
    assert network_digest(network) == network_digest(other)
    assert network_digest(other.bfloat16()) != network_digest(network)
    assert network_digest(torch.nn.Sequential(network)) != network_digest(network)
    with torch.no_grad():
        network.bias[1] += 1e-6
    assert network_digest(network) != network_digest(other.float())
