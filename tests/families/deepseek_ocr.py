"""Tiny DeepSeek-OCR checkpoints in the authors' layout, held to transformers' UnlimitedOcr, which has the same parts.

Its tokens see all of a prompt, so that a whole text run at once is what DeepSeek-OCR makes of it. Pixels and counts of
tokens are the authors' `infer`, written here with Pillow.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import save_byte_tokenizer, save_model
from deepseek_ocr_shapes import clip_layers_shapes, mixture_shapes, sam_shapes, silence
from PIL import Image, ImageOps
from weight_shapes import Config, Shapes, linear_shapes

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
CONTROL = [BEGIN, END, PAD, "<image>", "<|grounding|>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<td>", "</td>"]
WHOLE_PX, TILE_PX, PATCH_PX, MOST_TILES = 1024, 640, 64, 9


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "one-global-layer": _config({}, {}, {}),
        "no-global-layer-other-tables": _config(
            {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "first_k_dense_replace": 2},
            {"image_size": 640, "window_size": 3, "global_attn_indexes": [], "heads": 3},
            {"heads": 6, "width": 36, "image_size": 84},
        ),
    }


def _config(text: Config, sam: Config, clip: Config) -> Config:
    words = {
        "architectures": ["DeepseekV2ForCausalLM"],
        "bos_token_id": 256,
        "eos_token_id": 257,
        "first_k_dense_replace": 1,
        "hidden_size": 40,
        "intermediate_size": 56,
        "kv_lora_rank": None,
        "lm_head": True,
        "max_position_embeddings": 1024,
        "moe_intermediate_size": 24,
        "n_group": 1,
        "n_routed_experts": 5,
        "n_shared_experts": 2,
        "num_attention_heads": 5,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 3,
        "num_key_value_heads": 5,
        "q_lora_rank": None,
        "qk_nope_head_dim": 0,
        "qk_rope_head_dim": 0,
        "topk_group": 1,
        "topk_method": "greedy",
        "use_mla": False,
        "v_head_dim": 0,
        "vocab_size": 256 + len(CONTROL) + 2,
        **text,
    }
    layers = {"heads": 4, "image_size": 56, "layers": 2, "patch_size": 14, "width": 32, **clip}
    tower = {
        "downsample_channels": [14, layers["width"]],
        "global_attn_indexes": [1],
        "heads": 2,
        "layers": 2,
        "width": 24,
        "output_channels": 10,
        "image_size": WHOLE_PX,
        "patch_size": PATCH_PX,
        "window_size": 14,
        "mlp_dim": 20,
        **sam,
    }
    vision = {"image_size": WHOLE_PX, "mlp_ratio": 3.7362, "model_name": "deeplip_b_l", "model_type": "vision"}
    return {
        "architectures": ["DeepseekOCRForCausalLM"],
        "candidate_resolutions": [[WHOLE_PX, WHOLE_PX]],
        "global_view_pos": "head",
        "language_config": words,
        "model_type": "deepseek_vl_v2",
        "projector_config": {
            "input_dim": 2 * layers["width"],
            "model_type": "mlp_projector",
            "n_embed": words["hidden_size"],
            "projector_type": "linear",
        },
        "tile_tag": "2D",
        "vision_config": {**vision, "width": {"clip-l-14-224": layers, "sam_vit_b": tower}},
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, without a chat template, as published."""
    save_model(folder, config, _shapes(config))
    silence(folder, 259)
    save_byte_tokenizer(folder, CONTROL, bos_token=BEGIN, eos_token=END, pad_token=PAD)


def model(folder: Path) -> Any:
    """Return transformers' model with the same parts."""
    from transformers import UnlimitedOcrConfig, UnlimitedOcrForConditionalGeneration

    _, text, sam, clip = _parts(json.loads((folder / "config.json").read_text()))
    vision = {"sam_config": sam, "encoder_config": clip}
    own = UnlimitedOcrConfig(text_config=text, vision_config=vision, image_token_id=259)
    found, told = UnlimitedOcrForConditionalGeneration.from_pretrained(folder, config=own, output_loading_info=True)
    left = {key: value for key, value in told.items() if value}
    if left:
        raise ValueError(f"{folder} is not what transformers' model wants: {left}")
    return found.eval()


def processor(folder: Path) -> Any:
    """Return the tokenizer."""
    from transformers import TokenizersBackend

    return TokenizersBackend.from_pretrained(folder)


def inputs(tokenizer: Any, parts: list[str | Image.Image]) -> Any:
    """Return what the authors' `infer` makes of one message."""
    import torch

    ids, seen = [256], [_seen(part) for part in parts if isinstance(part, Image.Image)]
    images = iter(seen)
    for part in parts:
        if isinstance(part, str):
            ids += tokenizer.encode(part, add_special_tokens=False)
            continue
        _, _, (cols, rows) = next(images)
        lines = rows * _side(TILE_PX) * (cols * _side(TILE_PX) + 1) if cols * rows > 1 else 0
        ids += [259] * (lines + _side(WHOLE_PX) * (_side(WHOLE_PX) + 1) + 1)
        ids += tokenizer.encode("\n", add_special_tokens=False)
    found: dict[str, Any] = {"input_ids": torch.tensor([ids])}
    if seen:
        tiles = [tile for _, own, _ in seen for tile in own]
        found["pixel_values"] = torch.stack([whole for whole, _, _ in seen])
        found["num_local_patches"] = [len(own) for _, own, _ in seen]
        found["patches_grid"] = [list(grid) for _, _, grid in seen]
        if tiles:
            found["pixel_values_local"] = torch.stack(tiles)
    return found


def conversations(given: dict[str, Any]) -> dict[str, list[str | Image.Image]]:
    """Return messages in one of which an image is larger than a tile."""
    large = given["two images"][3].resize((901, 700))
    return {**given, "two images": [*given["two images"][:3], large, " please."]}


def _seen(image: Image.Image) -> tuple[Any, list[Any], tuple[int, int]]:
    """Return all of an image, its tiles, and columns and rows of these."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    whole = _normalised(ImageOps.pad(image, (WHOLE_PX, WHOLE_PX), color=(127, 127, 127)))
    if max(image.size) <= TILE_PX:
        return whole, [], (1, 1)
    cols, rows = get_optimal_tiled_canvas(image.size[::-1], (TILE_PX, TILE_PX), 2, MOST_TILES)
    grid = image.resize((cols * TILE_PX, rows * TILE_PX))
    corners = [(col * TILE_PX, row * TILE_PX) for row in range(rows) for col in range(cols)]
    tiles = [grid.crop((left, top, left + TILE_PX, top + TILE_PX)) for left, top in corners]
    return whole, [_normalised(tile) for tile in tiles], (cols, rows)


def _normalised(image: Image.Image) -> Any:
    import torch

    return torch.from_numpy(((np.asarray(image) / 255 - 0.5) / 0.5).astype(np.float32)).permute(2, 0, 1)


def _side(square_px: int) -> int:
    return -(-(square_px // PATCH_PX) // 4)


def _parts(config: Config) -> tuple[Config, Config, Config, Config]:
    """Return the config, and its decoder, SAM's tower and CLIP's in transformers' keys."""
    text, width = config["language_config"], config["vision_config"]["width"]
    keys = {"width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads"}
    sam, clip = ({keys.get(key, key): size for key, size in width[name].items()} for name in width_names())
    num, first = text["num_hidden_layers"], text["first_k_dense_replace"]
    kinds = {"mlp_layer_types": ["dense"] * first + ["sparse"] * (num - first), "layer_types": ["full_attention"] * num}
    words = {key: value for key, value in text.items() if key != "first_k_dense_replace"}
    return (
        config,
        {**words, **kinds, "model_type": "unlimited_ocr_text"},
        sam,
        {**clip, "intermediate_size": 4 * clip["hidden_size"]},
    )


def width_names() -> tuple[str, str]:
    """Return what the authors call SAM's tower and CLIP's."""
    return "sam_vit_b", "clip-l-14-224"


def _shapes(config: Config) -> Shapes:
    _, text, sam, clip = _parts(config)
    size = text["hidden_size"]
    shapes = mixture_shapes(text, "model.")
    shapes |= sam_shapes(sam, "model.sam_model.", by_authors=True)
    shapes |= clip_layers_shapes(clip, "model.vision_model.")
    shapes |= linear_shapes("model.projector.layers", size, 2 * clip["hidden_size"])
    shapes |= {"model.image_newline": (size,), "model.view_seperator": (size,)}
    return shapes | linear_shapes("lm_head", text["vocab_size"], size, bias=False)
