"""A model that embeds texts alone serves texts, and says so to whoever sends an image."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from bundle.directory import open_bundle
from bundle.errors import TaskError
from export.adopted.adopter import adopt_export
from export.adopted.adoption import Said
from serving.models.embedding import EmbeddingModel
from serving.protocol import ClassifyRequest, EmbedRequest, ImagePart, TextPart
from serving.settings import EngineSettings

EXPORT = Path(__file__).parents[2] / "data" / "optimum" / "bert"


@pytest.fixture
def model(tmp_path, pool):
    adopt_export(EXPORT, tmp_path / "bert", said=Said(pooling="mean"))
    model = EmbeddingModel(open_bundle(tmp_path / "bert"), EngineSettings(intra_threads=1), pool)
    model.start()
    yield model
    model.close()


def test_texts_have_unit_vectors_alone_and_among_others(model) -> None:
    async def main() -> None:
        together = await model.embed(EmbedRequest("r", "m", (TextPart("a cat"), TextPart("x"))))
        alone = await model.embed(EmbedRequest("s", "m", (TextPart("x"),)))
        np.testing.assert_allclose(np.linalg.norm(together.embeddings, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(together.embeddings[1], alone.embeddings[0], atol=1e-5)
        assert abs(together.embeddings[0] @ together.embeddings[1]) < 0.999

    asyncio.run(asyncio.wait_for(main(), 60))


def test_an_image_is_refused_by_what_the_model_does(model, image_bytes) -> None:
    async def main() -> None:
        with pytest.raises(TaskError, match="embeds texts alone"):
            await model.embed(EmbedRequest("r", "m", (TextPart("x"), ImagePart(image_bytes()))))
        with pytest.raises(TaskError, match="embeds texts alone"):
            await model.classify(ClassifyRequest("r", "m", (ImagePart(image_bytes()),), ("a", "b")))

    asyncio.run(asyncio.wait_for(main(), 60))
