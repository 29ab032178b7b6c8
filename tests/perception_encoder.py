"""Perception Encoder in plain torch, for timm's own wants torchvision: from the paper, in timm's names.

Bolya et al., arXiv 2504.13181, section 2.1: a vision transformer with learned positions, a norm before its layers, and
queries and keys that turn by place in two dimensions. What it leaves open is as timm's `vit_pe_core_*` has it:
neighbouring numbers of a head turn together, the first half of them by column and the second by row, from 1; the class
token is not turned; layers scale what they add where `init_values` is given.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


class PerceptionReferenceConfig(PreTrainedConfig):
    model_type = "perception_reference"
    model_args: Any = None


class PerceptionReference(PreTrainedModel):
    """Weights by timm's names in `timm_model`."""

    config: PerceptionReferenceConfig
    config_class = PerceptionReferenceConfig
    base_model_prefix = "timm_model"

    def __init__(self, config: PerceptionReferenceConfig) -> None:
        super().__init__(config)
        self.timm_model = _Tower(config.model_args)
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=self.timm_model(pixel_values))


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Return x [..., N, C] with numbers 2i and 2i + 1 turned by angle i of [N, C / 2]."""
    as_complex = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(as_complex * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = turned(query, angles) @ turned(key, angles).transpose(-1, -2) / query.shape[-1] ** 0.5
        return self.proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, *, scales: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-5), nn.LayerNorm(width, eps=1e-5)
        self.attn, self.mlp = _Attention(width, heads), _Mlp(width, inner)
        self.gamma_1 = nn.Parameter(torch.ones(width)) if scales else None
        self.gamma_2 = nn.Parameter(torch.ones(width)) if scales else None

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        attended = self.attn(self.norm1(x), angles)
        x = x + (attended if self.gamma_1 is None else self.gamma_1 * attended)
        fed = self.mlp(self.norm2(x))
        return x + (fed if self.gamma_2 is None else self.gamma_2 * fed)


class _Embed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch, bias=False)


class _Tower(nn.Module):
    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        width, patch, image = sizes["embed_dim"], sizes["patch_size"], sizes["img_size"][0]
        self.side, self.reference = image // patch, sizes["ref_feat_shape"][0]
        has_class, heads = sizes.get("class_token", True), sizes["num_heads"]
        self.patch_embed = _Embed(width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if has_class else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.side**2 + has_class, width))
        self.norm_pre = nn.LayerNorm(width, eps=1e-5)
        inner, scales = int(width * sizes["mlp_ratio"]), sizes.get("init_values") is not None
        self.blocks = nn.ModuleList(_Block(width, heads, inner, scales=scales) for _ in range(sizes["depth"]))
        has_norm = sizes.get("use_post_transformer_norm", True)
        self.norm = nn.LayerNorm(width, eps=1e-5) if has_norm else nn.Identity()
        self.bands = [10_000.0 ** (-4 * number / (width // heads)) for number in range(width // heads // 4)]

    def angles(self) -> Tensor:
        """Return [N, C / 2] of every place, written out one by one."""
        scale, found = self.reference / self.side, []
        for row in range(self.side):
            for col in range(self.side):
                found.append([(place + 1) * scale * band for place in (col, row) for band in self.bands])
        zero = [[0.0] * len(found[0])] if self.cls_token is not None else []
        return torch.tensor(zero + found)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x, angles = self.norm_pre(x + self.pos_embed), self.angles()
        for block in self.blocks:
            x = block(x, angles)
        return self.norm(x)
