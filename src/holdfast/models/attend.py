"""Attention of our own inside stock networks, for as long as a block lasts.

A function registered with `transformers.AttentionInterface.register(name, function)` is called by every attention
layer as `function(module, query, key, value, mask, scaling=..., dropout=..., **kwargs)`; what the caller of the network
gives as further keyword arguments reaches it there. transformers makes no mask for such a function: it gets None.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from holdfast.models.policy import backbone


@contextmanager
def attending(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """Hold `model` with the registered attention `name` in its text layers; afterwards it attends as before.

    A layer that is computed again in the backward pass (gradient checkpointing), when the block has long ended, attends
    by `name` there as well.
    """
    with ExitStack() as stack:
        stack.enter_context(_configured(_text_config(model), name))
        for module in backbone(model).get_decoder().modules():
            if getattr(module, "gradient_checkpointing", False):
                stack.enter_context(_again(module, _text_config(model), name))
        yield model


@contextmanager
def _configured(config: PreTrainedConfig, name: str) -> Iterator[None]:
    former = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = former


@contextmanager
def _again(module: nn.Module, config: PreTrainedConfig, name: str) -> Iterator[None]:
    """Let what `module` checkpoints in this block attend by `name` whenever it is computed."""
    former = module._gradient_checkpointing_func

    def checkpoint(layer: Callable[..., Any], *args: Any) -> Any:
        def attend(*again: Any) -> Any:
            with _configured(config, name):
                return layer(*again)

        return former(attend, *args)

    module._gradient_checkpointing_func = checkpoint
    try:
        yield
    finally:
        module._gradient_checkpointing_func = former


def supports(model: nn.Module, longest: int | None = None) -> bool:
    """Whether attention functions of our own can serve `model` on rows of up to `longest` tokens (any, if None).

    It takes layers that hand keyword arguments down to a plain softmax over keys known by their positions alone: no
    recurrence, no bias by distance (ALiBi), no squashed logits (Gemma 2), no sinks (GPT-OSS), no several position axes
    (Qwen2-VL), no window shorter than the rows, no kernel that makes its own mask.
    """
    config, network = _text_config(model), backbone(model).get_decoder()
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config._attn_implementation in ("sdpa", "eager")
        and network._supports_attention_backend
        and (bool(rope) or config.model_type == "gpt2")
        and "mrope_section" not in rope
        and not network._is_stateful
        and not getattr(config, "alibi", False)
        and not getattr(config, "attn_logit_softcapping", None)
        and all(_hands_down(module) and not hasattr(module, "sinks") for module in network.modules())
        and all(longest is not None and longest <= window for window in _windows(config))
    )


def _hands_down(module: nn.Module) -> bool:
    """Whether `module` passes on keyword arguments, if it is one of a network's layers."""
    if not isinstance(module, GradientCheckpointingLayer):
        return True
    kinds = {parameter.kind for parameter in inspect.signature(module.forward).parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds


def _windows(config: PreTrainedConfig) -> list[int]:
    """How many tokens back each restricted kind of layer sees; zero for a kind of which that is not known."""
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    known = {
        "sliding_attention": getattr(config, "sliding_window", None),
        "chunked_attention": getattr(config, "attention_chunk_size", None),
    }
    if getattr(config, "layer_types", None) is None and getattr(config, "use_sliding_window", True):
        kinds |= {kind for kind, window in known.items() if window is not None}
    return [known.get(kind) or 0 for kind in kinds]


def _text_config(model: nn.Module) -> PreTrainedConfig:
    """What the layers go by; a score model's own configuration may be a copy of it."""
    return backbone(model).get_decoder().config
