"""Encoded image bytes from strangers to an upright RGB image, or an `ImageError`.

The result is what transformers' `load_image` yields (the rotation of the metadata applied, CMYK inverted as the file
says, of an animation the first frame), but for transparency and wide greyscale (`bundle.rgb`). A file is cut down to
its first picture, and that judged by its header, before Pillow sees it: metadata, profiles and further frames cost time
in its readers, and nothing of them is wanted but the rotation.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from bundle.containers.picture import Picture
from bundle.containers.table import first_picture
from bundle.errors import ImageError, OutOfMemoryError
from bundle.rgb import held_bytes, to_rgb

_CHEAP_PIXELS = 1 << 20
_CHEAP_BYTES = 1 << 20
_CHEAP_SCANS = 16
DECODER_BYTES_PER_PIXEL = 12
"""What libjpeg (coefficients and rows of a progressive image) and libwebp (two canvases, the picture) take at most."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

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
# Of each tag that a damaged TIFF gives a wrong length: a line of the log for every two bytes that a stranger sends.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


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
        max_decoded_bytes: What decoding may hold at once. The default takes `max_pixels` of a plain JPEG or an
            opaque PNG; 27 million pixels with alpha, 25 million of a progressive JPEG, 15 million of WebP.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int = Field(default=20 * 1024 * 1024, gt=0)
    max_pixels: int = Field(default=50_000_000, gt=0, le=89_478_485)
    min_side_px: int = Field(default=1, gt=0)
    max_aspect_ratio: float = Field(default=200.0, ge=1)
    max_scans: int = Field(default=100, gt=0)
    max_decoded_bytes: int = Field(default=250_000_000, gt=0)


DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True)
class ImageHead:
    """What an image will cost, told before any pixel is decoded.

    Attributes:
        format: One of `bundle.containers.table.FORMATS`.
        width_px: Before any rotation that the metadata asks for.
        height_px: Before any rotation.
        num_bytes: Of the file.
        num_scans: Times that decoding goes over all pixels; 1 for all but progressive JPEGs.
        is_slow: Of a kind whose pixels do not tell what they cost.
    """

    format: str
    width_px: int
    height_px: int
    num_bytes: int
    num_scans: int = 1
    is_slow: bool = False

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width_px * self.height_px

    @property
    def is_cheap(self) -> bool:
        """Whether decoding it takes tens of milliseconds at most, whatever its bytes are."""
        return (
            not self.is_slow
            and self.pixels <= _CHEAP_PIXELS
            and self.num_bytes <= _CHEAP_BYTES
            and self.pixels * self.num_scans <= _CHEAP_PIXELS * _CHEAP_SCANS
        )


def inspect_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> ImageHead:
    """Return what an image within the limits will cost. This takes milliseconds a megabyte, whatever the bytes are.

    Raises:
        ImageError: No bytes, too many, not an image that is read here, a damaged head, or over the limits.
        OutOfMemoryError: This machine lacks memory for another copy of the file.
    """
    picture = _picture(data, limits)
    return ImageHead(picture.format, picture.width_px, picture.height_px, len(data), picture.num_scans, picture.is_slow)


def decode_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Return the image, upright and RGB, its pixels decoded.

    Raises:
        ImageError: No bytes, too many, not an image that is read here, damaged, or over the limits.
        OutOfMemoryError: This machine lacks memory for its pixels.
    """
    picture = _picture(data, limits)
    what = f"the {picture.format} image of {picture.width_px}x{picture.height_px} pixels"
    with decoding(what, len(data), picture.width_px * picture.height_px):
        return _decoded(picture, limits)


@contextmanager
def decoding(what: str, num_bytes: int, num_pixels: int) -> Iterator[None]:
    """Turn what Pillow's decoders let out of themselves into errors of ours.

    Args:
        what: Is decoded, as the messages say it.
        num_bytes: Of its file.
        num_pixels: Of one picture.

    Raises:
        ImageError: It is damaged.
        OutOfMemoryError: This machine lacks memory for its pixels.
    """
    try:
        yield
    except MemoryError as error:
        raise _no_memory(what) from error
    except _BROKEN_FILE as error:
        if not has_memory(num_pixels * DECODER_BYTES_PER_PIXEL):
            raise _no_memory(what) from error
        raise ImageError(f"{what} is damaged or truncated ({num_bytes} bytes): {error}. Save it again.") from error


def _picture(data: bytes, limits: ImageLimits) -> Picture:
    """Return the picture of a file, within the limits and not decoded."""
    if not data:
        raise ImageError("the image is empty (0 bytes); send the bytes of an image file")
    if len(data) > limits.max_bytes:
        raise ImageError(f"the image file holds {len(data)} bytes; at most {limits.max_bytes} are read. Scale it down.")
    try:
        picture = first_picture(data)
    except MemoryError as error:
        raise _no_memory(f"an image of {len(data)} bytes") from error
    _check_size(picture.width_px, picture.height_px, limits)
    if picture.num_scans > limits.max_scans:
        raise ImageError(
            f"the JPEG goes over its {picture.width_px}x{picture.height_px} pixels in {picture.num_scans} scans; at "
            f"most {limits.max_scans} are decoded. Save it again."
        )
    return picture


def _decoded(picture: Picture, limits: ImageLimits) -> Image.Image:
    image = Image.open(BytesIO(picture.data), formats=(picture.format,))
    if sorted(image.size) != sorted((picture.width_px, picture.height_px)):  # Pillow turns a TIFF when it opens it
        raise ValueError(f"two places give its size, and one says {image.width}x{image.height}")
    if (num_bytes := held_bytes(image, picture.num_scans)) > limits.max_decoded_bytes:
        raise ImageError(
            f"a {picture.format} image of {image.width}x{image.height} pixels in mode {image.mode} takes "
            f"{num_bytes >> 20} MiB to decode; {limits.max_decoded_bytes >> 20} are allowed. Scale it down, or save it "
            "as a plain JPEG."
        )
    image.load()
    upright = to_rgb(image)
    turn = _TURNS.get(picture.orientation)
    return upright if turn is None else upright.transpose(turn)


def _no_memory(what: str) -> OutOfMemoryError:
    return OutOfMemoryError(f"{what} was not decoded: memory ran out. Try again later, or send a smaller one.")


def has_memory(num_bytes: int) -> bool:
    """Return whether so much can be had; decoders call a lack of it a broken file, too."""
    try:
        bytearray(num_bytes)
    except MemoryError:
        return False
    return True


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
