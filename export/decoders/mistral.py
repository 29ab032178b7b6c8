"""Mistral (arXiv 2310.06825): a Llama by other defaults, with one window for all layers."""

from __future__ import annotations

from export.config import DecoderConfig, Raw, read_sizes
from export.decoders.llama import Llama

DEFAULTS: Raw = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
}


class Mistral(Llama):
    """`model_type` mistral.

    Args:
        config: Sizes.
        window: Rows that the tokens of every layer see; None: all.
    """

    def __init__(self, config: DecoderConfig, window: int | None) -> None:
        super().__init__(config)
        self._window = window

    @classmethod
    def read(cls, raw: Raw) -> Mistral:
        """Return the decoder that a text config describes."""
        # transformers reads neither bias
        merged = {**DEFAULTS, **raw, "attention_bias": False, "mlp_bias": False}
        window = merged["sliding_window"]
        is_short = window is not None and window < merged["max_position_embeddings"]
        return cls(read_sizes(merged, qkv_bias=False), window if is_short else None)

    def window_of(self, number: int) -> int | None:
        """Return how many rows the tokens of a layer see, themselves among them; None: all that the model has."""
        return self._window
