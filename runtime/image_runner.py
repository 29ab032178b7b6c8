"""Vectors of a bundle that embeds images and reads no texts, without a server: what a gate measures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from bundle.directory import Bundle
from bundle.image import PREPROCESSOR, ImageSpec
from runtime.encoder import open_encoder
from runtime.encoders import Vectors, encode_images, unit
from runtime.settings import DEFAULT_VISION_TILES, RuntimeSettings

_DEFAULTS = RuntimeSettings()


class ImageRunner:
    """Unit-length vectors of images.

    Args:
        bundle: Of a model that embeds images alone.
        settings: Provider and threads.
    """

    def __init__(self, bundle: Bundle, settings: RuntimeSettings = _DEFAULTS) -> None:
        self._images = ImageSpec.read(bundle.path(PREPROCESSOR))
        self._vision = open_encoder(bundle, bundle.manifest.graph("vision_encoder"), settings)

    def embed_images(self, images: Sequence[Image.Image]) -> Vectors:
        """Return [len(images), E]; those of one size run together."""
        groups = [tuple(self._images.groups(self._images.cut(image))) for image in images]
        return unit(np.concatenate(encode_images(self._vision, groups, DEFAULT_VISION_TILES)))
