import asyncio
import threading
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from bundle.directory import open_bundle
from bundle.image import TileLayout
from serving.models.vision import DecodedImage, VisionStage, concatenated, encoder_identity
from serving.settings import EngineSettings

SETTINGS = EngineSettings(intra_threads=1, vision_batch_tiles=3)


@pytest.fixture
def stage(smolvlm_bundle, pool):
    stage = VisionStage(smolvlm_bundle, open_bundle(smolvlm_bundle), SETTINGS, pool)
    stage.worker.start()
    yield stage
    stage.worker.close()


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)


def test_the_key_is_the_content_not_the_file(stage) -> None:
    changed = PIXELS.copy()
    changed[20, 30, 1] ^= 1

    async def main() -> None:
        png, bmp = await stage.decode(encoded(PIXELS)), await stage.decode(encoded(PIXELS, "BMP"))
        assert png.key == bmp.key
        others = [changed, PIXELS[:, :-1], PIXELS.reshape(90, 40, 3)]
        keys = {png.key, *[(await stage.decode(encoded(other))).key for other in others]}
        assert len(keys) == 4

    asyncio.run(main())


def test_another_preprocessing_or_encoder_is_another_identity(smolvlm_bundle, stage) -> None:
    manifest, spec = open_bundle(smolvlm_bundle), stage._spec
    name = "vision_encoder.onnx.data"
    record = manifest.files[name].model_copy(update={"sha256": "0" * 64})
    retrained = manifest.model_copy(update={"files": {**manifest.files, name: record}})
    shifted = spec.model_copy(update={"mean": (0.4, 0.5, 0.5)})
    identities = {
        encoder_identity(manifest, spec),
        encoder_identity(retrained, spec),
        encoder_identity(manifest, shifted),
    }
    assert len(identities) == 3
    assert encoder_identity(open_bundle(smolvlm_bundle), spec) in identities


def test_features_are_those_of_the_tiles_however_they_are_batched(stage) -> None:
    images = [stage._spec.preprocess([Image.fromarray(PIXELS[:, :width])]).pixel_values for width in (90, 30, 64)]
    together = stage.run(images)
    assert [len(features) for features in together] == [len(image) for image in images]
    for image, features in zip(images, together, strict=True):
        alone = np.concatenate([stage.run([tile[None]])[0] for tile in image])
        # Other batch sizes round float32 sums differently.
        np.testing.assert_allclose(features, alone, atol=1e-4 * np.abs(alone).max())


def test_a_caller_that_leaves_takes_nothing_from_the_others(stage) -> None:
    async def main() -> None:
        image = await stage.decode(encoded(PIXELS))
        first, second = (asyncio.create_task(stage.encode(image)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        features = (await asyncio.wait_for(second, 20)).features
        assert first.cancelled()
        np.testing.assert_array_equal((await stage.encode(image)).features, features)
        assert stage.cache.num_hits == 1

    asyncio.run(main())


def test_rows_of_several_images_stand_in_order(stage) -> None:
    async def main() -> None:
        images = [await stage.decode(encoded(PIXELS[:, :width])) for width in (90, 30)]
        features = [await stage.encode(image) for image in images]
        rows = concatenated(features)
        assert rows is not None
        tokens, width = features[0].features.shape[1:]
        assert rows.shape == (sum(image.layout.num_tiles for image in images) * tokens, width)
        np.testing.assert_array_equal(rows[:tokens], features[0].features[0])
        np.testing.assert_array_equal(rows[-tokens:], features[1].features[-1])

    asyncio.run(main())
    assert concatenated([]) is None


def held(stage) -> tuple[threading.Event, list[int]]:
    """Make the encoder wait, and return the event that lets it go and the sizes of its batches."""
    go, batches, encode = threading.Event(), [], stage.worker._run_batch

    def wait(images: list[np.ndarray]) -> list[np.ndarray]:
        go.wait(20)
        batches.append(len(images))
        return encode(images)

    stage.worker._run_batch = wait
    return go, batches


def test_images_that_nobody_waits_for_any_more_are_not_encoded(stage) -> None:
    go, batches = held(stage)

    async def main() -> None:
        images = [await stage.decode(encoded(PIXELS[:, :width])) for width in range(40, 60)]
        tasks = [asyncio.create_task(stage.encode(image)) for image in images]
        await asyncio.sleep(0.2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        go.set()
        await asyncio.wait_for(stage.encode(await stage.decode(encoded(PIXELS))), 20)
        again = await asyncio.wait_for(stage.encode(images[0]), 20)  # who comes back is not told of the cancellation
        assert len(again.features) == images[0].layout.num_tiles

    asyncio.run(main())
    assert sum(batches) <= 4  # those that ran when their callers left, and the two wanted since


def test_pixels_are_made_for_few_more_images_than_one_batch(stage) -> None:
    go, _ = held(stage)
    pixels, made = stage._pixels, []
    stage._pixels = lambda image: made.append(image) or pixels(image)

    async def main() -> None:
        sizes = range(40, 60)
        images = [DecodedImage(bytes([n]), (Image.fromarray(PIXELS[:, :n]),), TileLayout()) for n in sizes]
        tasks = [asyncio.create_task(stage.encode(image)) for image in images]
        await asyncio.sleep(0.3)
        assert 0 < len(made) <= 2 * SETTINGS.vision_batch_tiles
        go.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 20)
        assert len(made) == len(images)

    asyncio.run(main())


@pytest.mark.parametrize("size_px", [(40, 30), (900, 700), (3000, 2000)])
def test_an_image_that_waits_takes_no_more_memory_than_its_tiles_and_encodes_the_same(stage, size_px) -> None:
    image = Image.fromarray(PIXELS).resize(size_px)

    async def main() -> None:
        decoded = await stage.decode(encoded(np.asarray(image)))
        height, width = stage._spec.tile_size_px
        held_pixels = sum(each.width * each.height for each in decoded.images)
        assert held_pixels <= max(decoded.layout.num_tiles * height * width, 1)
        found = (await stage.encode(decoded)).features
        (expected,) = stage.run([stage._spec.preprocess([image]).pixel_values])
        np.testing.assert_array_equal(found, expected)

    asyncio.run(main())
