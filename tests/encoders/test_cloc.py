"""Parts of images: CLOC's vectors of boxes, as a server gives them, against the reference; refused by other models."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from io import BytesIO
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from bundle.errors import ParameterError
from runtime.canary import check_canary
from runtime.encoder import open_encoder
from runtime.settings import RuntimeSettings
from serving.models.embedding import EmbeddingModel
from serving.models.pool import PreprocessPool
from serving.protocol import ClassifyRequest, EmbedRequest, ImagePart
from serving.settings import EngineSettings

BOXES = [(0.0, 0.0, 1.0, 1.0), (0.1, 0.3, 0.6, 0.8), (0.5, 0.05, 0.95, 0.4)]
DIALECTS = ("contrib", "portable")


@pytest.fixture(params=[0, 1])
def sample(request: pytest.FixtureRequest, sample_of: Any) -> Any:
    return sample_of("cloc", request.param)


def test_vectors_of_boxes_are_the_references(sample: Any, encoder_files: ModuleType) -> None:
    images = encoder_files.pictures()
    parts = [ImagePart(_png(image), box) for image in images for box in (*BOXES, None)]
    for dialect in DIALECTS:
        found = asyncio.run(_embedded(sample.bundle(dialect), parts)).reshape(len(images), len(BOXES) + 1, -1)
        wanted, whole = _references(sample, images)
        assert_allclose(found[:, :-1], wanted, atol=5e-5)
        assert_allclose(found[:, -1], whole, atol=5e-5)
    apart = [np.linalg.norm(of_image[i] - of_image[j]) for of_image in wanted for i in range(3) for j in range(i)]
    assert min(apart) > 5e-3


def test_boxes_come_in_their_order_and_alone_as_among_others(sample: Any, encoder_files: ModuleType) -> None:
    first, second = (_png(image) for image in encoder_files.pictures()[:2])
    mixed = [ImagePart(first, BOXES[1]), ImagePart(second), ImagePart(second, BOXES[2]), ImagePart(first)]
    together = asyncio.run(_embedded(sample.bundle(), mixed))
    alone = np.concatenate([asyncio.run(_embedded(sample.bundle(), [part])) for part in mixed])
    assert_allclose(together, alone, atol=1e-6)


def test_a_box_without_area_in_the_encoders_numbers_is_refused(sample: Any, encoder_files: ModuleType) -> None:
    """Its graph would take it for all of the image."""
    part = ImagePart(_png(encoder_files.pictures()[0]), (0.5, 0.5, 0.5 + 1e-9, 0.6))
    with pytest.raises(ParameterError, match="too thin"):
        asyncio.run(_embedded(sample.bundle(), [part]))


def test_labels_are_scored_against_a_part(sample: Any, encoder_files: ModuleType) -> None:
    images, labels = encoder_files.pictures()[:1], ("a cat", "two dogs", "a")
    expected, (regions, _) = sample.expected(images, labels), _references(sample, images)
    logits = sample.model.clip.logit_scale.exp().item() * regions[0] @ expected.texts.T
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))

    async def main(model: EmbeddingModel) -> np.ndarray:
        parts = tuple(ImagePart(_png(images[0]), box) for box in BOXES)
        return (await model.classify(ClassifyRequest("r", "m", parts, labels, ("{}",)))).scores

    found = asyncio.run(_asked(sample.bundle(), main))
    assert_allclose(found, weights / weights.sum(axis=-1, keepdims=True), atol=2e-3)


def test_a_canary_sees_the_prompter(sample: Any) -> None:
    bundle = sample.bundle()
    encoder = open_encoder(bundle, "vision_encoder", RuntimeSettings(intra_threads=1))
    check_canary(bundle, {"vision_encoder": encoder})
    assert bundle.manifest.dual.regions


def test_models_without_regions_refuse_boxes(sample_of: Any, encoder_files: ModuleType) -> None:
    part = ImagePart(_png(encoder_files.pictures()[0]), BOXES[0])
    bundle = sample_of("clip", 0).bundle()
    with pytest.raises(ParameterError, match="box: tiny has no vectors of regions"):
        asyncio.run(_embedded(bundle, [part]))

    async def main(model: EmbeddingModel) -> Any:
        return await model.classify(ClassifyRequest("r", "m", (part,), ("a",), ("{}",)))

    with pytest.raises(ParameterError, match="box: tiny has no vectors of regions"):
        asyncio.run(_asked(bundle, main))


def _references(sample: Any, images: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors [n, boxes, E] of parts of n images, and [n, E] of all of each."""
    import torch

    expected = sample.expected(images, ["a"])
    pixels = expected.inputs["pixel_values"]
    with torch.no_grad():
        of_boxes = [sample.family.of_regions(sample.model, pixels, [box] * len(images)) for box in BOXES]
    parts = np.stack([each.numpy() for each in of_boxes], axis=1)
    return parts / np.linalg.norm(parts, axis=-1, keepdims=True), expected.images


async def _embedded(bundle: Any, parts: Sequence[ImagePart]) -> np.ndarray:
    async def main(model: EmbeddingModel) -> np.ndarray:
        return (await model.embed(EmbedRequest("r", "m", tuple(parts)))).embeddings

    return await _asked(bundle, main)


async def _asked(bundle: Any, main: Any) -> Any:
    settings = EngineSettings(max_sequences=3, intra_threads=1)
    pool = PreprocessPool(settings)
    model = EmbeddingModel(bundle, settings, pool)
    model.start()
    try:
        return await main(model)
    finally:
        model.close()
        pool.close()


def _png(image: Any) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
