"""Tiny DeepSeek-VL2 checkpoints in the authors' layout: squares of patches, two views, a decoder of experts.

Nothing of it is in transformers, but its parts are: the reference is transformers' SigLIP and Llama, its feed-forwards
replaced by experts that are written here, as is all that makes tokens of images (deepseek-ai/DeepSeek-VL2,
deepseek_vl2/models: processing_deepseek_vl_v2.py, modeling_deepseek_vl_v2.py, modeling_deepseek.py).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import save_byte_tokenizer, save_model, write_json
from deepseek_ocr_shapes import mixture_shapes
from PIL import Image, ImageOps
from safetensors.numpy import load_file, save_file
from weight_shapes import Config, Shapes, linear_shapes, norm_shapes

BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ADDED = ["<image>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", "<|User|>", "<|Assistant|>"]
IMAGE_ID = 259


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "odd-patches-added-tokens": _config({}, {}, {}),
        "squares-of-three-shared-keys-one-expert": _config(
            {
                "hidden_size": 48,
                "num_attention_heads": 6,
                "num_key_value_heads": 2,
                "num_hidden_layers": 3,
                "first_k_dense_replace": 2,
                "n_routed_experts": 3,
                "num_experts_per_tok": 1,
                "n_shared_experts": 1,
                "routed_scaling_factor": 1.7,
                "rope_theta": 700.0,
            },
            {"image_size": 28, "patch_size": 4, "width": 40, "heads": 2},
            {"downsample_ratio": 3, "depth": 3, "mlp_ratio": 2},
        ),
    }


def _config(text: Config, vision: Config, projector: Config) -> Config:
    words = {
        "architectures": ["DeepseekV2ForCausalLM"],
        "bos_token_id": 256,
        "eos_token_id": 257,
        "hidden_size": 40,
        "intermediate_size": 56,
        "moe_intermediate_size": 24,
        "num_hidden_layers": 2,
        "first_k_dense_replace": 1,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "n_routed_experts": 7,
        "num_experts_per_tok": 2,
        "n_shared_experts": 2,
        "kv_lora_rank": None,
        "q_lora_rank": None,
        "qk_nope_head_dim": 0,
        "qk_rope_head_dim": 0,
        "v_head_dim": 0,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "greedy",
        "use_mla": False,
        "lm_head": True,
        "rm_head": False,
        "max_position_embeddings": 1024,
        "vocab_size": 256 + 3 + len(ADDED) + 1,
        **text,
    }
    tower = {"image_size": 20, "patch_size": 4, "width": 36, "layers": 2, "heads": 3, "mlp_ratio": 1.47, **vision}
    side = tower["image_size"]
    shapes = [(1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (2, 3), (3, 2)]
    return {
        "candidate_resolutions": [[side * across, side * down] for across, down in shapes],
        "global_view_pos": "head",
        "language_config": words,
        "model_type": "deepseek_vl_v2",
        "projector_config": {
            "model_type": "mlp_projector",
            "input_dim": tower["width"],
            "n_embed": words["hidden_size"],
            **projector,
        },
        "tile_tag": "2D",
        "vision_config": {"model_type": "vision", "model_name": "siglip_so400m_patch14_384", **tower},
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32; a tokenizer without the tokens that the processor adds."""
    save_model(folder, config, _shapes(config))
    stored = load_file(folder / "model.safetensors")
    stored["vision.pos_embed"] *= np.float32(0.5 * math.prod(stored["vision.pos_embed"].shape[1:]) ** 0.5)
    stored["language.lm_head.weight"][IMAGE_ID] = 0
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    settings = {
        "processor_class": "DeepseekVLV2Processor",
        "add_special_token": False,
        "candidate_resolutions": config["candidate_resolutions"],
        "downsample_ratio": config["projector_config"].get("downsample_ratio", 2),
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "image_token": "<image>",
        "mask_prompt": False,
        "normalize": True,
        "pad_token": PAD,
        "patch_size": config["vision_config"]["patch_size"],
        "sft_format": "deepseek",
    }
    write_json(folder / "processor_config.json", settings)
    known = [BOS, EOS, PAD, *(ADDED if config["language_config"]["num_hidden_layers"] == 3 else [])]
    save_byte_tokenizer(folder, known, BOS, bos_token=BOS, eos_token=EOS, pad_token=PAD)


def _shapes(config: Config) -> Shapes:
    words, tower, projector = config["language_config"], config["vision_config"], config["projector_config"]
    size, patch = tower["width"], tower["patch_size"]
    inner = int(size * tower["mlp_ratio"])
    shapes: Shapes = {"vision.pos_embed": (1, (tower["image_size"] // patch) ** 2, size)}
    shapes |= {"vision.patch_embed.proj.weight": (size, 3, patch, patch), "vision.patch_embed.proj.bias": (size,)}
    for block in (f"vision.blocks.{number}." for number in range(tower["layers"])):
        shapes |= norm_shapes(size, f"{block}norm1", f"{block}norm2")
        shapes |= linear_shapes(f"{block}attn.qkv", 3 * size, size) | linear_shapes(f"{block}attn.proj", size, size)
        shapes |= linear_shapes(f"{block}mlp.fc1", inner, size) | linear_shapes(f"{block}mlp.fc2", size, inner)
    shapes |= norm_shapes(size, "vision.norm", "vision.attn_pool.norm") | {"vision.attn_pool.latent": (1, 1, size)}
    width, depth = words["hidden_size"], projector.get("depth", 2)
    between = width * projector.get("mlp_ratio", 1)
    widths = [size * projector.get("downsample_ratio", 2) ** 2, *[between] * (depth - 1), width]
    for number in range(depth):
        shapes |= linear_shapes(f"projector.layers.{2 * number}", widths[number + 1], widths[number])
    shapes |= {"image_newline": (width,), "view_seperator": (width,)}
    first = words["first_k_dense_replace"]
    kinds = ["dense" if number < first else "sparse" for number in range(words["num_hidden_layers"])]
    text = {**words, "mlp_layer_types": kinds, "model_type": "llama"}
    shapes |= mixture_shapes(text, "language.model.")
    return shapes | linear_shapes("language.lm_head", words["vocab_size"], width, bias=False)


def processor(folder: Path) -> Any:
    """Return the tokenizer with what the authors' processor adds to it, and the config."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for tokens in (["<image>"], ADDED[1:6], ADDED[6:]):
        tokenizer.add_tokens(tokens, special_tokens=True)
    return tokenizer, json.loads((folder / "config.json").read_text())


def inputs(found: Any, parts: list[Any]) -> dict[str, Any]:
    """Return the tokens of one message, and the views of its images."""
    shown = [part for part in parts if not isinstance(part, str)]
    text = "".join(part if isinstance(part, str) else "<image>\n" for part in parts)
    return conversation(found, [("user", text)], shown)


def conversation(found: Any, turns: list[tuple[str, str]], shown: list[Any]) -> dict[str, Any]:
    """Return the tokens of a conversation, and the views of its images (`format_messages_v2`)."""
    import torch

    tokenizer, config = found
    views = [views_of(image, config, cuts=len(shown) <= 2) for image in shown]
    left = iter(views)
    ids = [tokenizer.bos_token_id]
    for role, text in turns:
        written = text.strip()
        if role == "user":
            written = f"<|User|>: {written}\n\n<|Assistant|>:"
        first, *rest = written.split("<image>")
        ids += tokenizer.encode(first, add_special_tokens=False)
        for piece in rest:
            ids += [IMAGE_ID] * num_tokens(config, next(left)[1])
            ids += tokenizer.encode(piece, add_special_tokens=False)
        ids += [tokenizer.eos_token_id] * (role == "assistant")
    made: dict[str, Any] = {"input_ids": torch.tensor([ids])}
    return {**made, "views": views} if views else made


def num_tokens(config: Config, grid: tuple[int, int]) -> int:
    """Return how many tokens an image takes."""
    vision, ratio = config["vision_config"], config["projector_config"].get("downsample_ratio", 2)
    side = math.ceil(vision["image_size"] // vision["patch_size"] / ratio)
    down, across = grid
    return side * (side + 1) + 1 + down * side * (across * side + 1)


def views_of(image: Image.Image, config: Config, *, cuts: bool) -> tuple[Any, tuple[int, int]]:
    """Return [1 + down * across, 3, side, side] all of an image and its tiles, and (down, across)."""
    import torch

    side = config["vision_config"]["image_size"]
    width, height = best_of(image.size, config["candidate_resolutions"]) if cuts else (side, side)
    grey = (127, 127, 127)
    views, padded = [ImageOps.pad(image, (side, side), color=grey)], ImageOps.pad(image, (width, height), color=grey)
    for top in range(0, height, side):
        views += [padded.crop((left, top, left + side, top + side)) for left in range(0, width, side)]
    pixels = torch.from_numpy(np.stack([np.asarray(view) for view in views])).permute(0, 3, 1, 2) / 255
    return (pixels - 0.5) / 0.5, (height // side, width // side)


def best_of(size: tuple[int, int], candidates: list[list[int]]) -> tuple[int, int]:
    """Return the candidate that keeps most of an image's pixels, of several such the smallest."""

    def kept(candidate: list[int]) -> int:
        scale = min(candidate[0] / size[0], candidate[1] / size[1])
        return min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])

    width, height = max(candidates, key=lambda each: (kept(each), -each[0] * each[1]))
    return width, height


def model(folder: Path) -> Any:
    """Return the reference: what answers (input_ids, views) with logits.

    Raises:
        ValueError: A weight is left over, those of the pooled view aside.
    """
    import torch
    from safetensors.torch import load_file as load_torch
    from torch.nn import functional

    config = json.loads((folder / "config.json").read_text())
    weights = load_torch(folder / "model.safetensors")
    tower, decoder = _siglip(config["vision_config"], weights), _decoder(config["language_config"], weights)
    told = config["projector_config"]
    factor, depth = told.get("downsample_ratio", 2), told.get("depth", 2)
    matrices = [
        (weights.pop(f"projector.layers.{2 * number}.weight"), weights.pop(f"projector.layers.{2 * number}.bias"))
        for number in range(depth)
    ]
    newline, between = weights.pop("image_newline"), weights.pop("view_seperator")
    if left := {name for name in weights if "attn_pool" not in name}:
        raise ValueError(f"left over: {sorted(left)}")

    def projected(states: Any) -> Any:
        side = math.isqrt(states.shape[1])
        places = states.transpose(1, 2).unflatten(2, (side, side))
        behind = -side % factor
        places = functional.pad(places, (0, behind, 0, behind))
        x = functional.unfold(places, factor, stride=factor).transpose(1, 2)
        for number, (matrix, bias) in enumerate(matrices):
            x = functional.linear(functional.gelu(x) if number else x, matrix, bias)
        return x

    def lines(tiles: Any, down: int, across: int) -> Any:
        """Return the rows of a grid [down * across, side * side, D], line by line, each ended."""
        side = math.isqrt(tiles.shape[1])
        found = []
        for row in range(down):
            for line in range(side):
                of_line = [tiles[row * across + col].unflatten(0, (side, side))[line] for col in range(across)]
                found.append(torch.cat([*of_line, newline[None]]))
        return torch.cat(found)

    class Reference:
        def __call__(self, input_ids: Any, attention_mask: Any = None, views: Any = ()) -> Any:
            embeds = decoder.model.embed_tokens(input_ids).clone()
            rows = []
            for pixels, (down, across) in views:
                features = projected(tower(pixels).last_hidden_state)
                rows += [lines(features[:1], 1, 1), between[None], lines(features[1:], down, across)]
            if rows:
                found = torch.cat(rows)
                places = (input_ids[0] == IMAGE_ID).nonzero()[: len(found), 0]  # an answer may say it
                embeds[0, places] = found
            return decoder(inputs_embeds=embeds)

    return Reference()


def _siglip(config: Config, weights: dict[str, Any]) -> Any:
    """Return transformers' tower, and take its weights out of those."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    tower = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=config["width"],
            intermediate_size=int(config["width"] * config["mlp_ratio"]),
            num_hidden_layers=config["layers"],
            num_attention_heads=config["heads"],
            image_size=config["image_size"],
            patch_size=config["patch_size"],
            layer_norm_eps=1e-6,
            vision_use_head=False,
        )
    ).eval()
    found = {}
    for name in [name for name in weights if name.startswith("vision.") and "attn_pool" not in name]:
        weight, key = weights.pop(name), name.removeprefix("vision.")
        for theirs, ours in (
            ("patch_embed.proj", "embeddings.patch_embedding"),
            ("pos_embed", "embeddings.position_embedding.weight"),
            ("blocks.", "encoder.layers."),
            (".norm", ".layer_norm"),
            (".attn.proj", ".self_attn.out_proj"),
            (".attn.", ".self_attn."),
        ):
            key = key.replace(theirs, ours)
        key = key.replace("norm.", "post_layernorm.") if key.startswith("norm.") else key
        if ".qkv." in key:
            found |= {
                key.replace("qkv", f"{part}_proj"): each for part, each in zip("qkv", weight.chunk(3), strict=True)
            }
        else:
            found[key] = weight[0] if "position" in key else weight
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in tower.state_dict()) else ""
    tower.load_state_dict({f"{prefix}{key}": weight for key, weight in found.items()})
    return tower


def _decoder(config: Config, weights: dict[str, Any]) -> Any:
    """Return transformers' Llama with experts in the place of feed-forwards, and take its weights out of those."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaMLP

    sizes = LlamaConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_key_value_heads"],
        max_position_embeddings=config["max_position_embeddings"],
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": config.get("rope_theta", 10_000.0)},
        tie_word_embeddings=False,
    )

    def feed_forward(width: int) -> Any:
        return LlamaMLP(LlamaConfig(**{**sizes.to_dict(), "intermediate_size": width}))

    class Experts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inner = config["moe_intermediate_size"]
            self.gate = torch.nn.Linear(config["hidden_size"], config["n_routed_experts"], bias=False)
            self.experts = torch.nn.ModuleList([feed_forward(inner) for _ in range(config["n_routed_experts"])])
            self.shared_experts = feed_forward(inner * config["n_shared_experts"])

        def forward(self, x: Any) -> Any:
            shares, chosen = self.gate(x).softmax(-1).topk(config["num_experts_per_tok"], dim=-1)
            shares = shares * config.get("routed_scaling_factor", 1.0)
            out = self.shared_experts(x)
            for number, expert in enumerate(self.experts):
                out = out + (shares * (chosen == number)).sum(-1, keepdim=True) * expert(x)
            return out

    decoder = LlamaForCausalLM(sizes)
    for layer in decoder.model.layers[config["first_k_dense_replace"] :]:
        layer.mlp = Experts()
    names = [name for name in weights if name.startswith("language.")]
    decoder.load_state_dict({name.removeprefix("language."): weights.pop(name) for name in names})
    return decoder.eval()
