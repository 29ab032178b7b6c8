"""Qwen2 (arXiv 2407.10671): a Llama with biases on queries, keys and values."""

from __future__ import annotations

from bundle.errors import UnsupportedConfigError
from export.config import Raw, read_sizes
from export.decoders import llama
from export.decoders.llama import Llama

DEFAULTS: Raw = {
    **llama.DEFAULTS,
    "vocab_size": 151_936,
    "intermediate_size": 22_016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
}


class Qwen2(Llama):
    """`model_type` qwen2."""

    @classmethod
    def read(cls, raw: Raw) -> Qwen2:
        """Return the decoder that a text config describes."""
        refuse_windows(raw)
        return cls(read_sizes({**DEFAULTS, **raw}, qkv_bias=True))


def refuse_windows(raw: Raw) -> None:
    """Refuse a config whose layers look back no further than a window.

    Raises:
        UnsupportedConfigError: It asks for that.
    """
    if raw.get("use_sliding_window") or "sliding_attention" in (raw.get("layer_types") or ()):
        raise UnsupportedConfigError(
            "text_config.use_sliding_window: Qwen's layers with windows are not built; published models of images have "
            "none"
        )
