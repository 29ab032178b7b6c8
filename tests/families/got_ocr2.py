"""Tiny GOT-OCR 2 checkpoints: SAM's tower with windows that do not divide it, cut into tiles and not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import (
    CLIP_MEAN,
    CLIP_STD,
    RESCALING,
    save_byte_tokenizer,
    save_model,
    save_processor,
    write_json,
)
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes, norm_shapes

PAD, END = "<|endoftext|>", "<|im_end|>"
CONTROL = [PAD, "<|im_start|>", END, "<imgpad>", "<img>", "</img>"]
IDS = {"pad_token_id": 256, "bos_token_id": 256, "eos_token_id": 256}
SYSTEM = "You should follow the instructions carefully and explain your answers in detail."


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "windows-beyond-the-edge-tied": _config(),
        "untied-windows-that-divide-cut-into-tiles": _config(
            {"hidden_size": 44, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
            {"image_size": 24, "patch_size": 4, "window_size": 2, "global_attn_indexes": [0], "output_channels": 10},
            tie_word_embeddings=False,
        ),
    }


def _config(text: Config | None = None, vision: Config | None = None, **top: Any) -> Config:
    words = {
        "model_type": "qwen2",
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "vocab_size": 256 + len(CONTROL) + 3,
        "max_position_embeddings": 512,
        **IDS,
        **(text or {}),
    }
    tower = {
        "model_type": "got_ocr2_vision",
        "hidden_size": 36,
        "mlp_dim": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "patch_size": 4,
        "image_size": 28,
        "window_size": 3,
        "global_attn_indexes": [1],
        "output_channels": 12,
        **(vision or {}),
    }
    return {
        "architectures": ["GotOcr2ForConditionalGeneration"],
        "model_type": "got_ocr2",
        "image_token_index": 259,
        "tie_word_embeddings": True,
        "text_config": words,
        "vision_config": tower,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, without a chat template, as published."""
    save_model(folder, config, _shapes(config))
    write_json(folder / "generation_config.json", IDS)
    side = config["vision_config"]["image_size"]
    images = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "size": {"height": side, "width": side},
        "crop_to_patches": not config["tie_word_embeddings"],
        "min_patches": 1,
        "max_patches": 5,
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "do_resize": True,
        **RESCALING,
    }
    save_processor(folder, "GotOcr2Processor", images)
    save_byte_tokenizer(folder, CONTROL, pad_token=PAD, eos_token=PAD)


def processor(folder: Path) -> Any:
    """Return transformers' processor, which counts a real image's tokens, wants an image and knows no conversation."""
    from transformers import AutoTokenizer, GotOcr2ImageProcessorPil, GotOcr2Processor

    images, tokenizer = GotOcr2ImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    class SmallProcessor(GotOcr2Processor):  # type: ignore[misc]
        num_image_tokens = 4
        images_kwargs = {"crop_to_patches": images.crop_to_patches, "min_patches": 1, "max_patches": 5}  # noqa: RUF012

        def apply_chat_template(self, messages: list[Config], **options: Any) -> str:
            (content,) = (message["content"] for message in messages)
            num_images = sum(part["type"] == "image" for part in content)
            shown = f"<img>{'<imgpad>' * num_images}</img>\n" if num_images else ""
            asked = "".join(part.get("text", "") for part in content)
            system, user = f"<|im_start|>system\n{SYSTEM}<|im_end|>", f"<|im_start|>user\n{shown}{asked}<|im_end|>"
            return f"{system}{user}<|im_start|>assistant\n"

        def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
            return tokenizer(text, return_tensors="pt") if images is None else super().__call__(images, text, **options)

    return SmallProcessor(images, tokenizer)


def _shapes(config: Config) -> Shapes:
    text, vision, is_tied = config["text_config"], config["vision_config"], config["tie_word_embeddings"]
    root = "" if is_tied else "model."
    shapes = decoder_shapes(text, "language_model.model." if is_tied else "model.language_model.")
    if not is_tied:
        shapes["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    channels, width = vision["output_channels"], text["hidden_size"]
    connector = f"{root}multi_modal_projector."
    shapes[f"{connector}conv_upsampler1.weight"] = (2 * channels, channels, 3, 3)
    shapes[f"{connector}conv_upsampler2.weight"] = (width, 2 * channels, 3, 3)
    shapes |= linear_shapes(f"{connector}multimodal_projector", width, width)
    return shapes | _tower_shapes(vision, f"{root}vision_tower.")


def _tower_shapes(vision: Config, prefix: str) -> Shapes:
    width, inner, patch, channels = (vision[key] for key in ("hidden_size", "mlp_dim", "patch_size", "output_channels"))
    grid, head = vision["image_size"] // patch, width // vision["num_attention_heads"]
    shapes: Shapes = {
        f"{prefix}pos_embed": (1, grid, grid, width),
        f"{prefix}patch_embed.projection.weight": (width, 3, patch, patch),
        f"{prefix}patch_embed.projection.bias": (width,),
        f"{prefix}neck.conv1.weight": (channels, width, 1, 1),
        f"{prefix}neck.conv2.weight": (channels, channels, 3, 3),
        **norm_shapes(channels, f"{prefix}neck.layer_norm1", f"{prefix}neck.layer_norm2"),
    }
    for number in range(vision["num_hidden_layers"]):
        layer = f"{prefix}layers.{number}."
        side = grid if number in vision["global_attn_indexes"] else vision["window_size"]
        shapes |= {f"{layer}attn.rel_pos_{axis}": (2 * side - 1, head) for axis in "hw"}
        shapes |= linear_shapes(f"{layer}attn.qkv", 3 * width, width) | linear_shapes(f"{layer}attn.proj", width, width)
        shapes |= linear_shapes(f"{layer}mlp.lin1", inner, width) | linear_shapes(f"{layer}mlp.lin2", width, inner)
        shapes |= norm_shapes(width, f"{layer}layer_norm1", f"{layer}layer_norm2")
    return shapes
