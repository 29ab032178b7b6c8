"""LFM2-VL's ways with images, against transformers' own; and what a config or a processor must not say."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bundle.errors import UnsupportedConfigError
from bundle.image import PREPROCESSOR, Area, ImageSpec, SplitArea
from export.architectures import load_family
from export.image_processor import read_image_spec

SIZES = st.integers(1, 2000)


def decided(processor: Any, width_px: int, height_px: int) -> tuple[int, int, tuple[int, int]]:
    """Return rows, columns and the size (height, width) of the whole, as transformers' processor decides."""
    area = {name: getattr(processor, name) for name in ("max_image_tokens", "encoder_patch_size", "downsample_factor")}
    width, height = processor.smart_resize(height_px, width_px, min_image_tokens=processor.min_image_tokens, **area)
    if not processor._is_image_too_large(
        height_px, width_px, max_pixels_tolerance=processor.max_pixels_tolerance, **area
    ):
        return 0, 0, (height, width)
    tiles = (processor.min_tiles, processor.max_tiles, processor.tile_size)
    cols, rows, *_ = processor._get_grid_layout(height_px, width_px, *tiles)
    return rows, cols, (height, width)


@pytest.fixture(scope="module", params=[0, 1])
def ways(request: pytest.FixtureRequest, sample_of: Any) -> tuple[ImageSpec, Any]:
    """The bundle's preprocessing, and the processor that it was read from."""
    sample = sample_of("lfm2_vl", request.param)
    return ImageSpec.read(sample.bundle().path(PREPROCESSOR)), sample.processor.image_processor


@hypothesis_settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(width_px=SIZES, height_px=SIZES)
def test_an_image_of_any_size_is_cut_as_the_processor_cuts_it(
    ways: tuple[ImageSpec, Any], width_px: int, height_px: int
) -> None:
    spec, processor = ways
    layout = spec.layout(width_px, height_px)
    assert (layout.rows, layout.cols, layout.whole_px) == decided(processor, width_px, height_px)


def test_pixels_are_the_processors_in_another_order(sample_of: Any, conversations: dict[str, Any]) -> None:
    sample = sample_of("lfm2_vl", 0)
    _, tall, _, large, _ = conversations["two images"]
    spec = ImageSpec.read(sample.bundle().path(PREPROCESSOR))
    found = sample.processor.image_processor([tall, large], return_tensors="pt")
    tiles = [tile for group in spec.preprocess([tall, large]).groups for tile in group]
    assert len(tiles) == len(found["pixel_values"])
    for tile, patches, (rows, cols) in zip(tiles, found["pixel_values"], found["spatial_shapes"].tolist(), strict=True):
        squares = tile.reshape(3, rows, 4, cols, 4).transpose(1, 3, 2, 4, 0).reshape(rows * cols, -1)
        np.testing.assert_array_equal(squares, patches[: rows * cols].numpy())


def config_of(families: dict[str, ModuleType], part: str | None = None, **settings: Any) -> dict[str, Any]:
    config = copy.deepcopy(families["lfm2_vl"].config())
    (config if part is None else config[part]).update(settings)
    found: dict[str, Any] = config
    return found


@pytest.mark.parametrize(
    ("part", "settings", "named"),
    [
        ("text_config", {"layer_types": ["conv"] * 4}, r"layer_types.*full_attention of one at least"),
        ("text_config", {"layer_types": ["conv", "mamba", "full_attention", "conv"]}, "'mamba'"),
        ("text_config", {"layer_types": ["full_attention"]}, "each of the 4 layers"),
        ("text_config", {"conv_L_cache": 1}, "conv_L_cache 1"),
        ("vision_config", {"num_patches": 250}, "num_patches 250"),
        ("vision_config", {"model_type": "siglip_vision_model"}, "model_type is 'siglip_vision_model'"),
    ],
)
def test_a_config_that_is_not_built_is_refused_by_its_key(
    families: dict[str, ModuleType], part: str, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedConfigError, match=named):
        _ = load_family(config_of(families, part, **settings)).vocab_size


@pytest.mark.parametrize(
    "text",
    [{"layer_types": None, "full_attn_idxs": [2]}, {"layer_types": ["conv", "conv", "full_attention", "conv"]}],
)
def test_layers_with_attention_are_listed_by_number_or_by_kind(
    families: dict[str, ModuleType], text: dict[str, Any]
) -> None:
    family: Any = load_family(config_of(families, "text_config", **text))
    assert family.decoder.layers_with_rows == (2,)
    assert [state.kind for state in family.decoder.states] == ["fixed", "fixed", "rows", "rows", "fixed"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_thumbnail": False}, "use_thumbnail is false"),
        ({"min_tiles": 1}, "min_tiles 1"),
        ({"min_tiles": 11}, "from 11 to 10 tiles"),
        ({"tile_size": 500}, "tiles of 500 px"),
        ({"min_image_tokens": 300}, "areas from 307200 to 262144"),
        ({"crop_to_patches": True}, "crop_to_patches"),
    ],
)
def test_a_processor_that_is_not_built_is_refused_by_its_setting(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedConfigError, match=named):
        read_image_spec({"image_processor_type": "Lfm2VlImageProcessor", **settings}, "processor_config.json")


def test_a_processor_that_makes_other_squares_is_refused(families: dict[str, ModuleType]) -> None:
    family = load_family(config_of(families))
    others = {"image_processor_type": "Lfm2VlImageProcessor", "encoder_patch_size": 8, "downsample_factor": 1}
    for spec in (
        read_image_spec({**others, "tile_size": 32}, "x"),
        ImageSpec(
            geometry=Area(step_px=8, least_px=64, most_px=6400),
            resample="bilinear",
            rescale_factor=1.0,
            mean=(0, 0, 0),
            std=(1, 1, 1),
        ),
    ):
        with pytest.raises(UnsupportedConfigError, match="encoder_patch_size and downsample_factor"):
            family.check_images(spec)


def test_images_within_a_bound_are_shrunk_and_cut_into_fewer_tiles_or_none() -> None:
    published = read_image_spec({"image_processor_type": "Lfm2VlImageProcessor"}, "x").geometry
    assert isinstance(published, SplitArea)
    bounded = published.within(4 * 512**2)
    assert (bounded.most_tiles, bounded.most_px) == (4, 512**2)
    uncut = published.within(400**2)
    assert uncut.most_tiles == 1
    layout = uncut.layout(2000, 1500)
    assert layout.rows == 0
    assert layout.whole_px is not None
    assert layout.whole_px[0] * layout.whole_px[1] <= 400**2
