from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image

from bundle.image import PREPROCESSOR, ImageSpec
from graphs.lowering.cuda_encoder import affine, lower_encoder_for_cuda, lower_vision_for_cuda
from graphs.lowering.cuda_kernels import without_kernel
from graphs.store import open_graph


@pytest.mark.parametrize(("family", "gives_half"), [("smolvlm", True), ("clip", False), ("siglip", False)])
def test_bytes_give_the_features_of_normalised_pixels(family: str, gives_half: bool, bundle_of, run, rng) -> None:
    bundle: Path = bundle_of(family, "contrib")
    spec = ImageSpec.read(bundle / PREPROCESSOR)
    height, width = spec.tile_size_px
    tiles = [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for _ in range(2)]
    plain = open_graph(bundle / "vision_encoder.onnx")
    expected, *told = run(plain, pixel_values=spec.pixels(tiles))
    model = open_graph(bundle / "vision_encoder.onnx")
    lower_vision_for_cuda(model, spec, gives_half=gives_half)
    given = spec.model_copy(update={"normalised_in_graph": True}).pixels(tiles)
    (value,) = model.graph.inputs
    assert (value.dtype, given.dtype, given.shape) == (ir.DataType.UINT8, np.uint8, (2, height, width, 3))
    found, *halved = run(model, pixel_values=given)
    for wanted, other in zip(told, halved, strict=True):  # what the tower looked at
        assert np.linalg.norm(other - wanted) < 0.01 * np.linalg.norm(wanted)
    assert found.dtype == (np.float16 if gives_half else np.float32)
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected)
    assert list(without_kernel(model.graph)) == []


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_text_encoder_computes_in_float16_and_gives_float32(family: str, bundle_of, run) -> None:
    bundle: Path = bundle_of(family, "contrib")
    feeds = {"input_ids": np.array([[3, 9, 27, 81, 1]]), "attention_mask": np.ones((1, 5), np.int64)}
    (expected,) = run(open_graph(bundle / "text_encoder.onnx"), **feeds)
    model = open_graph(bundle / "text_encoder.onnx")
    lower_encoder_for_cuda(model, gives_half=False)
    (found,) = run(model, **feeds)
    assert found.dtype == np.float32
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected)
    assert list(without_kernel(model.graph)) == []


def test_bytes_are_normalised_as_the_reference_does(bundle_of) -> None:
    spec = ImageSpec.read(bundle_of("clip", "contrib") / PREPROCESSOR)
    scale, shift = affine(spec)
    every = np.arange(256, dtype=np.uint8)
    tile = np.repeat(every[:, None], 3, axis=1)[None]
    wanted = ((every[:, None] * spec.rescale_factor) - np.array(spec.mean)) / np.array(spec.std)
    np.testing.assert_allclose(tile[0] * scale[:, 0, 0] + shift[:, 0, 0], wanted, rtol=1e-6, atol=1e-6)


def test_vectors_are_made_as_long_as_one_by_what_cuda_has(model_of, run, rng) -> None:
    """LLM2CLIP's and MoDE's, whose LpNormalization has no kernel there."""
    nodes = [("LpNormalization", ["x"], "y", {"axis": -1, "p": 2})]
    model = model_of({"x": (ir.DataType.FLOAT, ["M", 8])}, nodes, {}, ["y"])
    lower_encoder_for_cuda(model, gives_half=False)
    x = rng.normal(size=(3, 8)).astype(np.float32) * np.array([[1e-3], [40], [0]], np.float32)
    (found,) = run(model, x=x)
    lengths = np.linalg.norm(x, axis=-1, keepdims=True)
    np.testing.assert_allclose(found, x / np.where(lengths, lengths, 1), atol=2e-3)  # of float16, which has 11 bits
    assert list(without_kernel(model.graph)) == []
