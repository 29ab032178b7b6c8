"""DeepSeek-OCR 2's vision (arXiv 2601.20552, section 3.2): SAM's tower, shrunk, and learned queries read by a Qwen2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import DecoderConfig, Raw, sub_config
from export.connectors.halving_projector import halved
from export.decoders.qwen2 import Qwen2
from export.nn.convolution import Convolution
from export.nn.dialect import MASKED, Dialect
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import RMSNorm
from export.nn.rotary import rotary_angles
from export.towers.bidirectional_llama import BidirectionalLayer
from export.towers.got_ocr2 import DEFAULTS, GotTower, GotTowerConfig

QUERIES = (144, 256)
"""Rows of the two tables, the second of which is for images of more patches than the first has rows."""
_NAMES = ("query_768_resolution.weight", "query_1024_resolution.weight")
_MLP_RATIO = 4.0


@dataclass(frozen=True)
class ShrunkSamConfig:
    """SAM's tower, and the two convolutions behind its neck, each of which halves both sides.

    Attributes:
        sam: The tower.
        channels: Behind the first and the second.
    """

    sam: GotTowerConfig
    channels: tuple[int, int]

    @classmethod
    def read(cls, raw: Raw, channels: Sequence[int]) -> ShrunkSamConfig:
        """Return the tower of a vision config, whose `downsample_channels` are others than usual where they are given.

        Raises:
            UnsupportedConfigError: A setting that is not built.
        """
        width = raw.get("hidden_size", DEFAULTS["hidden_size"])
        inner = raw.get("mlp_dim") or int(width * raw.get("mlp_ratio", _MLP_RATIO))
        stated = raw.get("downsample_channels") or channels
        if len(stated) != len(channels):
            raise UnsupportedConfigError(f"sam_config.downsample_channels {stated!r}: two convolutions are built")
        first, second = map(int, stated)
        return cls(GotTowerConfig.read({**raw, "mlp_dim": inner}), (first, second))

    def side_of(self, image_px: int) -> int:
        """Return the side of the square that a square image becomes."""
        return halved(halved(image_px // self.sam.vision.patch_size_px))


class _Shrinking(Module):
    def __init__(self, in_channels: int, channels: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = Convolution(in_channels, channels[0], 3, stride=2, bias=False)
        self.conv2 = Convolution(channels[0], channels[1], 3, stride=2, bias=False)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.conv2(op, self.conv1(op, x))


class ShrunkSam(GotTower):
    """Squares of any size to squares of channels of a sixteenth of their patches.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: ShrunkSamConfig, dialect: Dialect, name: str) -> None:
        super().__init__(config.sam, dialect, name, resamples=True)
        self.proj = _Shrinking(config.sam.num_channels, config.channels)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, channels, height, width] from [I, 3, height, width]."""
        return self.proj(op, super().forward(op, pixel_values))


@dataclass(frozen=True)
class QueryTowerConfig:
    """Sizes of the tower.

    Attributes:
        sam: What makes patches of images.
        encoder: Of the layers that queries and patches pass.
    """

    sam: ShrunkSamConfig
    encoder: DecoderConfig

    @classmethod
    def read(cls, raw: Raw) -> QueryTowerConfig:
        """Return the tower of a vision config.

        Raises:
            UnsupportedConfigError: A setting that is not built, or layers of another width than what comes into them.
        """
        sam = ShrunkSamConfig.read(sub_config(raw, "sam_config"), (512, 896))
        encoder = Qwen2.read(sub_config(raw, "encoder_config")).config
        if encoder.hidden_size != sam.channels[1]:
            raise UnsupportedConfigError(
                f"vision_config: patches of {sam.channels[1]} numbers go into layers of encoder_config.hidden_size "
                f"{encoder.hidden_size}"
            )
        return cls(sam, encoder)

    def num_queries(self, image_px: int) -> int:
        """Return how many queries look at a square image."""
        return QUERIES[0] if self.sam.side_of(image_px) ** 2 <= QUERIES[0] else QUERIES[1]


class _Encoder(Module):
    """Patches that see one another, and queries behind them that see all patches and the queries before them."""

    def __init__(self, config: DecoderConfig, dialect: Dialect) -> None:
        super().__init__()
        rows = 2 * QUERIES[1]
        self.layers = ModuleList([BidirectionalLayer(config, dialect, rows) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dialect)
        self.config = config

    def forward(self, op: OpBuilder, x: ir.Value, num_patches: ir.Value) -> ir.Value:
        """Return [I, T, D] from [I, T, D], of which the first are patches."""
        places = op.Range(0, op.Squeeze(op.Shape(x, start=1, end=2), [0]), 1)
        row = op.Unsqueeze(places, [1])
        is_seen = op.Or(op.Less(places, num_patches), op.LessOrEqual(places, row))
        bias = op.Unsqueeze(op.Where(is_seen, 0.0, MASKED), [0, 1])
        everywhere = op.Expand(op.Unsqueeze(places, [0]), op.Shape(x, start=0, end=2))
        angles = rotary_angles(op, everywhere, self.config.rope, self.config.head_size)
        for layer in self.layers:
            x = layer(op, x, angles, bias)
        return self.norm(op, x)


class QueryTower(Module):
    """Pixels to what queries made of them.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: QueryTowerConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        size = config.encoder.hidden_size
        self.sam_encoder = ShrunkSam(config.sam, dialect, "sam_encoder")
        self.vision_encoder = _Encoder(config.encoder, dialect)
        self.few, self.many = (Weight(num, size, name=name) for num, name in zip(QUERIES, _NAMES, strict=True))
        self.size = size

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, Q, D] from squares [I, 3, height, width]."""
        square = self.sam_encoder(op, pixel_values)
        patches = op.Transpose(op.Reshape(square, [0, self.size, -1]), perm=[0, 2, 1])
        images, num_patches = op.Shape(patches, start=0, end=1), op.Shape(patches, start=1, end=2)
        queries = self._queries(op, num_patches)
        shape = op.Concat(images, op.Shape(queries), axis=0)
        both = op.Concat(patches, op.Expand(queries, shape), axis=1)
        read = self.vision_encoder(op, both, num_patches)
        return op.Slice(read, num_patches, op.Shape(both, start=1, end=2), [1])

    def _queries(self, op: OpBuilder, num_patches: ir.Value) -> ir.Value:
        """Return [Q, D] those for so many patches."""
        few, many = QUERIES
        is_few = op.LessOrEqual(num_patches, [few])
        start, end = op.Where(is_few, [0], [few]), op.Where(is_few, [few], [few + many])
        return op.Slice(op.Concat(self.few, self.many, axis=0), start, end, [0])
