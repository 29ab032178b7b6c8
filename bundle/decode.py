"""Encoded image bytes from strangers to an upright RGB image, or an `ImageError`.

The result is what transformers' `load_image` yields: EXIF rotation applied, then Pillow's conversion to RGB (alpha is
dropped, 16-bit is clipped, CMYK is inverted as the file says). Of an animation, the first frame. The header is judged
before any pixel is decoded.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

from bundle.errors import ImageError, OutOfMemoryError
from bundle.jpeg_scans import num_scans

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded. Pillow reads more, some of it through external programs (EPS); those stay closed to strangers."""

_JPEGS = ("JPEG", "MPO")
"""Pillow's names of a JPEG; MPO is one with more pictures behind the first, which phones write."""
_CHEAP_PIXELS = 1 << 20
_CHEAP_BYTES = 1 << 20
_CHEAP_SCANS = 16
_DECODER_BYTES_PER_PIXEL = 12
"""What libjpeg (coefficients and rows of a progressive image) and libwebp (two canvases, the picture) take at most."""
_MOST_OPENING_BYTES = 1 << 29
"""libwebp takes its canvases when a file is opened; of a file that was not, the size is not known."""

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
        max_scans: Times that a progressive JPEG goes over its pixels, at about 0.1 s for 50 million of them. Encoders
            write about 10; libtiff stops at 100, too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int = Field(default=20 * 1024 * 1024, gt=0)
    max_pixels: int = Field(default=50_000_000, gt=0, le=89_478_485)
    min_side_px: int = Field(default=1, gt=0)
    max_aspect_ratio: float = Field(default=200.0, ge=1)
    max_scans: int = Field(default=100, gt=0)


DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True)
class ImageHead:
    """What an image will cost, told before any pixel is decoded.

    Attributes:
        format: One of `FORMATS`.
        width_px: Before any rotation that the metadata asks for.
        height_px: Before any rotation.
        num_bytes: Of the file.
        num_scans: Times that decoding goes over all pixels; 1 for all but progressive JPEGs.
    """

    format: str
    width_px: int
    height_px: int
    num_bytes: int
    num_scans: int

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width_px * self.height_px

    @property
    def is_cheap(self) -> bool:
        """Whether decoding it takes tens of milliseconds at most, whatever its bytes are."""
        return (
            self.pixels <= _CHEAP_PIXELS
            and self.num_bytes <= _CHEAP_BYTES
            and self.pixels * self.num_scans <= _CHEAP_PIXELS * _CHEAP_SCANS
        )


def inspect_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> ImageHead:
    """Return what an image will cost; it is within the limits.

    Raises:
        ImageError: No bytes, too many, not an image of `FORMATS`, a damaged head, or over the limits.
        OutOfMemoryError: This machine lacks memory.
    """
    return _opened(data, limits)[1]


def decode_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Return the image, upright and RGB, its pixels decoded.

    Raises:
        ImageError: No bytes, too many, not an image of `FORMATS`, damaged, or over the limits.
        OutOfMemoryError: This machine lacks memory for its pixels.
    """
    image, _ = _opened(data, limits)
    what = f"the {image.format} image of {image.width}x{image.height} pixels"
    try:
        image.load()
        return _upright_rgb(image)
    except MemoryError as error:
        raise _no_memory(what) from error
    except _BROKEN_FILE as error:
        if not _has_memory(image.width * image.height * _DECODER_BYTES_PER_PIXEL):
            raise _no_memory(what) from error
        raise ImageError(f"{what} is damaged or truncated ({len(data)} bytes): {error}. Save it again.") from error


def _no_memory(what: str) -> OutOfMemoryError:
    return OutOfMemoryError(f"{what} was not decoded: memory ran out. Try again later, or send a smaller one.")


def _has_memory(num_bytes: int) -> bool:
    """Return whether so much can be had; decoders call a lack of it a broken file, too."""
    try:
        bytearray(num_bytes)
    except MemoryError:
        return False
    return True


def _opened(data: bytes, limits: ImageLimits) -> tuple[Image.Image, ImageHead]:
    """Return an image within the limits, its pixels not decoded, and its head."""
    if not data:
        raise ImageError("the image is empty (0 bytes); send the bytes of an image file")
    if len(data) > limits.max_bytes:
        raise ImageError(f"the image file holds {len(data)} bytes; at most {limits.max_bytes} are read. Scale it down.")
    image = _open(data, limits)
    _check_size(*image.size, limits)
    is_jpeg = image.format in _JPEGS
    scans = num_scans(data) if is_jpeg else 1
    if scans > limits.max_scans:
        raise ImageError(
            f"the JPEG goes over its {image.width}x{image.height} pixels in {scans} scans; at most {limits.max_scans} "
            "are decoded. Save it again."
        )
    return image, ImageHead("JPEG" if is_jpeg else str(image.format), *image.size, len(data), scans)


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
    except MemoryError as error:
        raise _no_memory(f"an image of {len(data)} bytes") from error
    except _BROKEN_FILE as error:
        if not _has_memory(_MOST_OPENING_BYTES):
            raise _no_memory(f"an image of {len(data)} bytes") from error
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
