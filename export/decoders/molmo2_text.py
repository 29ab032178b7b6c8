"""Molmo 2's decoder: Qwen3's layers, behind a table of tokens with rows for those that are never said."""

from __future__ import annotations

from bundle.errors import UnsupportedConfigError
from export.config import Raw, read_sizes
from export.decoders.qwen3 import Qwen3

DEFAULTS: Raw = {
    "vocab_size": 151_936,
    "additional_vocab_size": 128,
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 36_864,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "qk_norm_type": "qwen3",
}
_OLDER = (("attention_bias", "qkv_bias"), ("rms_norm_eps", "layer_norm_eps"))
"""Keys, and their names in the published files."""
_OLMO = "; Molmo2-O's OLMo layers are not built, the checkpoints of 4B and 8B have Qwen3's"


class Molmo2Text(Qwen3):
    """`model_type` molmo2_text."""

    @classmethod
    def read(cls, raw: Raw) -> Molmo2Text:
        """Return the decoder that a text config describes.

        Raises:
            UnsupportedConfigError: Layers of OLMo, or rotary embeddings that are scaled in some layers alone.
        """
        older = {name: raw[old] for name, old in _OLDER if raw.get(old) is not None}
        merged = {**DEFAULTS, **raw, **older}
        if merged["qk_norm_type"] != "qwen3" or not merged.get("use_qk_norm", True):
            raise UnsupportedConfigError(
                f"text_config.qk_norm_type {merged['qk_norm_type']!r}, use_qk_norm {merged.get('use_qk_norm', True)}: "
                f"built are norms of every head, 'qwen3'{_OLMO}"
            )
        if merged.get("norm_after"):
            raise UnsupportedConfigError(
                f"text_config.norm_after is true: norms are built before what they norm{_OLMO}"
            )
        sizes = read_sizes(
            {**merged, "attention_bias": False, "mlp_bias": False}, qkv_bias=bool(merged.get("attention_bias", False))
        )
        scaled = merged.get("rope_scaling_layers")
        if sizes.rope.kind != "default" and scaled is not None and set(scaled) != set(range(sizes.num_layers)):
            raise UnsupportedConfigError(
                f"text_config.rope_scaling_layers {scaled!r:.200}: built are rotary embeddings that are scaled in all "
                f"layers or in none{_OLMO}"
            )
        return cls(sizes)
