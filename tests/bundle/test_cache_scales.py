from pathlib import Path

import numpy as np
import pytest

from bundle.cache_scales import CACHE_SCALES, load_cache_scales, save_cache_scales
from bundle.errors import BundleFileError
from bundle.states import State

FLOATS = State(input="k", output="k2", dtype="float32", shape=("B", 2, "S", 4), group=0)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_scales_are_read_back_as_they_were_written(tmp_path: Path, scheme) -> None:
    state = FLOATS.coded(scheme)
    scales = np.arange(1, 9, dtype=np.float32).reshape(state.scale_shape)
    save_cache_scales(tmp_path, {"k": scales})
    np.testing.assert_array_equal(load_cache_scales(tmp_path / CACHE_SCALES, [state])["k"], scales)


@pytest.mark.parametrize(
    ("scales", "told"),
    [
        ({}, "no scales of k"),
        ({"k": np.ones((2, 5), np.float32)}, r"float32 \[2, 5\], not float32 \[2, 4\]"),
        ({"k": np.ones((2, 4), np.float64)}, r"float64 \[2, 4\], not float32"),
        ({"k": np.zeros((2, 4), np.float32)}, "no positive numbers"),
        ({"k": np.full((2, 4), np.nan, np.float32)}, "no positive numbers"),
        ({"k": np.ones((1 << 24, 2), np.float32)}, "at most"),
    ],
)
def test_a_file_that_holds_no_scales_of_the_cache_is_refused(tmp_path: Path, scales, told) -> None:
    save_cache_scales(tmp_path, scales)
    with pytest.raises(BundleFileError, match=f"{CACHE_SCALES} is missing or damaged.*{told}.*Quantize"):
        load_cache_scales(tmp_path / CACHE_SCALES, [FLOATS.coded("int8")])


def test_a_lost_file_of_scales_is_told(tmp_path: Path) -> None:
    with pytest.raises(BundleFileError, match="is missing or damaged"):
        load_cache_scales(tmp_path / CACHE_SCALES, [FLOATS.coded("int8")])
