"""DeepSeek-OCR's vision (arXiv 2510.18234, section 3.2): SAM's tower, shrunk, and CLIP's layers on what it gives."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, VisionConfig
from export.nn.antialiased_positions import resampled
from export.nn.dialect import Dialect
from export.nn.module import Module, Weight
from export.nn.norms import LayerNorm
from export.nn.patches import Grid
from export.nn.vit import Encoder
from export.towers.clip import VISION_DEFAULTS
from export.towers.deepseek_ocr2 import ShrunkSam, ShrunkSamConfig

_CLIP_DEFAULTS: Raw = {
    **VISION_DEFAULTS,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}


@dataclass(frozen=True)
class SamClipConfig:
    """Sizes of both towers.

    Attributes:
        sam: What makes patches of images.
        clip: Of the layers on them, whose `grid` is that of the learned positions.
    """

    sam: ShrunkSamConfig
    clip: VisionConfig

    @classmethod
    def read(cls, sam: Raw, clip: Raw) -> SamClipConfig:
        """Return the towers of a vision config.

        Raises:
            UnsupportedConfigError: A setting that is not built, or layers of another width than what comes into them.
        """
        found = cls(ShrunkSamConfig.read(sam, (512, 1024)), VisionConfig.read({**_CLIP_DEFAULTS, **clip}, {}))
        if found.sam.channels[1] != found.clip.tower.hidden_size:
            raise UnsupportedConfigError(
                f"vision_config: patches of {found.sam.channels[1]} numbers go into CLIP's layers of "
                f"{found.clip.tower.hidden_size}"
            )
        return found

    @property
    def out_size(self) -> int:
        """Of a patch, CLIP's numbers and SAM's."""
        return self.clip.tower.hidden_size + self.sam.channels[1]

    def num_patches(self, image_px: int) -> int:
        """Return how many patches a square image has behind SAM's convolutions."""
        return self.sam.side_of(image_px) ** 2


class _Embeddings(Module):
    """A class token before patches that are vectors already, and positions, resampled to their square."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.grid, self.size = config.grid, config.tower.hidden_size
        self.class_embedding = Weight(self.size)
        self.table = Weight(self.grid**2 + 1, self.size, name="position_embedding.weight")

    def forward(self, op: OpBuilder, patches: ir.Value, side: ir.Value) -> ir.Value:
        """Return [I, 1 + N, D] of patches [I, N, D] of a square whose side is [1] int64."""
        first = op.Slice(self.table, [0], [1], [0])
        square = op.Slice(self.table, [1], [self.grid**2 + 1], [0])
        placed = op.Add(patches, resampled(op, square, self.grid, self.size, Grid(side, side), "cubic"))
        images = op.Shape(patches, start=0, end=1)
        token = op.Reshape(op.Add(self.class_embedding, first), [1, 1, self.size])
        return op.Concat(op.Expand(token, op.Concat(images, [1, self.size], axis=0)), placed, axis=1)


class _Clip(Module):
    def __init__(self, config: VisionConfig, dialect: Dialect) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.pre_layrnorm = LayerNorm(config.tower.hidden_size, config.tower.layer_norm_eps)
        self.encoder = Encoder(config.tower, dialect, rows=config.grid**2 + 1)

    def forward(self, op: OpBuilder, patches: ir.Value, side: ir.Value) -> ir.Value:
        """Return [I, N, D] behind the last layer, without the class token."""
        passed = self.encoder(op, self.pre_layrnorm(op, self.embeddings(op, patches, side)))
        return op.Slice(passed.states[-1], [1], op.Add(op.Shape(patches, start=1, end=2), [1]), [1])


class SamClipTower(Module):
    """Pixels to patches, each CLIP's numbers and then SAM's.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: SamClipConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.sam_encoder = ShrunkSam(config.sam, dialect, "sam_encoder")
        self.vision_encoder = _Clip(config.clip, dialect)
        self.size = config.sam.channels[1]

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, N, D + D] from squares [I, 3, height, width]."""
        square = self.sam_encoder(op, pixel_values)
        patches = op.Transpose(op.Reshape(square, [0, self.size, -1]), perm=[0, 2, 1])
        seen = self.vision_encoder(op, patches, op.Shape(square, start=2, end=3))
        return op.Concat(seen, patches, axis=2)
