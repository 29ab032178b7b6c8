"""SigLIP's vision tower: patches alone."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, VisionConfig
from export.nn.dialect import Dialect
from export.nn.module import Module, Weight
from export.nn.norms import LayerNorm
from export.nn.vit import Encoder, Passed, SiglipEmbeddings

VISION_DEFAULTS: Raw = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}


class SiglipTower(Module):
    """Patches to hidden states.

    Args:
        config: The tower.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
        num_layers: How many of its layers are built; all by default.
    """

    def __init__(self, config: VisionConfig, dialect: Dialect, name: str, *, num_layers: int | None = None) -> None:
        super().__init__(name)
        self.embeddings = SiglipEmbeddings(config)
        self.encoder = Encoder(config.tower, dialect, rows=self.embeddings.num_rows, num_layers=num_layers)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> Passed:
        """Return the hidden states [I, patches, D] of every layer."""
        passed: Passed = self.encoder(op, self.embeddings(op, pixel_values))
        return passed


class NormedSiglipTower(SiglipTower):
    """Patches to what a model reads of the whole tower: its last hidden states, normed.

    Args:
        config: The tower.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: VisionConfig, dialect: Dialect, name: str) -> None:
        super().__init__(config, dialect, name)
        self.post_layernorm = LayerNorm(config.tower.hidden_size, config.tower.layer_norm_eps)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, patches, D]."""
        return self.post_layernorm(op, super().forward(op, pixel_values).states[-1])


class OneImageSiglipTower(NormedSiglipTower):
    """The same, whose positions the checkpoint keeps as one image's, [1, N, D] (timm, nanoVLM)."""

    def __init__(self, config: VisionConfig, dialect: Dialect, name: str) -> None:
        super().__init__(config, dialect, name)
        self.embeddings.position_embedding = _OneImagePositions(config)


class _OneImagePositions(Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__("position_embedding")
        self.weight = Weight(1, config.grid**2, config.tower.hidden_size)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return op.Add(x, self.weight)
