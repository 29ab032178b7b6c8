"""How open_clip cleans texts before a tokenizer of transformers' cuts them, as a normalizer of that tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers import normalizers

PUNCTUATION = r"[!-/:-@\[-`{-~]"
"""Python's `string.punctuation`, which `SiglipTokenizer.canonicalize_text` takes out."""
_SPACES: Sequence[normalizers.Normalizer] = (
    normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
    normalizers.Strip(),
)
CLEANINGS: Mapping[str, Sequence[normalizers.Normalizer]] = {
    "whitespace": _SPACES,
    "lower": (*_SPACES, normalizers.Lowercase()),
    "canonicalize": (
        normalizers.Replace("_", " "),
        normalizers.Replace(tokenizers.Regex(PUNCTUATION), ""),
        normalizers.Lowercase(),
        *_SPACES,
    ),
}
"""`clean` of `text_cfg.tokenizer_kwargs`."""


def with_cleaning(text: str, kind: str) -> str:
    """Return a `tokenizer.json` that cleans texts first, in a way of `CLEANINGS`."""
    backend = tokenizers.Tokenizer.from_str(text)
    own = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([*CLEANINGS[kind], *own])
    return str(backend.to_str(pretty=True))
