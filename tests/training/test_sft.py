"""Supervised fine-tuning: the mean negative log-likelihood of every assistant's token, counted by hand."""

import pytest
import torch

from holdfast.data.schema import Conversation, Message
from holdfast.data.template import Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.engine.supervised import evaluate
from holdfast.errors import UserError
from holdfast.models.tiny import tiny_policy
from holdfast.training.sft import SftTask, imitation_rows

DIALOGUE = Conversation(
    id="long",
    messages=(
        Message.of("system", "dark"),
        Message.of("user", "red sea ?"),
        Message.of("assistant", "blue sea"),
        Message.of("user", "dark sky ?"),
        Message.of("assistant", "green"),
    ),
)
SHORT = Conversation.ask("sky ?", id="short").answer("red")


@pytest.fixture(scope="module")
def template():
    return Template(train_tokenizer(["red green blue dark sea sky ?"], 64, "word"), max_length=40)


@pytest.fixture
def task(template):
    model = tiny_policy(len(template.tokenizer), hidden=16, heads=2, layers=1)
    with torch.no_grad():
        model.lm_head.weight.mul_(15)
    return SftTask(model, template.pad_id)


def spoken(template, row):
    """The words under the turn mask."""
    return template.tokenizer.convert_ids_to_tokens([t for t, own in zip(row.ids, row.turn_mask) if own])


def test_every_assistant_turn_and_nothing_else_is_learned(template):
    long, short = imitation_rows([DIALOGUE, SHORT], template)
    assert spoken(template, long) == ["blue", "sea", "<|end|>", "green", "<|end|>"]
    assert spoken(template, short) == ["red", "<|end|>"]


def test_the_loss_is_the_mean_over_turn_tokens(template, task):
    rows = imitation_rows([DIALOGUE, SHORT], template)
    total, count = 0.0, 0
    exact = tiny_policy(len(template.tokenizer), hidden=16, heads=2, layers=1)
    exact.load_state_dict(task.model.state_dict())
    exact = exact.double()
    for row in rows:
        with torch.no_grad():
            logits = exact(input_ids=torch.tensor([row.ids])).logits[0]
        for t, own in enumerate(row.turn_mask):
            if own:
                total -= float(logits[t - 1].log_softmax(-1)[row.ids[t]])
                count += 1
    batch = task.collate(rows)
    (term,) = task.loss(batch).values()
    assert task.counts(batch) == {"nll": 7.0}
    assert float(term.count) == count == 7
    # float32 against float64, through a network
    assert term.mean.item() == pytest.approx(total / count, abs=1e-5)
    assert evaluate(task, rows, micro_tokens=1) == pytest.approx({"nll": total / count}, abs=1e-5)


def test_prompts_have_nothing_to_imitate(template):
    assert [row.id for row in imitation_rows([SHORT.prompt, SHORT], template)] == ["short"]
    with pytest.raises(UserError, match="no conversation ends with an answer"):
        imitation_rows([SHORT.prompt], template)
