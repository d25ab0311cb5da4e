"""LoRA adapters over one frozen base (arXiv 2106.09685).

The base is the reference policy: with the adapters off, the outputs are those of the base, bit for bit, and
no second copy of the weights is held.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import nn

from holdfast.config import Settings
from holdfast.errors import UserError
from holdfast.models.policy import evaluating

VISION_MODULES = r".*(vision_tower|visual|multi_modal_projector).*"


class AdapterSettings(Settings):
    """A LoRA adapter."""

    rank: int = Field(16, gt=0)
    """Rank of the update."""
    alpha: float = Field(32.0, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input while training."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the layers that get an adapter, or every linear layer of the language model."""


def with_adapter(model: nn.Module, settings: AdapterSettings, *, task: str = "CAUSAL_LM") -> nn.Module:
    """Return `model` frozen, with a new trainable adapter that changes nothing yet.

    task: `CAUSAL_LM` for a policy; `SEQ_CLS` for a score network, whose head is trained and saved with the
    adapter.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.targets if isinstance(settings.targets, str) else list(settings.targets),
        exclude_modules=VISION_MODULES if hasattr(model.config, "vision_config") else None,
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
        task_type=task,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"the adapter does not fit {type(model).__name__}: {error}; check adapter.targets") from error


@contextmanager
def reference(policy: nn.Module) -> Iterator[nn.Module]:
    """Give the frozen base of an adapted `policy`: adapters off, evaluation mode, no gradients.

    Raises `UserError` when the policy has no adapters, because its base is then gone.
    """
    if not hasattr(policy, "disable_adapter"):
        raise UserError("this policy has no adapters, so it holds no reference; give it an adapter or load one")
    trainable = {name for name, weight in policy.named_parameters() if weight.requires_grad}
    with evaluating(policy), policy.disable_adapter():
        yield policy
    # Leaving `disable_adapter` makes every adapter trainable, also those that were frozen.
    for name, weight in policy.named_parameters():
        weight.requires_grad_(name in trainable)


def twin(model: nn.Module) -> nn.Module:
    """Return a second module tree over the very same weight tensors.

    Adapters put into the twin do not touch the original, so a policy, its scores and its critics can each
    have theirs over one base in memory.

    >>> layer = nn.Linear(2, 2)
    >>> other = twin(layer)
    >>> other is layer, other.weight is layer.weight
    (False, True)
    """
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def base_name(folder: str | Path) -> str:
    """Return the name of the model that the adapter in `folder` was trained on."""
    from peft import PeftConfig

    name = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not name:
        raise UserError(f"{folder}/adapter_config.json does not name its base model; set base_model_name_or_path there")
    return name


def load_adapter(model: nn.Module, folder: str | Path, *, trainable: bool = True) -> nn.Module:
    """Return `model` with the adapter saved in `folder`; `UserError` when any of its tensors is missing.

    A score adapter without its head would score with a random one, so a lost head is an error.
    """
    from peft import PeftConfig, PeftModel
    from peft.utils import load_peft_weights

    path = Path(folder)
    if not (path / "adapter_model.safetensors").is_file():
        raise UserError(f"{path} holds no adapter_model.safetensors; give the folder an adapter was saved to")
    heads = PeftConfig.from_pretrained(str(path)).modules_to_save or []
    stored = load_peft_weights(str(path), device="cpu")
    # peft lists every name a head might have; one of them must be there.
    if heads and not any(f".{head}." in name for head in heads for name in stored):
        raise UserError(f"lost head: {path} promises one of {heads} and holds none; save the adapter again")
    if not any("lora_" in name for name in stored):
        raise UserError(f"{path}/adapter_model.safetensors holds no LoRA weights; save the adapter again")
    return PeftModel.from_pretrained(model, str(path), is_trainable=trainable)
