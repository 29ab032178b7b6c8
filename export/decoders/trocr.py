"""TrOCR's decoder (arXiv 2109.10282): BART's, with places that are learned or sines, and a norm of them or none."""

from __future__ import annotations

from typing import ClassVar, Self

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import DecoderConfig, Raw
from export.decoders.bart import DEFAULTS, EPS, Bart, Entrance
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.nn.sine_places import sine_places


class _SineEntrance(Module):
    """Sines and cosines of places added to embeddings, and a norm of the sum where there is one.

    Args:
        config: Sizes.
        first: Place of the first token; RoBERTa counts from behind its padding token.
        is_normed: There is such a norm.
    """

    def __init__(self, config: DecoderConfig, first: int, *, is_normed: bool) -> None:
        super().__init__("")
        self.size, self.first = config.hidden_size, first
        self.layernorm_embedding = LayerNorm(config.hidden_size, EPS) if is_normed else None

    def forward(self, op: OpBuilder, x: ir.Value, position_ids: ir.Value) -> ir.Value:
        """Return [B, T, D] of x [B, T, D] at places [B, T]."""
        placed = op.Add(x, sine_places(op, op.Add(position_ids, self.first), self.size))
        return placed if self.layernorm_embedding is None else self.layernorm_embedding(op, placed)


class TrOCR(Bart):
    """`model_type` trocr.

    A padding token within an answer would stand nowhere in transformers where places are sines; no model says one.

    Attributes:
        is_normed: A norm stands behind the places.
        first_sine: Place of the first token where they are sines; None: they are learned.
    """

    defaults: ClassVar[Raw] = {
        **DEFAULTS,
        "max_position_embeddings": 512,
        "use_learned_position_embeddings": True,
        "layernorm_embedding": True,
        "pad_token_id": 1,
    }
    is_normed: bool = True
    first_sine: int | None = None

    @classmethod
    def read(cls, raw: Raw) -> Self:
        """Return the decoder that a config describes.

        Raises:
            UnsupportedConfigError: Sines of an odd width, or without a padding token to count from.
        """
        merged = {**cls.defaults, **raw}
        decoder = super().read(raw)
        decoder.is_normed = bool(merged["layernorm_embedding"])
        if merged["use_learned_position_embeddings"]:
            return decoder
        if merged["d_model"] % 2 or merged["pad_token_id"] is None:
            raise UnsupportedConfigError(
                f"decoder: d_model {merged['d_model']} with pad_token_id {merged['pad_token_id']}; sines of places "
                "want an even width, and are counted from behind the padding token"
            )
        decoder.first_sine = int(merged["pad_token_id"]) + 1
        return decoder

    def entrance(self) -> Module:
        """Return places, and their norm."""
        if self.first_sine is None:
            return Entrance(self.config, is_normed=self.is_normed)
        return _SineEntrance(self.config, self.first_sine, is_normed=self.is_normed)
