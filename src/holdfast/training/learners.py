"""Learners: things that make a predictor out of items and soft targets.

A supervisor, a student and a ceiling are the same to the pipeline: each learns from items and a table of K-way targets.
What an item is, a learner's `view` knows: the same ids can be text to one and features to another. A pair of answers is
two of what a single item is; its logits are (0, score of the second - score of the first).
"""

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import one_hot

from holdfast.data.collate import pad
from holdfast.data.schema import Conversation
from holdfast.data.template import Encoded, Template
from holdfast.engine.log import RunFolder
from holdfast.engine.seeds import generator
from holdfast.errors import UserError
from holdfast.losses import transfer as losses
from holdfast.models.adapters import AdapterSettings
from holdfast.models.heads import from_policy, with_score_adapter
from holdfast.preference.pairs import PairForward, PairRow, collate_pairs
from holdfast.training.transfer import (
    Forward,
    TransferSettings,
    class_prior,
    offset,
    open_stage,
    predicted,
    rows_of,
    train,
)

WORDS = "words.safetensors"
# The logit of a class that no item belongs to: impossible for all purposes, and still a number.
ABSENT = -30.0

View = Callable[[Sequence[Any]], Any]
Select = tuple[Sequence[Any], Tensor]


class Predictor(Protocol):
    """Items in, logits out."""

    def __call__(self, items: Sequence[Any]) -> Tensor:
        """Logits (N, K) in float32 on the CPU."""


Watch = Callable[[int, Predictor], None]
"""Called with the number of an epoch, from 1, and what the learner would predict now; nothing comes back."""


class Learner(Protocol):
    """Whatever can learn from soft targets: words, a probe on features, a network."""

    @property
    def name(self) -> str:
        """What it is, in words for a report."""

    @property
    def pair(self) -> bool:
        """Whether its items are pairs."""

    def learn(
        self,
        items: Sequence[Any],
        targets: Tensor,
        settings: TransferSettings,
        *,
        seed: int,
        run: RunFolder,
        stage: str,
        select: Select | None = None,
        watch: Watch | None = None,
    ) -> Predictor:
        """A predictor that learned `targets` (N, K), rows of which add up to 1, of the N items.

        Everything it writes lies in the folder `stage` of the run; a finished stage is loaded and predicts as before,
        and one of other items, targets or settings is a `UserError`. select: held-out items and their targets, of
        which the agreement chooses the epoch. watch: see `Watch`.
        """


def check_targets(targets: Tensor, count: int, stage: str) -> None:
    """None, or `UserError` where nothing can be learned: no items, or the same class for all of them."""
    if targets.ndim != 2 or len(targets) != count or not bool(torch.isfinite(targets).all()):
        raise ValueError(f"{stage}: {count} items need finite targets (N, K), got {tuple(targets.shape)}")
    if not count:
        raise UserError(f"{stage}: there are no items to learn from")
    likely = targets.argmax(1).unique()
    if len(likely) == 1:
        raise UserError(
            f"{stage}: one-class data, all {count} labels say class {int(likely)}, so there is nothing to tell apart; "
            "give items of both classes (of pairs: draw the order of the answers), or calibrate the supervisor"
        )


@dataclass(frozen=True)
class Network:
    """A trained network as a predictor; `network` is what a caller may save."""

    network: nn.Module
    forward: Forward
    inputs: View
    tokens: int = 16384

    def __call__(self, items: Sequence[Any]) -> Tensor:
        """Logits (N, K)."""
        return predicted(self.network, self.forward, self.inputs(items), self.tokens)


class _ByNetwork:
    """What learners that train a network have in common; a subclass builds the network for what it is to see."""

    name = "network"

    def __init__(self, view: View, pair: bool) -> None:
        self.view, self.pair = view, pair

    def learn(
        self,
        items: Sequence[Any],
        targets: Tensor,
        settings: TransferSettings,
        *,
        seed: int,
        run: RunFolder,
        stage: str,
        select: Select | None = None,
        watch: Watch | None = None,
    ) -> Network:
        check_targets(targets, len(items), stage)
        seen, others = self.view(items), self.view(select[0]) if select else ()
        held_out = select[1] if select else torch.empty(0)
        folder = open_stage(run, stage, self._described, settings, seed, (seen, targets, others, held_out))
        settings = offset(settings, seed)
        learned = self._build(seen, targets.shape[1], settings)
        free = self.pair and settings.prior == "auto"  # the order of a pair is drawn, so no class has a share
        train(
            learned.network,
            learned.forward,
            rows_of(learned.inputs(items), targets),
            settings,
            folder,
            prior=None if free else class_prior(settings.prior, targets),
            held_out=rows_of(learned.inputs(select[0]), held_out) if select else (),
            watch=None if watch is None else lambda epoch: watch(epoch, learned),
        )
        return learned

    @property
    def _described(self) -> str:
        """The learner in words, with all that decides what it learns beside its settings."""
        return self.name

    def _build(self, seen: Any, classes: int, settings: TransferSettings) -> Network:
        """The network at its start, for what `view` gives of the items."""
        raise AssertionError("a subclass builds its network")


class Affine(nn.Module):
    """Features (B, d), standardised, to `outputs` numbers: a linear map, or one hidden layer of ReLU before it.

    The last layer starts at zero, so nothing is favoured by chance. mean, scale: (d,) of the training items.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, outputs: int, hidden: int, bias: bool, seed: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.inner = nn.Linear(len(mean), hidden) if hidden else None
        self.last = nn.Linear(hidden or len(mean), outputs, bias=bias)
        with torch.no_grad():
            for weight in self.last.parameters():
                weight.zero_()
            if self.inner is not None:
                bound = len(mean) ** -0.5
                for weight in self.inner.parameters():
                    weight.copy_(bound * (2 * torch.rand(weight.shape, generator=generator(seed)) - 1))

    def forward(self, features: Tensor) -> Tensor:
        """(..., d) to (..., outputs)."""
        standard = (features - self.mean) / self.scale
        return self.last(standard if self.inner is None else self.inner(standard).relu())


class Probe(_ByNetwork):
    """A linear map, or one hidden layer, on fixed features.

    view: items to features (N, d), of pairs (N, 2, d), the first answer first.
    """

    def __init__(self, view: View, *, pair: bool = False, hidden: int = 0) -> None:
        super().__init__(view, pair)
        self.hidden = hidden
        kind = f"one hidden layer of {hidden}" if hidden else "linear probe"
        self.name = f"{kind} on features" + (" of pairs" if pair else "")

    def _build(self, seen: Tensor, classes: int, settings: TransferSettings) -> Network:
        flat = seen.flatten(0, -2)
        scale = flat.std(0, correction=0)
        scale = scale.where(scale > 0, torch.ones_like(scale))
        one = classes == 2
        # Two classes are one logit. Of a pair it is a difference, in which a bias would cancel.
        network = Affine(flat.mean(0), scale, 1 if one else classes, self.hidden, not self.pair, settings.fit.seed)

        def forward(rows: Sequence[Tensor]) -> Tensor:
            found = network(torch.stack(list(rows)))
            if self.pair:
                found = found[:, 1] - found[:, 0]
            return losses.pair(found[:, 0]) if one else found

        return Network(network, forward, self.view)


class Finetuned(_ByNetwork):
    """A copy of a policy with a new head, finetuned: K columns for K classes, one score for each answer of a pair.

    view: items to conversations, of pairs to (conversation, conversation); a score is read at the last token.
    adapter: train this on the frozen policy instead of all weights. names: of the outputs.
    """

    def __init__(
        self,
        policy: Any,
        template: Template,
        view: View = list,
        *,
        pair: bool = False,
        adapter: AdapterSettings | None = None,
        names: Sequence[str] = (),
    ) -> None:
        super().__init__(view, pair)
        self.policy, self.template, self.adapter, self.names = policy, template, adapter, tuple(names)
        self.name = f"finetuned {policy.config.model_type}" + (" on pairs" if pair else "")

    @property
    def _described(self) -> str:
        return f"{self.name}, template {self.template.fingerprint}, {self.adapter}, outputs {self.names}"

    def _build(self, seen: Any, classes: int, settings: TransferSettings) -> Network:
        names = self.names or (("score",) if self.pair else tuple(f"class_{k}" for k in range(classes)))
        model = from_policy(self.policy, names, share=self.adapter is not None)
        if self.adapter is not None:
            with torch.random.fork_rng():
                torch.manual_seed(settings.fit.seed)
                model = with_score_adapter(model, self.adapter)
        tokens = settings.fit.micro_tokens or 16384
        both = PairForward(model)

        def forward_pairs(rows: Sequence[PairRow]) -> Tensor:
            first, second = both(collate_pairs(rows, self.template.pad_id))
            return losses.pair((second - first)[:, 0])

        def forward(rows: Sequence[Encoded]) -> Tensor:
            batch = pad(rows, pad_id=self.template.pad_id).to(next(model.parameters()).device)
            where = (batch.input_ids, batch.attention_mask, batch.position_ids, batch.score_index)
            return model.scores(*where, **batch.extra)

        if self.pair:
            return Network(model, forward_pairs, lambda items: both.budgeted(self._pairs(items)), tokens)
        return Network(model, forward, lambda items: [self._encode(one) for one in self.view(items)], tokens)

    def _pairs(self, items: Sequence[Any]) -> list[PairRow]:
        return [PairRow(one.id, self._encode(one), self._encode(other)) for one, other in self.view(items)]

    def _encode(self, conversation: Conversation) -> Encoded:
        return self.template.answered(conversation) if conversation.answered else self.template.prompt(conversation)


@dataclass(frozen=True)
class Words:
    """Logits linear in the TF-IDF of words. weight: (K, words); bias: (K,); both in float64."""

    vocabulary: dict[str, int]
    idf: Tensor
    weight: Tensor
    bias: Tensor
    view: View
    pair: bool

    def __call__(self, items: Sequence[Any]) -> Tensor:
        """Logits (N, K)."""
        vectoriser = _vectoriser(vocabulary=self.vocabulary)
        vectoriser.idf_ = self.idf.numpy()
        found = _differences(vectoriser.transform, self.view(items), self.pair) @ self.weight.numpy().T
        return (torch.from_numpy(found) + self.bias).float()

    def save(self, folder: Path) -> None:
        """Write words and numbers; the numbers last, so that a folder that holds them is complete."""
        (folder / "words.json").write_text(json.dumps(self.vocabulary), encoding="utf-8")
        save_file({"idf": self.idf, "weight": self.weight, "bias": self.bias}, folder / WORDS)


class BagOfWords:
    """TF-IDF of words and logistic regression, by scikit-learn: the supervisor that costs seconds.

    view: items to texts, of pairs to (text, text); a pair is the difference of its texts, without intercept.
    regularisation: the C of scikit-learn, larger is weaker. It learns fixed targets only, `soft` or `hard`, in one
    go: there is no epoch to select.
    """

    def __init__(self, view: View = list, *, pair: bool = False, regularisation: float = 10.0) -> None:
        self.view, self.pair, self.regularisation = view, pair, regularisation
        self.name = "bag of words" + (" of pairs" if pair else "")

    def learn(
        self,
        items: Sequence[Any],
        targets: Tensor,
        settings: TransferSettings,
        *,
        seed: int,
        run: RunFolder,
        stage: str,
        select: Select | None = None,
        watch: Watch | None = None,
    ) -> Words:
        check_targets(targets, len(items), stage)
        if settings.kind not in ("soft", "hard"):
            raise UserError(
                f"{stage}: a bag of words learns from targets that stay as they are, and those of {settings.kind!r} "
                "follow the student; take kind: soft or hard, or a probe on features"
            )
        texts = self.view(items)
        described = f"{self.name}, C {self.regularisation}"
        folder = open_stage(run, stage, described, settings, seed, (texts, targets))
        if not (folder.path / WORDS).is_file() and folder.processes.is_main:
            self._fit(texts, one_hot(targets.argmax(1), targets.shape[1]) if settings.kind == "hard" else targets).save(
                folder.path
            )
        folder.processes.barrier()
        vocabulary = json.loads((folder.path / "words.json").read_text(encoding="utf-8"))
        learned = Words(vocabulary, **load_file(folder.path / WORDS), view=self.view, pair=self.pair)
        if watch is not None:
            watch(1, learned)
        return learned

    def _fit(self, texts: Sequence[Any], targets: Tensor) -> Words:
        vectoriser = _vectoriser()
        vectoriser.fit([side for pair in texts for side in pair] if self.pair else texts)
        features, wanted = _differences(vectoriser.transform, texts, self.pair), targets.double().numpy()
        # Soft targets as weights: an item stands in every class, as far as it belongs there.
        members = [wanted[:, k].nonzero()[0] for k in range(wanted.shape[1])]
        rows, labels = np.concatenate(members), np.repeat(np.arange(len(members)), [len(one) for one in members])
        found = (
            _sklearn("linear_model")
            .LogisticRegression(C=self.regularisation, fit_intercept=not self.pair, max_iter=1000)
            .fit(features[rows], labels, sample_weight=wanted[rows, labels])
        )
        weight = torch.zeros(len(members), features.shape[1], dtype=torch.float64)
        bias = torch.full((len(members),), ABSENT, dtype=torch.float64)
        present = torch.from_numpy(found.classes_)
        bias[present] = 0.0
        # Of two classes scikit-learn gives the logit of the second against the first.
        named = present[1:] if len(present) == 2 else present
        weight[named], bias[named] = (
            torch.from_numpy(found.coef_),
            torch.from_numpy(found.intercept_).expand(len(named)),
        )
        words = {word: int(place) for word, place in vectoriser.vocabulary_.items()}
        return Words(words, torch.from_numpy(vectoriser.idf_), weight, bias, self.view, self.pair)


def _sklearn(module: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ModuleNotFoundError as error:
        raise UserError(
            "a bag of words needs scikit-learn, which is not installed; pip install 'holdfast[classic]'"
        ) from error


def _vectoriser(**options: Any) -> Any:
    return _sklearn("feature_extraction.text").TfidfVectorizer(**options)


def _differences(transform: Callable[[Sequence[str]], Any], texts: Sequence[Any], pair: bool) -> Any:
    """Sparse features (N, words) of texts; of pairs those of the second text less those of the first."""
    if not pair:
        return transform(texts)
    return transform([second for _, second in texts]) - transform([first for first, _ in texts])
