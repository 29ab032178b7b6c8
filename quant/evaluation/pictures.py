"""Images and videos that a file of samples names: by path beside the file, or written into it."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from bundle.decode import decode_image
from bundle.errors import ImageError, QuantizationError
from quant.evaluation.rows import Place

_DATA_URL = "data:"
_BASE64 = ";base64,"
_LEAST_INLINE_CHARACTERS = 512
"""A longer name is no path but base64, as tables hold images."""


@dataclass(frozen=True)
class ImageFile:
    """A file on disk: an image, or a video.

    Attributes:
        path: Of the file.
        where: The line that names it.
    """

    path: Path
    where: Place

    @property
    def name(self) -> str:
        """What it is told by."""
        return str(self.path)

    def data(self) -> bytes:
        """Return what the file holds.

        Raises:
            QuantizationError: It cannot be read.
        """
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise QuantizationError(f"{self.where}: {self.path} cannot be read: {error.strerror}") from error
        except ValueError as error:  # a path with a zero byte in it
            raise QuantizationError(f"{self.where}: {str(self.path)!r} is no path: {error}") from error

    def open(self) -> Image.Image:
        """Return the image, upright and RGB.

        Raises:
            QuantizationError: It cannot be read, or is no image.
        """
        data = self.data()
        try:
            return decode_image(data)
        except ImageError as error:
            raise QuantizationError(f"{self.where}: {self.path}: {error}") from error

    def check(self) -> None:
        """Check that it is there.

        Raises:
            QuantizationError: It is not, or is no file.
        """
        try:
            with self.path.open("rb"):
                return
        except OSError as error:
            raise QuantizationError(f"{self.where}: {self.path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise QuantizationError(f"{self.where}: {str(self.path)!r} is no path: {error}") from error


@dataclass(frozen=True)
class InlineImage:
    """An image in the file of samples itself.

    Attributes:
        content: Its bytes.
        where: The line that holds it.
    """

    content: bytes
    where: Place

    @property
    def name(self) -> str:
        """What it is told by: the same for the same bytes."""
        return f"sha256:{hashlib.sha256(self.content).hexdigest()}"

    def data(self) -> bytes:
        """Return the bytes."""
        return self.content

    def open(self) -> Image.Image:
        """Return the image, upright and RGB.

        Raises:
            QuantizationError: It is no image.
        """
        try:
            return decode_image(self.content)
        except ImageError as error:
            raise QuantizationError(f"{self.where}: the image in it: {error}") from error

    def check(self) -> None:
        """Check nothing: it is here."""


Picture = ImageFile | InlineImage


def picture_of(name: object, folder: Path, where: Place) -> Picture:
    """Return the image that a row names.

    Args:
        name: A path relative to the folder, a data URL, or a long text in base64.
        folder: Of relative paths.
        where: The row.

    Raises:
        QuantizationError: It is no name of an image, or none that can be read.
    """
    if not isinstance(name, str) or not name:
        raise QuantizationError(f"{where}: image is {name!r}, not a path or a list of paths")
    if name.startswith(_DATA_URL):
        _, found, content = name.partition(_BASE64)
        if not found:
            raise QuantizationError(f"{where}: the data URL {name[:40]!r} is not in base64; write data:...;base64,...")
        return InlineImage(_decoded(content, where), where)
    if len(name) >= _LEAST_INLINE_CHARACTERS:
        return InlineImage(_decoded(name, where), where)
    file = ImageFile(folder / name, where)
    file.check()
    return file


def _decoded(content: str, where: Place) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise QuantizationError(f"{where}: the image in it is no base64: {error}") from error
