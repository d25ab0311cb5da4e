"""What online methods share: limits over processes, batches of an experience, and the numbers of a row."""

from dataclasses import replace

import pytest
import torch

from holdfast.engine.distributed import Processes
from holdfast.errors import UserError
from holdfast.training.health import measure
from holdfast.training.lagrangian import Constraint, ConstraintSettings
from holdfast.training.policy import Learnable, Limits, average, current_logprobs, describe, readable, stream


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
    marked = replace(experience, old_logprobs=cells, ref_logprobs=cells + 0.125)
    column = experience.places.flat(cells)
    return Learnable(marked, column + 0.25, {"value": column + 0.5}, {"value": column + 0.75}, {})


def test_a_batch_keeps_rows_and_tables_together(experience):
    whole = learnable(experience)
    chosen = [4, 0, 7]
    batch = whole.select(chosen)
    assert batch.ids == tuple(experience.rows[i].id for i in chosen)
    width = max(experience.rows[i].length for i in chosen)
    for place, i in enumerate(chosen):
        row = experience.rows[i]
        expected = torch.zeros(width)
        expected[row.prompt_length : row.length] = i * 1000.0 + torch.arange(len(row.response_ids))
        inside = batch.tokens.response_mask[place]
        for table, shift in (
            (batch.old_logprobs, 0.0),
            (batch.ref_logprobs, 0.125),
            (batch.advantages, 0.25),
            (batch.old_values["value"], 0.5),
            (batch.returns["value"], 0.75),
        ):
            assert torch.equal(table[place], (expected + shift) * inside)
        assert batch.tokens.input_ids[place].tolist()[: row.length] == row.ids


def test_answers_that_are_not_kept_are_not_learned(experience):
    kept = (1, 5, 6)
    portions = replace(learnable(experience), kept=kept).mini_batches(2, 40, torch.Generator().manual_seed(3))
    rows = [row for portion in portions for batch in portion for row in batch.old_logprobs.amax(-1).tolist()]
    assert sorted(int(row) // 1000 for row in rows) == list(kept)
    assert replace(learnable(experience), kept=()).mini_batches(2, 40, torch.Generator()) == [[], []]


def test_new_advantages_go_where_the_old_ones_were(experience):
    batch = learnable(experience).select([4, 0, 7])
    mask = batch.tokens.response_mask
    again = batch.with_advantages(torch.arange(float(mask.sum())))
    assert torch.equal(again.advantages[mask], torch.arange(float(mask.sum())))
    assert again.advantages[~mask].eq(0).all()
    assert torch.equal(again.old_logprobs, batch.old_logprobs)


def test_every_answer_is_learned_once_per_epoch_within_the_budget(experience):
    whole = learnable(experience)
    portions = whole.mini_batches(steps=2, micro_tokens=40, rng=torch.Generator().manual_seed(3))
    seen = [[int(row) // 1000 for batch in one for row in batch.old_logprobs.amax(-1)] for one in portions]
    assert sorted(seen[0] + seen[1]) == list(range(experience.size))
    assert [len(one) for one in seen] == [5, 4]
    for one in portions:
        for batch in one:
            assert batch.tokens.size == 1 or batch.tokens.input_ids.numel() <= 40
    again = whole.mini_batches(2, 40, torch.Generator().manual_seed(4))
    assert seen[0] != [int(row) // 1000 for batch in again[0] for row in batch.old_logprobs.amax(-1)]
    sizes = [len(portion) for portion in whole.mini_batches(steps=20, micro_tokens=40, rng=torch.Generator())]
    assert sizes == [1] * experience.size + [0] * (20 - experience.size), "every process makes every step"


def test_streams_differ_by_seed_iteration_and_rank():
    seeds = {stream(seed, iteration, rank) for seed in range(4) for iteration in range(4) for rank in range(4)}
    assert len(seeds) == 64
    assert stream(1, 2, 3) == stream(1, 2, 3)


def test_current_logprobs_are_those_of_the_sampler_before_any_step(bench):
    made = bench()
    experience = made.collector.collect(made.prompts[:3], seed=1)
    column = experience.places.flat(experience.old_logprobs)
    batch = Learnable(experience, column, {}, {}, {}).select(range(experience.size))
    now = current_logprobs(made.policy, batch.tokens, temperature=1.0)
    assert now.requires_grad
    # The sampler reads from its cache, this reads whole rows: kernels sum in another order.
    torch.testing.assert_close(now.detach(), batch.old_logprobs, rtol=0, atol=1e-5)


def test_a_row_of_metrics_has_scores_health_time_and_what_the_probe_says(experience):
    found = describe(experience, "reward", lambda rows: {"probed": float(len(rows))})
    assert found["reward"] == pytest.approx(float(experience.scores["reward"].mean()))
    assert found["probed"] == experience.size
    assert found["seconds/score"] == experience.seconds["score"]
    assert measure(experience, "reward").items() <= found.items()


class OtherProcess:
    """The first of two processes; the other one knows `theirs`."""

    rank, size = 0, 2

    def __init__(self, theirs):
        self.theirs = theirs

    def add_up(self, own):
        other = dict.fromkeys(self.theirs, 1.0) if set(own[0].values()) == {1.0} else self.theirs
        return {name: own[0].get(name, 0.0) + other.get(name, 0.0) for name in {**own[0], **other}}


def test_numbers_are_averaged_over_the_processes_that_know_them():
    found = average({"kl": 2.0, "source/a/score": 5.0}, OtherProcess({"kl": 4.0, "source/b/score": 7.0}))
    assert found == {"kl": 3.0, "source/a/score": 5.0, "source/b/score": 7.0}
    assert average({"kl": 2.0}, Processes()) == {"kl": 2.0}


def test_a_few_answers_to_read_are_one_per_prompt(bench):
    made = bench(k=2)
    experience = made.collector.collect(made.prompts, seed=2)
    records = readable(experience, most=2)
    assert [record["prompt"] for record in records] == [one.messages[0].text for one in made.prompts[:2]]
    for record, i in zip(records, (0, 2)):
        assert record["response"] == experience.conversations[i].response
        assert record["reward"] == float(experience.scores["reward"][i])
