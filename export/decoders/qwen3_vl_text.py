"""Qwen3-VL's decoder (arXiv 2511.21631): queries and keys normed, axes in turn, features added in its first layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle import tensors
from bundle.errors import UnsupportedConfigError
from bundle.manifest import TensorSpec
from export.config import DecoderConfig, Raw, read_sizes
from export.decoders.decoder import Decoder
from export.decoders.qwen2_5_vl_text import read_sections
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import Around, DecoderLayer, Left, with_deep_features
from export.nn.dialect import Dialect
from export.nn.mlp import GatedMLP
from export.nn.module import Module
from export.nn.norms import RMSNorm
from export.nn.rotary import Angles, rotary_angles_by_axis

DEFAULTS: Raw = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 22_016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 128_000,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500_000.0,
}
_DEFAULT_SECTIONS = (24, 20, 20)
DEEP_LAYERS = "num_deep_layers"
"""How many first layers take features of images; the family adds it to the text config, from the tower's."""


class _DeepLayer(DecoderLayer):
    """A layer that adds features of images to what it made.

    Args:
        config: Sizes.
        dialect: How norms are written.
        attention: Of the layer.
        feed_forward: Of the layer.
        columns: Half-open range of `deep_features` that is the layer's; None: it takes none.
    """

    def __init__(
        self,
        config: DecoderConfig,
        dialect: Dialect,
        attention: Module,
        feed_forward: Module,
        columns: tuple[int, int] | None,
    ) -> None:
        super().__init__(config, dialect, attention, feed_forward)
        self.columns = columns

    def forward(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        return with_deep_features(op, super().forward(op, x, around, states), around, self.columns)


class Qwen3VLText(Decoder):
    """`model_type` qwen3_vl_text.

    Args:
        config: Sizes.
        axes: [C/2] the axis by which each pair of a head turns.
        num_deep: How many first layers take features of images.
    """

    position_axes = (3,)

    def __init__(self, config: DecoderConfig, axes: npt.NDArray[np.int64], num_deep: int) -> None:
        super().__init__(config)
        self._axes = axes
        self._num_deep = num_deep

    @classmethod
    def read(cls, raw: Raw) -> Qwen3VLText:
        """Return the decoder that a text config describes, with `DEEP_LAYERS` beside its own keys."""
        config = read_sizes({**DEFAULTS, **raw}, qkv_bias=bool(raw.get("attention_bias", False)))
        sections = read_sections(raw, _DEFAULT_SECTIONS, config.head_size)
        num_deep = int(raw.get(DEEP_LAYERS, 0))
        if num_deep > config.num_layers:
            raise UnsupportedConfigError(
                f"vision_config.deepstack_visual_indexes names {num_deep} layers of the tower, and the decoder has "
                f"{config.num_layers} that could take their features"
            )
        return cls(config, alternating_axes(sections), num_deep)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Features of images for the first layers."""
        if not self._num_deep:
            return ()
        width = self._num_deep * self.config.hidden_size
        return (TensorSpec(name=tensors.DEEP_FEATURES, dtype="float32", shape=("B", "T", width)),)

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return attention with norms of queries and keys, a gated feed-forward, and features of images."""
        config = self.config
        query_norm, key_norm = (RMSNorm(config.head_size, config.rms_norm_eps, dialect) for _ in range(2))
        attention = CachedAttention(config, dialect, number, (query_norm, key_norm))
        columns = (number * config.hidden_size, (number + 1) * config.hidden_size) if number < self._num_deep else None
        return _DeepLayer(config, dialect, attention, GatedMLP(config), columns)

    def angles(self, op: OpBuilder, position_ids: ir.Value) -> tuple[Angles, ...]:
        """Return the angles of tokens at `position_ids` [3, B, T]."""
        config = self.config
        return (rotary_angles_by_axis(op, position_ids, config.rope, config.head_size, self._axes),)


def alternating_axes(sections: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return [C/2] the axis of each pair: time, height, width in turn, and time alone where the others have had theirs.

    Args:
        sections: How many pairs each axis has.
    """
    axes = np.zeros(sum(sections), np.int64)
    for axis in (1, 2):
        axes[axis : 3 * sections[axis] : 3] = axis
    return axes
