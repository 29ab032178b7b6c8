"""Models whose images keep their shape: what a config or a processor must not say."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.errors import UnsupportedConfigError
from bundle.image import Area, Fixed, ImageSpec
from export.architectures import load_family
from export.decoders.qwen3_vl_text import alternating_axes
from export.exporter import export_checkpoint
from export.shaping import cut_decoder

CONFIG: dict[str, Any] = {
    "model_type": "qwen3_vl",
    "text_config": {"hidden_size": 64, "head_dim": 16, "rope_parameters": {"mrope_section": [4, 2, 2]}},
    "vision_config": {"depth": 2, "hidden_size": 32, "out_hidden_size": 64, "deepstack_visual_indexes": [0]},
}


def changed(part: str, **settings: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    config[part] |= settings
    return config


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (changed("text_config", rope_parameters={"mrope_section": [4, 4]}), r"mrope_section \[4, 4\]"),
        (changed("text_config", rope_parameters={"mrope_section": [4, 4, 4]}), r"8 in all"),
        (changed("text_config", num_hidden_layers=0), r"names 1 layers"),
        (changed("vision_config", out_hidden_size=48), r"width 48.*hidden_size is 64"),
        (changed("vision_config", in_channels=1), r"in_channels is 1"),
        (changed("vision_config", deepstack_visual_indexes=[2]), r"deepstack_visual_indexes \[2\]"),
        (changed("vision_config", num_position_embeddings=8), r"num_position_embeddings 8"),
    ],
)
def test_a_config_that_is_not_built_is_refused_by_its_key(config: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedConfigError, match=named):
        load_family(config)


@pytest.mark.parametrize("geometry", [Fixed(height_px=32, width_px=32), Area(step_px=28, least_px=784, most_px=7840)])
def test_a_processor_that_makes_other_squares_is_refused(geometry: Any) -> None:
    spec = ImageSpec(geometry=geometry, resample="bicubic", rescale_factor=1.0, mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(UnsupportedConfigError, match="squares of 32 pixels"):
        load_family(CONFIG).check_images(spec)


def test_a_decoder_with_inputs_of_its_own_is_not_cut() -> None:
    with pytest.raises(UnsupportedConfigError, match="deep_features"):
        cut_decoder(load_family(CONFIG), [1])


def test_axes_alternate_until_one_has_had_its_pairs() -> None:
    """transformers: `Qwen3VLTextRotaryEmbedding.recomposition_frequencies`."""
    assert alternating_axes([4, 2, 2]).tolist() == [0, 1, 2, 0, 1, 2, 0, 0]
    assert np.bincount(alternating_axes([24, 20, 20])).tolist() == [24, 20, 20]


def test_images_are_bounded_where_they_keep_their_shape_and_nowhere_else(tmp_path: Path, checkpoint_of: Any) -> None:
    area = Area(step_px=28, least_px=3136, most_px=12_845_056)
    assert area.within(1_000_000) == Area(step_px=28, least_px=3136, most_px=1_000_000)
    assert area.within(1 << 30) == area
    assert area.within(1000) == Area(step_px=28, least_px=1000, most_px=1000)
    with pytest.raises(ValueError, match="areas from 100 to 100"):
        area.within(100)
    with pytest.raises(UnsupportedConfigError, match="--image-pixels 5000: its images are always 32 x 32 pixels"):
        export_checkpoint(checkpoint_of("smolvlm"), tmp_path / "bundle", most_image_px=5000)
