"""Qwen3 (arXiv 2505.09388): a Llama whose queries and keys are normed, head by head."""

from __future__ import annotations

from export.config import Raw, read_sizes
from export.decoders.llama import Llama
from export.decoders.qwen2 import DEFAULTS as QWEN2_DEFAULTS
from export.decoders.qwen2 import refuse_windows
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import DecoderLayer
from export.nn.dialect import Dialect
from export.nn.mlp import GatedMLP
from export.nn.module import Module
from export.nn.norms import RMSNorm

DEFAULTS: Raw = {**QWEN2_DEFAULTS, "head_dim": 128}


class Qwen3(Llama):
    """`model_type` qwen3."""

    @classmethod
    def read(cls, raw: Raw) -> Qwen3:
        """Return the decoder that a text config describes."""
        refuse_windows(raw)
        return cls(read_sizes({**DEFAULTS, **raw}, qkv_bias=bool(raw.get("attention_bias", False))))

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return attention with norms of queries and keys, and a gated feed-forward."""
        size, eps = self.config.head_size, self.config.rms_norm_eps
        norms = RMSNorm(size, eps, dialect), RMSNorm(size, eps, dialect)
        attention = CachedAttention(self.config, dialect, number, norms)
        return DecoderLayer(self.config, dialect, attention, GatedMLP(self.config))
