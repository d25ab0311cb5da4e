"""Cached features: sessions, batches cut out of tables, and what is read of a frozen backbone."""

import pytest
import torch

from holdfast.data.collate import pad
from holdfast.data.template import Encoded
from holdfast.engine.log import RunFolder
from holdfast.engine.supervised import FitSettings
from holdfast.errors import UserError
from holdfast.models.mixture import mixture_from
from holdfast.models.tiny import tiny_policy
from holdfast.preference.baselines import BaselineSettings, LinearScores, train_baseline
from holdfast.preference.features import (
    FeatureTask,
    PairFeatures,
    SessionRow,
    answer_features,
    pair_features,
    session_numbers,
)
from holdfast.preference.pairs import PairRow


def table(session=None, context=None):
    numbers = torch.arange(5.0)[:, None]
    session = None if session is None else torch.tensor(session)
    return PairFeatures(numbers + torch.tensor([[0.0, 10.0]]), -numbers, session, tuple("abcde"), context)


def encoded(prompt, answer):
    ids, answered = [*prompt, *answer], [False] * len(prompt) + [True] * len(answer)
    return Encoded(ids, answered, answered, len(ids) - 1, len(prompt))


def test_rows_are_sessions_or_pairs():
    features = table([1, 0, 1, 2, 0])
    assert features.rows() == [SessionRow((1, 4), 0), SessionRow((0, 2), 1), SessionRow((3,), 2)]
    assert [row.length for row in features.rows()] == [2, 2, 1]
    assert features.rows("pair") == table().rows() == [SessionRow((i,)) for i in range(5)]


def test_taking_pairs_keeps_sessions_contexts_and_ids_together():
    some = table([1, 0, 1, 3, 0], torch.arange(4.0)[:, None]).take(torch.tensor([False, True, False, True, True]))
    assert some.difference[:, 0].tolist() == [1, 3, 4]
    assert some.router[:, 0].tolist() == [-1, -3, -4]
    assert some.ids == ("b", "d", "e")
    # Sessions 0 and 3 are left, and with them their contexts.
    assert some.session.tolist() == [0, 1, 0]
    assert some.context[:, 0].tolist() == [0, 3]


def test_joined_tables_share_no_session():
    both = table([0, 0, 1, 1, 1], torch.zeros(2, 1)).joined(table([0, 1, 1, 0, 0], torch.ones(2, 1)))
    assert both.session.tolist() == [0, 0, 1, 1, 1, 2, 3, 3, 2, 2]
    assert both.context[both.session][:, 0].tolist() == [0] * 5 + [1] * 5
    assert len(both) == len(both.ids) == 10


def test_pairs_bring_their_own_prompt_and_sessions_do_not():
    features = table([1, 0, 1, 2, 0], torch.tensor([[7.0], [8.0], [9.0]]))
    task = FeatureTask(LinearScores(2), features)
    rows = features.rows()
    batch = task.collate([rows[2], rows[0]])
    assert batch.index.tolist() == [3, 1, 4]
    assert batch.difference[:, 0].tolist() == [3, 1, 4]
    assert batch.session.tolist() == [0, 1, 1]
    assert batch.router[:, 0].tolist() == [9, 7]
    # Without a context nothing is known of a session.
    assert FeatureTask(LinearScores(2), table([1, 0, 1, 2, 0])).collate(rows).router.tolist() == [[0.0]] * 3
    alone = task.collate(features.rows("pair")[1:3])
    assert alone.session is None
    assert alone.router[:, 0].tolist() == [-1, -2]


@pytest.mark.parametrize(
    "given, message",
    [
        ((torch.zeros(3, 2), torch.zeros(2, 2)), r"\(3, 2\) and \(2, 2\)"),
        ((torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(2)), "a session each"),
        ((torch.zeros(1, 2), torch.zeros(1, 2), None, ("a", "b")), "an id each"),
        ((torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([3]), (), torch.zeros(3, 1)), "row per session"),
    ],
)
def test_tables_that_do_not_belong_together_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        PairFeatures(*given)


def test_an_unnamed_person_is_a_session_by_themselves():
    assert session_numbers(["", "x", "", "x"]).tolist() == [0, 1, 2, 1]


@pytest.fixture(scope="module")
def model():
    return mixture_from(tiny_policy(30, hidden=16, heads=2, layers=1), ("a", "b"), init_std=0.3)


def test_features_are_those_of_each_row_alone(model):
    rows = [encoded([1, 2, 3], [4, 5]), encoded([6], [7, 8, 9, 10]), encoded([11, 12], [13])]
    model.train()
    phi, u = answer_features(model, rows, pad_id=0, batch_tokens=10)
    assert model.training
    for i, row in enumerate(rows):
        batch = pad([row], pad_id=0)
        with torch.no_grad():
            hidden = model.eval().model(input_ids=batch.input_ids).last_hidden_state[0]
        # Padding beside a row changes the order of sums in float32.
        torch.testing.assert_close(phi[i], hidden[-1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(u[i], hidden[row.prompt_length - 1], atol=1e-5, rtol=1e-5)


def test_a_router_may_read_another_prompt_than_the_heads(model):
    rows = [PairRow(name, encoded([1, i], [4, 5]), encoded([1, i], [6])) for i, name in enumerate("xy", start=2)]
    plain = pair_features(model, rows, 0)
    prompts = [encoded([9, 1, i], []) for i in (2, 3)]
    told = pair_features(model, rows, 0, prompts=prompts, sessions=["ann", "ann"])
    assert torch.equal(plain.difference, told.difference)
    phi = answer_features(model, [rows[1].first, rows[1].second], 0)[0]
    torch.testing.assert_close(plain.difference[1], phi[0] - phi[1], atol=1e-5, rtol=1e-5)  # padded differently
    assert not torch.allclose(plain.router, told.router)
    torch.testing.assert_close(told.router, answer_features(model, prompts, 0)[1])
    assert (told.session.tolist(), told.ids, plain.session) == ([0, 0], ("x", "y"), None)


def test_bad_lists_of_rows_are_refused(model):
    with pytest.raises(UserError, match="no pairs"):
        pair_features(model, [], 0)
    with pytest.raises(ValueError, match="sessions needs one entry for each of the 1 pairs, got 2"):
        pair_features(model, [PairRow("x", encoded([1], [2]), encoded([1], [3]))], 0, sessions=["a", "b"])


def test_a_run_that_is_kept_is_written_and_others_are_silent(tmp_path, capfd):
    features = PairFeatures(torch.randn(8, 2), torch.zeros(8, 1))
    settings = BaselineSettings(fit=FitSettings(epochs=2, batch_size=4))
    train_baseline(LinearScores(2), features, settings)
    assert capfd.readouterr().err == ""
    train_baseline(LinearScores(2), features, settings, RunFolder(tmp_path), stage="bt")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
