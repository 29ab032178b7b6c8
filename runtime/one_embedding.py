"""Images and texts to vectors by a dual encoder, a request at a time, without a server."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from PIL import Image

from bundle.dims import DualEncoderDims
from bundle.directory import Bundle
from bundle.errors import BundleFormatError
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.text import TOKENIZER, TextBatch, Tokenizer
from runtime.encoder import Encoder, open_encoder
from runtime.encoders import Vectors, encode_images, encode_texts, text_feeds, unit
from runtime.graph import Array
from runtime.settings import DEFAULT_VISION_TILES, RuntimeSettings

_DEFAULTS = RuntimeSettings()


class DualEncoderRunner:
    """Unit-length embeddings of a dual-encoder bundle, one of an input or one for each of its tokens.

    Args:
        bundle: The bundle.
        settings: Provider and threads.
    """

    _BATCH = 32

    def __init__(self, bundle: Bundle, settings: RuntimeSettings = _DEFAULTS) -> None:
        if bundle.manifest.dual is None:
            raise BundleFormatError(f"{bundle.directory} has no embedding sizes; it cannot embed")
        self._dims: DualEncoderDims = bundle.manifest.dual
        self._tokenizer = Tokenizer.from_file(bundle.path(TOKENIZER))
        self._bundle, self._settings = bundle, settings

    @cached_property
    def _images(self) -> ImageSpec:
        return ImageSpec.read(self._bundle.path(PREPROCESSOR))

    @cached_property
    def _vision(self) -> Encoder:
        return open_encoder(self._bundle, self._bundle.manifest.graph("vision_encoder"), self._settings)

    @cached_property
    def _text(self) -> Encoder:
        return open_encoder(self._bundle, self._bundle.manifest.graph("text_encoder"), self._settings)

    def embed_images(self, images: Sequence[Image.Image]) -> Vectors | list[Vectors]:
        """Return [len(images), E], or [P, E] of each."""
        batches = (images[at : at + self._BATCH] for at in range(0, len(images), self._BATCH))
        vectors = [vector for batch in batches for vector in self._embedded(batch)]
        if self._dims.vectors == "tokens":
            return [unit(of_tiles[0]) for of_tiles in vectors]
        joined = np.concatenate(vectors)
        return unit(joined[:, 0] if self._dims.regions else joined)

    def embed_texts(self, texts: Sequence[str]) -> Vectors | list[Vectors]:
        """Return [len(texts), E], or [T, E] of each; texts that are too long are cut."""
        rows = [self._tokenized(text) for text in texts]
        batches = (rows[at : at + self._BATCH] for at in range(0, len(rows), self._BATCH))
        vectors = [own for batch in batches for own in encode_texts(self._text, batch, self._dims)]
        return [unit(own) for own in vectors] if self._dims.vectors == "tokens" else unit(np.stack(vectors))

    def _embedded(self, images: Sequence[Image.Image]) -> list[Array]:
        """Return [1, E] of each image; those of one size run together."""
        groups = [tuple(self._images.groups(self._images.cut(image))) for image in images]
        return encode_images(self._vision, groups, DEFAULT_VISION_TILES)

    def text_feeds(self, text: str) -> dict[str, Array]:
        """Return the text encoder's inputs for one text; one that is too long is cut."""
        manifest = self._bundle.manifest
        component = manifest.components[manifest.graph("text_encoder")]
        return dict(text_feeds([self._tokenized(text)], self._dims, component))

    def _tokenized(self, text: str) -> TextBatch:
        dims = self._dims
        return self._tokenizer.encode_batch(
            [text],
            max_tokens=dims.max_text_tokens,
            pad_token_id=dims.pad_token_id,
            pads_to_max=dims.pads_to_max,
            most_tokens=dims.max_text_tokens,
        )
