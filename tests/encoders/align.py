"""ALIGN: `align`."""

from __future__ import annotations

from pathlib import Path

import encoder_files as files

TEXT = {"hidden_size": 36, "intermediate_size": 52, "num_attention_heads": 3, "num_hidden_layers": 2}
STAGES = {"in_channels": [32, 16, 24], "out_channels": [16, 24, 40], "strides": [1, 2, 2], "kernel_sizes": [3, 5, 3]}
STAGES |= {"num_block_repeats": [1, 2, 1], "expand_ratios": [1, 6, 4], "hidden_dim": 640}
REFUSED = [
    ({"projection_dim": 20}, "projection_dim 20 differs from the 16 channels"),
    ({"vision_config": {"pooling_type": "attention"}}, "pooling_type is 'attention'; built are mean, max"),
    ({"vision_config": {"strides": [1, 2]}}, "'strides': 2"),
    ({"vision_config": {"hidden_act": "mish"}}, "'mish'"),
]


def geometries() -> list[files.Config]:
    """Return two odd ones: narrow, and deep with strides on odd sizes that pad all sides."""
    words = {"vocab_size": len(files.BERT_WORDS) + 3, "max_position_embeddings": 48}
    narrow = {**STAGES, "width_coefficient": 0.4, "depth_coefficient": 0.5, "image_size": 34}
    deep = {**STAGES, "width_coefficient": 0.3, "depth_coefficient": 1.2, "image_size": 39}
    deep |= {"depthwise_padding": [3, 5], "pooling_type": "max", "depth_divisor": 4, "squeeze_expansion_ratio": 0.5}
    first = {"projection_dim": 16, "text_config": TEXT | words, "vision_config": narrow}
    second = {"projection_dim": 12, "text_config": TEXT | words | {"hidden_act": "relu"}, "vision_config": deep}
    return [{"model_type": "align", "architectures": ["AlignModel"], **each} for each in (first, second)]


def save_processor(folder: Path, config: files.Config) -> None:
    """Write a stretch and a crop with colours from -1 to 1, as the published checkpoint has them."""
    side = config["vision_config"]["image_size"]
    sizes = {"size": files.square(side + 7), "crop_size": files.square(side), "do_center_crop": True, "resample": 2}
    colours = {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False, "include_top": False}
    files.save_images(folder, "EfficientNetImageProcessor", **sizes, **colours)
    files.save_bert_tokenizer(folder, 48, processor_class="AlignProcessor")


def processor(folder: Path) -> files.Apart:
    """Return the two without their class, which pads texts to 64 tokens that nothing looks at."""
    return files.Apart(folder)
