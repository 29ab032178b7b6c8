"""MiniCPM-V 4.6: slices and pixels as transformers', numbers of images, and what is refused."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import pre_tokenizers

from bundle.errors import UnsupportedConfigError
from bundle.image import PREPROCESSOR, ImageSpec, Sliced
from bundle.prompt import Placeholder, PromptBuilder, Turn
from export.architectures import load_family
from export.processor import read_image_spec

PUBLISHED = {"image_processor_type": "MiniCPMV4_6ImageProcessor"}


@pytest.fixture(scope="module")
def reference() -> Any:
    """Transformers' image processor on Pillow, as published."""
    from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

    return MiniCPMV4_6ImageProcessorPil()


@hypothesis_settings(max_examples=150, deadline=None, derandomize=True)
@given(width=st.integers(1, 5000), height=st.integers(1, 5000))
def test_grids_and_sizes_are_transformers(reference: Any, width: int, height: int) -> None:
    geometry = read_image_spec(PUBLISHED, "x").geometry
    assert isinstance(geometry, Sliced)
    found, size = geometry.layout(width, height), (height, width)
    grid = reference.get_sliced_grid(size, 9, 448)
    whole = reference.find_best_resize(size, 448, 14, "16x", allow_upscale=grid is None)
    assert (found.rows, found.cols) == (0, 0) if grid is None else (found.rows, found.cols) == tuple(grid)
    assert found.whole_px == whole
    if grid is not None:
        refined = reference.get_refine_size(size, grid, 448, 14, "16x", allow_upscale=True)
        assert found.tile_px == (refined[0] // grid[0], refined[1] // grid[1])


@pytest.mark.parametrize("size_px", [(70, 37), (33, 190), (300, 260), (129, 64)])
def test_pixels_are_transformers(sample_of: Any, size_px: tuple[int, int]) -> None:
    sample = sample_of("minicpmv4_6", 0)
    rng = np.random.default_rng(size_px)
    image = Image.fromarray(rng.integers(0, 256, (size_px[1], size_px[0], 3), np.uint8))
    spec = ImageSpec.read(sample.bundle().path(PREPROCESSOR))
    seen = sample.processor.image_processor(images=[image], return_tensors="np")
    patches = [
        tile.reshape(3, tile.shape[1] // 4, 4, tile.shape[2] // 4, 4).transpose(0, 2, 1, 3, 4).reshape(3, 4, -1)
        for group in spec.groups(spec.cut(image))
        for tile in group
    ]
    np.testing.assert_array_equal(np.concatenate(patches, axis=-1), seen["pixel_values"][0])


def test_a_patch_takes_the_position_at_its_share_of_a_side() -> None:
    """In whole numbers, where transformers compares shares in float32 with boundaries in float32."""
    import torch
    from transformers.vision_utils import get_vision_nearest_position_ids

    for table in (7, 70):
        for side in range(1, 4 * table):
            rows = get_vision_nearest_position_ids(torch.tensor([[side, 1]]), table).numpy() // table
            np.testing.assert_array_equal(rows, np.arange(side) * table // side, err_msg=f"{side} of {table}")


def test_images_are_numbered_through_a_conversation(sample_of: Any) -> None:
    bundle = sample_of("minicpmv4_6", 0).bundle()
    builder, spec = PromptBuilder.from_bundle(bundle), ImageSpec.read(bundle.path(PREPROCESSOR))
    turns = [
        Turn("user", (Placeholder.IMAGE, "What is it?")),
        Turn("assistant", ("A star.",)),
        Turn("user", ("And ", Placeholder.IMAGE)),
    ]
    built = builder.build(turns, [spec.geometry.layout(64, 64), spec.geometry.layout(200, 90)])
    letters, ids = sorted(pre_tokenizers.ByteLevel.alphabet()), built.token_ids.tolist()
    assert [ids.count(letters.index(number)) for number in "012"] == [1, 1, 0]


def config_of(families: dict[str, ModuleType], part: str | None = None, **settings: Any) -> dict[str, Any]:
    config = copy.deepcopy(families["minicpmv4_6"].config())
    (config if part is None else config[part]).update(settings)
    found: dict[str, Any] = config
    return found


@pytest.mark.parametrize(
    ("part", "settings", "named"),
    [
        (None, {"downsample_mode": "8x"}, "downsample_mode '8x'"),
        (None, {"merger_times": 2}, "merger_times is 2"),
        (None, {"merge_kernel_size": [4, 4]}, "merge_kernel_size"),
        (None, {"insert_layer_id": 3}, "insert_layer_id 3"),
        (None, {"drop_vision_last_layer": True}, "drop_vision_last_layer is True"),
        ("vision_config", {"window_kernel_size": [4, 4]}, "window_kernel_size"),
    ],
)
def test_a_config_that_is_not_built_is_refused_by_its_key(
    families: dict[str, ModuleType], part: str | None, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedConfigError, match=named):
        load_family(config_of(families, part, **settings))


def test_a_processor_that_makes_other_squares_is_refused(families: dict[str, ModuleType]) -> None:
    family = load_family(config_of(families))
    for settings in ({}, {"patch_size": 4, "downsample_mode": "4x"}):
        with pytest.raises(UnsupportedConfigError, match="patch_size and downsample_mode"):
            family.check_images(read_image_spec({**PUBLISHED, **settings}, "x"))
    with pytest.raises(UnsupportedConfigError, match="scale_resolution 450"):
        read_image_spec({**PUBLISHED, "scale_resolution": 450}, "x")
    with pytest.raises(UnsupportedConfigError, match="downsample_mode 'none'"):
        read_image_spec({**PUBLISHED, "downsample_mode": "none"}, "x")


def test_images_within_a_bound_have_fewer_slices_or_none() -> None:
    published = read_image_spec(PUBLISHED, "x").geometry
    assert isinstance(published, Sliced)
    bounded, small = published.within(5 * 448**2), published.within(300**2)
    assert (bounded.tile_px, bounded.most_slices) == (448, 4)
    assert (small.tile_px, small.most_slices) == (280, 1)
    assert small.layout(2000, 2000).rows == 0
    with pytest.raises(ValueError, match="tile_px"):
        published.within(50**2)


def test_sizes_by_letters_are_refused_of_minicpm_ocr() -> None:
    settings = {"image_processor_type": "MiniCPMOcrImageProcessor"}
    assert read_image_spec({**settings, "small_image_upsize": "always"}, "x") == read_image_spec(settings, "x")
    with pytest.raises(UnsupportedConfigError, match="small_image_upsize 'adaptive'"):
        read_image_spec({**settings, "small_image_upsize": "adaptive"}, "x")


def test_minicpm_ocr_has_its_own_defaults() -> None:
    from transformers import MiniCPMOcrConfig

    stated = MiniCPMOcrConfig().to_dict()
    least = {"model_type": "minicpm_ocr", "text_config": stated["text_config"], "vision_config": {}}
    whole, found = load_family(stated), load_family(least)
    assert found._tower == whole._tower  # type: ignore[attr-defined]
    assert found._side == whole._side == 2  # type: ignore[attr-defined]
    assert found.stand_ins() == whole.stand_ins() != {}
