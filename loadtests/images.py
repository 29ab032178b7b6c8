"""Pictures drawn from a seed, and the requests' image parts made of them."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

_SHAPES_PER_IMAGE = 6


def draw_image(seed: int, size_px: int) -> bytes:
    """Return a PNG of shapes on a gradient, `size_px` square; the same bytes for the same seed.

    The gradient keeps the picture from compressing to nothing, so that the upload weighs about what a drawing does.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    image = Image.fromarray(_gradient(rng, size_px))
    pencil = ImageDraw.Draw(image)
    for _ in range(_SHAPES_PER_IMAGE):
        _draw_shape(pencil, rng, size_px)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _gradient(rng: np.random.Generator, size_px: int) -> npt.NDArray[np.uint8]:
    """Return [size, size, 3] uint8, one linear ramp per channel with a little noise."""
    ramp = np.linspace(0.0, 1.0, size_px)
    slopes, offset = rng.uniform(-60, 60, (2, 3)), rng.uniform(90, 160, 3)
    plane = offset + ramp[:, None, None] * slopes[0] + ramp[None, :, None] * slopes[1]
    pixels: npt.NDArray[np.uint8] = np.clip(plane + rng.integers(-3, 4, plane.shape), 0, 255).astype(np.uint8)
    return pixels


def _draw_shape(pencil: ImageDraw.ImageDraw, rng: np.random.Generator, size_px: int) -> None:
    colour = (int(rng.integers(256)), int(rng.integers(256)), int(rng.integers(256)))
    x, y = (float(v) for v in rng.uniform(0.1, 0.9, 2) * size_px)
    r = float(rng.uniform(0.05, 0.2)) * size_px
    kind = rng.integers(3)
    if kind == 0:
        pencil.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif kind == 1:
        pencil.rectangle((x - r, y - r, x + r, y + r), fill=colour)
    else:
        pencil.polygon(((x, y - r), (x - r, y + r), (x + r, y + r)), fill=colour)


def image_part(png: bytes) -> dict[str, object]:
    """Return the API's `image_url` part holding a PNG as a data URL."""
    url = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return {"type": "image_url", "image_url": {"url": url}}


class ImagePool:
    """A fixed set of distinct images, handed out in turn.

    Args:
        seed: First seed; image i is drawn from `seed + i`.
        distinct: Images in the set. A server that caches image features sees each again after this many requests.
        size_px: Width and height.
    """

    def __init__(self, seed: int, distinct: int, size_px: int) -> None:
        self._parts = [image_part(draw_image(seed + i, size_px)) for i in range(distinct)]
        self.num_taken = 0

    def __len__(self) -> int:
        return len(self._parts)

    def take(self) -> dict[str, object]:
        """Return the next image part."""
        part = self._parts[self.num_taken % len(self._parts)]
        self.num_taken += 1
        return part
