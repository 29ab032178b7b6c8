"""Tiny Qwen2.5-VL checkpoints: windows, dynamic resolution, positions on three axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import (
    BOS,
    CLIP_MEAN,
    CLIP_STD,
    CONTROL_IDS,
    EOS,
    PAD,
    RESCALING,
    save_byte_tokenizer,
    save_model,
    save_processor,
    write_json,
)
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes

IMAGE, VIDEO, START, END = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
CONTROL = [PAD, BOS, EOS, IMAGE, VIDEO, START, END]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def config(text: Config | None = None, vision: Config | None = None, **top: Any) -> Config:
    """Return a tiny config; arguments override its parts."""
    text_config = {
        "model_type": "qwen2_5_vl_text",
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "vocab_size": 256 + len(CONTROL) + 5,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [2, 3, 3]},
        **CONTROL_IDS,
        **(text or {}),
    }
    vision_config = {
        "model_type": "qwen2_5_vl_vision",
        "depth": 4,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_heads": 3,
        "patch_size": 4,
        "window_size": 24,
        "out_hidden_size": text_config["hidden_size"],
        "fullatt_block_indexes": [1, 3],
        **(vision or {}),
    }
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "image_token_id": 259,
        "video_token_id": 260,
        "vision_start_token_id": 261,
        "vision_end_token_id": 262,
        "tie_word_embeddings": True,
        "text_config": text_config,
        "vision_config": vision_config,
        **top,
    }


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    return {
        "three-heads-tied": config(),
        "untied-windows-first-and-last": config(
            {**sizes, "rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "mrope_section": [4, 1, 3]}},
            {"fullatt_block_indexes": [2], "window_size": 16, "num_heads": 2, "hidden_size": 40, "out_hidden_size": 64},
            tie_word_embeddings=False,
        ),
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, _shapes(config))
    save_beside_weights(folder, config, "Qwen2_5_VLProcessor")


def save_beside_weights(folder: Path, config: Config, processor: str, **settings: Any) -> None:
    """Write all files but config and weights; settings are the image processor's."""
    write_json(folder / "generation_config.json", CONTROL_IDS)
    images = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": 16 * 16, "longest_edge": 64 * 64},
        "patch_size": config["vision_config"]["patch_size"],
        "temporal_patch_size": 2,
        "merge_size": 2,
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "do_resize": True,
        **RESCALING,
        **settings,
    }
    save_processor(folder, processor, images)
    frames = {"shortest_edge": 16 * 16, "longest_edge": 8 * 64 * 64}
    write_json(folder / "video_preprocessor_config.json", {**images, "size": frames})
    save_byte_tokenizer(folder, CONTROL, pad_token=PAD, eos_token=EOS)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def processor(folder: Path) -> Any:
    """Return transformers' processor."""
    from transformers import Qwen2_5_VLProcessor

    return still_processor(Qwen2_5_VLProcessor, folder)


def still_processor(kind: Any, folder: Path) -> Any:
    """Return a processor of a class without its part for videos, which wants torchvision."""
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

    class StillProcessor(kind):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

    images, tokenizer = Qwen2VLImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return StillProcessor(images, tokenizer, chat_template=TEMPLATE)


def text_shapes(config: Config) -> Shapes:
    """Name the weights of a decoder of the Qwen2 kind, and its head."""
    text = config["text_config"]
    shapes = decoder_shapes({**text, "model_type": "qwen2"}, "model.")
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    return shapes


def _shapes(config: Config) -> Shapes:
    vision, shapes = config["vision_config"], text_shapes(config)
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    shapes["visual.patch_embed.proj.weight"] = (width, 3, 2, patch, patch)
    for block in (f"visual.blocks.{number}." for number in range(vision["depth"])):
        shapes |= linear_shapes(f"{block}attn.qkv", 3 * width, width) | linear_shapes(f"{block}attn.proj", width, width)
        shapes |= linear_shapes(f"{block}mlp.gate_proj", inner, width) | linear_shapes(
            f"{block}mlp.up_proj", inner, width
        )
        shapes |= linear_shapes(f"{block}mlp.down_proj", width, inner)
        shapes |= {f"{block}norm{number}.weight": (width,) for number in (1, 2)}
    shapes |= {"visual.merger.ln_q.weight": (width,)} | linear_shapes("visual.merger.mlp.0", 4 * width, 4 * width)
    return shapes | linear_shapes("visual.merger.mlp.2", vision["out_hidden_size"], 4 * width)
