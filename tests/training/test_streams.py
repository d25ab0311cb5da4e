"""Streams: which critics they need, who carries the KL, what truncation pays, and heads on the policy's own states."""

from dataclasses import replace

import pytest
import torch

from holdfast.engine.log import RunFolder
from holdfast.engine.online import OnlineSettings, run_online
from holdfast.engine.step import OptimiserSettings
from holdfast.errors import UserError
from holdfast.losses.reduce import per_sequence
from holdfast.losses.surrogate import clipped_value
from holdfast.models.heads import from_policy
from holdfast.models.policy import hidden_states
from holdfast.models.trunk import HeadsOnPolicy
from holdfast.rollout.types import Sample
from holdfast.training.actor_critic import ActorCritic, ActorCriticSettings
from holdfast.training.lagrangian import Constraint, ConstraintSettings
from holdfast.training.policy import Limits

OPTIMISER = OptimiserSettings(learning_rate=0.01, warmup_ratio=0.0, max_grad_norm=1e9)
OPTIMISERS = {"policy": OPTIMISER, "critic": OPTIMISER}
KINDS = {
    "mean": {"bound": "mean"},
    "bound": {"bound": "student_t"},
    "two heads": {"bound": "student_t", "monotone": False},
    "flag": {"bound": "student_t", "measure": "flag"},
    "rectified": {"bound": "rectified"},
    "rectified flag": {"bound": "rectified", "measure": "flag"},
    "no critic": {"bound": "student_t", "critic": False},
    "no critic, flag": {"bound": "mean", "measure": "flag", "critic": False},
}


def frozen(multiplier, name="harm", **settings):
    """A limit whose multiplier does not move: no window is ever long enough."""
    base = {"measure": "logit", "threshold": 0.0, "c1": 1.0, "ceiling": 2000.0, "initial": multiplier, "name": name}
    one = Constraint(ConstraintSettings(**(base | settings)))
    one.MIN_WINDOW = 10**9
    return one


def needed(limits, reward_critic=True):
    return [*(["value"] if reward_critic else []), *(f"value/{name}" for name in limits.streams)]


def algorithm(made, constraints=(), critics=None, **settings):
    limits, settings = Limits(constraints), ActorCriticSettings(**settings)
    if critics is None:
        names = needed(limits, settings.reward_critic)
        critics = {name: from_policy(made.policy, (name,), init_std=0.5, seed=i) for i, name in enumerate(names)}
    return ActorCritic(made.collector, critics, settings, OPTIMISERS, limits)


def table(learnable, column):
    return learnable.experience.places.table(column)


def pull(bench, constraints, coef=0.2, **settings):
    """What the KL adds to the mixed advantages (N, R), and the KL itself."""
    found = []
    for weight in (coef, 0.0):
        made = bench()
        kl = {"coef": weight, "mode": settings.pop("mode", "split")} if weight else {"coef": 0.0}
        method = algorithm(made, constraints(), kl=kl, token_clamp=None, **settings)
        found.append(method.collect(made.prompts, 1))
    return table(found[0], found[0].advantages - found[1].advantages), found[0].experience


@pytest.mark.parametrize("multiplier", [0.0, 900.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_pull_to_the_reference_is_the_same_whatever_the_limit_and_its_multiplier(bench, kind, multiplier):
    """Everything is linear in the KL: A_t = -beta x the KL from t on, beside what the scores say."""

    def constraints():
        return [frozen(multiplier, **KINDS[kind]), frozen(1.5, name="other", bound="mean")]

    found, experience = pull(bench, constraints, advantage={"lam_policy": 1.0})
    expected = -0.2 * experience.kl.flip(1).cumsum(1).flip(1) * experience.response_mask
    # float32: the difference of two advantages, each divided by 900 and multiplied again
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["no critic", "no critic, flag"])
def test_without_any_critic_the_pull_is_that_of_whole_answers(bench, kind):
    def constraints():
        return [frozen(7.0, **KINDS[kind])]

    found, experience = pull(bench, constraints, reward_critic=False)
    whole = -0.2 * experience.kl.sum(-1).view(-1, 3)
    others = (whole.sum(-1, keepdim=True) - whole) / 2
    expected = (whole - others).flatten()[:, None] * experience.response_mask
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # float32, divided by 8 and multiplied again


def test_an_undivided_mixture_pulls_as_hard_as_it_steps(bench):
    def constraints():
        return [frozen(3.0, **KINDS["two heads"])]

    divided, _ = pull(bench, constraints)
    whole, _ = pull(bench, constraints, normalise_mixture=False)
    torch.testing.assert_close(whole, 4 * divided, rtol=1e-4, atol=1e-5)  # float32, as above


@pytest.mark.parametrize(
    "names, wrong",
    [
        ([("value",), ("value/harm",)], "missing"),
        ([("value",), ("value/harm", "value/harm^2"), ("value/harm",)], "twice"),
        ([("value", "value/harm", "value/harm^2", "value/rude")], "of nothing"),
        ([("value/harm", "value/harm^2")], "no reward"),
    ],
)
def test_each_stream_has_one_critic(bench, names, wrong):
    made = bench()
    critics = {f"{i}": from_policy(made.policy, one) for i, one in enumerate(names)}
    with pytest.raises(ValueError, match=r"\['value', 'value/harm', 'value/harm\^2'\] are needed: each once"):
        algorithm(made, [frozen(1.0, **KINDS["two heads"])], critics)


@pytest.mark.parametrize("layout", ["apart", "together"])
def test_one_network_for_all_streams_learns_like_several(bench, layout):
    """Equal heads on equal trunks give equal values, whichever networks hold them."""
    made = bench()
    constraints = [frozen(2.0, **KINDS["two heads"])]
    names = needed(Limits(constraints))
    together = from_policy(made.policy, names, init_std=0.5, seed=3)
    apart = {name: from_policy(made.policy, (name,)) for name in names}
    for i, one in enumerate(apart.values()):
        one.head.weight.data.copy_(together.head.weight.data[i : i + 1])
    critics = {"value": together} if layout == "together" else apart
    method = algorithm(made, constraints, critics)
    learnable = method.collect(made.prompts, 1)
    other = bench()
    reference = algorithm(other, [frozen(2.0, **KINDS["two heads"])], apart).collect(other.prompts, 1)
    torch.testing.assert_close(learnable.advantages, reference.advantages, rtol=1e-5, atol=1e-6)
    batch = learnable.select(range(learnable.experience.size))
    terms = {name for part in method.critics for name in method.loss(part, batch)}
    assert terms == ({"value"} if layout == "apart" else set(names))


def test_prompts_without_source_cannot_be_told_apart(bench):
    made = bench()
    method = algorithm(made, score={"transform": "norm", "per_source": True})
    with pytest.raises(UserError, match="18 of 18 answers belong to prompts without one"):
        method.collect(made.prompts, 1)


def test_each_source_has_a_scale_of_its_own(bench):
    """A source whose scores are ten times as large, and higher, is paid alike."""

    def build(factor, shift):
        made = bench()
        inner, loud = made.collector.score, {one.messages[-1].text for one in made.prompts[::2]}

        def score(rows):
            found, scale = inner(rows), [factor if one.prompt.messages[-1].text in loud else 1.0 for one in rows]
            moved = [shift if one != 1.0 else 0.0 for one in scale]
            return found | {"reward": found["reward"] * torch.tensor(scale) + torch.tensor(moved)}

        def source(prompt):
            return "loud" if prompt.messages[-1].text in loud else "quiet"

        made.collector = replace(made.collector, score=score, group_of=source)
        settings = {"transform": "norm", "per_source": True, "exclude_truncated": False}
        method = algorithm(made, score=settings)
        return method.collect(made.prompts, 1)

    one, other = build(1.0, 0.0), build(10.0, 3.0)
    torch.testing.assert_close(one.advantages, other.advantages, rtol=1e-4, atol=1e-5)  # float32 scores of 30
    assert {"score_running_mean/loud", "score_running_sd/quiet"} <= other.numbers.keys()


class Says:
    """A generator whose every answer consists of the given ids; every second one is cut."""

    foreign = False

    def __init__(self, ids, end):
        self.answers = [[*ids, end], [*ids, ids[0]]]

    def generate(self, prompts, n, sampling, seed):
        finish = ["stop", "length"]
        return [
            Sample(i, one.ids, self.answers[j % 2], [-0.5] * len(self.answers[0]), finish[j % 2])
            for i, one in enumerate(prompts)
            for j in range(n)
        ]


def cut_half(bench, k=2, **settings):
    made = bench(k=k)
    made.collector = replace(made.collector, generator=Says([9, 10], made.template.end_id))
    method = algorithm(made, [frozen(2.0, bound="mean")], **({"kl": 0.0, "token_clamp": None} | settings))
    learnable = method.collect(made.prompts, 1)
    assert learnable.experience.truncated.tolist() == [False, True] * len(made.prompts)
    return method, learnable


def test_truncation_changes_only_what_cut_answers_are_paid(bench):
    found = {way: cut_half(bench, truncation=way)[1] for way in ("score", "penalty", "bootstrap", "drop")}
    whole, cut = slice(0, None, 2), slice(1, None, 2)
    tables = {way: table(one, one.advantages) for way, one in found.items()}
    for way in ("penalty", "bootstrap"):
        assert torch.equal(tables[way][whole], tables["score"][whole])
        assert not torch.equal(tables[way][cut], tables["score"][cut])
    assert torch.equal(tables["drop"], tables["score"])
    returns = {way: table(one, one.returns["value"]) for way, one in found.items()}
    # With lambda 0.95 the penalty reaches each token discounted.
    expected = torch.tensor([0.95**2, 0.95, 1.0]).expand(6, 3)
    torch.testing.assert_close((returns["score"] - returns["penalty"])[cut], expected, rtol=0, atol=1e-5)


def test_a_cut_answer_costs_what_it_was_scored_and_nothing_more(bench):
    """The critic's guess takes the place of the reward's score; a cost that keeps its score is not also guessed."""
    score, bootstrap = (cut_half(bench, truncation=way)[1] for way in ("score", "bootstrap"))
    assert not torch.equal(score.returns["value"], bootstrap.returns["value"])
    assert torch.equal(score.returns["value/harm"], bootstrap.returns["value/harm"])


def test_cut_answers_are_dropped_from_every_step(bench):
    method, learnable = cut_half(bench, truncation="drop", steps_per_experience=2)
    assert learnable.kept == (0, 2, 4, 6, 8, 10)
    portions = method.mini_batches(learnable, torch.Generator().manual_seed(0))
    rows = [tuple(ids) for portion in portions for batch in portion for ids in batch.tokens.input_ids.tolist()]
    assert len(rows) == 6
    assert all(method.collector.template.end_id in row for row in rows)


def test_a_guess_needs_a_critic(bench):
    with pytest.raises(UserError, match="asks a critic what a cut answer would still earn; set reward_critic"):
        algorithm(bench(), reward_critic=False, truncation="bootstrap")


def one_step(made, method, folder):
    """One optimiser step of every part; the experience it was made from, taken up before."""
    seen, inner = [], method.collect

    def collect(prompts, iteration):
        seen.append(inner(prompts, iteration))
        return seen[-1]

    method.collect = collect
    settings = OnlineSettings(iterations=1, prompts_per_iteration=4)
    run_online(method, made.prompts, settings, RunFolder(folder), stage="policy")
    return seen[0]


@pytest.mark.parametrize("value_clip", [None, 0.05])
def test_heads_on_the_policy_step_as_a_linear_layer_on_its_states(bench, tmp_path, value_clip):
    made, before = bench(), bench().policy
    constraints = [frozen(2.0, **KINDS["two heads"])]
    names = needed(Limits(constraints))
    heads = HeadsOnPolicy(made.policy, names)
    method = algorithm(made, constraints, {"value": heads}, value_clip=value_clip)
    learnable = one_step(made, method, tmp_path / "on")
    assert list(method.parts) == ["policy", "value"], "the policy's loss hands over its states, so it comes first"
    assert not heads._remembered, "all states were asked for"
    batch = learnable.select(range(learnable.experience.size))
    tokens = batch.tokens
    with torch.no_grad():
        states = hidden_states(before, tokens.input_ids, tokens.attention_mask, tokens.position_ids)
    layer = torch.nn.Linear(states.shape[-1], len(names))
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    values = layer(states)[:, :-1]
    mask = tokens.response_mask[:, 1:]
    loss = sum(
        per_sequence(
            clipped_value(values[..., i], torch.zeros(()).expand_as(mask), batch.returns[name][:, 1:], value_clip),
            mask,
        ).mean
        for i, name in enumerate(names)
    )
    loss.backward()
    torch.optim.AdamW(layer.parameters(), lr=0.01, betas=OPTIMISER.betas, weight_decay=0.0).step()
    # The first step of Adam is the rate times a sign, but for entries near its epsilon.
    torch.testing.assert_close(heads.head.weight, layer.weight, rtol=0, atol=1e-5)
    torch.testing.assert_close(heads.head.bias, layer.bias, rtol=0, atol=1e-5)


def test_heads_on_the_policy_leave_its_step_alone(bench, tmp_path):
    """Critics that say nothing yet, on the policy's states or in networks of their own: one and the same policy."""
    policies = []
    for way in ("on", "apart"):
        made = bench()
        names = needed(Limits([frozen(2.0)]))
        zero = {"value": HeadsOnPolicy(made.policy, names)}
        if way == "apart":
            zero = {name: from_policy(made.policy, (name,)) for name in names}
        one_step(made, algorithm(made, [frozen(2.0)], zero), tmp_path / way)
        policies.append(made.policy.state_dict())
    assert all(torch.equal(policies[0][name], policies[1][name]) for name in policies[0])
