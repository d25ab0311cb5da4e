"""Save a model so that loading can prove it is the same model.

Beside the weights lie a few inputs and what the model made of them. Loading computes them again: a lost head,
a wrong base or a damaged file is then an error, and not a model that scores at random.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from holdfast.errors import RunError, UserError
from holdfast.models.heads import ScoreModel, load_score_model
from holdfast.models.load import ModelSettings, load_policy, sha256
from holdfast.models.mixture import HEAD_CARD, MixtureRewardModel, load_mixture
from holdfast.models.policy import evaluating, response_logprobs

CARD, PROBES = "holdfast.json", "probes.safetensors"
NOTES = (CARD, PROBES, HEAD_CARD)
SCORING = {"score": ScoreModel, "mixture": MixtureRewardModel}
FIELDS = ("input_ids", "attention_mask", "position_ids", "response_mask", "score_index")
# A model is more than its weights: the same weights with another tokenizer or template answer differently.
IDENTITY = (".safetensors", ".json", ".jinja", ".model", ".txt")


class Probes(Protocol):
    """A few answered inputs as one batch; `holdfast.data.collate.Batch` is one."""

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    response_mask: Tensor
    score_index: Tensor
    extra: Mapping[str, Tensor]


def save(model: nn.Module, tokenizer: Any, folder: str | Path, *, probes: Probes) -> Path:
    """Write `model` and its tokenizer (or processor) to `folder`, whole or not at all, and return the folder.

    probes: about four answered inputs. A score model must give them scores, a mixture rewards, weights and scores,
    a policy log-probabilities of their responses. What lay in `folder` before stays until the new files are complete.
    """
    tensors = {name: getattr(probes, name) for name in FIELDS} | dict(probes.extra)
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    if not bool(tensors["response_mask"].any(-1).all()):
        raise ValueError("every probe needs a response, or it says nothing about the model")
    results = _results(model, tensors)
    _tell_padding(model, tokenizer)
    target = Path(folder)
    with _replacing(target) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        save_file(tensors, partial / PROBES)
        card = {
            "kind": next((kind for kind, known in SCORING.items() if isinstance(model, known)), "policy"),
            "names": _names(model),
            "results": results.tolist(),
            "dtype": _dtype(model),
            "files": _manifest(partial),
            "versions": {package: version(package) for package in ("holdfast", "torch", "transformers", "peft")},
        }
        (partial / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return target


def load_checked(
    folder: str | Path, *, dtype: Literal["auto", "float32", "bfloat16"] = "auto", device: str = "cpu"
) -> nn.Module:
    """Return the policy, score model or mixture saved in `folder`, after it reproduced what it said when it was saved.

    Raises `UserError` when weights or a head are missing, or when a probe comes out differently.
    """
    path = Path(folder)
    missing = [name for name in (CARD, PROBES) if not (path / name).is_file()]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; give a folder that Holdfast saved")
    card = json.loads((path / CARD).read_text(encoding="utf-8"))
    load: Any = {"score": load_score_model, "mixture": load_mixture}.get(card["kind"], load_policy)
    model = load(ModelSettings(name=str(path.absolute()), dtype=dtype), device=device)
    if _names(model) != card["names"]:
        raise UserError(
            f"{path} was saved with the scores {card['names']} and now names them {_names(model)}; "
            "names say what a number means, so restore config.json or save the model again"
        )
    expected = torch.tensor(card["results"])
    results = _results(model, load_file(path / PROBES))
    # Room for other kernels and devices; a random head is off by far more.
    tolerance = 1e-3 if card["dtype"] == _dtype(model) == "float32" else 5e-2
    if results.shape != expected.shape or not torch.allclose(results, expected, rtol=tolerance, atol=tolerance):
        raise UserError(
            f"{path} does not reproduce what it said when it was saved: expected {_short(expected)}, got "
            f"{_short(results)}; a head or an adapter's base was lost or changed. Save the model again"
        )
    return model


def digest(folder: str | Path) -> str:
    """Return the sha256 of the names and hashes of all files that make up the model in `folder`.

    Weights, configuration, tokenizer and templates count; probes and notes about the model do not.
    """
    files = _manifest(Path(folder))
    if not any(name.endswith(".safetensors") for name in files):
        raise UserError(f"{folder} holds no safetensors weights; give the folder of a saved model")
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _manifest(folder: Path) -> dict[str, str]:
    """Names and hashes of the files that make up a model, by name."""
    if not folder.is_dir():
        raise UserError(f"no model folder at {folder}")
    files = sorted(file for file in folder.iterdir() if file.suffix in IDENTITY and file.name not in NOTES)
    return {file.name: sha256(file) for file in files}


def _names(model: nn.Module) -> list[str]:
    return list(model.names) if isinstance(model, tuple(SCORING.values())) else []


def _results(model: nn.Module, probes: Mapping[str, Tensor]) -> Tensor:
    """(B, K) scores, (B, 2 K + 1) of a mixture, or (B, 1) log-probabilities of the responses, on the CPU."""
    device = next(model.parameters()).device
    given = {name: value.to(device) for name, value in probes.items()}
    response_mask, score_index = given.pop("response_mask"), given.pop("score_index")
    with evaluating(model):
        if isinstance(model, ScoreModel):
            return model.scores(score_index=score_index, **given).cpu()
        if isinstance(model, MixtureRewardModel):
            return _mixture_results(model, response_mask, score_index, given).cpu()
        return response_logprobs(model, response_mask=response_mask, **given).sum(-1, keepdim=True).cpu()


def _mixture_results(
    model: MixtureRewardModel, response_mask: Tensor, score_index: Tensor, given: Mapping[str, Tensor]
) -> Tensor:
    """(B, 2 K + 1): raw rewards, weights and scores; the prompt ends where the response begins."""
    prompt_index = response_mask.int().argmax(-1) - 1
    phi, u = model.features(score_index=score_index, prompt_index=prompt_index, **given)
    rewards, log_weights = model.rewards(phi), model.log_weights(u)
    return torch.cat([rewards, log_weights.exp(), model.personal_score(rewards, log_weights)[:, None]], dim=1)


def _tell_padding(model: nn.Module, tokenizer: Any) -> None:
    """Let other tools find the scored position: they look for the last token that is not padding.

    Where padding is the end token they would miss the last one, so they are told nothing and refuse to batch.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if isinstance(model, tuple(SCORING.values())) and tokenizer.pad_token_id != tokenizer.eos_token_id:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def _dtype(model: nn.Module) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def _short(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.flatten()[:4].tolist()]


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Give a new folder beside `target`, which takes its place once it was filled and reached the disk."""
    partial, old = (target.with_name(f".{target.name}.{word}-{os.getpid()}") for word in ("partial", "old"))
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in filter(Path.is_file, partial.rglob("*")):
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        if target.exists():
            target.rename(old)
        partial.rename(target)
    except (OSError, SafetensorError) as error:
        if old.exists():
            old.rename(target)
        raise RunError(f"cannot save to {target}: {error}; free the disk or choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
