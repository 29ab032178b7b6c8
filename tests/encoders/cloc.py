"""CLOC: transformers' CLIP, and its prompter written again here from arXiv 2410.02746, section 3.3 and appendix B.

Images of these tests are whole; parts of them are in test_cloc.py.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import checkpoints
import encoder_files as files
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

TEXT = {"hidden_size": 36, "intermediate_size": 52, "num_attention_heads": 3, "num_hidden_layers": 2}
VISION = {"hidden_size": 40, "intermediate_size": 56, "num_attention_heads": 5, "num_hidden_layers": 2}
WORDS = {"vocab_size": 514, "eos_token_id": 513, "pad_token_id": 513, "bos_token_id": 512}
REFUSED = [
    ({"vision_config": {"hidden_size": 38, "num_attention_heads": 2}}, "hidden_size 38: .* wants a multiple of 4"),
    (
        {"preprocessor_config.json": files.cropped(36) | {"do_center_crop": True}},
        "images are cropped: boxes are shares",
    ),
]


def geometries() -> list[files.Config]:
    """Return two sizes, of both of CLIP's activations."""
    clip = {"model_type": "cloc", "architectures": ["CLIPModel"]}
    clip["text_config"] = TEXT | WORDS | {"max_position_embeddings": 48}
    first = {"projection_dim": 20, "vision_config": VISION | {"image_size": 36, "patch_size": 12}}
    second = {"projection_dim": 44, "vision_config": VISION | {"image_size": 50, "patch_size": 8, "hidden_act": "gelu"}}
    return [clip | first, clip | second]


class Prompter(nn.Module):
    """One transformer layer with one head over two corners and an image's tokens, pooled and projected."""

    def __init__(self, config: Any, embedding_size: int) -> None:
        from transformers.models.clip.modeling_clip import CLIPMLP

        super().__init__()
        size = config.hidden_size
        self.layer = nn.Module()
        self.layer.layer_norm1, self.layer.layer_norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.layer.self_attn = nn.Module()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self.layer.self_attn, name, nn.Linear(size, size))
        self.layer.mlp = CLIPMLP(config)
        self.post_layernorm = nn.LayerNorm(size)
        self.projection = nn.Linear(size, embedding_size, bias=False)

    def forward(self, tokens: Tensor, box: Tensor) -> Tensor:
        """Return [E] of an image's tokens [N, D] and one box [4]."""
        left, top, right, bottom = box
        size = tokens.shape[-1]
        ends = ((left, top), (right, bottom))
        corners = torch.stack([torch.cat([wave(x, size // 2), wave(y, size // 2)]) for x, y in ends])
        x = torch.cat([corners, tokens])
        normed, attention = self.layer.layer_norm1(x), self.layer.self_attn
        query, key, value = (getattr(attention, f"{name}_proj")(normed)[None] for name in "qkv")
        x = x + attention.out_proj(scaled_dot_product_attention(query, key, value)[0])
        x = x + self.layer.mlp(self.layer.layer_norm2(x))
        return self.projection(self.post_layernorm(x.mean(0)))


def wave(share: Tensor, size: int) -> Tensor:
    """Return [size] sines, then cosines, of a coordinate."""
    frequencies = 10_000 ** (-torch.arange(size // 2) / (size // 2))
    return torch.cat([(2 * math.pi * share * frequencies).sin(), (2 * math.pi * share * frequencies).cos()])


class Cloc(nn.Module):
    """CLIP and the prompter."""

    def __init__(self, raw: files.Config) -> None:
        from transformers import CLIPConfig, CLIPModel

        super().__init__()
        self.clip = CLIPModel(CLIPConfig.from_dict(json.loads(json.dumps(raw)) | {"model_type": "clip"}))
        self.prompter = Prompter(self.clip.config.vision_config, raw["projection_dim"])


def save_model(folder: Path, config: files.Config) -> None:
    """Write CLIP's weights and the prompter's, and those of a head that finds boxes, which nothing reads."""
    from safetensors.torch import save_file

    cloc = Cloc(config)
    files.draw(cloc)
    folder.mkdir()
    weights = {name.removeprefix("clip."): weight for name, weight in cloc.state_dict().items()}
    weights["box_head.0.weight"] = torch.ones(4, 4)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    files.write_json(folder / "config.json", config)


def save_processor(folder: Path, config: files.Config) -> None:
    """Write a stretch and CLIP's tokenizer."""
    files.save_images(folder, "CLIPImageProcessor", **files.stretched(config["vision_config"]["image_size"]))
    checkpoints.save_clip_tokenizer(folder, config["text_config"]["max_position_embeddings"])


def model(folder: Path) -> Any:
    """Return CLIP with its prompter."""
    from safetensors.torch import load_file

    cloc = Cloc(json.loads((folder / "config.json").read_text()))
    weights = load_file(folder / "model.safetensors")
    own = {name if name.startswith("prompter.") else f"clip.{name}": weight for name, weight in weights.items()}
    left = cloc.load_state_dict(own, strict=False)
    assert left.unexpected_keys == ["clip.box_head.0.weight"]
    assert not left.missing_keys
    return cloc.eval()


def expected(cloc: Any, inputs: Any) -> Any:
    """Return vectors of whole images and of texts, and their logits."""
    return files.towers(cloc.clip, inputs)


def of_regions(cloc: Any, pixel_values: Tensor, boxes: list[tuple[float, ...]]) -> Tensor:
    """Return [n, E] of n images, each with a box of its own."""
    tokens = cloc.clip.vision_model(pixel_values=pixel_values).last_hidden_state
    return torch.stack([cloc.prompter(each, torch.tensor(box)) for each, box in zip(tokens, boxes, strict=True)])


def processor(folder: Path) -> files.Apart:
    """Return the image processor and the tokenizer, which no class of transformers' joins for this name."""
    return files.Apart(folder)
