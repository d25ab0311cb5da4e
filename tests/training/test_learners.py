"""Learners: words, probes and networks learn soft targets, and what is finished is loaded and predicts as before."""

import builtins
import importlib
import math

import pytest
import torch

from holdfast.data.schema import Conversation
from holdfast.data.template import Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.engine.log import RunFolder
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings
from holdfast.errors import UserError
from holdfast.models.adapters import AdapterSettings
from holdfast.models.tiny import tiny_policy
from holdfast.preference.score import ModelScorer
from holdfast.training import learners, transfer
from holdfast.training.learners import Affine, BagOfWords, Finetuned, Probe, check_targets
from holdfast.training.transfer import TransferSettings

WORDS = "a rose is red and a violet is blue but nothing smells like old fish in the sun"


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def settings(epochs=4, rate=0.05, **changes):
    optimiser = OptimiserSettings(learning_rate=rate, warmup_ratio=0.0)
    return TransferSettings(fit=FitSettings(epochs=epochs, batch_size=16, optimiser=optimiser), **changes)


def one_hot(labels, classes=2):
    return torch.eye(classes)[list(labels)]


def learn(learner, run, items, targets, chosen=None, seed=0, stage="student/soft/0", **options):
    return learner.learn(items, targets, chosen or settings(), seed=seed, run=run, stage=stage, **options)


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path)


@pytest.fixture(scope="module")
def features():
    """80 items of two classes, told apart by the sum of the first two of six features of uneven size."""
    table = torch.randn(80, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 1, 1, 1, 50, 0]) + 7
    return table, ((table[:, 0] + table[:, 1]) > 14).long()


FLOWERS = ["a red rose", "a blue violet", "old fish", "fish in the sun"] * 5
SMELLS = [0, 0, 1, 1] * 5


def test_words_tell_classes_apart(run):
    found = learn(BagOfWords(), run, FLOWERS, one_hot(SMELLS))
    logits = found(["red violet", "sun fish"])
    assert logits.shape == (2, 2)
    assert logits.argmax(1).tolist() == [0, 1]


def test_words_are_those_of_scikit_learn(run):
    text = importlib.import_module("sklearn.feature_extraction.text")
    linear_model = importlib.import_module("sklearn.linear_model")
    vectoriser = text.TfidfVectorizer()
    table = vectoriser.fit_transform(FLOWERS)
    reference = linear_model.LogisticRegression(C=10, max_iter=1000).fit(table, SMELLS)
    new = ["red fish", "nothing known", "blue sun"]
    expected = reference.decision_function(vectoriser.transform(new))
    logits = learn(BagOfWords(), run, FLOWERS, one_hot(SMELLS))(new)
    # The rows stand in another order, so the optimiser stops elsewhere within its own tolerance of 1e-4.
    assert (logits[:, 1] - logits[:, 0]).tolist() == pytest.approx(expected.tolist(), abs=2e-3)


def test_soft_targets_are_weights(run):
    """Of a word seen with target .75 three quarters of the weight is class 1, up to the regularisation."""
    texts, soft = ["rose", "fish"] * 200, torch.tensor([[0.25, 0.75], [0.9, 0.1]] * 200)
    p = learn(BagOfWords(regularisation=1e4), run, texts, soft)(["rose", "fish"]).softmax(-1)
    assert p[:, 1].tolist() == pytest.approx([0.75, 0.1], abs=1e-3)
    hard = learn(BagOfWords(), run, texts, soft, settings(kind="hard"), stage="hard")(["rose"]).softmax(-1)
    assert float(hard[0, 1]) > 0.95


def test_pairs_of_words_know_no_side(run):
    pairs = [("old fish", "a rose"), ("a violet", "fish"), ("the fish", "red"), ("blue", "old fish")] * 4
    found = learn(BagOfWords(pair=True), run, pairs, one_hot([1, 0, 1, 0] * 4))
    logits = found([("fish", "rose"), ("rose", "fish"), ("rose", "rose")])
    assert logits[:, 0].tolist() == [0, 0, 0]
    margins = logits[:, 1].tolist()
    assert margins[0] > 0
    assert margins[0] == pytest.approx(-margins[1], abs=1e-6)
    assert margins[2] == 0


def test_a_class_that_nobody_named_is_not_predicted(run):
    found = learn(BagOfWords(), run, FLOWERS, one_hot(SMELLS, 3))
    assert (found(["fish", "rose"]).softmax(-1)[:, 2] < 1e-9).all()
    three = learn(BagOfWords(), run, FLOWERS, one_hot([0, 1, 2, 2] * 5, 4), stage="three")
    p = three(["red rose", "blue violet", "fish"]).softmax(-1)
    assert p.argmax(1).tolist() == [0, 1, 2]
    assert (p[:, 3] < 1e-9).all()


def test_words_cannot_follow_a_student(run):
    with pytest.raises(UserError, match=r"those of 'logconf' follow the student; take kind: soft or hard"):
        learn(BagOfWords(), run, FLOWERS, one_hot(SMELLS), settings(kind="logconf"))


def test_without_scikit_learn_the_command_is_said(run, monkeypatch):
    def absent(name, *rest):
        if name.startswith("sklearn"):
            raise ModuleNotFoundError(name)
        return builtins.__import__(name, *rest)

    monkeypatch.setattr(learners.importlib, "import_module", absent)
    with pytest.raises(UserError, match=r"pip install 'holdfast\[classic\]'"):
        learn(BagOfWords(), run, FLOWERS, one_hot(SMELLS))


def test_a_probe_standardises_by_what_it_learns_from(features, run):
    table, labels = features
    found = learn(Probe(lambda rows: table[list(rows)]), run, range(60), one_hot(labels[:60].tolist()), settings(20))
    network = found.network
    torch.testing.assert_close(network.mean, table[:60].mean(0))
    torch.testing.assert_close(network.scale[:5], table[:60, :5].std(0, correction=0))
    standard = (table - network.mean) / network.scale
    torch.testing.assert_close(network(table), standard @ network.last.weight.T + network.last.bias)
    # A feature that never varies must not be divided by its spread.
    assert network.scale[5] == 1
    assert float((found(range(60, 80)).argmax(1) == labels[60:]).float().mean()) >= 0.85


def test_probes_start_without_favour_and_by_seed():
    mean, scale = torch.zeros(4), torch.ones(4)
    x = torch.randn(3, 4)
    assert Affine(mean, scale, 2, 0, True, seed=0)(x).abs().max() == 0
    first, same, other = (Affine(mean, scale, 2, 8, True, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.inner.weight, same.inner.weight)
    assert not torch.equal(first.inner.weight, other.inner.weight)
    assert first(x).abs().max() == 0
    assert first.inner.weight.abs().max().item() <= 0.5


def test_a_probe_on_pairs_is_antisymmetric(features, run):
    table, _ = features
    pairs = torch.stack([table[:40], table[40:]], 1)
    better = (pairs[:, 1, 0] > pairs[:, 0, 0]).long()
    for hidden in (0, 8):
        probe = Probe(lambda rows: pairs[list(rows)], pair=True, hidden=hidden)
        stage = f"student/{hidden}/0"
        found = learn(probe, run, range(40), one_hot(better.tolist()), settings(30), stage=stage)
        margins = found(range(40))[:, 1]
        assert float(((margins > 0).long() == better).float().mean()) > 0.9
        # The network scores one answer: the better answer has more of it, and no answer has any by default.
        scores = found.network(pairs)[..., 0].detach()
        torch.testing.assert_close(scores[:, 1] - scores[:, 0], margins)
        assert found.network.last.bias is None
        probe.view = lambda rows: pairs.flip(1)[list(rows)]
        swapped = learners.Network(found.network, found.forward, probe.view)
        torch.testing.assert_close(swapped(range(40))[:, 1], -margins)


@pytest.mark.parametrize("prior, expected", [("auto", None), ("weak", [0.75, 0.25]), (0.5, [0.5, 0.5])])
def test_pairs_are_hardened_at_one_half_unless_told_otherwise(features, run, monkeypatch, prior, expected):
    """The order of a pair is drawn: a threshold that depended on the batch would depend on that order."""
    table, _ = features
    pairs = torch.stack([table[:40], table[40:]], 1)
    seen = {}
    monkeypatch.setattr(learners, "train", lambda *given, **named: seen.update(named))
    probe = Probe(lambda rows: pairs[list(rows)], pair=True)
    learn(probe, run, range(40), one_hot([0, 0, 0, 1] * 10), settings(kind="logconf", prior=prior))
    assert seen["prior"] is None if expected is None else seen["prior"].tolist() == expected


def test_what_is_finished_is_loaded_and_predicts_as_before(features, run, monkeypatch):
    table, labels = features
    probe = Probe(lambda rows: table[list(rows)], hidden=8)
    targets, chosen = one_hot(labels[:60].tolist()), settings(kind="logconf")
    select = (range(60, 80), one_hot(labels[60:].tolist()))
    before = learn(probe, run, range(60), targets, chosen, select=select)(range(80))
    words = learn(BagOfWords(), run, FLOWERS, one_hot(SMELLS), stage="words")(FLOWERS)
    monkeypatch.setattr(transfer.TransferTask, "loss", None)
    monkeypatch.setattr(BagOfWords, "_fit", None)
    assert torch.equal(learn(probe, run, range(60), targets, chosen, select=select)(range(80)), before)
    assert torch.equal(learn(BagOfWords(), run, FLOWERS, one_hot(SMELLS), stage="words")(FLOWERS), words)


def test_a_stage_of_something_else_is_refused(features, run):
    table, labels = features
    probe = Probe(lambda rows: table[list(rows)])
    targets = one_hot(labels[:60].tolist())
    learn(probe, run, range(60), targets)
    for changed in (
        lambda: learn(probe, run, range(60), 1 - targets),
        lambda: learn(probe, run, range(20, 80), one_hot(labels[:60].tolist())),
        lambda: learn(probe, run, range(60), targets, seed=1),
        lambda: learn(probe, run, range(60), targets, settings(epochs=5)),
        lambda: learn(Probe(probe.view, hidden=4), run, range(60), targets),
        lambda: learn(probe, run, range(60), targets, select=(range(60, 80), one_hot(labels[60:].tolist()))),
    ):
        with pytest.raises(UserError, match="holds a run and checkpoints of another configuration"):
            changed()


def test_the_seed_moves_the_order_of_the_rows(features, tmp_path):
    table, labels = features
    probe = Probe(lambda rows: table[list(rows)])

    def weights(seed, name):
        found = learn(probe, RunFolder(tmp_path / name), range(60), one_hot(labels[:60].tolist()), seed=seed)
        return found.network.last.weight

    assert torch.equal(weights(0, "a"), weights(0, "b"))
    assert not torch.equal(weights(0, "c"), weights(1, "d"))


def test_watching_changes_nothing(features, tmp_path):
    table, labels = features
    probe, targets = Probe(lambda rows: table[list(rows)]), one_hot(labels[:60].tolist())
    seen = []
    watched = learn(
        probe,
        RunFolder(tmp_path / "a"),
        range(60),
        targets,
        watch=lambda epoch, predictor: seen.append((epoch, predictor([79]))),
    )
    alone = learn(probe, RunFolder(tmp_path / "b"), range(60), targets)
    assert torch.equal(watched.network.last.weight, alone.network.last.weight)
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 4]
    assert not torch.equal(seen[0][1], seen[3][1])
    assert torch.equal(seen[3][1], alone([79]))


def test_unusable_targets_are_named(run):
    with pytest.raises(UserError, match=r"one-class data, all 4 labels say class 1.*draw the order"):
        learn(BagOfWords(), run, ["a"] * 4, one_hot([1] * 4))
    with pytest.raises(UserError, match="no items to learn from"):
        learn(Probe(lambda rows: torch.ones(0, 2)), run, [], torch.empty(0, 2))
    with pytest.raises(ValueError, match="need finite targets"):
        check_targets(torch.full((2, 2), math.nan), 2, "x")
    with pytest.raises(ValueError, match="3 items need"):
        check_targets(torch.eye(2), 3, "x")


@pytest.fixture(scope="module")
def template():
    return Template(train_tokenizer([WORDS], 64, "word"), max_length=40)


@pytest.fixture(scope="module")
def policy(template):
    return tiny_policy(len(template.tokenizer), hidden=16, heads=2, layers=1)


ASKED = [Conversation.ask(text, id=str(i)) for i, text in enumerate(FLOWERS)]


def test_a_network_is_finetuned_to_classes(template, policy, run):
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    learner = Finetuned(policy, template, names=("fine", "foul"))
    found = learn(learner, run, ASKED, one_hot(SMELLS), settings(8, 0.02))
    assert found.network.names == ("fine", "foul")
    assert float((found(ASKED).argmax(1) == torch.tensor(SMELLS)).float().mean()) == 1
    # It learned a copy.
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    again = learn(Finetuned(policy, template, names=("fine", "foul")), run, ASKED, one_hot(SMELLS), settings(8, 0.02))
    assert torch.equal(again(ASKED), found(ASKED))


def test_answers_are_read_at_their_end_and_prompts_at_theirs(template, policy, run):
    learner = Finetuned(policy, template)
    answered = Conversation.ask("a rose").answer("red")
    assert learner._encode(answered).response_ids
    assert not learner._encode(Conversation.ask("a rose")).response_ids


@pytest.mark.parametrize("kind", ["soft", "logconf"])
def test_a_network_is_finetuned_on_pairs(template, policy, run, kind):
    good, bad = "a red rose", "old fish"
    items = []
    for i in range(12):
        one, other = (Conversation.ask("is", id=str(i)).answer(text) for text in (good, bad))
        items.append((other, one) if i % 2 else (one, other))
    targets = one_hot([i % 2 for i in range(12)])
    found = learn(Finetuned(policy, template, pair=True), run, items, targets, settings(8, 0.02, kind=kind))
    assert found.network.names == ("score",)
    logits = found(items)
    assert (logits[:, 0] == 0).all()
    assert logits.argmax(1).tolist() == [i % 2 for i in range(12)]
    # What is saved is a reward model: the better answer scores higher.
    liked, disliked = ModelScorer(found.network, template).score([items[1][1], items[1][0]])[:, 0].tolist()
    assert liked > disliked
    swapped = found([(other, one) for one, other in items])
    # Sums of a padded batch in another order.
    torch.testing.assert_close(swapped[:, 1], -logits[:, 1], rtol=0, atol=1e-4)


def test_an_adapter_leaves_the_policy_alone(template, policy, run):
    learner = Finetuned(policy, template, adapter=AdapterSettings(rank=2))
    found = learn(learner, run, ASKED, one_hot(SMELLS), settings(4, 0.05), select=(ASKED[:4], one_hot(SMELLS[:4])))
    learned = [name for name, weight in found.network.named_parameters() if weight.requires_grad]
    assert learned
    assert all("lora" in name or "score" in name for name in learned)
    # The adapter's own start is drawn by the seed of the training, whatever was drawn before.
    torch.manual_seed(99)
    chosen, again = settings(4, 0.05), Finetuned(policy, template, adapter=AdapterSettings(rank=2))
    other = learn(again, run, ASKED, one_hot(SMELLS), chosen, stage="other", select=(ASKED[:4], one_hot(SMELLS[:4])))
    assert torch.equal(other(ASKED), found(ASKED))
