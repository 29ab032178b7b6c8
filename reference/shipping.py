"""Writes checkpoints as transformers reads them, weights in float16."""

from __future__ import annotations

import pathlib

import torch
from transformers import Idefics3Processor, PreTrainedTokenizerFast, SmolVLMForConditionalGeneration
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from reference.layout import IMAGE_PX
from reference.tokenizer import CHAT_TEMPLATE
from reference.vlm_model import CONTEXT_TOKENS, VISUAL_TOKENS

_MAX_FLOAT16 = 65504.0


def save_vlm(
    weights: dict[str, torch.Tensor],
    model: SmolVLMForConditionalGeneration,
    tokens: PreTrainedTokenizerFast,
    folder: pathlib.Path,
) -> None:
    """Write a SmolVLM checkpoint and its processor.

    Args:
        weights: Every parameter of the model by name, float32.
        model: Gives the configuration; its own weights stay untouched.
        tokens: The tokenizer.
        folder: Created when missing.

    Raises:
        ValueError: A weight is missing, unknown, or too large for float16.
    """
    check_float16(weights)
    shipped = SmolVLMForConditionalGeneration(model.config).half()
    if set(weights) != set(dict(shipped.named_parameters())):
        raise ValueError(f"weights do not fit the model: {sorted(set(weights) ^ set(dict(shipped.named_parameters())))}")
    shipped.load_state_dict({name: weight.half() for name, weight in weights.items()}, strict=False)
    shipped.generation_config.max_new_tokens = 64
    shipped.save_pretrained(folder)
    images = Idefics3ImageProcessorPil(
        do_image_splitting=False,
        size={"longest_edge": IMAGE_PX},
        max_image_size={"longest_edge": IMAGE_PX},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    tokens.model_max_length = CONTEXT_TOKENS
    Idefics3Processor(images, tokens, image_seq_len=VISUAL_TOKENS, chat_template=CHAT_TEMPLATE).save_pretrained(folder)


def check_float16(weights: dict[str, torch.Tensor]) -> None:
    """Raise ValueError where float16 cannot hold a weight."""
    for name, weight in weights.items():
        largest = float(weight.abs().max())
        if not largest < _MAX_FLOAT16:
            raise ValueError(f"{name} holds {largest}, float16 ends at {_MAX_FLOAT16}")
