"""All-in-one, which reads a text beside the frames of a video, against a reference written from its authors' code."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle.directory import open_bundle
from bundle.errors import UnsupportedConfigError
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.text import TOKENIZER, Tokenizer
from export.exporter import export_checkpoint
from export.models.all_in_one import AllInOne
from runtime.pair_encoder import Pair, PairEncoder, chosen_of, frames_together
from runtime.settings import RuntimeSettings

GEOMETRIES = ("retrieval-three-frames", "matching-five-frames-odd-heads")
SETTINGS = RuntimeSettings(intra_threads=1)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def videos(num_frames: int) -> list[list[Image.Image]]:
    rng = np.random.default_rng(4)
    shots = []
    for width, height in ((40, 31), (25, 60), (33, 33)):
        small = rng.integers(0, 256, (num_frames, 5, 5, 3), np.uint8)
        shots.append([Image.fromarray(each).resize((width, height)) for each in small])
    return shots


def expected_pixels(frames: list[Image.Image], side: int) -> Any:
    """Return [F, 3, side, side]: squares of 1.2 sides, their centres, ImageNet's colours (`VideoTransform`, test)."""
    around, found = int(side * 1.2), []
    for frame in frames:
        first = round((around - side) / 2)  # torchvision's CenterCrop, whose even margins are the same by any rounding
        wide = np.asarray(frame.resize((around, around), Image.Resampling.NEAREST))
        cut = wide[(around - side) // 2 :, (around - side) // 2 :][:side, :side]
        assert first in ((around - side) // 2, (around - side) // 2 + 1)
        found.append(((cut / 255 - MEAN) / STD).transpose(2, 0, 1))
    return np.stack(found).astype(np.float32)


@pytest.mark.parametrize(("geometry", "dialect"), [*product(GEOMETRIES, ("contrib", "portable"))])
def test_scores_are_the_references_side_by_side(
    geometry: str, dialect: str, all_in_one: ModuleType, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    config = all_in_one.geometries()[geometry]
    all_in_one.save(tmp_path / "checkpoint", config)
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", name="tiny", dialect=dialect)
    bundle = open_bundle(tmp_path / "bundle")
    spec, texts = ImageSpec.read(bundle.path(PREPROCESSOR)), Tokenizer.from_file(bundle.path(TOKENIZER))
    score, pairs, expected = all_in_one.reference(tmp_path / "checkpoint"), [], []
    for number, frames in enumerate(videos(config["num_frames"])):
        row = texts.encode_batch(["a cat sits"[: 3 + 3 * number]], max_tokens=12, pad_token_id=0, pads_to_max=False)
        pixels = [spec.preprocess([frame]).groups[0] for frame in frames]
        seen = expected_pixels(frames, config["image_size"])
        np.testing.assert_allclose(np.concatenate(pixels), seen, atol=1e-5)
        pairs += [Pair(row, frames_together(pixels)), Pair(row, frames_together(pixels[::-1]))]
        expected += [score(row.input_ids, seen), score(row.input_ids, seen[::-1].copy())]
    scores = PairEncoder(bundle, SETTINGS).raw_scores(pairs)
    np.testing.assert_allclose(scores, expected, atol=2e-5)
    turned = np.reshape(expected, (-1, 2))
    assert np.abs(turned[:, 0] - turned[:, 1]).min() > 1e-3  # frames in another order are another video
    assert np.ptp(expected) > 1e-2


@pytest.mark.parametrize(
    ("num_given", "num_wanted", "expected"),
    [(9, 3, (1, 4, 7)), (10, 3, (1, 4, 7)), (3, 3, (0, 1, 2)), (1, 3, (0, 0, 0)), (2, 3, (0, 0, 1)), (100, 1, (49,))],
)
def test_frames_are_the_middles_of_stretches(num_given: int, num_wanted: int, expected: tuple[int, ...]) -> None:
    assert chosen_of(num_given, num_wanted) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_names": {"openend_vqa": 1, "itm": 1}}, "openend_vqa: a head that chooses among the answers"),
        ({"loss_names": {"mlm": 1}}, "built are the heads that score a text and a video"),
        ({}, "loss_names None"),
        ({"loss_names": {"itm": 1}, "vit": "vit_deit_base_distilled_patch16_224"}, "without distillation"),
        ({"loss_names": {"itm": 1}, "vit": "vit_small_patch16_224"}, "scaled by a head's size"),
        ({"loss_names": {"itm": 1}, "max_image_len": 100}, "drawn by chance"),
        ({"loss_names": {"itm": 1}, "num_frames": 0}, "1 to 64 are built"),
    ],
)
def test_what_is_not_built_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedConfigError, match=message):
        AllInOne(change)
