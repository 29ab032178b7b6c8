"""ViLT and BridgeTower, which read a text and an image together, against transformers' models and processors."""

from __future__ import annotations

from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle.directory import open_bundle
from bundle.errors import ImageError, UnsupportedConfigError
from bundle.image import PREPROCESSOR, ImageSpec, ShortestEdge
from bundle.text import TOKENIZER, Tokenizer
from export.exporter import export_checkpoint
from export.models.bridgetower import BridgeTower
from export.models.vilt import Vilt
from quant.planning.draft import Options
from quant.quantizer import quantize_bundle
from runtime.pair_encoder import Pair, PairEncoder
from runtime.settings import RuntimeSettings

NAMES = {"vilt": "Vilt", "bridgetower": "BridgeTower"}
SIZES_PX = [(24, 24), (70, 31), (19, 90), (200, 60)]


def picture(width_px: int, height_px: int) -> Image.Image:
    pixels = np.random.default_rng(width_px).integers(0, 256, (height_px, width_px, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("family", "dialect"), [*product(("vilt", "bridgetower"), ("contrib", "portable"))])
def test_scores_are_the_references_side_by_side(
    family: str, dialect: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """In transformers' eager attention: its faster one lets no patch of BridgeTower's look at a later one (5.x)."""
    torch = pytest.importorskip("torch")
    import transformers

    checkpoint, name = request.getfixturevalue(f"{family}_checkpoint"), NAMES[family]
    kind = getattr(transformers, f"{name}ForImageAndTextRetrieval")
    model, found = kind.from_pretrained(checkpoint, output_loading_info=True, attn_implementation="eager")
    assert not any(found.values()), found
    module = import_module(f"transformers.models.{family}.image_processing_pil_{family}")
    images = getattr(module, f"{name}ImageProcessorPil").from_pretrained(checkpoint)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    export_checkpoint(checkpoint, tmp_path / "bundle", name="tiny", dialect=dialect)
    bundle = open_bundle(tmp_path / "bundle")
    spec, texts = ImageSpec.read(bundle.path(PREPROCESSOR)), Tokenizer.from_file(bundle.path(TOKENIZER))
    pairs, expected = [], []
    for number, size in enumerate(SIZES_PX):
        text, image = "a cat sits"[: 3 + 2 * number], picture(*size)
        row = texts.encode_batch([text], max_tokens=24, pad_token_id=0, pads_to_max=False)
        pixels = spec.preprocess([image]).groups[0]
        told, seen = tokenizer(text, return_tensors="pt"), images(image, return_tensors="pt")
        np.testing.assert_array_equal(row.input_ids, told["input_ids"].numpy())
        np.testing.assert_array_equal(pixels, seen["pixel_values"].numpy())
        with torch.no_grad():
            logits = model.eval()(**told, **seen).logits[0]
        pairs += [Pair(row, pixels)] * 2
        expected += [(torch.sigmoid(logits) if family == "vilt" else logits.softmax(-1)[1:]).item()] * 2
    scores = PairEncoder(bundle, RuntimeSettings(intra_threads=1)).score(pairs)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.ptp(expected) > 1e-2  # a model that says the same of every pair would agree however wrong it is


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1000, 90), (33, 35), (384, 384), (2000, 1111)])
def test_images_are_scaled_as_the_processor_does(size: tuple[int, int]) -> None:
    from transformers.models.vilt.image_processing_pil_vilt import get_resize_output_image_size

    geometry = ShortestEdge(shortest_px=384, longest_px=639, step_px=32)
    shape = (3, size[1], size[0])
    expected = get_resize_output_image_size(
        np.zeros(shape, np.uint8), shorter=384, longer=639, size_divisor=32, input_data_format="channels_first"
    )
    assert geometry.layout(*size).whole_px == expected


def test_an_image_of_which_no_patch_is_left_is_refused() -> None:
    with pytest.raises(ImageError, match="4000 x 10 pixels; with its long side at 639, less than the 32 of a patch"):
        ShortestEdge(shortest_px=384, longest_px=639, step_px=32).layout(4000, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["ViltForMaskedLM"]}, "the head for retrieval is built"),
        ({"qkv_bias": False}, "qkv_bias is False"),
        ({"max_image_length": 200}, "max_image_length is 200"),
    ],
)
def test_what_is_not_built_of_vilt_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedConfigError, match=message):
        Vilt(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["BridgeTowerForMaskedLM"]}, "the head for retrieval is built"),
        ({"link_tower_type": "interpolate"}, "link_tower_type is 'interpolate'"),
        ({"vision_config": {"remove_last_layer": True}}, "remove_last_layer is True"),
        ({"text_config": {"num_hidden_layers": 11}}, "12 layers over images and 11 over texts"),
        ({"hidden_size": 512}, "hidden_size 512 beside 768"),
    ],
)
def test_what_is_not_built_of_bridgetower_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedConfigError, match=message):
        BridgeTower({"vision_config": {}, "text_config": {}, **change})


def test_a_variant_for_cuda_takes_the_pixels_that_its_parent_does(vilt_checkpoint: Path, tmp_path: Path) -> None:
    """Its preprocessing gave bytes, which its graph does not take."""
    export_checkpoint(vilt_checkpoint, tmp_path / "parent", name="tiny")
    quantize_bundle(tmp_path / "parent", tmp_path / "cuda", weights="fp16", options=Options(target="cuda"))
    scores = []
    for bundle in (open_bundle(tmp_path / "parent"), open_bundle(tmp_path / "cuda", allow_ungated=True)):
        spec, texts = ImageSpec.read(bundle.path(PREPROCESSOR)), Tokenizer.from_file(bundle.path(TOKENIZER))
        row = texts.encode_batch(["a cat sits"], max_tokens=24, pad_token_id=0, pads_to_max=False)
        pair = Pair(row, spec.preprocess([picture(70, 31)]).groups[0])
        scores.append(PairEncoder(bundle, RuntimeSettings(intra_threads=1)).score([pair]))
    np.testing.assert_allclose(scores[1], scores[0], atol=5e-3)  # of float16
