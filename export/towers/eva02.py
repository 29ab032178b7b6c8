"""EVA-02 as CLIP's image tower (arXiv 2303.11331, 2303.15389): patches turned by row and column, gated feed-forwards.

As timm's `eva02_*_clip_*` names and computes it; open_clip takes it by that name.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, TowerConfig
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from export.nn.rotary import Angles
from export.nn.vit import tower_heads

_EPS = 1e-6
"""Of every norm."""
_THETA = 10_000.0
_TRAINED_GRID = 16
"""Patches a side at which positions were counted in training: a larger image stands on as many, more finely."""


@dataclass(frozen=True)
class Eva02Config:
    """What a name stands for.

    Attributes:
        tower: Its layers.
        image_size_px: Side of the images.
        patch_size_px: Side of a patch.
    """

    tower: TowerConfig
    image_size_px: int
    patch_size_px: int

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size_px // self.patch_size_px

    def angles(self) -> npt.NDArray[np.float32]:
        """Return [1 + patches, C/2] what pairs of a head turn by: half by row, half by column; a class token by 0."""
        pairs = self.tower.hidden_size // self.tower.num_heads // 4
        frequencies = _THETA ** -(np.arange(pairs, dtype=np.float64) / pairs)
        places = np.arange(self.grid) / self.grid * _TRAINED_GRID
        by_axis = places[:, None] * frequencies
        rows, cols = np.repeat(by_axis, self.grid, axis=0), np.tile(by_axis, (self.grid, 1))
        patches = np.concatenate([rows, cols], axis=1)
        return np.concatenate([np.zeros_like(patches[:1]), patches]).astype(np.float32)


def _tower(width: int, layers: int, heads: int) -> TowerConfig:
    return TowerConfig(width, int(width * 4 * 2 / 3), layers, heads, "silu", _EPS)


_LARGE = _tower(1024, 24, 16)
EVA02S: dict[str, Eva02Config] = {
    "eva02_base_patch16_clip_224": Eva02Config(_tower(768, 12, 12), 224, 16),
    "eva02_large_patch14_clip_224": Eva02Config(_LARGE, 224, 14),
    "eva02_large_patch14_clip_336": Eva02Config(_LARGE, 336, 14),
}
"""By `vision_cfg.timm_model_name`; sizes as timm 1.0.31 has them."""


def _halved(num_heads: int, size: int) -> npt.NDArray[np.int64]:
    """Return the order of a head's numbers in which those of a pair, neighbours before, stand half a head apart."""
    pairs = np.arange(size).reshape(-1, 2).T.reshape(-1)
    return (np.arange(num_heads)[:, None] * size + pairs).reshape(-1)


class _Attention(Module):
    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int) -> None:
        super().__init__("attn")
        size, self.heads = config.hidden_size, tower_heads(config)
        order = _halved(self.heads.num, self.heads.size)
        self.q_proj = Linear(size, size, rows=rows, order=order)
        self.k_proj = Linear(size, size, rows=rows, bias=False, order=order)
        self.v_proj = Linear(size, size, rows=rows)
        self.norm = LayerNorm(size, _EPS)
        self.proj = Linear(size, size, rows=rows)
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value, angles: Angles) -> ir.Value:
        query, key = (
            self.dialect.rotary(op, part(op, x), angles.cos, angles.sin, self.heads.num)
            for part in (self.q_proj, self.k_proj)
        )
        attended = self.dialect.attention(op, query, key, self.v_proj(op, x), self.heads, None)
        return self.proj(op, self.norm(op, attended))


class _GatedMlp(Module):
    """Two matrices one of which gates the other, a norm, and a third matrix."""

    def __init__(self, config: TowerConfig, *, rows: int) -> None:
        super().__init__("mlp")
        size, inner = config.hidden_size, config.intermediate_size
        self.gate, self.up = (Linear(size, inner, rows=rows, name=name) for name in ("fc1_g", "fc1_x"))
        self.norm = LayerNorm(inner, _EPS)
        self.fc2 = Linear(inner, size, rows=rows)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        gate = self.gate(op, x)
        inner = op.Mul(op.Mul(gate, op.Sigmoid(gate)), self.up(op, x))
        return self.fc2(op, self.norm(op, inner))


class _Block(Module):
    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(config.hidden_size, _EPS), LayerNorm(config.hidden_size, _EPS)
        self.attn = _Attention(config, dialect, rows=rows)
        self.mlp = _GatedMlp(config, rows=rows)

    def forward(self, op: OpBuilder, x: ir.Value, angles: Angles) -> ir.Value:
        x = op.Add(x, self.attn(op, self.norm1(op, x), angles))
        return op.Add(x, self.mlp(op, self.norm2(op, x)))


class _Trunk(Module):
    def __init__(self, config: Eva02Config, dialect: Dialect, embedding_size: int) -> None:
        super().__init__("trunk")
        tower, side = config.tower, config.patch_size_px
        size, rows = tower.hidden_size, config.grid**2 + 1
        self.patch_weight = Weight(size, 3, side, side, name="patch_embed.proj.weight")
        self.patch_bias = Weight(size, name="patch_embed.proj.bias")
        self.cls_token = Weight(1, 1, size)
        self.pos_embed = Weight(1, rows, size)
        self.blocks = ModuleList([_Block(tower, dialect, rows=rows) for _ in range(tower.num_layers)])
        self.norm = LayerNorm(size, _EPS)
        self.head = Linear(size, embedding_size, rows=1)
        self.config, self.size = config, size

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, E] from [I, 3, height, width]."""
        side = [self.config.patch_size_px] * 2
        grid = op.Conv(pixel_values, self.patch_weight, self.patch_bias, kernel_shape=side, strides=side)
        patches = op.Transpose(op.Reshape(grid, [0, 0, -1]), perm=[0, 2, 1])
        images = op.Shape(patches, start=0, end=1)
        first = op.Expand(self.cls_token, op.Concat(images, [1, self.size], axis=0))
        x = op.Add(op.Concat(first, patches, axis=1), self.pos_embed)
        angles = self._angles(op, images)
        for block in self.blocks:
            x = block(op, x, angles)
        return self.head(op, self.norm(op, op.Gather(x, 0, axis=1)))

    def _angles(self, op: OpBuilder, images: ir.Value) -> Angles:
        turned, shape = self.config.angles()[None], op.Concat(images, [1, 1], axis=0)
        cos, sin = (
            op.Expand(op.initializer(ir.tensor(numbers), f"patch_{name}"), shape)
            for name, numbers in (("cosines", np.cos(turned)), ("sines", np.sin(turned)))
        )
        return Angles(cos, sin)


class Eva02(Module):
    """Pixels to the vector of an image.

    Args:
        config: The tower.
        raw: `vision_cfg`, which says what stands behind it.
        dialect: How attention is written.
        embedding_size: E.

    Raises:
        UnsupportedConfigError: A pooling or a projection that is not built.
    """

    def __init__(self, config: Eva02Config, raw: Raw, dialect: Dialect, embedding_size: int) -> None:
        super().__init__("visual")
        pool, kind = raw.get("timm_pool", "avg"), raw.get("timm_proj", "linear") or ""
        if (pool, kind) != ("token", ""):
            raise UnsupportedConfigError(
                f"vision_cfg.timm_pool {pool!r} with timm_proj {kind!r}; of {raw['timm_model_name']} built is 'token' "
                "with null"
            )
        self.trunk = _Trunk(config, dialect, embedding_size)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, E] from [I, 3, height, width]."""
        return self.trunk(op, pixel_values)
