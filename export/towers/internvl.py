"""InternViT (arXiv 2312.14238): a class token, biases only where the config wants them, and scaled residuals."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, TowerConfig, VisionConfig, require
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm, RMSNorm
from export.nn.vit import EncoderMLP, PatchEmbedding, tower_heads

VISION_DEFAULTS: Raw = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 448,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}
QUERY_EPS = 1e-6
"""Of the norms of queries and keys, whatever the config says of the layers' (transformers, `LlamaRMSNorm`)."""
AUTHORS_NAMES: tuple[tuple[str, str], ...] = (
    (r"^vision_model\.", "model.vision_tower."),
    (r"^(model\.vision_tower)\.(?:encoder\.)?layers\.", r"\1.encoder.layer."),
    (r"^(model\.vision_tower\..*\.\d+)\.attn\.proj\.", r"\1.attention.projection_layer."),
    (r"^(model\.vision_tower\..*\.\d+)\.attn\.", r"\1.attention."),
    (r"^(model\.vision_tower\..*\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"^(model\.vision_tower\..*\.\d+)\.norm2\.", r"\1.layernorm_after."),
    (r"^(model\.vision_tower\..*\.\d+)\.ls([12])$", r"\1.lambda_\2"),
    (r"^(model\.vision_tower\.embeddings)\.class_embedding$", r"\1.cls_token"),
    (r"^(model\.vision_tower\.embeddings)\.position_embedding$", r"\1.position_embeddings"),
    (r"^(model\.vision_tower\.embeddings)\.patch_embedding\.", r"\1.patch_embeddings.projection."),
)
"""The authors' names of the tower's weights, as (pattern, replacement), where it is `model.vision_tower`."""
_TO_THE_END = 2**31 - 1


@dataclass(frozen=True)
class InternVLTowerConfig:
    """Sizes of the tower, and what differs between a small and a large one.

    Attributes:
        vision: Sizes.
        norm_type: "layer_norm" or "rms_norm", of every layer.
        qkv_bias: Queries, keys and values have biases.
        norms_queries: Queries and keys are normed, all heads together.
        norms_output: A norm stands behind the last layer.
    """

    vision: VisionConfig
    norm_type: str
    qkv_bias: bool
    norms_queries: bool
    norms_output: bool

    @classmethod
    def read(cls, raw: Raw) -> InternVLTowerConfig:
        """Return the tower of a config.

        Raises:
            UnsupportedConfigError: A norm that is not built, or a tower without positions.
        """
        require(raw, [("use_absolute_position_embeddings", True)])
        norm_type = raw.get("norm_type", "layer_norm")
        if norm_type not in ("layer_norm", "rms_norm"):
            raise UnsupportedConfigError(f"vision_config.norm_type {norm_type!r}; known: layer_norm, rms_norm")
        return cls(
            vision=VisionConfig.read(raw, VISION_DEFAULTS),
            norm_type=norm_type,
            qkv_bias=bool(raw.get("attention_bias", False)),
            norms_queries=bool(raw.get("use_qk_norm", False)),
            norms_output=not raw.get("use_mean_pooling", True),
        )


class _Embeddings(Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.tower.hidden_size
        self.num_rows = config.grid**2 + 1
        self.cls_token = Weight(1, 1, width)
        self.patch_embeddings = _Patches(config)
        self.position_embeddings = Weight(1, self.num_rows, width)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, 1 + patches, D]."""
        patches = self.patch_embeddings(op, pixel_values)
        images = op.Shape(patches, start=0, end=1)
        first = op.Expand(self.cls_token, op.Concat(images, [1, 1], axis=0))
        return op.Add(op.Concat(first, patches, axis=1), self.position_embeddings)


class _Patches(Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.projection = PatchEmbedding(config, bias=True)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.projection(op, pixel_values)


class _Attention(Module):
    """Attention whose queries and keys may be normed over all heads at once, over `rows` vectors of one image."""

    def __init__(self, config: InternVLTowerConfig, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        size, bias = config.vision.tower.hidden_size, config.qkv_bias
        self.q_proj = Linear(size, size, rows=rows, bias=bias)
        self.k_proj = Linear(size, size, rows=rows, bias=bias)
        self.v_proj = Linear(size, size, rows=rows, bias=bias)
        self.projection_layer = Linear(size, size, rows=rows)
        self.q_norm: Module | None = RMSNorm(size, QUERY_EPS, dialect) if config.norms_queries else None
        self.k_norm: Module | None = RMSNorm(size, QUERY_EPS, dialect) if config.norms_queries else None
        self.heads = tower_heads(config.vision.tower)
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, T, D] from [I, T, D]."""
        query, key, value = self.q_proj(op, x), self.k_proj(op, x), self.v_proj(op, x)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(op, query), self.k_norm(op, key)
        return self.projection_layer(op, self.dialect.attention(op, query, key, value, self.heads, None))


class _Layer(Module):
    """Pre-norm attention and MLP, each scaled per channel before it is added."""

    def __init__(self, config: InternVLTowerConfig, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        tower = config.vision.tower
        self.layernorm_before = _norm(config, dialect)
        self.attention = _Attention(config, dialect, rows=rows)
        self.layernorm_after = _norm(config, dialect)
        self.mlp = EncoderMLP(tower, rows=rows)
        self.lambda_1 = Weight(tower.hidden_size)
        self.lambda_2 = Weight(tower.hidden_size)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, T, D] from [I, T, D]."""
        x = op.Add(x, op.Mul(self.attention(op, self.layernorm_before(op, x)), self.lambda_1))
        return op.Add(x, op.Mul(self.mlp(op, self.layernorm_after(op, x)), self.lambda_2))


def _norm(config: InternVLTowerConfig, dialect: Dialect) -> Module:
    tower: TowerConfig = config.vision.tower
    if config.norm_type == "rms_norm":
        return RMSNorm(tower.hidden_size, tower.layer_norm_eps, dialect)
    return LayerNorm(tower.hidden_size, tower.layer_norm_eps)


class _Layers(Module):
    def __init__(self, config: InternVLTowerConfig, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        depth = config.vision.tower.num_layers
        self.layer = ModuleList([_Layer(config, dialect, rows=rows) for _ in range(depth)])

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        for layer in self.layer:
            x = layer(op, x)
        return x


class InternVLTower(Module):
    """Patches to the last hidden states.

    Args:
        config: The tower.
        dialect: How attention and norms are written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: InternVLTowerConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        tower = config.vision.tower
        self.embeddings = _Embeddings(config.vision)
        self.encoder = _Layers(config, dialect, rows=self.embeddings.num_rows)
        self.layernorm = LayerNorm(tower.hidden_size, tower.layer_norm_eps) if config.norms_output else None

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return the patches [I, N, D], without the class token."""
        states = self.encoder(op, self.embeddings(op, pixel_values))
        patches = op.Slice(states, [1], [_TO_THE_END], [1])
        return patches if self.layernorm is None else self.layernorm(op, patches)
