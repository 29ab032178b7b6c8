"""A Llama whose feed-forwards are mixtures: a shared expert, and one of several that a router chooses per token."""

from __future__ import annotations

from dataclasses import replace

from export.config import ExpertsConfig, Raw, read_sizes, require
from export.decoders.decoder import Decoder
from export.decoders.llama import DEFAULTS
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import DecoderLayer
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.nn.moe import MIXTURES


class LlamaMote(Decoder):
    """`model_type` llama_mote (reference/checkpoints/README.md has the format)."""

    @classmethod
    def read(cls, raw: Raw) -> LlamaMote:
        """Return the decoder that a text config describes."""
        require(raw, [("attention_bias", False), ("mlp_bias", False)])
        return cls(replace(read_sizes({**DEFAULTS, **raw}, qkv_bias=False), experts=ExpertsConfig.read(raw)))

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return attention and a mixture.

        Raises:
            ValueError: The sizes name no experts.
        """
        if self.config.experts is None:
            raise ValueError("a mixture without experts; Llama is the decoder that has none")
        attention = CachedAttention(self.config, dialect, number)
        mixture = MIXTURES[dialect.name](self.config, self.config.experts)
        return DecoderLayer(self.config, dialect, attention, mixture)
