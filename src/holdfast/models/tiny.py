"""Tiny networks of real families, built from configuration in a blink: for tests, demonstrations and studies.

They are ordinary transformers models, so whatever works on them takes the path that large models take.
"""

from typing import Literal

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2Config,
    Qwen2ForCausalLM,
)

IMAGE_SIZE, PATCH_SIZE = 16, 8
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2


def tiny_policy(
    vocab_size: int,
    *,
    kind: Literal["llama", "qwen2"] = "llama",
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    max_positions: int = 256,
    seed: int = 0,
) -> PreTrainedModel:
    """Return a small text policy; equal arguments give equal weights, the global random state is left alone.

    >>> sum(p.numel() for p in tiny_policy(100).parameters()) < 200_000
    True
    """
    build, settings = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen2": (Qwen2ForCausalLM, Qwen2Config)}[kind]
    config = settings(**_text(vocab_size, hidden, layers, heads, max_positions))
    return _seeded(build, config, seed)


def tiny_llava(
    vocab_size: int,
    image_token_id: int,
    *,
    hidden: int = 48,
    layers: int = 2,
    heads: int = 4,
    max_positions: int = 256,
    seed: int = 0,
) -> LlavaForConditionalGeneration:
    """Return a small LLaVA: a CLIP tower over 16 x 16 pictures, four image tokens each, and a Llama.

    >>> IMAGE_TOKENS, tiny_llava(100, image_token_id=5).config.image_token_id
    (4, 5)
    """
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=32,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**_text(vocab_size, hidden, layers, heads, max_positions)),
        image_token_id=image_token_id,
        image_seq_length=IMAGE_TOKENS,
    )
    return _seeded(LlavaForConditionalGeneration, config, seed)


def tiny_processor(tokenizer: PreTrainedTokenizerBase, image_token: str) -> ProcessorMixin:
    """Return the processor of `tiny_llava`: it sizes pictures and writes four image tokens for each.

    image_token: the token of `tokenizer` that stands for a picture. Needs Pillow.
    """
    from transformers import CLIPImageProcessor, LlavaProcessor

    pictures = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        image_token=image_token,
        # The class token that the vision tower puts in front and LLaVA drops.
        num_additional_image_tokens=1,
    )


def _text(vocab_size: int, hidden: int, layers: int, heads: int, max_positions: int) -> dict[str, int | None]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(heads // 2, 1),
        "max_position_embeddings": max_positions,
        # The families' defaults name ids of their own vocabularies, which mean something else in a small one.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def _seeded(build: type[PreTrainedModel], config: object, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(config).eval()
