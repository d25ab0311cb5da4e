"""PPO under limits: what follows from its definition, whatever the numbers are."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from holdfast.data.schema import Conversation
from holdfast.engine.log import RunFolder
from holdfast.engine.online import OnlineSettings, run_online
from holdfast.engine.step import OptimiserSettings
from holdfast.errors import UserError
from holdfast.models.heads import from_policy
from holdfast.rollout.types import Sample
from holdfast.systems.presets import PRESETS, over
from holdfast.training.actor_critic import ActorCritic, ActorCriticSettings
from holdfast.training.lagrangian import Constraint, ConstraintSettings
from holdfast.training.policy import Limits
from holdfast.training.ptx import PtxRows
from holdfast.training.sft import imitation_rows

OPTIMISERS = {"policy": OptimiserSettings(learning_rate=0.01), "critic": OptimiserSettings(learning_rate=0.02)}


def harm(**settings):
    base = {"measure": "logit", "threshold": 0.0, "initial": 2.0, "bound": "mean"}
    return Constraint(ConstraintSettings(**(base | settings)))


def algorithm(made, constraints=(), **settings):
    critics = {name: made.critics[name] for name in ("value", *(f"value/{one.name}" for one in constraints))}
    return ActorCritic(made.collector, critics, ActorCriticSettings(**settings), OPTIMISERS, Limits(constraints))


def frozen(multiplier, **settings):
    """A limit whose multiplier does not move: no window is ever long enough."""
    one = harm(initial=multiplier, ceiling=2000.0, **settings)
    one.MIN_WINDOW = 10**9
    return one


def table(learnable, column):
    """A flat column as a table (N, R)."""
    return learnable.experience.places.table(column)


def total_loss(method, learnable, part):
    terms = method.loss(part, learnable.select(range(learnable.experience.size)))
    return terms["policy" if part == "policy" else "value"].mean


def gradient(method, learnable, part="policy"):
    method.parts[part].zero_grad()
    total_loss(method, learnable, part).backward()
    return {name: p.grad.clone() for name, p in method.parts[part].named_parameters() if p.grad is not None}


@pytest.mark.parametrize("multiplier", [0.0, 0.3, 7.0, 1000.0])
def test_the_pull_to_the_reference_does_not_depend_on_the_multiplier(bench, multiplier):
    """With no scores, no critics and no discount only the KL is left: A_t = -beta x the KL from t on."""

    def nothing(conversations):
        return {name: torch.zeros(len(conversations)) for name in ("reward", "cost")}

    made = bench(score=nothing)
    for critic in made.critics.values():
        critic.head.weight.data.zero_()
    method = algorithm(made, [frozen(multiplier)], kl=0.2, advantage={"lam_policy": 1.0})
    learnable = method.collect(made.prompts, 1)
    kl = learnable.experience.kl
    expected = -0.2 * kl.flip(1).cumsum(1).flip(1) * learnable.experience.response_mask
    # float32: sums of up to six tokens, weighted by up to 1000 and divided again
    torch.testing.assert_close(table(learnable, learnable.advantages), expected, rtol=1e-4, atol=1e-5)
    if multiplier:
        alone = algorithm(
            made, [frozen(multiplier)], kl={"coef": 0.2, "mode": "reward_only"}, advantage={"lam_policy": 1.0}
        )
        found = alone.collect(made.prompts, 1)
        shrunk = expected / (1 + multiplier)
        torch.testing.assert_close(table(found, found.advantages), shrunk, rtol=1e-4, atol=1e-5)


def test_a_multiplier_of_zero_is_plain_ppo_bit_for_bit(bench):
    plain, limited = bench(), bench()
    one, other = algorithm(plain), algorithm(limited, [frozen(0.0)])
    first, second = one.collect(plain.prompts, 1), other.collect(limited.prompts, 1)
    assert torch.equal(first.advantages, second.advantages)
    assert torch.equal(first.returns["value"], second.returns["value"])
    for part in ("policy", "value"):
        left, right = gradient(one, first, part), gradient(other, second, part)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)


def test_scaling_a_cost_and_dividing_its_multiplier_only_rescales(bench):
    """Without KL: cost and cost critic times a, multiplier over a, gives A times (1 + m) / (1 + m/a)."""
    a, m = 4.0, 3.0
    made = bench()
    before = algorithm(made, [frozen(m)], kl=0.0).collect(made.prompts, 1).advantages
    made.critics["value/harm"].head.weight.data.mul_(a)
    inner = made.collector.score

    def scaled(conversations):
        found = inner(conversations)
        return found | {"cost": a * found["cost"]}

    made.collector = replace(made.collector, score=scaled)
    after = algorithm(made, [frozen(m / a)], kl=0.0).collect(made.prompts, 1).advantages
    torch.testing.assert_close(after, before * (1 + m) / (1 + m / a), rtol=1e-5, atol=1e-6)


def test_a_value_is_that_of_the_state_before_its_token(bench):
    """Changing the last token of an answer must leave its value alone; changing the one before must not."""
    made = bench()
    method = algorithm(made)
    experience = made.collector.collect(made.prompts, seed=1)
    i = next(i for i, row in enumerate(experience.rows) if row.length - row.prompt_length >= 3)
    row = experience.rows[i]
    length = len(row.response_ids)

    def values_with(position):
        ids = list(row.ids)
        if position is not None:
            ids[row.prompt_length + position] = (ids[row.prompt_length + position] + 1) % 14
        changed = [*experience.rows[:i], replace(row, ids=ids), *experience.rows[i + 1 :]]
        found = dict(method._values(replace(experience, rows=changed)))["value"]
        return found.values[i, :length], found.ahead[i]

    before, ahead = values_with(None)
    last, after_last = values_with(length - 1)
    assert torch.equal(last, before)
    assert after_last != ahead, "what would come after the last token is read behind it"
    moved, _ = values_with(length - 2)
    assert torch.equal(moved[:-1], before[:-1])
    assert moved[-1] != before[-1]


def test_values_and_advantages_do_not_depend_on_padding_or_company(bench):
    made = bench(micro_tokens=4096)
    small = bench(micro_tokens=1)
    wide, narrow = algorithm(made, [harm()]), algorithm(small, [harm()])
    together = wide.collect(made.prompts, 1)
    alone = narrow.collect(small.prompts, 1)
    assert [row.ids for row in together.experience.rows] == [row.ids for row in alone.experience.rows]
    # Kernels sum in another order when rows are padded, hence more than 1e-6.
    torch.testing.assert_close(together.advantages, alone.advantages, rtol=0, atol=1e-5)
    for name in ("value", "value/harm"):
        torch.testing.assert_close(together.returns[name], alone.returns[name], rtol=0, atol=1e-5)


def test_losses_are_indifferent_to_what_stands_behind_the_mask(bench):
    made = bench()
    method = algorithm(made, [harm()])
    learnable = method.collect(made.prompts, 1)
    clean = learnable.select(range(learnable.experience.size))
    outside = ~clean.tokens.response_mask

    def spoilt(cells):
        return cells.masked_fill(outside, 1e9)

    dirty = replace(
        clean,
        old_logprobs=spoilt(clean.old_logprobs),
        ref_logprobs=spoilt(clean.ref_logprobs),
        advantages=spoilt(clean.advantages),
        old_values={name: spoilt(one) for name, one in clean.old_values.items()},
        returns={name: spoilt(one) for name, one in clean.returns.items()},
    )
    for part in method.parts:
        found = []
        for batch in (clean, dirty):
            method.parts[part].zero_grad()
            terms = method.loss(part, batch)
            terms["policy" if part == "policy" else "value"].total.backward()
            found.append({name: p.grad for name, p in method.parts[part].named_parameters() if p.grad is not None})
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0]), part


class Says:
    """A generator whose every answer consists of the given ids."""

    foreign = False

    def __init__(self, ids, finish):
        self.ids, self.finish = ids, finish

    def generate(self, prompts, n, sampling, seed):
        logprobs = [-0.5] * len(self.ids)
        return [Sample(i, one.ids, self.ids, logprobs, self.finish) for i, one in enumerate(prompts) for _ in range(n)]


@pytest.mark.parametrize("case", ["ends at once", "one token, cut", "all cut"])
@pytest.mark.parametrize("loss_mean", ["sequence", "token"])
def test_strange_answers_are_learned_from_like_others(bench, case, loss_mean):
    made = bench(k=2)
    end = made.template.end_id
    ids, finish = {
        "ends at once": ([end], "stop"),
        "one token, cut": ([9], "length"),
        "all cut": ([9, 10, 9], "length"),
    }[case]
    made.collector = replace(made.collector, generator=Says(ids, finish))
    method = algorithm(made, [harm()], surrogate={"loss_mean": loss_mean})
    learnable = method.collect(made.prompts, 1)
    assert learnable.experience.response_mask.sum(-1).tolist() == [len(ids)] * 12
    assert learnable.experience.truncated.all() == (finish == "length")
    assert learnable.advantages.isfinite().all()
    for part in method.parts:
        found = gradient(method, learnable, part)
        assert all(one.isfinite().all() for one in found.values())
        assert any(one.abs().max() > 0 for one in found.values())
    assert all(value == value for value in method.after(learnable).values())


def test_a_policy_equal_to_its_reference_pays_nothing(bench):
    made = bench(same=True)
    cheap, dear = algorithm(made, kl=0.0), algorithm(made, kl=1.0)
    first, second = cheap.collect(made.prompts, 1), dear.collect(made.prompts, 1)
    # Sampler and reference read the same network in different shapes.
    torch.testing.assert_close(first.advantages, second.advantages, rtol=0, atol=1e-4)


def test_every_stream_needs_its_critic(bench):
    made = bench()
    limits = Limits([harm()])
    with pytest.raises(ValueError, match=r"predict \['value'\], and \['value', 'value/harm'\] are needed"):
        ActorCritic(made.collector, {"value": made.critics["value"]}, ActorCriticSettings(), OPTIMISERS, limits)


def test_parts_have_their_optimisers_and_no_dropout(bench):
    made = bench()
    made.policy.train()
    made.critics["value"].train()
    method = algorithm(made, [harm()])
    assert list(method.parts) == ["value", "value/harm", "policy"]
    assert {name: one.learning_rate for name, one in method.optimisers.items()} == {
        "policy": 0.01,
        "value": 0.02,
        "value/harm": 0.02,
    }
    assert not any(part.training for part in method.parts.values())


def test_every_iteration_samples_anew(bench):
    made = bench()
    method = algorithm(made)
    first, second = (method.collect(made.prompts, iteration) for iteration in (1, 2))
    assert [row.ids for row in first.experience.rows] != [row.ids for row in second.experience.rows]


def test_the_score_clip_is_counted(bench):
    made = bench(score=lambda rows: {"reward": torch.full((len(rows),), 99.0), "cost": torch.zeros(len(rows))})
    method = algorithm(made, [harm()], kl=0.0, token_clamp=10.0, advantage={"lam_policy": 1.0, "lam_value": 1.0})
    for critic in made.critics.values():
        critic.head.weight.data.zero_()
    learnable = method.collect(made.prompts, 1)
    assert learnable.returns["value"].max() == 10.0
    tokens = int(learnable.experience.response_mask.sum())
    assert learnable.numbers["clamped/value"] == pytest.approx(learnable.experience.size / tokens)
    assert learnable.numbers["clamped/value/harm"] == 0


def test_rows_of_the_log_hold_every_stream(bench):
    made = bench()
    method = algorithm(made, [harm()])
    learnable = method.collect(made.prompts, 1)
    names = {"clamped/value", "explained_variance/value/harm", "multiplier/harm", "cost/harm", "kl", "reward"}
    assert names <= method.after(learnable).keys()
    assert method.samples(learnable)[0]["prompt"] == "sea ?"
    again = algorithm(bench(), [harm()])
    again.load_state_dict(method.state_dict())
    assert again.state_dict() == method.state_dict()
    assert method.state_dict()["limits"] == {"harm": method.limits.constraints[0].state_dict()}


def train(made, method, folder, iterations=2, **settings):
    """The rows of a short run, without what the clock says."""
    online = OnlineSettings(iterations=iterations, prompts_per_iteration=4, sample_every=0, **settings)
    run_online(method, made.prompts, online, RunFolder(folder), stage="policy")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("seconds")} for row in rows]


def weights(method):
    return {f"{part}/{name}": p for part, one in method.parts.items() for name, p in one.state_dict().items()}


def assert_equal_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("loss_mean", ["sequence", "token"])
def test_before_any_update_the_ratio_is_one(bench, loss_mean):
    made = bench()
    method = algorithm(made, [harm()], surrogate={"loss_mean": loss_mean, "dual_clip": 3.0})
    learnable = method.collect(made.prompts, 1)
    batch = learnable.select(range(learnable.experience.size))
    terms, mask = method.loss("policy", batch), batch.tokens.response_mask
    assert terms["clip_fraction"].mean == terms["dual_clip_fraction"].mean == 0
    assert 0 <= terms["approx_kl"].mean < 1e-10
    lines = [line[own] for line, own in zip(batch.advantages.double(), mask)]
    mean = sum(line.mean() for line in lines) / len(lines) if loss_mean == "sequence" else torch.cat(lines).mean()
    # Sampler and trainer read the same network in different shapes: ratios of 1 to about 1e-5.
    assert terms["policy"].mean.item() == pytest.approx(-float(mean), abs=1e-5)


def test_an_undiscounted_target_without_kl_is_the_score(bench):
    made = bench()
    method = algorithm(made, [harm()], kl=0.0, advantage={"lam_value": 1.0})
    learnable = method.collect(made.prompts, 1)
    experience = learnable.experience
    for name, score in (("value", "reward"), ("value/harm", "cost")):
        expected = experience.scores[score][:, None] * experience.response_mask
        torch.testing.assert_close(table(learnable, learnable.returns[name]), expected, rtol=0, atol=1e-5)


def test_at_the_reference_every_distance_is_zero(bench):
    made = bench(same=True)
    method = algorithm(made, [harm()])
    numbers = method.after(method.collect(made.prompts, 1))
    assert abs(numbers["kl"]) < 1e-4  # sums of six differences between two kernels' roundings
    assert 0 <= numbers["kl_token_k3"] < 1e-9


def test_a_kl_held_tighter_is_held_tighter_in_the_loss_too(bench):
    method = algorithm(bench(), kl={"coef": 0.1, "in_loss": 0.5})
    assert method.weights["kl"] == 0.5
    method.kl.raise_to(4.0)
    assert (method.weights["kl"], method.kl.coef) == (2.0, 0.4)


CHATS = [("sea ?", "dark sea"), ("dark sky ?", "red"), ("bright ?", "blue green red")]


def imitating(made, ptx, rows=True, **settings):
    chats = [Conversation.ask(question).answer(answer) for question, answer in CHATS]
    source = PtxRows(imitation_rows(chats, made.template), made.template.pad_id)
    critics = {"value": made.critics["value"]}
    settings = ActorCriticSettings(ptx=ptx, **settings)
    return ActorCritic(made.collector, critics, settings, OPTIMISERS, Limits([]), ptx=source if rows else None)


def test_imitation_of_weight_zero_is_none_to_the_bit(bench, tmp_path):
    runs = []
    for rows in (True, False):
        made = bench()
        method = imitating(made, 0.0, rows)
        runs.append((train(made, method, tmp_path / str(rows)), method))
    assert runs[0][0] == runs[1][0]
    assert_equal_weights(runs[0][1], runs[1][1])


def test_imitation_without_rows_is_refused(bench):
    with pytest.raises(UserError, match=r"there are none; give data.sft or set ptx=0"):
        imitating(bench(), 1.0, rows=False)


@pytest.mark.parametrize("loss_mean", ["sequence", "token"])
def test_surrogate_and_imitation_are_one_gradient(bench, loss_mean):
    """Each term has its own denominator: the imitation's is the tokens of the assistant's turns."""
    made = bench()
    method = imitating(made, 3.0, surrogate={"loss_mean": loss_mean})
    learnable = method.collect(made.prompts, 1)
    (portion,) = method.mini_batches(learnable, torch.Generator().manual_seed(0))
    imitated = [batch for batch in portion if not hasattr(batch, "advantages")]
    assert sum(batch.tokens.size for batch in imitated) == learnable.experience.size, "a row for each answer"
    network, total, tokens = copy.deepcopy(made.policy).double(), 0.0, 0
    for batch in imitated:
        for ids, mask, turn in zip(batch.tokens.input_ids, batch.tokens.attention_mask, batch.tokens.turn_mask):
            logits = network(input_ids=ids[mask.bool()][None]).logits[0].log_softmax(-1)
            for t in range(1, int(mask.sum())):
                if turn[t]:
                    total, tokens = total - logits[t - 1, ids[t]].item(), tokens + 1
    terms = [method.loss("policy", batch)["ptx"] for batch in imitated]
    assert sum(float(term.count) for term in terms) == tokens
    assert sum(float(term.total.detach()) for term in terms) / tokens == pytest.approx(total / tokens, abs=1e-5)
    assert method.weights["ptx"] == 3.0
    assert all(method.counts("value", batch) == {} for batch in imitated), "critics do not imitate"


def test_imitation_is_in_every_step_and_its_share_is_logged(bench, tmp_path):
    made = bench()
    method = imitating(made, 1.0, steps_per_experience=3)
    rows = train(made, method, tmp_path, inner_epochs=2)
    for row in rows:
        assert row["policy/ptx"] > 0
        assert row["policy/grad_ratio/ptx"] > 0
        assert "value/ptx" not in row
    optimiser = torch.load(next(tmp_path.glob("checkpoints/policy/*/state.pt")), weights_only=False)
    assert method.ptx.state_dict()["taken"] == 2 * 2 * 12
    assert optimiser["states"]["step/policy"]["done"] == 2 * 2 * 3, "one optimiser step for both gradients"


def preset(made, name, given):
    table = over(PRESETS[name], given)
    scale = {"learning_rate": 0.01}
    optimisers = {
        "policy": OptimiserSettings(**(table["optimiser"] | scale)),
        "critic": OptimiserSettings(**(table["critic_optimiser"] | scale)),
    }
    settings, critics = ActorCriticSettings(**table["ppo"]), {"value": made.critics["value"]}
    return ActorCritic(made.collector, critics, settings, optimisers, Limits([])), table["pretrain"]


def test_ppo_max_without_its_ingredients_is_vanilla_step_for_step(bench, tmp_path):
    limits = {"warmup_ratio": 0.1, "max_grad_norm": 1e9}
    bare = {
        "ppo": {
            "kl": 0.0,
            "score": {"transform": "none", "clip": None},
            "value_clip": None,
            "missing_eos_penalty": 0.0,
        },
        "optimiser": limits,
        "critic_optimiser": limits,
        "pretrain": None,
    }
    found = []
    for name, given in (("vanilla", {}), ("ppo-max", bare), ("ppo-max", {})):
        made = bench()
        method, pretrain = preset(made, name, given)
        found.append((train(made, method, tmp_path / str(len(found)), iterations=3), method, pretrain))
    assert found[0][0] == found[1][0] != found[2][0]
    assert found[0][2] is found[1][2] is None
    assert found[2][2] is not None
    assert_equal_weights(found[0][1], found[1][1])


def all_cut(bench, **settings):
    made = bench(k=2)
    made.collector = replace(made.collector, generator=Says([9, 10, 9], "length"))
    return made, algorithm(made, [harm()], **settings)


@pytest.mark.parametrize("way", ["score", "penalty", "bootstrap"])
def test_answers_that_are_all_cut_teach(bench, tmp_path, way):
    made, method = all_cut(bench, truncation=way, score={"transform": "norm"})
    before = {name: p.clone() for name, p in weights(method).items()}
    rows = train(made, method, tmp_path)
    assert all(row["truncated"] == 1.0 and "policy/empty" not in row for row in rows)
    assert any(not torch.equal(p, before[name]) for name, p in weights(method).items() if name.startswith("policy"))
    assert all(p.isfinite().all() for p in weights(method).values())


def test_answers_that_are_all_dropped_move_nothing_and_say_so(bench, tmp_path):
    made, method = all_cut(bench, truncation="drop", advantage={"normalise": "minibatch"})
    before = {name: p.clone() for name, p in weights(method).items()}
    rows = train(made, method, tmp_path)
    assert all(torch.equal(p, before[name]) for name, p in weights(method).items())
    assert [row["policy/empty"] for row in rows] == [1.0, 1.0]
    assert [row["value/empty"] for row in rows] == [1.0, 1.0]


@pytest.mark.parametrize("transform", ["none", "scale", "norm"])
@pytest.mark.parametrize("normalise", ["none", "minibatch", "batch"])
def test_equal_scores_break_nothing(bench, transform, normalise):
    made = bench(same=True, score=lambda rows: {name: torch.full((len(rows),), 3.0) for name in ("reward", "cost")})
    settings = {"transform": transform, "exclude_truncated": False}
    limit = harm(bound="student_t", c1=1.0, monotone=False)
    critics = {"value": from_policy(made.policy, ("value", "value/harm", "value/harm^2"))}
    settings = ActorCriticSettings(score=settings, advantage={"normalise": normalise}, kl=0.0)
    method = ActorCritic(made.collector, critics, settings, OPTIMISERS, Limits([limit]))
    learnable = method.collect(made.prompts, 1)
    assert learnable.advantages.isfinite().all()
    paid = {"none": 3.0, "scale": 3.0, "norm": 0.0}[transform]
    assert table(learnable, learnable.returns["value"]).max() == pytest.approx(paid, abs=1e-6)
    for portion in method.mini_batches(learnable, torch.Generator().manual_seed(0)):
        assert all(batch.advantages.isfinite().all() for batch in portion)
    assert all(value == value for value in method.after(learnable).values())
