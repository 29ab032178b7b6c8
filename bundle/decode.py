"""Encoded image bytes from strangers to an upright RGB image, or an `ImageError`.

The result is what transformers' `load_image` yields: EXIF rotation applied, then Pillow's conversion to RGB (alpha is
dropped, 16-bit is clipped, CMYK is inverted as the file says). Of an animation, the first frame. The header is judged
before any pixel is decoded.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from io import BytesIO

from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

from bundle.errors import ImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded. Pillow reads more, some of it through external programs (EPS); those stay closed to strangers."""

# What Pillow's decoders let out of themselves on broken files; Warning where the process turns warnings into errors.
_BROKEN_FILE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,
)

# Between one and two times Pillow's own pixel limit it warns and goes on; an image that large is never wanted here.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


class ImageLimits(BaseModel):
    """What an image from a caller may cost.

    Attributes:
        max_bytes: Of the encoded file. 20 MiB is what hosted vision APIs accept.
        max_pixels: Width times height. 50 million is the largest sensor of current phones, 150 MB once decoded;
            the ceiling is Pillow's own limit.
        min_side_px: Of either edge. 1: every geometry of `bundle.image` takes a single pixel.
        max_aspect_ratio: Longer over shorter edge. Scaling the shortest edge of a 1 x 20000 strip to 336 pixels
            would make an image of 7 GB.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int = Field(default=20 * 1024 * 1024, gt=0)
    max_pixels: int = Field(default=50_000_000, gt=0, le=89_478_485)
    min_side_px: int = Field(default=1, gt=0)
    max_aspect_ratio: float = Field(default=200.0, ge=1)


DEFAULT_LIMITS = ImageLimits()


def decode_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Return the image, upright and RGB, its pixels decoded.

    Raises:
        ImageError: No bytes, too many, not an image of `FORMATS`, damaged, or over the limits.
    """
    if not data:
        raise ImageError("the image is empty (0 bytes); send the bytes of an image file")
    if len(data) > limits.max_bytes:
        raise ImageError(f"the image file holds {len(data)} bytes; at most {limits.max_bytes} are read. Scale it down.")
    image = _open(data, limits)
    _check_size(*image.size, limits)
    try:
        image.load()
        return _upright_rgb(image)
    except _BROKEN_FILE as error:
        raise ImageError(
            f"the {image.format} image of {image.width}x{image.height} pixels is damaged or truncated "
            f"({len(data)} bytes): {error}. Save it again."
        ) from error


def _open(data: bytes, limits: ImageLimits) -> Image.Image:
    """Return the image with its header read and its pixels not."""
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"the image has too many pixels; at most {limits.max_pixels} are decoded: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{len(data)} bytes beginning {data[:8]!r} are not an image that is read here; send one of "
            f"{', '.join(FORMATS)}"
        ) from error
    except _BROKEN_FILE as error:
        raise ImageError(f"the image's header is damaged ({len(data)} bytes): {error}. Save it again.") from error


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    if min(width, height) < limits.min_side_px:
        raise ImageError(f"the image is {width}x{height} pixels; each side needs at least {limits.min_side_px}")
    if width * height > limits.max_pixels:
        raise ImageError(
            f"the image is {width}x{height} = {width * height} pixels; at most {limits.max_pixels} are decoded. "
            "Scale it down."
        )
    if max(width, height) > limits.max_aspect_ratio * min(width, height):
        raise ImageError(
            f"the image is {width}x{height} pixels; its longer side may be at most {limits.max_aspect_ratio:g} times "
            "the shorter. Crop it."
        )


def _upright_rgb(image: Image.Image) -> Image.Image:
    ImageOps.exif_transpose(image, in_place=True)  # a copy of 50 megapixels is 150 MB
    image.info.pop("transparency", None)  # dropped by the conversion anyway, with a warning for some palettes
    return image.convert("RGB")
