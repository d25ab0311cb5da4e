"""Load a policy and its tokenizer from a hub name, a folder, or an architecture with new weights.

Weights are read as safetensors only, remote code stays off unless asked, and a weight that the files lack is
an error: transformers would fill it with random numbers and go on.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import model_validator
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.utils import CONFIG_NAME, cached_file

from holdfast.config import Settings
from holdfast.errors import UserError
from holdfast.models.adapters import AdapterSettings, base_name, load_adapter, with_adapter


class ModelSettings(Settings):
    """Which network, from where, in which precision."""

    name: str | None = None
    """A hub name (`org/model`) or a local folder, also one that holds a PEFT adapter."""
    config: dict[str, Any] | None = None
    """An architecture to build with new weights, such as `{model_type: qwen2, hidden_size: 64, ...}`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the weights; auto is float32 on CPU and bfloat16 elsewhere."""
    trust_remote_code: bool = False
    """Run code that comes with the weights. Off: a model is data."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] | None = None
    """Attention kernel; None leaves the choice to transformers."""
    adapter: AdapterSettings | None = None
    """Train a LoRA adapter over the frozen weights instead of the weights."""

    @model_validator(mode="after")
    def _one_source(self) -> "ModelSettings":
        if (self.name is None) == (self.config is None):
            raise ValueError("give either name (a model to load) or config (an architecture to build)")
        return self


def load_policy(settings: ModelSettings, vocab_size: int | None = None, device: str = "cpu") -> PreTrainedModel:
    """Return the policy that `settings` describe, in evaluation mode on `device`.

    vocab_size: how many ids the tokenizer can give; a model that embeds fewer is refused, and an architecture
    without a size of its own takes this one. Models with a vision tower come with it.
    """
    if settings.name is None:
        config = _new_config(settings.config or {}, vocab_size)
        model = _kind(config).from_config(
            config, dtype=precision(settings, device), attn_implementation=settings.attn_implementation
        )
    else:
        folder = local(settings.name)
        if folder is not None and (folder / "adapter_config.json").is_file():
            base = settings.model_copy(update={"name": base_name(folder), "adapter": None})
            return load_adapter(load_policy(base, vocab_size, device), folder).eval()
        model = pretrained(_kind(read_config(settings)), settings, device)
    _check_vocabulary(model, vocab_size)
    model = model.to(device).eval()
    return model if settings.adapter is None else with_adapter(model, settings.adapter).eval()


def load_tokenizer(
    name: str,
    processor: bool | Literal["auto"] = "auto",
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> PreTrainedTokenizerBase | ProcessorMixin:
    """Return the tokenizer of `name`, or its processor (tokenizer plus image preparation) for vision models.

    processor: auto takes the processor exactly when the model has a vision tower.
    """
    settings = ModelSettings(name=name, trust_remote_code=trust_remote_code, revision=revision)
    folder = local(name)
    if processor == "auto":
        bare = folder is not None and not (folder / "config.json").is_file()
        processor = (
            (folder / "processor_config.json").is_file() if bare else hasattr(read_config(settings), "vision_config")
        )
    auto = AutoProcessor if processor else AutoTokenizer
    return _fetch(settings, "a tokenizer", auto.from_pretrained)


def precision(settings: ModelSettings, device: str) -> torch.dtype:
    """Return the dtype of the weights on `device`.

    >>> precision(ModelSettings(name="some/model"), "cpu")
    torch.float32
    """
    if settings.dtype == "auto":
        return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    return getattr(torch, settings.dtype)


def local(name: str) -> Path | None:
    """Return the folder `name` stands for, None for a hub name; `UserError` for a path to nothing."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"no model folder at {path}; give a folder that holds config.json and safetensors weights")
    return None


def read_config(settings: ModelSettings) -> PreTrainedConfig:
    """Return the configuration of the model `settings.name`, without its weights."""
    assert settings.name is not None
    folder = local(settings.name)
    if folder is not None and not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json; give the folder of a transformers model")
    return _fetch(settings, "a configuration", AutoConfig.from_pretrained)


def pretrained(kind: Any, settings: ModelSettings, device: str, **extra: Any) -> PreTrainedModel:
    """Return `settings.name` loaded by the class `kind`; a missing or misshapen weight is a `UserError`.

    extra: what `from_pretrained` is told besides, or instead of what the settings say.
    """
    assert settings.name is not None
    folder = local(settings.name)
    if folder is not None and not any(folder.glob("*.safetensors")):
        found = sorted(file.name for file in folder.iterdir())
        raise UserError(
            f"{folder} holds no safetensors weights, only {found}; other formats can run code on loading, so "
            "convert them with save_pretrained first"
        )
    told = {"dtype": precision(settings, device), "attn_implementation": settings.attn_implementation} | extra
    model, report = _fetch(
        settings, "weights", kind.from_pretrained, use_safetensors=True, output_loading_info=True, **told
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{settings.name}: the files lack {len(missing)} weights that {type(model).__name__} needs "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}); they would be random. "
            "Is a head lost, or is this another kind of model?"
        )
    return model


def weights_digest(name: str) -> str:
    """Return the sha256 of the names and hashes of the weight files of the folder or hub repository `name`.

    Only weights count: a folder may get another tokenizer and still hold the same network.
    """
    folder = local(name) or Path(cached_file(name, CONFIG_NAME)).parent
    files = {file.name: sha256(file) for file in sorted(folder.glob("*.safetensors"))}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def sha256(file: Path) -> str:
    """Return the sha256 of the content of `file`."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fetch(settings: ModelSettings, what: str, load: Any, **extra: Any) -> Any:
    """Call `load` on the model's name; whatever keeps it from being read becomes one `UserError`."""
    name = settings.name
    try:
        return load(name, revision=settings.revision, trust_remote_code=settings.trust_remote_code, **extra)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(
            f"cannot load {what} for {name!r}: {lines[0] if lines else type(error).__name__} "
            "Give a local folder, or a hub name that this machine can reach or has in its cache."
        ) from error


def _kind(config: PreTrainedConfig) -> Any:
    return AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM


def _new_config(values: dict[str, Any], vocab_size: int | None) -> PreTrainedConfig:
    values = dict(values)
    model_type = values.pop("model_type", None)
    try:
        known = AutoConfig.for_model(model_type)
    except ValueError as error:
        raise UserError(
            f"config.model_type: transformers knows no {model_type!r}; name one, for example llama"
        ) from error
    # transformers keeps unknown keys silently; here they are mistakes.
    unknown = sorted(key for key in values if not hasattr(known, key))
    if unknown:
        raise UserError(f"config: {model_type} has no setting {', '.join(unknown)}; check the spelling")
    if vocab_size is not None and not hasattr(known, "text_config"):
        values.setdefault("vocab_size", vocab_size)
    return AutoConfig.for_model(model_type, **values)


def _check_vocabulary(model: PreTrainedModel, vocab_size: int | None) -> None:
    rows = model.get_input_embeddings().num_embeddings
    if vocab_size is not None and vocab_size > rows:
        raise UserError(f"the tokenizer has {vocab_size} ids, the model embeds {rows}; use the model's own tokenizer")
