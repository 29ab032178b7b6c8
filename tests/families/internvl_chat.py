"""Tiny Mono-InternVL checkpoints: experts for tokens of images, against the reference of tests/mono_internvl.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from checkpoints import BOS, CONTROL_IDS, EOS, PAD, save_byte_tokenizer, save_model, write_json
from PIL import Image
from weight_shapes import Config, Shapes, linear_shapes, norm_shapes

IMAGE, START, END = "<IMG_CONTEXT>", "<img>", "</img>"
CONTROL = [PAD, BOS, EOS, IMAGE, START, END, "<|im_end|>"]
SYSTEM = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
TILE_PX, MOST_TILES = 24, 4


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "feed-forwards-alone": _config({}),
        "attention-too-biases-one-tile": _config(
            {
                "visual_attention_experts": True,
                "hidden_size": 48,
                "num_attention_heads": 3,
                "num_key_value_heads": 1,
                "bias": True,
            },
            downsample_ratio=0.25,
            dynamic_image_size=False,
        ),
    }


def _config(text: Config, **top: Any) -> Config:
    words = {
        "architectures": ["InternLM2VEForCausalLM"],
        "model_type": "internlm2",
        "hidden_size": 64,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256 + len(CONTROL) + 2,
        "max_position_embeddings": 1024,
        "rope_theta": 5000.0,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "rms_norm_eps": 1e-5,
        "bias": False,
        "tie_word_embeddings": False,
        **CONTROL_IDS,
        **text,
    }
    patches = {"model_type": "intern_vit_patch", "hidden_size": 32, "image_size": TILE_PX, "patch_size": 3}
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "select_layer": -1,
        "ps_version": "v2",
        "template": "internlm2-chat",
        "downsample_ratio": 0.5,
        "force_image_size": TILE_PX,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": MOST_TILES,
        "llm_config": words,
        "vision_config": {**patches, "num_attention_heads": 4},
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, with the files of a processor that says nothing of tiles."""
    save_model(folder, config, _shapes(config))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    write_json(folder / "preprocessor_config.json", {"feature_extractor_type": "CLIPFeatureExtractor", "size": TILE_PX})
    of_text = "{% for message in messages %}{{ message.content }}{% endfor %}"
    save_byte_tokenizer(folder, CONTROL, pad_token=PAD, bos_token=BOS, eos_token=EOS, chat_template=of_text)


def model(folder: Path) -> Any:
    """Return the reference."""
    spec = importlib.util.spec_from_file_location("mono_internvl", Path(__file__).parents[1] / "mono_internvl.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    return reference.MonoInternVL(folder)


def processor(folder: Path) -> Any:
    """Return the tokenizer, and transformers' processor of tiles that the authors' code cuts as well."""
    return tiles_of(folder, TILE_PX, 3)[:3]


def tiles_of(folder: Path, side_px: int, patch_px: int) -> Any:
    """Return the tokenizer, the processor of tiles, the tokens of a tile, and the config."""
    import json

    import transformers

    config = json.loads((folder / "config.json").read_text())
    cuts = {"crop_to_patches": config["dynamic_image_size"], "max_patches": MOST_TILES}
    colours = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    side = {"size": {"height": side_px, "width": side_px}}
    tokens = int((side_px // patch_px * config["downsample_ratio"]) ** 2)
    tiles = transformers.GotOcr2ImageProcessorPil(**side, **cuts, **colours)
    return transformers.TokenizersBackend.from_pretrained(folder), tiles, tokens, config


def inputs(processor: Any, parts: list[str | Image.Image]) -> Any:
    """Return what the authors' `chat` makes of a message."""
    return inputs_of(processor, parts, BOS, SYSTEM, "<|im_end|>")


def inputs_of(processor: Any, parts: list[str | Image.Image], first: str, system: str, end: str) -> Any:
    """Return a conversation: tiles of each image between two tokens, and a line end."""
    import torch

    tokenizer, tiles, tokens_per_tile = processor
    text, pixels = "", []
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        made = tiles(images=[part], return_tensors="pt")["pixel_values"]
        pixels.append(made)
        text += f"{START}{IMAGE * (tokens_per_tile * len(made))}{END}\n"
    said = f"{first}<|im_start|>system\n{system}{end}<|im_start|>user\n{text}{end}<|im_start|>assistant\n"
    ids = tokenizer(said, return_tensors="pt", add_special_tokens=False)["input_ids"]
    return {"input_ids": ids, **({"pixel_values": torch.cat(pixels)} if pixels else {})}


def _shapes(config: Config) -> Shapes:
    text, vision = config["llm_config"], config["vision_config"]
    width, inner, heads, shared = (
        text[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    )
    root, bias, kinds = "language_model.", text["bias"], ("", "_ve")
    shapes: Shapes = {
        f"{root}model.tok_embeddings.weight": (text["vocab_size"], width),
        f"{root}model.norm.weight": (width,),
    }
    shapes |= linear_shapes(f"{root}output", text["vocab_size"], width, bias=False)
    for layer in (f"{root}model.layers.{number}." for number in range(text["num_hidden_layers"])):
        shapes |= {f"{layer}{name}_norm.weight": (width,) for name in ("attention", "ffn")}
        for kind in kinds if text.get("visual_attention_experts") else kinds[:1]:
            rows = (heads + 2 * shared) * (width // heads)
            shapes |= linear_shapes(f"{layer}attention.wqkv{kind}", rows, width, bias=bias)
            shapes |= linear_shapes(f"{layer}attention.wo{kind}", width, width, bias=bias)
        for kind in kinds:
            for name, rows, columns in (("w1", inner, width), ("w3", inner, width), ("w2", width, inner)):
                shapes |= linear_shapes(f"{layer}feed_forward{kind}.{name}", rows, columns, bias=False)
    size, side = vision["hidden_size"], vision["patch_size"]
    own, num = "vision_model.embeddings.", (vision["image_size"] // side) ** 2
    shapes |= {f"{own}class_embedding": (1, 1, size), f"{own}position_embedding": (1, num + 1, size)}
    shapes |= {f"{own}patch_embedding.weight": (size, 3, side, side), f"{own}patch_embedding.bias": (size,)}
    wide = size * int(1 / config["downsample_ratio"]) ** 2
    shapes |= norm_shapes(wide, "mlp1.0") | linear_shapes("mlp1.1", width, wide) | linear_shapes("mlp1.3", width, width)
    return shapes
