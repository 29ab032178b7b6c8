"""TextHawk beyond what every family is held to: where tiles lie, the order of their lines, and what is refused."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle.errors import UnsupportedConfigError
from bundle.image import PREPROCESSOR, GridCanvas, ImageSpec, NearestGrid
from bundle.layouts.texthawk import TextHawkPrompt
from export.architectures import load_family
from runtime.encoder import open_encoder
from runtime.encoders import encode_images
from runtime.settings import RuntimeSettings

SETTINGS = RuntimeSettings(intra_threads=1)


def picture(width_px: int, height_px: int) -> Image.Image:
    pixels = np.random.default_rng(width_px).integers(0, 256, (height_px, width_px, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("size", "grid"), [((300, 100), (1, 3)), ((33, 32), (1, 1)), ((210, 315), (3, 2))])
def test_a_canvas_is_the_grid_of_internvl_in_one_piece_behind_the_whole(
    size: tuple[int, int], grid: tuple[int, int]
) -> None:
    canvas = GridCanvas(tile_px=32, least_tiles=1, most_tiles=6)
    image, (rows, cols) = picture(*size), grid
    *whole, found = (np.asarray(tile) for tile in canvas.tiles(image, Image.Resampling.BICUBIC))
    assert found.shape == (rows * 32, cols * 32, 3)
    assert canvas.layout(*size).whole_px == found.shape[:2]
    assert canvas.layout(*size).num_tiles == 1 + len(whole)
    tiles = NearestGrid(height_px=32, width_px=32, least_tiles=1, most_tiles=6).tiles(image, Image.Resampling.BICUBIC)
    *cut, last = (np.asarray(tile) for tile in tiles)
    assert len(whole) == (rows * cols > 1)
    assert all((each == last).all() for each in whole)
    for place, tile in enumerate(cut):
        row, col = divmod(place, cols)
        assert (found[row * 32 :, col * 32 :][:32, :32] == tile).all()


def test_tokens_are_a_sixteenth_of_the_patches_at_the_papers_sizes(families: dict[str, ModuleType]) -> None:
    """A tile of 224 pixels in patches of 14 has 256 patches and 16 tokens: one of 448 x 224 has 32 (2410.05261)."""
    config = copy.deepcopy(families["texthawk"].geometries()["four-depths-qwen2"])
    config["vision_config"] |= {"image_size": 224, "patch_size": 14}
    config["resampler_config"] |= {"query_stride": 2, "window": 4}
    family = load_family(config)
    per_tile = family._resampler.tokens_per_tile(family._vision.grid)
    prompt = TextHawkPrompt(image_token="<image>", image_token_id=260, tokens_per_tile=per_tile, tile_px=224)
    assert per_tile == 16
    layout = GridCanvas(tile_px=224, least_tiles=1, most_tiles=36).layout(448, 224)
    assert layout.whole_px == (224, 448)
    assert prompt.num_tokens(layout) == 32 + 16


def test_equal_tiles_of_a_canvas_differ_by_where_they_lie(sample_of: Any) -> None:
    bundle = sample_of("texthawk", 0).bundle()
    encoder = open_encoder(bundle, "vision_encoder", SETTINGS)
    spec = ImageSpec.read(bundle.path(PREPROCESSOR))
    tile = spec.pixels([picture(32, 32)])
    canvas = np.tile(tile, (1, 1, 1, 3))
    (alone,), (three,) = (encode_images(encoder, [[each]], 4) for each in (tile, canvas))
    lines = three.reshape(2, 3, 1, -1)  # two lines of each tile, a token each, side by side
    differences = [np.abs(lines[:, left] - lines[:, right]).max() for left, right in ((0, 1), (1, 2))]
    assert min(differences) > 1e-2
    assert np.abs(lines[:, 0, 0] - alone[0]).max() > 1e-2


@pytest.mark.parametrize(
    ("part", "key", "value", "told"),
    [
        ("vision_config", "model_type", "clip_vision_model", "TextHawk reads all patches of a SigLIP tower"),
        ("", "vision_feature_select_strategy", "default", "siglip_vision_model with 'full'"),
        ("", "detection_head", {"layers": 2}, "detection_head is"),
        ("", "mm_projector_type", "linear", "mm_projector_type is 'linear'"),
        ("resampler_config", "window", None, "resampler_config lacks window"),
        ("resampler_config", "query_stride", 3, "do not divide a tile's 4 patches a side"),
        ("resampler_config", "window", 4, "and the queries of a line"),
        ("resampler_config", "hidden_size", 25, "no multiple of 4 heads"),
        ("", "vision_feature_layer", [-9], "the tower has hidden states"),
    ],
)
def test_what_is_not_built_is_refused_by_name(
    families: dict[str, ModuleType], part: str, key: str, value: Any, told: str
) -> None:
    config = copy.deepcopy(families["texthawk"].geometries()["four-depths-qwen2"])
    place = config[part] if part else config
    place.pop(key) if value is None else place.update({key: value})
    with pytest.raises(UnsupportedConfigError, match=told):
        load_family(config)
