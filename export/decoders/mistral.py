"""Mistral (arXiv 2310.06825), as far as its window is no shorter than its context: a Llama by other defaults."""

from __future__ import annotations

from bundle.errors import UnsupportedConfigError
from export.config import Raw, read_sizes
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
    """`model_type` mistral."""

    @classmethod
    def read(cls, raw: Raw) -> Mistral:
        """Return the decoder that a text config describes.

        Raises:
            UnsupportedConfigError: Its window is shorter than its context.
        """
        # transformers reads neither bias
        merged = {**DEFAULTS, **raw, "attention_bias": False, "mlp_bias": False}
        window, context = merged["sliding_window"], merged["max_position_embeddings"]
        if window is not None and window < context:
            raise UnsupportedConfigError(
                f"text_config.sliding_window {window}: sliding-window attention is not built, and the context has "
                f"{context} tokens; set sliding_window to null where the model was trained without one, or "
                f"max_position_embeddings to {window} to serve no more tokens than one window"
            )
        return cls(read_sizes(merged, qkv_bias=False))
