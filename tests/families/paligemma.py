"""Tiny PaliGemma checkpoints: prompts that see all of themselves, with Gemma's decoder and with Gemma 2's windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import (
    CONTROL,
    CONTROL_IDS,
    NAMED,
    RESCALING,
    save_byte_tokenizer,
    save_model,
    save_processor,
    write_json,
)
from family_gemma3 import four_norms, write_as_gemma
from PIL import Image
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes, tower_shapes

ANSWER_TYPE = 1
"""Of tokens that see what stands before them alone."""


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "gemma-tied-wide-heads": _config({"model_type": "gemma", "head_dim": 24, "use_bidirectional_attention": True}),
        "gemma2-windows-caps-untied": _config(
            {
                "model_type": "gemma2",
                "head_dim": 16,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "sliding_window": 7,
                "query_pre_attn_scalar": 9,
                "attn_logit_softcapping": 3.0,
                "final_logit_softcapping": 12.0,
                "attention_bias": True,
            },
            {"vision_use_head": True, "image_size": 20},
            tie_word_embeddings=False,
        ),
    }


def _config(text: Config, vision: Config | None = None, **top: Any) -> Config:
    words = {
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "vocab_size": 256 + len(CONTROL) + 1160,
        "max_position_embeddings": 512,
        **CONTROL_IDS,
        **text,
    }
    tower = {
        "model_type": "siglip_vision_model",
        "hidden_size": 36,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 16,
        "patch_size": 4,
        "vision_use_head": False,
        **(vision or {}),
    }
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "image_token_index": 260,
        "projection_dim": 48,
        "tie_word_embeddings": True,
        "text_config": words,
        "vision_config": tower,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, without a chat template; older names where it is tied."""
    save_model(folder, config, _shapes(config))
    write_as_gemma(folder / "model.safetensors", ("language_model.",))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    vision = config["vision_config"]
    side = vision["image_size"]
    images = {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": side, "width": side},
        "resample": 3,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "do_resize": True,
        "image_seq_length": (side // vision["patch_size"]) ** 2,
        **RESCALING,
    }
    save_processor(folder, "PaliGemmaProcessor", images)
    save_byte_tokenizer(folder, CONTROL, extra_special_tokens={"image_token": "<image>"}, **NAMED)


def inputs(processor: Any, parts: list[str | Image.Image]) -> Any:
    """Return what transformers makes of images and a task; of a task alone, what its model was never asked."""
    import torch

    images = [part for part in parts if isinstance(part, Image.Image)]
    text = "".join(part for part in parts if isinstance(part, str))
    if images:
        made = processor(text="<image>" * len(images) + text, images=images)
        named = ("input_ids", "pixel_values", "token_type_ids", "attention_mask")
        return {name: torch.from_numpy(np.array(made[name])) for name in named}
    ids = processor.tokenizer(f"{processor.tokenizer.bos_token}{text}\n", return_tensors="pt")["input_ids"]
    return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)}


def _shapes(config: Config) -> Shapes:
    text, vision, is_tied = config["text_config"], config["vision_config"], config["tie_word_embeddings"]
    before, root = ("language_model.model.", "") if is_tied else ("model.language_model.", "model.")
    shapes = decoder_shapes(text, before)
    if text["model_type"] == "gemma2":
        shapes |= four_norms(text, before)
    if not is_tied:
        shapes["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    shapes |= linear_shapes(f"{root}multi_modal_projector.linear", config["projection_dim"], vision["hidden_size"])
    tower = tower_shapes(vision, f"{root}vision_tower.vision_model." if is_tied else f"{root}vision_tower.")
    return shapes | {name: shape for name, shape in tower.items() if vision["vision_use_head"] or ".head." not in name}
