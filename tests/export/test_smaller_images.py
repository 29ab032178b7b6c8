"""A vision encoder that takes smaller tiles gives of each size what transformers' model gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bundle import tensors
from bundle.directory import open_bundle
from bundle.errors import UnsupportedConfigError
from export.exporter import export_checkpoint
from runtime.encoder import open_encoder
from runtime.settings import RuntimeSettings


def test_features_of_every_size_are_transformers(smolvlm_checkpoint: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    export_checkpoint(smolvlm_checkpoint, tmp_path / "bundle", smaller_images=True)
    bundle = open_bundle(tmp_path / "bundle")
    encoder = open_encoder(bundle, "vision_encoder", RuntimeSettings(intra_threads=1))
    reference = AutoModelForImageTextToText.from_pretrained(smolvlm_checkpoint, dtype=torch.float32).eval().model
    vision = reference.config.vision_config
    unit = vision.patch_size * reference.config.scale_factor
    for side in range(1, vision.image_size // unit + 1):
        pixels = np.random.default_rng(side).normal(size=(2, 3, side * unit, side * unit)).astype(np.float32)
        grid = side * reference.config.scale_factor
        with torch.no_grad():
            mask = torch.ones(2, grid, grid, dtype=torch.bool)
            patches = reference.vision_model(torch.from_numpy(pixels), patch_attention_mask=mask).last_hidden_state
            expected = reference.connector(patches).numpy()
        found = encoder.run({tensors.PIXEL_VALUES: pixels}, (tensors.IMAGE_ATTENTION, tensors.IMAGE_KEYS))
        np.testing.assert_allclose(found[tensors.IMAGE_FEATURES], expected, rtol=0, atol=2e-5)
        assert found[tensors.IMAGE_ATTENTION].shape == (2, side * side)
        np.testing.assert_allclose(found[tensors.IMAGE_ATTENTION].sum(axis=1), 1, rtol=0, atol=1e-5)
        assert found[tensors.IMAGE_KEYS].shape[:2] == (2, side * side)


@pytest.mark.parametrize("family", ["llava", "clip"])
def test_others_have_no_positions_for_smaller_images(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    with pytest.raises(UnsupportedConfigError, match=f"--smaller-images: {family} has no positions"):
        export_checkpoint(checkpoint_of(family), tmp_path / "bundle", smaller_images=True)
