"""The first picture of an image file, cut out of everything else that the file holds."""

from __future__ import annotations

from dataclasses import dataclass

from bundle.errors import ImageError

MOST_PIECES = 1 << 16
"""Chunks, segments or blocks of one file. Decoders written in Python take microseconds for each: 20 MB of empty PNG
chunks took minutes. A PNG of 20 MiB in libpng's pieces of 8 KiB has 2,560; a GIF's 255 bytes make 82,000 (`gif`)."""


@dataclass(frozen=True)
class Picture:
    """A picture that was not decoded.

    Attributes:
        format: Pillow's name of its format.
        width_px: Before `orientation` is applied.
        height_px: Before `orientation` is applied.
        data: A file of this picture alone: no metadata, no colour profile, no further frames.
        orientation: How it is to be turned, 1 to 8 (EXIF 2.32, 4.6.4); 1 where a decoder turns it itself.
        num_scans: Times that decoding goes over all pixels; 1 for all but progressive JPEGs.
        is_slow: Decoded piece by piece in Python, or by rules that allow more work than its pixels tell.
    """

    format: str
    width_px: int
    height_px: int
    data: bytes
    orientation: int = 1
    num_scans: int = 1
    is_slow: bool = False


def check_pieces(num_pieces: int, what: str, most: int = MOST_PIECES) -> None:
    """Check that a file is not cut into more pieces than any writer makes.

    Raises:
        ImageError: It is.
    """
    if num_pieces > most:
        raise ImageError(f"the image file consists of more than {most} {what}; save it again.")


def damaged(form: str, data: bytes, problem: str) -> ImageError:
    """Return the error of a file in which no picture is found."""
    return ImageError(f"the {form} image's header is damaged ({len(data)} bytes): {problem}. Save it again.")
