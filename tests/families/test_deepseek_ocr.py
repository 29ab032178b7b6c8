"""DeepSeek-OCR in the authors' layout: pixels, configs of both models, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle.errors import UnsupportedConfigError
from bundle.image import PREPROCESSOR, ImageSpec
from export.architectures import load_family
from export.exporter import export_checkpoint


@pytest.mark.parametrize("size_px", [(70, 37), (38, 91), (640, 640), (901, 700), (641, 20), (900, 3001)])
def test_pixels_are_the_authors(sample_of: Any, size_px: tuple[int, int]) -> None:
    sample = sample_of("deepseek_ocr", 0)
    rng = np.random.default_rng(size_px)
    small = Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8))
    image = small.resize(size_px)
    spec = ImageSpec.read(sample.bundle().path(PREPROCESSOR))
    seen = sample.inputs([image])
    layout, (*tiles, whole) = spec.layout(*size_px), spec.cut(image)
    assert [layout.cols or 1, layout.rows or 1] == seen["patches_grid"][0]
    np.testing.assert_allclose(spec.pixels([whole]), seen["pixel_values"].numpy(), atol=1e-6)
    if tiles:
        np.testing.assert_allclose(spec.pixels(tiles), seen["pixel_values_local"].numpy(), atol=1e-6)


def test_the_second_model_is_one_in_both_layouts(sample_of: Any, tmp_path: Path) -> None:
    """Weights have the authors' names in both; what differs is the config, and files that say how images are cut."""
    sample = sample_of("deepseek_ocr2", 0)
    folder = Path(shutil.copytree(sample.checkpoint, tmp_path / "checkpoint"))
    config = json.loads((folder / "config.json").read_text())
    sam, reader = config["vision_config"]["sam_config"], dict(config["vision_config"]["encoder_config"])
    own = {"width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads"}
    text = {key: value for key, value in config["text_config"].items() if key != "model_type"}
    theirs = {
        "architectures": ["DeepseekOCR2ForCausalLM"],
        "model_type": "deepseek_vl_v2",
        "candidate_resolutions": [[448, 448]],
        "language_config": {**text, "use_mla": False},
        "projector_config": {"projector_type": "linear"},
        "vision_config": {
            "width": {
                "sam_vit_b": {**{key: sam.pop(name) for key, name in own.items()}, **sam},
                "qwen2-0-5b": {"dim": reader.pop("hidden_size"), "rope_theta": 10_000.0, **reader},
            }
        },
    }
    (folder / "config.json").write_text(json.dumps(theirs))
    files, wanted = export_checkpoint(folder, tmp_path / "bundle", name="tiny").files, sample.bundle().manifest.files
    for name in ("decoder.onnx", "decoder.onnx.data", "vision_encoder.onnx", "vision_encoder.onnx.data"):
        assert files[name] == wanted[name], name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["DeepseekV2ForCausalLM"]}, "deepseek_vl_v2 of DeepseekV2ForCausalLM"),
        ({"tile_tag": "1D"}, "tile_tag"),
        ({"projector_config": {"projector_type": "downsample_mlp_gelu"}}, "projector_type"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"language_config": {"use_mla": True, "num_experts_per_tok": 2}}, "use_mla"),
        ({"language_config": {"num_experts_per_tok": 2}}, "use_mla"),
    ],
)
def test_what_is_not_built_is_refused_by_name(sample_of: Any, change: dict[str, Any], words: str) -> None:
    config = copy.deepcopy(next(iter(sample_of("deepseek_ocr", 0).family.geometries().values())))
    with pytest.raises(UnsupportedConfigError, match=words):
        load_family({**config, **change}).decoder  # type: ignore[attr-defined]  # noqa: B018


def test_images_of_several_resolutions_are_refused(sample_of: Any) -> None:
    config = next(iter(sample_of("deepseek_ocr", 0).family.geometries().values()))
    family = load_family({**config, "candidate_resolutions": [[384, 384], [768, 384]]})
    with pytest.raises(UnsupportedConfigError, match="candidate_resolutions"):
        family.own_image_spec()
