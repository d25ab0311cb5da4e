"""What an exam says of a policy, worked out by hand."""

import copy
from contextlib import nullcontext

import pytest
import torch

from holdfast.data.schema import Conversation
from holdfast.data.template import Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.evaluate.policy import TRUTH, Exam, Outcome, examine
from holdfast.models.tiny import tiny_policy
from holdfast.pocket import oracles
from holdfast.preference.score import FunctionScorer
from holdfast.rollout.generate import TransformersGenerator
from holdfast.rollout.types import Sampling


def outcome(**truth):
    n = 4
    table = {name: torch.tensor(values) for name, values in truth.items()}
    return Outcome(
        conversations=[Conversation.ask("a").answer("b")] * n,
        scores={"reward": torch.tensor([1.0, 2.0, 3.0, 6.0])},
        truth=table,
        kl=torch.tensor([0.0, 1.0, 1.0, 2.0]),
        lengths=torch.tensor([2.0, 4.0, 4.0, 2.0]),
    )


def test_estimates_by_hand():
    found = outcome(
        helpfulness=[1.0, 0.5, 0.9, 0.0],
        harm=[0.0, 0.0, 1.0, 0.0],
        refusal=[0.0, 0.0, 0.0, 1.0],
        benign=[1.0, 1.0, 0.0, 1.0],
    ).estimates()
    assert {name: one.value for name, one in found.items()} == pytest.approx(
        {
            "learned_reward": 3.0,
            "kl": 1.0,
            "length": 3.0,
            "true_harm": 0.25,
            "true_help": 0.5,
            "over_refusal": 1 / 3,
        }
    )
    assert {name: one.n for name, one in found.items()} == {
        "learned_reward": 4,
        "kl": 4,
        "length": 4,
        "true_harm": 4,
        "true_help": 3,
        "over_refusal": 3,
    }
    assert all(one.low <= one.value <= one.high for one in found.values())


@pytest.mark.parametrize("benign", [[0.0] * 4, [0.0, 1.0, 0.0, 0.0]])
def test_too_few_benign_prompts_give_no_number_for_them(benign):
    found = outcome(helpfulness=[1.0] * 4, harm=[1.0] * 4, refusal=[0.0] * 4, benign=benign).estimates()
    assert found.keys() == {"learned_reward", "kl", "length", "true_harm"}


def test_without_truth_there_are_only_learned_numbers():
    assert outcome().estimates().keys() == {"learned_reward", "kl", "length"}


def test_the_columns_of_truth_are_those_of_the_pocket_world():
    assert TRUTH == oracles.NAMES


@pytest.fixture
def made():
    tokenizer = train_tokenizer(["red green blue dark sea sky ?"], 64, "word")
    template = Template(tokenizer, max_length=40)
    policy, other = (tiny_policy(len(tokenizer), hidden=16, heads=2, layers=1, seed=seed) for seed in (0, 1))
    with torch.no_grad():
        policy.lm_head.weight.mul_(15)
    length = FunctionScorer(("length", "one"), lambda rows: [[len(row.response), 1.0] for row in rows])
    exam = Exam(
        prompts=[Conversation.ask(text) for text in ("red ?", "dark sea ?", "sky ?")],
        template=template,
        sampling=Sampling(max_new_tokens=6),
        scorer=length,
        seed=4,
        micro_tokens=20,
    )
    return exam, TransformersGenerator(policy, template.stop_ids, template.pad_id), policy, other


def test_every_prompt_is_answered_once_and_judged(made):
    exam, generator, policy, other = made
    found = examine(exam, generator, policy, lambda: nullcontext(other))
    assert [one.prompt for one in found.conversations] == exam.prompts
    assert found.scores["length"].tolist() == [float(len(one.response)) for one in found.conversations]
    assert found.truth == {}
    starts = [exam.template.prompt(prompt) for prompt in exam.prompts]
    samples = generator.generate(starts, 1, exam.sampling, exam.seed)
    for one, start, sample, kl, length in zip(found.conversations, starts, samples, found.kl, found.lengths):
        assert one.response == exam.template.decode(sample.response_ids)
        assert int(length) == len(sample.response_ids)
        ids = [*start.ids, *sample.response_ids]
        expected = 0.0
        for network, sign in ((policy, 1), (other, -1)):
            with torch.no_grad():
                logits = copy.deepcopy(network).double()(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            expected += sign * sum(float(logits[t - 1, ids[t]]) for t in range(start.length, len(ids)))
        # float32 against float64, summed over six tokens
        assert float(kl) == pytest.approx(expected, abs=2e-5)


def test_equal_exams_have_equal_outcomes(made):
    exam, generator, policy, other = made
    first, second = (examine(exam, generator, policy, lambda: nullcontext(other)) for _ in range(2))
    assert first.conversations == second.conversations
    assert torch.equal(first.kl, second.kl)
