"""What the engines of a bundle were built for, held against what a server is about to ask of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bundle.directory import Bundle
from bundle.errors import ImageError
from bundle.image import TileLayout
from runtime.limits import ImageSizes
from runtime.settings import RuntimeSettings
from runtime.tensorrt.opening import folder_of


@dataclass(frozen=True)
class EngineBounds:
    """The largest runs of a folder of engines.

    Attributes:
        folder: Where they lie.
        cache_rows: S, of every sequence: exactly this.
        max_batch: Sequences or texts in one run; None where an older folder does not say.
        max_prompt_tokens: Of a prompt in one run; None as well.
        max_images: Images or tiles in one run; None as well.
        image_sizes_px: The least, usual and largest (height, width) of an image; None as well.
    """

    folder: Path
    cache_rows: int
    max_batch: int | None
    max_prompt_tokens: int | None
    max_images: int | None
    image_sizes_px: ImageSizes | None = None

    def check_image(self, layout: TileLayout) -> None:
        """Check that an image becomes no larger than the engines take: others would fail with it in one run.

        Raises:
            ImageError: It does.
        """
        if self.image_sizes_px is None or layout.whole_px is None:
            return
        (height, width), most = layout.whole_px, self.image_sizes_px[2]
        if height > most[0] or width > most[1]:
            raise ImageError(
                f"the image becomes {width} x {height} pixels, and this model's engine takes {most[1]} x {most[0]}. "
                "Crop it, or let the model be compiled with a larger --max-image-side"
            )

    def __str__(self) -> str:
        """Return it as a log line tells it."""
        told = {
            "sequences at once": self.max_batch,
            "tokens of a prompt in one run": self.max_prompt_tokens,
            "images in one run": self.max_images,
        }
        known = "".join(f", {number:,} {what}" for what, number in told.items() if number is not None)
        return f"engines of {self.folder}: {self.cache_rows:,} tokens a sequence{known}"


def try_bounds(bundle: Bundle, settings: RuntimeSettings) -> EngineBounds | None:
    """Return the bounds of the engines that settings name for a bundle; None where they name none.

    Raises:
        BundleFileError: A folder is named that holds no engines.
    """
    found = folder_of(bundle, settings)
    if found is None:
        return None
    folder, index = found
    sizes = index.image_sizes_px
    return EngineBounds(folder, index.cache_rows, index.max_batch, index.max_prompt_tokens, index.max_images, sizes)
