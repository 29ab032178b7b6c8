"""EmbeddingGemma 2 (google/embeddinggemma-2): a vector of texts and images, the mean of all their tokens' vectors.

Gemma 4's tower before an encoder of Gemma 4's layers. Its audio tower is not built: its weights are left out, and
frames of a video are images.
"""

from __future__ import annotations

import json
import math
from typing import ClassVar

from bundle.errors import UnsupportedConfigError
from bundle.layouts.embedding_gemma2 import EmbeddingGemma2Prompt
from bundle.layouts.prompt import ImagePrompt
from export.config import Raw
from export.decoders.embedding_gemma2_text import EmbeddingGemma2Config, EmbeddingGemma2Encoder
from export.embedding import IMAGE_SLOT, TEMPLATES, Head, StateVectors
from export.found_processor import FoundProcessor
from export.models.gemma4 import Gemma4
from export.nn.dialect import Dialect
from export.nn.linear import Embedding
from export.nn.module import Module
from export.two_way import EncoderSizes, TwoWayEmbedder, around_text

_TEXT = "model.language_model"
_WHOLE, _CUTS = 768, (512, 256, 128)
"""Numbers of a vector, and sizes to which it may be cut (the model's card); configs do not say these."""


class EmbeddingGemma2(TwoWayEmbedder, Gemma4):
    """`model_type` embedding_gemma2."""

    text_prefix = _TEXT
    default_text = "embedding_gemma2_text"
    looks_ahead = EmbeddingGemma2Prompt.looks_ahead
    states_prefixes: ClassVar[bool] = True
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^(language_model|vision_tower|embed_vision|audio_tower|embed_audio)\.", r"model.\1."),
    )

    def __init__(self, config: Raw) -> None:
        if config.get("vision_config") is None:
            raise UnsupportedConfigError(
                "vision_config is null: built is EmbeddingGemma 2 with its image tower; export the whole checkpoint"
            )
        super().__init__(config)
        self._text = EmbeddingGemma2Config.read(self.text_config)
        if self._text.embedding_size == _WHOLE:
            self.config = {"matryoshka_dimensions": list(_CUTS), **self.config}
        head = Head(f"{_TEXT}.embedding_projection", self._text.embedding_size, has_bias=False)
        self.vectors = StateVectors("mean", head)
        self.embedding = self.vectors

    @property
    def sizes(self) -> EncoderSizes:
        """Of the text encoder."""
        sizes = self._text.sizes
        return EncoderSizes(sizes.vocab_size, sizes.hidden_size, sizes.max_positions)

    def skipped(self) -> tuple[str, ...]:
        """Return `unused`: the audio tower, and what holds no weights."""
        return self.unused

    def encoder(self, dialect: Dialect) -> Module:
        """Return the text encoder."""
        return EmbeddingGemma2Encoder(self._text, dialect, _TEXT)

    def table(self) -> Module:
        """Return the module input_ids [B, T] -> inputs_embeds [B, T, D], scaled by the root of D."""
        scale = math.sqrt(self.state_size)
        return Embedding(self.vocab_size, self.state_size, name=f"{_TEXT}.embed_tokens", scale=scale)

    def image_prompt(self, found: FoundProcessor) -> EmbeddingGemma2Prompt:
        """Return the tokens of an image between a start and an end.

        Raises:
            UnsupportedConfigError: A token is not in the vocabulary, or has another id than the config says.
        """
        return EmbeddingGemma2Prompt(**super().image_prompt(found).model_dump(exclude={"kind"}))

    def input_template(self, found: FoundProcessor, prompt: ImagePrompt) -> str:
        """Return images and texts as they come, an instruction first, between the tokens around every text."""
        before, behind = (f"{{{{ {json.dumps(text)} }}}}" for text in around_text(found))
        return f"{before}{TEMPLATES['plain'].replace(IMAGE_SLOT, prompt.image_token)}{behind}"
