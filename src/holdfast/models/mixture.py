"""A reward model for people who disagree: K linear heads on one backbone, and a router that weighs them.

MiCRo, arXiv 2505.24846. One folder holds all of it and loads with `AutoModelForSequenceClassification` once this
module was imported. What was scored is read at the last token of the answer, the weights at the last token of
the *prompt*: an answer that could choose its own judges would choose lenient ones.
"""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput, SequenceClassifierOutput
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

from holdfast.errors import UserError
from holdfast.losses import mixture
from holdfast.losses.reduce import precise
from holdfast.models.adapters import AdapterSettings, twin, with_adapter
from holdfast.models.load import ModelSettings, pretrained, read_config, weights_digest
from holdfast.models.mixture_config import CONTEXT_TEMPLATE, MixtureRewardConfig, check_mask
from holdfast.models.policy import backbone, hidden_states
from holdfast.models.router import Router, RouterKind

HEAD_CARD = "head_card.json"


@dataclass
class MixtureOutput(ModelOutput):
    """What a mixture says of B answers: raw rewards and router logits (B, K), weights (B, K), one score (B,)."""

    logits: Tensor | None = None
    router_logits: Tensor | None = None
    weights: Tensor | None = None
    score: Tensor | None = None


class MixtureRewardModel(PreTrainedModel):
    """A backbone `model`, a head `score` without bias (a bias cancels in every difference) and a `router`.

    Head and router are float32 whatever the backbone is. Made by `mixture_from`, read by `from_pretrained`.
    """

    config_class = MixtureRewardConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    # Anchored: backbones of experts have routers of their own, which keep the backbone's precision.
    _keep_in_fp32_modules_strict = {"^score", "^router"}

    def __init__(self, config: MixtureRewardConfig) -> None:
        super().__init__(config)
        if config.num_labels != config.num_heads:
            raise UserError(
                f"a mixture of {config.num_heads} heads cannot have num_labels={config.num_labels}; "
                "load it without num_labels, and put it into OneColumn for a trainer that reads one column"
            )
        self.model = AutoModel.from_config(config.backbone_config)
        self._add_heads()
        self.post_init()

    def _add_heads(self, seed: int = 0) -> None:
        config, width = self.config, self.config.get_text_config().hidden_size
        self.score = nn.Linear(width, config.num_heads, bias=False, dtype=torch.float32)
        self.router = Router(config.router_type, width, config.num_heads, config.router_hidden, seed)

    def _init_weights(self, module: nn.Module) -> None:
        # Backbone and router bring their own start.
        if module is self.score:
            nn.init.normal_(module.weight, std=0.02)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the K heads, in order."""
        return tuple(self.config.head_names)

    @property
    def masked(self) -> Tensor:
        """(K,) true for heads that get no weight."""
        return torch.tensor([name in self.config.masked_heads for name in self.names], device=self.score.weight.device)

    def mask(self, names: Sequence[str]) -> None:
        """Give the named heads no weight, and only these; the others share it. An empty list lifts the mask.

        Raises `UserError` for names of no head, and when no head would be left.
        """
        check_mask(names, self.names)
        self.config.masked_heads = [name for name in self.names if name in names]

    def set_standardisation(self, mean: Tensor, std: Tensor) -> None:
        """Keep the mean (K,) and the standard deviation (K,) of each head's rewards on reference answers.

        Heads are trained on differences, so shift and scale of each are arbitrary; before they are added up they
        must be made equal.
        """
        for name, values in (("mean", mean), ("std", std)):
            if values.shape != (len(self.names),) or not bool(values.isfinite().all()):
                raise ValueError(f"{name} needs {len(self.names)} finite numbers, got {values.tolist()}")
        if not bool((std > 0).all()):
            flat = [name for name, value in zip(self.names, std.tolist()) if value <= 0]
            raise UserError(f"the heads {', '.join(flat)} give every answer the same reward; drop or retrain them")
        self.config.reward_mean, self.config.reward_std = mean.tolist(), std.tolist()

    def features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        score_index: Tensor,
        prompt_index: Tensor,
        **images: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return phi (B, h) at `score_index` (B,) and u (B, h) at `prompt_index` (B,) of tokens (B, T), in float32.

        phi is what the heads read: the last token of the answer. u is what the router reads: the last token of
        the prompt, which in a causal network cannot know the answer.
        """
        hidden = hidden_states(self, input_ids, attention_mask, position_ids, **images)
        rows = torch.arange(len(hidden), device=hidden.device)
        return precise(hidden[rows, score_index]), precise(hidden[rows, prompt_index])

    def rewards(self, phi: Tensor) -> Tensor:
        """Return (B, K) raw rewards of features phi (B, h), in float32."""
        with torch.autocast(phi.device.type, enabled=False):
            return self.score(precise(phi))

    def log_weights(self, u: Tensor) -> Tensor:
        """Return (B, K) log weights for features u (B, h); a masked head's is minus infinity."""
        return mixture.log_weights(self.router(u), self.masked)

    def personal_score(self, rewards: Tensor, log_weights: Tensor) -> Tensor:
        """Return (B,) the weighted sum of standardised rewards, sum_k f_k (r_k - mean_k) / std_k.

        rewards, log_weights: (B, K). A probability needs two answers; this is one answer's score, comparable among
        the answers of one prompt.
        """
        mean, std = (rewards.new_tensor(values) for values in (self.config.reward_mean, self.config.reward_std))
        return (log_weights.exp() * (rewards - mean) / std).sum(-1)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        router_logits: Tensor | None = None,
        score_index: Tensor | None = None,
        **images: Tensor,
    ) -> MixtureOutput:
        """Return rewards, weights and score of B answered prompts, tokens (B, T) with padding on either side.

        prompt_lengths: (B,) tokens of each prompt, its images' included, which is where the router reads.
        router_logits: (B, K) or (K,) in place of the router, such as the log weights of a known person.
        score_index: (B,) the last token of the answer; without it, the last attended one. Raises `UserError` when
        nothing says where the prompt ends and the router needs to know.
        """
        if prompt_lengths is None and router_logits is None and self.router.kind != "static":
            raise UserError(
                f"a {self.router.kind} router reads the last token of the prompt, and nothing says where that is; "
                "give prompt_lengths, or router_logits with the weights of a known person"
            )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        positions = (mask.cumsum(-1) - 1).clamp(min=0) if position_ids is None else position_ids
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(-1)
        score_index = last if score_index is None else score_index
        # With padding on the left the prompt does not begin in the first column.
        prompt_index = score_index if prompt_lengths is None else mask.argmax(-1) + prompt_lengths - 1
        if prompt_lengths is not None and bool(((prompt_lengths < 1) | (prompt_index > score_index)).any()):
            raise ValueError(f"prompts of {prompt_lengths.tolist()} tokens do not end before the scored tokens")
        phi, u = self.features(input_ids, mask, positions, score_index, prompt_index, **images)
        rewards = self.rewards(phi)
        logits = self.router(u) if router_logits is None else precise(router_logits).expand_as(rewards)
        log_weights = mixture.log_weights(logits, self.masked)
        score = self.personal_score(rewards, log_weights)
        return MixtureOutput(logits=rewards, router_logits=logits, weights=log_weights.exp(), score=score)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the model as safetensors; without the backbone where `config.backbone_name_or_path` names one.

        Raises `UserError` when the backbone has an adapter (see `merged`), or differs from the one it names.
        """
        if hasattr(self.model, "peft_config"):
            raise UserError("the backbone has an adapter, which this file cannot hold; save merged(model) instead")
        where = self.config.backbone_name_or_path
        if where is not None:
            mine, theirs = self.model.state_dict(), _backbone(self.config, dtype=self.model.dtype).state_dict()
            if mine.keys() != theirs.keys() or any(not mine[name].cpu().equal(theirs[name]) for name in mine):
                raise UserError(
                    f"the backbone is not the one at {where}, so it cannot be left out of the file; "
                    "set config.backbone_name_or_path to None and save again"
                )
            kwargs["state_dict"] = {k: v for k, v in self.state_dict().items() if not k.startswith("model.")}
        self.config.backbone_digest = None if where is None else weights_digest(where)
        super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the model in a folder or hub repository; a lost head, router or backbone is a `UserError`."""
        name = str(pretrained_model_name_or_path)
        hub = {key: kwargs[key] for key in ("revision", "cache_dir", "token", "local_files_only") if key in kwargs}
        config = kwargs.pop("config", None) or MixtureRewardConfig.from_pretrained(name, **hub)
        told = kwargs.pop("output_loading_info", False)
        if config.backbone_name_or_path is None:
            model, report = super().from_pretrained(name, *args, config=config, output_loading_info=True, **kwargs)
        else:
            given = {key: kwargs[key] for key in ("dtype", "device_map", "attn_implementation") if key in kwargs}
            model = _around(_known_backbone(config, **given), config)
            stored = load_file(cached_file(name, SAFE_WEIGHTS_NAME, **hub))
            missing, unexpected = model.load_state_dict(stored, strict=False)
            report = {"missing_keys": {key for key in missing if not key.startswith("model.")}}
            report["unexpected_keys"] = set(unexpected)
        if report["missing_keys"]:
            lost = ", ".join(sorted(report["missing_keys"])[:3])
            raise UserError(f"{name}: the files lack {lost}, which would be random; a head or router was lost")
        return (model, report) if told else model


def _around(base: PreTrainedModel, config: MixtureRewardConfig, seed: int = 0) -> MixtureRewardModel:
    """A mixture over `base` itself, with new heads and a new router on its device."""
    with torch.device("meta"):
        model = MixtureRewardModel(config)
    model.model = base
    model._add_heads(seed)
    device = next(base.parameters()).device
    model.score.to(device)
    model.router.to(device)
    return model.train(base.training)


def _backbone(config: MixtureRewardConfig, **given: Any) -> PreTrainedModel:
    settings = ModelSettings(name=config.backbone_name_or_path)
    given = {"dtype": config.dtype or "auto", **given}
    return pretrained(AutoModel, settings, "cpu", config=copy.deepcopy(config.backbone_config), **given)


def _known_backbone(config: MixtureRewardConfig, **given: Any) -> PreTrainedModel:
    base, where = _backbone(config, **given), config.backbone_name_or_path
    if weights_digest(where) != config.backbone_digest:
        raise UserError(
            f"the weights at {where} are not those this mixture was trained on (sha256 {config.backbone_digest}); "
            "bring them back, or point backbone_name_or_path in its config.json to a copy"
        )
    return base


AutoConfig.register(MixtureRewardConfig.model_type, MixtureRewardConfig, exist_ok=True)
AutoModelForSequenceClassification.register(MixtureRewardConfig, MixtureRewardModel, exist_ok=True)


def mixture_from(
    policy: nn.Module,
    names: Sequence[str],
    *,
    router: RouterKind = "mlp",
    router_hidden: int = 128,
    init_std: float = 0.02,
    seed: int = 0,
    share: bool = False,
    context_template: str = CONTEXT_TEMPLATE,
) -> MixtureRewardModel:
    """Return a mixture over `policy`'s backbone: one new head per name, and a router that starts uniform.

    policy: a causal model, or the network of a score model. The heads are normal with `init_std`, which must not be
    zero: equal heads get equal gradients and stay equal. share: hold the policy's own weights instead of a copy.
    """
    if len(names) < 2:
        raise UserError(f"a mixture needs at least two heads, got {list(names)}; for one head train a reward model")
    if not init_std > 0:
        raise UserError(f"init_std must be above 0, got {init_std}: heads that start equal stay equal")
    if hasattr(policy, "peft_config"):
        raise UserError("a policy with adapters gives no base for a mixture; build it before adding adapters")
    base = twin(backbone(policy)) if share else copy.deepcopy(backbone(policy))
    below = copy.deepcopy(base.config)
    # Where the policy happened to lie would make the same mixture another file on another machine.
    below.name_or_path = ""
    config = MixtureRewardConfig(
        backbone_config=below,
        head_names=list(names),
        router_type=router,
        router_hidden=router_hidden,
        context_template=context_template,
    )
    model = _around(base, config, seed)
    with torch.no_grad():
        noise = torch.randn(model.score.weight.shape, generator=torch.Generator().manual_seed(seed))
        model.score.weight.copy_(init_std * noise)
    return model


def with_backbone_adapter(model: MixtureRewardModel, settings: AdapterSettings) -> MixtureRewardModel:
    """Return `model` with a new adapter in its frozen backbone; adapter, head and router are trainable.

    To save it, save `merged(model)`.
    """
    model.model = with_adapter(model.model, settings, task="FEATURE_EXTRACTION")
    return model


def merged(model: MixtureRewardModel) -> MixtureRewardModel:
    """Return a mixture whose backbone has the adapter's update in its own weights; `model` stays as it is."""
    if not hasattr(model.model, "peft_config"):
        raise UserError("the backbone of this mixture has no adapter, so there is nothing to merge; save it as it is")
    result = twin(model)
    result.model = copy.deepcopy(model.model).merge_and_unload()
    return result


def load_mixture(settings: ModelSettings, device: str = "cpu") -> MixtureRewardModel:
    """Return the mixture in the folder or hub repository `settings.name`, in evaluation mode.

    Raises `UserError` when it is another kind of model, or when a head, the router or the backbone is missing.
    """
    config = read_config(settings)
    if not isinstance(config, MixtureRewardConfig):
        raise UserError(f"{settings.name} is a {config.model_type}, not a mixture; load it as a score model")
    return pretrained(MixtureRewardModel, settings, device).to(device).eval()


def save_head_card(folder: str | Path, card: Mapping[str, Any]) -> Path:
    """Write what is known of each head (accuracies, correlations, why it is masked) beside the model in `folder`.

    A note about the model: it changes no digest. Not-a-number is refused, because JSON has none.
    """
    path = Path(folder) / HEAD_CARD
    path.write_text(json.dumps(card, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return path


class OneColumn(nn.Module):
    """A mixture as a reward model with one output, for trainers that read `model(**inputs).logits[:, 0]`.

    log_weights: (K,) of one known person, in place of the router. Without them a trainer must also pass
    `prompt_lengths`, unless the router is static.
    """

    def __init__(self, model: MixtureRewardModel, log_weights: Tensor | None = None) -> None:
        super().__init__()
        if log_weights is not None:
            _check_person(log_weights, model)
        self.model = model
        self.config = PreTrainedConfig(id2label={0: "score"}, name_or_path=model.config.name_or_path)
        self.register_buffer("log_weights", log_weights, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **given: Tensor
    ) -> SequenceClassifierOutput:
        """Return `logits` (B, 1), the personal score of each answer."""
        if self.log_weights is not None:
            given["router_logits"] = self.log_weights
        output = self.model(input_ids, attention_mask, **given)
        return SequenceClassifierOutput(logits=output.score[:, None])


def _check_person(log_weights: Tensor, model: MixtureRewardModel) -> None:
    if log_weights.shape != (len(model.names),):
        raise UserError(f"a person has one weight for each of the {len(model.names)} heads, got {log_weights.tolist()}")
    # Masked heads are taken from the person too; what is left must be something.
    if not math.isfinite(float(log_weights[~model.masked.to(log_weights.device)].logsumexp(-1))):
        raise UserError(f"all of this person's weight {log_weights.tolist()} lies on masked heads; adapt it again")
