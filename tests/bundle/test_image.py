"""The preprocessing specification: what is stored, what is promised of layouts."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from bundle.errors import BundleFileError
from bundle.image import PREPROCESSOR, Cropped, Fixed, Geometry, ImageSpec, Tiled, TileLayout


def _spec(geometry: Geometry) -> ImageSpec:
    return ImageSpec(
        geometry=geometry, resample="bicubic", rescale_factor=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2)
    )


SPECS = {
    "fixed": _spec(Fixed(height_px=20, width_px=30)),
    "cropped": _spec(Cropped(shortest_edge_px=24, height_px=20, width_px=30)),
    "tiled": _spec(Tiled(longest_edge_px=64, tile_px=16, splits=True)),
    "whole": _spec(Tiled(longest_edge_px=64, tile_px=16, splits=False)),
}


@pytest.mark.parametrize("name", SPECS)
def test_specification_survives_its_file(name: str) -> None:
    assert ImageSpec.model_validate_json(SPECS[name].model_dump_json()) == SPECS[name]


def test_specification_survives_pickling_after_use() -> None:
    SPECS["fixed"].preprocess([Image.new("RGB", (3, 4))])
    assert pickle.loads(pickle.dumps(SPECS["fixed"])) == SPECS["fixed"]


def test_unknown_setting_in_the_file_is_refused() -> None:
    with pytest.raises(ValidationError, match="flips"):
        ImageSpec.model_validate({**SPECS["fixed"].model_dump(), "flips": True})


@pytest.mark.parametrize("name", SPECS)
@given(width=st.integers(1, 400), height=st.integers(1, 400))
def test_layout_promises_the_tiles_that_preprocessing_makes(name: str, width: int, height: int) -> None:
    spec = SPECS[name]
    found = spec.preprocess([Image.new("RGB", (width, height))])
    assert found.layouts == (spec.layout(width, height),)
    assert found.pixel_values.shape == (spec.layout(width, height).num_tiles, 3, *spec.tile_size_px)


@given(width=st.integers(1, 100_000), height=st.integers(1, 100_000))
def test_tiles_never_exceed_the_grid_of_the_longest_edge(width: int, height: int) -> None:
    layout = SPECS["tiled"].layout(width, height)
    assert 0 <= layout.rows <= 4
    assert 0 <= layout.cols <= 4
    assert max(layout.rows, layout.cols) == 4


def test_longest_edge_over_4096_is_bounded() -> None:
    huge = _spec(Tiled(longest_edge_px=10_000, tile_px=512, splits=True))
    assert huge.layout(1000, 500) == TileLayout(rows=4, cols=8)


def test_no_images_make_no_rows() -> None:
    found = SPECS["tiled"].preprocess([])
    assert found.pixel_values.shape == (0, 3, 16, 16)
    assert found.layouts == ()


def test_normalisation_is_the_stated_affine() -> None:
    """Within 1e-6: float32 rounding of values up to 3.5."""
    found = SPECS["fixed"].preprocess([Image.new("RGB", (7, 7), (255, 51, 0))]).pixel_values
    expected = [(1 - 0.5) / 0.5, (0.2 - 0.4) / 0.25, (0 - 0.3) / 0.2]
    np.testing.assert_allclose(found[0].mean(axis=(1, 2)), expected, atol=1e-6)


def test_other_modes_are_converted_to_rgb() -> None:
    gray = Image.linear_gradient("L")
    np.testing.assert_array_equal(
        SPECS["fixed"].preprocess([gray]).pixel_values, SPECS["fixed"].preprocess([gray.convert("RGB")]).pixel_values
    )


@pytest.mark.parametrize("content", [None, b"{", b'{"geometry": {"kind": "spiral"}}'])
def test_a_preprocessing_file_that_cannot_be_read_is_the_bundle_s_fault(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "preprocessor.json").write_bytes(content)
    with pytest.raises(BundleFileError, match=r"preprocessor\.json is missing or damaged"):
        ImageSpec.read(tmp_path / PREPROCESSOR)


def test_the_preprocessing_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "preprocessor.json").write_text(SPECS["tiled"].model_dump_json())
    assert ImageSpec.read(tmp_path / PREPROCESSOR) == SPECS["tiled"]
