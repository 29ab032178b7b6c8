"""LLaVA-NeXT configs that ask for what is not built are refused by name."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from bundle.errors import UnsupportedConfigError
from export.architectures import load_family
from export.family import Family
from export.image_processor import read_image_spec

PROCESSOR = {
    "image_processor_type": "LlavaNextImageProcessor",
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
    "image_grid_pinpoints": [[32, 64], [64, 64]],
}


def _family(checkpoints: ModuleType, tower: str = "clip", **top: Any) -> Family:
    named = {"model_type": "llava_next", "image_grid_pinpoints": [[32, 64], [64, 64]]}
    return load_family({**checkpoints.llava_config(tower), **named, **top})


@pytest.mark.parametrize(("tower", "strategy"), [("clip", "full"), ("siglip", "default")])
def test_features_that_are_no_picture_are_refused(checkpoints: ModuleType, tower: str, strategy: str) -> None:
    with pytest.raises(UnsupportedConfigError, match=f"vision_feature_select_strategy '{strategy}'.*all patches"):
        _family(checkpoints, tower, vision_feature_select_strategy=strategy)


def test_other_grids_in_the_config_than_in_the_processor_are_refused(checkpoints: ModuleType) -> None:
    spec = read_image_spec(PROCESSOR, "test")
    _family(checkpoints).check_images(spec)
    with pytest.raises(UnsupportedConfigError, match=r"image_grid_pinpoints \[\[64, 64\]\] differ"):
        _family(checkpoints, image_grid_pinpoints=[[64, 64]]).check_images(spec)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"image_grid_pinpoints": [[32, 48]]}, "32 x 48.*tiles of 32"),
        ({"image_grid_pinpoints": [[32]]}, "image_grid_pinpoints = .*pairs"),
        ({"image_grid_pinpoints": 32}, "image_grid_pinpoints = 32"),
        ({"crop_size": {"height": 16, "width": 16}}, "size .*32.* with crop_size .*16"),
        ({"crop_size": {"height": 16, "width": 16}, "do_center_crop": False}, "crop_size"),
        ({"size": {"height": 32, "width": 48}}, "size .*48"),
    ],
)
def test_tiles_that_are_scaled_cropped_or_cut_through_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedConfigError, match=named):
        read_image_spec({**PROCESSOR, **settings}, "test")
