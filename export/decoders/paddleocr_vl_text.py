"""PaddleOCR-VL's decoder (arXiv 2510.14528): ERNIE 4.5, a Llama whose heads turn by time, height and width."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from export.config import Raw, read_sizes
from export.decoders.qwen2_5_vl_text import Qwen25VLText, read_sections

DEFAULTS: Raw = {
    "vocab_size": 103_424,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
}
_DEFAULT_SECTIONS = (16, 24, 24)


class PaddleOCRText(Qwen25VLText):
    """`model_type` paddleocr_vl_text."""

    @classmethod
    def read(cls, raw: Raw) -> PaddleOCRText:
        """Return the decoder that a text config describes."""
        has_bias = bool(raw.get("use_bias", False))
        config = read_sizes({**DEFAULTS, **raw}, qkv_bias=has_bias)
        sections = read_sections(raw, _DEFAULT_SECTIONS, config.head_size)
        axes = np.repeat(np.arange(len(sections)), sections)
        return cls(replace(config, out_bias=has_bias, mlp_bias=has_bias), axes)
