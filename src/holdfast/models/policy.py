"""What is read from a network in one forward pass: hidden states, and log-probabilities of the response.

The language-model head runs only where there is a response token, and in chunks, so that the (B, T, V) logits
are never held (methods compared in Liger-Kernel, arXiv 2410.10989).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.losses.logprob import token_logprobs, token_logprobs_entropy

# Far below any logit, and finite: what has no probability has no share in the entropy, where -inf would make it NaN.
NEVER = -1e4


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the transformers model inside `model`; adapters stay active, they live in its layers."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def backbone(model: nn.Module) -> nn.Module:
    """Return the part of `model` below its head: tokens (and images) in, hidden states out."""
    return unwrapped(model).base_model


def hidden_states(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, **images: Tensor
) -> Tensor:
    """Return the last hidden states (B, T, H) of `model` for tokens (B, T) and the images they refer to.

    Position ids are explicit, so that the side of the padding changes nothing.
    """
    check_images(model, images)
    outputs = backbone(model)(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        use_cache=False,
        **images,
    )
    return outputs.last_hidden_state


def check_images(model: nn.Module, images: Mapping[str, Tensor]) -> None:
    """Raise `UserError` for images in families with several position axes (Qwen2-VL).

    The place of an image token there cannot be given by one number.
    """
    config = unwrapped(model).config
    axes = getattr(config.get_text_config(), "rope_parameters", None) or {}
    if images and "mrope_section" in axes:
        raise UserError(
            f"{config.model_type} places images on several position axes, which is not supported; "
            "use a model of the LLaVA family, or text without images"
        )


def response_logprobs(
    policy: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    position_ids: Tensor,
    response_mask: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = 1024,
    **images: Tensor,
) -> Tensor:
    """Return (B, T) log p(token t | tokens before t) where `response_mask` is true, zero elsewhere, in float32.

    All tensors are (B, T). The logits are divided by `temperature`, so the result is comparable with what a
    sampler at that temperature recorded. A response cannot begin at the first column: nothing predicts it.
    """
    hidden = hidden_states(policy, input_ids, attention_mask, position_ids, **images)
    return logprobs_at(policy, hidden, input_ids, response_mask, temperature=temperature, chunk=chunk)


def logprobs_at(
    policy: nn.Module,
    hidden: Tensor,
    input_ids: Tensor,
    response_mask: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = 1024,
) -> Tensor:
    """Return what `response_logprobs` returns, from hidden states (B, T, H) that `hidden_states` gave before.

    One forward pass can so serve the policy's loss and whatever else reads the states (`models.trunk`).
    """
    head, states, labels = _predictions(policy, hidden, input_ids, response_mask)
    found = token_logprobs(states, head.weight, labels, bias=answer_bias(policy), temperature=temperature, chunk=chunk)
    return _placed(found, response_mask)


def logprobs_entropy_at(
    policy: nn.Module,
    hidden: Tensor,
    input_ids: Tensor,
    response_mask: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Return (B, T) log-probabilities as `logprobs_at`, and (B, T) entropies of the distributions they belong to."""
    head, states, labels = _predictions(policy, hidden, input_ids, response_mask)
    logprobs, entropies = token_logprobs_entropy(
        states, head.weight, labels, bias=answer_bias(policy), temperature=temperature, chunk=chunk
    )
    return _placed(logprobs, response_mask), _placed(entropies, response_mask)


def _predictions(
    policy: nn.Module, hidden: Tensor, input_ids: Tensor, response_mask: Tensor
) -> tuple[nn.Linear, Tensor, Tensor]:
    """The head, the states (N, H) that it reads, and the N response tokens that they predict."""
    if bool(response_mask[:, 0].any()):
        raise ValueError("response_mask is true in the first column, but no token comes before it to predict it")
    predicted = response_mask[:, 1:]
    return linear_head(policy), hidden[:, :-1][predicted], input_ids[:, 1:][predicted]


def _placed(found: Tensor, response_mask: Tensor) -> Tensor:
    """The N numbers `found` at the N response tokens of a (B, T) table, zero elsewhere."""
    return found.new_zeros(response_mask.shape).masked_scatter(response_mask, found)


def linear_head(policy: nn.Module) -> nn.Linear:
    """Return the head of `policy`; `UserError` when logits are more than a linear map of the hidden states.

    Some families squash or scale logits after the head (Gemma 2, Cohere, Granite). Ignoring that would give
    log-probabilities of another model.
    """
    model = unwrapped(policy)
    config = model.config.get_text_config()
    for name, neutral in {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0}.items():
        value = getattr(config, name, neutral)
        if value not in (None, neutral):
            raise UserError(
                f"{config.model_type} changes logits after its head ({name}={value}), which is unsupported; "
                "use a model whose logits are a linear map of its hidden states"
            )
    return model.get_output_embeddings()


def image_placeholder(policy: nn.Module) -> int | None:
    """The id of the token that stands for a picture in a prompt, None where the policy reads none.

    No answer holds it: it is not sampled, and has no probability when answers are read.
    """
    placeholder: int | None = getattr(unwrapped(policy).config, "image_token_id", None)
    return placeholder


def answer_bias(policy: nn.Module) -> Tensor | None:
    """(V,) the bias of the head where answers are read: a policy that reads pictures never says what stands for one."""
    head, placeholder = linear_head(policy), image_placeholder(policy)
    if placeholder is None:
        return head.bias
    never = head.weight.new_zeros(len(head.weight))
    never[placeholder] = NEVER
    return never if head.bias is None else head.bias + never


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Hold `model` in evaluation mode without gradients; afterwards every module has its former mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, mode in modes:
            module.training = mode
