"""GLM-OCR's own: a layer that drafts, which no bundle holds, and small images made larger."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from bundle.image import Area
from export.exporter import export_checkpoint


def test_the_layer_that_guesses_a_token_ahead_is_left_out(sample_of: Any, checkpoints: Any, tmp_path: Path) -> None:
    """It stands behind the decoder's last, as layer 16 of 16 does in the published checkpoint."""
    sample = sample_of("glm_ocr", 0)
    folder = Path(shutil.copytree(sample.checkpoint, tmp_path / "checkpoint"))
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    layer = f"model.language_model.layers.{text['num_hidden_layers']}."
    width = text["hidden_size"]
    behind = {f"{layer}eh_proj.weight": (width, 2 * width), f"{layer}enorm.weight": (width,)}
    behind |= sample.family.layer_shapes(text, layer)
    checkpoints.save_model(folder, config, sample.family.shapes_of(config) | behind)
    files = export_checkpoint(folder, tmp_path / "bundle", name="tiny").files
    assert files["decoder.onnx.data"] == sample.bundle().manifest.files["decoder.onnx.data"]


def test_images_are_scaled_as_the_reference_scales_them() -> None:
    from transformers.models.glm46v.image_processing_pil_glm46v import smart_resize

    area = Area(step_px=28, least_px=112 * 56, most_px=28 * 28 * 300, grows_whole=True)
    for width, height in ((640, 360), (20, 11), (20, 90), (27, 2000), (1920, 1080), (333, 777), (1, 190)):
        wanted = smart_resize(2, height, width, 2, 28, 112 * 112, 2 * 28 * 28 * 300)
        assert area.layout(width, height).whole_px == wanted, (width, height)
