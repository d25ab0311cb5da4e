import pytest
import torch

from holdfast.errors import UserError
from holdfast.models.adapters import AdapterSettings, with_adapter
from holdfast.models.policy import hidden_states, logprobs_at
from holdfast.models.tiny import tiny_llava, tiny_policy
from holdfast.models.trunk import HeadsOnPolicy

STREAMS = ("value", "value/harm")
IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 0, 0], [11, 12, 13, 14, 0], [15, 3, 9, 2, 2]])
MASK = torch.tensor([[1] * 5, [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1] * 5])
POSITIONS = (MASK.cumsum(-1) - 1).clamp(min=0)
RESPONSE = MASK.bool() & (POSITIONS >= 2)
MICRO = [torch.tensor([0, 2]), torch.tensor([1, 3])]


def build(adapted=True, heads=True):
    policy = tiny_policy(30)
    if adapted:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            policy = with_adapter(policy, AdapterSettings(rank=2)).eval()
    critic = HeadsOnPolicy(policy, STREAMS)
    if heads:
        with torch.no_grad():
            critic.head.weight.normal_(generator=torch.Generator().manual_seed(1))
            critic.head.bias.normal_(generator=torch.Generator().manual_seed(2))
    return policy, critic


def weights_of(module):
    return {name: weight.clone() for name, weight in module.state_dict().items()}


def adamw(module, lr):
    return torch.optim.AdamW([weight for weight in module.parameters() if weight.requires_grad], lr=lr)


def value_loss(values, rows):
    target = torch.tensor([1.0, -2.0])
    return (values[RESPONSE[rows]] - target).square().sum()


def test_a_value_is_the_head_times_the_policys_state():
    policy, critic = build()
    hidden = policy.get_base_model().model(input_ids=IDS, attention_mask=MASK, position_ids=POSITIONS).last_hidden_state
    values = critic.token_values(IDS, MASK, POSITIONS)
    assert values.shape == (4, 5, 2)
    assert critic.names == STREAMS
    for k in range(2):
        weights, bias = critic.head.weight[k].tolist(), critic.head.bias[k].item()
        for t in range(5):
            expected = bias + sum(h * w for h, w in zip(hidden[0, t].tolist(), weights))
            assert values[0, t, k].item() == pytest.approx(expected, abs=1e-5)  # fp32, 64 terms


def test_values_start_at_zero():
    _, critic = build(heads=False)
    assert (critic.token_values(IDS, MASK, POSITIONS) == 0).all()


def test_images_reach_the_values():
    critic = HeadsOnPolicy(tiny_llava(30, image_token_id=5), ["value"])
    with torch.no_grad():
        critic.head.weight.fill_(1.0)
    ids = torch.tensor([[3, 5, 5, 5, 5, 6]])
    mask, positions = torch.ones_like(ids), torch.arange(6)[None]
    one, other = (
        critic.token_values(ids, mask, positions, pixel_values=pixels)
        for pixels in (torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16))
    )
    assert (one[0, -1] != other[0, -1]).all()


def test_only_the_heads_are_the_critics():
    policy, critic = build()
    assert dict(critic.named_parameters()).keys() == critic.state_dict().keys() == {"head.weight", "head.bias"}
    policy.train()
    critic.eval()
    assert policy.training, "the policy's mode is its own business"
    fresh = HeadsOnPolicy(policy, STREAMS)
    fresh.load_state_dict(critic.state_dict())
    policy.eval()
    assert torch.equal(fresh.token_values(IDS, MASK, POSITIONS), critic.token_values(IDS, MASK, POSITIONS))


@pytest.mark.parametrize("adapted", [False, True])
def test_no_gradient_reaches_the_policy(adapted):
    policy, critic = build(adapted)
    hidden = hidden_states(policy, IDS, MASK, POSITIONS)
    assert hidden.requires_grad
    critic.remember("batch", hidden)
    for values in (critic.token_values(IDS, MASK, POSITIONS), critic.values_at(hidden), critic.recall("batch")):
        critic.zero_grad()
        values.square().sum().backward()
        assert critic.head.weight.grad.abs().sum() > 0
        assert all(weight.grad is None for weight in policy.parameters())


def test_dropout_of_a_learning_policy_does_not_shake_the_values():
    policy = with_adapter(tiny_policy(30), AdapterSettings(rank=2, dropout=0.5))
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.1)
    critic = HeadsOnPolicy(policy.train(), STREAMS)
    with torch.no_grad():
        critic.head.weight.fill_(1.0)
    first, second = (critic.token_values(IDS, MASK, POSITIONS) for _ in range(2))
    assert torch.equal(first, second)
    assert policy.training


def test_heads_stay_in_float32_over_a_bfloat16_policy():
    critic = HeadsOnPolicy(tiny_policy(30).bfloat16(), STREAMS)
    assert critic.head.weight.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert critic.token_values(IDS, MASK, POSITIONS).dtype == torch.float32


def step_remembered(policy, critic, batches, optimizers):
    """Policy first, which hands over its states; then the heads."""
    for rows in batches:
        hidden = hidden_states(policy, IDS[rows], MASK[rows], POSITIONS[rows])
        critic.remember(rows, hidden)
        (-logprobs_at(policy, hidden, IDS[rows], RESPONSE[rows]).sum()).backward()
    optimizers["policy"].step()
    for rows in batches:
        value_loss(critic.recall(rows), rows).backward()
    optimizers["critic"].step()


def step_plain(policy, critic, batches, optimizers):
    """Heads first, from forward passes of their own; then the policy."""
    for rows in batches:
        value_loss(critic.token_values(IDS[rows], MASK[rows], POSITIONS[rows]), rows).backward()
    optimizers["critic"].step()
    for rows in batches:
        hidden = hidden_states(policy, IDS[rows], MASK[rows], POSITIONS[rows])
        (-logprobs_at(policy, hidden, IDS[rows], RESPONSE[rows]).sum()).backward()
    optimizers["policy"].step()


@pytest.mark.parametrize("adapted", [False, True])
def test_remembered_states_change_no_bit_of_any_step(adapted):
    found = []
    for step in (step_remembered, step_plain):
        policy, critic = build(adapted)
        optimizers = {"policy": adamw(policy, 1e-2), "critic": adamw(critic, 1e-1)}
        trace = []
        for _ in range(3):
            step(policy, critic, MICRO, optimizers)
            for optimizer in optimizers.values():
                optimizer.zero_grad()
            trace.append({**weights_of(policy), **weights_of(critic)})
        found.append(trace)
    for one, other in zip(*found):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(found[0][0]["head.weight"], found[0][2]["head.weight"])


def test_states_are_recalled_once_and_only_by_their_own_batch():
    _, critic = build()
    batch, twin = [1, 2], [1, 2]
    assert critic.recall(batch) is None
    states = torch.randn(2, 2, 3, 64, generator=torch.Generator().manual_seed(0))
    critic.remember(batch, states[0])
    critic.remember(twin, states[1])
    assert torch.equal(critic.recall(batch), critic.values_at(states[0]))
    assert torch.equal(critic.recall(twin), critic.values_at(states[1]))
    assert critic.recall(batch) is None


def test_a_batch_that_is_gone_leaves_no_states_to_a_newcomer():
    """An identity number is free again once its object is gone, unless the object is held."""
    _, critic = build()
    for _ in range(50):
        critic.remember([0], torch.zeros(1, 1, 64))
    assert all(critic.recall([0]) is None for _ in range(50))


def test_names_must_be_distinct():
    with pytest.raises(UserError, match="distinct names"):
        HeadsOnPolicy(tiny_policy(10), ["value", "value"])
