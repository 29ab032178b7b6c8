"""AIMv2's layers and its tower (arXiv 2411.14402): RMS norms, gated feed-forwards, patches normed before places."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, TowerConfig, VisionConfig
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.mlp import GatedMLP
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import RMSNorm
from export.nn.vit import PatchEmbedding, PositionTable, tower_heads

VISION_DEFAULTS: Raw = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 14,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}


@dataclass(frozen=True)
class Aimv2Sizes:
    """A stack of layers, of a tower over patches or over words.

    Attributes:
        tower: Its sizes; its eps is the RMS norms'.
        qkv_bias: All four matrices of attention have biases.
        mlp_bias: All three matrices of the feed-forward have.
    """

    tower: TowerConfig
    qkv_bias: bool
    mlp_bias: bool

    @classmethod
    def read(cls, full: Raw) -> Aimv2Sizes:
        """Return the layers of a tower's config, defaults and all."""
        return cls(
            TowerConfig.read({**full, "layer_norm_eps": full["rms_norm_eps"]}, {}),
            qkv_bias=bool(full.get("qkv_bias", False)),
            mlp_bias=bool(full.get("mlp_bias", False)),
        )

    @property
    def hidden_size(self) -> int:
        """Width of a row."""
        return self.tower.hidden_size

    @property
    def intermediate_size(self) -> int:
        """Width inside a feed-forward."""
        return self.tower.intermediate_size

    @property
    def hidden_act(self) -> str:
        """Of the feed-forward's gate."""
        return self.tower.hidden_act

    def norm(self, dialect: Dialect) -> RMSNorm:
        """Return one of its norms."""
        return RMSNorm(self.hidden_size, self.tower.layer_norm_eps, dialect)


@dataclass(frozen=True)
class Aimv2VisionConfig:
    """A tower over square images.

    Attributes:
        vision: Of patches.
        sizes: Of layers.
    """

    vision: VisionConfig
    sizes: Aimv2Sizes

    @classmethod
    def read(cls, raw: Raw) -> Aimv2VisionConfig:
        """Return the tower of a vision config."""
        full = {**VISION_DEFAULTS, **raw}
        vision = VisionConfig.read({**full, "layer_norm_eps": full["rms_norm_eps"]}, {})
        return cls(vision, Aimv2Sizes.read(full))

    @property
    def hidden_size(self) -> int:
        """Width of a patch."""
        return self.sizes.hidden_size

    @property
    def num_rows(self) -> int:
        """Patches of an image."""
        return self.vision.grid**2


class _Embeddings(Module):
    def __init__(self, config: Aimv2VisionConfig, dialect: Dialect) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(config.vision, bias=True)
        self.rms_norm = config.sizes.norm(dialect)
        self.position_embedding = PositionTable(config.num_rows, config.hidden_size)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.position_embedding(op, self.rms_norm(op, self.patch_embedding(op, pixel_values)))


class _Attention(Module):
    def __init__(self, sizes: Aimv2Sizes, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        size, bias = sizes.hidden_size, sizes.qkv_bias
        self.q_proj = Linear(size, size, rows=rows, bias=bias)
        self.k_proj = Linear(size, size, rows=rows, bias=bias)
        self.v_proj = Linear(size, size, rows=rows, bias=bias)
        self.out_proj = Linear(size, size, rows=rows, bias=bias)
        self.heads = tower_heads(sizes.tower)
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value, bias: ir.Value | None) -> ir.Value:
        query, key, value = self.q_proj(op, x), self.k_proj(op, x), self.v_proj(op, x)
        return self.out_proj(op, self.dialect.attention(op, query, key, value, self.heads, bias))


class _Layer(Module):
    def __init__(self, sizes: Aimv2Sizes, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        self.rms_norm1, self.rms_norm2 = sizes.norm(dialect), sizes.norm(dialect)
        self.attention = _Attention(sizes, dialect, rows=rows)
        self.ffn = GatedMLP(sizes, rows=rows)

    def forward(self, op: OpBuilder, x: ir.Value, bias: ir.Value | None) -> ir.Value:
        x = op.Add(x, self.attention(op, self.rms_norm1(op, x), bias))
        return op.Add(x, self.ffn(op, self.rms_norm2(op, x)))


class Aimv2Layers(Module):
    """A stack of layers.

    Args:
        sizes: Of them.
        dialect: How attention is written.
        rows: Patches of an image, or tokens of the longest text.
    """

    def __init__(self, sizes: Aimv2Sizes, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        self.layers = ModuleList([_Layer(sizes, dialect, rows=rows) for _ in range(sizes.tower.num_layers)])

    def forward(self, op: OpBuilder, x: ir.Value, bias: ir.Value | None = None) -> ir.Value:
        """Return [B, T, D] from [B, T, D]; `bias` as for `Dialect.attention`."""
        for layer in self.layers:
            x = layer(op, x, bias)
        return x


class Aimv2Tower(Module):
    """Pixels to normed hidden states.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: Aimv2VisionConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.embeddings = _Embeddings(config, dialect)
        self.encoder = Aimv2Layers(config.sizes, dialect, rows=config.num_rows)
        self.rms_norm = config.sizes.norm(dialect)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, patches, D] from [I, 3, height, width]."""
        return self.rms_norm(op, self.encoder(op, self.embeddings(op, pixel_values)))


class PoolingHead(Module):
    """A learned row that looks once at the `rows` patches of an image, and a matrix; the row is its own query.

    Args:
        sizes: Of the tower.
        dialect: How attention is written.
        rows: Patches of an image.
    """

    def __init__(self, sizes: Aimv2Sizes, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        size, bias = sizes.hidden_size, sizes.qkv_bias
        self.cls_token = Weight(1, 1, size)
        self.k_proj = Linear(size, size, rows=rows, bias=bias)
        self.v_proj = Linear(size, size, rows=rows, bias=bias)
        self.output_proj = Linear(size, size, rows=1)
        self.heads, self.size, self.dialect = tower_heads(sizes.tower), size, dialect

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, D] from [I, patches, D]."""
        query = op.Expand(self.cls_token, op.Concat(op.Shape(x, start=0, end=1), [1, self.size], axis=0))
        attended = self.dialect.attention(op, query, self.k_proj(op, x), self.v_proj(op, x), self.heads, None)
        return self.output_proj(op, op.Squeeze(attended, [1]))


class PooledAimv2Tower(Aimv2Tower):
    """The tower, and one row of an image: what its head makes of the patches, or their mean where it has no head.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
        has_head: There is a head.
    """

    def __init__(self, config: Aimv2VisionConfig, dialect: Dialect, name: str, *, has_head: bool) -> None:
        super().__init__(config, dialect, name)
        self.head = PoolingHead(config.sizes, dialect, rows=config.num_rows) if has_head else None

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, D] from [I, 3, height, width]."""
        normed = super().forward(op, pixel_values)
        return op.ReduceMean(normed, [1], keepdims=0) if self.head is None else self.head(op, normed)
