"""Image processor settings become the same preprocessing, or are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import UnsupportedConfigError
from bundle.image import Cropped, Fixed, ImageSpec, Tiled
from export.architectures import load_family
from export.image_processor import read_image_spec

CLIP = {"image_processor_type": "CLIPImageProcessor"}
SIGLIP = {"image_processor_type": "SiglipImageProcessor"}
TILED = {"image_processor_type": "Idefics3ImageProcessor"}


@pytest.mark.parametrize("ending", ["", "Fast", "Pil"])
@pytest.mark.parametrize("name", ["Idefics3ImageProcessor", "SmolVLMImageProcessor"])
def test_old_and_new_class_names_mean_the_same(name: str, ending: str) -> None:
    settings = {"image_processor_type": name + ending, "size": {"longest_edge": 2048}}
    assert read_image_spec(settings, "test") == ImageSpec(
        geometry=Tiled(longest_edge_px=2048, tile_px=364, splits=True),
        resample="lanczos",
        rescale_factor=1 / 255,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def test_settings_left_out_take_the_class_s_defaults() -> None:
    spec = read_image_spec({"feature_extractor_type": "CLIPFeatureExtractor"}, "test")
    assert spec.geometry == Cropped(shortest_edge_px=224, height_px=224, width_px=224)
    assert (spec.resample, spec.mean[0]) == ("bicubic", 0.48145466)
    assert read_image_spec(SIGLIP, "test").geometry == Fixed(height_px=224, width_px=224)


def test_sizes_in_the_oldest_form_are_read() -> None:
    old = {**CLIP, "size": 336, "crop_size": 336}
    assert read_image_spec(old, "test").geometry == Cropped(shortest_edge_px=336, height_px=336, width_px=336)
    square = {**old, "default_to_square": True}
    assert read_image_spec(square, "test").geometry == Fixed(height_px=336, width_px=336)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"image_processor_type": "MysteryImageProcessor"}, "MysteryImageProcessor.*CLIPImageProcessor"),
        ({}, "image_processor_type None"),
        ({**CLIP, "do_resize": False}, "do_resize"),
        ({**CLIP, "do_rescale": False}, "do_rescale"),
        ({**CLIP, "do_normalize": False}, "do_normalize"),
        ({**CLIP, "do_center_crop": False}, "no fixed size"),
        ({**CLIP, "size": {"height": 8, "width": 8}, "crop_size": {"height": 4, "width": 4}}, "crop_size"),
        ({**CLIP, "size": {"shortest_edge": 8, "longest_edge": 16}}, "size = .*longest_edge"),
        ({**CLIP, "crop_size": {"longest_edge": 16}}, "crop_size = "),
        ({**CLIP, "do_pad": True}, "do_pad"),
        ({"image_processor_type": "LlavaImageProcessor", "do_pad": True, "size": {"shortest_edge": 8}}, "do_pad"),
        ({**CLIP, "do_image_splitting": True}, "do_image_splitting"),
        ({**CLIP, "do_thumbnail": True}, "do_thumbnail = True"),
        ({**TILED, "size": {"height": 8, "width": 8}}, "size = "),
        ({**TILED, "max_image_size": {"height": 8, "width": 8}}, "max_image_size = "),
        ({**TILED, "do_center_crop": True}, "do_center_crop"),
        ({**CLIP, "resample": 6}, "resample = 6"),
        ({**CLIP, "image_mean": 0.5}, "image_mean = 0.5"),
        ({**CLIP, "image_std": [0.5]}, "image_std"),
    ],
)
def test_setting_that_is_not_reproduced_is_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedConfigError, match=named):
        read_image_spec(settings, "test")


def test_settings_without_effect_and_nulls_are_accepted() -> None:
    settings = {**CLIP, "do_convert_rgb": True, "pad_size": None, "do_image_splitting": False, "processor_class": "X"}
    assert read_image_spec(settings, "test") == read_image_spec(CLIP, "test")


@pytest.mark.parametrize("preset", ["clip", "siglip", "smolvlm", "llava-clip-llama"])
def test_file_that_names_no_class_is_read_as_the_model_s(
    preset: str, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """transformers takes the class of config.json's model_type; so is done here."""
    from transformers import AutoProcessor

    folder = Path(shutil.copytree(checkpoint_of(preset), tmp_path / "checkpoint"))
    path = folder / "processor_config.json"
    content = json.loads(path.read_text())
    named = read_image_spec(content["image_processor"], "named")
    del content["image_processor"]["image_processor_type"]
    path.write_text(json.dumps(content))
    family = load_family(json.loads((folder / "config.json").read_text()))
    nameless = read_image_spec(content["image_processor"], "nameless", family.image_processor)
    assert nameless == named
    theirs = type(AutoProcessor.from_pretrained(folder).image_processor).__name__
    assert read_image_spec({**content["image_processor"], "image_processor_type": theirs}, "theirs") == nameless


def test_file_that_names_no_class_where_none_is_the_models_is_refused_with_what_to_add() -> None:
    with pytest.raises(UnsupportedConfigError, match=r"image_processor_type None is not supported; .* add the one"):
        read_image_spec({}, "test")
