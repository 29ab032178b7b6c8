"""HunyuanOCR's own: checkpoints as they were first published, sizes of images, and where tokens stand."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from bundle.directory import open_bundle
from bundle.image import PREPROCESSOR, ImageSpec, TileLayout
from bundle.layouts.hunyuan_vl import HunYuanVLPrompt
from bundle.layouts.prompt import Span
from export.decoders.hunyuan_vl_text import HunYuanVLText
from export.exporter import export_checkpoint

OLDER = (
    (r"^model\.vision_tower\.", "vit."),
    (r"^model\.language_model\.", "model."),
    (r"^vit\.patch_merger\.proj_conv\.", "vit.perceive.proj.0."),
    (r"^vit\.patch_merger\.proj_out\.", "vit.perceive.proj.2."),
    (r"^vit\.patch_merger\.", "vit.perceive."),
    (r"^(vit\.layers\.\d+)\.layer_norm1\.", r"\1.input_layernorm."),
    (r"^(vit\.layers\.\d+)\.layer_norm2\.", r"\1.post_attention_layernorm."),
    (r"^(vit\.layers\.\d+\.mlp)\.fc1\.", r"\1.dense_h_to_4h."),
    (r"^(vit\.layers\.\d+\.mlp)\.fc2\.", r"\1.dense_4h_to_h."),
)
PROMPT = HunYuanVLPrompt(image_token="<image>", image_token_id=3, tokens_per_tile=8, step_px=10, num_axes=4)


def test_flat_configs_and_older_names_make_the_same_bundle(sample_of: Any, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    sample = sample_of("hunyuan_vl", 0)
    folder = Path(shutil.copytree(sample.checkpoint, tmp_path / "first"))
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    text["rope_scaling"] = text.pop("rope_parameters")
    text |= {"attention_head_dim": text.pop("head_dim"), "org_vocab_size": text["vocab_size"], "use_qk_norm": True}
    text["rope_theta"] = text["rope_scaling"].pop("rope_theta")
    (folder / "config.json").write_text(json.dumps({**text, **config}))
    stored = load_file(folder / "model.safetensors")
    for new, old in OLDER:
        stored = {re.sub(new, old, name): weight for name, weight in stored.items()}
    assert {name.split(".")[0] for name in stored} == {"model", "vit"}
    save_file(stored, folder / "model.safetensors")
    export_checkpoint(folder, tmp_path / "bundle", name="tiny")
    found, expected = open_bundle(tmp_path / "bundle").manifest, sample.bundle().manifest
    assert found.image_prompt == expected.image_prompt
    for name in ("decoder.onnx", "decoder.onnx.data", "vision_encoder.onnx.data", "embed_tokens.onnx.data"):
        assert found.files[name] == expected.files[name], name


@pytest.mark.parametrize(
    "stated",
    [
        {"rope_type": "default", "alpha": 3.0},  # of "dynamic" alone
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 64, "attention_factor": 0.7},
        {"type": "xdrope", "factor": 1.0, "alpha": 3.0},
    ],
    ids=["default", "linear", "yarn", "xdrope"],
)
def test_angles_are_the_references_whatever_turns_them(stated: dict[str, Any]) -> None:
    from transformers.models.hunyuan_vl.configuration_hunyuan_vl import HunYuanVLTextConfig
    from transformers.models.hunyuan_vl.modeling_hunyuan_vl import HunYuanVLRotaryEmbedding

    rope = {**stated, "rope_theta": 300.0, "mrope_section": [2, 3, 2, 1]}
    sizes = {"hidden_size": 48, "num_attention_heads": 3, "head_dim": 16, "max_position_embeddings": 512}
    wanted = HunYuanVLRotaryEmbedding(HunYuanVLTextConfig(**sizes, rope_parameters=dict(rope)))
    found = HunYuanVLText.read({**sizes, "rope_parameters": rope}).config.rope
    assert_allclose(found.inverse_frequencies(16), wanted.inv_freq.numpy(), rtol=1e-6)
    assert found.scale == pytest.approx(wanted.attention_scaling)


def test_images_are_scaled_as_the_reference_scales_them(sample_of: Any) -> None:
    from transformers.models.hunyuan_vl.image_processing_pil_hunyuan_vl import smart_resize

    spec = ImageSpec.read(sample_of("hunyuan_vl", 0).bundle().path(PREPROCESSOR))
    for width, height in np.random.default_rng(0).integers(3, 500, (200, 2)).tolist():
        wanted = smart_resize(height, width, 12, 16 * 16, 64 * 64)
        assert spec.layout(width, height).whole_px == wanted


def test_rows_of_images_stand_at_columns_rows_and_their_number_and_all_else_goes_on() -> None:
    layout = TileLayout(whole_px=(20, 10))  # two rows of one square and what ends it
    spans = (Span(1, 7, 0, 0), Span(8, 14, 1, 0))
    places = PROMPT.places(15, spans, [layout, layout])
    assert places.next_position == 15
    assert places.positions[0].tolist() == list(range(15))
    columns, rows, images = places.positions[1:]
    assert columns.tolist() == [0, 1, 0, 1, 0, 1, 6, 7, 8, 0, 1, 0, 1, 13, 14]
    assert rows.tolist() == [0, 1, 0, 0, 1, 1, 6, 7, 8, 0, 0, 1, 1, 13, 14]
    assert images.tolist() == [0, 1, 0, 0, 0, 0, 6, 7, 8, 1, 1, 1, 1, 13, 14]
    halves = PROMPT.places(15, (Span(1, 4, 0, 0), Span(4, 7, 0, 3), spans[1]), [layout, layout])
    assert_array_equal(halves.positions, places.positions)


def test_tokens_are_counted_of_images_frames_and_of_what_is_left_of_them() -> None:
    counted = [TileLayout(whole_px=(20, 30)), TileLayout(), TileLayout(whole_px=(20, 30), fewer_tokens=5)]
    assert [PROMPT.num_tokens(layout) for layout in counted] == [10, 8, 5]
    for few in (1, 2, 3):  # fewer than stand around an image's rows
        layout = TileLayout(fewer_tokens=few)
        assert PROMPT.text(layout) == few * "<image>"
        assert PROMPT.places(few, (Span(0, few, 0, 0),), [layout]).positions.shape == (4, few)
