"""Idefics3's vision tower: SigLIP's layers, and positions that it looks up by bucket."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, VisionConfig
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.nn.vit import Encoder, Looked, SiglipEmbeddings

VISION_DEFAULTS: Raw = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}


def position_rows(grid: int) -> npt.NDArray[np.int64]:
    """Return [grid * grid] the row of the position table of each patch of a full tile.

    The model buckets fractional coordinates k/grid, in float32, among the boundaries 1/grid, 2/grid, ...; rounding
    puts some k one bucket low for some grids (not for powers of two), and the weights were trained with that. Torch's
    own boundaries depend on the processor's vector width by one rounding, which moves a bucket for grids such as 19
    and 25; boundaries here are rounded once from float64, which agrees for the grids of published checkpoints.
    """
    step = 1.0 / grid
    count = int(np.ceil((1.0 - step) / step))
    boundaries = (step + np.arange(count, dtype=np.float64) * step).astype(np.float32)
    coordinates = np.arange(grid, dtype=np.float32) * np.float32(step)
    coordinates = np.minimum(coordinates, np.float32(1.0 - 1e-6))
    buckets: npt.NDArray[np.int64] = np.searchsorted(boundaries, coordinates, side="right").astype(np.int64)
    return (buckets[:, None] * grid + buckets[None, :]).reshape(-1)


class Idefics3Tower(Module):
    """Patches of full tiles to what the last layer makes of them."""

    def __init__(self, config: VisionConfig, dialect: Dialect) -> None:
        super().__init__("model.vision_model")
        self.embeddings = SiglipEmbeddings(config, position_rows(config.grid))
        self.encoder = Encoder(config.tower, dialect, rows=self.embeddings.num_rows)
        self.post_layernorm = LayerNorm(config.tower.hidden_size, config.tower.layer_norm_eps)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Looked]:
        """Return [I, patches, D] normed, and what the last attention was made of."""
        passed = self.encoder(op, self.embeddings(op, pixel_values))
        return self.post_layernorm(op, passed.states[-1]), passed.looks[-1]
