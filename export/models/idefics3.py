"""Idefics3 and SmolVLM: a SigLIP tower, pixel shuffle, one matrix, and a Llama decoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.manifest import TensorSpec
from export.config import Raw, VisionConfig, sub_config
from export.family import VisionLanguage
from export.nn.connectors import pixel_shuffle
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.nn.tower_view import over_squares, tower_specs, tower_view
from export.nn.vit import Encoder, Looked, SiglipEmbeddings, tower_heads

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


def _num_features(config: VisionConfig, factor: int) -> int:
    """Return how many vectors the shuffle leaves of a tile."""
    return int((config.grid // factor) ** 2)


class _Tower(Module):
    def __init__(self, config: VisionConfig, dialect: Dialect) -> None:
        super().__init__("model.vision_model")
        self.embeddings = SiglipEmbeddings(config, position_rows(config.grid))
        self.encoder = Encoder(config.tower, dialect, rows=self.embeddings.num_rows)
        self.post_layernorm = LayerNorm(config.tower.hidden_size, config.tower.layer_norm_eps)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Looked]:
        passed = self.encoder(op, self.embeddings(op, pixel_values))
        return self.post_layernorm(op, passed.states[-1]), passed.looks[-1]


class _Vision(Module):
    def __init__(self, config: VisionConfig, dialect: Dialect, factor: int, out_size: int) -> None:
        super().__init__()
        self.tower = _Tower(config, dialect)
        wide = config.tower.hidden_size * factor**2
        self.projection = Linear(
            wide,
            out_size,
            rows=_num_features(config, factor),
            bias=False,
            name="model.connector.modality_projection.proj",
        )
        self.config = config
        self.factor = factor

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, ...]:
        patches, looked = self.tower(op, pixel_values)
        shuffled = pixel_shuffle(op, patches, self.config.grid, self.config.tower.hidden_size, self.factor)
        heads = tower_heads(self.config.tower)
        received, keys = tower_view(op, looked, heads, has_class_token=False)
        return self.projection(op, shuffled), *over_squares(
            op, received, keys, self.config.grid, self.factor, heads.size
        )


class Idefics3(VisionLanguage):
    """`model_type` idefics3 and smolvlm."""

    text_prefix = "model.text_model"

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._vision = VisionConfig.read(sub_config(config, "vision_config"), VISION_DEFAULTS)
        self._factor = int(config.get("scale_factor", 2))
        if self._vision.grid % self._factor:
            raise UnsupportedConfigError(
                f"scale_factor {self._factor} does not divide the {self._vision.grid} patches of a tile's side"
            )

    @property
    def image_size_px(self) -> int:
        """Side of a tile."""
        return self._vision.image_size_px

    @property
    def tokens_per_tile(self) -> int:
        """Patches of a tile, after the shuffle."""
        return _num_features(self._vision, self._factor)

    def vision(self, dialect: Dialect) -> Module:
        """Return tower, shuffle and projection."""
        return _Vision(self._vision, dialect, self._factor, self.decoder.hidden_size)

    def tower_outputs(self) -> Sequence[TensorSpec]:
        """Return what tells of the last layer's attention."""
        return tower_specs(self.tokens_per_tile, tower_heads(self._vision.tower).size)
