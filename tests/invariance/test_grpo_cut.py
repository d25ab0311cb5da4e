"""What GRPO learns does not depend on how an experience is cut, over how many processes, nor on what has no meaning.

Several processes are played by threads that meet wherever the real ones would.
"""

import copy
import json
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from played import players, together

from holdfast.config import Settings
from holdfast.data.schema import Conversation
from holdfast.data.template import Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.engine.distributed import Processes
from holdfast.engine.log import RunFolder
from holdfast.engine.online import OnlineSettings, run_online
from holdfast.engine.step import OptimiserSettings, Step
from holdfast.models.tiny import tiny_policy
from holdfast.rollout.experience import Collector, RolloutSettings
from holdfast.rollout.generate import TransformersGenerator
from holdfast.rollout.types import Sample, Sampling
from holdfast.training.group_batch import Skipped
from holdfast.training.grpo import Grpo, GrpoSettings
from holdfast.training.lagrangian import Constraint, ConstraintSettings
from holdfast.training.policy import Limits

ASKED = ["sea ?", "dark sky ?", "red green blue ?", "bright ?", "blue sea sky ?", "dark ?", "red sea ?", "green sky ?"]
PROMPTS = [Conversation.ask(text, id=str(i)) for i, text in enumerate(ASKED)]
OPTIMISER = OptimiserSettings(learning_rate=0.01, warmup_ratio=0.0, max_grad_norm=1e9)
K, LONGEST = 3, 6
LIMIT = {"measure": "logit", "c1": 1.0, "initial": 2.0, "bound": "student_t"}
EVERY = {"reward": {}, "calm": {"direction": "lower", "weight": 0.5}, "patchy": {"weight": 2.0}}


class ByPrompt:
    """A generator whose answers belong to the prompt, wherever it is asked; of one to six tokens, some cut."""

    def __init__(self, end, foreign=False):
        self.end, self.foreign = end, foreign

    def generate(self, prompts, n, sampling, seed):
        return [self.answer(i, one, j) for i, one in enumerate(prompts) for j in range(n)]

    def answer(self, index, prompt, number):
        rng = torch.Generator().manual_seed(sum(prompt.ids) * 100 + number)
        length = int(torch.randint(1, LONGEST + 1, (1,), generator=rng))
        ids = torch.randint(5, 14, (length,), generator=rng).tolist()
        cut = length == LONGEST
        ids[-1] = 9 if cut else self.end
        # Around what an untrained policy says.
        logprobs = (-2.8 + 0.3 * torch.randn(length, generator=rng)).tolist()
        return Sample(index, prompt.ids, ids, logprobs, "length" if cut else "stop")


def scores(conversations):
    """Of no meaning; nothing varies among answers to `dark ?`, and some answers are not scored for one of them."""
    words = [one.response.split() for one in conversations]
    dull = torch.tensor([one.prompt.messages[-1].text == "dark ?" for one in conversations])
    reward = torch.tensor([row.count("red") - 0.5 * row.count("blue") + 0.1 * len(row) for row in words])
    calm = torch.tensor([0.3 * len(row) + row.count("sky") for row in words])
    patchy = torch.tensor([float("nan") if len(row) == 2 else row.count("dark") - 0.2 * len(row) for row in words])
    cost = torch.tensor([row.count("dark") + 0.5 * row.count("sea") - 0.1 * len(row) for row in words])
    flat = {"reward": reward, "calm": calm, "patchy": patchy}
    return {name: column.masked_fill(dull, 0.25) for name, column in flat.items()} | {"cost": cost}


def build(
    processes=None,
    micro_tokens=96,
    score=scores,
    limits=(LIMIT,),
    k=K,
    foreign=False,
    samples=False,
    steps=1,
    **settings,
):
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(["red green blue dark bright sea sky ?"], 64, "word")
    template = Template(tokenizer, max_length=64)
    policy, other = (tiny_policy(len(tokenizer), hidden=16, heads=2, layers=1, seed=seed) for seed in (0, 1))
    sampling = Sampling(max_new_tokens=LONGEST)
    rollout = RolloutSettings(samples_per_prompt=k, micro_tokens=micro_tokens, sampling=sampling)
    source = ByPrompt(template.end_id, foreign)
    if samples:
        source = TransformersGenerator(policy, template.stop_ids, template.pad_id)
    collector = Collector(policy, lambda: nullcontext(other), source, template, score, rollout)
    held = Limits([Constraint(ConstraintSettings(**one)) for one in limits], processes)
    base = {"objectives": EVERY, "kl": 0.1, "steps_per_experience": steps}
    return Grpo(collector, GrpoSettings(**(base | settings)), OPTIMISER, held)


def learn(method, processes, prompts=PROMPTS):
    """One iteration as the online loop does it: the gradient of its first optimiser step, and the row of the log."""
    learnable = method.collect(processes.shard(prompts), 1)
    portions = method.mini_batches(learnable, torch.Generator().manual_seed(0))
    policy, gradients = method.parts["policy"], {}
    step = Step(policy, OPTIMISER, 10, processes)
    clip = step._clip

    def keep():
        gradients.update({name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None})
        return clip()

    step._clip = keep
    numbers = step.step(
        portions[0],
        lambda batch: method.loss("policy", batch),
        lambda batch: method.counts("policy", batch),
        method.weights,
    )
    told = method.after(learnable)
    return gradients, told | {f"policy/{name}": value for name, value in numbers.items()}, learnable


def alone(prompts=PROMPTS, **settings):
    processes = Processes()
    return learn(build(processes, **settings), processes, prompts)


def on_several(size, **settings):
    """What each of several processes found."""
    several = players(size)
    # Networks are drawn from a random state that threads share, so before they begin.
    methods = [build(one, **settings) for one in several]
    return together(several, lambda one: learn(methods[one.rank], one))


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        # float32 in another order of sums, relative to the largest entry
        bound = 1e-4 * float(values.abs().max()) + 1e-7
        torch.testing.assert_close(found[name], values, rtol=0, atol=bound)


def form(mode, **others):
    return {"scalarise": {"mode": mode, **others}}


CASES = {
    "token mean": {},
    "row mean": {"loss": {"mean": "row_mean", "dual_clip": 2.0, "entropy": 0.1}},
    "constant": {"loss": {"mean": "token_sum_constant", "kind": "cispo"}},
    "prompt mean": {"loss": {"mean": "prompt_mean", "level": "sequence"}, "overlong": "mask"},
    "sequence sum": {"loss": {"mean": "sequence_sum", "kind": "gmpo"}, "dead": "keep"},
    "KL in the loss": {"kl": {"coef": 0.1, "in_loss": 0.5}, "dead": "drop"},
    "dead ones skipped": {"limits": ()},
    "batch": form("batch"),
    "one scale for all groups": form("normalise_then_sum", batch_normalise=True, conflict="signs"),
    "mgda": form("mgda") | {"objectives": {"reward": {}, "calm": {"direction": "lower"}, "cost": {"weight": 0.0}}},
    "another sampler": {"foreign": True, "correction": {"drop": "geometric", "low": 0.8, "high": 1.2}},
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_do_not_depend_on_micro_batches(case):
    whole, numbers, _ = alone(micro_tokens=10**6, **CASES[case])
    for micro_tokens in (1, 64, 128):
        pieces, others, _ = alone(micro_tokens=micro_tokens, **CASES[case])
        assert_close(pieces, whole)
        timeless = {name: value for name, value in numbers.items() if not name.startswith("seconds")}
        # float32 in another order of sums
        told = {name: others[name] for name in timeless}
        assert told == pytest.approx(timeless, rel=1e-3, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_several_processes_have_the_gradient_of_one(case, size):
    one, numbers, learnable = alone(**CASES[case])
    found = on_several(size, **CASES[case])
    for gradients, told, _ in found:
        assert_close(gradients, one)
        assert all(torch.equal(gradients[name], found[0][0][name]) for name in one)
        assert list(told) == list(numbers), "those to watch come first"
        timeless = [name for name in numbers if not name.startswith("seconds")]
        # float32 in another order of sums
        assert {name: told[name] for name in timeless} == pytest.approx({n: numbers[n] for n in timeless}, abs=1e-4)
    for name in ("advantages", "kept", "silent"):
        joined = torch.cat([getattr(mine, name) for _, _, mine in found])
        torch.testing.assert_close(joined, getattr(learnable, name), rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["token mean", "prompt mean", "mgda", "batch", "dead ones skipped"])
def test_the_order_of_prompts_has_no_meaning(case):
    one, _, learnable = alone(**CASES[case])
    order = [5, 2, 7, 0, 1, 6, 4, 3]
    other, _, turned = alone([PROMPTS[p] for p in order], **CASES[case])
    assert_close(other, one)
    for name in ("advantages", "kept"):
        moved = getattr(learnable, name).view(-1, K)[order].flatten()
        torch.testing.assert_close(getattr(turned, name), moved, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dead", ["skip", "drop"])
def test_a_process_whose_groups_are_all_dead_keeps_step(dead):
    """The second of two processes has nothing to learn from."""

    def score(conversations):
        late = torch.tensor([int(one.prompt.id) > 3 for one in conversations])
        return {name: column.nan_to_num().masked_fill(late, 0.5) for name, column in scores(conversations).items()}

    settings = {"score": score, "limits": (), "dead": dead, "steps": 2}
    (first, _, mine), (second, _, theirs) = on_several(2, **settings)
    assert first
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert theirs.silent.all()
    assert bool(theirs.kept.any()) == (dead == "skip")
    assert not mine.silent.all()


def test_dead_groups_that_are_not_read_still_count():
    skipped, _, learnable = alone(limits=(), dead="skip")
    read, _, _ = alone(limits=(), dead="keep")
    dropped, _, _ = alone(limits=(), dead="drop")
    assert_close(skipped, read)
    (batches,) = build(limits=()).mini_batches(learnable, torch.Generator().manual_seed(0))
    assert [type(one) for one in batches].count(Skipped) == 1
    lengths = torch.tensor(learnable.experience.places.lengths)
    live = lengths[~learnable.silent].sum() / lengths.sum()
    assert_close({name: values * live for name, values in dropped.items()}, read)


def raised(change):
    """The scores with the objectives' turned into others by `change`, which may look at the prompts."""

    def score(conversations):
        found = scores(conversations)
        place = torch.tensor([float(one.prompt.id) for one in conversations])
        return {name: column if name == "cost" else change(name, column, place) for name, column in found.items()}

    return score


PLAIN = {"kl": 0.0, "overlong": "none", "limits": ()}
FREE = {"std_floor": 0.0, "eps": 1e-9}
# By mode: constants of each prompt, one scale for everything, a scale for each objective.
MEANINGLESS = {
    "constants": lambda name, column, place: column + place * {"reward": 3.0, "calm": -7.0, "patchy": 0.5}[name],
    "scale": lambda name, column, place: 4.0 * column,
    "scales": lambda name, column, place: column * {"reward": 3.0, "calm": 0.5, "patchy": 10.0}[name],
}
SAME = {
    ("sum_then_normalise", "constants"): True,
    ("sum_then_normalise", "scale"): True,
    ("sum_then_normalise", "scales"): False,
    ("normalise_then_sum", "constants"): True,
    ("normalise_then_sum", "scales"): True,
    ("variance_weighted", "constants"): True,
    ("variance_weighted", "scale"): True,
    ("leave_one_out", "constants"): True,
    ("leave_one_out", "scale"): False,
}


@pytest.mark.parametrize("mode, change", SAME)
def test_what_has_no_meaning_changes_nothing(mode, change):
    settings = PLAIN | form(mode, **FREE)
    one = alone(**settings)[2].advantages
    other = alone(**settings, score=raised(MEANINGLESS[change]))[2].advantages
    assert bool(one.any())
    # Scores of another size in float32.
    assert torch.allclose(one, other, atol=1e-4) == SAME[mode, change]


def test_under_a_floor_scales_have_a_meaning():
    settings = PLAIN | form("normalise_then_sum", std_floor=0.5)
    one = alone(**settings)[2].advantages
    other = alone(**settings, score=raised(MEANINGLESS["scales"]))[2].advantages
    assert not torch.allclose(one, other, atol=0.01)


@pytest.mark.parametrize("mode", ["sum_then_normalise", "normalise_then_sum", "leave_one_out", "batch"])
def test_answers_of_a_group_may_stand_in_any_order(mode):
    method = build(**form(mode))
    learnable = method.collect(PROMPTS, 1)
    order = [p * K + j for p, turn in enumerate([(2, 0, 1), (1, 0, 2)] * 4) for j in turn]
    e = learnable.experience
    turned = replace(
        e,
        rows=[e.rows[i] for i in order],
        conversations=[e.conversations[i] for i in order],
        old_logprobs=e.old_logprobs[order],
        ref_logprobs=e.ref_logprobs[order],
        scores={name: values[order] for name, values in e.scores.items()},
        truncated=e.truncated[order],
    )
    found = method.estimate(turned, {})
    torch.testing.assert_close(found.advantages, learnable.advantages[order], rtol=0, atol=1e-6)
    assert torch.equal(found.kept, learnable.kept[order])


def test_groups_do_not_know_of_each_other():
    """Beside a mean over the batch, and a limit whose window holds everything."""

    def louder(name, column, place):
        return column.where(place != 2, 3 * column.square())

    one = alone(limits=())[2].advantages.view(-1, K)
    other = alone(limits=(), score=raised(louder))[2].advantages.view(-1, K)
    assert not torch.equal(one[2], other[2])
    others = [p for p in range(len(PROMPTS)) if p != 2]
    assert torch.equal(one[others], other[others])


@pytest.mark.parametrize("mode", ["sum_then_normalise", "normalise_then_sum", "center", "leave_one_out", "max_rl"])
@pytest.mark.parametrize("limits", [(), (LIMIT,)])
def test_advantages_of_a_group_add_up_to_nothing(mode, limits):
    def positive(name, column, place):
        return column.nan_to_num().abs() * (-1 if name == "calm" else 1)  # of which less is better

    found = alone(limits=limits, score=raised(positive), **form(mode, clip=None))[2].advantages.view(-1, K)
    torch.testing.assert_close(found.sum(-1), torch.zeros(len(found)), rtol=0, atol=1e-5)
    assert bool(found.any())


@pytest.mark.parametrize(
    "kind, level",
    [
        *(("clip", "token"), ("clip", "sequence"), ("cispo", "token"), ("cispo", "sequence"), ("sapo", "token")),
        *(("gmpo", "token"), ("vespo", "token"), ("dppo_tv", "token")),
    ],
)
def test_at_the_first_step_every_loss_is_reinforce(kind, level):
    method = build(samples=True, loss={"kind": kind, "level": level}, dead="keep")
    with torch.no_grad():
        method.parts["policy"].lm_head.weight.mul_(15)
    found, numbers, learnable = learn(method, Processes())
    assert numbers["policy/ratio"] == pytest.approx(1, abs=1e-5)
    assert numbers["policy/approx_kl"] == pytest.approx(0, abs=1e-8)
    assert numbers["policy/clip_fraction"] == 0
    policy = build().parts["policy"]  # as it was before the step
    with torch.no_grad():
        policy.lm_head.weight.mul_(15)
    policy, experience = policy.double(), learnable.experience
    total, tokens = 0.0, 0
    for i in learnable.kept.nonzero().flatten().tolist():
        row = experience.rows[i]
        logits = policy(input_ids=torch.tensor([row.ids])).logits[0]
        for t in range(row.prompt_length, row.length):
            logp = logits[t - 1].log_softmax(-1)[row.ids[t]]
            assert logp.item() == pytest.approx(float(experience.old_logprobs[i, t - row.prompt_length]), abs=1e-5)
            total, tokens = total - float(learnable.advantages[i]) * logp, tokens + 1
    (total / tokens).backward()
    assert_close(found, {name: p.grad.float() for name, p in policy.named_parameters() if p.grad is not None})


def blind(conversations):
    return {name: torch.full_like(column, torch.nan) for name, column in scores(conversations).items()}


def test_answers_that_nobody_scored_change_nothing():
    """One prompt without any score, and one with a single answer that has one, beside the six others."""

    def holes(name, column, place):
        first = torch.arange(len(column)) % K == 0
        return column.nan_to_num().masked_fill((place == 0) | ((place == 1) & ~first), torch.nan)

    found, numbers, learnable = alone(score=raised(holes))
    rest, _, _ = alone(PROMPTS[2:], score=raised(holes), limits=())
    assert learnable.kept[:6].tolist() == [False] * 6
    assert all(one.isfinite().all() for one in found.values())
    free, _, _ = alone(score=raised(holes), limits=())
    assert_close(free, rest)
    assert numbers["unscored/reward"] == pytest.approx(5 / 24)


@pytest.mark.parametrize(
    "settings",
    [
        {"score": blind, "limits": ()},
        {
            "objectives": {"reward": {}},
            "score": lambda rows: {"reward": torch.ones(len(rows))},
            "limits": (),
            "dead": "drop",
        },
    ],
    ids=["nobody scored anything", "all are alike and dropped"],
)
def test_a_batch_without_anything_to_learn_leaves_the_policy_alone(settings):
    method = build(**settings)
    before = copy.deepcopy(method.parts["policy"].state_dict())
    _, numbers, learnable = learn(method, Processes())
    assert numbers["policy/empty"] == 1
    assert not learnable.kept.any()
    assert all(torch.equal(values, before[name]) for name, values in method.parts["policy"].state_dict().items())


def test_answers_that_end_at_once_and_answers_that_are_all_cut():
    class Ends(ByPrompt):
        """All answers are the end alone, or all are cut."""

        def answer(self, index, prompt, number):
            ids, finish = ([self.end], "stop") if number < 2 else ([9] * LONGEST, "length")
            return Sample(index, prompt.ids, ids, [-2.8] * len(ids), finish)

    method = build(overlong="mask")
    method.collector = replace(method.collector, generator=Ends(method.collector.template.end_id))
    found, _, learnable = learn(method, Processes())
    assert learnable.kept.view(-1, K)[:, 2].tolist() == [False] * len(PROMPTS)
    assert learnable.kept.any()
    assert all(one.isfinite().all() for one in found.values())


# Killed and begun again.


class Recipe(Settings):
    online: OnlineSettings = OnlineSettings(
        iterations=6, prompts_per_iteration=4, inner_epochs=2, checkpoint_every=1, sample_every=2, seed=3
    )


class PowerCut(Exception):
    """What ends a process."""


def go(folder, last=None, **settings):
    """One process: it goes on where the folder stands, and dies when it is about to begin iteration `last`."""
    limits = (
        LIMIT | {"threshold": -0.2, "window": 40, "rule": "pid", "rate": 0.5},
        {"name": "calm", "score": "calm", "measure": "logit", "bound": "mean", "rule": "log", "floor": 0.05},
    )
    kl = {"coef": 0.1, "control": "adaptive", "target": 0.01, "horizon": 200, "in_loss": 0.1}
    method = build(samples=True, limits=limits, kl=kl, steps=2, **settings)
    inner, begun = method.collector.collect, []

    def collect(prompts, seed):
        begun.append(seed)
        if last is not None and len(begun) == last:
            raise PowerCut
        return inner(prompts, seed)

    method.collector = SimpleNamespace(**vars(method.collector), collect=collect)
    run_online(method, PROMPTS, Recipe().online, RunFolder(folder, Recipe()), stage="policy")
    return method, len(begun)


def rows(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("seconds")} for line in lines]


@pytest.mark.parametrize("settings", [{}, form("mgda")], ids=["sum", "mgda"])
def test_a_run_begun_again_does_the_next_three_steps_as_it_would_have(tmp_path, settings):
    whole, _ = go(tmp_path / "whole", **settings)
    with pytest.raises(PowerCut):
        go(tmp_path / "parts", last=4, **settings)
    again, steps = go(tmp_path / "parts", **settings)
    assert steps == 3
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    assert whole.state_dict() == again.state_dict()
    for name, values in whole.parts["policy"].state_dict().items():
        assert torch.equal(again.parts["policy"].state_dict()[name], values), name
    state = whole.state_dict()
    assert state["kl"]["steered"] != 0.1
    assert state["limits"]["harm"]["multiplier"] != 2.0
    assert state["limits"]["calm"]["multiplier"] != 1.0
    assert json.loads(json.dumps(state)) == state
