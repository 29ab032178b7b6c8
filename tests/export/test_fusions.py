"""Families that lead images into a decoder in other ways: what a config must not say."""

from __future__ import annotations

from typing import Any

import pytest

from bundle.errors import UnsupportedConfigError
from bundle.image import TileLayout
from export.architectures import load_family
from export.decoders.table import load_decoder
from export.image_processor import read_image_spec

GOT: dict[str, Any] = {"model_type": "got_ocr2", "text_config": {}, "vision_config": {}}
BLIP: dict[str, Any] = {
    "model_type": "blip-2",
    "text_config": {"model_type": "opt"},
    "vision_config": {},
    "qformer_config": {},
}
KOSMOS: dict[str, Any] = {"model_type": "kosmos-2", "text_config": {}, "vision_config": {}}
DOCLING: dict[str, Any] = {"model_type": "granite_docling", "text_config": {}, "vision_config": {}}
OVIS: dict[str, Any] = {
    "model_type": "ovis2",
    "text_config": {},
    "vision_config": {"image_size": 448, "patch_size": 14, "hidden_stride": 2},
}


def changed(config: dict[str, Any], part: str, **settings: Any) -> dict[str, Any]:
    return {**config, part: {**config[part], **settings}}


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (changed(GOT, "vision_config", use_rel_pos=False), "use_rel_pos is False"),
        (changed(GOT, "vision_config", use_abs_pos=False), "use_abs_pos is False"),
        (changed(GOT, "vision_config", qkv_bias=False), "qkv_bias is False"),
        (changed(GOT, "vision_config", image_size=[1024, 512]), r"image_size is \[1024, 512\]"),
        (changed(BLIP, "text_config", model_type="t5"), "'t5' is an encoder with a decoder"),
        (changed(BLIP, "vision_config", qkv_bias=False), "qkv_bias is False"),
        (changed(BLIP, "qformer_config", use_qformer_text_input=True), "use_qformer_text_input is True"),
        (changed(KOSMOS, "text_config", add_cross_attention=True), "add_cross_attention is True"),
        (changed(KOSMOS, "text_config", embed_dim=15, attention_heads=3), "embed_dim 15"),
        (changed(DOCLING, "vision_config", scale_factor=3), "scale_factor 3 does not divide the 32 patches"),
        (
            changed(DOCLING, "vision_config", out_hidden_size=512),
            "out_hidden_size 512 and text_config.hidden_size 1024",
        ),
        (changed(DOCLING, "vision_config", deepstack_visual_indexes=[3, 12]), r"deepstack_visual_indexes \[3, 12\]"),
        (changed(DOCLING, "text_config", num_hidden_layers=2), "features of images for 3 layers"),
        (changed(OVIS, "vision_config", tokenize_function="st_argmax"), "tokenize_function 'st_argmax'"),
        (changed(OVIS, "vision_config", hidden_stride=3), "hidden_stride 3 does not divide the 32 patches"),
        (changed(OVIS, "vision_config", num_visual_indicator_tokens=4), "num_visual_indicator_tokens 4"),
        ({**OVIS, "vocab_size": 151_643}, "vocab_size is 151643, and text_config has 151936"),
    ],
)
def test_a_config_that_is_not_built_is_refused_by_its_key(config: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedConfigError, match=named):
        _ = load_family(config).decoder  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"do_layer_norm_before": False}, "do_layer_norm_before is False"),
        ({"enable_bias": False}, "enable_bias is False"),
        ({"word_embed_proj_dim": 512}, "word_embed_proj_dim 512"),
    ],
)
def test_an_opt_that_is_not_built_is_refused_by_its_key(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedConfigError, match=named):
        load_decoder({"model_type": "opt", **settings})


def test_docling_s_processor_by_another_way_is_refused_by_its_key() -> None:
    with pytest.raises(UnsupportedConfigError, match="fine_route is True"):
        read_image_spec({"image_processor_type": "GraniteDoclingImageProcessor", "fine_route": True}, "file")


def test_docling_s_pages_have_16_tiles_a_side_at_most() -> None:
    spec = read_image_spec({"image_processor_type": "GraniteDoclingImageProcessor"}, "file")
    assert spec.layout(20 * 512, 512) == TileLayout(rows=1, cols=16)
