"""Finite discrete tokens: `clip_fdt`, whose head is written again here from the paper, arXiv 2303.14865."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import checkpoints
import encoder_files as files
from safetensors.numpy import load_file, save_file
from weight_shapes import drawn_weight

TEXT = {"hidden_size": 36, "intermediate_size": 52, "num_attention_heads": 3, "num_hidden_layers": 2}
VISION = {"hidden_size": 40, "intermediate_size": 56, "num_attention_heads": 5, "num_hidden_layers": 2}
REFUSED = [
    ({"fdt_config": {"pool_type": "mean"}}, "pool_type is 'mean'"),
    ({"fdt_config": {"att_func_type": "sigmoid"}}, "att_func_type is 'sigmoid'"),
    ({"fdt_config": {"sd_num": None}}, "'sd_num': None"),
]


def geometries() -> list[files.Config]:
    """Return one whose texts are all shorter than a row, and one with a text that fills it.

    Temperatures are so high that tokens of scores below 0 are chosen too: else padding and class token are not seen.
    """
    words = {"vocab_size": 514, "eos_token_id": 513, "pad_token_id": 513, "bos_token_id": 512}
    found = []
    for longest, side, patch, table in ((48, 36, 12, (24, 20, 12.0)), (14, 40, 8, (33, 18, 30.0))):
        sizes = dict(zip(("sd_num", "sd_dim", "sd_temperature"), table, strict=True))
        found.append(
            {
                "model_type": "clip_fdt",
                "architectures": ["CLIPModel"],
                "projection_dim": 16,
                "text_config": {**TEXT, **words, "max_position_embeddings": longest},
                "vision_config": {**VISION, "image_size": side, "patch_size": patch},
                "fdt_config": {**sizes, "pool_type": "max", "att_func_type": "sparsemax"},
            }
        )
    return found


def texts(config: files.Config) -> list[str] | None:
    """Return short texts for short rows, one of which is full."""
    is_short = config["text_config"]["max_position_embeddings"] == 14
    return ["a cat", "a", "two dogs", "a b c d e f g h i j k l"] if is_short else None


def save_model(folder: Path, config: files.Config) -> None:
    """Write CLIP's weights, and beside them the table and what asks it."""
    clip = {key: value for key, value in config.items() if key != "fdt_config"}
    files.save_model(folder, {**clip, "model_type": "clip"}, config)
    size = config["fdt_config"]["sd_dim"]
    shapes = {"space_dict": (config["fdt_config"]["sd_num"], size)}
    for name, width in (("img", VISION["hidden_size"]), ("txt", TEXT["hidden_size"])):
        layers = {"0": (width,), "1": (size, width), "3": (size,), "4": (size, size)}
        for layer, shape in layers.items():
            shapes[f"{name}_query_model.q_map.{layer}.weight"] = shape
            shapes[f"{name}_query_model.q_map.{layer}.bias"] = shape[:1]
    # norms near 1: their names do not say that they are some
    drawn = {name: drawn_weight(f"norm.{name}", shape) for name, shape in shapes.items()}
    for name in ("img", "txt"):  # queries that are much the same everywhere: some tokens are then far from all places
        last = f"{name}_query_model.q_map.4"
        drawn[f"{last}.weight"] *= 0.5
        drawn[f"{last}.bias"] = drawn_weight(f"{last}.embed", (1, size))[0]
    save_file({**load_file(folder / "model.safetensors"), **drawn}, folder / "model.safetensors", {"format": "pt"})


def save_processor(folder: Path, config: files.Config) -> None:
    """Write a crop and CLIP's tokenizer."""
    files.save_images(folder, "CLIPImageProcessor", **files.cropped(config["vision_config"]["image_size"]))
    checkpoints.save_clip_tokenizer(folder, config["text_config"]["max_position_embeddings"])


def model(folder: Path) -> Any:
    """Return transformers' towers, and the weights of the head."""
    import json

    import torch
    from transformers import CLIPConfig, CLIPModel

    raw = json.loads((folder / "config.json").read_text())
    weights = {name: torch.from_numpy(each) for name, each in load_file(folder / "model.safetensors").items()}
    clip = CLIPModel(CLIPConfig.from_dict({**raw, "model_type": "clip"}))
    head = {name: weights.pop(name) for name in list(weights) if "query_model" in name or name == "space_dict"}
    left = clip.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys
    assert all(name.endswith("position_ids") for name in left.missing_keys)
    return clip.eval(), head, raw


def expected(found: Any, inputs: Any) -> Any:
    """Return vectors of images and texts, and their logits."""
    import torch

    clip, head, raw = found
    images = clip.vision_model(pixel_values=inputs["pixel_values"]).last_hidden_state[:, 1:]  # without the class token
    words = clip.text_model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    of_images = scores(head, "img", images, raw).amax(dim=1)
    of_words = scores(head, "txt", words, raw) * inputs["attention_mask"][:, :, None]  # the authors' code: 0 of padding
    num_padded = raw["text_config"]["max_position_embeddings"] - words.shape[1]
    of_words = torch.nn.functional.pad(of_words, (0, 0, 0, num_padded))  # to the full row that it reads
    vectors = [sparsemax(each) @ head["space_dict"] for each in (of_images, of_words.amax(dim=1))]
    units = [each / each.norm(dim=-1, keepdim=True) for each in vectors]
    return (*vectors, clip.logit_scale.exp() * units[0] @ units[1].T)


def scores(head: Any, kind: str, x: Any, raw: files.Config) -> Any:
    """Return [B, T, N] how near each place is to each token, before the pooling (section 3.2, equation 2)."""
    from torch.nn.functional import gelu, layer_norm, linear

    def of(layer: int) -> tuple[Any, Any]:
        return tuple(head[f"{kind}_query_model.q_map.{layer}.{part}"] for part in ("weight", "bias"))

    inner = gelu(linear(layer_norm(x, x.shape[-1:], *of(0)), *of(1)))
    query = linear(layer_norm(inner, inner.shape[-1:], *of(3)), *of(4))
    table = raw["fdt_config"]
    return query @ head["space_dict"].T / math.sqrt(table["sd_dim"]) / table["sd_temperature"]


def sparsemax(rows: Any) -> Any:
    """Return the point of the simplex that is nearest to each row, found by halving (Martins and Astudillo, 2016)."""
    low, high = rows.amax(dim=-1, keepdim=True) - 1, rows.amax(dim=-1, keepdim=True)
    for _ in range(60):
        middle = (low + high) / 2
        is_more = (rows - middle).clamp(min=0).sum(dim=-1, keepdim=True) > 1
        low, high = middle.where(is_more, low), high.where(is_more, middle)
    return (rows - high).clamp(min=0)


def processor(folder: Path) -> files.Apart:
    """Return the image processor and the tokenizer, which no class of transformers' joins for this name."""
    return files.Apart(folder)
