"""LLaVA-NeXT, also called 1.6: LLaVA that sees an image in tiles of any of several grids, and each line's end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec, Pinpoints
from bundle.layouts.llava_next import LlavaNextPrompt
from bundle.manifest import TensorSpec
from export.config import Raw
from export.connectors.line_end import LineEnd
from export.found_processor import FoundProcessor
from export.image_processors.llava_next import PINPOINTS, grids_of
from export.models.llava import Llava
from export.nn.dialect import Dialect
from export.nn.module import Module

_LINE_END = "model.image_newline"


class LlavaNext(Llava):
    """`model_type` llava_next.

    Class attributes:
        pinpoints: Transformers' default of `image_grid_pinpoints`, (height, width) in pixels.
        halves_frames: A frame of a video has half as many tokens a side as an image.
    """

    image_processor = "LlavaNextImageProcessor"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (*Llava.renames, (r"^image_newline$", _LINE_END))
    pinpoints: ClassVar[Sequence[Sequence[int]]] = PINPOINTS
    halves_frames: ClassVar[bool] = False

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self.require_patches("lines of a picture are made of all patches and no class token")

    def check_images(self, spec: ImageSpec) -> None:
        """Check that images are cut into the grids of which the model makes lines.

        Raises:
            UnsupportedConfigError: Tiles of another size, or other grids.
        """
        super().check_images(spec)
        stated = self.config.get("image_grid_pinpoints") or self.pinpoints
        grids = grids_of(stated, self.image_size_px, "config.json")
        if not isinstance(spec.geometry, Pinpoints) or spec.geometry.grids != grids:
            raise UnsupportedConfigError(
                f"config.json: image_grid_pinpoints {stated} differ from those of the image processor: "
                f"{spec.geometry}. Correct the one that the model was not trained with."
            )

    @property
    def rows_per_tile(self) -> int:
        """A tile's patches, and the row that ends a line."""
        return self.tokens_per_tile + 1

    def vision(self, dialect: Dialect) -> Module:
        """Return tower, choice of hidden states and connector, and the row that ends a line behind each tile."""
        return LineEnd(super().vision(dialect), self.decoder.config.hidden_size, name=_LINE_END)

    @property
    def tells_tower(self) -> bool:
        """False: tokens are not those of the tower's patches."""
        return False

    def tower_outputs(self) -> Sequence[TensorSpec]:
        """Return nothing."""
        return ()

    def image_prompt(self, found: FoundProcessor) -> LlavaNextPrompt:
        """Return the whole image, and lines of all tiles.

        Raises:
            UnsupportedConfigError: The processor counts other tokens, or the token is not in the vocabulary.
        """
        plain = super().image_prompt(found)
        return LlavaNextPrompt(
            image_token=plain.image_token,
            image_token_id=plain.image_token_id,
            tokens_per_tile=plain.tokens_per_tile,
            most_tiles=self.most_tiles(found),
            halves_frames=self.halves_frames,
        )

    def most_tiles(self, found: FoundProcessor) -> int | None:
        """Return of how many tiles' patches a picture has at most, None where there is no bound."""
        return None
