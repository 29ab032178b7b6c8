"""SigLIP 2 for images of any shape: `siglip2`."""

from __future__ import annotations

from pathlib import Path

import encoder_files as files
import numpy as np

SIZES = {"hidden_size": 36, "intermediate_size": 52, "num_attention_heads": 3, "num_hidden_layers": 2}
PADDING = "max_length"
REFUSED = [
    ({"vision_config": {"vision_use_head": False}}, "vision_use_head is false"),
    ({"vision_config": {"num_patches": 12}}, "num_patches 12 is the square of no whole number"),
    ({"preprocessor_config.json": {"patch_size": 14}}, "the vision tower takes images in their shape, of patches of 8"),
    ({"text_config": {"projection_size": 20}}, "projection_size 20 differs from vision_config.hidden_size 36"),
]


def geometries() -> list[files.Config]:
    """Return one whose table is finer than its images, and one whose table is coarser."""
    words = {"vocab_size": 40, "max_position_embeddings": 48, "projection_size": 36}
    fine = {**SIZES, "num_patches": 64, "patch_size": 8}
    coarse = {**SIZES, "num_patches": 9, "patch_size": 6, "hidden_act": "gelu", "layer_norm_eps": 1e-4}
    text = {**SIZES, "hidden_size": 40, "num_attention_heads": 5}
    first = {"text_config": text | words, "vision_config": fine}
    second = {"text_config": SIZES | words, "vision_config": coarse | {"num_attention_heads": 6}}
    return [{"model_type": "siglip2", "architectures": ["Siglip2Model"], **each} for each in (first, second)]


def save_processor(folder: Path, config: files.Config) -> None:
    """Write a number of patches that no image here fills."""
    images = {"patch_size": config["vision_config"]["patch_size"], "max_num_patches": 31}
    files.save_images(folder, "Siglip2ImageProcessor", **images)
    files.save_gemma_tokenizer(folder, 48, processor_class="Siglip2Processor")


def processor(folder: Path) -> files.Apart:
    """Return the two without their class, which states another number of patches."""
    return files.Apart(folder)


def pixels(inputs) -> list[np.ndarray]:
    """Return [3, height, width] of each image, out of its patches."""
    found = []
    for patches, (rows, cols) in zip(inputs["pixel_values"], inputs["spatial_shapes"].tolist(), strict=True):
        side = round((patches.shape[1] / 3) ** 0.5)
        grid = patches[: rows * cols].numpy().reshape(rows, cols, side, side, 3)
        found.append(grid.transpose(4, 0, 2, 1, 3).reshape(3, rows * side, cols * side))
    return found
