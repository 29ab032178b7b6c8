"""MobileNetV5's encoder in plain torch, for timm's own wants torchvision: its blocks, in the names of its checkpoints.

tests/data/timm holds what timm 1.0.31 makes of one; tests/export/towers/test_mobilenetv5.py holds this to it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Gemma3nVisionConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

FUSED_SIZE = 2048


class MobileNetV5ReferenceConfig(Gemma3nVisionConfig):
    model_type = "mobilenetv5_reference"


class MobileNetV5Reference(PreTrainedModel):
    """Weights by timm's names in `timm_model`, used as functions."""

    config: MobileNetV5ReferenceConfig
    config_class = MobileNetV5ReferenceConfig
    base_model_prefix = "timm_model"

    def __init__(self, config: MobileNetV5ReferenceConfig) -> None:
        super().__init__(config)
        sizes = config.model_args
        self.timm_model = Encoder(sizes["block_args"], sizes["stem_size"], sizes["msfa_output_resolution"])
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=self.timm_model(pixel_values))


def block_args(*stages: list[str]) -> list[list[dict[str, Any]]]:
    """Return blocks as timm's `decode_arch_def` makes them of strings such as `uir_r1_a3_k5_s2_e6_c256`."""
    return [[_decoded(each) for each in stage] for stage in stages]


def _decoded(text: str) -> dict[str, Any]:
    kind, *options = text.split("_")
    found = {each[0]: each[1:] for each in options}
    shared = {"block_type": kind, "out_chs": int(found["c"]), "stride": int(found["s"]), "act_layer": None}
    shared["noskip"] = False
    if kind == "mqa":
        sizes = {"num_heads": int(found["h"]), "key_dim": int(found["d"]), "value_dim": int(found["d"])}
        return shared | sizes | {"dw_kernel_size": int(found["k"]), "kv_stride": int(found.get("v", 1))}
    shared |= {"exp_ratio": float(found["e"]), "se_ratio": 0.0}
    if kind == "er":
        return shared | {"exp_kernel_size": int(found["k"]), "pw_kernel_size": 1, "force_in_chs": 0}
    kernels = {"dw_kernel_size_start": int(found["a"]), "dw_kernel_size_mid": int(found["k"])}
    return shared | kernels | {"dw_kernel_size_end": 0}


class Encoder(nn.Module):
    def __init__(self, blocks: Any, stem: int, resolution: int) -> None:
        super().__init__()
        self.conv_stem = _Normed(3, stem, 3, stride=2, bias=True)
        width, stages, ends = stem, [], []
        for stage in blocks:
            made = []
            for block in stage:
                made.append(_KINDS[block["block_type"]](width, block))
                width = block["out_chs"]
            stages.append(nn.Sequential(*made))
            ends.append(width)
        self.blocks = nn.Sequential(*stages)
        self.msfa = _Fusion(ends[-2] + ends[-1], resolution)

    def forward(self, x: Tensor) -> Tensor:
        x, found = self.conv_stem(x), []
        for stage in self.blocks:
            x = stage(x)
            found.append(x)
        return self.msfa(found[-2:])


class _Norm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6) * self.weight[:, None, None]


class _Conv(nn.Conv2d):
    """Padded so that the last place is the middle of a kernel or left of it: more below than above, where it is odd."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            pad = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [pad // 2, pad - pad // 2]
        return super().forward(functional.pad(x, pads))


def _gelu(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


class _Normed(nn.Module):
    def __init__(self, inner: int, outer: int, kernel: int, *, acts: bool = True, bias: bool = False, **more: int):
        super().__init__()
        self.conv = _Conv(inner, outer, kernel, bias=bias, **more)
        self.bn = _Norm(outer)
        self.acts = acts

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return _gelu(x) if self.acts else x


class _Scale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma[:, None, None]


class _Edge(nn.Module):
    def __init__(self, width: int, block: dict[str, Any]) -> None:
        super().__init__()
        inner, outer, stride = int(width * block["exp_ratio"]), block["out_chs"], block["stride"]
        self.conv_exp = _Conv(width, inner, block["exp_kernel_size"], stride=stride, bias=False)
        self.bn1 = _Norm(inner)
        self.conv_pwl = _Conv(inner, outer, 1, bias=False)
        self.bn2 = _Norm(outer)
        self.skips = stride == 1 and width == outer

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv_pwl(_gelu(self.bn1(self.conv_exp(x)))))
        return x + y if self.skips else y


class _Inverted(nn.Module):
    def __init__(self, width: int, block: dict[str, Any]) -> None:
        super().__init__()
        inner, outer, stride = int(width * block["exp_ratio"]), block["out_chs"], block["stride"]
        before, between = block["dw_kernel_size_start"], block["dw_kernel_size_mid"]
        self.dw_start = nn.Identity()
        if before:
            at = 1 if between else stride
            self.dw_start = _Normed(width, width, before, acts=False, stride=at, groups=width)
        self.pw_exp = _Normed(width, inner, 1)
        self.dw_mid = _Normed(inner, inner, between, stride=stride, groups=inner) if between else nn.Identity()
        self.pw_proj = _Normed(inner, outer, 1, acts=False)
        self.layer_scale = nn.Identity() if block.get("is_fusion") else _Scale(outer)
        self.skips = stride == 1 and width == outer and not block.get("is_fusion")

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer_scale(self.pw_proj(self.dw_mid(self.pw_exp(self.dw_start(x)))))
        return x + y if self.skips else y


class _Attention(nn.Module):
    def __init__(self, width: int, block: dict[str, Any]) -> None:
        super().__init__()
        self.num, size, outer = block["num_heads"], block["key_dim"], block["out_chs"]
        self.norm = _Norm(width)
        self.attn = nn.ModuleDict(
            {
                "query": nn.ModuleDict({"proj": nn.Conv2d(width, self.num * size, 1, bias=False)}),
                "key": _projection(width, size, block),
                "value": _projection(width, size, block),
                "output": nn.ModuleDict({"proj": nn.Conv2d(self.num * size, outer, 1, bias=False)}),
            }
        )
        self.layer_scale = _Scale(outer)
        self.skips = width == outer

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        (images, _, height, wide), attn = x.shape, self.attn
        query = attn["query"]["proj"](normed).reshape(images, self.num, -1, height * wide).transpose(2, 3)
        key, value = (attn[each](normed).flatten(2).transpose(1, 2)[:, None] for each in ("key", "value"))
        scores = query @ key.transpose(2, 3) * key.shape[-1] ** -0.5
        made = (scores.softmax(-1) @ value).transpose(2, 3).reshape(images, -1, height, wide)
        y = self.layer_scale(attn["output"]["proj"](made))
        return x + y if self.skips else y


def _projection(width: int, size: int, block: dict[str, Any]) -> nn.Sequential:
    made, stride = nn.Sequential(), block["kv_stride"]
    if stride > 1:
        kernel = block["dw_kernel_size"]
        made.add_module("down_conv", _Conv(width, width, kernel, stride=stride, groups=width, bias=False))
        made.add_module("norm", _Norm(width))
    made.add_module("proj", nn.Conv2d(width, size, 1, bias=False))
    return made


class _Fusion(nn.Module):
    def __init__(self, width: int, resolution: int) -> None:
        super().__init__()
        block = {"exp_ratio": 2.0, "out_chs": FUSED_SIZE, "stride": 1, "is_fusion": True}
        self.ffn = _Inverted(width, block | {"dw_kernel_size_start": 0, "dw_kernel_size_mid": 0})
        self.norm = _Norm(FUSED_SIZE)
        self.resolution = resolution

    def forward(self, scales: list[Tensor]) -> Tensor:
        large, small = scales
        enlarged = functional.interpolate(small, size=large.shape[-2:], mode="nearest")
        fused = self.ffn(torch.cat([large, enlarged], dim=1))
        return self.norm(functional.avg_pool2d(fused, fused.shape[-1] // self.resolution))


_KINDS = {"er": _Edge, "uir": _Inverted, "mqa": _Attention}
