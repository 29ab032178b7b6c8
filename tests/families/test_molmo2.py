"""Molmo 2 beside what every family is held to: pixels, what tokens of images see, templates, refusals by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle.errors import CheckpointError, UnsupportedConfigError
from bundle.image import PREPROCESSOR, ImageSpec, OverlappingCrops
from bundle.image.unsmoothed import unsmoothed
from export.architectures import load_family
from export.exporter import export_checkpoint

SIZES = ((70, 37), (33, 90), (300, 260), (31, 29), (500, 40))
REAL = OverlappingCrops(crop_px=378, window_px=266, most_crops=8)


def picture(width_px: int, height_px: int) -> Image.Image:
    rng = np.random.default_rng(width_px)
    return Image.fromarray(rng.integers(0, 256, (height_px, width_px, 3), np.uint8))


@pytest.mark.parametrize("number", [0, 1])
def test_pixels_are_the_processors(number: int, sample_of: Any) -> None:
    """Crops of ours are cut from the canvas as the graph cuts them; bytes where sums are halves may differ."""
    sample = sample_of("molmo2", number)
    spec = ImageSpec.read(sample.bundle().path(PREPROCESSOR))
    geometry = spec.geometry
    assert isinstance(geometry, OverlappingCrops)
    crop, window = geometry.crop_px, geometry.window_px
    for size in SIZES:
        image = picture(*size)
        whole, canvas = (spec.pixels([tile])[0] for tile in spec.cut(image))
        rows, cols = ((length - crop) // window + 1 for length in canvas.shape[1:])
        crops = [
            canvas[:, row * window : row * window + crop, col * window : col * window + crop]
            for row in range(rows)
            for col in range(cols)
        ]
        wanted = sample.processor.image_processor(images=[image], return_tensors="pt")["pixel_values"].numpy()
        patch = int((wanted.shape[2] // 3) ** 0.5)
        found = np.stack([_patches(each, patch) for each in (whole, *crops)])
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= 2 / 255 + 1e-6
        assert (found != wanted).mean() < 1e-3


def _patches(tile: np.ndarray, patch: int) -> np.ndarray:
    """Return [N, patch * patch * 3] of a tile [3, height, width]."""
    side = tile.shape[1] // patch
    return tile.reshape(3, side, patch, side, patch).transpose(1, 3, 2, 4, 0).reshape(side * side, -1)


def test_canvases_are_those_of_transformers() -> None:
    from transformers.models.molmo2.image_processing_molmo2 import compute_crop_geometry

    rng = np.random.default_rng(0)
    drawn = [tuple(int(each) for each in np.exp(rng.uniform(0, 8, 2))) for _ in range(300)]
    for width, height in [(112, 112), (112, 900), (900, 112), (1, 1), (378, 378), *drawn]:
        wanted = compute_crop_geometry(height, width, 8, [4, 4], 378, 14)[2:]
        assert REAL.layout(width, height).whole_px == wanted


@pytest.mark.parametrize(("size", "wanted"), [((70, 37), (100, 70)), ((640, 480), (378, 378)), ((9, 500), (200, 30))])
def test_scaling_without_a_filter_is_torchs(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    """But for sums that are halves, which threads and processors round each their own way."""
    import torch

    image = picture(*size)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].contiguous().float()
    scaled = torch.nn.functional.interpolate(pixels, size=wanted[::-1], mode="bilinear", align_corners=False)
    expected = scaled.round().clamp(0, 255)[0].permute(1, 2, 0).numpy()
    differences = np.abs(np.asarray(unsmoothed(image, wanted)) - expected)
    assert differences.max() <= 1
    assert (differences > 0).mean() < 1e-3


def test_fewer_pixels_are_fewer_crops() -> None:
    assert REAL.within(3 * 378**2).most_crops == 3
    with pytest.raises(ValueError, match="a crop is 378 x 378"):
        REAL.within(1000)


def test_tokens_of_images_see_those_of_all_images(sample_of: Any) -> None:
    """The start of each, the ends of its rows and its own are among them; text between keeps to what is before it."""
    prompt = sample_of("molmo2", 0).bundle().manifest.image_prompt
    start, other, *_ = (each for each in prompt.seen_ids if each != prompt.image_token_id)
    ids = np.array([1, 2, start, *[prompt.image_token_id] * 9, other, 5, 6, start, prompt.image_token_id, other, 7])
    seen = prompt.seen(ids, ())
    for at in range(len(ids)):
        is_image = 2 <= at < 13 or 15 <= at < 18
        assert tuple(seen[:, at]) == ((2, 18) if is_image else (at, at + 1))


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("text_config", {"qk_norm_type": "olmo"}, "qk_norm_type 'olmo'.*OLMo layers are not built"),
        ("text_config", {"norm_after": True}, "norm_after is true"),
        (
            "text_config",
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_scaling_layers": [0]},
            r"rope_scaling_layers \[0\]",
        ),
        ("adapter_config", {"num_key_value_heads": 1}, "num_key_value_heads is 1"),
        ("adapter_config", {"vit_layers": [9]}, "the tower has 5 layers"),
        ("adapter_config", {"text_hidden_size": 40}, "text_hidden_size 40: the width is the decoder's, 48"),
        ("adapter_config", {"pooling_attention_mask": False}, "pooling_attention_mask is False"),
        ("vit_config", {"head_dim": 8}, "head_dim is 8"),
        ("vit_config", {"image_num_pos": 26}, "num_position_embeddings 26"),
        (None, {"tie_word_embeddings": True}, "tie_word_embeddings is True"),
    ],
)
def test_what_is_not_built_is_refused_by_name(
    part: str | None, change: dict[str, Any], said: str, families: dict[str, Any]
) -> None:
    config = dict(next(iter(families["molmo2"].geometries().values())))
    changed = {**config, **change} if part is None else {**config, part: {**config[part], **change}}
    with pytest.raises(UnsupportedConfigError, match=said):
        load_family(changed).decoder  # noqa: B018 - text is read when the decoder is


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ({"overlap_margins": [3, 2]}, r"overlap_margins = \[3, 2\]"),
        ({"resample": 3}, "resample = 3; built is"),
        ({"size": {"height": 84, "width": 84}}, "crops of 70 pixels and patches of 14"),
    ],
)
def test_images_of_another_kind_are_refused(images: dict[str, Any], said: str, sample_of: Any, tmp_path: Path) -> None:
    folder = _copy(sample_of("molmo2", 0).checkpoint, tmp_path / "checkpoint")
    settings = folder / "processor_config.json"
    found = json.loads(settings.read_text())
    found["image_processor"] |= images
    settings.write_text(json.dumps(found))
    with pytest.raises(UnsupportedConfigError, match=said):
        export_checkpoint(folder, tmp_path / "bundle")


def test_half_a_table_of_tokens_is_refused(sample_of: Any, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = _copy(sample_of("molmo2", 0).checkpoint, tmp_path / "checkpoint")
    weights = load_file(folder / "model.safetensors")
    del weights["model.transformer.wte.new_embedding"]
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="are the table of tokens together"):
        export_checkpoint(folder, tmp_path / "bundle")


def _copy(checkpoint: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder
