"""SigLIP's text towers were trained on lower-case text; where a tokenizer's Python class did that, the bundle does it.

Published checkpoints say so in three ways: `SiglipTokenizer` (lower case, no punctuation), `Siglip2Tokenizer` (lower
case), or another class with `do_lower_case`, which that class does not read (google-research/big_vision #187).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import normalizers

from export.cleaning import PUNCTUATION

_CLASSES = ("SiglipTokenizer", "Siglip2Tokenizer")
_PROBE = "Aa, b."


def with_training_case(text: str, settings: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return a SigLIP's `tokenizer.json` that reads texts as its training did, and what was changed, in words, or None.

    Args:
        text: `tokenizer.json`.
        settings: `tokenizer_config.json`.
    """
    name = settings.get("tokenizer_class")
    lowers = settings.get("do_lower_case", name in _CLASSES)
    steps: list[normalizers.Normalizer] = [normalizers.Lowercase()] if lowers else []
    if name == "SiglipTokenizer":
        steps += [
            normalizers.Replace(tokenizers.Regex(PUNCTUATION), ""),
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    backend = tokenizers.Tokenizer.from_str(text)
    own = [] if backend.normalizer is None else [backend.normalizer]
    ahead = normalizers.Sequence([*steps, *own])
    if _normalized(ahead) == _normalized(normalizers.Sequence(own)):
        return text, None
    backend.normalizer = ahead
    what = "lower-cased and without punctuation" if name == "SiglipTokenizer" else "lower-cased"
    return str(backend.to_str(pretty=True)), f"texts are {what}, as in training (tokenizer_class {name})"


def _normalized(normalizer: normalizers.Normalizer) -> str:
    return str(normalizer.normalize_str(_PROBE))
