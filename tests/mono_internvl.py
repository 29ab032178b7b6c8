"""Mono-InternVL in torch, written from the papers (arXiv 2410.08202 and 2507.12566) and the authors' public code.

No library has it any more: transformers never had, and vLLM removed it. Names of weights are those of OpenGVLab's
checkpoints; those of experts in attention, whose code is not public, follow the feed-forward's: `wqkv_ve`, `wo_ve`.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn import functional

IMAGE_TOKEN_ID = 259


class MonoInternVL:
    """The model of a checkpoint's folder; called with a prompt's ids and its tiles."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        self.text, self.ratio = config["llm_config"], config["downsample_ratio"]
        self.patch = config["vision_config"]["patch_size"]
        self.weights = load_file(folder / "model.safetensors")

    def __call__(self, input_ids: Any, pixel_values: Any = None, **_: Any) -> Any:
        """Return logits [1, T, V]."""
        x = self.weights["language_model.model.tok_embeddings.weight"][input_ids]
        rows = x.new_empty(0, x.shape[-1])
        if pixel_values is not None:
            rows = self.features(pixel_values).reshape(-1, x.shape[-1])
        is_image = input_ids == IMAGE_TOKEN_ID
        is_image &= is_image.cumsum(1) <= len(rows)  # what is sampled is text, whatever it says
        x[is_image] = rows
        for number in range(self.text["num_hidden_layers"]):
            before = f"language_model.model.layers.{number}."
            x = x + self.attention(f"{before}attention.", self.norm(x, f"{before}attention_norm"), is_image[0])
            normed = self.norm(x, f"{before}ffn_norm")
            # 2410.08202, equation 3: a token goes through the expert of its kind
            fed = [self.feed_forward(f"{before}feed_forward{kind}.", normed) for kind in ("", "_ve")]
            x = x + torch.where(is_image[..., None], fed[1], fed[0])
        last = self.norm(x, "language_model.model.norm")
        return SimpleNamespace(logits=last @ self.weights["language_model.output.weight"].T)

    def features(self, pixel_values: Any) -> Any:
        """Return rows of images [I, P, D]: patches and positions, squares of them, two matrices (equation 1)."""
        side, own = self.patch, "vision_model.embeddings."
        kernel, bias = (self.weights[f"{own}patch_embedding.{part}"] for part in ("weight", "bias"))
        x = functional.conv2d(pixel_values, kernel, bias, stride=side).permute(0, 2, 3, 1)
        images, rows, cols, width = x.shape
        x = x + self.weights[f"{own}position_embedding"][:, 1:].reshape(1, rows, cols, width)
        factor = int(1 / self.ratio)
        squares = x.reshape(images, rows // factor, factor, cols // factor, factor * width).transpose(2, 3)
        x = squares.reshape(images, -1, factor * factor * width)
        x = functional.layer_norm(x, x.shape[-1:], self.weights["mlp1.0.weight"], self.weights["mlp1.0.bias"], 1e-5)
        return self.linear(functional.gelu(self.linear(x, "mlp1.1")), "mlp1.3")

    def attention(self, own: str, x: Any, is_image: Any) -> Any:
        """Return causal attention, its matrices by the kind of token where there are two (2507.12566)."""
        heads, shared = self.text["num_attention_heads"], self.text["num_key_value_heads"]
        size, num = x.shape[-1] // heads, x.shape[1]
        packed = self.by_kind(f"{own}wqkv", x, is_image).reshape(num, shared, heads // shared + 2, size)
        query = packed[:, :, :-2].reshape(num, heads, size).transpose(0, 1)
        key, value = (packed[:, :, at].transpose(0, 1) for at in (-2, -1))
        angles = torch.arange(num)[:, None] / self.text["rope_theta"] ** (torch.arange(0, size, 2) / size)
        query, key = (_turned(each, angles) for each in (query, key))
        key, value = (each.repeat_interleave(heads // shared, dim=0) for each in (key, value))
        scores = query @ key.transpose(1, 2) / size**0.5
        scores = scores.masked_fill(torch.ones(num, num, dtype=torch.bool).triu(1), float("-inf"))
        attended = (scores.softmax(-1) @ value).transpose(0, 1).reshape(1, num, heads * size)
        return self.by_kind(f"{own}wo", attended, is_image)

    def by_kind(self, name: str, x: Any, is_image: Any) -> Any:
        """Return x by the matrix, that of images for rows that stand for them where there is one."""
        made = self.linear(x, name)
        if f"{name}_ve.weight" not in self.weights:
            return made
        return torch.where(is_image[None, :, None], self.linear(x, f"{name}_ve"), made)

    def feed_forward(self, own: str, x: Any) -> Any:
        """Return w2(silu(w1(x)) * w3(x))."""
        return self.linear(functional.silu(self.linear(x, f"{own}w1")) * self.linear(x, f"{own}w3"), f"{own}w2")

    def linear(self, x: Any, name: str) -> Any:
        """Return x by a matrix, and its bias where there is one."""
        return functional.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def norm(self, x: Any, name: str) -> Any:
        """Return x by the root of its mean square."""
        root = (x.square().mean(-1, keepdim=True) + self.text["rms_norm_eps"]).rsqrt()
        return x * root * self.weights[f"{name}.weight"]


def _turned(x: Any, angles: Any) -> Any:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)
