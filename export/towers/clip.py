"""CLIP's vision tower: a class token before the patches, and a norm before the layers."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, VisionConfig
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.nn.vit import ClipEmbeddings, Encoder, Passed

VISION_DEFAULTS: Raw = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


class ClipTower(Module):
    """Patches to hidden states.

    Args:
        config: The tower.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
        num_layers: How many of its layers are built; all by default.
        resamples: Images are of any shape, and positions follow it.
    """

    def __init__(
        self,
        config: VisionConfig,
        dialect: Dialect,
        name: str,
        *,
        num_layers: int | None = None,
        resamples: bool = False,
    ) -> None:
        super().__init__(name)
        self.embeddings = ClipEmbeddings(config, resamples=resamples)
        self.pre_layrnorm = LayerNorm(config.tower.hidden_size, config.tower.layer_norm_eps)
        self.encoder = Encoder(config.tower, dialect, rows=self.embeddings.num_rows, num_layers=num_layers)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> Passed:
        """Return the hidden states [I, 1 + patches, D] of every layer."""
        passed: Passed = self.encoder(op, self.pre_layrnorm(op, self.embeddings(op, pixel_values)))
        return passed


class PooledClipTower(ClipTower):
    """The tower, and what its class token became; arguments as of the tower."""

    def __init__(self, config: VisionConfig, dialect: Dialect, *, resamples: bool = False) -> None:
        super().__init__(config, dialect, "vision_model", resamples=resamples)
        self.post_layernorm = LayerNorm(config.tower.hidden_size, config.tower.layer_norm_eps)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, D] from [I, 3, height, width]."""
        passed = super().forward(op, pixel_values)
        return self.post_layernorm(op, op.Gather(passed.states[-1], 0, axis=1))


class ProjectedClipTower(Module):
    """The tower's class token, projected to `embedding_size` numbers; other arguments as of the tower."""

    def __init__(self, config: VisionConfig, dialect: Dialect, embedding_size: int, *, resamples: bool = False) -> None:
        super().__init__()
        self.vision_model = PooledClipTower(config, dialect, resamples=resamples)
        self.visual_projection = Linear(config.tower.hidden_size, embedding_size, rows=1, bias=False)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, E] from [I, 3, height, width]."""
        return self.visual_projection(op, self.vision_model(op, pixel_values))
