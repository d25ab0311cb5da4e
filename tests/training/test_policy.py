"""What online methods share: limits over processes, batches of an experience, and the numbers of a row."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from holdfast.errors import UserError
from holdfast.training.lagrangian import Constraint, ConstraintSettings
from holdfast.training.policy import Learnable, Limits, current_logprobs, describe, readable, stream


def harm(name="harm", score="cost", **settings):
    return Constraint(ConstraintSettings(name=name, score=score, measure="logit", threshold=0.0, **settings))


class Two:
    """One of two processes; the other one observed `theirs`."""

    rank, size = 0, 2

    def __init__(self, theirs):
        self.theirs = theirs

    def gather(self, own):
        return [*own, *self.theirs]


@pytest.fixture
def experience(bench):
    made = bench()
    return made.collector.collect(made.prompts[:3], seed=1)


def test_every_process_sees_the_costs_of_all(experience):
    own = experience.scores["cost"].tolist()
    theirs = [5.0] * 30
    alone, shared = harm(), harm()
    everything = replace(experience, scores={"cost": torch.tensor(own + theirs)})
    first = Limits([alone]).observe(everything)
    second = Limits([shared], Two(theirs)).observe(experience)
    assert first == second
    assert alone.state_dict() == shared.state_dict()
    assert shared.multiplier > 1
    assert shared.state_dict()["per_prompt"] == experience.per_prompt == 3, "answers to one prompt count once"


def test_each_limit_watches_its_own_score(experience):
    scored = replace(experience, scores={"cost": torch.full((40,), 1.0), "rude": torch.full((40,), -1.0)})
    limits = Limits([harm(), harm("rudeness", "rude")])
    numbers = limits.observe(scored)
    assert limits.multipliers == {"harm": pytest.approx(1.1), "rudeness": pytest.approx(0.9)}
    assert (numbers["cost/harm"], numbers["cost/rudeness"]) == (1.0, -1.0)
    costs = limits.costs(scored)
    assert {name: float(one[0]) for name, one in costs.items()} == {"harm": 1.0, "rudeness": -1.0}


def test_names_must_be_distinct_and_scores_known(experience):
    with pytest.raises(UserError, match=r"constraints need distinct names, got \['harm', 'harm'\]"):
        Limits([harm(), harm(score="rude")])
    with pytest.raises(UserError, match="the scorer gives no score 'rude'; it gives reward, cost"):
        Limits([harm(score="rude")]).observe(experience)


def test_warnings_and_state_are_those_of_every_constraint():
    quiet, loud = harm("quiet"), harm("loud", ceiling=1.0)
    loud.observe(torch.ones(32))
    for _ in range(10):
        loud.step()
    limits = Limits([quiet, loud])
    (warning,) = limits.warnings()
    assert warning.startswith("constraint loud: ")
    again = Limits([harm("quiet"), harm("loud", ceiling=1.0)])
    again.load_state_dict(limits.state_dict())
    assert again.state_dict() == limits.state_dict()
    assert again.warnings() == [warning]


def learnable(experience):
    """Tables in which every cell tells its row and column."""
    rows, columns = experience.old_logprobs.shape
    cells = torch.arange(rows)[:, None] * 1000.0 + torch.arange(columns)
    marked = replace(experience, old_logprobs=cells)
    return Learnable(marked, cells + 0.25, {"value": cells + 0.5}, {"value": cells + 0.75}, {})


def test_a_batch_keeps_rows_and_tables_together(experience):
    whole = learnable(experience)
    chosen = [4, 0, 7]
    batch = whole.select(chosen)
    assert batch.ids == tuple(experience.rows[i].id for i in chosen)
    width = max(experience.rows[i].length for i in chosen)
    expected = torch.tensor(chosen)[:, None] * 1000.0 + torch.arange(width)
    assert torch.equal(batch.old_logprobs, expected)
    assert torch.equal(batch.advantages, expected + 0.25)
    assert torch.equal(batch.old_values["value"], expected + 0.5)
    assert torch.equal(batch.returns["value"], expected + 0.75)
    for line, i in zip(batch.tokens.input_ids.tolist(), chosen):
        assert line[: experience.rows[i].length] == experience.rows[i].ids


def test_every_answer_is_learned_once_per_epoch_within_the_budget(experience):
    whole = learnable(experience)
    portions = whole.mini_batches(steps=2, micro_tokens=40, rng=torch.Generator().manual_seed(3))
    seen = [
        [int(batch.old_logprobs[i, 0]) // 1000 for batch in one for i in range(batch.tokens.size)] for one in portions
    ]
    assert sorted(seen[0] + seen[1]) == list(range(experience.size))
    assert [len(one) for one in seen] == [5, 4]
    for one in portions:
        for batch in one:
            assert batch.tokens.size == 1 or batch.tokens.input_ids.numel() <= 40
    again = whole.mini_batches(2, 40, torch.Generator().manual_seed(4))
    assert seen[0] != [int(batch.old_logprobs[i, 0]) // 1000 for batch in again[0] for i in range(batch.tokens.size)]
    assert len(whole.mini_batches(steps=20, micro_tokens=40, rng=torch.Generator())) == experience.size


def test_streams_differ_by_seed_iteration_and_rank():
    seeds = {stream(seed, iteration, rank) for seed in range(4) for iteration in range(4) for rank in range(4)}
    assert len(seeds) == 64
    assert stream(1, 2, 3) == stream(1, 2, 3)


def test_current_logprobs_are_those_of_the_sampler_before_any_step(bench):
    made = bench()
    experience = made.collector.collect(made.prompts[:3], seed=1)
    batch = Learnable(experience, experience.old_logprobs, {}, {}, {}).select(range(experience.size))
    now = current_logprobs(made.policy, batch.tokens, temperature=1.0)
    assert now.requires_grad
    # The sampler reads from its cache, this reads whole rows: kernels sum in another order.
    torch.testing.assert_close(now.detach(), experience.old_logprobs, rtol=0, atol=1e-5)


def test_a_row_of_metrics_by_hand():
    old, ref = torch.tensor([[0.0, -1.0, -2.0], [0.0, -0.5, 0.0]]), torch.tensor([[0.0, -1.5, -1.0], [0.0, -1.0, 0.0]])
    experience = SimpleNamespace(
        scores={"reward": torch.tensor([1.0, 2.0])},
        old_logprobs=old,
        ref_logprobs=ref,
        kl=old - ref,
        response_mask=torch.tensor([[False, True, True], [False, True, False]]),
        truncated=torch.tensor([True, False]),
        conversations=["a", "b"],
    )
    found = describe(experience, lambda rows: {"probed": float(len(rows))})

    def k3(p, q):
        return 2.718281828459045 ** (q - p) - 1 - (q - p)

    expected = {
        "reward": 1.5,
        "kl": ((0.5 - 1.0) + 0.5) / 2,
        "kl_k3": (k3(-1, -1.5) + k3(-2, -1) + k3(-0.5, -1)) / 2,
        "entropy": 3.5 / 3,
        "length": 1.5,
        "truncated": 0.5,
        "probed": 2.0,
    }
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_few_answers_to_read_are_one_per_prompt(bench):
    made = bench(k=2)
    experience = made.collector.collect(made.prompts, seed=2)
    records = readable(experience, most=2)
    assert [record["prompt"] for record in records] == [one.messages[0].text for one in made.prompts[:2]]
    for record, i in zip(records, (0, 2)):
        assert record["response"] == experience.conversations[i].response
        assert record["reward"] == float(experience.scores["reward"][i])
