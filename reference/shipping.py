"""Writes checkpoints as transformers reads them, weights in float16."""

from __future__ import annotations

import json
import pathlib
import shutil

import torch
from safetensors.torch import save
from transformers import (
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    Idefics3Processor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
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
    shipped = _filled(SmolVLMForConditionalGeneration(model.config), weights)
    shipped.generation_config.max_new_tokens = 64
    shipped.save_pretrained(folder)
    images = _image_processor()
    tokens.model_max_length = CONTEXT_TOKENS
    Idefics3Processor(images, tokens, image_seq_len=VISUAL_TOKENS, chat_template=CHAT_TEMPLATE).save_pretrained(folder)


def _image_processor() -> Idefics3ImageProcessorPil:
    return Idefics3ImageProcessorPil(
        do_image_splitting=False,
        size={"longest_edge": IMAGE_PX},
        max_image_size={"longest_edge": IMAGE_PX},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def save_vision(weights: dict[str, torch.Tensor], config: SmolVLMConfig, folder: pathlib.Path) -> None:
    """Write a tower and a connector, with what is needed to put them before a decoder that is shipped elsewhere.

    Args:
        weights: Under `model.vision_model.` and `model.connector.`.
        config: Of the whole model.
        folder: Created when missing.

    Raises:
        ValueError: A weight is too large for float16.
    """
    check_float16(weights)
    folder.mkdir(parents=True, exist_ok=True)
    content = save({name: weight.half().contiguous() for name, weight in weights.items()}, {"format": "pt"})
    (folder / "model.safetensors").write_bytes(content)
    vision = {
        "model_type": config.model_type,
        "scale_factor": config.scale_factor,
        "text_config": {"hidden_size": config.text_config.hidden_size},
        "vision_config": config.vision_config.to_diff_dict(),
    }
    (folder / "config.json").write_text(json.dumps(vision, indent=2) + "\n")
    processor = {"image_processor": _image_processor().to_dict(), "image_seq_len": VISUAL_TOKENS}
    (folder / "processor_config.json").write_text(
        json.dumps(processor | {"processor_class": "Idefics3Processor"}, indent=2) + "\n"
    )


def save_clip(weights: dict[str, torch.Tensor], model: CLIPModel, tokens: CLIPTokenizer, folder: pathlib.Path) -> None:
    """Write a CLIP checkpoint and its processor.

    Args:
        weights: Every parameter of the model by name, float32.
        model: Gives the configuration; its own weights stay untouched.
        tokens: The tokenizer.
        folder: Created when missing.

    Raises:
        ValueError: A weight is missing, unknown, or too large for float16.
    """
    _filled(CLIPModel(model.config), weights).save_pretrained(folder)
    images = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_PX},
        crop_size={"height": IMAGE_PX, "width": IMAGE_PX},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    CLIPProcessor(images, tokens).save_pretrained(folder)


def _filled(shipped: PreTrainedModel, weights: dict[str, torch.Tensor]) -> PreTrainedModel:
    """Return the model in float16 with these weights."""
    names = set(dict(shipped.named_parameters()))
    if set(weights) != names:
        raise ValueError(f"weights and model differ in {sorted(set(weights) ^ names)}")
    check_float16(weights)
    shipped.half().load_state_dict({name: weight.half() for name, weight in weights.items()}, strict=False)
    return shipped


def check_float16(weights: dict[str, torch.Tensor]) -> None:
    """Raise ValueError where float16 cannot hold a weight."""
    for name, weight in weights.items():
        largest = float(weight.abs().max())
        if not largest < _MAX_FLOAT16:
            raise ValueError(f"{name} holds {largest}, float16 ends at {_MAX_FLOAT16}")


def derive(
    source: pathlib.Path, folder: pathlib.Path, config: dict[str, object], tensors: dict[str, torch.Tensor]
) -> None:
    """Write a checkpoint that shares tokenizer and preprocessing with another one.

    Args:
        source: Checkpoint whose other files are copied.
        folder: Created when missing.
        config: Content of `config.json`.
        tensors: Content of `model.safetensors`.

    Raises:
        ValueError: A weight is infinite, as those too large for float16 are, or not a number.
    """
    check_float16({k: v for k, v in tensors.items() if v.is_floating_point()})
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and file.name not in ("config.json", "model.safetensors"):
            shutil.copyfile(file, folder / file.name)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    content = save({k: v.contiguous() for k, v in tensors.items()}, {"format": "pt"})
    (folder / "model.safetensors").write_bytes(content)  # save_file would keep others from reading it
