"""Tiny EVE checkpoints; the reference is written from the authors' `vision_tokenizer.py` and `mm_utils.py`."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import CLIP_MEAN, CLIP_STD, save_model, write_json
from piece_tokenizers import merged_pieces, save_merged
from PIL import Image
from tokenizers import Tokenizer
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes, norm_shapes

MERGES = [("▁", "A"), ("U", "S"), ("US", "E"), ("USE", "R"), ("▁", "USER"), ("i", "s"), ("▁", "is"), ("h", "a")]
PIECES = merged_pieces(MERGES)
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""Of `conv_vicuna_v1`, by which the authors tune and judge (`scripts/eve/eve7b_finetune.sh`, `eval`)."""
HEADS = 8


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "two-matrices": _config("openai/eve-patch4-anypixel-48", "openai/clip-vit-large-patch4-24"),
        "one-matrix-larger-steps": _config(
            "eve-patch6-anypixel-96",
            "openai/clip-vit-tiny-patch6-24",
            mm_projector_type="linear",
            mm_hidden_size=40,
            num_attention_heads=6,
            num_key_value_heads=6,
            hidden_size=96,
        ),
    }


def _config(tower: str, clip: str, **changes: Any) -> Config:
    return {  # keys as published
        "architectures": ["EVELlamaForCausalLM"],
        "model_type": "eve",
        "vocab_size": len(PIECES),
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "hidden_act": "silu",
        "max_position_embeddings": 800,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "pretraining_tp": 1,
        "image_aspect_ratio": "square",
        "mm_hidden_size": 32,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": tower,
        "mm_vision_tower_clip": clip,
        "requires_cliploss": True,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **changes,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, without a processor or a template, as published."""
    save_model(folder, config, _shapes(config))
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    save_merged(folder, PIECES, MERGES, begins=True)


def _shapes(config: Config) -> Shapes:
    width, size, tower = config["hidden_size"], config["mm_hidden_size"], "model.vision_tower."
    patch = Sizes(config).patch
    shapes = decoder_shapes({**config, "model_type": "llama"}, "model.")
    shapes["lm_head.weight"] = (config["vocab_size"], width)
    shapes[f"{tower}patch_embedding.weight"] = (size, 3, patch, patch)
    shapes |= {f"{tower}{part}_embedding": (size,) for part in ("class", "split")}
    for look in (f"{tower}{part}_attention." for part in ("local", "global")):
        shapes |= {f"{look}{norm}.0.{part}": (size,) for norm in ("q", "kv") for part in ("weight", "bias")}
        shapes |= {f"{look}q.1.weight": (size, size), f"{look}kv.1.weight": (2 * size, size)}
        shapes |= linear_shapes(f"{look}proj", size, size)
    if config["mm_projector_type"] == "linear":
        shapes |= linear_shapes("model.mm_projector", width, size)
    else:
        shapes |= linear_shapes("model.mm_projector.0", width, size)
        shapes |= linear_shapes("model.mm_projector.2", width, width)
    # of training alone
    aligning = "model.vision_tower_compressor."
    return shapes | linear_shapes(f"{aligning}input_layer", 8, width) | norm_shapes(8, "model.vision_clip.vision.post")


class Sizes:
    """What the two processors say that the config names; its own has squares of two patches each way."""

    def __init__(self, config: Config) -> None:
        own = re.findall(r"\d+", config["mm_vision_tower"])
        clip = re.findall(r"\d+", config["mm_vision_tower_clip"])
        self.patch, self.longest = int(own[0]), int(own[1])
        self.clip_patch, self.clip_side = int(clip[0]), int(clip[1])
        self.square = 2


class Processor:
    """Images by `process_images`, prompts by `get_prompt` and `tokenizer_image_token`."""

    def __init__(self, folder: Path) -> None:
        self.sizes = Sizes(json.loads((folder / "config.json").read_text()))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def size_of(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return (width, height) of `compute_basehw`, as many times larger as images are than CLIP's."""
        most, patch, ratio = self.sizes.clip_side, self.sizes.clip_patch, self.sizes.longest // self.sizes.clip_side
        if width_px > height_px:
            return most * ratio, math.ceil(most * height_px / width_px / patch) * patch * ratio
        return math.ceil(most * width_px / height_px / patch) * patch * ratio, most * ratio

    def pixels(self, image: Image.Image) -> Any:
        """Return [3, height, width], what lies within the mask of the padded square alone."""
        scaled = np.asarray(image.resize(self.size_of(*image.size)), np.float32) / np.float32(255)
        found = (scaled - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
        return found.transpose(2, 0, 1)

    def __call__(self, images: list[Image.Image], text: str) -> Any:
        """Return ids, with that behind the last in the places of images, and pixels."""
        import torch

        chunks = f"{SYSTEM} USER: {'<image>' + chr(10) if images else ''}{text} ASSISTANT:"
        for _ in images[1:]:
            chunks = chunks.replace("<image>\n", "<image>\n<image>\n", 1)
        pixels, ids = [self.pixels(image) for image in images], list[int]()
        for at, chunk in enumerate(chunks.split("<image>")):
            ids += self.tokenizer.encode(chunk).ids[bool(at) :]
            if at < len(images):
                step = self.sizes.patch * self.sizes.square
                rows, cols = (side // step for side in pixels[at].shape[1:])
                ids += [len(PIECES)] * (1 + rows * (cols + 1))
        made: dict[str, Any] = {"input_ids": torch.tensor([ids])}
        return made | ({"images": pixels} if images else {})


def processor(folder: Path) -> Processor:
    """Return the reference's way from messages to ids and pixels."""
    return Processor(folder)


def inputs(processor: Processor, parts: list[Any]) -> Any:
    """Return what it makes of one message, whose images stand before all of its words."""
    images = [part for part in parts if not isinstance(part, str)]
    return processor(images, "".join(part for part in parts if isinstance(part, str)))


def model(folder: Path) -> Any:
    """Return the reference: rows of images in the places of their tokens, into a Llama of transformers'."""
    import torch
    from safetensors.torch import load_file
    from torch.nn import functional
    from transformers import LlamaConfig, LlamaForCausalLM

    config = json.loads((folder / "config.json").read_text())
    weights, sizes = load_file(folder / "model.safetensors"), Sizes(config)
    own = ("model.vision_", "model.mm_projector")
    decoder = LlamaForCausalLM(LlamaConfig(**{**config, "model_type": "llama"})).eval()
    decoder.load_state_dict({key: value for key, value in weights.items() if not key.startswith(own)})
    size = config["mm_hidden_size"]

    def linear(name: str, x: Any) -> Any:
        return functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def looked(name: str, x: Any, seen: Any) -> Any:
        """Return [..., size] of x [..., size], which sees [..., N, size], by eight heads scaled by the whole width."""
        at = f"model.vision_tower.{name}_attention."
        query, both = (
            linear(
                f"{at}{part}.1",
                functional.layer_norm(each, (size,), weights[f"{at}{part}.0.weight"], weights[f"{at}{part}.0.bias"]),
            )
            for part, each in (("q", x), ("kv", seen))
        )
        heads = query.unflatten(-1, (HEADS, -1)).unsqueeze(-3)
        keys, values = (each.unflatten(-1, (HEADS, -1)) for each in both.split(size, dim=-1))
        shares = ((heads * keys).sum(-1) * size**-0.5).softmax(-2)
        return x + linear(f"{at}proj", (shares.unsqueeze(-1) * values).sum(-3).flatten(-2))

    def projected(x: Any) -> Any:
        name = "model.mm_projector"
        if config["mm_projector_type"] == "linear":
            return linear(name, x)
        return linear(f"{name}.2", functional.gelu(linear(f"{name}.0", x)))

    def rows_of(pixels: Any) -> Any:
        patches = functional.conv2d(
            torch.from_numpy(pixels)[None], weights["model.vision_tower.patch_embedding.weight"], stride=sizes.patch
        )[0]
        squares = patches.unfold(1, sizes.square, sizes.square).unfold(2, sizes.square, sizes.square)
        squares = squares.flatten(3).permute(1, 2, 3, 0)  # [h, w, patches of one, size]
        lines = looked("local", squares.mean(2), squares)
        whole = looked("global", weights["model.vision_tower.class_embedding"], lines.flatten(0, 1))
        ends = weights["model.vision_tower.split_embedding"].expand(lines.shape[0], 1, size)
        return projected(torch.cat([whole[None], torch.cat([lines, ends], dim=1).flatten(0, 1)]))

    def answered(input_ids: Any, attention_mask: Any = None, images: Any = None) -> Any:
        is_image = input_ids == len(PIECES)
        embeds = decoder.model.embed_tokens(input_ids.masked_fill(is_image, 0)).clone()
        if images:
            embeds[is_image] = torch.cat([rows_of(each) for each in images])
        return decoder(inputs_embeds=embeds, attention_mask=attention_mask)

    return answered
