"""A cache beyond a device's memory is refused before anything is built, with the one that would fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundle.directory import read_manifest
from bundle.errors import SettingsError
from runtime.cache_shape import cache_shape
from runtime.room import budget_of
from runtime.tensorrt.fitting import check_fit
from runtime.tensorrt.profiles import Limits


def test_the_rows_that_are_named_fit_and_one_more_does_not(smolvlm_bundle: Path) -> None:
    manifest = read_manifest(smolvlm_bundle)
    fixed = budget_of(manifest, None, "cuda").total_bytes
    memory = fixed + cache_shape(manifest, 3, 100).total_bytes
    check_fit(manifest, Limits(100, 3, 16, 1), memory)
    with pytest.raises(SettingsError, match=r"With --max-batch 3, --cache-rows 100 fit"):
        check_fit(manifest, Limits(101, 3, 16, 1), memory)
    with pytest.raises(SettingsError, match="Without any cache"):
        check_fit(manifest, Limits(16, 1, 16, 1), fixed)
