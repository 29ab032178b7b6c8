"""An export's tokenizer and preprocessing, written into a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.errors import UnsupportedConfigError
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.text import TOKENIZER
from export.adopted.tower import Pooling
from export.image_processor import read_image_spec
from export.settings_file import read_settings
from export.vocabulary import Vocabulary

_LOWER_CASED = ("siglip", "siglip2")
"""Model types that were trained on lower case, whatever their tokenizer's files say."""
_POOLING = "1_Pooling/config.json"
_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_LONGEST_STATED = 1 << 20
"""Tokens; a tokenizer that knows no limit states one far beyond it."""


@dataclass(frozen=True)
class Processing:
    """What stands before an encoder.

    Attributes:
        image: None where it sees none.
        vocabulary: The tokenizer.
        max_text_tokens: Longest text.
        pooling: As sentence-transformers' files have it; None without them.
    """

    image: ImageSpec | None
    vocabulary: Vocabulary
    max_text_tokens: int
    pooling: Pooling | None = None

    @property
    def pad_token_id(self) -> int:
        """Fills the shorter texts of a batch."""
        return self.vocabulary.id_of(self.vocabulary.template_tokens["pad_token"], "pad_token")

    @classmethod
    def read(cls, folder: Path, config: Mapping[str, Any], *, sees: bool) -> Processing:
        """Return the processing of an export's folder.

        Raises:
            CheckpointError: A file is missing or broken.
            UnsupportedConfigError: A setting that is not reproduced, or a longest text that nothing states.
        """
        vocabulary = Vocabulary.read(folder, lower_cases=config.get("model_type") in _LOWER_CASED)
        if vocabulary.named_id("pad_token") is None:
            raise UnsupportedConfigError("tokenizer_config.json names no pad_token; a text encoder's batches need one")
        if (side := vocabulary.settings.get("padding_side", "right")) != "right":
            raise UnsupportedConfigError(f"tokenizer_config.json: padding_side {side!r}; only 'right' is supported")
        path = folder / "preprocessor_config.json"
        image = read_image_spec(read_settings(path), str(path)) if sees else None
        return cls(image, vocabulary, _max_text_tokens(config, vocabulary), _pooling(folder / _POOLING))

    def write(self, folder: Path) -> None:
        """Write `tokenizer.json`, and `preprocessor.json` where images are seen."""
        (folder / TOKENIZER).write_text(self.vocabulary.text, encoding="utf-8")
        if self.image is not None:
            (folder / PREPROCESSOR).write_text(self.image.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _pooling(path: Path) -> Pooling | None:
    """Return what a file of sentence-transformers says of its pooling; None where there is none.

    Raises:
        UnsupportedConfigError: It pools otherwise.
    """
    settings = read_settings(path, required=False)
    asked = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True]
    if not settings:
        return None
    if len(asked) != 1 or asked[0] not in _POOLINGS:
        raise UnsupportedConfigError(
            f"{path}: {', '.join(asked) or 'no pooling'}; known is one of {', '.join(_POOLINGS)}"
        )
    return _POOLINGS[asked[0]]


def _max_text_tokens(config: Mapping[str, Any], vocabulary: Vocabulary) -> int:
    """Return the least that the tower's positions and the tokenizer allow."""
    sources = (dict(config.get("text_config") or {}), config, vocabulary.settings)
    keys = ("max_position_embeddings", "max_position_embeddings", "model_max_length")
    stated = [int(source[key]) for source, key in zip(sources, keys, strict=True) if source.get(key) is not None]
    within = [tokens for tokens in stated if 0 < tokens <= _LONGEST_STATED]
    if not within:
        raise UnsupportedConfigError(
            "neither max_position_embeddings in config.json nor model_max_length in tokenizer_config.json says how "
            "long a text may be. Add model_max_length."
        )
    return min(within)
