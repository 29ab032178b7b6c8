"""Tiny LLaVA checkpoints whose patches are averaged to fewer before the connector, as InfMLLM's pool-adapter does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from checkpoints import llava_config, save_llava
from weight_shapes import Config


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "clip-cells-that-overlap": _config("clip", 3),
        "siglip-two-layers-side-by-side": _config(
            "siglip", 2, vision_feature_layer=[-1, 2], vision_feature_select_strategy="full"
        ),
    }


def _config(tower: str, side: int, **top: object) -> Config:
    config = llava_config(tower, "llama", mm_projector_type="pool_adapter", pool_out_size=side, **top)
    config["text_config"]["tie_word_embeddings"] = False
    return config


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_llava(folder, config)


def model(folder: Path) -> Any:
    """Return transformers' model with an average before its connector.

    The adapter keeps the places of patches: an adaptive average over their grid to fewer, then two matrices with GELU
    (InfMLLM, arXiv 2311.06791: its pool-adapter).
    """
    import torch
    from transformers import LlavaForConditionalGeneration

    found = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    side = json.loads((folder / "config.json").read_text())["pool_out_size"]
    layers = found.model.multi_modal_projector

    class Pooled(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            grid = round(x.shape[1] ** 0.5)
            pooled = torch.nn.functional.adaptive_avg_pool2d(x.transpose(1, 2).unflatten(2, (grid, grid)), side)
            return layers(pooled.flatten(2).transpose(1, 2))

    found.model.multi_modal_projector = Pooled()
    return found


def inputs(processor: Any, parts: list[Any]) -> Any:
    """Return what the processor makes of one message, with as many image tokens as are left."""
    images = [part for part in parts if not isinstance(part, str)]
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    tokens = processor.tokenizer(text.replace("<image>", "<image>" * LEFT[id(processor)]), return_tensors="pt")
    made = {"input_ids": tokens["input_ids"]}
    if images:
        made["pixel_values"] = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
    return made


LEFT: dict[int, int] = {}
"""How many tokens an image has, by the processor of its checkpoint."""


def processor(folder: Path) -> Any:
    """Return transformers' processor."""
    from transformers import AutoProcessor

    made = AutoProcessor.from_pretrained(folder, backend="pil")
    LEFT[id(made)] = json.loads((folder / "config.json").read_text())["pool_out_size"] ** 2
    return made
