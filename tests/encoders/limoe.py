"""LIMoE, written again here from arXiv 2206.02770 and google-research/vmoe's blocks, in torch's own modules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import encoder_files as files
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention, softmax

PADDING = "max_length"
MOE = {"layers": [1], "num_experts": 4, "num_experts_per_tok": 1, "norm_topk_prob": False}
REFUSED = [
    ({"moe": None}, "config.json has no moe"),
    ({"classifier": "map"}, "classifier is 'map'; only 'gap' is built"),
    ({"position_embedding": "sincos2d"}, "position_embedding is 'sincos2d'"),
    ({"num_attention_heads": 7}, "hidden_size 40 is not a multiple of num_attention_heads 7"),
]


def geometries() -> list[files.Config]:
    """Return experts in every second of three layers, and in the first and last of four, two for each token."""
    sizes = {"model_type": "limoe", "hidden_size": 40, "intermediate_size": 56, "num_attention_heads": 5}
    sizes |= {"vocab_size": len(files.UNIGRAM_PIECES) + 6, "max_position_embeddings": 16, "layer_norm_eps": 1e-6}
    first = {"num_hidden_layers": 3, "image_size": 36, "patch_size": 12, "projection_dim": 20, "moe": MOE}
    second = {"num_hidden_layers": 4, "image_size": 50, "patch_size": 8, "projection_dim": 44, "hidden_size": 36}
    second |= {"num_attention_heads": 3, "moe": MOE | {"layers": [0, 3], "num_experts_per_tok": 2}}
    return [sizes | first, sizes | second]


def texts(config: files.Config) -> list[str]:
    """Return texts of 16 tokens at most."""
    return ["a cat", "a cat dog", "a", "the dog, a cat", "x" * 9]


class FeedForward(nn.Module):
    """Two matrices and a GELU by tanh, flax's own."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(size, inner), nn.Linear(inner, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x), approximate="tanh"))


class Mixture(nn.Module):
    """Each token meets the experts of the highest probability, times that; no expert has a capacity."""

    def __init__(self, size: int, inner: int, moe: files.Config) -> None:
        super().__init__()
        self.router = nn.Linear(size, moe["num_experts"], bias=False)
        self.experts = nn.ModuleList([FeedForward(size, inner) for _ in range(moe["num_experts"])])
        self.per_token = moe["num_experts_per_tok"]
        self.met: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for place in [(i, j) for i in range(x.shape[0]) for j in range(x.shape[1])]:
            shares, chosen = softmax(self.router(x[place]), -1).topk(self.per_token)
            self.met |= set(chosen.tolist())
            made = [share * self.experts[int(e)](x[place]) for share, e in zip(shares, chosen, strict=True)]
            out[place] = sum(made)
        return out


class Block(nn.Module):
    """Attention and a feed-forward, or several, each behind a norm (vmoe/nn/vit_moe.py, EncoderBlock)."""

    def __init__(self, raw: files.Config, number: int) -> None:
        super().__init__()
        size, inner = raw["hidden_size"], raw["intermediate_size"]
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(size, 1e-6) for _ in range(2))
        self.self_attn = nn.ModuleDict({f"{name}_proj": nn.Linear(size, size) for name in ("q", "k", "v", "out")})
        has_experts = number in raw["moe"]["layers"]
        self.mlp = Mixture(size, inner, raw["moe"]) if has_experts else FeedForward(size, inner)
        self.num_heads = raw["num_attention_heads"]

    def forward(self, x: Tensor) -> Tensor:
        normed = self.layer_norm1(x)
        split = [self.self_attn[f"{name}_proj"](normed).unflatten(-1, (self.num_heads, -1)) for name in "qkv"]
        attended = scaled_dot_product_attention(*(each.transpose(1, 2) for each in split)).transpose(1, 2)
        x = x + self.self_attn["out_proj"](attended.flatten(2))
        return x + self.mlp(self.layer_norm2(x))


class Limoe(nn.Module):
    """One tower; what is before and behind it is of each modality."""

    def __init__(self, raw: files.Config) -> None:
        super().__init__()
        size, side, patch = raw["hidden_size"], raw["image_size"], raw["patch_size"]
        self.vision_embeddings, self.text_embeddings, self.encoder = nn.Module(), nn.Module(), nn.Module()
        self.vision_embeddings.patch_embedding = nn.Conv2d(3, size, patch, patch)
        self.vision_embeddings.position_embedding = nn.Embedding((side // patch) ** 2, size)
        self.text_embeddings.token_embedding = nn.Embedding(raw["vocab_size"], size)
        self.text_embeddings.position_embedding = nn.Embedding(raw["max_position_embeddings"], size)
        self.encoder.layers = nn.Sequential(*(Block(raw, number) for number in range(raw["num_hidden_layers"])))
        self.encoder_norm = nn.LayerNorm(size, 1e-6)
        self.visual_projection, self.text_projection = (
            nn.Linear(size, raw["projection_dim"], bias=False) for _ in range(2)
        )
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))

    def pooled(self, x: Tensor, positions: nn.Embedding) -> Tensor:
        """Return the mean over all tokens, padding among them."""
        return self.encoder_norm(self.encoder.layers(x + positions.weight)).mean(1)

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        patches = self.vision_embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        images = self.pooled(patches, self.vision_embeddings.position_embedding)
        words = self.pooled(self.text_embeddings.token_embedding(input_ids), self.text_embeddings.position_embedding)
        return self.visual_projection(images), self.text_projection(words)


def save_model(folder: Path, config: files.Config) -> None:
    """Write weights and config."""
    from safetensors.torch import save_file

    limoe = Limoe(config)
    files.draw(limoe)
    folder.mkdir()
    save_file(limoe.state_dict(), folder / "model.safetensors", {"format": "pt"})
    files.write_json(folder / "config.json", config)


def save_processor(folder: Path, config: files.Config) -> None:
    """Write a stretch and a tokenizer of pieces."""
    files.save_images(folder, "ViTImageProcessor", size=files.square(config["image_size"]), **files.HALF_COLOURS)
    files.save_unigram_tokenizer(folder, config["max_position_embeddings"])


def model(folder: Path) -> Any:
    """Return the reference with the checkpoint's weights."""
    from safetensors.torch import load_file

    limoe = Limoe(json.loads((folder / "config.json").read_text()))
    limoe.load_state_dict(load_file(folder / "model.safetensors"))
    return limoe.eval()


def expected(limoe: Any, inputs: Any) -> Any:
    """Return vectors of images and texts, and their logits; each mixture's experts were all met but one at most."""
    images, words = limoe(inputs["pixel_values"], inputs["input_ids"])
    mixtures = [each for each in limoe.modules() if isinstance(each, Mixture)]
    assert all(len(each.met) >= len(each.experts) - 1 for each in mixtures)
    units = [each / each.norm(dim=-1, keepdim=True) for each in (images, words)]
    return images, words, limoe.logit_scale.exp() * units[0] @ units[1].T


def processor(folder: Path) -> files.Apart:
    """Return the image processor and the tokenizer, which no class of transformers' joins for this name."""
    return files.Apart(folder)
