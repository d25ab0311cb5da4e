"""Networks that give named scores to a text, or to every token of it: reward, cost, attributes, critics.

Text models are `AutoModelForSequenceClassification` underneath, so other tools load the same folder and see
the same head. Families without such a class (LLaVA) get the same head on their own backbone. Which position
is scored is data (`score_index`); it is never inferred from padding ids.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from holdfast.errors import UserError
from holdfast.losses.reduce import precise
from holdfast.models.adapters import AdapterSettings, base_name, load_adapter, twin, with_adapter
from holdfast.models.load import ModelSettings, load_policy, local, pretrained, read_config
from holdfast.models.policy import backbone, hidden_states, unwrapped
from holdfast.models.scales import Borders, facts

HEAD_FILE, NAMES_FILE = "score_head.safetensors", "score.json"


class ScoreModel(nn.Module):
    """A backbone with one linear head whose K outputs have names.

    network: what is saved and what other tools load; it has a `base_model`, a `score` head and a `config`.
    borders: those between severities, where a cost model has learned them.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        start = getattr(network.config, "score_borders", None)
        self.borders = Borders(start).to(next(network.parameters()).device) if start else None

    @property
    def config(self) -> PreTrainedConfig:
        """The network's configuration."""
        return self.network.config

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the K scores, in order; they live in the configuration's `id2label`."""
        return tuple(self.config.id2label[i] for i in range(self.config.num_labels))

    @property
    def head(self) -> nn.Module:
        """The linear map from hidden states to scores, in float32."""
        return unwrapped(self.network).score

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        score_index: Tensor | None = None,
        **images: Tensor,
    ) -> Tensor:
        """Return `scores` when `score_index` is given, else `token_values`: one entrance for wrappers."""
        hidden = hidden_states(self.network, input_ids, attention_mask, position_ids, **images)
        if score_index is not None:
            hidden = hidden[torch.arange(len(hidden), device=hidden.device), score_index]
        # The head stays in float32 under any precision: a score near its threshold needs the digits.
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(precise(hidden))

    def scores(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        score_index: Tensor,
        **images: Tensor,
    ) -> Tensor:
        """Return (B, K) float32 scores read at `score_index` (B,) of tokens (B, T)."""
        return self(input_ids, attention_mask, position_ids, score_index, **images)

    def token_values(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, **images: Tensor) -> Tensor:
        """Return (B, T, K) float32: the score of every prefix, which is what a critic estimates."""
        return self(input_ids, attention_mask, position_ids, **images)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the network into `folder` as safetensors, in the form that transformers or peft read back."""
        if self.borders is not None:
            self.config.score_borders = self.borders().tolist()
        self.network.save_pretrained(folder)
        if hasattr(self.network, "peft_config"):
            # An adapter's folder has no configuration of the model that could hold the names and what they mean.
            known = {"names": self.names, **facts(self.config)}
            (Path(folder) / NAMES_FILE).write_text(json.dumps(known) + "\n", encoding="utf-8")


class BackboneWithHead(nn.Module):
    """A backbone and a linear head, for families that transformers gives no sequence classifier."""

    # What transformers and peft ask of a model: where its backbone is, and what it is called.
    base_model_prefix = "base_model"

    def __init__(self, base_model: PreTrainedModel, score: nn.Linear) -> None:
        super().__init__()
        self.base_model = base_model
        self.score = score
        self.name_or_path = base_model.config.name_or_path

    @property
    def config(self) -> PreTrainedConfig:
        """The backbone's configuration, which also holds the names of the scores."""
        return self.base_model.config

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the backbone as transformers does, and the head beside it."""
        self.base_model.save_pretrained(folder)
        save_file({"score.weight": self.score.weight.detach().contiguous()}, Path(folder) / HEAD_FILE)


def from_policy(
    policy: PreTrainedModel,
    names: Sequence[str],
    *,
    init_std: float = 0.0,
    seed: int = 0,
    share: bool = False,
) -> ScoreModel:
    """Return a score model that starts from `policy`'s backbone and a new head, one output per name.

    The head is zero, or normal with `init_std`. Zero is a good start: all scores tie, no answer is favoured
    by chance, and the head's gradient is not zero. share: hold the policy's own weight tensors instead of a
    copy, for networks that train adapters over one frozen base (see `with_score_adapter`).
    """
    check_names(names)
    if hasattr(policy, "peft_config"):
        raise UserError("a policy with adapters gives no base for a score model; build it before adding adapters")
    base = twin(backbone(policy)) if share else copy.deepcopy(backbone(policy))
    head = nn.Linear(base.config.get_text_config().hidden_size, len(names), bias=False, device=policy.device)
    with torch.no_grad():
        noise = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed))
        head.weight.copy_(init_std * noise)
    config = copy.deepcopy(policy.config)
    _label(config, names)
    # Raw scores, not probabilities: servers apply no softmax to a regression.
    config.problem_type = "regression"
    return ScoreModel(_assemble(base, head, config))


def check_names(names: Sequence[str]) -> None:
    """Raise `UserError` unless every output of a head can have a name of its own."""
    if not names or len(set(names)) != len(names):
        raise UserError(f"the outputs of a head need distinct names, got {list(names)}; give one name to each")


def _label(config: PreTrainedConfig, names: Sequence[str]) -> None:
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}


def _assemble(base: PreTrainedModel, head: nn.Linear, config: PreTrainedConfig) -> nn.Module:
    kind = _classifier(config)
    if kind is None:
        base.config = config
        return BackboneWithHead(base, head).train(base.training)
    with torch.device("meta"):
        network = kind(config)
    setattr(network, network.base_model_prefix, base)
    network.score = head
    return network.train(base.training)


def _classifier(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The family's sequence classifier with its head kept in float32; None where transformers has none."""
    kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    exact = {"_keep_in_fp32_modules_strict": {"score"}}
    return kind and type(kind.__name__, (kind,), {**exact, "__module__": kind.__module__})


def critic_from(score_model: ScoreModel, names: Sequence[str] | None = None, start: str | None = None) -> ScoreModel:
    """Return a critic that starts from `score_model` and learns apart from it, to be read with `token_values`.

    Trainable weights are copied and frozen ones shared, so a critic over an adapted base costs one more adapter.
    names: the streams whose values it predicts, those of the scores when not given. The first value then starts as
    the score `start`, the first one when not given, and every other one at zero; what was known of the scores (scales,
    borders) is dropped. Its folder also loads as `AutoModelForTokenClassification`, whose extra bias starts at zero.
    """
    row = 0 if start is None else score_model.names.index(start)
    frozen = (weight for weight in score_model.parameters() if not weight.requires_grad)
    critic = copy.deepcopy(score_model, {id(weight): weight for weight in frozen})
    if names is not None:
        _predict(critic, names, row)
    return critic


def _predict(critic: ScoreModel, names: Sequence[str], row: int) -> None:
    """Give `critic` one value for each of `names` in place of its scores; the first starts as the score in `row`."""
    check_names(names)
    # Under an adapter there are two heads: the one that learns, and the base's own behind it.
    for linear in (module for module in critic.head.modules() if isinstance(module, nn.Linear)):
        old = linear.weight
        rows = torch.zeros(len(names), old.shape[1], dtype=old.dtype, device=old.device)
        rows[0] = old.detach()[row]
        linear.weight = nn.Parameter(rows, requires_grad=old.requires_grad)
        linear.out_features = len(names)
    critic.borders = None
    for fact in facts(critic.config):
        setattr(critic.config, fact, None)
    _label(critic.config, names)


def with_score_adapter(score_model: ScoreModel, settings: AdapterSettings) -> ScoreModel:
    """Return `score_model` frozen under a new adapter; adapter and head are trained and saved together."""
    return ScoreModel(with_adapter(score_model.network, settings, task="SEQ_CLS"))


def freeze_backbone(score_model: ScoreModel) -> ScoreModel:
    """Return `score_model` itself, of which only the head (and borders between severities) learn from now on."""
    score_model.network.requires_grad_(False)
    score_model.head.requires_grad_(True)
    return score_model


def load_score_model(
    settings: ModelSettings, device: str = "cpu", *, base: PreTrainedModel | None = None
) -> ScoreModel:
    """Return the score model or critic in the folder or hub repository `settings.name`, in evaluation mode.

    base: for a folder with an adapter, share the weights of this model instead of loading the adapter's base.
    Raises `UserError` when the head is missing, instead of scoring with a random one.
    """
    folder = local(settings.name or "")
    if folder is not None and (folder / "adapter_config.json").is_file():
        return _load_score_adapter(settings, folder, device, base)
    config = read_config(settings)
    kind = _classifier(config)
    if kind is not None:
        return ScoreModel(pretrained(kind, settings, device).to(device).eval())
    if folder is None or not (folder / HEAD_FILE).is_file():
        raise UserError(f"lost head: {settings.name} is a {config.model_type} without {HEAD_FILE}; save it again")
    weight = load_file(folder / HEAD_FILE)["score.weight"].float()
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    head.weight.data = weight
    return ScoreModel(BackboneWithHead(pretrained(AutoModel, settings, device), head).to(device).eval())


def _load_score_adapter(settings: ModelSettings, folder: Path, device: str, base: PreTrainedModel | None) -> ScoreModel:
    if not (folder / NAMES_FILE).is_file():
        raise UserError(f"{folder} holds an adapter without {NAMES_FILE}, so its scores have no names")
    known = json.loads((folder / NAMES_FILE).read_text(encoding="utf-8"))
    shared = base or load_policy(
        settings.model_copy(update={"name": base_name(folder), "adapter": None}), device=device
    )
    network = from_policy(shared, known.pop("names"), share=True).network
    for name, value in known.items():
        setattr(network.config, name, value)
    return ScoreModel(load_adapter(network, folder).eval())
