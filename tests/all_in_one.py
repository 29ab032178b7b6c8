"""Tiny All-in-one checkpoints, and the model as its authors' code has it (`AllInOne/modules`, arXiv 2203.07303)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import RESCALING, save_model, save_processor
from pair_checkpoints import WORDS, save_word_pieces
from safetensors.numpy import load_file, save_file
from weight_shapes import Config, Shapes, linear_shapes, norm_shapes

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
LONGEST = 12


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "retrieval-three-frames": _config(loss_names={"irtr": 1, "itm": 0}),
        "matching-five-frames-odd-heads": _config(
            loss_names={"itm": 1, "mlm": 1}, num_frames=5, hidden_size=30, num_heads=5, mlp_ratio=3, image_size=20
        ),
    }


def _config(**changes: Any) -> Config:
    return {
        "model_type": "all_in_one",
        "vit": "vit_deit_tiny_patch16_224",
        "image_size": 24,
        "patch_size": 4,
        "num_frames": 3,
        "max_text_len": LONGEST,
        "vocab_size": len(WORDS),
        "hidden_size": 36,
        "num_heads": 3,
        "num_layers": 3,
        "mlp_ratio": 2,
        "max_image_len": -1,
        **changes,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, with heads that no score reads."""
    save_model(folder, config, shapes(config))
    path = folder / "model.safetensors"
    weights, norm = load_file(path), "text_embeddings.LayerNorm.weight"
    save_file({**weights, norm: 1 + weights[norm]}, path, {"format": "pt"})
    side, around = config["image_size"], int(config["image_size"] * 1.2)
    images = {
        "image_processor_type": "EfficientNetImageProcessor",
        "size": {"height": around, "width": around},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "resample": 0,
        "include_top": False,
        "image_mean": MEAN,
        "image_std": STD,
        **RESCALING,
    }
    save_processor(folder, "CLIPProcessor", images)
    save_word_pieces(folder, config["max_text_len"])


def shapes(config: Config) -> Shapes:
    """Name the weights."""
    size, patch = config["hidden_size"], config["patch_size"]
    inner, num = int(size * config["mlp_ratio"]), (config["image_size"] // patch) ** 2
    found: Shapes = {
        "text_embeddings.word_embeddings.weight": (config["vocab_size"], size),
        "text_embeddings.position_embeddings.weight": (config["max_text_len"], size),
        "text_embeddings.token_type_embeddings.weight": (2, size),
        "token_type_embeddings.weight": (2, size),
        "transformer.cls_token": (1, 1, size),
        "transformer.pos_embed": (1, num + 1, size),
        "transformer.temporal_embed": (1, config["num_frames"], size),
        "transformer.patch_embed.proj.weight": (size, 3, patch, patch),
        "transformer.patch_embed.proj.bias": (size,),
        **norm_shapes(size, "text_embeddings.LayerNorm", "transformer.norm"),
        **linear_shapes("pooler.dense", size, size),
        **linear_shapes("itm_score.fc", 2, size),
        **linear_shapes("mlm_score.transform.dense", size, size),
    }
    if config["loss_names"].get("irtr"):
        found |= linear_shapes("rank_output", 1, size)
    for block in (f"transformer.blocks.{number}." for number in range(config["num_layers"])):
        found |= norm_shapes(size, f"{block}norm1", f"{block}norm2")
        found |= linear_shapes(f"{block}attn.qkv", 3 * size, size) | linear_shapes(f"{block}attn.proj", size, size)
        found |= linear_shapes(f"{block}mlp.fc1", inner, size) | linear_shapes(f"{block}mlp.fc2", size, inner)
    return found


def reference(folder: Path) -> Any:
    """Return (input_ids [1, T], frames [F, 3, height, width]) -> the score before the logistic function.

    Patches stand row by row: `visual_embed` draws their order by chance, as ViLT's does, so that which of them are
    rolled is chance too; any order is one that it may draw.
    """
    import torch
    from safetensors.torch import load_file
    from torch.nn import functional
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertEmbeddings

    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    size, heads, frames = config["hidden_size"], config["num_heads"], config["num_frames"]
    told = {"vocab_size": config["vocab_size"], "max_position_embeddings": config["max_text_len"]}
    words = BertEmbeddings(BertConfig(hidden_size=size, num_attention_heads=heads, **told)).eval()
    prefix = "text_embeddings."
    words.load_state_dict({key[len(prefix) :]: weights[key] for key in weights if key.startswith(prefix)}, strict=False)

    def linear(name: str, x: Any) -> Any:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: Any) -> Any:
        return functional.layer_norm(x, (size,), weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)

    def rolled(x: Any) -> Any:
        """`TemporalRoll` with v = 0, of one video [F, L, D]."""
        fold = x.shape[1] // 8
        made = x.clone()
        made[:, 1 : fold + 1] = torch.roll(x[:, 1 : fold + 1], 1, 0)
        made[:, -fold:] = torch.roll(x[:, -fold:], -1, 0)
        return made

    def block(name: str, x: Any) -> Any:
        query, key, value = (
            part.unflatten(2, (heads, -1)).transpose(1, 2)
            for part in linear(f"{name}.attn.qkv", norm(f"{name}.norm1", x)).chunk(3, -1)
        )
        shares = (query @ key.transpose(-2, -1) * (size // heads) ** -0.5).softmax(-1)
        x = x + linear(f"{name}.attn.proj", (shares @ value).transpose(1, 2).flatten(2))
        inner = functional.gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x)))
        return x + linear(f"{name}.mlp.fc2", inner)

    def score(input_ids: Any, video: Any) -> float:
        kinds, places = weights["token_type_embeddings.weight"], weights["transformer.pos_embed"]
        text = (words(input_ids) + kinds[0]).repeat_interleave(frames, 0)
        kernel, bias = (weights[f"transformer.patch_embed.proj.{part}"] for part in ("weight", "bias"))
        patches = functional.conv2d(video, kernel, bias, stride=config["patch_size"]).flatten(2).transpose(1, 2)
        timed = patches + places[:, 1:] + weights["transformer.temporal_embed"][0][:, None]
        first = (weights["transformer.cls_token"] + places[:, :1]).expand(frames, -1, -1)
        x = torch.cat([text, torch.cat([first, timed], 1) + kinds[1]], 1)
        num_words = text.shape[1]
        for number in range(config["num_layers"]):
            x = torch.cat([x[:, :num_words], rolled(x[:, num_words:])], 1)
            x = block(f"transformer.blocks.{number}", x)
        states = norm("transformer.norm", x).mean(0, keepdim=True)
        pooled = torch.tanh(linear("pooler.dense", states[:, 0]))
        if config["loss_names"].get("irtr"):
            return float(linear("rank_output", pooled))
        classes = linear("itm_score.fc", pooled)[0]
        return float(classes[1] - classes[0])  # the softmax of two is the logistic function of their difference

    def run(input_ids: np.ndarray, video: np.ndarray) -> float:
        with torch.no_grad():
            return score(torch.from_numpy(input_ids), torch.from_numpy(video))

    return run
