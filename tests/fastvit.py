"""FastViTHD in plain torch, for timm's own wants torchvision: from the papers, in the names of timm's checkpoints.

FastVLM (arXiv 2412.13303), section 3.2 and figure 2: a stem that divides by 4 and five stages, each behind the first
halving height and width, of which the first three mix places by RepMixer and the last two attend. FastViT (arXiv
2303.14189): RepMixer and its one convolution at inference, and positions by a convolution before attention (section
3.2.1); large kernels where a stage begins and in feed-forwards (section 3.2.3). What the papers leave open is as timm's
`fastvit_mci3` has it: activations behind the halving, layer norms over channels, the gate behind the last stage.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

HEAD_SIZE = 32


class FastViTReferenceConfig(PreTrainedConfig):
    model_type = "fastvit_reference"
    hidden_size: int = 3072
    layers: Any = ()
    widths: Any = ()
    ratios: Any = ()


class FastViTReference(PreTrainedModel):
    """Weights by timm's names in `timm_model`, used as functions."""

    config: FastViTReferenceConfig
    config_class = FastViTReferenceConfig
    base_model_prefix = "timm_model"

    def __init__(self, config: FastViTReferenceConfig) -> None:
        super().__init__(config)
        self.timm_model = _Tower(config)
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=self.timm_model(pixel_values))


class _Reparam(nn.Module):
    def __init__(self, inner: int, outer: int, side: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.reparam_conv = nn.Conv2d(inner, outer, side, stride, padding=side // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.reparam_conv(x)


class _Activated(_Reparam):
    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.reparam_conv(x))


class _Gamma(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width, 1, 1))


class _ConvNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 7, padding=3, groups=width, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=1e-5)


class _Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv = _ConvNorm(width)
        self.fc1 = nn.Conv2d(width, inner, 1)
        self.fc2 = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(self.conv.bn(self.conv.conv(x)))))


class _Mixed(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.token_mixer = _Reparam(width, width, 3, groups=width)
        self.mlp = _Mlp(width, inner)
        self.layer_scale = _Gamma(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x)
        return x + self.layer_scale.gamma * self.mlp(x)


class _SelfAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        num, places, width = x.shape
        query, key, value = self.qkv(x).reshape(num, places, 3, -1, HEAD_SIZE).permute(2, 0, 3, 1, 4)
        scores = (query @ key.transpose(-1, -2)) / HEAD_SIZE**0.5
        return self.proj((scores.softmax(-1) @ value).transpose(1, 2).reshape(num, places, width))


class _Attended(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.token_mixer = _SelfAttention(width)
        self.layer_scale_1 = _Gamma(width)
        self.mlp = _Mlp(width, inner)
        self.layer_scale_2 = _Gamma(width)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.token_mixer(self.norm(x.flatten(2).transpose(1, 2))).transpose(1, 2).reshape(x.shape)
        x = x + self.layer_scale_1.gamma * mixed
        return x + self.layer_scale_2.gamma * self.mlp(x)


class _Halved(nn.Module):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(_Activated(inner, outer, 7, 2, groups=inner), _Activated(outer, outer, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class _Stage(nn.Module):
    def __init__(self, config: FastViTReferenceConfig, stage: int) -> None:
        super().__init__()
        width, attends = config.widths[stage], stage >= 3
        self.downsample = _Halved(config.widths[stage - 1], width) if stage else nn.Identity()
        self.pos_emb = _Reparam(width, width, 7, groups=width) if attends else nn.Identity()
        kind, inner = _Attended if attends else _Mixed, int(width * config.ratios[stage])
        self.blocks = nn.Sequential(*(kind(width, inner) for _ in range(config.layers[stage])))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.pos_emb(self.downsample(x)))


class _Gate(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, width // 16, 1), nn.Conv2d(width // 16, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class _Last(_Reparam):
    def __init__(self, width: int) -> None:
        super().__init__(width, 2 * width, 3, groups=width)
        self.se = _Gate(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.se(self.reparam_conv(x)))


class _Tower(nn.Module):
    def __init__(self, config: FastViTReferenceConfig) -> None:
        super().__init__()
        width = config.widths[0]
        self.stem = nn.Sequential(
            _Activated(3, width, 3, 2), _Activated(width, width, 3, 2, groups=width), _Activated(width, width, 1)
        )
        self.stages = nn.Sequential(*(_Stage(config, stage) for stage in range(5)))
        self.final_conv = _Last(config.widths[-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.final_conv(self.stages(self.stem(x)))
