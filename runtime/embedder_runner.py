"""Vectors of a bundle that embeds by a decoder, without a server: what a gate measures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from PIL import Image

from bundle.directory import Bundle
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.prompt import Placeholder, PromptBuilder, Turn
from runtime.encoder import Encoder, open_encoder
from runtime.encoders import Vectors, encode_images
from runtime.filled_prompt import FilledPrompt
from runtime.graph import Array
from runtime.prompt_embedder import PromptEmbedder
from runtime.settings import DEFAULT_VISION_TILES, RuntimeSettings

_DEFAULTS = RuntimeSettings()


class EmbedderRunner:
    """Unit-length vectors of images and texts, one input at a time.

    Args:
        bundle: Of a model that embeds by a decoder.
        settings: Provider and threads.
    """

    def __init__(self, bundle: Bundle, settings: RuntimeSettings = _DEFAULTS) -> None:
        self._bundle, self._settings = bundle, settings
        self._prompts = PromptBuilder.from_bundle(bundle, of_inputs=True)
        self._images = ImageSpec.read(bundle.path(PREPROCESSOR))

    @property
    def is_multi(self) -> bool:
        """Whether an input has a vector for every token."""
        dims = self._bundle.manifest.embedder
        return dims is not None and dims.pooling == "tokens"

    # Opened late: calibration wants a part of them.
    @cached_property
    def _vision(self) -> Encoder:
        return open_encoder(self._bundle, self._bundle.manifest.graph("vision_encoder"), self._settings)

    @cached_property
    def _embedder(self) -> PromptEmbedder:
        return PromptEmbedder(self._bundle, self._settings)

    def embed_images(self, images: Sequence[Image.Image]) -> list[Vectors]:
        """Return of each image [E], or [n, E] where every token has a vector."""
        return self.embed_turns([([Turn("user", (Placeholder.IMAGE,))], [image]) for image in images])

    def embed_texts(self, texts: Sequence[str]) -> list[Vectors]:
        """Return of each text [E], or [n, E] where every token has a vector."""
        dims = self._bundle.manifest.embedder
        prefix = "" if dims is None else dims.prefix(None)
        return self.embed_turns([([Turn("user", (f"{prefix}{text}",))], []) for text in texts])

    def embed_turns(self, inputs: Sequence[tuple[Sequence[Turn], Sequence[Image.Image]]]) -> list[Vectors]:
        """Return of each input, written as turns about images, [E], or [n, E] where every token has a vector."""
        found = self._embedder.embed([self.prompt(turns, images) for turns, images in inputs])
        return found if self.is_multi else [vectors[0] for vectors in found]

    def raw_of_turns(self, inputs: Sequence[tuple[Sequence[Turn], Sequence[Image.Image]]]) -> list[Vectors]:
        """Return of each input what the decoder gives of its last token, [1, E]."""
        return self._embedder.raw([self.prompt(turns, images) for turns, images in inputs], "last")

    def feeds(self, turns: Sequence[Turn], images: Sequence[Image.Image]) -> dict[str, Array]:
        """Return the decoder's inputs for one input."""
        return self._embedder.feeds([self.prompt(turns, images)])

    def prompt(self, turns: Sequence[Turn], images: Sequence[Image.Image]) -> FilledPrompt:
        """Return an input as the decoder reads it."""
        spec = self._images.among(len(images))
        layouts = [spec.layout(*image.size) for image in images]
        features = [
            self._prompts.image_prompt.arranged(
                encode_images(self._vision, [spec.preprocess([image]).groups], DEFAULT_VISION_TILES)[0], layout
            )
            for image, layout in zip(images, layouts, strict=True)
        ]
        return FilledPrompt.of(self._prompts.build(turns, layouts), features)
