"""FlavaImageProcessor: as CLIP's, stretched to a square; what it tells of hidden patches is no input of an encoder."""

from __future__ import annotations

from export.image_processors.clip import CLIP, single_tile
from export.image_processors.image_processor import ImageProcessor

_OF_MASKS = (
    "return_image_mask",
    "input_size_patches",
    "total_mask_patches",
    "mask_group_min_patches",
    "mask_group_max_patches",
    "mask_group_min_aspect_ratio",
    "mask_group_max_aspect_ratio",
)
_OF_CODEBOOK = (
    "return_codebook_pixels",
    "codebook_do_resize",
    "codebook_size",
    "codebook_resample",
    "codebook_do_center_crop",
    "codebook_crop_size",
    "codebook_do_rescale",
    "codebook_rescale_factor",
    "codebook_do_map_pixels",
    "codebook_do_normalize",
    "codebook_image_mean",
    "codebook_image_std",
)
FLAVA = ImageProcessor(
    {**CLIP.defaults, "size": {"height": 224, "width": 224}, "default_to_square": True},
    single_tile,
    frozenset((*_OF_MASKS, *_OF_CODEBOOK)),
)
