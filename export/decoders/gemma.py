"""Gemma (arXiv 2403.08295): a Llama with scaled embeddings, norms that multiply by 1 + w, and gates of GELU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bundle.errors import UnsupportedConfigError
from export.config import Raw, read_sizes
from export.decoders.decoder import Decoder
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import DecoderLayer
from export.nn.dialect import Dialect
from export.nn.mlp import GatedMLP
from export.nn.module import Module, Weight
from export.nn.norms import RMSNorm

DEFAULTS: Raw = {
    "vocab_size": 256_000,
    "hidden_size": 3072,
    "intermediate_size": 24_576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
}
_ACTIVATIONS = {"gelu": "gelu_pytorch_tanh"}
"""What first releases of the checkpoints call their activation, and what it is."""


class _FromOne(Weight):
    """A weight that the checkpoint stores less 1."""

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return the checkpoint's tensor, 1 added."""
        return super().from_stored(parts) + np.float32(1.0)


class GemmaNorm(RMSNorm):
    """x / sqrt(mean(x^2) + eps) * (1 + w); the graph holds the sum, in an order where there is one."""

    def __init__(self, size: int, eps: float, dialect: Dialect, *, order: npt.NDArray[np.int64] | None = None) -> None:
        super().__init__(size, eps, dialect, weight=_FromOne(size, order=order))


class Gemma(Decoder):
    """`model_type` gemma."""

    @classmethod
    def read(cls, raw: Raw) -> Gemma:
        """Return the decoder that a text config describes."""
        if raw.get("use_bidirectional_attention"):
            raise UnsupportedConfigError(
                "text_config.use_bidirectional_attention: texts that see what comes behind them are not built"
            )
        merged = {**DEFAULTS, **raw}
        merged["hidden_act"] = _ACTIVATIONS.get(merged["hidden_act"], merged["hidden_act"])
        # transformers reads no mlp_bias
        return cls(read_sizes({**merged, "mlp_bias": False}, qkv_bias=bool(merged.get("attention_bias", False))))

    @property
    def embedding_scale(self) -> float:
        """The root of the width; features of images are not scaled."""
        return math.sqrt(self.config.hidden_size)

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return attention and a gated feed-forward."""
        config, attention = self.config, CachedAttention(self.config, dialect, number)
        return DecoderLayer(config, dialect, attention, GatedMLP(config), (self.norm(dialect), self.norm(dialect)))

    def norm(self, dialect: Dialect) -> Module:
        """Return a norm of hidden states."""
        return GemmaNorm(self.config.hidden_size, self.config.rms_norm_eps, dialect)
