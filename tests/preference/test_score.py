"""Scorers: one contract for models and functions, nothing scored twice, nothing that is not a number."""

import pytest
import torch

from holdfast.data.schema import Conversation
from holdfast.data.template import Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.errors import RunError
from holdfast.models.heads import from_policy
from holdfast.models.tiny import tiny_llava, tiny_policy, tiny_processor
from holdfast.preference.pairs import helpful_rows
from holdfast.preference.score import FunctionScorer, JointScorer, ModelScorer
from holdfast.preference.tasks import RewardTask

WORDS = "the cat sat on a mat and what did it see ? nothing"
ROWS = [
    Conversation.ask("what did it see ?", id="first").answer("nothing"),
    Conversation.ask("what did it see ?", id="second").answer("a mat and nothing on it"),
    Conversation.ask("what did it see ?", id="third").answer("nothing"),
]


@pytest.fixture(scope="module")
def template():
    return Template(train_tokenizer([WORDS], 64, "word"), max_length=40)


@pytest.fixture
def model(template):
    return from_policy(
        tiny_policy(len(template.tokenizer), hidden=16, heads=2, layers=1), ("help", "harm"), init_std=0.5
    )


def test_scores_are_those_of_each_conversation_alone_in_the_order_given(template, model):
    scorer = ModelScorer(model, template, batch_tokens=16)
    table = scorer.score(ROWS[::-1])
    assert table.shape == (3, 2)
    assert scorer.names == ("help", "harm")
    for line, one in zip(table, ROWS[::-1]):
        row = template.answered(one)
        with torch.no_grad():
            alone = model.scores(
                torch.tensor([row.ids]),
                torch.ones(1, row.length, dtype=torch.long),
                torch.arange(row.length)[None],
                torch.tensor([row.length - 1]),
            )[0]
        # Kernels sum in another order when rows are padded, hence more than 1e-6.
        torch.testing.assert_close(line, alone, rtol=0, atol=1e-5)
    assert not table.requires_grad


def test_equal_conversations_are_scored_once(template, model):
    seen = []
    model.head.register_forward_pre_hook(lambda head, states: seen.append(len(states[0])))
    table = ModelScorer(model, template).score([*ROWS, *ROWS])
    assert sum(seen) == 2
    assert torch.equal(table[0], table[2])
    assert torch.equal(table[:3], table[3:])
    assert not torch.equal(table[0], table[1])


@pytest.mark.parametrize("budget", [1, 30, 400])
def test_answers_to_one_prompt_share_it_and_get_the_scores_they_had(template, model, budget):
    words = WORDS.split()
    rows = [
        Conversation.ask(" ".join(words[p : p + 5])).answer(" ".join(words[k : k + 1 + (k + p) % 4]))
        for k in range(6)
        for p in range(3)
    ]
    read = []
    model.network.get_input_embeddings().register_forward_pre_hook(lambda _, ids: read.append(ids[0].numel()))
    plain = ModelScorer(model, template, budget, share_prompt="off").score(rows)
    alone = sum(read)
    read.clear()
    ModelScorer(model, template, budget).score(rows)  # compares, once for this model
    read.clear()
    shared = ModelScorer(model, template, budget).score(rows)
    # Sums in another order.
    torch.testing.assert_close(shared, plain, rtol=0, atol=1e-5)
    assert sum(read) == alone if budget == 1 else sum(read) < 0.8 * alone
    assert max(read) <= max(budget, 40)


def test_no_conversations_give_an_empty_table(template, model):
    assert ModelScorer(model, template).score([]).shape == (0, 2)
    assert FunctionScorer(("a", "b"), lambda rows: []).score([]).shape == (0, 2)


def test_scores_that_are_no_numbers_name_their_rows(template, model):
    model.head.weight.data[1, 0] = torch.nan
    with pytest.raises(RunError, match=r"3 of 3 .* not finite \(rows first, second, third\); the score model has"):
        ModelScorer(model, template).score(ROWS)
    nameless = Conversation.ask("what ?").answer("nothing")
    with pytest.raises(RunError, match=r"1 of 2 .* \(rows number 1\)"):
        FunctionScorer(("a",), lambda rows: [[0.0], [float("inf")]]).score([ROWS[0], nameless])


def test_a_function_must_return_a_row_for_each_and_a_column_for_each_name():
    with pytest.raises(RunError, match=r"shape \(2, 3\) where \(3, 2\) is needed: .* each of a, b"):
        FunctionScorer(("a", "b"), lambda rows: [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).score(ROWS)
    with pytest.raises(RunError, match=r"shape \(3,\) where \(3, 1\) is needed"):
        FunctionScorer(("a",), lambda rows: [1.0, 2.0, 3.0]).score(ROWS)


def test_joint_scorers_stand_side_by_side():
    length = FunctionScorer(("length",), lambda rows: [[len(row.response)] for row in rows])
    both = FunctionScorer(("one", "two"), lambda rows: [[1.0, 2.0] for _ in rows])
    joint = JointScorer([length, both])
    assert joint.names == ("length", "one", "two")
    assert joint.score(ROWS[:2]).tolist() == [[7.0, 1.0, 2.0], [23.0, 1.0, 2.0]]
    with pytest.raises(ValueError, match="two scorers share a name"):
        JointScorer([length, length])


def picture(folder, name, colour):
    from PIL import Image as Pillow

    from holdfast.data.images import refer

    Pillow.new("RGB", (16, 16), colour).save(folder / name)
    return refer(folder / name)


@pytest.fixture
def seeing():
    """A LLaVA that scores, and the template that feeds it."""
    pytest.importorskip("PIL")
    tokenizer = train_tokenizer([WORDS], 64, "word")
    template = Template(tiny_processor(tokenizer, "<|image|>"), max_length=40)
    policy = tiny_llava(len(tokenizer), tokenizer.convert_tokens_to_ids("<|image|>"))
    return from_policy(policy, ("reward",), init_std=0.5), template


def test_answers_about_one_image_share_it(tmp_path, seeing):
    model, template = seeing
    images = [picture(tmp_path, "red.png", (250, 10, 10)), picture(tmp_path, "blue.png", (10, 10, 250))]
    answers = ("a cat", "nothing", "the cat sat on a mat")
    rows = [Conversation.ask("what did it see ?", (image,)).answer(text) for text in answers for image in images]
    plain = ModelScorer(model, template, share_prompt="off").score(rows)
    ModelScorer(model, template).score(rows)  # compares, once for this model
    seen = []
    model.network.base_model.vision_tower.register_forward_pre_hook(
        lambda tower, args, kwargs: seen.append(len(kwargs.get("pixel_values", args[0] if args else None))),
        with_kwargs=True,
    )
    # Sums in another order.
    torch.testing.assert_close(ModelScorer(model, template).score(rows), plain, rtol=0, atol=1e-5)
    assert seen == [2]


def test_changing_only_the_image_changes_the_score(tmp_path, seeing):
    model, template = seeing
    red, blue = picture(tmp_path, "red.png", (250, 10, 10)), picture(tmp_path, "blue.png", (10, 10, 250))
    rows = [
        Conversation.ask("what did it see ?", (red,)).answer("a cat"),
        Conversation.ask("what did it see ?", (blue,)).answer("a cat"),
        Conversation.ask("what did it see ?").answer("a cat and a mat"),
        Conversation.ask("what did it see ?", (red,)).answer("a cat"),
    ]
    scorer = ModelScorer(model, template)
    table = scorer.score(rows)
    assert abs(float(table[0] - table[1])) > 1e-3
    assert torch.equal(table[0], table[3])
    # Text alone goes through the same batch; padding moves sums, hence more than 1e-6.
    torch.testing.assert_close(table[2:3], scorer.score(rows[2:3]), rtol=0, atol=1e-5)
    torch.testing.assert_close(table[1:2], scorer.score(rows[1:2]), rtol=0, atol=1e-5)


def test_a_reward_task_learns_from_pairs_with_images(tmp_path, seeing):
    from holdfast.data.schema import DualPair

    model, template = seeing
    task = RewardTask(model, template.pad_id)
    pairs = [
        DualPair(
            id=f"pair-{i}",
            prompt=Conversation.ask("what did it see ?", (picture(tmp_path, f"{i}.png", (80 * i, 90, 10)),)),
            responses=("a cat", "nothing on the mat"),
            helpful_id=i % 2,
        )
        for i in range(2)
    ]
    rows = helpful_rows(pairs, template)
    together = task.loss(task.collate(rows))["rank"]
    alone = [task.loss(task.collate([row]))["rank"].total.item() for row in rows]
    # Each row must keep its own image in the joined batch; padding moves sums, hence more than 1e-6.
    assert together.total.item() == pytest.approx(sum(alone), abs=1e-5)
    together.total.backward()
    tower = [p.grad for name, p in model.named_parameters() if "vision" in name and p.grad is not None]
    assert tower
    assert any(gradient.abs().max() > 0 for gradient in tower)
