"""Granite 3 (IBM, 2024): a Llama whose embeddings, scores, residuals and logits have factors in its config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle import tensors
from bundle.errors import UnsupportedConfigError
from bundle.manifest import TensorSpec
from export.config import DecoderConfig, Raw, read_sizes
from export.decoders import llama
from export.decoders.decoder import Decoder
from export.decoders.qwen3_vl_text import DEEP_LAYERS
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import Around, DecoderLayer, Left, with_deep_features
from export.nn.dialect import CacheRows, Dialect
from export.nn.mlp import GatedMLP
from export.nn.module import Module, Weight
from export.nn.norms import RMSNorm


@dataclass(frozen=True)
class _Factors:
    """What is multiplied.

    Attributes:
        embeddings: Of tokens, and features of images in their places.
        scores: Of attention.
        residuals: What a layer adds.
        logits: Divided by it.
    """

    embeddings: float
    scores: float
    residuals: float
    logits: float

    @classmethod
    def read(cls, raw: Raw) -> _Factors:
        """Return the numbers of a text config."""
        names = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
        return cls(*(float(raw.get(name, 1.0)) for name in names))


class _Entrance(Module):
    def __init__(self, factor: float) -> None:
        super().__init__("")
        self.factor = factor

    def forward(self, op: OpBuilder, x: ir.Value, position_ids: ir.Value) -> ir.Value:
        return op.Mul(x, self.factor)


class _Layer(DecoderLayer):
    """A layer that adds less than it makes, and features of images behind it where some are its own.

    Args:
        config: Sizes.
        dialect: How norms are written.
        attention: Of the layer.
        residual: What it makes is multiplied by.
        columns: Half-open range of `deep_features` that is the layer's; None: it takes none.
    """

    def __init__(
        self,
        config: DecoderConfig,
        dialect: Dialect,
        attention: Module,
        residual: float,
        columns: tuple[int, int] | None,
    ) -> None:
        super().__init__(config, dialect, attention, GatedMLP(config))
        self.residual = residual
        self.columns = columns

    def forward(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        """Return what is left of x [B, T, D]; states are keys and values."""
        normed, past = self.input_layernorm(op, x), CacheRows(*states)
        attended, present, queries = self.self_attn(op, normed, around.first_angles, past, around.lengths)
        x = op.Add(x, op.Mul(attended, self.residual))
        x = op.Add(x, op.Mul(self.mlp(op, self.post_attention_layernorm(op, x)), self.residual))
        return with_deep_features(op, Left(x, (present.key, present.value), queries), around, self.columns)


class _Divided(Weight):
    """A weight that the graph holds divided by a number."""

    def __init__(self, size: int, divisor: float) -> None:
        super().__init__(size)
        self._divisor = np.float32(divisor)

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return the checkpoint's tensor, divided."""
        return super().from_stored(parts) / self._divisor


class Granite(Decoder):
    """`model_type` granite, granite_docling_text and granite4_vision_text.

    Args:
        config: Sizes.
        factors: What is multiplied.
        deep: Layers behind which features of images are added, in order of their columns.
    """

    def __init__(self, config: DecoderConfig, factors: _Factors, deep: tuple[int, ...]) -> None:
        super().__init__(config)
        self._factors = factors
        self._deep = deep

    @classmethod
    def read(cls, raw: Raw) -> Granite:
        """Return the decoder that a text config describes, with `DEEP_LAYERS` beside its own keys where it has some.

        These are how many first layers take features of images, or the numbers of those that do.

        Raises:
            UnsupportedConfigError: Layers that it has not.
        """
        merged, stated = {**llama.DEFAULTS, **raw}, raw.get(DEEP_LAYERS, 0)
        config = read_sizes(merged, qkv_bias=bool(merged.get("attention_bias", False)))
        deep = tuple(range(stated)) if isinstance(stated, int) else tuple(stated)
        if max(deep, default=-1) >= config.num_layers:
            raise UnsupportedConfigError(
                f"features of images for {len(deep)} layers, {max(deep)} the last of them, and the decoder has "
                f"{config.num_layers} that could take them: deepstack_visual_indexes or deepstack_layer_map of the "
                "config are another decoder's"
            )
        return cls(config, _Factors.read(merged), deep)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Features of images for some layers."""
        if not self._deep:
            return ()
        width = len(self._deep) * self.config.hidden_size
        return (TensorSpec(name=tensors.DEEP_FEATURES, dtype="float32", shape=("B", "T", width)),)

    @property
    def embedding_factor(self) -> float:
        """What embeddings, and features in their places, are multiplied by."""
        return self._factors.embeddings

    def entrance(self) -> Module | None:
        """Return the factor of embeddings, and of features in their places."""
        return None if self._factors.embeddings == 1.0 else _Entrance(self._factors.embeddings)

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return attention and a gated feed-forward."""
        config = self.config
        attention = CachedAttention(config, dialect, number, scale=self._factors.scores)
        at, size = self._deep.index(number) if number in self._deep else None, config.hidden_size
        columns = None if at is None else (at * size, (at + 1) * size)
        return _Layer(config, dialect, attention, self._factors.residuals, columns)

    def norm(self, dialect: Dialect) -> Module:
        """Return the norm behind the last layer, whose weight holds what logits are divided by."""
        size = self.config.hidden_size
        return RMSNorm(size, self.config.rms_norm_eps, dialect, weight=_Divided(size, self._factors.logits))
