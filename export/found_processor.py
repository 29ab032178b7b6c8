"""A checkpoint's processor, as a family reads it to say how images are written into prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec
from export.vocabulary import Vocabulary, token_text

_CLASS = "processor_class"


@dataclass(frozen=True)
class FoundProcessor:
    """What the files of a processor say.

    Attributes:
        settings: `processor_config.json`; empty without one.
        spec: Preprocessing of images.
        vocabulary: Of the tokenizer.
        generation: `generation_config.json`; empty without one.
    """

    settings: Mapping[str, Any]
    spec: ImageSpec
    vocabulary: Vocabulary
    generation: Mapping[str, Any]

    def token(self, name: str, default: str) -> str:
        """Return the text of a token that the processor or its tokenizer names, e.g. "image_token"."""
        settings, extra = self.vocabulary.settings, self.vocabulary.settings.get("extra_special_tokens")
        named = extra.get(name) if isinstance(extra, Mapping) else None
        return token_text(self.settings.get(name) or settings.get(name) or named or default)

    def is_of(self, processor_class: str) -> bool:
        """Return whether the files name that class."""
        return processor_class in (self.settings.get(_CLASS), self.vocabulary.settings.get(_CLASS))

    def image_token_id(self, config: Mapping[str, Any], token: str) -> int:
        """Return the id of the image token.

        Raises:
            UnsupportedConfigError: The vocabulary lacks it, or the config states another.
        """
        found = self.vocabulary.id_of(token, "the image token")
        key = "image_token_index" if "image_token_index" in config else "image_token_id"
        stated = config.get(key)
        if stated is not None and int(stated) != found:
            raise UnsupportedConfigError(
                f"config.json: {key} {stated}, but tokenizer.json gives {token!r} the id {found}"
            )
        return found
