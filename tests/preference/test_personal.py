"""The mixture scorer: each answer as its reader sees it, read once, and never by weights that saw the answer."""

import pytest
import torch

from holdfast.data.context import with_context
from holdfast.data.schema import Conversation
from holdfast.data.template import PromptTooLong, Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.errors import RunError, UserError
from holdfast.models.mixture import mixture_from
from holdfast.models.tiny import tiny_policy
from holdfast.preference.adapt import UserStore
from holdfast.preference.aggregate import tournament
from holdfast.preference.personal import MixtureScorer, Person

WORDS = "the cat sat on a mat and what did it see ? nothing be brief long [criteria] [prompt] where"
NAMES = ("brief", "thorough", "polite")
WHAT, WHERE = Conversation.ask("what did it see ?", id="what"), Conversation.ask("where sat the cat ?", id="where")
ROWS = [WHAT.answer("nothing"), WHAT.answer("a mat and nothing on it"), WHERE.answer("on a mat"), WHERE.answer("on it")]
BRIEF, LONG = Person(context="be brief"), Person(context="long")


@pytest.fixture(scope="module")
def template():
    return Template(train_tokenizer([WORDS], 96, "word"), max_length=48)


@pytest.fixture
def model(template):
    policy = tiny_policy(len(template.tokenizer), hidden=16, heads=2, layers=1)
    made = mixture_from(policy, NAMES, init_std=0.5, router_hidden=8).eval()
    with torch.no_grad():
        # Untrained, the last token hardly looks at those before it, and a fresh router says the same to everybody.
        for layer in made.model.layers:
            for weight in layer.self_attn.parameters():
                weight.mul_(12)
        made.router.last.weight.normal_(std=2.0, generator=torch.Generator().manual_seed(1))
    made.set_standardisation(torch.tensor([0.3, -0.2, 0.1]), torch.tensor([1.0, 2.0, 0.5]))
    return made


@pytest.fixture
def read(model, monkeypatch):
    """Counts the rows that go through the network."""
    rows = []
    inner = type(model).features
    monkeypatch.setattr(
        type(model), "features", lambda self, ids, *a, **k: rows.append(len(ids)) or inner(self, ids, *a, **k)
    )
    return rows


def alone(model, template, conversation, context="", heads_see_context=False):
    """Raw rewards and weights of one answer, from unpadded passes of its own."""

    def features(one):
        row = template.answered(one)
        length = torch.tensor([row.length - 1])
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            return model.features(
                ids, ids * 0 + 1, torch.arange(row.length)[None], length, torch.tensor([row.prompt_length - 1])
            )

    asked = with_context(conversation, context, model.config.context_template)
    with torch.no_grad():
        rewards = model.rewards(features(asked if heads_see_context else conversation)[0])[0]
        return rewards, model.log_weights(features(asked)[1])[0].exp()


def by_hand(model, rewards, weights):
    mean, std = model.config.reward_mean, model.config.reward_std
    return sum(float(w) * (float(r) - m) / s for w, r, m, s in zip(weights, rewards, mean, std))


@pytest.mark.parametrize("see", [False, True])
@pytest.mark.parametrize("person", [Person(), BRIEF])
def test_scores_are_those_of_each_answer_alone(model, template, person, see):
    scorer = MixtureScorer(model, template, heads_see_context=see, batch_tokens=64)
    table = scorer.score_for(ROWS[::-1], [person] * 4)
    assert scorer.names == ("score", *NAMES)
    assert table.shape == (4, 4)
    for line, one in zip(table, ROWS[::-1]):
        rewards, weights = alone(model, template, one, person.context, see)
        # Kernels sum in another order when rows are padded, hence more than 1e-6.
        torch.testing.assert_close(line[1:], rewards, rtol=0, atol=1e-5)
        assert float(line[0]) == pytest.approx(by_hand(model, rewards, weights), abs=1e-5)
    assert not table.requires_grad


def test_a_context_changes_weights_and_heads_see_it_only_when_told(model, template):
    scorer = MixtureScorer(model, template)
    plain, brief, long = (scorer.score_for(ROWS, [one] * 4) for one in (Person(), BRIEF, LONG))
    assert torch.equal(plain, scorer.score(ROWS))
    assert (brief[:, 0] - long[:, 0]).abs().max() > 1e-3
    torch.testing.assert_close(brief[:, 1:], long[:, 1:], rtol=0, atol=1e-5)  # padded to other lengths
    seeing = MixtureScorer(model, template, heads_see_context=True)
    assert (seeing.score_for(ROWS, [BRIEF] * 4)[:, 1:] - plain[:, 1:]).abs().max() > 1e-3
    model.config.heads_see_context = True
    assert MixtureScorer(model, template).heads_see_context


def test_weights_cannot_see_the_answer(model, template):
    scorer = MixtureScorer(model, template)
    for person in (Person(), BRIEF):
        _, weights = scorer.rewards_and_weights(ROWS, [person] * 4)
        assert torch.equal(weights[0], weights[1])
        assert torch.equal(weights[2], weights[3])
        assert not torch.allclose(weights[0], weights[2])
        torch.testing.assert_close(weights.exp().sum(-1), torch.ones(4))


def test_answers_and_prompts_are_read_once(model, template, read):
    scorer = MixtureScorer(model, template)
    scorer.score([*ROWS, *ROWS])
    assert sum(read) == 4, "without a context the answer's row tells the router too"
    read.clear()
    table = scorer.score_for([*ROWS, *ROWS, *ROWS], [BRIEF] * 4 + [LONG] * 4 + [BRIEF] * 4)
    assert sum(read) == 4 + 2 * 2, "two prompts in two contexts beside the four answers"
    assert torch.equal(table[:4], table[8:])


def test_a_users_labels_speak_in_place_of_the_router(model, template, read):
    users = UserStore(NAMES)
    users.learn("ada", torch.tensor([[3.0, -2.0, 0.0]]))
    scorer = MixtureScorer(model, template, users=users)
    people = [Person(user_id="ada", context="be brief"), Person(user_id="bob", context="long")]
    rewards, log_weights = scorer.rewards_and_weights(ROWS[:1] * 2, people)
    assert sum(read) == 2, "ada's prompt is not read"
    torch.testing.assert_close(log_weights[0], users.log_weights("ada"))
    torch.testing.assert_close(log_weights[1].exp(), alone(model, template, ROWS[0], "long")[1], rtol=0, atol=1e-5)
    score = scorer.score_for(ROWS[:1], people[:1])[0, 0]
    assert float(score) == pytest.approx(by_hand(model, rewards[0], log_weights[0].exp()), abs=1e-5)


def test_masked_heads_speak_for_nobody(model, template):
    users = UserStore(NAMES)
    users.learn("ada", torch.tensor([[3.0, -2.0, 0.0]]))
    model.mask(["brief"])
    scorer = MixtureScorer(model, template, users=users)
    _, log_weights = scorer.rewards_and_weights(ROWS[:2], [Person(user_id="ada"), BRIEF])
    assert log_weights[:, 0].exp().tolist() == [0, 0]
    torch.testing.assert_close(log_weights.exp().sum(-1), torch.ones(2))
    known = users.log_weights("ada").exp()
    assert float(log_weights[0, 1].exp()) == pytest.approx(float(known[1] / known[1:].sum()))
    assert scorer.score_for(ROWS[:2], [Person(user_id="ada"), BRIEF]).isfinite().all()
    users.learn("eve", torch.tensor([[900.0, -900.0, -900.0]]))
    with pytest.raises(UserError, match="all weight of user 'eve' lies on masked heads; forget the user's labels"):
        scorer.score_for(ROWS[:2], [BRIEF, Person(user_id="eve")])


def test_answers_of_one_prompt_play_a_tournament(model, template):
    scorer = MixtureScorer(model, template)
    people = [BRIEF] * 2 + [LONG] * 2
    wins = scorer.tournament_scores(ROWS, 2, people)
    rewards, log_weights = scorer.rewards_and_weights(ROWS, people)
    torch.testing.assert_close(wins, tournament(rewards.view(2, 2, 3), log_weights[::2].exp()).flatten())
    assert wins[:2].sum().item() == pytest.approx(1)
    # As the score of a call, in any order and with groups of any size.
    mixed = MixtureScorer(model, template, aggregation="tournament")
    order = [2, 0, 3, 1]
    table = mixed.score_for([ROWS[i] for i in order], [people[i] for i in order])
    torch.testing.assert_close(table[:, 0], wins[order], rtol=0, atol=1e-5)
    three = mixed.score([*ROWS[:2], WHAT.answer("a cat"), *ROWS[2:]])
    assert three[:3, 0].sum().item() == pytest.approx(1.5, abs=1e-5)
    with pytest.raises(UserError, match="row where: a tournament needs a second answer to the prompt for the same"):
        mixed.score_for(ROWS, [BRIEF, BRIEF, BRIEF, LONG])
    for answers in (1, 3, 4):
        with pytest.raises(UserError, match=f"4 answers do not stand in groups of {answers} to one prompt"):
            scorer.tournament_scores(ROWS, answers)
    with pytest.raises(UserError, match="do not stand in groups"):
        scorer.tournament_scores(ROWS, 2, [BRIEF, LONG, BRIEF, BRIEF])


def test_a_context_that_fills_the_window_names_the_row(model, template):
    wordy = Person(context="be brief " * 20)
    with pytest.raises(PromptTooLong, match=r"row where: its prompt has \d+ tokens and the window 48"):
        MixtureScorer(model, template).score_for(ROWS[1:3], [BRIEF, wordy])


def test_no_conversations_give_an_empty_table(model, template):
    assert MixtureScorer(model, template).score([]).shape == (0, 4)
    assert MixtureScorer(model, template, aggregation="tournament").score([]).shape == (0, 4)
    assert MixtureScorer(model, template).tournament_scores([], 2).shape == (0,)


def test_what_cannot_work_is_refused(model, template):
    with pytest.raises(UserError, match=r"weights over the heads a, b, and the model has brief, thorough, polite"):
        MixtureScorer(model, template, users=UserStore(("a", "b")))
    with pytest.raises(UserError, match="scored by linear or tournament, not 'mixture_prob'; set aggregation"):
        MixtureScorer(model, template, aggregation="mixture_prob")
    namesake = mixture_from(tiny_policy(len(template.tokenizer), hidden=16, heads=2, layers=1), ("score", "polite"))
    with pytest.raises(UserError, match="a head is called score, which is the name of the personal score"):
        MixtureScorer(namesake, template)
    with pytest.raises(ValueError, match="zip"):
        MixtureScorer(model, template).score_for(ROWS, [BRIEF])
    with torch.no_grad():
        model.score.weight[1, 0] = torch.nan
    with pytest.raises(RunError, match=r"4 of 4 .* not finite \(rows what, what, where, where\)"):
        MixtureScorer(model, template).score(ROWS)
