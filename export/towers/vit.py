"""ViT (arXiv 2010.11929), as transformers keeps it: a class token before the patches, and a norm behind the layers."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, VisionConfig
from export.nn.dialect import Dialect
from export.nn.module import Module, Weight
from export.nn.norms import LayerNorm
from export.nn.pre_norm import PreNormEncoder
from export.nn.vit import PatchEmbedding

VISION_DEFAULTS: Raw = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "qkv_bias": True,
}


class _Patches(Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.projection = PatchEmbedding(config, bias=True)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.projection(op, pixel_values)


class _Embeddings(Module):
    """A class token, DeiT's token of distillation behind it, then patches, and positions for all."""

    def __init__(self, config: VisionConfig, *, is_distilled: bool) -> None:
        super().__init__()
        size = config.tower.hidden_size
        self.num_rows = config.grid**2 + 1 + is_distilled
        self.cls_token = Weight(1, 1, size)
        self.distillation_token = Weight(1, 1, size) if is_distilled else None
        self.position_embeddings = Weight(1, self.num_rows, size)
        self.patch_embeddings = _Patches(config)
        self.size = size

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        patches = self.patch_embeddings(op, pixel_values)
        shape = op.Concat(op.Shape(patches, start=0, end=1), [1, self.size], axis=0)
        tokens = [token for token in (self.cls_token, self.distillation_token) if token is not None]
        first = [op.Expand(token, shape) for token in tokens]
        return op.Add(op.Concat(*first, patches, axis=1), self.position_embeddings)


class VitTower(Module):
    """Patches to hidden states.

    Args:
        config: The tower.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
        qkv_bias: Queries, keys and values have biases.
        is_distilled: A second token stands behind the class token (DeiT, arXiv 2012.12877).
    """

    def __init__(
        self, config: VisionConfig, dialect: Dialect, name: str, *, qkv_bias: bool, is_distilled: bool = False
    ) -> None:
        super().__init__(name)
        self.embeddings = _Embeddings(config, is_distilled=is_distilled)
        self.encoder = PreNormEncoder(config.tower, dialect, rows=self.embeddings.num_rows, qkv_bias=qkv_bias)
        self.layernorm = LayerNorm(config.tower.hidden_size, config.tower.layer_norm_eps)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, 1 + patches, D] from [I, 3, height, width]; a row more where it was distilled."""
        return self.layernorm(op, self.encoder(op, self.embeddings(op, pixel_values)))
