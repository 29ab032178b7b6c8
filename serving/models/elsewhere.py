"""A vision encoder that another process runs: what goes there, and what a model has in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from bundle.directory import Bundle
from bundle.errors import MachineError
from bundle.image import TileLayout
from bundle.manifest import ComponentName
from bundle.question import Asked
from runtime.canary import Ports
from serving.models.cut_image import CutImage

Features = npt.NDArray[Any]


@dataclass(frozen=True)
class SentImage:
    """A decoded image on its way to its encoder: plain arrays, whose bytes are handed over and not pickled.

    Attributes:
        key: As of `DecodedImage`.
        pieces: [h, w, 3] uint8 each: the tiles, or the whole image.
        cut: What is known of them; its own images are left out.
        layout: As of `DecodedImage`.
        with_tower: As of `DecodedImage`.
        side_px: As of `DecodedImage`.
        noise_step: As of `DecodedImage`.
        question: As of `DecodedImage`.
    """

    key: bytes
    pieces: tuple[npt.NDArray[np.uint8], ...]
    cut: CutImage
    layout: TileLayout
    with_tower: bool
    side_px: int | None
    noise_step: int | None = None
    question: Asked | None = None

    @classmethod
    def of(
        cls,
        key: bytes,
        cut: CutImage,
        layout: TileLayout,
        with_tower: bool,
        side_px: int | None,
        noise_step: int | None = None,
        question: Asked | None = None,
    ) -> SentImage:
        """Return an image as it is sent; copies its pixels."""
        pieces = tuple(np.asarray(each) for each in cut.images)
        return cls(key, pieces, _with_images(cut, ()), layout, with_tower, side_px, noise_step, question)

    @property
    def cut_image(self) -> CutImage:
        """The image as it was; copies its pixels."""
        return _with_images(self.cut, tuple(Image.fromarray(piece) for piece in self.pieces))


def _with_images(cut: CutImage, images: tuple[Image.Image, ...]) -> CutImage:
    """Return a cut image with others in the place of its own."""
    return CutImage(cut.digest, cut.width_px, cut.height_px, images, cut.is_cut)


class Elsewhere(Protocol):
    """Whoever encodes images in another process."""

    async def see(self, image: SentImage) -> Features:
        """Return what the encoder makes of an image, as `VisionStage` keeps it; not to be written to."""
        ...


class AbsentEncoder:
    """In the place of an encoder that another process runs: what the manifest knows of it.

    Args:
        bundle: Whose graph it is.
        name: The graph's, in the manifest.
    """

    is_captured = False

    def __init__(self, bundle: Bundle, name: ComponentName) -> None:
        self.path = bundle.graph_path(name)
        self.component = bundle.manifest.components[name]

    @property
    def output(self) -> str:
        """The name of the first output."""
        return self.component.outputs[0].name

    @property
    def graph(self) -> Ports:
        """Nothing: there is no graph here.

        Raises:
            MachineError: Always.
        """
        raise self._absence

    def run(self, feeds: Mapping[str, Any], optional: Sequence[str] = ()) -> dict[str, Any]:
        """Refuse: there is no graph here.

        Raises:
            MachineError: Always.
        """
        raise self._absence

    @property
    def _absence(self) -> MachineError:
        return MachineError(f"{self.path} runs in another process; this one has not loaded it")
