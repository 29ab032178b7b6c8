"""open_clip's own towers whose texts end in a token of their tokenizer's, or are pooled at the first."""

from __future__ import annotations

import encoder_files as files
from encoder_open_clip import CONFIG, changed, save_model, save_processor, stored

__all__ = ["CONFIG", "changed", "save_model", "save_processor", "stored"]
REFUSED = [({"text_cfg": {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"clean": "deep"}}}, "clean is 'deep'")]


def geometries() -> list[files.Config]:
    """Return one with XLM-R's tokenizer and a plain GELU, and one without a projection."""
    return [{"name": "worldwide"}, {"name": "first_token"}]
