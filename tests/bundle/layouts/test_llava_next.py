"""Lines of all tiles without their padding: as many and the same rows as transformers' processor and model take."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from bundle.image import Pinpoints, TileLayout
from bundle.layouts.llava_next import LlavaNextPrompt

SIDE, TILE_PX, SIZE = 3, 12, 5
GRIDS = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 6), (6, 1), (4, 4))
PINPOINTS = [[rows * TILE_PX, cols * TILE_PX] for rows, cols in GRIDS]


def _prompt(most_tiles: int | None) -> LlavaNextPrompt:
    return LlavaNextPrompt(image_token="<i>", image_token_id=1, tokens_per_tile=SIDE**2, most_tiles=most_tiles)


def _features(num_tiles: int) -> np.ndarray:
    rng = np.random.default_rng(num_tiles)
    features = rng.standard_normal((num_tiles, SIDE**2 + 1, SIZE), np.float32)
    features[:, -1] = features[0, -1]
    return features


def _counted(family: str, kind: str, most_tiles: int | None, height_px: int, width_px: int) -> int:
    """Return how many tokens transformers' processor counts."""
    processor = getattr(importlib.import_module(f"transformers.models.{family}.processing_{family}"), kind)
    told = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=PINPOINTS),
        patch_size=TILE_PX // SIDE,
        num_additional_image_tokens=0,
        num_image_tokens=SIDE**2,
        vision_aspect_ratio=f"anyres_max_{most_tiles}",
    )
    told._get_unpadded_features = lambda *sizes: processor._get_unpadded_features(told, *sizes)
    found: int = processor._get_number_of_features(told, height_px, width_px, TILE_PX, TILE_PX)
    return found


def _packed(family: str, model: str, features: np.ndarray, height_px: int, width_px: int, **options: Any) -> np.ndarray:
    """Return what transformers' model makes of one image's features."""
    import torch

    kind = getattr(importlib.import_module(f"transformers.models.{family}.modeling_{family}"), model)
    vision = SimpleNamespace(image_size=TILE_PX, patch_size=TILE_PX // SIDE)
    config = SimpleNamespace(config=SimpleNamespace(vision_config=vision, image_grid_pinpoints=PINPOINTS))
    whole_first = torch.from_numpy(np.concatenate([features[-1:, :-1], features[:-1, :-1]]))
    newline = torch.from_numpy(features[0, -1])
    sizes = [(height_px, width_px)]
    ((found,), _) = kind.pack_image_features(config, [whole_first], sizes, image_newline=newline, **options)
    packed: np.ndarray = found.numpy()
    return packed


@settings(max_examples=60, deadline=None)
@given(width=st.integers(2, 99), height=st.integers(2, 99))
@example(width=96, height=2)
@example(width=500, height=2)
@example(width=50, height=40)
@pytest.mark.parametrize("most_tiles", [None, 2, 9])
def test_tokens_and_their_rows_are_the_reference_s(most_tiles: int | None, width: int, height: int) -> None:
    prompt, layout = _prompt(most_tiles), Pinpoints(tile_px=TILE_PX, grids=GRIDS).layout(width, height)
    features = _features(layout.num_tiles)
    if most_tiles is None:
        counted = _counted("llava_next", "LlavaNextProcessor", None, height, width)
        options: dict[str, Any] = {"vision_feature_select_strategy": "full"}
        expected = _packed("llava_next", "LlavaNextModel", features, height, width, **options)
    else:
        counted = _counted("llava_onevision", "LlavaOnevisionProcessor", most_tiles, height, width)
        options = {"vision_aspect_ratio": f"anyres_max_{most_tiles}"}
        expected = _packed("llava_onevision", "LlavaOnevisionModel", features, height, width, **options)
    assert prompt.num_tokens(layout) == counted
    assert prompt.text(layout) == "<i>" * counted
    assert_allclose(prompt.arranged(features, layout), expected, atol=1e-5)


def test_an_image_of_one_tile_ends_in_a_line_end_and_a_frame_does_not() -> None:
    prompt, features = _prompt(9), _features(1)
    alone, frame = TileLayout(image_px=(30, 20)), TileLayout()
    assert prompt.num_tokens(alone) == SIDE**2 + 1
    assert_allclose(prompt.arranged(features, alone), features[0])
    assert prompt.num_tokens(frame) == SIDE**2
    assert_allclose(prompt.arranged(features, frame), features[:, :-1])


def test_features_keep_their_type_when_they_are_scaled() -> None:
    layout = Pinpoints(tile_px=TILE_PX, grids=GRIDS).layout(90, 90)
    features = _features(layout.num_tiles).astype(np.float16)
    prompt = _prompt(2)
    found = prompt.arranged(features, layout)
    assert found.dtype == np.float16
    assert found.shape == (prompt.num_tokens(layout), SIZE)


@pytest.mark.parametrize("side", [3, 4])
def test_a_halved_frame_is_what_the_reference_pools(side: int) -> None:
    import torch
    from transformers import LlavaOnevisionModel

    prompt = LlavaNextPrompt(image_token="<i>", image_token_id=1, tokens_per_tile=side**2, halves_frames=True)
    features = np.random.default_rng(side).standard_normal((2, side**2 + 1, SIZE), np.float32)
    vision = SimpleNamespace(image_size=side, patch_size=1)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    expected = LlavaOnevisionModel.apply_pooling(model, torch.from_numpy(features[:, :-1])).numpy()
    found = prompt.arranged(features, TileLayout())
    assert found.shape[1] == prompt.tokens_per_frame
    assert_allclose(found, expected, atol=1e-6)
