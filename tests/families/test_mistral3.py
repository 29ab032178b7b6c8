"""Mistral 3's own: sizes of images, checkpoints in eight bits, and LightOnOCR's first ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bundle.directory import open_bundle
from bundle.errors import ImageError
from bundle.image import LongestEdge, TileLayout
from bundle.layouts.pixtral import PixtralPrompt
from export.exporter import export_checkpoint

SIDES = st.integers(1, 2500)


@hypothesis_settings(max_examples=300, deadline=None, derandomize=True)
@given(width=SIDES, height=SIDES)
def test_images_are_scaled_as_the_reference_scales_them(width: int, height: int) -> None:
    from transformers.image_utils import ChannelDimension
    from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size

    for longest, step in ((1540, 28), (1000, 28), (68, 12)):
        # no pixels: an array of this shape takes no memory
        shape = np.broadcast_to(np.uint8(0), (3, height, width))
        wanted = get_resize_output_image_size(shape, longest, step, ChannelDimension.FIRST)
        if min(wanted) == 0:
            with pytest.raises(ImageError, match="less than a pixel is left"):
                LongestEdge(longest_px=longest, step_px=step).layout(width, height)
        else:
            assert LongestEdge(longest_px=longest, step_px=step).layout(width, height).whole_px == wanted


def test_images_are_bounded_by_their_area() -> None:
    whole = LongestEdge(longest_px=1540, step_px=28)
    assert whole.within(1 << 30) == whole
    assert whole.within(1_000_000) == LongestEdge(longest_px=980, step_px=28)
    with pytest.raises(ValueError, match="28 x 28"):
        whole.within(27 * 28)


def test_a_frame_without_a_size_is_a_square_and_fewer_tokens_are_a_line() -> None:
    names = {"image_token": "[IMG]", "image_token_id": 3, "break_token": "|", "end_token": "."}
    prompt = PixtralPrompt(tokens_per_tile=4, step_px=28, **names)
    assert prompt.text(TileLayout()) == "[IMG][IMG]|[IMG][IMG]."
    assert prompt.text(TileLayout(whole_px=(28, 56))) == "[IMG][IMG]."
    assert prompt.text(TileLayout(whole_px=(280, 280), fewer_tokens=3)) == "[IMG][IMG][IMG]."
    assert [prompt.writes(token) for token in ("[IMG]", "|", ".", "x")] == [True, True, True, False]


def test_an_image_without_a_whole_square_is_refused_before_it_is_encoded() -> None:
    """LightOnOCR's processor scales images to whole patches, of which two a side make a token."""
    prompt = PixtralPrompt(image_token="[IMG]", image_token_id=3, tokens_per_tile=4, step_px=28)
    prompt.check([TileLayout(whole_px=(28, 28)), TileLayout(whole_px=(42, 280)), TileLayout()])
    with pytest.raises(ImageError, match=r"image 2 .* is 280 x 14 pixels .* squares of 28 pixels"):
        prompt.check([TileLayout(whole_px=(28, 28)), TileLayout(whole_px=(14, 280))])


def test_a_checkpoint_in_eight_bits_is_the_one_of_its_numbers(sample_of: Any, tmp_path: Path) -> None:
    """As Ministral 3's instruct checkpoints: one scale a matrix, in bfloat16, tower and connector as they were."""
    import torch
    from safetensors.torch import load_file, save_file

    whole, eight = (Path(shutil.copytree(sample_of("mistral3", 0).checkpoint, tmp_path / name)) for name in "ab")
    plain, codes = load_file(whole / "model.safetensors"), dict[str, Any]()
    for name, weight in list(plain.items()):
        codes[name] = weight
        if "language_model.model.layers" in name and weight.ndim == 2:
            scale = (weight.abs().max() / 448).to(torch.bfloat16)
            codes[name] = (weight / scale.float()).to(torch.float8_e4m3fn)
            codes[f"{name}_scale_inv"], plain[name] = scale, codes[name].float() * scale.float()
            codes[name.removesuffix("weight") + "activation_scale"] = torch.tensor(0.1, dtype=torch.bfloat16)
    save_file(plain, whole / "model.safetensors")
    save_file(codes, eight / "model.safetensors")
    config = json.loads((eight / "config.json").read_text())
    skips = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    method = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
    settings = {"quantization_config": {**method, "modules_to_not_convert": skips}}
    (eight / "config.json").write_text(json.dumps(config | settings))
    files = [export_checkpoint(each, each / "bundle", name="tiny").files for each in (whole, eight)]
    for name in ("decoder.onnx.data", "vision_encoder.onnx.data", "embed_tokens.onnx.data"):
        assert files[0][name] == files[1][name], name


def test_lightonocr_s_first_checkpoints_are_of_this_type_and_end_no_rows(sample_of: Any, tmp_path: Path) -> None:
    ours = sample_of("lighton_ocr", 1)
    folder = Path(shutil.copytree(ours.checkpoint, tmp_path / "first"))
    from safetensors.numpy import load_file, save_file

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mistral3", "vision_feature_layer": -1}))
    names = (("model.vision_encoder.", "vision_tower."), ("model.vision_projection.", "multi_modal_projector."))
    stored = load_file(folder / "model.safetensors")
    for old, new in names:
        stored = {name.replace(old, new): weight for name, weight in stored.items()}
    save_file(stored, folder / "model.safetensors")
    processor = json.loads((folder / "processor_config.json").read_text())
    processor |= {"processor_class": "LightOnOCRProcessor", "image_break_token": "<|vision_pad|>"}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    export_checkpoint(folder, tmp_path / "bundle", name="tiny")
    found, expected = open_bundle(tmp_path / "bundle").manifest, ours.bundle().manifest
    assert found.image_prompt == expected.image_prompt
    for name in ("decoder.onnx.data", "vision_encoder.onnx.data", "preprocessor.json"):
        assert found.files[name] == expected.files[name], name
