"""What a LLaVA with two towers must not say."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import pytest

from bundle.errors import UnsupportedConfigError
from export.architectures import load_family


@pytest.mark.parametrize(
    ("part", "key", "value", "told"),
    [
        ("dino_config", "model_type", "vit", "model_type is 'vit'"),
        ("dino_config", "patch_size", 16, "an image of 32 pixels has 2 patches a side, of the first tower 4"),
        ("dino_config", "qkv_bias", False, "qkv_bias is False"),
        ("", "vision_feature_select_strategy", "full", "interleaved place by place"),
        ("", "mm_projector_type", "pool_adapter", "pool_out_size"),
    ],
)
def test_what_is_not_built_is_refused_by_name(
    families: dict[str, ModuleType], part: str, key: str, value: Any, told: str
) -> None:
    config = copy.deepcopy(families["llava_mof"].geometries()["resampled-positions-two-layers"])
    (config[part] if part else config)[key] = value
    with pytest.raises(UnsupportedConfigError, match=told):
        load_family(config)
