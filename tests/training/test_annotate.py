"""Annotations against every answer read alone, their files, and what makes them stale."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from holdfast.data.template import Encoded
from holdfast.errors import UserError
from holdfast.models.tiny import tiny_policy
from holdfast.models.value import ValueHead
from holdfast.rollout.reading import Reader
from holdfast.training.annotate import CARD, LOGPROBS, ROWS, Annotations, annotate, facts_of

VOCABULARY, PAD, H = 20, 0, 16


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def row(prompt, response, id="", truncated=False):
    mask = [False] * len(prompt) + [True] * len(response)
    ids = [*prompt, *response]
    return Encoded(ids, mask, mask, len(ids) - 1, len(prompt), truncated=truncated, id=id)


ROWS_GIVEN = [
    row([3, 4, 5], [6, 7, 2], "a0"),
    row([8], [9, 9, 9, 2], "b0"),
    row([3, 4, 5], [7], "a1", truncated=True),
    row([3, 4, 5], [6, 2], "a2"),
    row([8], [2], "b1"),
]
REWARDS = torch.tensor([0.9, 0.1, 0.6, 0.4, 0.8])


def reference(seed=0):
    policy = tiny_policy(VOCABULARY, hidden=H, layers=1, heads=2, seed=seed)
    with torch.no_grad():
        policy.lm_head.weight.mul_(15)
    return policy


def head_of(seed=0, **options):
    head = ValueHead(H, 4, seed=seed, **options)
    torch.nn.init.normal_(head.last.weight, generator=torch.Generator().manual_seed(seed))
    return head.eval()


def reader_of(policy=None, **options):
    return Reader(policy or reference(), PAD, **options)


def alone(policy, head, one):
    """Value and log-probabilities of one row, from two passes of its own."""
    prompt = torch.tensor([one.ids[: one.prompt_length]])
    states = policy.base_model(input_ids=prompt).last_hidden_state
    logits = policy(input_ids=torch.tensor([one.ids])).logits[0, one.prompt_length - 1 : -1]
    logp = logits.log_softmax(-1).gather(1, torch.tensor(one.response_ids)[:, None])[:, 0]
    return float(head(states, torch.zeros(prompt.shape, dtype=torch.bool))[0].detach()), logp.detach()


@pytest.mark.parametrize("margin", [0.0, 0.25])
@pytest.mark.parametrize("budget, share", [(1, "off"), (12, "auto"), (1000, "auto"), (1000, "off")])
def test_annotations_are_those_of_every_row_alone(budget, share, margin):
    policy, head = reference(), head_of()
    reader = reader_of(policy, micro_tokens=budget, share=share)
    found = annotate(reader, head, ROWS_GIVEN, REWARDS, margin=margin)
    assert found.ids == ("a0", "b0", "a1", "a2", "b1")
    assert found.truncated.tolist() == [False, False, True, False, False]
    assert found.lengths == (3, 4, 1, 2, 1)
    assert found.ref.shape == (5, 4)
    for i, one in enumerate(ROWS_GIVEN):
        value, logp = alone(policy, head, one)
        assert float(found.value[i]) == pytest.approx(value, abs=1e-6)
        assert float(found.advantage[i]) == pytest.approx(float(REWARDS[i]) - value + margin, abs=1e-6)
        # Sums in another order, in float32, of logits that reach 15.
        torch.testing.assert_close(found.ref_of(i), logp, rtol=0, atol=1e-5)
        assert found.ref[i, len(logp) :].eq(0).all()
    assert found.value[0] == found.value[2] == found.value[3], "equal prompts have the very same value"
    assert found.value[1] == found.value[4] != found.value[0]


def test_the_reference_is_read_once():
    policy = reference()
    reader = reader_of(policy)
    annotate(reader, head_of(), ROWS_GIVEN, REWARDS)
    seen, valued = [], []
    policy.get_input_embeddings().register_forward_pre_hook(lambda _, ids: seen.append(ids[0].numel()))
    head = head_of()
    head.register_forward_pre_hook(lambda _, given: valued.append(len(given[0])))
    annotate(reader, head, ROWS_GIVEN, REWARDS)
    assert seen == [4 + 11]
    assert valued == [2], "one value for each different prompt"


def dropping():
    """A reference all of whose dropout is on."""
    torch.manual_seed(0)
    given = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5, "bos_token_id": 1, "eos_token_id": 2}
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=H, n_layer=2, n_head=2, n_positions=32, **given)
    return GPT2LMHeadModel(config).train()


@pytest.mark.parametrize("share", ["auto", "off"])
def test_dropout_of_reference_and_head_changes_nothing(share):
    policy, head = dropping(), head_of(dropout=0.5).train()
    reader = reader_of(policy, share=share)
    found = annotate(reader, head, ROWS_GIVEN, REWARDS)
    assert policy.training
    assert head.training
    again = annotate(reader, head, ROWS_GIVEN, REWARDS)
    assert torch.equal(found.ref, again.ref)
    assert torch.equal(found.value, again.value)
    policy.eval()
    for i, one in enumerate(ROWS_GIVEN):
        value, logp = alone(policy, head.eval(), one)
        # The policy is its reference before the first step: r = rho = 1.
        ratio = (logp - found.ref_of(i)).exp()
        assert float((ratio - 1).abs().max()) < 1e-5
        assert float(ratio.prod()) == pytest.approx(1, abs=1e-5)
        assert float(found.value[i]) == pytest.approx(value, abs=1e-6)


def test_the_summary_counts_and_weighs():
    found = annotate(reader_of(), head_of(), ROWS_GIVEN, REWARDS)
    fixed = replace(found, advantage=torch.tensor([0.3, -0.1, 0.1, 0.0, 0.6]), value=torch.full((5,), 0.5))
    assert fixed.kept.tolist() == [True, False, True, False, True]
    summary = fixed.summary()
    quantiles = summary.pop("advantage_quantiles")
    assert summary == pytest.approx(
        {"answers": 5, "kept": 3, "kept_share": 0.6, "truncated": 1, "mean_reward": 0.56, "mean_value": 0.5}
    )
    # Sorted: -0.1, 0, 0.1, 0.3, 0.6; the 5 % quantile lies a fifth of the way between the first two.
    assert [quantiles[name] for name in ("0.0", "0.05", "0.25", "0.5", "0.75", "1.0")] == pytest.approx(
        [-0.1, -0.08, 0.0, 0.1, 0.3, 0.6]
    )
    assert quantiles["0.95"] == pytest.approx(0.3 + 0.8 * 0.3)


def test_annotations_come_back_from_their_files(tmp_path):
    reader, head = reader_of(), head_of()
    parts = {"help": torch.tensor([0.5, 0.1, 0.3, 0.2, 0.4]), "polite": torch.tensor([0.4, 0.0, 0.3, 0.2, 0.4])}
    found = annotate(reader, head, ROWS_GIVEN, REWARDS, components=parts, scorer="judge", margin=0.1)
    folder = found.save(tmp_path / "annotations")
    back = Annotations.load(folder, facts_of(reader, head, ROWS_GIVEN, REWARDS, scorer="judge", margin=0.1))
    for name in ("rewards", "value", "advantage", "ref", "truncated"):
        assert torch.equal(getattr(back, name), getattr(found, name)), name
    assert (back.ids, back.lengths, dict(back.facts)) == (found.ids, found.lengths, dict(found.facts))
    assert {name: values.tolist() for name, values in back.components.items()} == {
        name: values.tolist() for name, values in parts.items()
    }
    lines = [json.loads(line) for line in (folder / ROWS).read_text("utf-8").splitlines()]
    assert list(lines[2]) == ["id", "reward", "components", "value", "advantage", "ref_logprob", "truncated"]
    assert lines[2]["id"] == "a1"
    assert lines[2]["truncated"] is True
    assert lines[2]["components"] == pytest.approx({"help": 0.3, "polite": 0.3})
    assert lines[0]["ref_logprob"] == pytest.approx(float(found.ref_of(0).sum()))
    assert json.loads((folder / CARD).read_text("utf-8"))["summary"] == found.summary()
    again = annotate(reader, head, ROWS_GIVEN, REWARDS)
    again.save(folder)
    assert Annotations.load(folder, again.facts).advantage.tolist() == again.advantage.tolist()


CHANGED = {
    "reward": {"rewards": REWARDS + torch.tensor([0, 0, 0, 0, 1e-6])},
    "token": {"rows": [*ROWS_GIVEN[:4], row([8], [3], "b1")]},
    "id": {"rows": [*ROWS_GIVEN[:4], row([8], [2], "b2")]},
    "border": {"rows": [row([3, 4, 5, 6], [7, 2], "a0"), *ROWS_GIVEN[1:]]},
    "end": {"rows": [*ROWS_GIVEN[:4], row([8], [2], "b1", truncated=True)]},
    "reference": {"policy": reference(1)},
    "head": {"head": head_of(1)},
    "range": {"head": head_of(high=2.0)},
    "scorer": {"scorer": "another"},
    "margin": {"margin": 0.5},
    "temperature": {"temperature": 0.9},
}
NAMED = {
    **dict.fromkeys(("reward", "token", "id", "border", "end"), "the answers or their rewards"),
    **dict.fromkeys(("head", "range"), "the value head"),
    "reference": "the weights of the reference",
    "scorer": "what scored the answers",
    "margin": "the margin",
    "temperature": "the temperature",
}


@pytest.mark.parametrize("changed", CHANGED)
def test_stale_annotations_are_refused_and_say_what_changed(tmp_path, changed):
    def facts(policy=None, head=None, rows=ROWS_GIVEN, rewards=REWARDS, temperature=1.0, scorer="judge", margin=0.0):
        reader = reader_of(policy, temperature=temperature)
        return facts_of(reader, head or head_of(), rows, rewards, scorer=scorer, margin=margin)

    folder = annotate(reader_of(), head_of(), ROWS_GIVEN, REWARDS, scorer="judge").save(tmp_path)
    assert len(Annotations.load(folder, facts())) == 5
    with pytest.raises(UserError, match=f"stale annotations in .*: {NAMED[changed]} changed since; annotate again"):
        Annotations.load(folder, facts(**CHANGED[changed]))


def test_several_changes_are_named_together(tmp_path):
    folder = annotate(reader_of(), head_of(), ROWS_GIVEN, REWARDS).save(tmp_path)
    expected = facts_of(reader_of(), head_of(1), ROWS_GIVEN, REWARDS, margin=1.0)
    with pytest.raises(UserError, match="the value head, the margin changed since"):
        Annotations.load(folder, expected)
    with pytest.raises(UserError, match="the answers or their rewards, the weights of the reference, the value head"):
        Annotations.load(folder, {})


@pytest.mark.parametrize("name", [CARD, ROWS, LOGPROBS])
def test_files_that_are_missing_or_changed_are_refused(tmp_path, name):
    found = annotate(reader_of(), head_of(), ROWS_GIVEN, REWARDS)
    found.save(tmp_path)
    with (tmp_path / name).open("ab") as file:
        file.write(b"}")
    words = "cannot be read" if name == CARD else f"{name} in .* changed after"
    with pytest.raises(UserError, match=words):
        Annotations.load(tmp_path, found.facts)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"lacks {name}, so its annotations are not whole"):
        Annotations.load(tmp_path, found.facts)


def test_what_is_half_written_never_passes_for_whole(tmp_path, monkeypatch):
    found = annotate(reader_of(), head_of(), ROWS_GIVEN, REWARDS)
    found.save(tmp_path)
    monkeypatch.setattr("holdfast.training.annotate.save_file", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        found.save(tmp_path)
    with pytest.raises(UserError, match=f"lacks {CARD}"):
        Annotations.load(tmp_path, found.facts)


def test_rows_without_a_reward_are_named_and_counted():
    rewards = REWARDS.clone()
    rewards[[1, 4]] = torch.tensor([torch.nan, torch.inf])
    with pytest.raises(UserError, match=r"2 of 5 answers have no finite reward \(rows b0, b1\)"):
        annotate(reader_of(), head_of(), ROWS_GIVEN, rewards)
    nameless = [replace(one, id="") for one in ROWS_GIVEN]
    with pytest.raises(UserError, match=r"\(rows number 1, number 4\)"):
        annotate(reader_of(), head_of(), nameless, rewards)
    with pytest.raises(ValueError, match=r"5 answered rows need a reward each, got \(4,\)"):
        annotate(reader_of(), head_of(), ROWS_GIVEN, REWARDS[:4])
    with pytest.raises(ValueError, match="0 answered rows"):
        annotate(reader_of(), head_of(), [], REWARDS[:0])


def test_no_answer_above_the_reference_is_an_error_before_training():
    with pytest.raises(UserError, match="none of 5 answers is better than what the reference earns") as caught:
        annotate(reader_of(), head_of(), ROWS_GIVEN, REWARDS - 1.0)
    assert "rewards reach from -0.9 to -0.1" in str(caught.value)
    found = annotate(reader_of(), head_of(), ROWS_GIVEN, REWARDS - 1.0, margin=2.0)
    assert found.kept.any()
