"""Tiny Florence-2 checkpoints: windows and groups of channels, an encoder of image and question, a decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import CLIP_MEAN, CLIP_STD, RESCALING, save_byte_tokenizer, save_model, save_processor, write_json
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, processors
from weight_shapes import Config, Shapes, linear_shapes, norm_shapes

BOS, PAD, EOS, IMAGE = "<s>", "<pad>", "</s>", "<image>"
PLACES = [f"<loc_{place}>" for place in range(12)]
CONTROL = [BOS, PAD, EOS, IMAGE, *PLACES]
BOS_ID, PAD_ID, EOS_ID, IMAGE_ID = range(256, 260)
IDS = {"bos_token_id": BOS_ID, "pad_token_id": PAD_ID, "eos_token_id": EOS_ID}
TAKES_VIDEOS = False


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "two-stages-filled-windows-tied": _config(32),
        "three-stages-shared-width-untied": _config(
            48,
            {"d_model": 40, "encoder_attention_heads": 4, "decoder_attention_heads": 5, "encoder_layers": 1},
            {
                "depths": [1, 2, 1],
                "embed_dim": [8, 12, 20],
                "patch_size": [3, 3, 5],
                "patch_stride": [4, 2, 2],
                "patch_padding": [1, 1, 2],
                "patch_prenorm": [False, True, False],
                "num_heads": [1, 3, 2],
                "num_groups": [2, 2, 5],
                "window_size": 4,
                "mlp_ratio": 2.5,
            },
            tie_word_embeddings=False,
        ),
    }


def _config(side_px: int, text: Config | None = None, vision: Config | None = None, **top: Any) -> Config:
    is_tied = top.get("tie_word_embeddings", True)
    words = {
        "model_type": "bart",
        "d_model": 48,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 3,
        "encoder_ffn_dim": 56,
        "decoder_ffn_dim": 72,
        "vocab_size": 256 + len(CONTROL) + 2,
        "max_position_embeddings": 112,
        "decoder_start_token_id": EOS_ID,
        **IDS,
        **(text or {}),
    }
    tower = {
        "model_type": "florence_vision",
        "depths": [1, 1],
        "embed_dim": [16, 24],
        "patch_size": [7, 3],
        "patch_stride": [4, 2],
        "patch_padding": [3, 1],
        "patch_prenorm": [False, True],
        "num_heads": [2, 3],
        "num_groups": [4, 3],
        "window_size": 3,
        "max_position_embeddings": 9,
        "max_temporal_embeddings": 4,
        "projection_dim": words["d_model"],
        **(vision or {}),
    }
    return {
        "architectures": ["Florence2ForConditionalGeneration"],
        "model_type": "florence2",
        "image_token_id": IMAGE_ID,
        "is_encoder_decoder": True,
        "tie_word_embeddings": is_tied,
        "text_config": words,
        "vision_config": tower,
        "image_side_px": side_px,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, without a chat template, as published."""
    save_model(folder, config, _shapes(config))
    _complete(folder / "model.safetensors", config["vision_config"])
    write_json(
        folder / "generation_config.json", {**IDS, "decoder_start_token_id": EOS_ID, "forced_bos_token_id": BOS_ID}
    )
    side = config["image_side_px"]
    images = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"height": side, "width": side},
        "do_center_crop": False,
        "crop_size": {"height": side, "width": side},
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "do_resize": True,
        "image_seq_length": _num_patches(config) + 1,
        **RESCALING,
    }
    save_processor(folder, "Florence2Processor", images)
    named = {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS, "extra_special_tokens": {"image_token": IMAGE}}
    save_byte_tokenizer(folder, CONTROL, **named)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    around = [(BOS, BOS_ID), (EOS, EOS_ID)]
    backend.post_processor = processors.TemplateProcessing(f"{BOS} $A {EOS}", special_tokens=around)
    backend.save(str(folder / "tokenizer.json"))


def _complete(path: Path, vision: Config) -> None:
    """Add the sines and cosines of times, as checkpoints hold them.

    What attention adds is made quiet beside tokens and their places, so that answers do not repeat themselves.
    """
    count, half = vision["max_temporal_embeddings"], vision["embed_dim"][-1] // 2
    angles = np.arange(count)[:, None] * np.exp(-np.log(10_000) / half * np.arange(half))
    table = np.empty((count, 2 * half), np.float32)
    table[:, ::2], table[:, 1::2] = np.sin(angles), np.cos(angles)
    times = "model.multi_modal_projector.visual_temporal_embed.pos_idx_to_embed"
    stored = load_file(path)
    stored["model.language_model.decoder.embed_positions.weight"] *= 2
    for name in stored:
        if ".decoder." in name and name.endswith("out_proj.weight"):
            stored[name] *= np.float32(0.25)
    save_file({**stored, times: table}, path, metadata={"format": "pt"})


def _num_patches(config: Config) -> int:
    edge, vision = config["image_side_px"], config["vision_config"]
    for side, stride, padding in zip(*(vision[f"patch_{name}"] for name in ("size", "stride", "padding")), strict=True):
        edge = (edge + 2 * padding - side) // stride + 1
    return int(edge**2)


def conversations(given: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return messages that it takes, by the names of those that others take."""
    (wide, _), (_, tall, _, large, _) = given["one image"], given["two images"]
    return {
        "text": [large, "<CAPTION>"],
        "one image": [wide, "what stands at <loc_3>?"],
        "two images": [tall, "<OPEN_VOCABULARY_DETECTION> a cat"],
    }


def processor(folder: Path) -> Any:
    """Return transformers' processor."""
    from transformers import AutoTokenizer, CLIPImageProcessorPil, Florence2Processor

    return Florence2Processor(CLIPImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


def inputs(processor: Any, parts: list[Any]) -> Any:
    """Return what encoder and decoder read; the decoder's are the prompt."""
    import torch

    image, text = parts
    made = processor(images=image, text=text, return_tensors="pt")
    begun = torch.tensor([[EOS_ID, BOS_ID]])
    return {"input_ids": begun, "encoder_ids": made["input_ids"], "pixel_values": made["pixel_values"]}


def model(folder: Path) -> Any:
    """Return transformers' model, called with the ids of the decoder.

    Raises:
        ValueError: A weight is missing or left over.
    """
    from transformers import Florence2ForConditionalGeneration

    whole, found = Florence2ForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    if any(found.values()):
        raise ValueError(f"{folder} is not what Florence-2 wants: {found}")
    whole.eval()

    def answered(input_ids: Any, encoder_ids: Any, pixel_values: Any, attention_mask: Any) -> Any:
        return whole(input_ids=encoder_ids, pixel_values=pixel_values, decoder_input_ids=input_ids)

    return answered


def _shapes(config: Config) -> Shapes:
    text, vision = config["text_config"], config["vision_config"]
    width, stack = text["d_model"], "model.language_model."
    shapes: Shapes = {f"{stack}shared.weight": (text["vocab_size"], width)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (text["vocab_size"], width)
    for part in ("encoder", "decoder"):
        shapes[f"{stack}{part}.embed_positions.weight"] = (text["max_position_embeddings"] + 2, width)
        shapes |= norm_shapes(width, f"{stack}{part}.layernorm_embedding")
        for layer in (f"{stack}{part}.layers.{number}." for number in range(text[f"{part}_layers"])):
            for attention in ("self_attn", "encoder_attn") if part == "decoder" else ("self_attn",):
                for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    shapes |= linear_shapes(f"{layer}{attention}.{name}", width, width)
                shapes |= norm_shapes(width, f"{layer}{attention}_layer_norm")
            inner = text[f"{part}_ffn_dim"]
            shapes |= linear_shapes(f"{layer}fc1", inner, width) | linear_shapes(f"{layer}fc2", width, inner)
            shapes |= norm_shapes(width, f"{layer}final_layer_norm")
    return shapes | _tower_shapes(vision) | _projector_shapes(vision)


def _projector_shapes(vision: Config) -> Shapes:
    root, size, out, rows = (
        "model.multi_modal_projector.",
        vision["embed_dim"][-1],
        vision["projection_dim"],
        vision["max_position_embeddings"],
    )
    return {
        f"{root}image_position_embed.row_embeddings.weight": (rows, size // 2),
        f"{root}image_position_embed.column_embeddings.weight": (rows, size - size // 2),
        f"{root}image_projection.weight": (out, size),
        **norm_shapes(out, f"{root}image_proj_norm"),
    }


def _tower_shapes(vision: Config) -> Shapes:
    shapes: Shapes = {}
    channels = 3
    stages = zip(
        *(vision[name] for name in ("embed_dim", "patch_size", "patch_prenorm", "depths")),
        strict=True,
    )
    for stage, (size, side, norms_first, depth) in enumerate(stages):
        conv = f"model.vision_tower.convs.{stage}."
        shapes |= {f"{conv}conv.weight": (size, channels, side, side), f"{conv}conv.bias": (size,)}
        shapes |= norm_shapes(channels if norms_first else size, f"{conv}norm")
        inner = int(size * vision.get("mlp_ratio", 4.0))
        for pair in range(depth):
            for block, attention in (("spatial_block", "window_attn"), ("channel_block", "channel_attn")):
                root = f"model.vision_tower.blocks.{stage}.{pair}.{block}."
                for name in ("conv1", "conv2"):
                    shapes |= {f"{root}{name}.weight": (size, 1, 3, 3), f"{root}{name}.bias": (size,)}
                shapes |= norm_shapes(size, f"{root}norm1", f"{root}norm2")
                shapes |= linear_shapes(f"{root}{attention}.qkv", 3 * size, size)
                shapes |= linear_shapes(f"{root}{attention}.proj", size, size)
                shapes |= linear_shapes(f"{root}ffn.fc1", inner, size) | linear_shapes(f"{root}ffn.fc2", size, inner)
        channels = size
    return shapes
