"""LlavaImageProcessor: CLIP's, and where it pads, a scaled square of the mean colour (LLaVA-1.5, Bunny, Mipha)."""

from __future__ import annotations

from bundle.errors import UnsupportedConfigError
from bundle.image import Cropped, Fixed, Padded
from export.image_processors.clip import CLIP, single_tile
from export.image_processors.image_processor import ImageProcessor, Settings, background, edge_of


def _one_tile(full: Settings, source: str) -> Cropped | Fixed | Padded:
    if not full["do_pad"]:
        return single_tile(full, source)
    edge, crop = edge_of(full["size"]), full["crop_size"] if full["do_center_crop"] else full["size"]
    if edge is None or edge_of(crop) != edge:
        raise UnsupportedConfigError(
            f"{source}: size {full['size']} with crop_size {full['crop_size']} and do_pad; built are squares that are "
            "not cropped"
        )
    return Padded(side_px=edge, colour=background(full, source), scales_first=False)


LLAVA = ImageProcessor(CLIP.defaults, _one_tile)
