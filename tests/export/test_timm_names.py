"""The sizes that names of timm's towers stand for are timm's (tests/data/open_clip/make.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export.config import TowerConfig
from export.towers.eva02 import EVA02S
from export.towers.fastvit_config import FASTVITS
from export.towers.timm_vit import TIMM_VITS
from export.towers.vitamin import VITAMINS

TIMM: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "open_clip" / "timm.json").read_text()
)
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh", "SiLU": "silu"}


def tower(sizes: dict[str, Any]) -> TowerConfig:
    return TowerConfig(
        sizes["width"],
        sizes["inner"],
        sizes["layers"],
        sizes["heads"],
        ACTIVATIONS[sizes["activation"]],
        sizes["eps"],
    )


def test_every_name_is_held() -> None:
    assert TIMM.keys() == EVA02S.keys() | FASTVITS.keys() | TIMM_VITS.keys() | VITAMINS.keys()


@pytest.mark.parametrize("name", FASTVITS)
def test_a_fastvit_has_timms_sizes_and_switches(name: str) -> None:
    config, sizes = FASTVITS[name], TIMM[name]
    inner = [int(width * ratio) for width, ratio in zip(config.widths, config.ratios, strict=True)]
    assert [*config.layers] == sizes["layers"]
    assert ([*config.widths], inner, config.hidden_size) == (sizes["widths"], sizes["inner"], sizes["last"])
    assert ([*config.attends], [*config.squeezes]) == (sizes["attends"], sizes["squeezes"])
    assert (config.norms_by_batch, config.stem_has_scales) == (sizes["norms_by_batch"], sizes["stem_has_scales"])


@pytest.mark.parametrize("name", TIMM_VITS)
def test_a_vit_has_timms_sizes(name: str) -> None:
    config, sizes = TIMM_VITS[name], TIMM[name]
    assert config.tower == tower(sizes)
    assert (config.image_size_px, config.num_positions) == (sizes["side"], sizes["positions"])
    assert config.pools_by_query is not sizes["has_class_token"]
    assert ([*config.stem], config.norms_first) == (sizes["convolutions"], sizes["norms_first"])


@pytest.mark.parametrize("name", EVA02S)
def test_an_eva02_has_timms_sizes(name: str) -> None:
    config, sizes = EVA02S[name], TIMM[name]
    assert config.tower == tower(sizes)
    assert (config.image_size_px, config.grid**2 + 1) == (sizes["side"], sizes["positions"])


@pytest.mark.parametrize("name", VITAMINS)
def test_a_vitamin_has_timms_sizes(name: str) -> None:
    config, sizes = VITAMINS[name], TIMM[name]
    assert config.tower == tower(sizes)
    assert (config.image_size_px, config.widths[0]) == (sizes["side"], sizes["stem"])
    assert (config.num_rows if config.has_positions else 0) == sizes["positions"]
