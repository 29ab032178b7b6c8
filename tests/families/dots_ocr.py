"""Tiny dots.ocr checkpoints: its tower written here with torch from the authors' config, before Qwen2."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from checkpoints import CLIP_MEAN, CLIP_STD, PAD, RESCALING, save_byte_tokenizer, save_model, write_json
from PIL import Image
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes, norm_shapes

IMAGE, START, CLOSE = "<|imgpad|>", "<|img|>", "<|endofimg|>"
CONTROL = [PAD, "<|endofassistant|>", IMAGE, START, CLOSE, "<|user|>", "<|endofuser|>", "<|assistant|>", "<|system|>"]
CONTROL += ["<|endofsystem|>"]
IDS = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 256}
IMAGE_ID = 258


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "tower-of-another-width": _config({}, {}),
        "biases-no-last-norm-packed-by-other-names": _config(
            {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "rope_theta": 300.0},
            {"use_bias": True, "post_norm": False, "num_attention_heads": 1, "embed_dim": 16, "hidden_size": 64},
        ),
    }


def _config(text: Config, vision: Config) -> Config:
    tower = {
        "embed_dim": 24,
        "hidden_size": 48,
        "intermediate_size": 28,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_channels": 3,
        "patch_size": 7,
        "spatial_merge_size": 2,
        "temporal_patch_size": 1,
        "rms_norm_eps": 1e-5,
        "use_bias": False,
        "post_norm": True,
        "is_causal": False,
        **vision,
    }
    return {
        "architectures": ["DotsOCRForCausalLM"],
        "model_type": "dots_ocr",
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "hidden_act": "silu",
        "attention_bias": True,
        "vocab_size": 256 + len(CONTROL) + 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 900.0,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "image_token_id": IMAGE_ID,
        "video_token_id": 265,
        "vision_config": tower,
        **IDS,
        **text,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, _shapes(config))
    write_json(folder / "generation_config.json", IDS)
    images = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": 14 * 14 * 4,
        "max_pixels": 14 * 14 * 60,
        "patch_size": 7,
        "temporal_patch_size": 1,
        "merge_size": 2,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "resample": 3,
        "do_resize": True,
        **RESCALING,
    }
    write_json(folder / "preprocessor_config.json", images)
    save_byte_tokenizer(folder, CONTROL, pad_token=PAD, eos_token="<|endofassistant|>")


def model(folder: Path) -> Any:
    """Return the reference: the tower below, and transformers' Qwen2."""
    import torch
    from safetensors.torch import load_file
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    words = {key: value for key, value in config.items() if key not in ("vision_config", "model_type", "rope_theta")}
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    decoder = Qwen2ForCausalLM(Qwen2Config(**words, rope_parameters=rope)).eval()
    own = {key: value for key, value in weights.items() if not key.startswith("vision_tower.")}
    decoder.load_state_dict(own)

    def run(input_ids: Any, pixel_values: Any = None, image_grid_thw: Any = None, **_: Any) -> Any:
        embeds = decoder.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            rows = [int(grid.prod()) for grid in image_grid_thw]
            parts = zip(pixel_values.split(rows), image_grid_thw, strict=True)
            features = torch.cat([_features(config["vision_config"], weights, *part) for part in parts])
            shown = (input_ids[0] == IMAGE_ID).nonzero()[: len(features), 0]  # an answer may say the token as well
            embeds[0, shown] = features
        return SimpleNamespace(logits=decoder(inputs_embeds=embeds).logits)

    return run


def _features(config: Config, weights: dict[str, Any], patches: Any, grid: Any) -> Any:
    """Return [N / merged^2, D] of one image's patches [N, 3 * px * px], which stand square by square."""
    import torch
    from torch.nn import functional

    def linear(name: str, x: Any) -> Any:
        return functional.linear(x, weights[f"vision_tower.{name}.weight"], weights.get(f"vision_tower.{name}.bias"))

    def normed(name: str, x: Any) -> Any:
        eps = config["rms_norm_eps"]
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weights[f"vision_tower.{name}.weight"]

    size, heads, merged = config["embed_dim"], config["num_attention_heads"], config["spatial_merge_size"]
    _, height, width = (int(each) for each in grid)
    kernel = weights["vision_tower.patch_embed.patchifier.proj.weight"].reshape(size, -1)
    x = patches @ kernel.T + weights["vision_tower.patch_embed.patchifier.proj.bias"]
    x = normed("patch_embed.patchifier.norm", x)

    places = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), dim=-1)
    squares = places.reshape(height // merged, merged, width // merged, merged, 2).permute(0, 2, 1, 3, 4).reshape(-1, 2)
    head = size // heads
    frequencies = 10_000.0 ** (-torch.arange(0, head // 2, 2) / (head // 2))
    angles = (squares[:, :, None] * frequencies).flatten(1).repeat(1, 2)[:, None]  # [N, 1, C]

    def turned(part: Any) -> Any:
        first, second = part.chunk(2, dim=-1)
        return part * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()

    first, last = ("qkv_proj", "out_proj") if config["use_bias"] else ("qkv", "proj")
    for number in range(config["num_hidden_layers"]):
        block = f"blocks.{number}."
        query, key, value = (
            linear(f"{block}attn.{first}", normed(f"{block}norm1", x)).reshape(-1, 3, heads, head).unbind(1)
        )
        parts = (each.transpose(0, 1) for each in (turned(query), turned(key), value))
        seen = functional.scaled_dot_product_attention(*parts).transpose(0, 1).reshape(-1, size)
        x = x + linear(f"{block}attn.{last}", seen)
        inner = normed(f"{block}norm2", x)
        gated = functional.silu(linear(f"{block}mlp.fc1", inner)) * linear(f"{block}mlp.fc3", inner)
        x = x + linear(f"{block}mlp.fc2", gated)
    x = normed("post_trunk_norm", x) if config["post_norm"] else x
    norm = [weights[f"vision_tower.merger.ln_q.{part}"] for part in ("weight", "bias")]
    merged_rows = functional.layer_norm(x, (size,), *norm, 1e-6).reshape(-1, size * merged**2)
    return linear("merger.mlp.2", functional.gelu(linear("merger.mlp.0", merged_rows)))


def processor(folder: Path) -> Any:
    """Return the tokenizer, and transformers' image processor, which the authors' calls."""
    from transformers import Qwen2VLImageProcessorPil, TokenizersBackend

    images = Qwen2VLImageProcessorPil.from_pretrained(folder)
    return TokenizersBackend.from_pretrained(folder), images


def inputs(processor: Any, parts: list[str | Image.Image]) -> Any:
    """Return what the authors' processor makes of one message."""
    import torch

    tokenizer, images = processor
    shown = [part for part in parts if isinstance(part, Image.Image)]
    found = dict(images(images=shown, return_tensors="pt")) if shown else {}
    grids = iter(found.get("image_grid_thw", []))
    said = [
        part if isinstance(part, str) else f"{START}{IMAGE * (int(next(grids).prod()) // 4)}{CLOSE}" for part in parts
    ]
    text = f"<|user|>{''.join(said)}<|endofuser|><|assistant|>"
    return {"input_ids": torch.tensor([tokenizer.encode(text, add_special_tokens=False)]), **found}


def _shapes(config: Config) -> Shapes:
    vision = config["vision_config"]
    size, inner, side = vision["embed_dim"], vision["intermediate_size"], vision["patch_size"]
    shapes = decoder_shapes({**config, "model_type": "qwen2", "attention_bias": False}, "model.")
    shapes |= linear_shapes("lm_head", config["vocab_size"], config["hidden_size"], bias=False)
    patches = "vision_tower.patch_embed.patchifier."
    shapes |= {f"{patches}proj.weight": (size, 3, side, side), f"{patches}proj.bias": (size,)}
    shapes[f"{patches}norm.weight"] = (size,)
    bias = vision["use_bias"]
    first, last = ("qkv_proj", "out_proj") if bias else ("qkv", "proj")
    for number in range(vision["num_hidden_layers"]):
        block = f"vision_tower.blocks.{number}."
        shapes |= {f"{block}norm1.weight": (size,), f"{block}norm2.weight": (size,)}
        shapes |= linear_shapes(f"{block}attn.{first}", 3 * size, size, bias=bias)
        shapes |= linear_shapes(f"{block}attn.{last}", size, size, bias=bias)
        for name, rows, columns in (("fc1", inner, size), ("fc3", inner, size), ("fc2", size, inner)):
            shapes |= linear_shapes(f"{block}mlp.{name}", rows, columns, bias=bias)
    if vision["post_norm"]:
        shapes["vision_tower.post_trunk_norm.weight"] = (size,)
    wide = size * vision["spatial_merge_size"] ** 2
    shapes |= norm_shapes(size, "vision_tower.merger.ln_q") | linear_shapes("vision_tower.merger.mlp.0", wide, wide)
    return shapes | linear_shapes("vision_tower.merger.mlp.2", vision["hidden_size"], wide)
