"""Perception Encoder (arXiv 2504.13181), named as timm's `vit_pe_core_*`: queries and keys turn by column and row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw
from export.nn.dialect import Dialect, Heads
from export.nn.linear import Linear, PackedLinear
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from export.nn.rotary import Angles

_EPS = 1e-5
_THETA = 10_000.0
_PACKED = ("qkv.weight", "qkv.bias")


@dataclass(frozen=True)
class PerceptionConfig:
    """Sizes of the tower.

    Attributes:
        width: D.
        num_layers: Layers.
        num_heads: Of attention.
        ratio: Inner width of feed-forwards, over D.
        patch_px: Side of a patch.
        image_px: Side of the input.
        has_class_token: One stands before the patches, and is not turned.
        scales: Layers multiply what they add by learned numbers.
        norms_output: A norm stands behind the last layer.
        trained_grid: Patches a side to which places are scaled.
    """

    width: int
    num_layers: int
    num_heads: int
    ratio: float
    patch_px: int
    image_px: int
    has_class_token: bool
    scales: bool = False
    norms_output: bool = True
    trained_grid: int = 0

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.image_px // self.patch_px

    @property
    def num_rows(self) -> int:
        """Vectors of one image."""
        return self.grid**2 + self.has_class_token

    @property
    def heads(self) -> Heads:
        """Of attention."""
        size = self.width // self.num_heads
        return Heads(self.num_heads, self.num_heads, size, float(size) ** -0.5)

    @classmethod
    def read(cls, raw: Raw) -> PerceptionConfig:
        """Return the tower of a config of timm's wrapper.

        Raises:
            UnsupportedConfigError: Another tower, or arguments that are not read.
        """
        name, stated = str(raw.get("architecture")), dict(raw.get("model_args") or {})
        if name not in PERCEPTION_ENCODERS:
            raise UnsupportedConfigError(
                f"vision_config.architecture {name!r}: of timm's towers {', '.join(PERCEPTION_ENCODERS)} are built"
            )
        if stated.pop("global_pool", None) not in ("", None):
            raise UnsupportedConfigError("vision_config.model_args.global_pool: patches are not pooled; built is ''")
        given: dict[str, Any] = {_ARGUMENTS[key]: value for key, value in stated.items() if key in _ARGUMENTS}
        if unknown := sorted(stated.keys() - _ARGUMENTS.keys()):
            raise UnsupportedConfigError(
                f"vision_config.model_args holds {', '.join(unknown)}; read are {', '.join(_ARGUMENTS)}"
            )
        for field in ("image_px", "trained_grid"):
            given[field] = _one_side(given.get(field, getattr(PERCEPTION_ENCODERS[name], field)), field)
        given["scales"] = given.get("scales") is not None
        found = replace(PERCEPTION_ENCODERS[name], **given)
        if found.image_px % found.patch_px or found.width % (4 * found.num_heads):
            raise UnsupportedConfigError(
                f"vision_config: images of {found.image_px} pixels in patches of {found.patch_px}, heads of "
                f"{found.width} / {found.num_heads} numbers; built are whole patches, and heads of a multiple of 4"
            )
        return found


def _one_side(value: Any, field: str) -> int:
    sides = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(sides) != 1:
        raise UnsupportedConfigError(f"vision_config.model_args: {field} {value!r}; only squares are built")
    return int(sides.pop())


PERCEPTION_ENCODERS: Mapping[str, PerceptionConfig] = {
    "vit_pe_core_large_patch14_336": PerceptionConfig(1024, 24, 16, 4.0, 14, 336, True, trained_grid=24),
    "vit_pe_core_gigantic_patch14_448": PerceptionConfig(1536, 50, 16, 8960 / 1536, 14, 448, False, trained_grid=32),
}
"""By timm's name."""
_ARGUMENTS = {
    "embed_dim": "width",
    "depth": "num_layers",
    "num_heads": "num_heads",
    "mlp_ratio": "ratio",
    "patch_size": "patch_px",
    "img_size": "image_px",
    "class_token": "has_class_token",
    "init_values": "scales",
    "use_post_transformer_norm": "norms_output",
    "ref_feat_shape": "trained_grid",
}


def turns(config: PerceptionConfig) -> npt.NDArray[np.float64]:
    """Return [num_rows, C/2] the angles of every place: a quarter of a head by column, a quarter by row, from 1."""
    size = config.heads.size // 4
    bands = _THETA ** -(np.arange(size) / size)
    along = (np.arange(config.grid) + 1.0) / config.grid * config.trained_grid
    rows, cols = np.repeat(along, config.grid), np.tile(along, config.grid)
    patches = np.concatenate([cols[:, None] * bands, rows[:, None] * bands], axis=1)
    first = np.zeros((int(config.has_class_token), 2 * size))
    return np.concatenate([first, patches])


class _Attention(Module):
    def __init__(self, config: PerceptionConfig, dialect: Dialect) -> None:
        super().__init__()
        size, heads = config.width, config.heads
        # neighbouring numbers of a head are turned together; put apart, they are its halves, which the dialect turns
        halves = np.concatenate([np.arange(0, heads.size, 2), np.arange(1, heads.size, 2)])
        order = (np.arange(heads.num)[:, None] * heads.size + halves).reshape(-1)
        self.query = PackedLinear(size, 0, "q_proj", _PACKED, rows=config.num_rows, order=order)
        self.key = PackedLinear(size, 1, "k_proj", _PACKED, rows=config.num_rows, order=order)
        self.value = PackedLinear(size, 2, "v_proj", _PACKED, rows=config.num_rows)
        self.proj = Linear(size, size, rows=config.num_rows)
        self.heads = heads
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value, angles: Angles) -> ir.Value:
        """Return [I, T, D] from [I, T, D]."""
        query = self.dialect.rotary(op, self.query(op, x), angles.cos, angles.sin, self.heads.num)
        key = self.dialect.rotary(op, self.key(op, x), angles.cos, angles.sin, self.heads.num)
        return self.proj(op, self.dialect.attention(op, query, key, self.value(op, x), self.heads, None))


class _FeedForward(Module):
    def __init__(self, config: PerceptionConfig) -> None:
        super().__init__()
        inner = int(config.width * config.ratio)
        self.fc1 = Linear(config.width, inner, rows=config.num_rows)
        self.fc2 = Linear(inner, config.width, rows=config.num_rows)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.fc2(op, op.Gelu(self.fc1(op, x)))


class _Layer(Module):
    def __init__(self, config: PerceptionConfig, dialect: Dialect) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.width, _EPS)
        self.attn = _Attention(config, dialect)
        self.norm2 = LayerNorm(config.width, _EPS)
        self.mlp = _FeedForward(config)
        self.gamma_1 = Weight(config.width) if config.scales else None
        self.gamma_2 = Weight(config.width) if config.scales else None

    def forward(self, op: OpBuilder, x: ir.Value, angles: Angles) -> ir.Value:
        attended = self.attn(op, self.norm1(op, x), angles)
        x = op.Add(x, attended if self.gamma_1 is None else op.Mul(attended, self.gamma_1))
        fed = self.mlp(op, self.norm2(op, x))
        return op.Add(x, fed if self.gamma_2 is None else op.Mul(fed, self.gamma_2))


class _Patches(Module):
    def __init__(self, config: PerceptionConfig) -> None:
        super().__init__()
        self.weight = Weight(config.width, 3, config.patch_px, config.patch_px, name="proj.weight")
        self.side = [config.patch_px, config.patch_px]

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        grid = op.Conv(pixel_values, self.weight, kernel_shape=self.side, strides=self.side)
        return op.Transpose(op.Reshape(grid, [0, 0, -1]), perm=[0, 2, 1])


class PerceptionEncoder(Module):
    """Pixels to what the last layer makes of patches.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: PerceptionConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.patch_embed = _Patches(config)
        self.cls_token = Weight(1, 1, config.width) if config.has_class_token else None
        self.pos_embed = Weight(1, config.num_rows, config.width)
        self.norm_pre = LayerNorm(config.width, _EPS)
        self.blocks = ModuleList([_Layer(config, dialect) for _ in range(config.num_layers)])
        self.norm = LayerNorm(config.width, _EPS) if config.norms_output else None
        self.config = config

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, T, D], a class token first where there is one, from [I, 3, height, width]."""
        x = self.patch_embed(op, pixel_values)
        images = op.Shape(x, start=0, end=1)
        if self.cls_token is not None:
            first = op.Expand(self.cls_token, op.Concat(images, [1, self.config.width], axis=0))
            x = op.Concat(first, x, axis=1)
        x = self.norm_pre(op, op.Add(x, self.pos_embed))
        angles = self._angles(op, images)
        for block in self.blocks:
            x = block(op, x, angles)
        return x if self.norm is None else self.norm(op, x)

    def _angles(self, op: OpBuilder, images: ir.Value) -> Angles:
        """Return cos and sin [I, T, C/2]."""
        table = turns(self.config)
        shape = op.Concat(images, list(table.shape), axis=0)
        cos, sin = (
            op.initializer(ir.tensor(each(table)[None].astype(np.float32)), f"patch_{name}")
            for name, each in (("cos", np.cos), ("sin", np.sin))
        )
        return Angles(op.Expand(cos, shape), op.Expand(sin, shape))
